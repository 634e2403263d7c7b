"""Random but legal workers on one pool's state, with a ledger of who holds which block."""

import random
from dataclasses import replace

from kvmanager.layout import Buffer
from kvmanager.messages import (
    BlockRef,
    FinishReason,
    Granted,
    Opened,
    Reply,
    Retry,
    Revoke,
    SequenceId,
    SessionId,
)
from kvmanager.prefix import Hash, sha256
from kvmanager.state import KvState
from kvmanager.store import Hook
from tests.support.kv import Worker, buffer_for, pool_spec, sequence_id

SPEC = pool_spec(48, 2, max_model_len=40, max_num_seqs=8)
CHECK_EVERY = 1000


class Storm:
    """Random but legal workers, and a ledger of who holds which block."""

    def __init__(
        self, seed: int, buffer: Buffer | None = None, hook: Hook | None = None, digest: Hash = sha256
    ) -> None:
        self.random = random.Random(seed)
        self.state = KvState.create(buffer or buffer_for(SPEC), SPEC, 0, hook=hook, digest=digest)
        self.workers: dict[SessionId, Worker] = {}
        self.tokens: dict[int, list[int]] = {}  # running sequences' recorded ids
        self.owner: dict[int, Worker] = {}
        self.preempted: dict[int, Worker] = {}
        self.held: dict[SessionId, set[int]] = {}  # blocks a session may write
        self.content: dict[BlockRef, tuple[int, ...]] = {}  # sealed: all tokens up to the block's end
        self.born = self.now = self.calls = self.revokes = self.hits = self.forks = self.copies = (
            self.retries
        ) = 0

    def run(self, calls: int) -> None:
        while self.calls < calls:
            self.calls += 1
            self.now += 1
            self.act()
            if self.calls % CHECK_EVERY == 0:
                assert self.state.check_integrity() == []

    def act(self) -> None:
        if len(self.workers) < 2:
            return self.attach()
        worker = self.random.choice(list(self.workers.values()))
        worker.now_ns = self.now
        mine = [n for n, owner in self.owner.items() if owner is worker]
        dice = self.random.random()
        if dice < 0.0005:
            return self.kill(worker)
        if dice < 0.02:
            self.state.evict(self.random.randrange(4))
            return None
        if dice < 0.05:
            self.state.expire(self.now, ttl_ns=500)
            return None
        if dice < 0.2 or not mine:
            return self.open(worker)
        if dice < 0.25:
            return self.give_back(worker)
        if dice < 0.28:
            return self.fork(worker, self.random.choice(mine))
        if dice < 0.33:
            return self.end(self.random.choice(mine), preempt=self.random.random() < 0.5)
        return self.step(worker, self.random.choice(mine))

    def attach(self) -> None:
        self.born += 1
        worker = Worker(self.state, f"w{self.born}", self.now)
        self.workers[worker.session] = worker
        self.held[worker.session] = set()

    def kill(self, worker: Worker) -> None:
        """What it held is in quarantine until its end is proven."""
        del self.workers[worker.session]
        ended = self.state.lose(worker.session, self.now)
        mine = {n for n, w in (self.owner | self.preempted).items() if w is worker}
        assert {sequence_id(n) for n in mine} == set(ended)
        for number in mine:
            self.tokens.pop(number)
            self.owner.pop(number, None)
            self.preempted.pop(number, None)
        quarantined = [
            b.id for b in self.state.blocks("quarantined") if b.holder == worker.session.rstrip(b".").decode()
        ]
        assert set(quarantined) <= self.held[worker.session]
        self.listen([(o.session, o.reply) for o in self.state.outbox()])
        assert self.state.dead(worker.session) == len(quarantined)
        del self.held[worker.session]
        self.listen([(o.session, o.reply) for o in self.state.outbox()])

    def ask(self, worker: Worker, count: int, starving: bool) -> None:
        before = list(worker.float)
        worker.grant(count, starving)
        self.granted(worker, worker.float[len(before) :])
        self.listen(worker.unasked)

    def granted(self, worker: Worker, blocks: list[BlockRef]) -> None:
        for block in blocks:
            assert not any(block.id in held for held in self.held.values()), "granted twice"
            self.held[worker.session].add(block.id)

    def listen(self, said: list[tuple[SessionId, Reply]]) -> None:
        for session, reply in said:
            if isinstance(reply, Granted):
                self.workers[session].float += reply.blocks
                self.granted(self.workers[session], list(reply.blocks))
            elif isinstance(reply, Retry):
                self.retries += 1
            else:
                assert isinstance(reply, Revoke)
                self.revokes += 1
                self.end(self.number(reply.sequence), preempt=True)

    def number(self, sequence: SequenceId) -> int:
        return int.from_bytes(sequence, "big")

    def open(self, worker: Worker) -> None:
        again = [n for n, owner in self.preempted.items() if owner is worker]
        if again:
            number = again[0]
            ids = self.tokens[number]
        else:
            self.born += 1
            number = self.born
            ids = [self.random.choice((1, 1, 1, 2)) for _ in range(self.random.randrange(1, 25))]
        reply = worker.start(number, ids, self.random.randrange(1, 12))
        if isinstance(reply, Opened):
            self.preempted.pop(number, None)
            self.owner[number], self.tokens[number] = worker, list(ids)
            self.hits += reply.cached_len > 0
            shared = len(reply.blocks) - len(reply.copies)
            for source, destination, slots in reply.copies:
                assert self.content[source][: 2 * shared + slots] == tuple(ids[: 2 * shared + slots])
                self.granted(worker, [destination])
                self.copies += 1
            for i, block in enumerate(reply.blocks[:shared]):
                assert self.content[block] == tuple(ids[: 2 * i + 2]), "a hit on other tokens"

    def step(self, worker: Worker, number: int) -> None:
        """A chunk with its first token, or a decode step."""
        _, recorded, _, blocks = worker.open[number]
        capacity = self.state._parts.sequences.by_id[sequence_id(number)].token_capacity
        if recorded >= capacity:
            return self.end(number, preempt=False)
        lacking = -(-recorded // 2) - blocks - len(worker.float)
        if lacking > 0:
            self.ask(worker, lacking + self.random.randrange(3), self.random.random() < 0.8)
        if number in self.owner and -(-recorded // 2) - blocks <= len(worker.float):
            token = self.random.choice((1, 1, 2))
            worker.step(number, token)
            self.tokens[number].append(token)
            self.sealed(worker, number)
        return None

    def fork(self, worker: Worker, parent: int) -> None:
        """A new sequence from some place behind the parent's prompt; now and then it ends at once."""
        record = self.state._parts.sequences.by_id[sequence_id(parent)]
        if record.kv_len < record.prompt_len:
            return
        base = self.random.randrange(record.prompt_len, record.kv_len + 1)
        most = min(record.prompt_len + 12, SPEC.max_model_len) - base
        if most < 2:
            return
        at_once = self.random.random() < 0.2
        if not at_once and not worker.float:
            self.ask(worker, 1 + self.random.randrange(3), self.random.random() < 0.8)
        if parent not in self.owner or not (at_once or worker.float):
            return
        self.born += 1
        number, tokens = self.born, [self.random.choice((1, 1, 2)) for _ in range(1 if at_once else 2)]
        inherited = self.tokens[parent][:base]
        entry = worker.fork(number, parent, base, tokens, most + base - record.prompt_len)
        if at_once:
            entry = replace(entry, finish=FinishReason.STOP)
        refused = worker.commit(entry).refusals
        self.listen(worker.unasked)
        if refused:
            assert "room" in refused[0].message
            worker.float += entry.blocks
            return
        self.forks += 1
        if not at_once:
            self.owner[number], self.tokens[number] = worker, inherited + tokens
            self.sealed(worker, number)

    def sealed(self, worker: Worker, number: int) -> None:
        """Full blocks hold what they hold, and are nobody's to write any more."""
        parts = self.state._parts
        row = parts.rows.blocks[parts.sequences.by_id[sequence_id(number)].row]
        full = row[: worker.open[number][2] // 2]
        for i, block in enumerate(full):
            self.content.setdefault(parts.blocks.ref(block), tuple(self.tokens[number][: 2 * i + 2]))
        self.held[worker.session] -= set(full)

    def end(self, number: int, preempt: bool) -> None:
        worker = self.owner.pop(number)
        entry = worker.entry(
            number, preempted=preempt, finish=FinishReason.NONE if preempt else FinishReason.STOP
        )
        assert not worker.commit(entry).refusals
        said = worker.unasked
        before = {b.id for b in self.state.blocks("tail")}
        worker.release(number)
        self.held[worker.session] -= before - {b.id for b in self.state.blocks("tail")}
        if preempt:
            self.preempted[number] = worker
        else:
            del self.tokens[number]
        self.listen(said + worker.unasked)

    def give_back(self, worker: Worker) -> None:
        self.held[worker.session] -= {block.id for block in worker.float}
        worker.give_back()
        self.listen(worker.unasked)

    def stop(self) -> None:
        """0 leaked: with all workers gone and the cache dropped every block is free."""
        for worker in list(self.workers.values()):
            self.kill(worker)
        self.state.flush()
        assert self.state.check_integrity() == []
        assert self.state.counts().free == SPEC.num_blocks
