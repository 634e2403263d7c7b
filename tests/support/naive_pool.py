"""The same pool again, as plainly as possible: lists and dicts, tuples for hashes, everything counted afresh."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Block:
    state: str = "free"
    generation: int = 0
    holder: str = ""
    tokens: tuple[int, ...] = ()
    chain: tuple[Any, ...] = ()  # tenant and all tokens up to this block's end: what its hash stands for
    parent: Any = None  # (id, generation), "root"
    indexed: bool = False


@dataclass
class Seq:
    owner: str
    tokens: list[int]
    capacity: int
    tenant: bytes
    rank: tuple[int, ...]  # the smallest gives way first
    state: str = "open"
    epoch: int = 1
    kv: int = 0
    target: int = 0
    row: list[int] = field(default_factory=list)
    tip: Any = "root"
    revoked: bool = False
    held: dict[int, list[int]] = field(default_factory=dict)
    copy: tuple[int, int, int] | None = None  # source, destination, slots


class NaivePool:
    """One pool. Block lists are oldest first."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.size = block_size
        self.blocks = [Block() for _ in range(num_blocks)]
        self.free = list(range(num_blocks))
        self.cached: list[int] = []
        self.seqs: dict[int, Seq] = {}
        self.wants: dict[str, int] = {}  # in the order of sessions
        self.waits: dict[tuple[int, int], list[tuple[int, int, str, int]]] = {}  # by leader: until, turn, who
        self.turns = 0
        self.lost: set[str] = set()

    # questions

    def refs(self, block: int) -> int:
        rows = [row for s in self.seqs.values() for row in (s.row, *s.held.values())]
        read = [s.copy[0] for s in self.seqs.values() if s.copy]
        return sum(row.count(block) for row in rows) + read.count(block)

    def floats(self, session: str) -> list[int]:
        return [i for i, b in enumerate(self.blocks) if b.state == "granted" and b.holder == session]

    def available(self) -> int:
        return len(self.free) + len(self.cached)

    def counts(self) -> dict[str, int]:
        states = ("free", "granted", "tail", "sealed", "quarantined")
        found = {state: sum(b.state == state for b in self.blocks) for state in states}
        shared = sum(b.state == "sealed" and self.refs(i) > 1 for i, b in enumerate(self.blocks))
        return found | {"cached": len(self.cached), "shared": shared, "pinned": 0}

    def find(self, tenant: bytes, tokens: list[int]) -> list[int]:
        """The longest chain of indexed blocks; not the last token's."""
        hits: list[int] = []
        parent: Any = "root"
        for end in range(self.size, len(tokens), self.size):
            chain = (tenant, *tokens[:end])
            hit = [
                i for i, b in enumerate(self.blocks) if b.indexed and b.chain == chain and b.parent == parent
            ]
            if not hit:
                break
            hits += hit
            parent = (hit[0], self.blocks[hit[0]].generation)
        return hits

    def begin(self, seq: Seq, hits: list[int]) -> tuple[int, int] | None:
        """The block after the hits that begins with most of what is wanted next, if half a block; and how much."""
        wanted = seq.tokens[len(hits) * self.size : len(seq.tokens) - 1][: self.size - 1]
        parent = (hits[-1], self.blocks[hits[-1]].generation) if hits else "root"
        start = (seq.tenant, *seq.tokens[: len(hits) * self.size])
        found = []
        for i, b in enumerate(self.blocks):
            if b.indexed and b.parent == parent and b.chain[: len(start)] == start:
                own = b.chain[len(start) :]
                alike = next((n for n, (x, y) in enumerate(zip(own, wanted, strict=False)) if x != y), None)
                found.append((len(wanted) if alike is None else alike, list(own), i))
        most = max((slots for slots, _, _ in found), default=0)
        if 2 * most < self.size:
            return None
        best = [(own, i) for slots, own, i in found if slots == most]
        below = [one for one in best if one[0] < wanted]
        return (max(below) if below else min(best))[1], most

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

    # changes

    def evict(self) -> None:
        self.make_free(self.cached.pop(0))

    def make_free(self, block: int) -> None:
        self.blocks[block] = Block(generation=self.blocks[block].generation)
        self.free.append(block)

    def take(self, session: str, count: int) -> list[int]:
        count = min(count, self.available())
        while len(self.free) < count:
            self.evict()
        taken, self.free = self.free[:count], self.free[count:]
        for block in taken:
            generation = self.blocks[block].generation + 1
            self.blocks[block] = Block("granted", generation, session)
        return taken

    def grant(self, session: str, count: int, starving: bool) -> list[int]:
        room = max(1, len(self.blocks) // 8) - len(self.floats(session))
        count = count if starving else min(count, max(0, room))
        taken = self.take(session, count)
        self.wants[session] = count if starving and not taken else 0
        return taken

    def serve(self) -> list[tuple[str, Any]]:
        """Unasked messages: (session, blocks) or (session, sequence to give back)."""
        said: list[tuple[str, Any]] = []
        for session, want in self.wants.items():
            if want and self.available():
                said.append((session, self.take(session, want)))
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
        """The cached blocks, (needed, available) while it has to wait, or None for another's prefix."""
        led = self.leader(seq)
        if led is not None:
            self.turns += 1
            waiting = self.waits.setdefault((led[0], self.seqs[led[0]].epoch), [])
            waiting.append((led[1], self.turns, seq.owner, number))
            waiting.sort()
            return None
        hits = self.find(seq.tenant, seq.tokens)
        pending = -(-len(seq.tokens) // self.size) - len(hits) + 1
        pending += sum(max(0, s.target - len(s.row)) for s in self.seqs.values() if s.state == "open")
        unused = sum(hit in self.cached for hit in hits)
        available = self.available() + len(self.floats(seq.owner)) - unused
        if pending > available:
            return pending, available
        begin = None if seq.copy else self.begin(seq, hits)
        kept = begin is not None and begin[0] in self.cached
        if pending > available - kept or self.available() - unused - kept < 1:
            begin = None
        self.cached = [block for block in self.cached if block not in hits]
        seq.row, seq.kv, seq.target, seq.state = (
            hits,
            len(hits) * self.size,
            -(-len(seq.tokens) // self.size),
            "open",
        )
        seq.tip = (hits[-1], self.blocks[hits[-1]].generation) if hits else "root"
        self.seqs[number] = seq
        if begin is None:
            return hits
        source, slots = begin
        if kept:
            self.cached.remove(source)
        [block] = self.take(seq.owner, 1)
        self.blocks[block].state = "tail"
        seq.copy = (source, block, slots)
        seq.row, seq.kv = [*hits, block], seq.kv + slots
        return seq.row

    def pending(self, seq: Seq) -> bool:
        return seq.copy is not None and seq.copy[1] in seq.row

    def end_copy(self, seq: Seq) -> None:
        assert seq.copy
        source, seq.copy = seq.copy[0], None
        if not self.refs(source):
            if self.blocks[source].indexed:
                self.cached.append(source)
            else:
                self.make_free(source)

    def commit(self, number: int, tokens: list[int], kv: int, blocks: list[int]) -> None:
        seq = self.seqs[number]
        if self.pending(seq) and kv > seq.kv:
            self.end_copy(seq)
        for block in blocks:
            self.blocks[block].state = "tail"
        seq.row = seq.row + blocks
        seq.tokens = seq.tokens + tokens
        seq.kv = kv
        for i in range(kv // self.size):
            if self.blocks[seq.row[i]].state == "tail":
                self.seal(seq, i)

    def linked(self, ref: Any) -> bool:
        return ref == "root" or (self.blocks[ref[0]].generation == ref[1] and self.blocks[ref[0]].indexed)

    def seal(self, seq: Seq, i: int) -> None:
        block, end = seq.row[i], (i + 1) * self.size
        b = self.blocks[block]
        b.state, b.holder, b.chain, b.parent = "sealed", "", (seq.tenant, *seq.tokens[:end]), seq.tip
        if seq.tip is None or not self.linked(seq.tip):
            seq.tip = None
            return
        same = [j for j, other in enumerate(self.blocks) if other.indexed and other.chain == b.chain]
        if same and self.blocks[same[0]].parent == seq.tip:
            seq.tip = (same[0], self.blocks[same[0]].generation)
            return
        for stale in same:  # its parent was computed again
            self.blocks[stale].indexed = False
            if stale in self.cached:
                self.cached.remove(stale)
                self.make_free(stale)
        b.indexed, seq.tip = True, (block, b.generation)

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
            if self.refs(block):
                continue
            if self.blocks[block].state == "tail" and quarantine:
                self.blocks[block].state = "quarantined"
            elif self.blocks[block].indexed:
                self.cached.append(block)
            else:
                chain = self.blocks[block].chain
                for twin in [b for b in self.cached if chain and self.blocks[b].chain == chain]:
                    self.cached.remove(twin)
                    self.cached.append(twin)
                self.make_free(block)

    def lose(self, session: str) -> list[int]:
        self.lost.add(session)
        mine = [n for n, s in self.seqs.items() if s.owner == session]
        ended = [n for n in mine if self.seqs[n].state != "finished"]
        for number in mine:
            self.stop(number, "finished")
            for epoch in list(self.seqs[number].held):
                self.release(number, epoch, quarantine=True)
            self.seqs[number].owner = ""
        for block in self.floats(session):
            self.blocks[block].state = "quarantined"
        self.wants[session] = 0
        return ended

    def dead(self, session: str) -> int:
        gone = [i for i, b in enumerate(self.blocks) if b.state == "quarantined" and b.holder == session]
        for block in gone:
            self.make_free(block)
        return len(gone)
