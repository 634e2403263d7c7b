"""The whole of KvState against a naive model: the same replies, block for block, and clean metadata all the way.

Workers write what they commit into a memory: no committed slot ever holds anything but its own sequence's content.
"""

from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from kvmanager.messages import (
    Acked,
    BlockRef,
    CommitEntry,
    FinishReason,
    Opened,
    Refused,
    Release,
    SequenceRef,
    Wait,
)
from tests.support.kv import fork_message, open_message, sequence_id
from tests.support.mortal_machine import MortalMachine
from tests.support.naive_blocks import Seq
from tests.support.pool_machine import BLOCKS, SIZE

TENANTS = (bytes(32), b"t" * 32)
# Few prompts that begin alike, so that prefixes are shared and computed twice.
PROMPTS = st.builds(
    lambda n, last: [1] * n + last, st.integers(0, 8), st.lists(st.integers(1, 2), min_size=1, max_size=2)
)


class Messages(MortalMachine):
    @initialize(prompts=st.tuples(st.integers(1, 6), st.integers(1, 6)), steps=st.integers(0, 2))
    def serve(self, prompts: tuple[int, int], steps: int) -> None:
        """Two workers that decode."""
        for count in prompts:
            self.attach()
            self.start(f"w{self.born}", [1] * count, 8, TENANTS[0], 0)
            for step in range(steps * (self.opened in self.model.seqs)):
                self.step(self.opened, [2], count + step, "")

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), count=st.integers(0, 6), starving=st.booleans())
    def grant(self, data: st.DataObject, count: int, starving: bool) -> None:
        self.ask(self.some_worker(data)[0], count, starving)

    @precondition(lambda self: self.workers)
    @rule(
        data=st.data(),
        ids=PROMPTS,
        more=st.integers(1, 8),
        tenant=st.sampled_from(TENANTS),
        priority=st.integers(0, 1),
    )
    def open(self, data: st.DataObject, ids: list[int], more: int, tenant: bytes, priority: int) -> None:
        self.start(self.some_worker(data)[0], ids, more, tenant, priority)

    def start(self, name: str, ids: list[int], more: int, tenant: bytes, priority: int) -> None:
        self.opened += 1
        number, worker = self.opened, self.workers[name]
        reply = worker.start(number, ids, more, tenant=tenant, priority=priority)
        self.check_forgotten()
        if isinstance(reply, Refused):
            assert "room" in reply.message
            return
        rank = (priority, -number)
        new = Seq(name, list(ids), len(ids) + more, tenant, rank, len(ids), stepped=False)
        self.check_opened(reply, number, new)
        self.check_unasked(worker.unasked)

    @precondition(lambda self: self.pick("preempted"))
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.pick("preempted")))
        seq = self.model.seqs[number]
        worker = self.workers[seq.owner]
        reply = worker.start(number, seq.tokens, tenant=seq.tenant)
        if isinstance(reply, Refused):
            assert "rows" in reply.message
        elif not self.waits_alone(reply, number, seq.owner):
            self.check_opened(reply, number, seq)
        if isinstance(reply, Opened):
            seq.epoch += 1
            assert (reply.epoch, reply.alone) == (seq.epoch, seq.deaths > 0)
        self.check_unasked(worker.unasked)

    def check_opened(self, reply: Any, number: int, seq: Seq) -> None:
        expected = self.model.open(number, seq)
        if expected is None:
            assert isinstance(reply, Wait)
            assert reply.for_prefix
        elif isinstance(expected, tuple):
            assert reply == self.wait(number, expected)
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
        seq = self.model.seqs[number]
        sampled = sampled[: seq.capacity - len(seq.tokens)]
        least = len(seq.tokens) if sampled else seq.kv
        most = len(seq.tokens) + max(0, len(sampled) - 1)
        kv = most if data.draw(st.integers(0, 3)) else data.draw(st.integers(least, most))
        self.step(number, sampled, kv, close)

    def step(self, number: int, sampled: list[int], kv: int, close: str) -> None:
        seq, worker = self.model.seqs[number], self.workers[self.model.seqs[number].owner]
        blocks = self.take(seq.owner, max(0, -(-kv // SIZE) - len(seq.row)))
        if blocks is None:
            return
        self.begin(number)
        self.compute(seq, seq.tokens + sampled, kv, blocks)
        entry = CommitEntry(
            sequence=sequence_id(number),
            epoch=seq.epoch,
            base_recorded=len(seq.tokens),
            base_kv=seq.kv,
            token_ids=sampled,
            kv_len=kv,
            blocks=blocks,
            copies_done=int(self.model.pending(seq) and kv > seq.kv and close != "p"),
            preempted=close == "p",
            finish=FinishReason.STOP if close == "f" else FinishReason.NONE,
        )
        assert worker.commit(entry) == Acked(refusals=[])
        left = {"": "", "p": "preempted", "f": "finished"}[close]
        self.model.commit(number, sampled, kv, [block.id for block in blocks], left)
        self.check_unasked(worker.unasked)
        if close or sampled or kv > entry.base_kv:
            assert worker.commit(entry).refusals, "the same entry again has another base or state"

    @precondition(lambda self: self.parents())
    @rule(
        data=st.data(),
        sampled=st.lists(st.integers(1, 2), max_size=3),
        more=st.integers(1, 8),
        finish=st.booleans(),
        priority=st.integers(0, 1),
    )
    def fork(self, data: st.DataObject, sampled: list[int], more: int, finish: bool, priority: int) -> None:
        """From any place behind a parent's prompt, with as many of its slots as are there or fewer; told with its
        first write, or with its end."""
        self.tick()
        parent, epoch = data.draw(st.sampled_from(self.parents()))
        seq = self.model.seqs[parent]
        base = data.draw(st.integers(seq.prompt, min(len(seq.tokens), seq.prompt + more)))
        sampled = sampled[: seq.prompt + more - base]
        shared = min(base, sum(self.sealed(b) for b in self.model.row_of(parent, epoch)) * SIZE)
        running = seq.state == "open" and seq.epoch == epoch
        base_kv = data.draw(st.integers(0, min(base, seq.kv) if running else shared))
        kv = data.draw(st.integers(base, base + len(sampled) - 1) if sampled else st.integers(base_kv, base))
        rowless = finish and kv == base_kv and (base_kv % SIZE == 0 or data.draw(st.booleans()))
        blocks = [] if rowless else self.take(seq.owner, -(-kv // SIZE) - base_kv // SIZE)
        if blocks is None:
            return
        self.opened += 1
        rank = (priority, -self.opened)
        new = Seq(seq.owner, seq.tokens[:base], seq.prompt + more, seq.tenant, rank, seq.prompt)
        entry = CommitEntry(
            sequence=sequence_id(self.opened),
            epoch=1,
            base_recorded=base,
            base_kv=base_kv,
            token_ids=sampled,
            kv_len=kv,
            blocks=blocks,
            finish=FinishReason.STOP if finish else FinishReason.NONE,
            fork=fork_message(
                parent,
                parent_epoch=epoch,
                max_tokens=more,
                priority=priority,
                arrival_ns=self.opened,
                tenant=seq.tenant,
            ),
        )
        self.tell_fork(entry, new, parent, rowless)

    def tell_fork(self, entry: CommitEntry, new: Seq, parent: int, rowless: bool) -> None:
        """`new`: as the model should know it."""
        number, epoch, kv = self.opened, entry.fork.parent_epoch, entry.base_kv
        worker = self.workers[new.owner]
        if not rowless:
            row = self.model.row_of(parent, epoch)
            if kv % SIZE and self.model.seqs[parent].epoch == epoch:
                self.begin(parent)
            if kv % SIZE:
                self.memory.copy(row[kv // SIZE], entry.blocks[0].id, kv % SIZE)
            written = replace(new, row=row[: kv // SIZE], kv=kv)
            self.compute(written, new.tokens + list(entry.token_ids), entry.kv_len, list(entry.blocks))
        refusals = worker.commit(entry).refusals
        self.check_forgotten()
        if refusals:
            assert "room" in refusals[0].message
            worker.float += entry.blocks
            self.check_unasked(worker.unasked)
            return
        if rowless:
            self.model.seqs[number] = replace(
                new, tokens=new.tokens + list(entry.token_ids), state="finished"
            )
        else:
            self.model.fork(number, new, parent, epoch, kv)
            blocks = [block.id for block in entry.blocks]
            left = "finished" if entry.finish else ""
            self.model.commit(number, list(entry.token_ids), entry.kv_len, blocks, left)
        self.check_unasked(worker.unasked)
        assert worker.commit(entry).refusals, "the same fork again has a record already"

    def parents(self) -> list[tuple[int, int]]:
        """(sequence, epoch) of rows that may be forked: running, or held by a worker that lives."""
        return [
            (n, epoch)
            for n, s in self.model.seqs.items()
            if s.owner in self.workers
            for epoch in ([s.epoch] if s.state == "open" else []) + list(s.held)
        ]

    def sealed(self, block: int) -> bool:
        return self.model.blocks[block].state == "sealed"

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
        seq = self.model.seqs.get(number, Seq("", [1], 2, b"", (), 1))
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


TestPoolMachine = Messages.TestCase
TestPoolMachine.settings = settings(
    max_examples=80, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
