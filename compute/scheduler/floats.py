"""The float: blocks granted to this worker in advance, so that no step waits for the daemon (protocol rule 1).

    target = decode ahead + the blocks of the next prefill chunks, at most 1/8 of the pool
    decode ahead = blocks for 2 s at the measured token rate, at least one for each sequence that decodes

Refilled below half, in the background, one Grant on its way at a time. A Grant that brought less than asked is repeated
when blocks came free, or 100 ms later. A starving one asks for what the step lacks and no more; if it brought nothing,
the daemon remembers it and sends blocks unasked.
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
        self._granted: dict[int, int] = {}  # block → generation: all that the daemon thinks is ours
        self._block_size = block_size
        self.cap = max(1, num_blocks // POOL_SHARE)
        self._asked: Grant | None = None
        self._dry = False  # the last Grant brought less than asked
        self._remembered = False  # the daemon knows that we starve
        self._retry_at_ns = 0

    def __len__(self) -> int:
        return len(self._free)

    def block_ids(self) -> list[int]:
        return [block.id for block in self._free]

    def take(self, count: int) -> list[BlockRef]:
        """At most `count` blocks."""
        return [self._free.popleft() for _ in range(min(count, len(self._free)))]

    def put_back(self, blocks: list[BlockRef]) -> None:
        """Taken for a step and told to nobody."""
        self._free.extendleft(reversed(blocks))

    def granted(self, blocks: Sequence[BlockRef], now_ns: int) -> None:
        """The answer to our Grant."""
        self._keep(blocks)
        asked, self._asked = self._asked, None
        if asked is not None:
            self._dry = len(blocks) < asked.count
            self._remembered = asked.starving and not blocks
            self._retry_at_ns = now_ns + RETRY_NS

    def topped_up(self, blocks: Sequence[BlockRef]) -> None:
        """Blocks that came unasked, or with an acknowledgement."""
        if blocks:
            self._keep(blocks)
            self._dry = self._remembered = False

    def _keep(self, blocks: Sequence[BlockRef]) -> None:
        self._free.extend(blocks)
        self._granted.update(blocks)

    def left(self, blocks: Sequence[BlockRef]) -> None:
        """The daemon heard that they are in a row, or given back."""
        for block in blocks:
            self._granted.pop(block.id, None)

    def reconcile(self, blocks: Sequence[BlockRef]) -> None:
        """The whole float as a new daemon knows it: what the former one granted and could not tell is kept."""
        self.topped_up([block for block in blocks if self._granted.get(block.id) != block.generation])

    def retry(self) -> None:
        """Blocks came free, or moved from our float into a row: asking again may help."""
        self._dry = False

    def next_retry_ns(self) -> int | None:
        """When `order` may have something to ask again; None while it waits for an answer."""
        return self._retry_at_ns if self._asked is None and (self._dry or self._remembered) else None

    def target(self, tokens_per_second: float, decoding: int, chunk_blocks: int) -> int:
        """Blocks to hold."""
        return min(self._ahead(tokens_per_second, decoding) + chunk_blocks, self.cap)

    def reserve(self, tokens_per_second: float, decoding: int) -> int:
        """Blocks that prefill leaves to decodes: in a small pool not all of the float, or prefill would never run."""
        return min(self._ahead(tokens_per_second, decoding), self.cap // 2)

    def _ahead(self, tokens_per_second: float, decoding: int) -> int:
        return max(-(-int(DECODE_AHEAD_S * tokens_per_second) // self._block_size), decoding)

    def order(self, target: int, short: int, now_ns: int, *, starving: bool) -> Grant | None:
        """What to ask for now. `short`: blocks that the present step wanted and did not get."""
        if self._asked is None:
            count = self._lacking(target, short, starving, late=now_ns >= self._retry_at_ns)
            self._asked = Grant(count=count, starving=starving) if count > 0 else None
            return self._asked
        return None

    def _lacking(self, target: int, short: int, starving: bool, late: bool) -> int:
        if starving:
            return 0 if self._remembered and not late else short
        if (self._dry and not late) or not (short or 2 * len(self._free) < target):
            return 0
        return target - len(self._free)

    def all(self) -> list[BlockRef]:
        """Gives up every block."""
        return self.take(len(self._free))
