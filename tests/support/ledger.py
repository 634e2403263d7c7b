"""What must be true of a pool, written down beside it: who refers to a block, who may write it, what its slots hold.

It learns of rows only what their workers know, blocks from answers and from their own commits, and counts everything
afresh. Nothing here asks the state what it should be.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kvmanager.blocks import SEALED
from kvmanager.messages import BlockRef, CommitEntry, CopyOrder, SessionId
from kvmanager.state import KvState
from tests.support.kv import sequence_id
from tests.support.slots import SlotMemory, prefix_values

NOBODY = SessionId(b"")


@dataclass(eq=False)
class Row:
    """One epoch of one sequence, as its worker knows it."""

    session: SessionId
    number: int
    epoch: int
    tokens: list[int]
    blocks: list[int]
    kv: int  # committed
    order: tuple[int, int, int] | None = None  # source, target, slots: until a commit covers it
    copied: bool = False  # the order was executed
    begins_anew: bool = False  # preempted, and then its worker was lost
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
        self.orphans: dict[int, Row] = {}
        self.writable: dict[SessionId, set[int]] = {}
        self.sealed: dict[int, tuple[BlockRef, list[int]]] = {}  # block → which generation, what it holds
        self.late_writes = 0

    # ------------------------------------------------------------------------------- what happens

    def granted(self, session: SessionId, blocks: Iterable[BlockRef]) -> None:
        for block in blocks:
            assert not any(block.id in held for held in self.writable.values()), "granted twice"
            assert not self.references(block.id), "granted while a row or a copy names it"
            self.writable[session].add(block.id)

    def opened(self, row: Row, found: Sequence[BlockRef], copies: Sequence[CopyOrder] = ()) -> None:
        """A row that begins with cached blocks, and perhaps with a copy of a part of one more."""
        whole = len(found) - len(copies)
        for i, block in enumerate(found[:whole]):
            expected = row.values[i * self.size : (i + 1) * self.size]
            assert self.sealed[block.id] == (block, expected), "a hit on other tokens"
        for source, target, slots in copies:
            ref, values = self.sealed[source.id]
            expected = row.values[whole * self.size : whole * self.size + slots]
            assert (ref, values[:slots]) == (source, expected), "a begin with other tokens"
            self.granted(row.session, [target])
            row.order = source.id, target.id, slots
        self.rows.append(row)
        self.running[row.number] = row

    def begin(self, row: Row) -> None:
        """The row's copy order is executed, before the first step that needs it."""
        if row.order and not row.copied:
            assert row.order[1] in self.writable[row.session], "a copy into what is not its own"
            self.memory.copy(*row.order)
            row.copied = True

    def compute(self, row: Row, entry: CommitEntry) -> None:
        """A step writes every slot from the committed ones up to what the entry will say, and nothing else."""
        blocks = [*row.blocks, *(block.id for block in entry.blocks)]
        touched = set(blocks[row.kv // self.size : -(-entry.kv_len // self.size)])
        assert touched <= self.writable[row.session], "a step that writes what is not its own"
        self.begin(row)
        self.memory.write(blocks, row.kv, row.values[row.kv : entry.kv_len])

    def copy_tail(self, parent: Row, child: Row, target: BlockRef) -> None:
        """What a fork does first: the begun tail's slots into its own fresh block."""
        assert target.id in self.writable[child.session]
        self.begin(parent)
        self.memory.copy(parent.blocks[child.kv // self.size], target.id, child.kv % self.size)

    def committed(self, row: Row, entry: CommitEntry) -> None:
        row.blocks += [block.id for block in entry.blocks]
        row.kv = entry.kv_len
        if entry.copies_done:
            row.order = None
        pool = self.state._parts.blocks
        for i, block in enumerate(row.blocks[: row.kv // self.size]):
            if block in self.writable[row.session]:  # full from now on: nobody's to write
                self.sealed[block] = pool.ref(block), row.values[i * self.size : (i + 1) * self.size]
                self.writable[row.session].discard(block)
        self.check_row(row)

    def released(self, row: Row) -> None:
        self.rows.remove(row)
        self.writable[row.session] -= set(row.blocks)

    # ------------------------------------------------------------------------------- ends

    def ended(self, row: Row) -> None:
        """The row of a sequence whose worker is lost, and which nobody will go on with."""
        self.rows = [other for other in self.rows if other is not row]
        self.running.pop(row.number, None)
        self.orphans.pop(row.number, None)

    def orphaned(self, row: Row) -> None:
        """Nobody's, but what is committed is kept. What its worker could write it may be able to still."""
        self.running.pop(row.number, None)
        self.orphans[row.number] = row
        row.session = NOBODY
        if row.begins_anew:
            self.rows = [other for other in self.rows if other is not row]
            row.blocks, row.kv, row.order = [], 0, None

    def stopped(self, row: Row) -> None:
        """Its worker writes nothing of it any more, and says so."""
        self.writable[row.session] -= set(row.blocks)

    def adopted(self, new: Row, copies: Sequence[CopyOrder]) -> None:
        """Every committed slot is there: in the same blocks, but for a tail that somebody else may still write."""
        old = self.orphans.pop(new.number)
        self.rows.remove(old)
        whole, slots = divmod(old.kv, self.size)
        assert (new.epoch, new.kv, new.tokens) == (old.epoch + 1, old.kv, old.tokens), "work is lost"
        assert new.blocks[:whole] == old.blocks[:whole]
        assert len(new.blocks) == whole + bool(slots)
        self.rows.append(new)
        self.running[new.number] = new
        new.order = next(((a.id, b.id, n) for a, b, n in copies), None)
        if not slots:
            assert new.order is None
            return
        before, tail = old.blocks[whole], new.blocks[whole]
        if any(before in blocks for blocks in self.writable.values()):
            source = old.order[0] if old.order else before
            assert new.order == (source, tail, slots), "the committed slots are not where the adopter writes"
            assert not any(tail in blocks for blocks in self.writable.values())
            assert tail not in (before, source)
        else:
            assert (tail, new.order) == (before, old.order), "nobody else can write it"
        self.writable[new.session].add(tail)

    def buried(self, session: SessionId) -> int:
        """It writes no more. How many blocks that nobody refers to come back."""
        return sum(not self.references(block) for block in self.writable.pop(session))

    def unfinished(self, session: SessionId) -> list[tuple[int, int]]:
        """(block, first slot) of all that a step of the session may still write: nothing that is committed. A copy
        that was not executed yet is still to come."""
        begun = {
            block: 0 if row.order and not row.copied and block == row.order[1] else row.kv - i * self.size
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

    def references(self, block: int) -> int:
        rows = sum(block in row.blocks for row in self.rows)
        return rows + sum(row.order is not None and row.order[0] == block for row in self.rows)

    def check_row(self, row: Row) -> None:
        """The state's table and committed slots of a running sequence or an orphan, slot by slot."""
        parts = self.state._parts
        record = parts.sequences.by_id[sequence_id(row.number)]
        table = parts.rows.blocks[record.row] if record.row >= 0 else []
        assert (record.epoch, record.kv_len, table) == (row.epoch, row.kv, row.blocks)
        there = self.memory.row(table, row.kv) == row.values[: row.kv]
        assert there or (row.order and not row.copied), "committed slots changed"
        if row.order:  # they are still in the source
            source, target, _ = row.order
            table = [source if block == target else block for block in table]
            assert self.memory.row(table, row.kv) == row.values[: row.kv], "slots to be copied changed"

    def check(self) -> None:
        """Every committed slot of every running sequence, orphan and sealed block; every reference."""
        for row in (*self.running.values(), *self.orphans.values()):
            self.check_row(row)
        pool = self.state._parts.blocks
        for block, state in enumerate(pool.state):
            if state == SEALED:
                ref, values = self.sealed[block]
                assert (pool.ref(block), self.memory.block(block)) == (ref, values), "a sealed block changed"
        counted = Counter(block for row in self.rows for block in row.blocks)
        counted.update(row.order[0] for row in self.rows if row.order)
        assert pool.refs == [counted[block] for block in range(pool.num_blocks)], "refcounts differ"
