"""When a worker's session ends, and when finished records do. Protocol rules 5 and 7.

The first sign of death fences: the session's sequences end, and every block its process might still write waits in
quarantine. Only proof that the process is gone frees them.
"""

from kvmanager.commits import finish
from kvmanager.messages import FinishReason, SequenceId
from kvmanager.parts import Parts
from kvmanager.sequences import Role, Sequence, SequenceState
from kvmanager.sessions import Session, SessionState


def lose(parts: Parts, session: Session, now_ns: int) -> list[SequenceId]:
    """Fence the session; the sequences that end by it."""
    ended = []
    for sequence in list(parts.sequences.by_id.values()):
        if sequence.owner == session.holder:
            if sequence.state != SequenceState.FINISHED:
                finish(parts, sequence, FinishReason.ERROR, now_ns)
                ended.append(sequence.id)
            disown(parts, sequence, now_ns)
            if sequence.role == Role.BEAM:
                parts.sequences.forget(sequence)
    parts.blocks.quarantine_float(session.holder)
    session.state, session.float_blocks, session.want = SessionState.LOST, 0, 0
    parts.sessions.put(session)
    return ended


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


def expire(parts: Parts, before_ns: int) -> int:
    """Forget finished records that finished before this time and hold no row."""
    old = [s for s in parts.sequences.finished if s.finished_ns < before_ns and not s.held_rows]
    for sequence in old:
        parts.sequences.forget(sequence)
    return len(old)
