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
    ORPHANED,
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
    blocks_of,
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

    def grant(self, d: Daemon, w: int, n: int) -> Answer:
        free = self.free(d)
        if free is None or not self.may_grant(d):
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

    def may_grant(self, d: Daemon) -> bool:
        """What is kept back for adopters is nobody's float."""
        return self.spare(d) > 0

    def spare(self, d: Daemon) -> int:
        """Free blocks beside one for each sequence that may have to be adopted: its adopter's tail."""
        live = sum(seq.state in (OPEN, ORPHANED) for seq in d.sequences)
        return sum(x.state == FREE for x in d.blocks) - (live if self.rules.reserve else 0)

    def may_admit(self, d: Daemon, w: int, s: int) -> bool:
        """Whether all prompts could be finished beside this one, with a block for its adopter."""
        own = len(self.holdings(d, w))
        others = sum(max(0, blocks_of(x.recorded) - len(x.row)) for x in d.sequences if x.state == OPEN)
        return self.spare(d) + own > blocks_of(d.sequences[s].recorded) + others

    def may_adopt(self, d: Daemon, s: int) -> bool:
        """Whether there is a tail for the adopter."""
        tail = self.tail(d.sequences[s])
        return not tail or self.clean(d, tail[0]) or self.free(d) is not None

    def tail(self, seq: Sequence) -> tuple[int, ...]:
        return seq.row[seq.kv // SIZE :]

    def clean(self, d: Daemon, block: int) -> bool:
        """Nobody can write it any more."""
        return (d.blocks[block].state, d.blocks[block].holder) == (QUARANTINED, -1)

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
        """What nobody writes nor refers to is free: the model has no cache."""
        still = [b for b, x in enumerate(d.blocks) if x.state == SEALED or self.clean(d, b)]
        return self.clear(d, [b for b in still if not self.referenced(d, b)])

    # ------------------------------------------------------------------------------- sequences

    def open(self, d: Daemon, w: int, n: int, s: int) -> Answer:
        """New, yours already, or adopted."""
        seq = d.sequences[s]
        if seq.state == NEW and self.may_admit(d, w, s):
            return self.opened(d, w, n, s, seq._replace(state=OPEN, owner=w, epoch=1))
        if seq.state == OPEN and seq.owner == w:
            return self.opened(d, w, n, s, seq)
        if seq.state == ORPHANED and self.may_adopt(d, s):
            return self.adopt(d, w, n, s, seq)
        return d, ("refused", n)

    def opened(self, d: Daemon, w: int, n: int, s: int, seq: Sequence, adopted: bool = False) -> Answer:
        refs = tuple((b, d.blocks[b].generation) for b in seq.row)
        reply = ("opened", n, s, seq.epoch, seq.recorded, seq.kv, refs, seq.orders, adopted)
        if not self.rules.orders_stay:
            seq = seq._replace(orders=())
        return d._replace(sequences=put(d.sequences, s, seq)), reply

    def adopt(self, d: Daemon, w: int, n: int, s: int, seq: Sequence) -> Answer:
        """A new row: the sealed blocks, and a tail that nobody else can write. That is the old one as it stands, with
        the order to fill it; or a fresh one, into which the committed slots are to be copied."""
        sealed, tail = seq.row[: seq.kv // SIZE], self.tail(seq)
        new = seq._replace(state=OPEN, epoch=seq.epoch + 1, owner=w)
        if tail and (self.clean(d, tail[0]) or not self.rules.fresh_tail):
            d = d._replace(blocks=put(d.blocks, tail[0], d.blocks[tail[0]]._replace(state=TAIL, holder=w)))
        elif tail:
            fresh = self.free(d)
            assert fresh is not None
            d = d._replace(blocks=put(d.blocks, fresh, Block(TAIL, w, d.blocks[fresh].generation + 1)))
            source = {target: src for src, target, _ in seq.orders if self.rules.orders_from_source}
            order = source.get(tail[0], tail[0]), fresh, seq.kv % SIZE
            new = new._replace(row=(*sealed, fresh), orders=(order,))
        d, reply = self.opened(d, w, n, s, new, adopted=True)
        return self.collect(d), reply

    def fenced(self, d: Daemon, w: int, n: int, s: int, epoch: int) -> Answer:
        """A living worker has stopped and dropped a sequence: another may go on, and nothing of it is in quarantine."""
        seq = d.sequences[s]
        if (seq.state, seq.owner, seq.epoch) != (OPEN, w, epoch):
            return self.release(d, w, n, s, epoch)
        blocks = tuple(
            x._replace(state=QUARANTINED, holder=-1) if b in self.tail(seq) else x
            for b, x in enumerate(d.blocks)
        )
        orphan = seq._replace(state=ORPHANED, owner=-1)
        return d._replace(blocks=blocks, sequences=put(d.sequences, s, orphan)), ("ack", n)

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
        """The first sign of a death: what the session may still write is in quarantine; its sequences wait for
        another worker."""
        blocks = tuple(
            x._replace(state=QUARANTINED) if x.holder == w and x.state in (GRANTED, TAIL) else x
            for x in d.blocks
        )
        sequences = tuple(
            x._replace(state=ORPHANED) if (x.state, x.owner) == (OPEN, w) else x for x in d.sequences
        )
        held = tuple(h for h in d.held if h.owner != w)
        sessions = put(d.sessions, w, d.sessions[w]._replace(state=LOST))
        return self.collect(Daemon(blocks, sequences, sessions, held))

    def bury(self, d: Daemon, w: int) -> Daemon:
        """Proof of death."""
        if d.sessions[w].state == ALIVE:
            d = self.lose(d, w)
        d = d._replace(sessions=put(d.sessions, w, d.sessions[w]._replace(state=DEAD)))
        return self.end_quarantine(d, w)

    def end_quarantine(self, d: Daemon, w: int) -> Daemon:
        """Nobody can write these any more. What a row or a copy order refers to keeps what it holds."""
        blocks = tuple(
            x._replace(holder=-1) if (x.state, x.holder) == (QUARANTINED, w) else x for x in d.blocks
        )
        return self.collect(d._replace(blocks=blocks))
