"""Sequences that have no row yet, in the order (priority, arrival), and whose turn it is to be opened.

A sequence that the daemon answered with Wait holds the line: nobody behind it is opened until it was, so a stream of
small requests cannot starve a large one. Those that outrank it may pass. Opens already on their way may still succeed.
One that waits for a prefix which another sequence is computing is parked in its place and holds nobody.
"""

from bisect import insort
from collections.abc import Iterator
from operator import attrgetter

from compute.scheduler.sequence import Phase, Sequence

RETRY_NS = 100_000_000
_key = attrgetter("key")


class Waiting:
    def __init__(self) -> None:
        self._order: list[Sequence] = []
        self._held: Sequence | None = None  # got Wait; perhaps being opened again right now
        self._retry_at_ns = 0
        self._parked: set[Sequence] = set()

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._order)

    def add(self, sequence: Sequence) -> None:
        insort(self._order, sequence, key=_key)

    def remove(self, sequence: Sequence) -> None:
        """It ended or is being opened. Only `settled` lets go of a held line."""
        self._order.remove(sequence)
        self._parked.discard(sequence)

    def wake(self, sequence: Sequence) -> None:
        """The daemon said Retry."""
        self._parked.discard(sequence)

    def waited(self, sequence: Sequence, now_ns: int, *, for_prefix: bool = False) -> None:
        """The daemon answered Wait: back in line, and the first such holds it; or parked, until it says Retry."""
        self.add(sequence)
        if for_prefix:
            self._parked.add(sequence)
            self.settled(sequence)
        elif self._held is None or sequence.key <= self._held.key:
            self._held = sequence
            self._retry_at_ns = now_ns + RETRY_NS

    def wake_all(self) -> None:
        """Who would have said so is gone."""
        self._parked.clear()

    def settled(self, sequence: Sequence) -> None:
        """It was opened, refused or ended: it holds nobody any more."""
        if self._held is sequence:
            self._held = None

    def retry(self) -> None:
        """Blocks came free: the held one may be tried now."""
        self._retry_at_ns = 0

    @property
    def holding(self) -> bool:
        """Somebody who got Wait holds the line."""
        return self._held is not None

    def next_retry_ns(self) -> int | None:
        """When the held one may be tried again; None while it is being tried."""
        waits = self._held is not None and self._held.phase is Phase.WAITING
        return self._retry_at_ns if waits else None

    def next(self, now_ns: int) -> Sequence | None:
        """Who may be opened now, if anyone."""
        first = next((one for one in self._order if not one.settling and one not in self._parked), None)
        if first is None or self._held is None or first.key < self._held.key:
            return first
        return first if first is self._held and now_ns >= self._retry_at_ns else None
