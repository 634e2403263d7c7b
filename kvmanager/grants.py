"""Grant: blocks for floats, and whose sequence gives way when there is none. Protocol rules 1 and 11.

A float is at most 1/8 of the pool, so that one worker cannot hoard it; a starving worker, one whose step waits for
blocks, gets what it needs all the same. A starving worker that got nothing is remembered, and served as soon as
anything comes back. The reserve for adoptions (rule 5) is nobody's float. One victim is asked at a time, and none
while a row is still to be released.
"""

from collections.abc import Iterator

from kvmanager.messages import Grant, Granted, Revoke
from kvmanager.parts import Outgoing, Parts
from kvmanager.sequences import Sequence
from kvmanager.sessions import Session


def grant(parts: Parts, session: Session, message: Grant, now_ns: int) -> Granted:
    """As many blocks as may be given now, perhaps none."""
    room = max(1, parts.blocks.num_blocks // 8) - session.float_blocks
    count = message.count if message.starving else min(message.count, max(0, room))
    granted = give(parts, session, count)
    session.want = min(count, parts.blocks.num_blocks) if message.starving and not granted.blocks else 0
    return granted


def give(parts: Parts, session: Session, count: int) -> Granted:
    blocks = parts.blocks.take(min(count, parts.grantable), session.holder)
    session.float_blocks += len(blocks)
    return Granted(blocks=[parts.blocks.ref(block) for block in blocks])


def serve_starving(parts: Parts) -> Iterator[Outgoing]:
    """After any change: blocks for those who wait for them; without any, one sequence is asked back."""
    for session in parts.sessions.slots:
        if session is None or not session.want:
            continue
        if parts.grantable:
            granted = give(parts, session, session.want)
            session.want = 0
            yield Outgoing(session.id, 0, granted)
        elif victim := find_victim(parts):
            victim.revoked = True
            owner = parts.owner(victim)
            assert owner is not None, "an open sequence has an owner"
            yield Outgoing(owner.id, 0, Revoke(sequence=victim.id, epoch=victim.epoch))


def find_victim(parts: Parts) -> Sequence | None:
    """The lowest priority, of these the latest arrival. None while blocks are on their way back, or of one sequence."""
    candidates = parts.sequences.open.values()
    if parts.held_rows or len(candidates) < 2 or any(sequence.revoked for sequence in candidates):
        return None
    return min(candidates, key=lambda s: (s.priority, -s.arrival_ns, -s.opened_ns, -s.slot))
