"""The state of a pool beside a naive model, as a Hypothesis machine: its housekeeping and what must be true.

What happens to workers, and what they say, is for machines on top of it.
"""

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvmanager.messages import BlockRef, Grant, Granted, Retry, Revoke, SessionId
from kvmanager.state import KvState
from tests.support.kv import Worker, buffer_for, pool_spec, sequence_id
from tests.support.naive_blocks import Seq
from tests.support.naive_orphans import MortalPool
from tests.support.slots import SlotMemory, prefix_values

BLOCKS, SIZE = 16, 2
SPEC = pool_spec(BLOCKS, SIZE, max_model_len=24, max_num_seqs=3)


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.buffer = buffer_for(SPEC)
        self.state = KvState.create(self.buffer, SPEC, 0)
        self.model = MortalPool(BLOCKS, SIZE)
        self.memory = SlotMemory(BLOCKS, SIZE)
        self.workers: dict[str, Worker] = {}
        self.lost: dict[str, SessionId] = {}
        self.copied: set[tuple[int, int]] = set()  # (sequence, epoch) whose copy order was executed
        self.now = self.born = self.opened = 0

    # ------------------------------------------------------------------------------- housekeeping

    @precondition(lambda self: self.now % 3 == 1)
    @rule(count=st.integers(0, 4))
    def evict(self, count: int) -> None:
        expected = min(count, len(self.model.cached))
        for _ in range(expected):
            self.model.evict()
        assert self.state.evict(count) == expected

    @precondition(lambda self: self.now % 6 == 1)
    @rule()
    def flush(self) -> None:
        assert self.state.flush() == len(self.model.cached)
        while self.model.cached:
            self.model.evict()

    @precondition(lambda self: self.now % 4 == 2)
    @rule(patience=st.sampled_from([100, 100, 10]))
    def expire(self, patience: int) -> None:
        """Orphans that nobody adopted end; the records of what has ended before this call are forgotten."""
        now = self.tick()
        orphans = list(self.model.orphans)
        self.model.abandon(now - patience)
        old = [
            n for n, s in self.model.seqs.items() if s.state == "finished" and not s.held and n not in orphans
        ]
        assert self.state.expire(now, ttl_ns=0, orphan_ttl_ns=patience) == len(old)
        for number in old:
            del self.model.seqs[number]
        self.check_outbox()

    # ------------------------------------------------------------------------------- checks

    @invariant()
    def same_counts(self) -> None:
        counts = self.state.counts()
        expected = self.model.counts()
        assert {name: getattr(counts, name) for name in expected} == expected
        assert sum((counts.free, counts.granted, counts.tail, counts.sealed, counts.quarantined)) == BLOCKS

    @invariant()
    def same_order(self) -> None:
        blocks = self.state._parts.blocks
        assert (list(blocks.free), list(blocks.cached)) == (self.model.free, self.model.cached)

    @invariant()
    def same_references(self) -> None:
        assert self.state._parts.blocks.refs == [self.model.refs(block) for block in range(BLOCKS)]

    @invariant()
    def no_committed_slot_changed(self) -> None:
        """In the tables and lengths of the state, not the model's."""
        parts = self.state._parts
        for seq in (*parts.sequences.open.values(), *parts.sequences.orphans.values()):
            row = list(parts.rows.blocks[seq.row]) if seq.row >= 0 else []
            if seq.copy is not None and seq.copy.destination in row:  # it is still in the source
                row[row.index(seq.copy.destination)] = seq.copy.source
            assert self.memory.row(row, seq.kv_len) == prefix_values(seq.tokens)[: seq.kv_len]
        for i, block in enumerate(self.model.blocks):
            if block.state == "sealed":
                assert self.memory.block(i) == prefix_values(block.chain[1:])[-SIZE:]

    @invariant()
    def same_sequences(self) -> None:
        parts = self.state._parts
        assert self.numbers() == list(self.model.seqs)
        for seq, expected in zip(parts.sequences.by_id.values(), self.model.seqs.values(), strict=True):
            owner = parts.owner(seq)
            assert (seq.state.name.lower(), seq.epoch, seq.deaths) == (
                expected.state,
                expected.epoch,
                expected.deaths,
            )
            assert (self.name(owner.id) if owner else "", seq.copy) == (expected.owner, expected.copy)
            if seq.row >= 0:
                assert (seq.kv_len, parts.rows.blocks[seq.row]) == (expected.kv, expected.row)

    @invariant()
    def clean(self) -> None:
        assert self.state.check_integrity() == []

    def teardown(self) -> None:
        """Nothing leaks: with every process gone, every orphan given up and the cache dropped, all is free."""
        for worker in self.workers.values():
            self.state.lose(worker.session, self.tick())
        for session in self.state.sessions():
            self.state.dead(session.id)
        self.state.expire(self.tick(), orphan_ttl_ns=0)
        self.state.expire(self.tick(), ttl_ns=0, orphan_ttl_ns=0)
        assert self.state.live_sequences == 0
        self.state.flush()
        assert self.state.counts().free == BLOCKS
        assert self.state.check_integrity() == []

    # ------------------------------------------------------------------------------- helpers

    def tick(self) -> int:
        self.now += 1
        for worker in self.workers.values():
            worker.now_ns = self.now
        return self.now

    def name(self, session: bytes) -> str:
        return session.rstrip(b".").decode()

    def some_worker(self, data: st.DataObject) -> tuple[str, Worker]:
        self.tick()
        name = data.draw(st.sampled_from(sorted(self.workers)))
        return name, self.workers[name]

    def pick(self, state: str) -> list[int]:
        return [n for n, s in self.model.seqs.items() if s.state == state]

    def refs(self, blocks: list[int]) -> list[BlockRef]:
        return [BlockRef(block, self.model.blocks[block].generation) for block in blocks]

    def check_unasked(self, said: list[tuple[Any, Any]]) -> None:
        expected = []
        for name, what in self.model.serve():
            if isinstance(what, int):
                expected.append((name, Revoke(sequence=sequence_id(what), epoch=self.model.seqs[what].epoch)))
            else:
                expected.append((name, Granted(blocks=self.refs(what))))
                self.workers[name].float += self.refs(what)
        expected += [(name, Retry(sequence=sequence_id(n))) for name, n in self.model.retry()]
        assert [(self.name(session), reply) for session, reply in said] == expected

    def check_outbox(self) -> None:
        self.check_unasked([(o.session, o.reply) for o in self.state.outbox()])

    def numbers(self) -> list[int]:
        return [int.from_bytes(s, "big") for s in self.state._parts.sequences.by_id]

    def by_slot(self) -> list[str]:
        """Starving sessions are served in the order of their records."""
        return [self.name(session.id) for session in self.state._parts.sessions.slots if session]

    def ask(self, name: str, count: int, starving: bool) -> None:
        worker = self.workers[name]
        reply = worker.send(Grant(count=count, starving=starving))
        assert isinstance(reply, Granted)
        assert list(reply.blocks) == self.refs(self.model.grant(name, count, starving))
        worker.float += reply.blocks
        self.check_unasked(worker.unasked)

    def take(self, name: str, need: int) -> list[BlockRef] | None:
        """From the float, which is filled first if it has not as many. None: the pool has not."""
        worker = self.workers[name]
        if need > len(worker.float):
            self.ask(name, need - len(worker.float), starving=True)
        if need > len(worker.float):
            return None
        blocks, worker.float = worker.float[:need], worker.float[need:]
        return blocks

    def begin(self, number: int) -> None:
        """The copy order of a running sequence is executed before what needs it."""
        seq = self.model.seqs[number]
        if self.model.pending(seq) and (number, seq.epoch) not in self.copied:
            self.memory.copy(*seq.copy)
            self.copied.add((number, seq.epoch))

    def compute(self, seq: Seq, tokens: list[int], kv: int, blocks: list[BlockRef]) -> None:
        """A step writes the slots from the sequence's committed ones up to `kv`: in blocks that are nobody else's."""
        row = seq.row + [block.id for block in blocks]
        for block in row[seq.kv // SIZE : -(-kv // SIZE)]:
            assert self.model.blocks[block].state in ("granted", "tail")
            assert self.model.blocks[block].holder == seq.owner
        self.memory.write(row, seq.kv, prefix_values(tokens)[seq.kv : kv])

    def check_forgotten(self) -> None:
        """A new record may have made room for itself."""
        known = set(self.numbers())
        for old in [n for n in self.model.seqs if n not in known]:
            assert self.model.seqs[old].state == "finished"
            assert not self.model.seqs.pop(old).held
