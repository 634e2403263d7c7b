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
    prompt: int
    state: str = "open"
    epoch: int = 1
    kv: int = 0
    target: int = 0
    row: list[int] = field(default_factory=list)
    tip: Any = "root"
    revoked: bool = False
    held: dict[int, list[int]] = field(default_factory=dict)


class NaivePool:
    """One pool. Block lists are oldest first."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.size = block_size
        self.blocks = [Block() for _ in range(num_blocks)]
        self.free = list(range(num_blocks))
        self.cached: list[int] = []
        self.seqs: dict[int, Seq] = {}
        self.wants: dict[str, int] = {}  # in the order of sessions

    # questions

    def refs(self, block: int) -> int:
        rows = [row for s in self.seqs.values() for row in (s.row, *s.held.values())]
        return sum(row.count(block) for row in rows)

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

    def open(self, number: int, seq: Seq) -> tuple[int, int] | list[int]:
        """The cached blocks, or (needed, available) while it has to wait."""
        hits = self.find(seq.tenant, seq.tokens)
        pending = -(-len(seq.tokens) // self.size) - len(hits) + 1
        pending += sum(max(0, s.target - len(s.row)) for s in self.seqs.values() if s.state == "open")
        unused = sum(hit in self.cached for hit in hits)
        available = self.available() + len(self.floats(seq.owner)) - unused
        if pending > available:
            return pending, available
        self.cached = [block for block in self.cached if block not in hits]
        seq.row, seq.kv, seq.target, seq.state = (
            hits,
            len(hits) * self.size,
            -(-len(seq.tokens) // self.size),
            "open",
        )
        seq.tip = (hits[-1], self.blocks[hits[-1]].generation) if hits else "root"
        self.seqs[number] = seq
        return hits

    def commit(self, number: int, tokens: list[int], kv: int, blocks: list[int]) -> None:
        seq = self.seqs[number]
        for block in blocks:
            self.blocks[block].state = "tail"
        seq.row = seq.row + blocks
        seq.tokens = seq.tokens + tokens
        seq.kv = kv
        for i in range(kv // self.size):
            if self.blocks[seq.row[i]].state == "tail":
                self.seal(seq, i)

    def fork(self, number: int, seq: Seq, parent: int, epoch: int, kv: int) -> None:
        """A new sequence as it stands before its first entry: the parent's whole blocks below `kv`."""
        p = self.seqs[parent]
        row = self.row_of(parent, epoch)
        seq.row, seq.kv, seq.target = row[: kv // self.size], kv, kv // self.size
        sealed = sum(self.blocks[block].state == "sealed" for block in row)
        if seq.row and epoch == p.epoch and sealed == len(seq.row):
            seq.tip = p.tip
        elif seq.row:
            last = self.blocks[seq.row[-1]]
            seq.tip = (seq.row[-1], last.generation) if last.indexed else None
        self.seqs[number] = seq

    def row_of(self, number: int, epoch: int) -> list[int]:
        """Running, or held until its Release."""
        seq = self.seqs[number]
        return seq.row if seq.state == "open" and seq.epoch == epoch else seq.held[epoch]

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
        for block in reversed(self.seqs[number].held.pop(epoch)):
            if self.refs(block):
                continue
            if self.blocks[block].state == "tail" and quarantine:
                self.blocks[block].state = "quarantined"
            elif self.blocks[block].indexed:
                self.cached.append(block)
            else:
                self.make_free(block)

    def lose(self, session: str) -> list[int]:
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
