"""Waiting for blocks that another sequence is just computing, instead of computing them again. Protocol rule 10.

    leader     [ sealed: the follower finds these too ][ being computed ....... ] private rest
    follower   [ the same hits                        ][ the same tokens ][ its own
                                                                          ^ until: the last common block's end

A follower has no record yet (or a preempted one), and holds nothing: it got Wait, and gets Retry with the operation
after which its leader has committed `until` slots, or will not. Who leads is open, so never waits itself. Nothing of
this is stored: it ends with the daemon, as the connections do. Why it cannot hang: docs/decisions/008.
"""

from collections.abc import Iterator
from typing import Final

from kvmanager.children import common
from kvmanager.messages import Retry, Wait
from kvmanager.parts import Outgoing, Parts
from kvmanager.prefix import LOST
from kvmanager.sequences import Sequence, SequenceState
from kvmanager.sessions import Session, SessionState

PATIENCE_NS: Final = 2 * 10**9  # a leader that has committed nothing for so long leads nobody


def follow(parts: Parts, session: Session, sequence: Sequence, hits: list[int], now_ns: int) -> Wait | None:
    """Wait, if another sequence is computing a block or more of what `sequence` needs behind its hits."""
    leader, until = find_leader(parts, sequence, hits, now_ns)
    if leader is None:
        return None
    return wait_behind(parts, session, sequence, leader, until, now_ns)


def wait_behind(  # noqa: PLR0917 - who waits for whom, and until when
    parts: Parts, session: Session, sequence: Sequence, leader: Sequence, until: int, now_ns: int
) -> Wait:
    """Wait until the leader has committed this many slots, or ended: Retry says so. Behind one that leads nobody the
    worker asks again by its clock."""
    told = leads(leader, now_ns)
    if told:
        parts.followers.add(leader, until, session, sequence)
    return Wait(sequence=sequence.id, needed_blocks=0, available_blocks=0, for_prefix=told)


def find_leader(
    parts: Parts, sequence: Sequence, hits: list[int], now_ns: int
) -> tuple[Sequence | None, int]:
    """Who computes most of it, and up to where they have the same tokens. Nobody waits for a lower priority."""
    size = parts.block_size
    start, end = len(hits) * size, (sequence.recorded_len - 1) // size * size
    if sequence.bypass_prefix or start >= end:
        return None, 0
    tip = parts.prefix.tip(sequence.tenant, hits)
    wanted = sequence.tokens[start:end].tobytes()
    best: tuple[int, int, bytes] = (start, 0, b"")
    leader = None
    for other in parts.sequences.open.values():
        if other.tip == tip and other.priority >= sequence.priority and leads(other, now_ns):
            alike = common(other.tokens[start:end].tobytes(), wanted)
            rank = (start + alike // size * size, other.kv_len, other.id)
            if alike >= size and rank > best:
                best, leader = rank, other
    return leader, best[0]


def leads(sequence: Sequence, now_ns: int) -> bool:
    """Whether what it computes can be expected soon, where look-ups find it."""
    lost = sequence.revoked or sequence.tip.link == LOST
    return not lost and now_ns - sequence.moved_ns < PATIENCE_NS


def released(parts: Parts, now_ns: int) -> Iterator[Outgoing]:
    """After any change, and now and then: Retry for those whose leader has committed what they wait for, or has ended,
    given its row back, lost its owner, or does not move."""
    for of in list(parts.followers.of):
        leader = parts.sequences.by_id.get(of[0])
        still = leader is not None and leader.state == SequenceState.OPEN and leader.epoch == of[1]
        reached = leader.kv_len if leader is not None and still and leads(leader, now_ns) else 2**32
        for follower in parts.followers.take(of, reached):
            session = parts.sessions.by_id.get(follower.session)
            if session is not None and session.state == SessionState.ALIVE:
                yield Outgoing(follower.session, 0, Retry(sequence=follower.sequence))
