"""Sequences whose worker is gone, and those who take them over. Protocol rules 5, 6, 7 and 12; invariants 4 and 5.

    lost      row [ sealed ][ sealed ][ tail: quarantined ]    nobody's, its KV kept
    adopted   row [ sealed ][ sealed ][ fresh ]                epoch + 1; committed slots are copied from the old tail

The old tail may still be written by whoever is not proven gone; the new one is nobody's but the adopter's. Once the
proof is there, or the former owner said that it stopped, the adopter goes on in the old tail and nothing is copied.
"""

from kvmanager.messages import Wait
from kvmanager.parts import Parts
from kvmanager.sequences import Copy, Sequence, SequenceState
from kvmanager.sessions import Session


def orphan(parts: Parts, sequence: Sequence, now_ns: int, *, quarantine: bool) -> None:
    """The sequence has no worker any more. `quarantine`: its former one may still write."""
    for epoch in list(sequence.held_rows):
        parts.end_row(sequence, epoch, now_ns, quarantine=quarantine)
    if sequence.state == SequenceState.OPEN:
        del parts.sequences.open[sequence.slot]
        for block in unsealed(parts, sequence):
            parts.blocks.strand(block, quarantine=quarantine)
    sequence.state, sequence.owner, sequence.revoked = SequenceState.ORPHANED, 0, False
    sequence.finished_ns = now_ns
    parts.sequences.orphans[sequence.slot] = sequence
    parts.sequences.put(sequence)


def unsealed(parts: Parts, sequence: Sequence) -> list[int]:
    """The row's blocks behind its sealed ones: at most the begun tail, but for what was taken and never filled."""
    return parts.rows.blocks[sequence.row][sequence.kv_len // parts.block_size :]


def lacks_fresh(parts: Parts, sequence: Sequence) -> Wait | None:
    """Wait while there is no block for the adopter's tail. Adoptions come before admissions: no prompt is counted."""
    need = int(begun(parts, sequence) and not takes_over(parts, sequence))
    if need <= parts.blocks.available:
        return None
    return Wait(sequence=sequence.id, needed_blocks=need, available_blocks=0)


def begun(parts: Parts, sequence: Sequence) -> bool:
    """Whether its last block is partly committed."""
    return sequence.kv_len % parts.block_size > 0


def takes_over(parts: Parts, sequence: Sequence) -> bool:
    """Whether nobody else can write its begun tail."""
    return begun(parts, sequence) and parts.blocks.holder[unsealed(parts, sequence)[0]] == 0


def adopt(parts: Parts, session: Session, sequence: Sequence, now_ns: int) -> None:
    """A new row of the next epoch, owned by the session: the sealed blocks, and a tail that it alone can write."""
    rest, clean = unsealed(parts, sequence), takes_over(parts, sequence)
    size = parts.block_size
    kept = parts.rows.close(sequence.row)[: sequence.kv_len // size]  # its references are the new row's
    sequence.epoch, sequence.moved_ns = sequence.epoch + 1, now_ns
    sequence.row = parts.rows.open(sequence.slot, sequence.epoch, kept)
    if clean:
        parts.blocks.own(rest[0], session.holder)
        parts.rows.append(sequence.row, rest[:1])
    elif begun(parts, sequence):
        renew_tail(parts, session, sequence, rest[0])
    for block in rest[int(clean) :]:
        parts.blocks.deref(block, now_ns)
    own(parts, session, sequence)


def renew_tail(parts: Parts, session: Session, sequence: Sequence, tail: int) -> None:
    """A fresh tail and the order to fill it: from the old one, or from where that was still to be filled from."""
    if sequence.copy is None:
        parts.order_copy(sequence, session, tail, sequence.kv_len % parts.block_size)
        return
    [fresh] = parts.blocks.take(1, session.holder)
    parts.blocks.open_tail(fresh)
    parts.rows.append(sequence.row, [fresh])
    sequence.copy = Copy(sequence.copy.source, fresh, sequence.copy.slots)


def own(parts: Parts, session: Session, sequence: Sequence) -> None:
    """It is the session's from now on, and open."""
    del parts.sequences.orphans[sequence.slot]
    parts.sequences.open[sequence.slot] = sequence
    sequence.state, sequence.owner, sequence.finished_ns = SequenceState.OPEN, session.holder, 0
    sequence.target_blocks = parts.blocks_of(sequence.recorded_len)
    sequence.stepped = False
    parts.sequences.put(sequence)
    parts.adoptions += 1


def end_orphan(parts: Parts, sequence: Sequence, now_ns: int) -> None:
    """Nobody will go on with it: its blocks are let go, quarantined ones to their quarantine; `finish` follows."""
    del parts.sequences.orphans[sequence.slot]
    if sequence.row < 0:
        return
    if sequence.copy is not None:
        parts.end_copy(sequence, now_ns)
    for block in reversed(parts.rows.close(sequence.row)):
        parts.blocks.deref(block, now_ns)
    sequence.row = -1
