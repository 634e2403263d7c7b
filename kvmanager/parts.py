"""The parts that one pool's state is made of, and the two steps that several operations share. No policy."""

from typing import NamedTuple

from kvmanager.blocks import BlockPool
from kvmanager.layout import MetaLayout
from kvmanager.messages import Reply, SessionId
from kvmanager.prefix import Hash, KeyChain, PrefixIndex, sha256
from kvmanager.sequences import Sequence, SequenceState, SequenceTable
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
        self.preemptions = 0
        self.held_rows = 0  # of closed and preempted sequences: their blocks come back with a Release

    def blocks_of(self, tokens: int) -> int:
        """Blocks that hold this many token slots."""
        return -(-tokens // self.block_size)

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
        for block in reversed(self.rows.close(sequence.held_rows.pop(epoch))):
            self.blocks.deref(block, now_ns, quarantine)
        self.held_rows -= 1
