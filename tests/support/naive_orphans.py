"""The naive pool when workers and daemons end: orphans, who adopts them, and how they end otherwise."""

from tests.support.naive_blocks import Seq
from tests.support.naive_pool import NaivePool

MOST_DEATHS = 3


class MortalPool(NaivePool):
    """Orphans are in the order in which they lost their workers."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        super().__init__(num_blocks, block_size)
        self.orphans: list[int] = []

    def lose(self, session: str, now: int) -> list[int]:
        """The sequences that wait for another worker now."""
        self.lost.add(session)
        self.wants[session] = 0
        mine = [n for n, s in self.seqs.items() if s.owner == session]
        waiting = [number for number in mine if self.outlives(number, now)]
        for block in self.floats(session):
            self.blocks[block].state = "quarantined"
        return waiting

    def outlives(self, number: int, now: int) -> bool:
        """Whether the sequence goes on without its worker."""
        seq = self.seqs[number]
        if seq.state == "open" and not seq.stepped:
            seq.deaths += 1
        if seq.deaths == MOST_DEATHS:
            self.stop(number, "finished")
        if seq.state != "finished":
            self.orphan(number, now, quarantine=True)
            return True
        self.end_rows(number, quarantine=True)
        seq.owner = ""
        return False

    def end_rows(self, number: int, quarantine: bool) -> None:
        for epoch in list(self.seqs[number].held):
            self.release(number, epoch, quarantine)

    def orphan(self, number: int, now: int, *, quarantine: bool) -> None:
        """`quarantine`: who ran it may still write."""
        seq = self.seqs[number]
        self.end_rows(number, quarantine)
        for block in seq.row[seq.kv // self.size :]:
            b = self.blocks[block]
            b.state, b.holder = "quarantined", b.holder if quarantine else ""
        seq.begins_anew = seq.state == "preempted"
        seq.state, seq.owner, seq.revoked, seq.since = "orphaned", "", False, now
        self.orphans.append(number)

    def fence(self, number: int, epoch: int, session: str, now: int) -> bool:
        """A living worker says that it stopped; whether it had anything to stop."""
        seq = self.seqs[number]
        if seq.state in ("open", "preempted") and (seq.owner, seq.epoch) == (session, epoch):
            self.orphan(number, now, quarantine=False)
        elif seq.owner == session and epoch in seq.held:
            self.release(number, epoch)
        else:
            return False
        return True

    def suspect_before(self, seq: Seq, session: str) -> int | None:
        """Those of whom workers died, perhaps, are run one at a time: who is before this one."""
        if not seq.deaths:
            return None
        others = {n: s for n, s in self.seqs.items() if s.state == "open" and s.owner == session}
        return next((n for n, s in others.items() if s.deaths and not s.stepped), None)

    def wait_behind(self, number: int, session: str, other: int) -> bool:
        """Until the other has committed anything; whether Retry will say so."""
        leader = self.seqs[other]
        if leader.revoked or leader.tip is None:
            return False
        self.add_follower((other, leader.epoch), leader.kv + 1, session, number)
        return True

    def adopt(self, number: int, session: str) -> tuple[int, int] | list[int]:
        """The new row; (needed, available) while it has to wait."""
        seq = self.seqs[number]
        seq.owner = session
        reply = self.open(number, seq) if seq.begins_anew else self.renew(seq)
        assert reply is not None
        if isinstance(reply, tuple):
            seq.owner = ""
            return reply
        seq.state, seq.target, seq.stepped = "open", self.blocks_of(seq), False
        seq.epoch += 1
        self.orphans.remove(number)
        return reply

    def renew(self, seq: Seq) -> tuple[int, int] | list[int]:
        """The sealed blocks again; the old tail if nobody else can write it, else a fresh one."""
        whole, slots = divmod(seq.kv, self.size)
        kept, rest = seq.row[:whole], seq.row[whole:]
        clean = slots > 0 and not self.blocks[rest[0]].holder
        if slots and not clean and not self.available():
            return 1, 0
        seq.row = kept
        if clean:
            b = self.blocks[rest[0]]
            b.state, b.holder = "tail", seq.owner
            seq.row = [*kept, rest.pop(0)]
        elif slots:
            self.order_copy(seq, seq.copy[0] if seq.copy else rest[0], slots)
        for block in rest:
            self.let_go(block)
        return seq.row

    def abandon(self, before: int) -> int:
        """Nobody has asked for these since; how many."""
        old = [number for number in self.orphans if self.seqs[number].since < before]
        for number in old:
            self.orphans.remove(number)
            seq = self.seqs[number]
            row, seq.row, seq.state = seq.row, [], "finished"
            if seq.copy:
                self.end_copy(seq)
            for block in reversed(row):
                self.let_go(block)
        return len(old)

    def dead(self, session: str) -> int:
        """Proof: what is still referred to is nobody's to write, the rest is free."""
        gone = [i for i, b in enumerate(self.blocks) if b.state == "quarantined" and b.holder == session]
        for block in gone:
            self.blocks[block].holder = ""
            self.let_go(block)
        return sum(self.blocks[block].state == "free" for block in gone)

    def restart(self, sessions: list[str], numbers: list[int]) -> None:
        """A new daemon: what the records do not say is forgotten. Both lists are in the order of records."""
        self.wants, self.waits = dict.fromkeys(sessions, 0), {}
        self.seqs = {number: self.seqs[number] for number in numbers}
        self.orphans = [number for number in numbers if self.seqs[number].state == "orphaned"]
        for seq in self.seqs.values():
            seq.revoked, seq.stepped, seq.target = False, not seq.deaths, self.blocks_of(seq)
            row = seq.row if seq.state in ("open", "orphaned") else seq.held.get(seq.epoch, [])
            seq.tip = self.tip([block for block in row if self.blocks[block].state == "sealed"])
