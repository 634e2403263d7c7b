"""What workers ask of a pool, as plainly as possible: grants, opens, commits, forks, releases."""

from typing import Any

from tests.support.naive_blocks import NaiveBlocks, Seq


class NaivePool(NaiveBlocks):
    """One pool whose workers live."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        super().__init__(num_blocks, block_size)
        self.wants: dict[str, int] = {}  # in the order of sessions
        self.waits: dict[tuple[int, int], list[tuple[int, int, str, int]]] = {}  # by leader: until, turn, who
        self.turns = 0
        self.lost: set[str] = set()

    def leader(self, seq: Seq) -> tuple[int, int] | None:
        """Whom to wait for, and how many of its slots: who computes the most of what is wanted behind the hits."""
        hits, whole = self.find(seq.tenant, seq.tokens), (len(seq.tokens) - 1) // self.size * self.size
        parent = (hits[-1], self.blocks[hits[-1]].generation) if hits else "root"
        start, found = len(hits) * self.size, []
        for number, other in self.seqs.items():
            ready = other.state == "open" and not other.revoked and other.rank[0] >= seq.rank[0]
            here = (other.tenant, other.tip, other.kv // self.size) == (seq.tenant, parent, len(hits))
            until = start
            while until < whole and other.tokens[start : until + 1] == seq.tokens[start : until + 1]:
                until += 1
            until -= until % self.size
            if ready and here and until > start:
                found.append((until, other.kv, number))
        return (max(found)[2], max(found)[0]) if found else None

    def grant(self, session: str, count: int, starving: bool) -> list[int]:
        room = max(1, len(self.blocks) // 8) - len(self.floats(session))
        count = count if starving else min(count, max(0, room))
        taken = self.take(session, min(count, self.grantable()))
        self.wants[session] = count if starving and not taken else 0
        return taken

    def serve(self) -> list[tuple[str, Any]]:
        """Unasked messages: (session, blocks) or (session, sequence to give back)."""
        said: list[tuple[str, Any]] = []
        for session, want in self.wants.items():
            if want and self.grantable():
                said.append((session, self.take(session, min(want, self.grantable()))))
                self.wants[session] = 0
            elif want:
                running = {n: s for n, s in self.seqs.items() if s.state == "open"}
                waiting = any(s.held for s in self.seqs.values()) or any(s.revoked for s in running.values())
                if len(running) > 1 and not waiting:
                    victim = min(running, key=lambda n: running[n].rank)
                    running[victim].revoked = True
                    said.append((running[victim].owner, victim))
        return said

    def retry(self) -> list[tuple[str, int]]:
        """Who is to ask again: (session, sequence) of those whose leader came far enough, or leads nobody any more."""
        said = []
        for of, waiting in list(self.waits.items()):
            seq = self.seqs.get(of[0])
            leads = seq is not None and seq.state == "open" and seq.epoch == of[1] and not seq.revoked
            leads = leads and seq is not None and seq.tip is not None
            kv = seq.kv if seq is not None and leads else 10**9
            said += [
                (who, number) for until, _, who, number in waiting if until <= kv and who not in self.lost
            ]
            self.waits[of] = [one for one in waiting if one[0] > kv]
            if not self.waits[of]:
                del self.waits[of]
        return said

    def open(self, number: int, seq: Seq) -> tuple[int, int] | list[int] | None:
        """The cached blocks, (needed, available) while it has to wait, or None for another's prefix. A new sequence, or
        one without KV: a preempted one, or an orphan, which waits for nobody's prefix."""
        led = None if seq.state == "orphaned" else self.leader(seq)
        if led is not None:
            self.add_follower((led[0], self.seqs[led[0]].epoch), led[1], seq.owner, number)
            return None
        hits = self.find(seq.tenant, seq.tokens)
        pending = self.blocks_of(seq) - len(hits) + 1 + self.reserve() - (seq.state == "orphaned")
        pending += sum(max(0, s.target - len(s.row)) for s in self.seqs.values() if s.state == "open")
        unused = sum(hit in self.cached for hit in hits)
        available = self.available() + len(self.floats(seq.owner)) - unused
        if pending > available:
            return pending, max(0, available)
        begin = None if seq.copy else self.begin(seq, hits)
        kept = begin is not None and begin[0] in self.cached
        if pending > available - kept or self.grantable() - unused - kept < 2:
            begin = None
        self.cached = [block for block in self.cached if block not in hits]
        seq.row, seq.kv, seq.target, seq.state = hits, len(hits) * self.size, self.blocks_of(seq), "open"
        seq.tip = self.tip(hits)
        self.seqs[number] = seq
        if begin is None:
            return hits
        source, slots = begin
        if kept:
            self.cached.remove(source)
        self.order_copy(seq, source, slots)
        seq.kv += slots
        return seq.row

    def add_follower(self, leader: tuple[int, int], until: int, session: str, number: int) -> None:
        self.turns += 1
        waiting = self.waits.setdefault(leader, [])
        waiting.append((until, self.turns, session, number))
        waiting.sort()

    def order_copy(self, seq: Seq, source: int, slots: int) -> None:
        [block] = self.take(seq.owner, 1)
        self.blocks[block].state = "tail"
        seq.copy = (source, block, slots)
        seq.row = [*seq.row, block]

    def pending(self, seq: Seq) -> bool:
        return seq.copy is not None and seq.copy[1] in seq.row

    def end_copy(self, seq: Seq) -> None:
        assert seq.copy
        source, seq.copy = seq.copy[0], None
        self.let_go(source)

    def commit(self, number: int, tokens: list[int], kv: int, blocks: list[int], close: str = "") -> None:
        """`close`: the state that it is left in, if it does not go on."""
        seq = self.seqs[number]
        if self.pending(seq) and kv > seq.kv and close != "preempted":
            self.end_copy(seq)
        if not seq.stepped and kv > seq.kv:
            seq.stepped, seq.deaths = True, 0
        for block in blocks:
            self.blocks[block].state = "tail"
        seq.row, seq.tokens = seq.row + blocks, seq.tokens + tokens
        if close != "preempted":
            seq.kv = kv
            for i in range(kv // self.size):
                if self.blocks[seq.row[i]].state == "tail":
                    self.seal(seq, i)
        if close:
            self.stop(number, close)

    def fork(self, number: int, seq: Seq, parent: int, epoch: int, kv: int) -> None:
        """A new sequence as it stands before its first entry: the parent's whole blocks below `kv`."""
        p = self.seqs[parent]
        row = self.row_of(parent, epoch)
        seq.row, seq.kv, seq.target = row[: kv // self.size], kv, kv // self.size
        sealed = sum(self.blocks[block].state == "sealed" for block in row)
        if seq.row and epoch == p.epoch and sealed == len(seq.row):
            seq.tip = p.tip
        elif seq.row:
            seq.tip = self.tip(seq.row)
        self.seqs[number] = seq

    def row_of(self, number: int, epoch: int) -> list[int]:
        """Running, or held until its Release."""
        seq = self.seqs[number]
        return seq.row if seq.state == "open" and seq.epoch == epoch else seq.held[epoch]

    def stop(self, number: int, state: str) -> None:
        seq = self.seqs[number]
        if seq.state == "open":
            seq.held[seq.epoch] = seq.row
        seq.row, seq.state, seq.kv, seq.revoked = [], state, 0, False

    def release(self, number: int, epoch: int, quarantine: bool = False) -> None:
        seq = self.seqs[number]
        row = seq.held.pop(epoch)
        if seq.copy and seq.copy[1] in row:
            self.end_copy(seq)
        for block in reversed(row):
            self.let_go(block, quarantine)
