"""The parts that one pool's state is made of, and the few steps that several operations share. No policy."""

from typing import NamedTuple

from kvmanager.blocks import BlockPool
from kvmanager.followers import Followers
from kvmanager.layout import MetaLayout
from kvmanager.messages import Reply, SessionId
from kvmanager.prefix import Hash, KeyChain, PrefixIndex, sha256
from kvmanager.sequences import Copy, Sequence, SequenceState, SequenceTable
from kvmanager.sessions import Session, SessionTable
from kvmanager.store import Store
from kvmanager.tables import RowTable


class Outgoing(NamedTuple):
    """A message to a worker; number 0 is unasked."""

    session: SessionId
    number: int
    reply: Reply


class Parts:
    """Everything of one pool, over one store."""

    def __init__(self, layout: MetaLayout, store: Store, digest: Hash = sha256) -> None:
        self.layout, self.spec, self.store = layout, layout.spec, store
        self.block_size = layout.block_size
        self.blocks = BlockPool(layout, store)
        self.prefix = PrefixIndex(KeyChain(layout.spec, digest), self.blocks)
        self.rows = RowTable(layout, store)
        self.sequences = SequenceTable(layout, store)
        self.sessions = SessionTable(layout, store)
        self.prefix_queries = 0  # tokens looked up
        self.prefix_hits = 0  # tokens found
        self.partial_hits = 0  # of these, by a copy
        self.preemptions = 0
        self.followers = Followers()
        self.adoptions = 0
        self.reprefilled = 0  # slots that were valid once and are computed again after a fault
        self.held_rows = 0  # of closed and preempted sequences: their blocks come back with a Release

    def blocks_of(self, tokens: int) -> int:
        """Blocks that hold this many token slots."""
        return -(-tokens // self.block_size)

    @property
    def reserve(self) -> int:
        """Blocks kept back: one for each live sequence, for the tail of whoever adopts it (rule 5)."""
        return len(self.sequences.open) + len(self.sequences.orphans)

    @property
    def grantable(self) -> int:
        """Blocks that floats may get."""
        return max(0, self.blocks.available - self.reserve)

    def owner(self, sequence: Sequence) -> Session | None:
        return self.sessions.slots[sequence.owner - 1] if sequence.owner else None

    def hold_row(self, sequence: Sequence, state: SequenceState) -> None:
        """The sequence stops running; its row stays until its owner says that no launched step names it."""
        sequence.held_rows[sequence.epoch] = sequence.row
        sequence.row, sequence.state, sequence.kv_len, sequence.revoked = -1, state, 0, False
        self.held_rows += 1
        del self.sequences.open[sequence.slot]

    def end_row(self, sequence: Sequence, epoch: int, now_ns: int, quarantine: bool = False) -> None:
        """Give up a held row: leaves first, so that the cache loses them before their parents."""
        blocks = self.rows.close(sequence.held_rows.pop(epoch))
        if sequence.copy is not None and sequence.copy.destination in blocks:
            self.end_copy(sequence, now_ns)
        for block in reversed(blocks):
            self.blocks.deref(block, now_ns, quarantine)
        self.held_rows -= 1

    # ------------------------------------------------------------------------------------- copy orders (rule 6)

    def order_copy(self, sequence: Sequence, session: Session, source: int, slots: int) -> None:
        """Append a fresh tail to the open row, whose first `slots` slots the session's worker copies from `source`.

        A block must be available beside `source`. The order ends with the commit that covers it, or with its row.
        """
        assert sequence.copy is None, "one copy order a sequence"
        assert 0 < slots < self.block_size
        self.blocks.read(source)  # first: the fresh block must not be this one
        [destination] = self.blocks.take(1, session.holder)
        self.blocks.open_tail(destination)
        self.rows.append(sequence.row, [destination])
        sequence.copy = Copy(source, destination, slots)
        self.sequences.put_copy(sequence)

    def pending_copy(self, sequence: Sequence) -> Copy | None:
        """The copy order of the row that the sequence runs on."""
        copy = sequence.copy
        if copy is None or sequence.row < 0 or copy.destination not in self.rows.blocks[sequence.row]:
            return None
        return copy

    def end_copy(self, sequence: Sequence, now_ns: int) -> None:
        """The order was executed, or never will be: its source is let go."""
        assert sequence.copy is not None
        self.blocks.unread(sequence.copy.source, now_ns)
        sequence.copy = None
        self.sequences.put_copy(sequence)
