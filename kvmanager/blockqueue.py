"""The lists that blocks wait in: the free ones, and the cached ones in the order of their last use."""

from collections.abc import Iterator


class BlockQueue:
    """An intrusive doubly linked list of blocks with a sentinel: all operations O(1), none allocates.

    Several queues share `after` and `before`; a block is in at most one of them.
    """

    def __init__(self, sentinel: int, after: list[int], before: list[int]) -> None:
        self._sentinel, self._after, self._before = sentinel, after, before
        after[sentinel] = before[sentinel] = sentinel
        self.length = 0

    def push(self, block: int) -> None:
        """To the back."""
        last = self._before[self._sentinel]
        self._after[last] = self._before[self._sentinel] = block
        self._before[block], self._after[block] = last, self._sentinel
        self.length += 1

    def remove(self, block: int) -> None:
        before, after = self._before[block], self._after[block]
        self._after[before], self._before[after] = after, before
        self.length -= 1

    def pop(self) -> int:
        """From the front; the queue is not empty."""
        block = self._after[self._sentinel]
        assert block != self._sentinel, "an empty queue has no front"
        self.remove(block)
        return block

    def __iter__(self) -> Iterator[int]:
        """Front to back."""
        block = self._after[self._sentinel]
        while block != self._sentinel:
            yield block
            block = self._after[block]
