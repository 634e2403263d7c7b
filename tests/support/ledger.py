"""What must be true of a pool, written down beside it: who refers to a block, who may write it, what its slots hold.

It learns of rows only what their workers know, blocks from answers and from their own commits, and counts everything
afresh. Nothing here asks the state what it should be.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from kvmanager.blocks import SEALED
from kvmanager.messages import BlockRef, CommitEntry, SessionId
from kvmanager.state import KvState
from tests.support.kv import sequence_id
from tests.support.slots import SlotMemory, prefix_values


@dataclass(eq=False)
class Row:
    """One epoch of one sequence, as its worker knows it."""

    session: SessionId
    number: int
    epoch: int
    tokens: list[int]
    blocks: list[int]
    kv: int  # committed
    values: list[int] = field(default_factory=list)  # what the slots of `tokens` hold once they are computed

    def __post_init__(self) -> None:
        self.values = prefix_values(self.tokens)

    def append(self, tokens: Iterable[int]) -> None:
        tokens = list(tokens)
        self.values += prefix_values(tokens, self.values[-1])
        self.tokens += tokens


class Ledger:
    """The rows of a pool that are not released, its memory, and the writable blocks of every session."""

    def __init__(self, state: KvState) -> None:
        self.state, self.size = state, state.layout.block_size
        self.memory = SlotMemory(state.layout.num_blocks, self.size)
        self.rows: list[Row] = []
        self.running: dict[int, Row] = {}
        self.writable: dict[SessionId, set[int]] = {}
        self.sealed: dict[int, tuple[BlockRef, list[int]]] = {}  # block → which generation, what it holds
        self.late_writes = 0

    # ------------------------------------------------------------------------------- what happens

    def granted(self, session: SessionId, blocks: Iterable[BlockRef]) -> None:
        for block in blocks:
            assert not any(block.id in held for held in self.writable.values()), "granted twice"
            assert not any(block.id in row.blocks for row in self.rows), "granted while a row names it"
            self.writable[session].add(block.id)

    def opened(self, row: Row, found: Iterable[BlockRef]) -> None:
        for i, block in enumerate(found):
            expected = row.values[i * self.size : (i + 1) * self.size]
            assert self.sealed[block.id] == (block, expected), "a hit on other tokens"
        self.rows.append(row)
        self.running[row.number] = row

    def compute(self, row: Row, entry: CommitEntry) -> None:
        """A step writes every slot from the committed ones up to what the entry will say, and nothing else."""
        blocks = [*row.blocks, *(block.id for block in entry.blocks)]
        touched = set(blocks[row.kv // self.size : -(-entry.kv_len // self.size)])
        assert touched <= self.writable[row.session], "a step that writes what is not its own"
        self.memory.write(blocks, row.kv, row.values[row.kv : entry.kv_len])

    def copy_tail(self, parent: Row, child: Row, target: BlockRef) -> None:
        """What a fork does first: the begun tail's slots into its own fresh block."""
        assert target.id in self.writable[child.session]
        self.memory.copy(parent.blocks[child.kv // self.size], target.id, child.kv % self.size)

    def committed(self, row: Row, entry: CommitEntry) -> None:
        row.blocks += [block.id for block in entry.blocks]
        row.kv = entry.kv_len
        pool = self.state._parts.blocks
        for i, block in enumerate(row.blocks[: row.kv // self.size]):
            if block in self.writable[row.session]:  # full from now on: nobody's to write
                self.sealed[block] = pool.ref(block), row.values[i * self.size : (i + 1) * self.size]
                self.writable[row.session].discard(block)
        self.check_row(row)

    def released(self, row: Row) -> None:
        self.rows.remove(row)
        self.writable[row.session] -= set(row.blocks)

    def lost(self, session: SessionId) -> None:
        """Its rows are nobody's; all it could write it still can."""
        self.rows = [row for row in self.rows if row.session != session]
        self.running = {n: row for n, row in self.running.items() if row.session != session}

    def unfinished(self, session: SessionId) -> list[tuple[int, int]]:
        """(block, first slot) of all that a step of the session may still write: nothing that is committed."""
        begun = {
            block: row.kv - i * self.size
            for row in self.rows
            for i, block in enumerate(row.blocks)
            if row.session == session
        }
        return [(block, max(0, begun.get(block, 0))) for block in sorted(self.writable[session])]

    def late(self, writes: Iterable[tuple[int, int]]) -> None:
        """Steps that nobody waits for any more end after all."""
        for block, slot in writes:
            self.memory.spoil(block, slot)
            self.late_writes += 1

    # ------------------------------------------------------------------------------- what must be true

    def check_row(self, row: Row) -> None:
        """The state's table and committed slots of a running sequence, slot by slot."""
        parts = self.state._parts
        record = parts.sequences.by_id[sequence_id(row.number)]
        table = parts.rows.blocks[record.row]
        assert (record.epoch, record.kv_len, table) == (row.epoch, row.kv, row.blocks)
        assert self.memory.row(table, row.kv) == row.values[: row.kv], "committed slots changed"

    def check(self) -> None:
        """Every committed slot of every running sequence and every sealed block; every reference."""
        for row in self.running.values():
            self.check_row(row)
        pool = self.state._parts.blocks
        for block, state in enumerate(pool.state):
            if state == SEALED:
                ref, values = self.sealed[block]
                assert (pool.ref(block), self.memory.block(block)) == (ref, values), "a sealed block changed"
        counted = Counter(block for row in self.rows for block in row.blocks)
        assert pool.refs == [counted[block] for block in range(pool.num_blocks)], "refcounts differ"
