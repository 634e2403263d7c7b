"""Workers and daemons end, as rules on the pool machine: lost, proven dead, adopted from, handed over, restarted."""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from kvmanager.messages import Acked, Fenced, Opened, OpenKind, Refused, Wait
from kvmanager.state import KvState
from tests.support.kv import Worker, sequence_id
from tests.support.pool_machine import SIZE, PoolMachine


class MortalMachine(PoolMachine):
    def __init__(self) -> None:
        super().__init__()
        self.late: dict[str, list[tuple[int, int]]] = {}  # what a lost one may still write: block, first slot

    @precondition(lambda self: len(self.workers) + len(self.lost) < 4)
    @rule()
    def attach(self) -> None:
        self.born += 1
        self.workers[f"w{self.born}"] = Worker(self.state, f"w{self.born}", self.tick())
        self.model.wants = {name: self.model.wants.get(name, 0) for name in self.by_slot()}

    @precondition(lambda self: self.workers and self.now % 5 == 4)
    @rule(data=st.data(), proof=st.integers(0, 3))
    def lose(self, data: st.DataObject, proof: int) -> None:
        """`proof` 0: it comes with the first sign, and says no time."""
        name = data.draw(st.sampled_from(sorted(self.workers)))
        session, now = self.workers.pop(name).session, self.tick() if proof else self.state._now_ns
        self.late[name], self.lost[name] = self.unfinished(name), session
        orphans = [sequence_id(number) for number in self.model.lose(name, now)]
        if proof:
            assert self.state.lose(session, now) == orphans
        else:
            self.bury(name)
        self.check_outbox()

    @precondition(lambda self: self.lost)
    @rule(data=st.data())
    def dead(self, data: st.DataObject) -> None:
        self.bury(data.draw(st.sampled_from(sorted(self.lost))))
        self.check_outbox()

    def bury(self, name: str) -> None:
        del self.late[name]
        assert self.state.dead(self.lost.pop(name)) == self.model.dead(name)
        self.model.wants.pop(name, None)

    def unfinished(self, name: str) -> list[tuple[int, int]]:
        """All that a step of this worker may still write. A copy that was not executed yet may be, too late."""
        begun: dict[int, int] = {}
        for number, seq in self.model.seqs.items():
            slots = seq.kv % SIZE
            if seq.owner == name and seq.state == "open" and slots:
                ordered = self.model.pending(seq) and (number, seq.epoch) not in self.copied
                begun[seq.row[seq.kv // SIZE]] = 0 if ordered else slots
        own = [i for i, b in enumerate(self.model.blocks) if b.holder == name]
        return [(block, begun.get(block, 0)) for block in own]

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def write_late(self, data: st.DataObject) -> None:
        for block, slot in self.late[data.draw(st.sampled_from(sorted(self.late)))]:
            self.memory.spoil(block, slot)

    @precondition(lambda self: self.workers and self.model.orphans)
    @rule(data=st.data(), more=st.integers(0, 3))
    def adopt(self, data: st.DataObject, more: int) -> None:
        """Any living worker, with the prompt, or with more of the tokens than were recorded."""
        name, worker = self.some_worker(data)
        number = data.draw(st.sampled_from(self.model.orphans))
        seq = self.model.seqs[number]
        kv, suspect = seq.kv, seq.deaths > 0
        ids = (seq.tokens + [3] * more)[: data.draw(st.integers(seq.prompt, len(seq.tokens) + more))]
        reply = worker.start(number, ids, tenant=seq.tenant)
        if isinstance(reply, Refused):
            assert "rows" in reply.message
            return
        if self.waits_alone(reply, number, name):
            self.check_unasked(worker.unasked)
            return
        expected = self.model.adopt(number, name)
        if isinstance(expected, tuple):
            assert reply == self.wait(number, expected)
        else:
            self.check_adopted(reply, number, expected, suspect)
            assert reply.kv_len == kv or seq.begins_anew, "committed slots are lost"
        self.check_unasked(worker.unasked)

    def wait(self, number: int, expected: tuple[int, int]) -> Wait:
        needed, available = expected
        return Wait(sequence=sequence_id(number), needed_blocks=needed, available_blocks=available)

    def waits_alone(self, reply: Any, number: int, name: str) -> bool:
        """A suspect waits behind another that the worker runs."""
        other = self.model.suspect_before(self.model.seqs[number], name)
        if other is not None:
            told = self.model.wait_behind(number, name, other)
            assert reply == replace(self.wait(number, (0, 0)), for_prefix=told)
        return other is not None

    def check_adopted(self, reply: Any, number: int, row: list[int], suspect: bool) -> None:
        seq = self.model.seqs[number]
        assert isinstance(reply, Opened)
        assert (reply.kind, reply.epoch, reply.kv_len) == (OpenKind.ADOPTED, seq.epoch, seq.kv)
        assert (list(reply.token_ids), reply.alone) == (seq.tokens, suspect)
        assert list(reply.blocks) == self.refs(row)
        assert [(a.id, b.id, n) for a, b, n in reply.copies] == [seq.copy] * self.model.pending(seq)

    @precondition(lambda self: self.workers and self.model.seqs and self.now % 4 == 3)
    @rule(data=st.data())
    def hand_over(self, data: st.DataObject) -> None:
        """A living worker has stopped and dropped a sequence, or says so of what is not its own."""
        name, worker = self.some_worker(data)
        number = data.draw(st.sampled_from(sorted(self.model.seqs)))
        seq = self.model.seqs[number]
        epoch = data.draw(st.sampled_from([seq.epoch, *seq.held]))
        reply = worker.send(Fenced(sequence=sequence_id(number), epoch=epoch))
        assert isinstance(reply, Acked)
        assert (not reply.refusals) == self.model.fence(number, epoch, name, worker.now_ns)
        self.check_unasked(worker.unasked)

    @precondition(lambda self: self.now % 9 == 8)
    @rule()
    def restart(self) -> None:
        """A new daemon on the same bytes: living sessions and their sequences go on, orphans still wait."""
        epoch = self.state.boot_epoch
        self.state = KvState.recover(self.buffer, self.tick())
        assert self.state.boot_epoch == epoch + 1
        for worker in self.workers.values():
            worker.state = self.state
        blocks, sequences = self.state._parts.blocks, self.state._parts.sequences
        assert sorted(self.model.free) == sorted(blocks.free)
        assert sorted(self.model.cached) == sorted(blocks.cached)
        self.model.free, self.model.cached = list(blocks.free), list(blocks.cached)
        self.model.restart(self.by_slot(), self.numbers())
        for number, seq in self.model.seqs.items():
            in_order = sequences.by_id[sequence_id(number)].held_rows
            seq.held = {epoch: seq.held[epoch] for epoch in in_order}
