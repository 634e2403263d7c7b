"""n sequences of one prompt: the first one computes it, the others wait and fork from it.

    lead      WAITING ─> OPENING ─> RUNNING: prompt ─> its last chunk draws for everybody ─> decodes
    follower  FOLLOWING ·································· drawn ─> RUNNING: a tail of its own, copied in that step

A follower forks in the first step that has a block and a place for it, as long as its lead runs. When the lead ends or
gives its row back before that, the first follower leads the rest: same seed, same position, same token again.
"""

from compute.request import Request
from compute.scheduler.sequence import Phase, Sequence

Key = tuple[bytes, bytes]


class Groups:
    def __init__(self) -> None:
        self._leads: dict[Key, Sequence] = {}  # those that may still be joined
        self.following = 0

    def join(self, sequence: Sequence) -> bool:
        """Whether it follows another. The first of its group leads; log-probabilities of a prompt are one's own, and
        so is what another worker may have begun."""
        request = sequence.request
        if request.n == 1 or request.prompt_logprobs or request.adopt:
            return False
        lead = self._leads.get(key_of(request))
        if lead is None or not (lead.may_lead and same_prompt(lead.request, request)):
            self._leads[key_of(request)] = sequence
            return False
        self.follow(lead, sequence)
        self.following += 1
        return True

    def follow(self, lead: Sequence, sequence: Sequence) -> None:
        sequence.phase, sequence.lead = Phase.FOLLOWING, lead
        lead.followers.append(sequence)

    def drop(self, sequence: Sequence) -> None:
        """It follows no longer: it ended, or has a row."""
        assert sequence.lead is not None
        sequence.lead.followers.remove(sequence)
        sequence.phase, sequence.lead = Phase.WAITING, None
        self.following -= 1

    def part(self, lead: Sequence) -> Sequence | None:
        """Nobody can fork from it any more. Who leads the others now, and waits for a row, if there is anyone."""
        if self._leads.get(key_of(lead.request)) is lead:
            del self._leads[key_of(lead.request)]
        followers, lead.followers, lead.drawing = lead.followers, [], []
        if not followers:
            return None
        heir, *others = followers
        for sequence in followers:
            sequence.forget_draw()
        heir.phase, heir.lead = Phase.WAITING, None
        self.following -= 1
        for sequence in others:
            self.follow(heir, sequence)
        self._leads[key_of(heir.request)] = heir
        return heir


def key_of(request: Request) -> Key:
    return request.client, request.group


def same_prompt(a: Request, b: Request) -> bool:
    return (a.prompt, a.tenant, a.priority) == (b.prompt, b.tenant, b.priority)
