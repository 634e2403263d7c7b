"""A beam search whose worker is gone: its records say how it goes on, and none of them outlives it.

    search's record   an orphan without a row  ──> parked again, the adopter's; Opened names its members
    beams             orphans with their KV    ──> each is adopted for itself, as any sequence
    hypotheses        finished, nobody's       ──> the adopter's at once: it drops them when better ones are found

A search that ends takes with it what no worker has taken over.
"""

from kvmanager.messages import FinishReason, Opened, OpenKind, SearchMember
from kvmanager.orphans import end_orphan
from kvmanager.parts import Parts
from kvmanager.sequences import Role, Sequence, SequenceState
from kvmanager.sessions import Session


def members_of(parts: Parts, search: Sequence) -> list[Sequence]:
    """Its beams that go on, and its hypotheses; nothing of a sequence that is no search, or computes its prompt yet."""
    if search.role != Role.SEARCH:
        return []
    beams = (s for s in parts.sequences.by_id.values() if s.role == Role.BEAM and s.group == search.group)
    return [beam for beam in beams if beam.state != SequenceState.FINISHED or beam.hypothesis]


def take_over_search(
    parts: Parts, session: Session, search: Sequence, members: list[Sequence], now_ns: int
) -> Opened:
    """The search is the session's; its beams wait until the session asks for each."""
    del parts.sequences.orphans[search.slot]
    search.epoch, search.moved_ns = search.epoch + 1, now_ns
    search.state, search.owner, search.finished_ns = SequenceState.PREEMPTED, session.holder, 0
    parts.sequences.put(search)
    for one in members:
        if one.hypothesis:
            one.owner = session.holder
            parts.sequences.put(one)
    return opened_search(search, members, OpenKind.ADOPTED)


def opened_search(search: Sequence, members: list[Sequence], kind: OpenKind) -> Opened:
    return Opened(
        sequence=search.id,
        epoch=search.epoch,
        kind=kind,
        recorded_len=search.recorded_len,
        kv_len=0,
        cached_len=search.cached_len,
        blocks=(),
        token_ids=list(search.tokens),
        members=[SearchMember(s.id, list(s.tokens[s.prompt_len :]), s.score, s.finish) for s in members],
    )


def drop_members(parts: Parts, search: Sequence, now_ns: int) -> None:
    """The search is over: what of it has no worker goes."""
    for one in members_of(parts, search):
        if one.state == SequenceState.ORPHANED:
            end_orphan(parts, one, now_ns)
            one.state, one.finish = SequenceState.FINISHED, FinishReason.CANCELLED
        if one.owner == 0 and one.state == SequenceState.FINISHED:
            parts.sequences.forget(one)
