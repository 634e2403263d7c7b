"""Who waits for whose blocks: a list in memory, derived from nothing. Who may wait is `following`'s decision."""

from bisect import insort
from typing import NamedTuple

from kvmanager.messages import SequenceId, SessionId
from kvmanager.sequences import Sequence
from kvmanager.sessions import Session


class Follower(NamedTuple):
    until: int  # committed slots of the leader
    serial: int
    session: SessionId
    sequence: SequenceId


class Followers:
    """Everybody who waits, by (leader, its epoch), the first to be released first."""

    def __init__(self) -> None:
        self.of: dict[tuple[SequenceId, int], list[Follower]] = {}
        self.waits = 0  # so far

    def add(self, leader: Sequence, until: int, session: Session, sequence: Sequence) -> None:
        self.waits += 1
        follower = Follower(until, self.waits, session.id, sequence.id)
        insort(self.of.setdefault((leader.id, leader.epoch), []), follower)

    def take(self, leader: tuple[SequenceId, int], kv_len: int) -> list[Follower]:
        """Those who wait for no more than `kv_len` slots; they wait no longer."""
        waiting = self.of[leader]
        count = sum(follower.until <= kv_len for follower in waiting) if waiting[0].until <= kv_len else 0
        taken, self.of[leader] = waiting[:count], waiting[count:]
        if not self.of[leader]:
            del self.of[leader]
        return taken
