"""KV memory that is really written: one number a slot, which stands for all tokens up to that position."""

from array import array
from collections.abc import Iterable, Sequence

NOISE = 1  # what somebody writes who no longer knows why


def prefix_values(tokens: Iterable[int], before: int = 0) -> list[int]:
    """The content of each token's slot: a checksum of all tokens up to it, so of its position too. `before`: the
    content of the slot before the first one, 0 at a sequence's start."""
    values = []
    for token in tokens:
        before = hash((before, token)) & 0xFFFF_FFFF_FFFF_FFFF
        values.append(before)
    return values


class SlotMemory:
    """All slots of one pool, 64 bits each. It obeys anybody: who may write is for its users to check."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.size = block_size
        self._slots = array("Q", bytes(8 * num_blocks * block_size))

    def block(self, block: int) -> list[int]:
        return self._slots[block * self.size : (block + 1) * self.size].tolist()

    def row(self, row: Sequence[int], end: int) -> list[int]:
        """The first `end` positions of a row."""
        return [value for block in row[: -(-end // self.size)] for value in self.block(block)][:end]

    def write(self, row: Sequence[int], start: int, values: Sequence[int]) -> None:
        """Positions `start` and those after it."""
        for position, value in enumerate(values, start):
            self._slots[row[position // self.size] * self.size + position % self.size] = value

    def copy(self, source: int, target: int, count: int) -> None:
        """The first `count` slots of a block."""
        a, b = source * self.size, target * self.size
        self._slots[b : b + count] = self._slots[a : a + count]

    def spoil(self, block: int, start: int) -> None:
        """Noise in all slots of a block from `start` on."""
        for slot in range(block * self.size + start, (block + 1) * self.size):
            self._slots[slot] = NOISE
