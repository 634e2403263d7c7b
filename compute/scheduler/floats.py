"""The float: blocks granted to this worker in advance, so that no step waits for the daemon (PROTOCOL 1).

    target = decode ahead + the blocks of the next prefill chunks
    decode ahead = blocks for 2 s at the measured token rate, at least one for each sequence that needs one soon, at
                   most 1/8 of the pool

Refilled below half, in the background, one Grant on its way at a time. A Grant that brought less than asked is
repeated only after blocks were given back or 100 ms later: the daemon has nothing before that.
"""

from collections import deque
from collections.abc import Sequence

from kvmanager.messages import BlockRef, Grant

DECODE_AHEAD_S = 2
POOL_SHARE = 8
RETRY_NS = 100_000_000


class Float:
    """Holds the granted blocks and decides when to ask for more or give some back."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._free: deque[BlockRef] = deque()
        self._block_size = block_size
        self.cap = max(1, num_blocks // POOL_SHARE)
        self._asked = 0
        self._retry_at_ns = 0
        self._dry = False  # the last Grant brought less than was asked

    def __len__(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[BlockRef]:
        """At most `count` blocks."""
        return [self._free.popleft() for _ in range(min(count, len(self._free)))]

    def put_back(self, blocks: list[BlockRef]) -> None:
        """Taken for a step and told to nobody."""
        self._free.extendleft(reversed(blocks))

    def granted(self, blocks: Sequence[BlockRef], now_ns: int) -> None:
        """The answer to our Grant."""
        self._free.extend(blocks)
        self._dry = len(blocks) < self._asked
        self._asked = 0
        self._retry_at_ns = now_ns + RETRY_NS

    def topped_up(self, blocks: Sequence[BlockRef]) -> None:
        """Blocks that nobody asked for: they came with an acknowledgement."""
        self._free.extend(blocks)

    def retry(self) -> None:
        """Blocks came free somewhere: asking again may help."""
        self._dry = False

    def next_retry_ns(self) -> int | None:
        return self._retry_at_ns if self._dry else None

    def target(self, tokens_per_second: float, needed_soon: int, chunk_blocks: int) -> int:
        """Blocks to hold, for sequences that cross a block boundary soon and chunks that are next."""
        ahead = -(-int(DECODE_AHEAD_S * tokens_per_second) // self._block_size)
        return min(max(ahead, needed_soon), self.cap) + chunk_blocks

    def order(self, target: int, short: int, now_ns: int, *, starving: bool) -> Grant | None:
        """What to ask for now. `short`: blocks that the present step wanted and did not get."""
        if self._asked or (self._dry and now_ns < self._retry_at_ns):
            return None
        if not short and 2 * len(self._free) >= target:
            return None
        self._asked = max(target - len(self._free), short, 1)
        return Grant(count=self._asked, starving=starving)

    def surplus(self, target: int) -> list[BlockRef]:
        """Blocks above twice the target: a little more than needed is not worth a message."""
        if len(self._free) <= 2 * target:
            return []
        return [self._free.pop() for _ in range(len(self._free) - target)]
