"""The daemon's operations on the metadata, as docs/protocol.md has them; adoption and copy orders included."""

from tests.model.rules import Rules
from tests.model.state import (
    ALIVE,
    BAD,
    DEAD,
    DONE,
    FREE,
    GRANTED,
    LOST,
    NEW,
    OPEN,
    QUARANTINED,
    SEALED,
    SIZE,
    TAIL,
    Block,
    Bounds,
    Daemon,
    Held,
    Message,
    Ref,
    Sequence,
    Violation,
    put,
)

Answer = tuple[Daemon, Message]


class Policy:
    """One daemon. Calls take metadata and give metadata."""

    def __init__(self, rules: Rules, bounds: Bounds) -> None:
        self.rules, self.bounds = rules, bounds

    def handle(self, d: Daemon, w: int, n: int, message: Message) -> Answer:
        """The metadata after the message, and its answer."""
        kind = message[0]
        if kind == "fenced":
            return self.end_quarantine(d, w, message[1:]), ()
        session = d.sessions[w]
        if session.state != ALIVE and (self.rules.fenced or kind != "commit"):
            return d, ("fenced",)
        if kind == "holdings":
            return d, ("holdings", self.holdings(d, w))
        if self.rules.numbered and n <= session.applied:
            return d, (self.verdict(d, message), n)
        if self.rules.numbered and n > session.applied + 1:
            return d, ()
        d, reply = getattr(self, kind)(d, w, n, *message[1:])
        return d._replace(
            sessions=put(d.sessions, w, session._replace(applied=max(n, session.applied)))
        ), reply

    # ------------------------------------------------------------------------------- blocks

    def grant(self, d: Daemon, w: int, n: int, starving: bool) -> Answer:
        free = self.free(d)
        if free is None or not self.may_grant(d, starving):
            return d, ("refused", n)
        ref = free, d.blocks[free].generation + 1
        granted = Block(GRANTED, w, ref[1])
        unstored = d.unstored if self.rules.stored_grants else (*d.unstored, free)
        return d._replace(blocks=put(d.blocks, free, granted), unstored=unstored), ("granted", n, ref)

    def stored(self, d: Daemon, block: int) -> Daemon:
        return d._replace(unstored=tuple(b for b in d.unstored if b != block))

    def restart(self, d: Daemon) -> Daemon:
        """The next daemon finds what was stored."""
        blocks = list(d.blocks)
        for b in d.unstored:
            blocks[b] = Block(generation=blocks[b].generation - 1)
        return d._replace(blocks=tuple(blocks), unstored=())

    def free(self, d: Daemon) -> int | None:
        return next((b for b, x in enumerate(d.blocks) if x.state == FREE), None)

    def may_grant(self, d: Daemon, starving: bool) -> bool:
        """For each open sequence one block is kept back, its adopter's tail, unless a step waits for it."""
        reserve = sum(seq.state == OPEN for seq in d.sequences) if self.rules.reserve and not starving else 0
        return sum(x.state == FREE for x in d.blocks) > reserve

    def give(self, d: Daemon, w: int, n: int, ref: Ref) -> Answer:
        if not self.granted(d, w, ref):
            return d, ("refused", n)
        return self.clear(d, [ref[0]]), ("ack", n)

    def holdings(self, d: Daemon, w: int) -> tuple[Ref, ...]:
        return tuple((b, x.generation) for b, x in enumerate(d.blocks) if (x.state, x.holder) == (GRANTED, w))

    def granted(self, d: Daemon, w: int, ref: Ref) -> bool:
        block = d.blocks[ref[0]]
        current = not self.rules.generations or block.generation == ref[1]
        return block.state == GRANTED and block.holder == w and current

    def clear(self, d: Daemon, blocks: list[int]) -> Daemon:
        if not blocks:
            return d
        new = list(d.blocks)
        for b in blocks:
            new[b] = Block(generation=new[b].generation)
        return d._replace(blocks=tuple(new), unstored=tuple(b for b in d.unstored if b not in blocks))

    def referenced(self, d: Daemon, block: int) -> bool:
        rows = [s.row for s in d.sequences] + [held.row for held in d.held]
        sources = [order[0] for s in d.sequences for order in s.orders if self.rules.source_stays]
        return block in sources or any(block in row for row in rows)

    def collect(self, d: Daemon) -> Daemon:
        """Sealed blocks that nobody refers to are free: the model has no cache."""
        return self.clear(
            d, [b for b, x in enumerate(d.blocks) if x.state == SEALED and not self.referenced(d, b)]
        )

    # ------------------------------------------------------------------------------- sequences

    def open(self, d: Daemon, w: int, n: int, s: int) -> Answer:
        """New, yours already, or adopted."""
        seq = d.sequences[s]
        if seq.state == NEW:
            return self.opened(d, w, n, s, seq._replace(state=OPEN, owner=w, epoch=1))
        owner = d.sessions[seq.owner].state
        if seq.state == OPEN and seq.owner == w and owner == ALIVE:
            return self.opened(d, w, n, s, seq)
        if seq.state == OPEN and owner != ALIVE:
            return self.adopt(d, w, n, s, seq)
        return d, ("refused", n)

    def opened(self, d: Daemon, w: int, n: int, s: int, seq: Sequence, adopted: bool = False) -> Answer:
        refs = tuple((b, d.blocks[b].generation) for b in seq.row)
        reply = ("opened", n, s, seq.epoch, seq.recorded, seq.kv, refs, seq.orders, adopted)
        if not self.rules.orders_stay:
            seq = seq._replace(orders=())
        return d._replace(sequences=put(d.sequences, s, seq)), reply

    def adopt(self, d: Daemon, w: int, n: int, s: int, seq: Sequence) -> Answer:
        """A new row: the sealed blocks, and a fresh tail into which the committed slots are to be copied."""
        sealed, tail = seq.row[: seq.kv // SIZE], seq.row[seq.kv // SIZE :]
        fresh = self.free(d)
        if tail and fresh is None and self.rules.fresh_tail:
            return d, ("refused", n)
        new = seq._replace(epoch=seq.epoch + 1, owner=w, row=sealed, orders=())
        if tail:
            block = fresh if self.rules.fresh_tail and fresh is not None else tail[0]
            generation = d.blocks[block].generation + (block != tail[0])
            d = d._replace(blocks=put(d.blocks, block, Block(TAIL, w, generation)))
            source = {target: src for src, target, _ in seq.orders if self.rules.orders_from_source}
            orders = ((source.get(tail[0], tail[0]), block, seq.kv % SIZE),) if block != tail[0] else ()
            new = new._replace(row=(*sealed, block), orders=orders)
        d, reply = self.opened(d, w, n, s, new, adopted=True)
        return self.collect(d), reply

    def commit(self, d: Daemon, w: int, n: int, s: int, epoch: int, entry: tuple, finish: bool) -> Answer:
        base_recorded, base_kv, recorded, kv, taken, token = entry
        seq = d.sequences[s]
        if self.rules.fenced and (seq.owner, seq.epoch) != (w, epoch):
            return d, ("refused", n)
        if (seq.state, seq.recorded, seq.kv) != (OPEN, base_recorded, base_kv):
            return d, ("refused", n)
        if not all(self.granted(d, w, ref) for ref in taken):
            return d, ("refused", n)
        if token == BAD:
            raise Violation(
                f"another token than the sequence's own is recorded at position {base_recorded} of s{s}"
            )
        row = seq.row + tuple(block for block, _ in taken)
        blocks = list(d.blocks)
        for i, b in enumerate(row):
            full = (i + 1) * SIZE <= kv
            blocks[b] = blocks[b]._replace(state=SEALED if full else TAIL, holder=-1 if full else w)
        seq = seq._replace(recorded=recorded, kv=kv, row=row, orders=())
        d = d._replace(blocks=tuple(blocks), unstored=tuple(b for b in d.unstored if b not in row))
        if finish:
            d, seq = self.finish(d, w, s, seq), seq._replace(state=DONE, row=())
        return self.collect(d._replace(sequences=put(d.sequences, s, seq))), ("ack", n)

    def verdict(self, d: Daemon, message: Message) -> str:
        """Of a message that was applied before: a commit was accepted if the record holds its tokens."""
        if message[0] != "commit" or not self.rules.verdicts:
            return "ack"
        seq = d.sequences[message[1]]
        return "ack" if seq.epoch == message[2] and seq.recorded >= message[3][2] else "refused"

    def refuse(self, d: Daemon, w: int, n: int) -> Answer:
        """No room, as for a fork's record: nothing is stored but the number."""
        session = d.sessions[w]
        return d._replace(sessions=put(d.sessions, w, session._replace(applied=n))), ("refused", n)

    def half(self, d: Daemon, message: Message) -> Daemon | None:
        """Without the redo area: a commit of which only the lengths were stored."""
        if message[0] != "commit":
            return None
        s, (base_recorded, base_kv, recorded, kv, _, _) = message[1], message[3]
        seq = d.sequences[s]
        if (seq.state, seq.epoch, seq.recorded, seq.kv) != (OPEN, message[2], base_recorded, base_kv):
            return None
        return d._replace(sequences=put(d.sequences, s, seq._replace(recorded=recorded, kv=kv)))

    def finish(self, d: Daemon, w: int, s: int, seq: Sequence) -> Daemon:
        if not self.rules.release_by_owner:
            return self.clear(d, list(seq.row))
        return d._replace(held=(*d.held, Held(s, seq.epoch, w, seq.row)))

    def release(self, d: Daemon, w: int, n: int, s: int, epoch: int) -> Answer:
        found = next((h for h in d.held if h[:3] == (s, epoch, w)), None)
        if found is None:
            return d, ("refused", n)
        d = d._replace(held=tuple(h for h in d.held if h != found))
        tails = [b for b in found.row if d.blocks[b].state == TAIL]
        return self.collect(self.clear(d, tails)), ("ack", n)

    # ------------------------------------------------------------------------------- ends

    def lose(self, d: Daemon, w: int) -> Daemon:
        """The first sign of a death: what the session may still write is in quarantine; its rows wait for adoption."""
        rows = [(s, x.epoch, x.row) for s, x in enumerate(d.sequences) if x.owner == w]
        rows += [(h.sequence, h.epoch, h.row) for h in d.held if h.owner == w]
        tags = {b: (s, epoch) for s, epoch, row in rows for b in row}
        blocks = tuple(
            Block(QUARANTINED, w, x.generation, tags.get(b))
            if x.holder == w and x.state in (GRANTED, TAIL)
            else x
            for b, x in enumerate(d.blocks)
        )
        held = tuple(h for h in d.held if h.owner != w)
        sessions = put(d.sessions, w, d.sessions[w]._replace(state=LOST))
        return self.collect(d._replace(blocks=blocks, held=held, sessions=sessions, unstored=()))

    def bury(self, d: Daemon, w: int) -> Daemon:
        """Proof of death."""
        if d.sessions[w].state == ALIVE:
            d = self.lose(d, w)
        d = d._replace(sessions=put(d.sessions, w, d.sessions[w]._replace(state=DEAD)))
        return self.end_quarantine(d, w, None)

    def end_quarantine(self, d: Daemon, w: int, tag: tuple | None) -> Daemon:
        """All of a session's, or of one (sequence, epoch). What a row or a copy order refers to stays as it is."""
        ended = [
            b
            for b, x in enumerate(d.blocks)
            if (x.state, x.holder) == (QUARANTINED, w) and (tag is None or x.tag == tag)
        ]
        blocks = list(d.blocks)
        for b in ended:
            blocks[b] = Block(SEALED, -1, blocks[b].generation)
        return self.collect(d._replace(blocks=tuple(blocks)))
