"""The blocks of one pool: their states, who refers to them, and the two lists that blocks without a user wait in.

    free ──take──> granted ──open_tail──> tail ──seal──> sealed ──deref──> cached (sealed, refcount 0) ──evict──> free
                      └──────── quarantine ──┴──> quarantined ──prove_gone──> free

A tail of a sequence that lost its worker stays in its row, quarantined (`strand`), until an adopter owns it (`own`) or
copied it. Who refers to a block: rows that name it, and copy orders that read it. A block without a row that is still
read keeps what it holds: sealed, or quarantined without a holder once nobody can write it any more.

Records are mirrored in plain lists, one entry a block, and stored through the `Store` as they change. Refcounts, both
lists and the index by key are derived: `load` rebuilds them. Which block a prefix may use is `prefix`' decision, who
gets how many is `grants`'.
"""

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from kvmanager.blockqueue import BlockQueue
from kvmanager.children import Children
from kvmanager.layout import MetaLayout
from kvmanager.messages import BlockRef
from kvmanager.records import BLOCK, NONE
from kvmanager.store import Store

HEAD = struct.Struct("<BBHIII")  # state, indexed, pins, generation, holder, depth
FULL = struct.Struct("<BBHIIIQQ32s32s")  # … last_use, parent, hash, parent_hash
USE = struct.Struct("<Q")
USE_AT: Final = 16
NO_HASH: Final = bytes(32)


class BlockState(IntEnum):
    FREE = 0
    GRANTED = 1
    TAIL = 2
    SEALED = 3
    QUARANTINED = 4


FREE, GRANTED, TAIL, SEALED, QUARANTINED = (int(state) for state in BlockState)


class Place(NamedTuple):
    """Where a sealed block stands in its chain."""

    depth: int
    parent: int  # link of the indexed block before it, NONE at a root
    key: bytes
    parent_key: bytes


class BlockPool:
    """State and references of every block. Callers check; a wrong call here is our bug."""

    def __init__(self, layout: MetaLayout, store: Store) -> None:
        n = layout.num_blocks
        self.num_blocks, self.block_size = n, layout.block_size
        self._store, self._at, self._tokens_at = store, layout.blocks_at, layout.block_tokens_at
        self.state = [FREE] * n
        self.generation = [0] * n
        self.holder = [0] * n  # session slot + 1
        self.refs = [0] * n  # rows and copy orders
        self.reads: dict[int, int] = {}  # those of copy orders
        self.indexed = [0] * n
        self.depth = [0] * n
        self.last_use = [0] * n
        self.parent = [NONE] * n
        self.key = [NO_HASH] * n
        self.parent_key = [NO_HASH] * n
        self.tokens = [b""] * n  # sealed: ids as little-endian u32
        self.by_key: dict[bytes, int] = {}
        self.children = Children(self.block_size)  # those that look-ups find
        self.counts = [n, 0, 0, 0, 0]
        self.shared = 0
        self.evictions = 0
        links = [0] * (n + 2), [0] * (n + 2)
        self.free = BlockQueue(n, *links)
        # least recently used first; a chain's last block before its parents
        self.cached = BlockQueue(n + 1, *links)
        for block in range(n):
            self.free.push(block)

    # ------------------------------------------------------------------------------------- questions

    @property
    def available(self) -> int:
        """Blocks that can be granted now: free or cached."""
        return self.free.length + self.cached.length

    def ref(self, block: int) -> BlockRef:
        return BlockRef(block, self.generation[block])

    def link(self, block: int) -> int:
        """One number for this block in this generation."""
        return self.generation[block] << 32 | block

    def is_linked(self, link: int) -> bool:
        """Does the block that `link` named still hold what it held, and is it found by look-up?"""
        block = link & 0xFFFFFFFF
        return link == NONE or (self.generation[block] == link >> 32 and bool(self.indexed[block]))

    # ------------------------------------------------------------------------------------- changes

    def take(self, count: int, holder: int) -> list[int]:
        """Grant `count` blocks to a session, evicting cached ones once no free one is left."""
        assert count <= self.available, f"{count} blocks of {self.available} available"
        while self.free.length < count:
            self.evict()
        taken = [self.free.pop() for _ in range(count)]
        for block in taken:
            self.generation[block] = self.generation[block] + 1 & 0xFFFFFFFF
            self._move(block, GRANTED, holder)
        return taken

    def evict(self) -> int:
        """Drop the least recently used cached block, which no cached block follows."""
        block = self.cached.pop()
        self.evictions += 1
        self._free(block)
        return block

    def open_tail(self, block: int) -> None:
        """A granted block enters a row."""
        assert self.state[block] == GRANTED
        self.refs[block] = 1
        self._move(block, TAIL, self.holder[block])

    def seal(self, block: int, place: Place, tokens: bytes) -> None:
        """A tail's slots are all committed: from now on nobody writes them. Not yet found by look-up."""
        assert self.state[block] == TAIL
        self._count(block, SEALED)
        self.shared += self.refs[block] > 1
        self.holder[block], self.tokens[block] = 0, tokens
        self.depth[block], self.parent[block], self.key[block], self.parent_key[block] = place
        self._store.put(self._tokens_at + block * self.block_size * 4, tokens)
        self._put_full(block)

    def index(self, block: int) -> None:
        """Let look-ups find a sealed block; its key is not taken."""
        assert self.key[block] not in self.by_key
        self.indexed[block] = 1
        self.find(block)
        self._put_head(block)

    def find(self, block: int) -> None:
        """Enter an indexed block into the look-ups, which are derived."""
        self.by_key[self.key[block]] = block
        self.children.add(self.parent[block], self.parent_key[block], self.tokens[block], block)

    def unindex(self, block: int) -> None:
        """Look-ups find it no more. Without a user it is free then."""
        self._lose(block)
        if self.refs[block] == 0:
            self.cached.remove(block)
            self._free(block)
        else:
            self._put_head(block)

    def share(self, block: int) -> None:
        """One more row refers to a sealed block."""
        assert self.state[block] == SEALED
        self._refer(block)

    def deref(self, block: int, now_ns: int, quarantine: bool = False) -> None:
        """A row that refers to the block ends: an unused sealed block is cached, a tail is free or in quarantine."""
        self._unrefer(block)
        if self.state[block] == TAIL:
            self._end_tail(block, quarantine)
        else:
            self._let_go(block, now_ns)

    def strand(self, block: int, *, quarantine: bool) -> None:
        """The row that names this tail lost its owner, who may still write, or said that it stopped."""
        assert self.state[block] == TAIL
        self._move(block, QUARANTINED, self.holder[block] if quarantine else 0)

    def own(self, block: int, holder: int) -> None:
        """A stranded tail that nobody can write any more has an owner again."""
        assert (self.state[block], self.holder[block]) == (QUARANTINED, 0)
        self._move(block, TAIL, holder)

    def read(self, block: int) -> None:
        """A copy order is made that reads the block: until `unread` it keeps what it holds."""
        assert self.state[block] in (TAIL, SEALED, QUARANTINED)
        self.reads[block] = self.reads.get(block, 0) + 1
        self._refer(block)

    def unread(self, block: int, now_ns: int) -> None:
        """A copy order that reads the block is done, or will never be."""
        self.reads[block] -= 1
        if not self.reads[block]:
            del self.reads[block]
        self._unrefer(block)
        self._let_go(block, now_ns)

    def give_back(self, block: int) -> None:
        """A granted block leaves its session's float."""
        assert self.state[block] == GRANTED
        self._free(block)

    def quarantine_float(self, holder: int) -> None:
        """All that is granted to a session might still be written by it."""
        for block in self.held(holder, GRANTED):
            self._move(block, QUARANTINED, holder)

    def prove_gone(self, holder: int) -> int:
        """The session's process cannot write any more: its quarantine ends. How many blocks came back."""
        freed = 0
        for block in self.held(holder, QUARANTINED):
            if self.refs[block]:  # a copy order reads it, or an orphan's row names it
                self._move(block, QUARANTINED, 0)
            else:
                self._free(block)
                freed += 1
        return freed

    def held(self, holder: int, state: int) -> list[int]:
        """A session's blocks in one state, by id. Looks at every block: for a session's end."""
        return [b for b, who in enumerate(self.holder) if who == holder and self.state[b] == state]

    # ------------------------------------------------------------------------------------- references

    def _refer(self, block: int) -> None:
        if self.state[block] == SEALED:
            if self.refs[block] == 0:
                self.cached.remove(block)
            self.shared += self.refs[block] == 1
        self.refs[block] += 1

    def _unrefer(self, block: int) -> None:
        self.refs[block] -= 1
        self.shared -= self.refs[block] == 1 and self.state[block] == SEALED

    def _let_go(self, block: int, now_ns: int) -> None:
        """One reference less. Unused: cached if look-ups find it, in quarantine while it may be written, else free."""
        if not self.indexed[block]:
            self._use_twin(block, now_ns)
        if self.refs[block]:
            return
        if self.indexed[block]:
            self._cache(block, now_ns)
        elif not self.holder[block]:
            self._free(block)

    def _use_twin(self, block: int, now_ns: int) -> None:
        """The end of a row with a private block, shared by a fork or not, is a use of the block that look-ups find in
        its place: what the row sealed behind it hangs there."""
        twin = self.by_key.get(self.key[block], -1)
        if twin >= 0 and self.refs[twin] == 0:
            self.cached.remove(twin)
            self._cache(twin, now_ns)

    def _cache(self, block: int, now_ns: int) -> None:
        self.last_use[block] = now_ns
        self._store.put(self._at + block * BLOCK.itemsize + USE_AT, USE.pack(now_ns))
        self.cached.push(block)

    def _end_tail(self, block: int, quarantine: bool) -> None:
        """The one row that names a tail has ended."""
        if quarantine:
            self._move(block, QUARANTINED, self.holder[block])
        elif self.refs[block]:
            self._move(block, QUARANTINED, 0)
        else:
            self._free(block)

    def _lose(self, block: int) -> None:
        del self.by_key[self.key[block]]
        self.children.remove(self.parent[block], self.parent_key[block], self.tokens[block], block)
        self.indexed[block] = 0

    # ------------------------------------------------------------------------------------- records

    def _free(self, block: int) -> None:
        if self.indexed[block]:
            self._lose(block)
        self.key[block] = self.parent_key[block] = NO_HASH
        self.tokens[block], self.depth[block], self.parent[block] = b"", 0, NONE
        self._move(block, FREE, 0)
        self.free.push(block)

    def _move(self, block: int, state: int, holder: int) -> None:
        self._count(block, state)
        self.holder[block] = holder
        self._put_head(block)

    def _count(self, block: int, state: int) -> None:
        self.counts[self.state[block]] -= 1
        self.counts[state] += 1
        self.state[block] = state

    def _put_head(self, b: int) -> None:
        head = HEAD.pack(self.state[b], self.indexed[b], 0, self.generation[b], self.holder[b], self.depth[b])
        self._store.put(self._at + b * BLOCK.itemsize, head)

    def _put_full(self, b: int) -> None:
        head = self.state[b], self.indexed[b], 0, self.generation[b], self.holder[b], self.depth[b]
        full = FULL.pack(*head, self.last_use[b], self.parent[b], self.key[b], self.parent_key[b])
        self._store.put(self._at + b * BLOCK.itemsize, full)
