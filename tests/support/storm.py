"""Random but legal workers on one pool's state: they open, write, fork, close, die, write late and adopt."""

from collections.abc import Sequence
from dataclasses import replace

from kvmanager.messages import CommitEntry, FinishReason, Opened, OpenKind, Wait
from tests.support.crew import SPEC, Crew
from tests.support.kv import Worker, sequence_id
from tests.support.ledger import Row

CHECK_EVERY = 1000  # calls, of the metadata
COMPARE_EVERY = 3  # calls, of all slots and references; those of the row at hand at each commit


class Storm(Crew):
    """Decides what happens next."""

    calls = 0

    def run(self, calls: int) -> None:
        while self.calls < calls:
            self.calls += 1
            self.now += 1
            self.act()
            if self.calls % COMPARE_EVERY == 0:
                self.ledger.check()
            if self.calls % CHECK_EVERY == 0:
                assert self.state.check_integrity() == []

    @property
    def evictions(self) -> int:
        """Of all daemons."""
        return self.happened["evicted"] + self.state.evictions

    def act(self) -> None:
        if len(self.workers) < 2:
            return self.attach()
        worker = self.random.choice(list(self.workers.values()))
        worker.now_ns = self.now
        mine = [n for n, row in self.ledger.running.items() if row.session == worker.session]
        dice = self.random.random()
        if dice < 0.0205:
            return self.happen(worker, mine, dice)
        if dice < 0.05:
            return self.expire()
        if dice < 0.07:
            return self.write_late(worker)
        if dice < 0.11 and self.ledger.orphans:
            return self.adopt(worker)
        if dice < 0.19:
            return self.release(worker)
        if dice < 0.23:
            return self.give_back(worker)
        if dice < 0.33 or not mine:
            return self.open(worker)
        if dice < 0.43:
            return self.fork(worker)
        if dice < 0.5:
            return self.end(self.random.choice(mine), preempt=self.random.random() < 0.4)
        return self.step(worker, self.random.choice(mine))

    def happen(self, worker: Worker, mine: list[int], dice: float) -> None:
        """What happens seldom."""
        if dice < 0.001:
            self.kill(worker)
        elif dice < 0.0015:
            self.restart()
        elif dice < 0.0035 and mine:
            self.hand_over(worker, self.ledger.running[self.random.choice(mine)])
        elif dice < 0.004 and (
            mine := [row for row in self.preempted.values() if row.session == worker.session]
        ):
            self.hand_over(worker, self.random.choice(mine))
        else:
            self.state.evict(self.random.randrange(4))

    # ------------------------------------------------------------------------------- blocks

    def ask(self, worker: Worker, count: int, starving: bool) -> None:
        before = len(worker.float)
        worker.grant(count, starving)
        self.ledger.granted(worker.session, worker.float[before:])
        self.listen(worker.unasked)

    def give_back(self, worker: Worker) -> None:
        self.ledger.writable[worker.session] -= {block.id for block in worker.float}
        worker.give_back()
        self.listen(worker.unasked)

    # ------------------------------------------------------------------------------- sequences

    def some_token(self) -> int:
        return self.random.choice((1, 1, 2))

    def open(self, worker: Worker) -> None:
        again = [row for row in self.preempted.values() if row.session == worker.session]
        if again and self.random.random() < 0.8:
            row = self.random.choice(again)
            self.begin(worker, row.number, list(row.tokens), row.tokens)
        else:
            self.born += 1
            count = self.random.randrange(1, 25)
            tokens = [self.random.choice((1, 1, 1, 2)) for _ in range(count)]
            self.begin(worker, self.born, tokens, tokens)

    def begin(self, worker: Worker, number: int, tokens: list[int], told: Sequence[int]) -> None:
        """A sequence without KV: new, preempted, or an orphan that begins anew. `told`: those of its tokens that the
        message has."""
        suspects = self.suspects(worker) if self.deaths[number] else []
        reply = worker.start(number, told, self.random.randrange(1, 12))
        if suspects:
            assert isinstance(reply, Wait), "two suspects at once"
        elif isinstance(reply, Opened):
            self.preempted.pop(number, None)
            if reply.kind != OpenKind.RESUMED:
                self.untried.add(number)
            if self.ledger.orphans.pop(number, None):
                self.since.pop(number)
            self.happened["hits"] += reply.cached_len > 0
            self.happened["copies"] += len(reply.copies)
            blocks = [block.id for block in reply.blocks]
            row = Row(worker.session, number, reply.epoch, tokens, blocks, reply.kv_len)
            self.ledger.opened(row, reply.blocks, reply.copies)
            assert reply.alone == (self.deaths[number] > 0)
        self.listen(worker.unasked)

    def suspects(self, worker: Worker) -> list[int]:
        """Those that this worker runs and has not committed anything of, and of which others died, perhaps."""
        mine = [row.number for row in self.ledger.running.values() if row.session == worker.session]
        return [number for number in mine if number in self.untried and self.deaths[number]]

    def adopt(self, worker: Worker) -> None:
        """Asked with the prompt, or with more of the tokens; now and then its last deed."""
        row = self.random.choice(list(self.ledger.orphans.values()))
        least = self.state._parts.sequences.by_id[sequence_id(row.number)].prompt_len
        told = row.tokens[: self.random.randrange(least, len(row.tokens) + 1)]
        if row.begins_anew:
            self.begin(worker, row.number, list(row.tokens), told)
        else:
            self.take_over(worker, row, told)
            self.listen(worker.unasked)
        doomed = 0.4 if self.deaths[row.number] else 0.15
        if row.number in self.ledger.running and self.random.random() < doomed:
            self.kill(worker)

    def take_over(self, worker: Worker, row: Row, told: list[int]) -> None:
        suspects = self.suspects(worker) if self.deaths[row.number] else []
        reply = worker.start(row.number, told)
        if suspects or isinstance(reply, Wait):
            assert isinstance(reply, Wait), "two suspects at once"
            assert (reply.needed_blocks, reply.available_blocks) == (int(not suspects), 0)
            self.happened["waits alone" if suspects else "waits"] += 1
            return
        assert isinstance(reply, Opened)
        assert reply.kind == OpenKind.ADOPTED
        assert reply.alone == (self.deaths[row.number] > 0)
        blocks = [block.id for block in reply.blocks]
        new = Row(worker.session, row.number, reply.epoch, list(reply.token_ids), blocks, reply.kv_len)
        self.happened["adopted"] += 1
        self.happened["tails copied"] += len(reply.copies)
        self.happened["copied again"] += len(reply.copies) if row.order else 0
        self.happened["tails kept"] += not reply.copies and reply.kv_len % 2
        self.ledger.adopted(new, reply.copies)
        self.untried.add(row.number)
        del self.since[row.number]

    def step(self, worker: Worker, number: int) -> None:
        """A chunk with its first token, or a decode step."""
        row = self.ledger.running[number]
        if len(row.tokens) >= self.state._parts.sequences.by_id[sequence_id(number)].token_capacity:
            return self.end(number, preempt=False)
        need = -(-len(row.tokens) // 2) - len(row.blocks)
        if need > len(worker.float):
            self.ask(worker, need - len(worker.float) + self.random.randrange(3), self.random.random() < 0.8)
        if number in self.ledger.running and need <= len(worker.float):
            entry = worker.entry(number, [self.some_token()])
            self.ledger.compute(row, entry)
            row.append(entry.token_ids)
            assert not worker.commit(entry).refusals
            self.ledger.committed(row, entry)
            self.untried.discard(number)
            self.deaths.pop(number, None)
            self.listen(worker.unasked)
        return None

    def fork(self, worker: Worker) -> None:
        """A new sequence from any place behind a parent's prompt; the parent may have ended, if its row is there."""
        parent = self.random.choice([row for row in self.ledger.rows if row.session == worker.session])
        record = self.state._parts.sequences.by_id[sequence_id(parent.number)]
        if parent.kv < record.prompt_len:
            return None
        base = self.random.randrange(record.prompt_len, parent.kv + 1)
        base_kv = base if self.random.random() < 0.7 else self.random.randrange(base + 1)
        most = min(record.prompt_len + 12, SPEC.max_model_len) - base
        need = -(-(base + 1) // 2) - base_kv // 2
        if most < 2:
            return None
        if self.random.random() < 0.1:
            return self.fork_and_finish(worker, parent, base, most + base - record.prompt_len)
        if need > len(worker.float):
            self.ask(worker, need - len(worker.float), self.random.random() < 0.8)
        if need <= len(worker.float):
            self.fork_and_run(worker, parent, base, base_kv, most + base - record.prompt_len)
        return None

    def fork_and_run(self, worker: Worker, parent: Row, base: int, base_kv: int, most: int) -> None:
        self.born += 1
        tokens = [self.some_token(), self.some_token()]
        entry = worker.fork(
            self.born, parent.number, base, tokens, most, base_kv=base_kv, parent_epoch=parent.epoch
        )
        child = Row(
            worker.session, self.born, 1, parent.tokens[:base], parent.blocks[: base_kv // 2], base_kv
        )
        child.append(tokens)
        if base_kv % 2:
            self.ledger.copy_tail(parent, child, entry.blocks[0])
        self.ledger.compute(child, entry)
        if not self.told(worker, entry):
            worker.float += entry.blocks
            return
        self.happened["forks"] += 1
        self.happened["held forks"] += parent in self.ended
        self.ledger.opened(child, [])
        self.ledger.committed(child, entry)
        self.listen(worker.unasked)

    def fork_and_finish(self, worker: Worker, parent: Row, base: int, most: int) -> None:
        """A record without a row."""
        self.born += 1
        token = [self.some_token()]
        entry = worker.fork(self.born, parent.number, base, token, most, parent_epoch=parent.epoch)
        if self.told(worker, replace(entry, finish=FinishReason.STOP)):
            self.happened["forks"] += 1
            assert self.state.read_record(sequence_id(self.born)).token_ids == parent.tokens[:base] + token
        self.listen(worker.unasked)

    def told(self, worker: Worker, entry: CommitEntry) -> bool:
        """False when a fork's record finds no room."""
        refused = worker.commit(entry).refusals
        assert all("room" in refusal.message for refusal in refused)
        return not refused

    def release(self, worker: Worker) -> None:
        """No step on its way names these rows any more: one, or all that the worker has."""
        mine = [row for row in self.ended if row.session == worker.session]
        if mine and self.random.random() < 0.5:
            mine = [self.random.choice(mine)]
        for row in mine:
            self.ended.remove(row)
            worker.release(row.number, row.epoch)
            self.ledger.released(row)
            self.listen(worker.unasked)
