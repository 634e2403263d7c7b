"""One beam search: its beams, what they may become, and the best that have ended. Pure arithmetic; says nothing.

    beams      the width most likely outputs that go on, best first; each a Sequence with a row, tokens and a score
    a step     every beam gives its most likely next tokens; of all (beam, token) pairs, best first:
               the first `width` that do not end go on; of the first `width`, those that end are hypotheses
    finished   the `width` best hypotheses, by log-probability / length ** length_penalty

The search is over when the best beam, divided by its present length, is no better than the worst of `width` hypotheses,
or when nothing can go on. This is transformers' beam search with early_stopping=False.
"""

import hashlib
import math
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import Final

from compute.plan import Logprob
from compute.scheduler.limits import Limits
from compute.scheduler.sequence import Sequence
from kvmanager.messages import FinishReason, SearchMember, SequenceId

ID_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Growth:
    """A beam and one more token. `score`: log-probability of the output with it."""

    parent: Sequence
    token_id: int
    score: float
    place: int  # of the token among the beam's candidates
    finish: FinishReason


@dataclass(slots=True)
class Hypothesis:
    """An output that has ended. `record`: the daemon's, once it has one."""

    tokens: ListLike[int]  # prompt and output
    total: float  # log-probability
    score: float  # the same, length-penalised
    finish: FinishReason
    logprobs: ListLike[Logprob]
    record: SequenceId | None = None


class Search:
    """`request` is the sequence that a gateway asked for: it computes the prompt, and at the end is the best answer."""

    def __init__(self, request: Sequence) -> None:
        assert request.request.beams is not None
        self.request = request
        self.width = request.request.beams.width
        self.length_penalty = request.request.beams.length_penalty
        self.indexes = request.request.beams.indexes
        # So many of a beam's candidates that `width` of them do not end it.
        self.candidates = max(self.width + len(request.forbidden), request.request.logprobs)
        self.beams: list[Sequence] = []
        self.finished: list[Hypothesis] = []
        self.ending: FinishReason | None = None  # as soon as no row is on its way
        self._born = 0

    @property
    def members(self) -> list[Sequence]:
        """Who gives candidates: the beams; before there are any, the request."""
        return self.beams or [self.request]

    @property
    def ready(self) -> bool:
        """Every member has said what it may become."""
        return all(member.candidates for member in self.members)

    def next_id(self) -> SequenceId:
        """Of a new record; no other search has it, nor this one at another worker, which had another epoch."""
        self._born += 1
        request = self.request.request
        counters = self.request.epoch.to_bytes(8, "little") + self._born.to_bytes(8, "little")
        given = request.group + request.sequence + counters
        return SequenceId(hashlib.sha256(given).digest()[:ID_BYTES])

    def grow(self, limits: Limits) -> tuple[list[Growth], list[Growth]]:
        """The next beams, best first, and those of the best that end."""
        grown = [one for member in self.members for one in self._grow(member, limits)]
        grown.sort(key=lambda one: -one.score)
        going = [one for one in grown if not one.finish]
        return going[: self.width], [one for one in grown[: self.width] if one.finish]

    def _grow(self, member: Sequence, limits: Limits) -> list[Growth]:
        banned = member.banned()
        return [
            Growth(
                member,
                token_id,
                member.score + logprob,
                place,
                member.finish_by(token_id, limits.eos_ids, limits.max_model_len, more=1),
            )
            for place, (token_id, logprob) in enumerate(member.candidates)
            if token_id not in banned and logprob > -math.inf
        ]

    def keep(self, ended: ListLike[Growth]) -> tuple[list[tuple[Hypothesis, Sequence]], list[Hypothesis]]:
        """Takes new hypotheses in. Those that are among the best, with their parents; those that are not any more."""
        new = [(self._hypothesis(one), one.parent) for one in ended]
        ranked = [*self.finished, *(one for one, _ in new)]
        ranked.sort(key=lambda one: -one.score)
        self.finished, worse = ranked[: self.width], ranked[self.width :]
        return [pair for pair in new if not any(pair[0] is one for one in worse)], worse

    def take_over(self, tokens: list[int], member: SearchMember) -> None:
        """A hypothesis that another worker found; nobody has its log-probabilities any more."""
        score = self.penalised(member.score, len(tokens) - self.request.prompt_len)
        one = Hypothesis(tokens, member.score, score, member.finish, (), member.sequence)
        self.finished.append(one)
        self.finished.sort(key=lambda each: -each.score)

    def _hypothesis(self, growth: Growth) -> Hypothesis:
        tokens = [*growth.parent.tokens, growth.token_id]
        score = self.penalised(growth.score, len(tokens) - self.request.prompt_len)
        return Hypothesis(tokens, growth.score, score, growth.finish, self.logprobs(growth))

    def over(self, going: ListLike[Growth]) -> bool:
        """Whether no hypothesis can get better, judged by the best that goes on."""
        if not going:
            return True
        length = going[0].parent.num_output + 1
        best = self.penalised(going[0].score, length)
        return len(self.finished) == self.width and best <= self.finished[-1].score

    def penalised(self, total: float, length: int) -> float:
        return total / math.pow(length, self.length_penalty)

    def logprobs(self, growth: Growth) -> list[Logprob]:
        """Of the output, the new token included; none if nobody asked."""
        top = self.request.request.logprobs
        if not top:
            return []
        parent = growth.parent
        own = parent.candidates[growth.place][1]
        new = Logprob(growth.token_id, own, growth.place + 1, tuple(parent.candidates[:top]))
        return [*parent.logprobs, new]
