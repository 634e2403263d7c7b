"""Sequences that have no row yet, in the order (priority, arrival), and whose turn it is to be opened.

A sequence that the daemon answered with Wait holds the line: nobody behind it is opened until it was, so a stream of
small requests cannot starve a large one. Those that outrank it may pass; and while it waits for room for records, or
the first in line for places, those that have a record already. Opens already on their way may still succeed.
One that waits for a prefix which another sequence is computing is parked in its place and holds nobody.
"""

from bisect import insort
from collections.abc import Callable, Iterator
from operator import attrgetter

from compute.scheduler.sequence import Sequence

RETRY_NS = 100_000_000
Fits = Callable[[Sequence], bool]
_key = attrgetter("key")


class Waiting:
    def __init__(self) -> None:
        self._order: list[Sequence] = []
        self._held: Sequence | None = None  # got Wait; perhaps being opened again right now
        self._for_records = False  # what it waits for comes free when others end
        self._retry_at_ns = self._resume_at_ns = 0
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

    def waited(
        self, sequence: Sequence, now_ns: int, *, for_records: bool = False, for_prefix: bool = False
    ) -> None:
        """The daemon answered Wait, or had no record: back in line, and the first such holds it; or parked, until it
        says Retry."""
        self.add(sequence)
        if for_prefix:
            self._parked.add(sequence)
            self.settled(sequence)
            return
        if self._held is None or sequence.key <= self._held.key:
            self._held, self._for_records = sequence, for_records
            self._retry_at_ns = now_ns + RETRY_NS
        self._resume_at_ns = now_ns + RETRY_NS

    def wake_all(self) -> None:
        """Who would have said so is gone."""
        self._parked.clear()

    def settled(self, sequence: Sequence) -> None:
        """It was opened, refused or ended: it holds nobody any more."""
        if self._held is sequence:
            self._held, self._for_records = None, False

    def retry(self) -> None:
        """Blocks came free: the held one may be tried now."""
        self._retry_at_ns = self._resume_at_ns = 0

    @property
    def held(self) -> Sequence | None:
        """Who got Wait and holds the line."""
        return self._held

    def next(self, now_ns: int, fits: Fits) -> Sequence | None:
        """Who may be opened now, if anyone. `fits`: whether there are places for it."""
        first = self._first()
        if first is None:
            return None
        if fits(first) and self._leads(first):
            return first
        passing = self._passing(first, fits)
        if passing is not None:
            return passing if now_ns >= self._resume_at_ns else None
        return first if first is self._held and fits(first) and now_ns >= self._retry_at_ns else None

    def next_retry_ns(self, fits: Fits) -> int | None:
        """When somebody may be opened who may not be now, although nothing arrives."""
        first = self._first()
        if first is None:
            return None
        if self._passing(first, fits) is not None:
            return self._resume_at_ns
        return self._retry_at_ns if first is self._held and fits(first) else None

    def _first(self) -> Sequence | None:
        return next((one for one in self._order if self._free(one)), None)

    def _free(self, one: Sequence) -> bool:
        """Whether it may be asked for, were it its turn."""
        return not one.settling and one not in self._parked

    def _leads(self, first: Sequence) -> bool:
        """Whether nobody who waits for room outranks it."""
        return self._held is None or first.key < self._held.key

    def _passing(self, first: Sequence, fits: Fits) -> Sequence | None:
        """Who has a record and goes on although the first may not begin: its end is what that one waits for."""
        if fits(first) and not self._for_records:
            return None
        return next((one for one in self._order if one.recorded and self._free(one) and fits(one)), None)
