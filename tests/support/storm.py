"""Random but legal workers on one pool's state: they open, write, fork, close, die and write late."""

import random
from dataclasses import replace

from kvmanager.layout import Buffer
from kvmanager.messages import CommitEntry, FinishReason, Granted, Opened, Reply, Revoke, SessionId
from kvmanager.prefix import Hash, sha256
from kvmanager.state import KvState
from kvmanager.store import Hook
from tests.support.kv import Worker, buffer_for, pool_spec, sequence_id
from tests.support.ledger import Ledger, Row

SPEC = pool_spec(48, 2, max_model_len=40, max_num_seqs=8)
CHECK_EVERY = 1000  # calls, of the metadata
COMPARE_EVERY = 3  # calls, of all slots and references; those of the row at hand at each commit


class Storm:
    """The ledger holds what must be true; this decides what happens next."""

    def __init__(
        self, seed: int, buffer: Buffer | None = None, hook: Hook | None = None, digest: Hash = sha256
    ) -> None:
        self.random = random.Random(seed)
        self.state = KvState.create(buffer or buffer_for(SPEC), SPEC, 0, hook=hook, digest=digest)
        self.ledger = Ledger(self.state)
        self.running = self.ledger.running
        self.workers: dict[SessionId, Worker] = {}
        self.zombies: dict[SessionId, list[tuple[int, int]]] = {}  # what a lost one still writes
        self.preempted: dict[int, Row] = {}
        self.ended: list[Row] = []  # closed or preempted; steps that name them may be on their way
        self.born = self.now = self.calls = self.revokes = self.hits = self.forks = self.held_forks = 0

    def run(self, calls: int) -> None:
        while self.calls < calls:
            self.calls += 1
            self.now += 1
            self.act()
            if self.calls % COMPARE_EVERY == 0:
                self.ledger.check()
            if self.calls % CHECK_EVERY == 0:
                assert self.state.check_integrity() == []

    def act(self) -> None:
        if len(self.workers) < 2:
            return self.attach()
        worker = self.random.choice(list(self.workers.values()))
        worker.now_ns = self.now
        mine = [n for n, row in self.running.items() if row.session == worker.session]
        dice = self.random.random()
        if dice < 0.0005:
            return self.kill(worker)
        if dice < 0.01:
            self.state.evict(self.random.randrange(4))
            return None
        if dice < 0.04:
            self.state.expire(self.now, ttl_ns=500)
            return None
        if dice < 0.06:
            return self.write_late(worker)
        if dice < 0.18:
            return self.release(worker)
        if dice < 0.22:
            return self.give_back(worker)
        if dice < 0.32 or not mine:
            return self.open(worker)
        if dice < 0.42:
            return self.fork(worker)
        if dice < 0.5:
            return self.end(self.random.choice(mine), preempt=self.random.random() < 0.4)
        return self.step(worker, self.random.choice(mine))

    # ------------------------------------------------------------------------------- workers

    def attach(self) -> None:
        self.born += 1
        worker = Worker(self.state, f"w{self.born}", self.now)
        self.workers[worker.session] = worker
        self.ledger.writable[worker.session] = set()

    def kill(self, worker: Worker) -> None:
        """What it could write is in quarantine until its end is proven, and it goes on writing there."""
        session = worker.session
        del self.workers[session]
        self.zombies[session] = self.ledger.unfinished(session)
        mine = {
            row.number for row in (*self.running.values(), *self.preempted.values()) if row.session == session
        }
        assert {sequence_id(n) for n in mine} == set(self.state.lose(session, self.now))
        name = session.rstrip(b".").decode()
        quarantined = {block.id for block in self.state.blocks("quarantined") if block.holder == name}
        assert quarantined == self.ledger.writable[session]
        self.ledger.lost(session)
        self.running = self.ledger.running
        self.preempted = {n: row for n, row in self.preempted.items() if row.session != session}
        self.ended = [row for row in self.ended if row.session != session]
        self.hear()
        self.ledger.check()
        if len(self.zombies) > 2:
            self.bury(next(iter(self.zombies)))

    def bury(self, session: SessionId) -> None:
        """Proof: it will not write again."""
        del self.zombies[session]
        assert self.state.dead(session) == len(self.ledger.writable.pop(session))
        self.hear()

    def write_late(self, worker: Worker) -> None:
        """A step of a row that has ended, or of a lost worker, is done only now; or a lost worker is gone at last."""
        for writes in self.zombies.values():
            self.ledger.late(writes)
        if self.zombies and self.random.random() < 0.1:
            self.bury(self.random.choice(list(self.zombies)))
        blocks = {block for row in self.ended for block in row.blocks}
        self.ledger.late(w for w in self.ledger.unfinished(worker.session) if w[0] in blocks)

    # ------------------------------------------------------------------------------- blocks

    def ask(self, worker: Worker, count: int, starving: bool) -> None:
        before = len(worker.float)
        worker.grant(count, starving)
        self.ledger.granted(worker.session, worker.float[before:])
        self.listen(worker.unasked)

    def hear(self) -> None:
        self.listen([(out.session, out.reply) for out in self.state.outbox()])

    def listen(self, said: list[tuple[SessionId, Reply]]) -> None:
        for session, reply in said:
            if isinstance(reply, Granted):
                self.workers[session].float += reply.blocks
                self.ledger.granted(session, reply.blocks)
            else:
                assert isinstance(reply, Revoke)
                self.revokes += 1
                self.end(int.from_bytes(reply.sequence, "big"), preempt=True)

    def give_back(self, worker: Worker) -> None:
        self.ledger.writable[worker.session] -= {block.id for block in worker.float}
        worker.give_back()
        self.listen(worker.unasked)

    # ------------------------------------------------------------------------------- sequences

    def some_token(self) -> int:
        return self.random.choice((1, 1, 2))

    def open(self, worker: Worker) -> None:
        again = [n for n, row in self.preempted.items() if row.session == worker.session]
        if again:
            number, tokens = again[0], list(self.preempted[again[0]].tokens)
        else:
            self.born += 1
            number, tokens = (
                self.born,
                [self.random.choice((1, 1, 1, 2)) for _ in range(self.random.randrange(1, 25))],
            )
        reply = worker.start(number, tokens, self.random.randrange(1, 12))
        if isinstance(reply, Opened):
            self.preempted.pop(number, None)
            self.hits += reply.cached_len > 0
            row = Row(worker.session, number, reply.epoch, tokens, [b.id for b in reply.blocks], reply.kv_len)
            self.ledger.opened(row, reply.blocks)

    def step(self, worker: Worker, number: int) -> None:
        """A chunk with its first token, or a decode step."""
        row = self.running[number]
        if len(row.tokens) >= self.state._parts.sequences.by_id[sequence_id(number)].token_capacity:
            return self.end(number, preempt=False)
        need = -(-len(row.tokens) // 2) - len(row.blocks)
        if need > len(worker.float):
            self.ask(worker, need - len(worker.float) + self.random.randrange(3), self.random.random() < 0.8)
        if number in self.running and need <= len(worker.float):
            entry = worker.entry(number, [self.some_token()])
            self.ledger.compute(row, entry)
            row.append(entry.token_ids)
            assert not worker.commit(entry).refusals
            self.ledger.committed(row, entry)
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
        self.forks += 1
        self.held_forks += parent in self.ended
        self.ledger.opened(child, [])
        self.ledger.committed(child, entry)
        self.listen(worker.unasked)

    def fork_and_finish(self, worker: Worker, parent: Row, base: int, most: int) -> None:
        """A record without a row."""
        self.born += 1
        token = [self.some_token()]
        entry = worker.fork(self.born, parent.number, base, token, most, parent_epoch=parent.epoch)
        if self.told(worker, replace(entry, finish=FinishReason.STOP)):
            self.forks += 1
            assert self.state.read_record(sequence_id(self.born)).token_ids == parent.tokens[:base] + token
        self.listen(worker.unasked)

    def told(self, worker: Worker, entry: CommitEntry) -> bool:
        """False when a fork's record finds no room."""
        refused = worker.commit(entry).refusals
        assert all("room" in refusal.message for refusal in refused)
        return not refused

    def end(self, number: int, preempt: bool) -> None:
        """Closed, or preempted; its row is held until `release`."""
        row = self.running.pop(number)
        worker = self.workers[row.session]
        reason = FinishReason.NONE if preempt else FinishReason.STOP
        assert not worker.commit(worker.entry(number, preempted=preempt, finish=reason)).refusals
        if preempt:
            self.preempted[number] = row
        self.ended.append(row)
        self.listen(worker.unasked)

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

    def stop(self) -> None:
        """0 leaked: with all workers gone and the cache dropped every block is free."""
        for worker in list(self.workers.values()):
            self.kill(worker)
        for session in list(self.zombies):
            self.bury(session)
        self.state.flush()
        assert self.state.check_integrity() == []
        assert self.state.counts().free == SPEC.num_blocks
