"""Which worker has been silent for too long. Pure: times are passed in, nothing is killed here.

Time counts only while the daemon polled. A gap between two polls (a stopped daemon, a long fsck) adds at most
GAP_NS to anybody's silence, so that a daemon that slept does not blame its workers for it.

    state                        judged by                             bound
    warming, compiling, capturing  nothing
    ready, draining; in a step     heartbeats, and the step counter    max(1.5 s, the worker's own bound)
    ready, draining; between steps of open sequences   heartbeats      the same
    ready, draining; idle          nothing: whoever has work for it sees how old its last heartbeat is
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from kvmanager.messages import Heartbeat, SessionId, WorkerState

MS: Final = 1_000_000
GAP_NS: Final = 500 * MS
BUSY_NS: Final = 1_500 * MS
JUDGED: Final = frozenset({WorkerState.READY, WorkerState.DRAINING})


@dataclass(slots=True)
class Pulse:
    """What one worker said last, and when, in watched time."""

    last: Heartbeat
    heard_at: int
    moved_at: int  # the step counter changed, or the worker became busy

    def hear(self, heartbeat: Heartbeat, now: int) -> None:
        moved = (heartbeat.step, heartbeat.busy, heartbeat.state) != (
            self.last.step,
            self.last.busy,
            self.last.state,
        )
        self.moved_at = now if moved or not heartbeat.busy else self.moved_at
        self.last, self.heard_at = heartbeat, now

    def silence(self, now: int) -> int:
        """Nanoseconds that count against the worker."""
        return now - min(self.moved_at, self.heard_at)

    def bound(self) -> int | None:
        """Of its silence; None: nothing is expected of it now."""
        last = self.last
        judged = (last.busy or last.running or last.waiting) and last.state in JUDGED
        return max(BUSY_NS, last.bound_ms * MS) if judged else None


class Watch:
    """All workers' pulses. `polled` first in each round of the loop, `silent` last, after the sockets were drained."""

    def __init__(self, now_ns: int) -> None:
        self.watched = 0  # nanoseconds in which the daemon was listening
        self._polled_ns = now_ns
        self.pulses: dict[SessionId, Pulse] = {}

    def polled(self, now_ns: int) -> None:
        self.watched += min(max(now_ns - self._polled_ns, 0), GAP_NS)
        self._polled_ns = now_ns

    def add(self, session: SessionId) -> None:
        """A new session: warming, until it says otherwise."""
        self.pulses[session] = Pulse(Heartbeat(state=WorkerState.WARMING), self.watched, self.watched)

    def remove(self, session: SessionId) -> None:
        self.pulses.pop(session, None)

    def hear(self, session: SessionId, heartbeat: Heartbeat) -> bool:
        """Notes a heartbeat. True if the worker's state changed by it."""
        pulse = self.pulses[session]
        changed = pulse.last.state != heartbeat.state
        pulse.hear(heartbeat, self.watched)
        return changed

    def silent(self) -> Iterator[tuple[SessionId, int]]:
        """Sessions beyond their bound, with their silence in nanoseconds."""
        for session, pulse in list(self.pulses.items()):
            bound, silence = pulse.bound(), pulse.silence(self.watched)
            if bound is not None and silence > bound:
                yield session, silence
