"""The workers of a storm: they attach, are lost, write late, are proven dead, hand over; daemons end under them."""

import random
from collections import Counter

from kvmanager.layout import Buffer
from kvmanager.messages import Acked, Fenced, FinishReason, Granted, Reply, Retry, Revoke, SessionId
from kvmanager.prefix import Hash, sha256
from kvmanager.state import KvState
from kvmanager.store import Hook
from tests.support.kv import Worker, buffer_for, pool_spec, sequence_id
from tests.support.ledger import Ledger, Row

SPEC = pool_spec(48, 2, max_model_len=40, max_num_seqs=8)
MOST_DEATHS = 3


class Crew:
    """The ledger holds what must be true of blocks; this knows who lives and who is suspected."""

    def __init__(
        self, seed: int, buffer: Buffer | None = None, hook: Hook | None = None, digest: Hash = sha256
    ) -> None:
        self.random = random.Random(seed)
        self.buffer, self.hook, self.digest = buffer or buffer_for(SPEC), hook, digest
        self.state = KvState.create(self.buffer, SPEC, 0, hook=hook, digest=digest)
        self.ledger = Ledger(self.state)
        self.workers: dict[SessionId, Worker] = {}
        self.zombies: dict[SessionId, list[tuple[int, int]]] = {}  # what a lost one still writes
        self.preempted: dict[int, Row] = {}
        self.ended: list[Row] = []  # closed or preempted; steps that name them may be on their way
        self.untried: set[int] = set()  # of these nothing was committed by the worker that has them
        self.deaths = Counter[int]()
        self.since: dict[int, int] = {}  # when an orphan lost its worker
        self.happened = Counter[str]()
        self.born = self.now = 0

    # ------------------------------------------------------------------------------- ends

    def attach(self) -> None:
        self.born += 1
        worker = Worker(self.state, f"w{self.born}", self.now)
        self.workers[worker.session] = worker
        self.ledger.writable[worker.session] = set()

    def kill(self, worker: Worker) -> None:
        """What it could write is in quarantine until its end is proven, and it goes on writing there."""
        session, ledger = worker.session, self.ledger
        del self.workers[session]
        self.zombies[session] = ledger.unfinished(session)
        orphans = self.bereave(session)
        assert set(self.state.lose(session, self.now)) == {sequence_id(n) for n in orphans}
        name = session.rstrip(b".").decode()
        quarantined = {block.id for block in self.state.blocks("quarantined") if block.holder == name}
        assert quarantined == ledger.writable[session]
        self.hear()
        ledger.check()
        if len(self.zombies) > 2:
            self.bury(next(iter(self.zombies)))

    def bereave(self, session: SessionId) -> list[int]:
        """What the loss makes of the session's rows: the sequences that wait for another worker now."""
        running = [row for row in self.ledger.running.values() if row.session == session]
        preempted = [row for row in self.preempted.values() if row.session == session]
        for row in [row for row in self.ended if row.session == session and row not in preempted]:
            self.ended.remove(row)
            self.ledger.ended(row)
        for row in running:
            self.deaths[row.number] += row.number in self.untried
        poisonous = [row for row in running if self.deaths[row.number] == MOST_DEATHS]
        for row in poisonous:
            self.ledger.ended(row)
            self.forget(row.number)
        orphans = [row for row in (*running, *preempted) if row not in poisonous]
        for row in orphans:
            self.orphan(row)
        self.happened["poisoned"] += len(poisonous)
        return [row.number for row in orphans]

    def orphan(self, row: Row) -> None:
        row.begins_anew = self.preempted.pop(row.number, None) is not None
        self.ended = [other for other in self.ended if other is not row]
        self.ledger.orphaned(row)
        self.since[row.number] = self.now

    def forget(self, number: int) -> None:
        """It has ended."""
        self.untried.discard(number)
        self.deaths.pop(number, None)
        self.since.pop(number, None)

    def bury(self, session: SessionId) -> None:
        """Proof: it will not write again."""
        del self.zombies[session]
        assert self.state.dead(session) == self.ledger.buried(session)
        self.hear()

    def hand_over(self, worker: Worker, row: Row) -> None:
        """The worker has stopped, dropped all of a sequence, and says so: nothing of it is in quarantine."""
        reply = worker.send(Fenced(sequence=sequence_id(row.number), epoch=row.epoch))
        assert isinstance(reply, Acked)
        assert not reply.refusals
        for old in [old for old in self.ended if old.number == row.number]:
            self.ended.remove(old)
            self.ledger.released(old)
        if row.number not in self.preempted:
            self.ledger.stopped(row)
        self.orphan(row)
        self.happened["handed over"] += 1
        self.listen(worker.unasked)

    def expire(self) -> None:
        """Records that ended long ago are forgotten; orphans that nobody adopted end."""
        patience = self.random.choice((10_000, 400))
        old = [n for n, since in self.since.items() if since < self.now - patience]
        for number in old:
            self.ledger.ended(self.ledger.orphans[number])
            self.forget(number)
        self.state.expire(self.now, ttl_ns=500, orphan_ttl_ns=patience)
        for number in old:
            assert self.state.read_record(sequence_id(number)).finish == FinishReason.CANCELLED
        self.happened["abandoned"] += len(old)
        self.hear()

    def restart(self) -> None:
        """A new daemon on the same bytes; workers go on."""
        self.happened["evicted"] += self.state.evictions
        self.state.close()
        self.state = KvState.recover(self.buffer, self.now, hook=self.hook, digest=self.digest)
        self.ledger.state = self.state
        for worker in self.workers.values():
            worker.state = self.state
        self.untried = {number for number in self.untried if self.deaths[number]}
        self.happened["restarts"] += 1
        self.ledger.check()

    def write_late(self, worker: Worker) -> None:
        """A step of a row that has ended, or of a lost worker, is done only now; or a lost worker is gone at last."""
        for writes in self.zombies.values():
            self.ledger.late(writes)
        if self.zombies and self.random.random() < 0.1:
            self.bury(self.random.choice(list(self.zombies)))
        blocks = {block for row in self.ended for block in row.blocks}
        self.ledger.late(w for w in self.ledger.unfinished(worker.session) if w[0] in blocks)

    # ------------------------------------------------------------------------------- what the daemon says

    def hear(self) -> None:
        self.listen([(out.session, out.reply) for out in self.state.outbox()])

    def listen(self, said: list[tuple[SessionId, Reply]]) -> None:
        for session, reply in said:
            if isinstance(reply, Granted):
                self.workers[session].float += reply.blocks
                self.ledger.granted(session, reply.blocks)
            elif isinstance(reply, Retry):
                self.happened["retries"] += 1
            else:
                assert isinstance(reply, Revoke)
                self.happened["revokes"] += 1
                self.end(int.from_bytes(reply.sequence, "big"), preempt=True)

    def end(self, number: int, preempt: bool) -> None:
        """Closed, or preempted; its row is held until it is released."""
        row = self.ledger.running.pop(number)
        worker = self.workers[row.session]
        reason = FinishReason.NONE if preempt else FinishReason.STOP
        assert not worker.commit(worker.entry(number, preempted=preempt, finish=reason)).refusals
        if preempt:
            self.preempted[number] = row
        else:
            self.forget(number)
        self.ended.append(row)
        self.listen(worker.unasked)

    def stop(self) -> None:
        """0 leaked: with all workers gone, all orphans given up and the cache dropped every block is free."""
        for worker in list(self.workers.values()):
            self.kill(worker)
        for session in list(self.zombies):
            self.bury(session)
        self.state.expire(self.now + 1, orphan_ttl_ns=0)
        assert self.state.live_sequences == 0
        self.state.flush()
        assert self.state.check_integrity() == []
        assert self.state.counts().free == SPEC.num_blocks
