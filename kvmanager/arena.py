"""Extents of a fixed range, first fit: room for sequences' token ids and for requests' bytes.

Nothing of it is stored: the sequence records name their extents, and `claim` rebuilds the arena from them.
"""

from bisect import bisect_left, insort


class Arena:
    """Half-open free extents [start, end) of a range of `size` units, sorted, never touching each other."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.free_units = size
        self.holes: list[tuple[int, int]] = [(0, size)] if size else []

    def take(self, units: int) -> int | None:
        """The offset of a new extent, or None when no hole is large enough. Zero units live at 0."""
        if units == 0:
            return 0
        for i, (start, end) in enumerate(self.holes):
            if end - start >= units:
                self._cut(i, start, start + units)
                return start
        return None

    def claim(self, offset: int, units: int) -> bool:
        """Take exactly this extent; False when it is not wholly free."""
        if units == 0:
            return True
        i = bisect_left(self.holes, (offset + 1, 0)) - 1
        if i < 0 or self.holes[i][1] < offset + units:
            return False
        self._cut(i, offset, offset + units)
        return True

    def give(self, offset: int, units: int) -> None:
        """Free an extent that `take` or `claim` gave."""
        if units == 0:
            return
        start, end = offset, offset + units
        i = bisect_left(self.holes, (start, end))
        if i < len(self.holes) and self.holes[i][0] == end:
            end = self.holes.pop(i)[1]
        if i and self.holes[i - 1][1] == start:
            start = self.holes.pop(i - 1)[0]
        insort(self.holes, (start, end))
        self.free_units += units

    def _cut(self, i: int, start: int, end: int) -> None:
        hole_start, hole_end = self.holes[i]
        self.holes[i : i + 1] = [hole for hole in ((hole_start, start), (end, hole_end)) if hole[0] < hole[1]]
        self.free_units -= end - start
