"""When a worker's session ends, and when records do. Protocol rules 5, 7 and 12.

The first sign of death fences: the session's sequences wait for an adopter, and every block its process might still
write is in quarantine. Only proof that the process is gone frees them.
"""

from typing import Final

from kvmanager.commits import finish
from kvmanager.messages import FinishReason, SequenceId
from kvmanager.orphans import end_orphan, orphan
from kvmanager.parts import Parts
from kvmanager.sequences import Sequence, SequenceState
from kvmanager.sessions import Session, SessionState

MOST_DEATHS: Final = (
    3  # the first may have been another's fault; the others were of a worker that ran it alone
)


def lose(parts: Parts, session: Session, now_ns: int) -> list[SequenceId]:
    """Fence the session; its sequences that wait for another worker now."""
    orphans = []
    for sequence in [s for s in parts.sequences.by_id.values() if s.owner == session.holder]:
        if poisonous(sequence):
            finish(parts, sequence, FinishReason.ERROR, now_ns)
        if sequence.state == SequenceState.FINISHED:
            disown(parts, sequence, now_ns)
        else:
            orphan(parts, sequence, now_ns, quarantine=True)
            orphans.append(sequence.id)
    parts.blocks.quarantine_float(session.holder)
    session.state, session.float_blocks, session.want = SessionState.LOST, 0, 0
    parts.sessions.put(session)
    return orphans


def poisonous(sequence: Sequence) -> bool:
    """Counts a death against a sequence of which nothing was committed; whether that was one too many."""
    if sequence.state == SequenceState.OPEN and not sequence.stepped:
        sequence.deaths += 1
    return sequence.deaths >= MOST_DEATHS


def disown(parts: Parts, sequence: Sequence, now_ns: int) -> None:
    """Its rows end without a Release: tails might still be written."""
    for epoch in list(sequence.held_rows):
        parts.end_row(sequence, epoch, now_ns, quarantine=True)
    sequence.owner = 0
    parts.sequences.put(sequence)


def bury(parts: Parts, session: Session) -> int:
    """The lost session's process is proven gone: blocks that came back."""
    assert session.state == SessionState.LOST
    freed = parts.blocks.prove_gone(session.holder)
    parts.sessions.drop(session)
    return freed


def abandon(parts: Parts, before_ns: int, now_ns: int) -> int:
    """End orphans that nobody has asked for since this time."""
    old = [s for s in parts.sequences.orphans.values() if s.finished_ns < before_ns]
    for sequence in old:
        end_orphan(parts, sequence, now_ns)
        finish(parts, sequence, FinishReason.CANCELLED, now_ns)
        parts.sequences.put(sequence)
    return len(old)


def expire(parts: Parts, before_ns: int) -> int:
    """Forget finished records that finished before this time and hold no row."""
    old = [s for s in parts.sequences.finished if s.finished_ns < before_ns and not s.held_rows]
    for sequence in old:
        parts.sequences.forget(sequence)
    return len(old)
