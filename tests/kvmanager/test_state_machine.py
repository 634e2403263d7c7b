"""The whole of KvState against a naive model: the same replies, block for block, and clean metadata all the way."""

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvmanager.messages import (
    Acked,
    BlockRef,
    CommitEntry,
    FinishReason,
    Grant,
    Granted,
    Opened,
    Refused,
    Release,
    Retry,
    Revoke,
    SequenceRef,
    Wait,
)
from kvmanager.state import KvState
from tests.support.kv import Worker, buffer_for, open_message, pool_spec, sequence_id
from tests.support.naive_pool import NaivePool, Seq

BLOCKS, SIZE = 12, 2
SPEC = pool_spec(BLOCKS, SIZE, max_model_len=24, max_num_seqs=3)
TENANTS = (bytes(32), b"t" * 32)
# Few prompts that begin alike, so that prefixes are shared and computed twice.
PROMPTS = st.builds(
    lambda n, last: [1] * n + last, st.integers(0, 8), st.lists(st.integers(1, 2), min_size=1, max_size=2)
)


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.buffer = buffer_for(SPEC)
        self.state = KvState.create(self.buffer, SPEC, 0)
        self.model = NaivePool(BLOCKS, SIZE)
        self.workers: dict[str, Worker] = {}
        self.lost: dict[str, Any] = {}
        self.now = self.born = self.opened = 0

    # ------------------------------------------------------------------------------- workers

    @precondition(lambda self: len(self.workers) + len(self.lost) < 3)
    @rule()
    def attach(self) -> None:
        self.born += 1
        self.workers[f"w{self.born}"] = Worker(self.state, f"w{self.born}", self.tick())
        self.model.wants = {self.name(s.id): self.model.wants.get(self.name(s.id), 0) for s in self.by_slot()}

    def by_slot(self) -> list[Any]:
        """Starving sessions are served in the order of their records."""
        parts = self.state._parts
        return [session for session in parts.sessions.slots if session]

    @precondition(lambda self: self.workers and self.now % 6 == 5)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.workers)))
        worker = self.workers.pop(name)
        ended = self.state.lose(worker.session, self.tick())
        self.lost[name] = worker.session
        assert ended == [sequence_id(n) for n in self.model.lose(name)]
        self.check_unasked([(o.session, o.reply) for o in self.state.outbox()])

    @precondition(lambda self: self.lost)
    @rule(data=st.data())
    def dead(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.lost)))
        assert self.state.dead(self.lost.pop(name)) == self.model.dead(name)
        self.model.wants.pop(name, None)
        self.check_unasked([(o.session, o.reply) for o in self.state.outbox()])

    @precondition(lambda self: self.now % 9 == 8)
    @rule()
    def restart(self) -> None:
        """A new daemon on the same bytes: sealed blocks are still found, former sessions are lost."""
        for name, worker in self.workers.items():
            self.lost[name] = worker.session
            self.model.lose(name)
        self.workers, self.model.wants, self.model.waits = {}, {}, {}
        epoch = self.state.boot_epoch
        self.state = KvState.recover(self.buffer, self.tick())
        assert self.state.boot_epoch == epoch + 1
        blocks = self.state._parts.blocks
        assert sorted(self.model.free) == sorted(blocks.free)
        assert sorted(self.model.cached) == sorted(blocks.cached)
        self.model.free, self.model.cached = list(blocks.free), list(blocks.cached)
        self.model.seqs = {n: self.model.seqs[n] for n in self.numbers()}

    def numbers(self) -> list[int]:
        return [int.from_bytes(s, "big") for s in self.state._parts.sequences.by_id]

    # ------------------------------------------------------------------------------- messages

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), count=st.integers(0, 6), starving=st.booleans())
    def grant(self, data: st.DataObject, count: int, starving: bool) -> None:
        self.ask(self.some_worker(data)[0], count, starving)

    def ask(self, name: str, count: int, starving: bool) -> None:
        worker = self.workers[name]
        reply = worker.send(Grant(count=count, starving=starving))
        assert isinstance(reply, Granted)
        assert list(reply.blocks) == self.refs(self.model.grant(name, count, starving))
        worker.float += reply.blocks
        self.check_unasked(worker.unasked)

    @precondition(lambda self: self.workers)
    @rule(
        data=st.data(),
        ids=PROMPTS,
        more=st.integers(1, 8),
        tenant=st.sampled_from(TENANTS),
        priority=st.integers(0, 1),
    )
    def open(self, data: st.DataObject, ids: list[int], more: int, tenant: bytes, priority: int) -> None:
        name, worker = self.some_worker(data)
        self.opened += 1
        number = self.opened
        reply = worker.start(number, ids, more, tenant=tenant, priority=priority)
        known = set(self.numbers())
        for old in [n for n in self.model.seqs if n not in known]:
            assert self.model.seqs[old].state == "finished"  # made room before its time
            assert not self.model.seqs.pop(old).held
        if isinstance(reply, Refused):
            assert "room" in reply.message
            return
        rank = (priority, -number)
        self.check_opened(reply, number, Seq(name, list(ids), len(ids) + more, tenant, rank))

    @precondition(lambda self: self.pick("preempted"))
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.pick("preempted")))
        seq = self.model.seqs[number]
        worker = self.workers[seq.owner]
        reply = worker.start(number, seq.tokens, tenant=seq.tenant)
        self.check_opened(reply, number, seq)
        if isinstance(reply, Opened):
            seq.epoch += 1
            assert reply.epoch == seq.epoch

    def check_opened(self, reply: Any, number: int, seq: Seq) -> None:
        expected = self.model.open(number, seq)
        if expected is None:
            assert isinstance(reply, Wait)
            assert reply.for_prefix
        elif isinstance(expected, tuple):
            assert reply == Wait(
                sequence=sequence_id(number), needed_blocks=expected[0], available_blocks=expected[1]
            )
        else:
            assert isinstance(reply, Opened)
            assert list(reply.blocks) == self.refs(expected)
            assert reply.kv_len == reply.cached_len == seq.kv
            assert [(a.id, b.id, n) for a, b, n in reply.copies] == [seq.copy] * self.model.pending(seq)
            assert reply.recorded_len == len(seq.tokens)

    @precondition(lambda self: self.pick("open"))
    @rule(
        data=st.data(),
        sampled=st.lists(st.integers(1, 2), max_size=3),
        close=st.sampled_from(["", "", "", "", "p", "f"]),
    )
    def commit(self, data: st.DataObject, sampled: list[int], close: str) -> None:
        """A prefill chunk or a decode step, with as many blocks as it needs; perhaps the last one."""
        self.tick()
        number = data.draw(st.sampled_from(self.pick("open")))
        seq, worker = self.model.seqs[number], self.workers[self.model.seqs[number].owner]
        sampled = sampled[: seq.capacity - len(seq.tokens)]
        least = len(seq.tokens) if sampled else seq.kv
        most = len(seq.tokens) + max(0, len(sampled) - 1)
        kv = most if data.draw(st.integers(0, 3)) else data.draw(st.integers(least, most))
        need = max(0, -(-kv // SIZE) - len(seq.row))
        if need > len(worker.float):
            self.ask(seq.owner, need - len(worker.float), starving=True)
        if need > len(worker.float):
            return
        blocks, worker.float = worker.float[:need], worker.float[need:]
        copies = int(self.model.pending(seq) and kv > seq.kv and close != "p")
        entry = CommitEntry(
            sequence=sequence_id(number),
            epoch=seq.epoch,
            base_recorded=len(seq.tokens),
            base_kv=seq.kv,
            token_ids=sampled,
            kv_len=kv,
            blocks=blocks,
            copies_done=copies,
            preempted=close == "p",
            finish=FinishReason.STOP if close == "f" else FinishReason.NONE,
        )
        assert worker.commit(entry) == Acked(refusals=[])
        self.model.commit(number, sampled, 0 if close == "p" else kv, [block.id for block in blocks])
        if close:
            self.model.stop(number, "preempted" if close == "p" else "finished")
        self.check_unasked(worker.unasked)
        if close or sampled or kv > entry.base_kv:
            assert worker.commit(entry).refusals, "the same entry again has another base or state"

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def release_row(self, data: st.DataObject) -> None:
        held = [(n, epoch) for n, s in self.model.seqs.items() for epoch in s.held]
        if not held:
            return
        number, epoch = data.draw(st.sampled_from(held))
        worker = self.workers[self.model.seqs[number].owner]
        ref = SequenceRef(sequence_id(number), epoch)
        assert worker.send(Release(rows=[ref])) == Acked(refusals=[])
        self.model.release(number, epoch)
        self.check_unasked(worker.unasked)
        again = worker.send(Release(rows=[ref]))
        assert isinstance(again, Acked)
        assert len(again.refusals) == 1

    @precondition(lambda self: any(worker.float for worker in self.workers.values()))
    @rule(data=st.data())
    def release_float(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(n for n, w in self.workers.items() if w.float)))
        blocks = [block.id for block in self.workers[name].float]
        self.workers[name].give_back()
        for block in blocks:
            self.model.make_free(block)
        self.check_unasked(self.workers[name].unasked)

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def lies(self, data: st.DataObject) -> None:
        """What a worker may not say is refused and changes nothing."""
        _, worker = self.some_worker(data)
        foreign = BlockRef(data.draw(st.integers(0, BLOCKS)), 77)
        number = data.draw(st.sampled_from([0, *self.model.seqs]))
        seq = self.model.seqs.get(number, Seq("", [1], 2, b"", ()))
        entry = CommitEntry(
            sequence=sequence_id(number),
            epoch=seq.epoch,
            base_recorded=len(seq.tokens),
            base_kv=seq.kv,
            kv_len=seq.kv,
            blocks=[foreign],
        )
        assert len(worker.commit(entry).refusals) == 1
        reply = worker.send(Release(blocks=[foreign]))
        assert isinstance(reply, Acked)
        assert len(reply.refusals) == 1
        again = self.state.apply(worker.session, worker.number, open_message(99999, [1]), self.now)
        assert [o.reply for o in again] == [Acked()]

    # ------------------------------------------------------------------------------- housekeeping

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

    @rule()
    def expire(self) -> None:
        old = [n for n, s in self.model.seqs.items() if s.state == "finished" and not s.held]
        assert self.state.expire(self.tick(), ttl_ns=0) == len(old)
        for number in old:
            del self.model.seqs[number]

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
    def clean(self) -> None:
        assert self.state.check_integrity() == []

    def teardown(self) -> None:
        """Nothing leaks: with every process gone and the cache dropped, all is free."""
        for worker in self.workers.values():
            self.state.lose(worker.session, self.tick())
        for session in self.state.sessions():
            self.state.dead(session.id)
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


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(
    max_examples=80, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
