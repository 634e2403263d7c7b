"""The blocks of a pool again, as plainly as possible: lists and dicts, tuples for hashes, everything counted afresh."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Block:
    state: str = "free"
    generation: int = 0
    holder: str = ""
    tokens: tuple[int, ...] = ()
    chain: tuple[Any, ...] = ()  # tenant and all tokens up to this block's end: what its hash stands for
    parent: Any = None  # (id, generation), "root"
    indexed: bool = False


@dataclass
class Seq:
    owner: str
    tokens: list[int]
    capacity: int
    tenant: bytes
    rank: tuple[int, ...]  # the smallest gives way first
    prompt: int
    state: str = "open"
    epoch: int = 1
    kv: int = 0
    target: int = 0
    row: list[int] = field(default_factory=list)
    tip: Any = "root"
    revoked: bool = False
    deaths: int = 0
    stepped: bool = True  # its owner has committed something of it
    since: int = 0  # when it lost its worker
    begins_anew: bool = False  # an orphan that had no row
    held: dict[int, list[int]] = field(default_factory=dict)
    copy: tuple[int, int, int] | None = None  # source, destination, slots


class NaiveBlocks:
    """Blocks and who refers to them. Block lists are oldest first."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.size = block_size
        self.blocks = [Block() for _ in range(num_blocks)]
        self.free = list(range(num_blocks))
        self.cached: list[int] = []
        self.seqs: dict[int, Seq] = {}

    # questions

    def refs(self, block: int) -> int:
        rows = [row for s in self.seqs.values() for row in (s.row, *s.held.values())]
        read = [s.copy[0] for s in self.seqs.values() if s.copy]
        return sum(row.count(block) for row in rows) + read.count(block)

    def floats(self, session: str) -> list[int]:
        return [i for i, b in enumerate(self.blocks) if b.state == "granted" and b.holder == session]

    def available(self) -> int:
        return len(self.free) + len(self.cached)

    def reserve(self) -> int:
        """Kept back: one for each sequence that may have to be adopted."""
        return sum(s.state in ("open", "orphaned") for s in self.seqs.values())

    def grantable(self) -> int:
        return max(0, self.available() - self.reserve())

    def counts(self) -> dict[str, int]:
        states = ("free", "granted", "tail", "sealed", "quarantined")
        found = {state: sum(b.state == state for b in self.blocks) for state in states}
        shared = sum(b.state == "sealed" and self.refs(i) > 1 for i, b in enumerate(self.blocks))
        return found | {"cached": len(self.cached), "shared": shared, "pinned": 0}

    def blocks_of(self, seq: Seq) -> int:
        return -(-len(seq.tokens) // self.size)

    def find(self, tenant: bytes, tokens: list[int]) -> list[int]:
        """The longest chain of indexed blocks; not the last token's."""
        hits: list[int] = []
        parent: Any = "root"
        for end in range(self.size, len(tokens), self.size):
            chain = (tenant, *tokens[:end])
            hit = [
                i for i, b in enumerate(self.blocks) if b.indexed and b.chain == chain and b.parent == parent
            ]
            if not hit:
                break
            hits += hit
            parent = (hit[0], self.blocks[hit[0]].generation)
        return hits

    def begin(self, seq: Seq, hits: list[int]) -> tuple[int, int] | None:
        """The block after the hits that begins with most of what is wanted next, if half a block; and how much."""
        wanted = seq.tokens[len(hits) * self.size : len(seq.tokens) - 1][: self.size - 1]
        parent = (hits[-1], self.blocks[hits[-1]].generation) if hits else "root"
        start = (seq.tenant, *seq.tokens[: len(hits) * self.size])
        found = []
        for i, b in enumerate(self.blocks):
            if b.indexed and b.parent == parent and b.chain[: len(start)] == start:
                own = b.chain[len(start) :]
                alike = next((n for n, (x, y) in enumerate(zip(own, wanted, strict=False)) if x != y), None)
                found.append((len(wanted) if alike is None else alike, list(own), i))
        most = max((slots for slots, _, _ in found), default=0)
        if 2 * most < self.size:
            return None
        best = [(own, i) for slots, own, i in found if slots == most]
        below = [one for one in best if one[0] < wanted]
        return (max(below) if below else min(best))[1], most

    def tip(self, sealed: list[int]) -> Any:
        """What comes behind these: None where look-ups do not find the last."""
        if not sealed:
            return "root"
        last = self.blocks[sealed[-1]]
        return (sealed[-1], last.generation) if last.indexed else None

    def linked(self, ref: Any) -> bool:
        return ref == "root" or (self.blocks[ref[0]].generation == ref[1] and self.blocks[ref[0]].indexed)

    # changes

    def evict(self) -> None:
        self.make_free(self.cached.pop(0))

    def make_free(self, block: int) -> None:
        self.blocks[block] = Block(generation=self.blocks[block].generation)
        self.free.append(block)

    def take(self, session: str, count: int) -> list[int]:
        count = min(count, self.available())
        while len(self.free) < count:
            self.evict()
        taken, self.free = self.free[:count], self.free[count:]
        for block in taken:
            generation = self.blocks[block].generation + 1
            self.blocks[block] = Block("granted", generation, session)
        return taken

    def let_go(self, block: int, quarantine: bool = False) -> None:
        """One reference less. The last one's end: to the cache, to quarantine, or free."""
        b, used = self.blocks[block], self.refs(block) > 0
        if not b.indexed:  # a private block's end is a use of the one that is found in its place
            for twin in [c for c in self.cached if b.chain and self.blocks[c].chain == b.chain]:
                self.cached.remove(twin)
                self.cached.append(twin)
        if used:
            return
        if b.state == "tail" and quarantine:
            b.state = "quarantined"
        elif b.indexed:
            self.cached.append(block)
        elif b.state != "quarantined" or not b.holder:
            self.make_free(block)

    def seal(self, seq: Seq, i: int) -> None:
        block, end = seq.row[i], (i + 1) * self.size
        b = self.blocks[block]
        b.state, b.holder, b.chain, b.parent = "sealed", "", (seq.tenant, *seq.tokens[:end]), seq.tip
        if seq.tip is None or not self.linked(seq.tip):
            seq.tip = None
            return
        same = [j for j, other in enumerate(self.blocks) if other.indexed and other.chain == b.chain]
        if same and self.blocks[same[0]].parent == seq.tip:
            seq.tip = (same[0], self.blocks[same[0]].generation)
            return
        for stale in same:  # its parent was computed again
            self.blocks[stale].indexed = False
            if stale in self.cached:
                self.cached.remove(stale)
                self.make_free(stale)
        b.indexed, seq.tip = True, (block, b.generation)
