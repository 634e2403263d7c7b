"""Whether an entry of a commit holds: what it says of a sequence, judged against the record. Changes nothing."""

from kvmanager.blocks import GRANTED
from kvmanager.errors import Conflict, Fenced, Invalid, NotFound
from kvmanager.layout import within
from kvmanager.messages import BlockRef, CommitEntry
from kvmanager.parts import Parts
from kvmanager.sequences import Role, Sequence, SequenceState
from kvmanager.sessions import Session


def judge(parts: Parts, session: Session, entry: CommitEntry) -> Sequence:
    """The entry's sequence, if the whole entry holds. Nothing is changed."""
    sequence = owned(parts, session, entry)
    if entry.base_recorded != len(sequence.tokens) or entry.base_kv != sequence.kv_len:
        raise Conflict(
            f"base {entry.base_recorded} recorded, {entry.base_kv} valid; "
            f"the record has {len(sequence.tokens)} and {sequence.kv_len}"
        )
    judge_tokens(parts, sequence, entry)
    held = len(parts.rows.blocks[sequence.row]) if sequence.row >= 0 else 0
    judge_blocks(parts, session, sequence, entry, held)
    judge_copies(parts, sequence, entry)
    if not entry.preempted:
        judge_kv(parts, sequence, entry, held)
    return sequence


def owned(parts: Parts, session: Session, entry: CommitEntry) -> Sequence:
    sequence = parts.sequences.by_id.get(entry.sequence)
    if sequence is None:
        raise NotFound("unknown sequence")
    if sequence.owner != session.holder:
        raise Fenced("this worker does not own the sequence")
    if sequence.epoch != entry.epoch:
        raise Fenced(f"epoch {entry.epoch}, the sequence is in epoch {sequence.epoch}")
    closes = bool(entry.finish) and not entry.blocks
    if sequence.state == SequenceState.FINISHED and not (
        sequence.hypothesis and closes and not entry.token_ids
    ):
        raise Conflict("the sequence is finished")
    if entry.preempted and entry.finish:
        raise Invalid("an entry is preempted or finished, not both")
    parked = sequence.state == SequenceState.PREEMPTED
    if parked and not (closes and (not entry.token_ids or sequence.role == Role.SEARCH)):
        raise Conflict("the sequence is preempted: it can only be finished, or opened again")
    return sequence


def judge_tokens(parts: Parts, sequence: Sequence, entry: CommitEntry) -> None:
    if entry.token_ids:
        recorded = len(sequence.tokens) + len(entry.token_ids)
        if recorded > sequence.token_capacity:
            raise Invalid(f"{recorded} tokens, prompt and max_tokens are {sequence.token_capacity}")
        if max(entry.token_ids) >= parts.spec.vocab_size or min(entry.token_ids) < 0:
            raise Invalid(f"a token id is not within 0..{parts.spec.vocab_size - 1}")


def judge_blocks(parts: Parts, session: Session, sequence: Sequence, entry: CommitEntry, held: int) -> None:
    """`held`: blocks of the row so far."""
    if not entry.blocks:
        return
    for ref in entry.blocks:
        require_float(parts, session, ref)
    if len(entry.blocks) > 1 and len({ref.id for ref in entry.blocks}) < len(entry.blocks):
        raise Conflict("a block is named twice")
    length, most = held + len(entry.blocks), sequence.token_capacity
    if length > parts.blocks_of(most):
        raise Invalid(f"{length} blocks for {most} tokens")


def require_float(parts: Parts, session: Session, ref: BlockRef) -> None:
    """Conflict unless the block is granted to the session in this generation."""
    b, blocks = ref.id, parts.blocks
    if not 0 <= b < blocks.num_blocks or blocks.state[b] != GRANTED or blocks.holder[b] != session.holder:
        raise Conflict(f"block {b} is not in this session's float")
    if blocks.generation[b] != ref.generation:
        raise Conflict(f"block {b} is in generation {blocks.generation[b]}, not {ref.generation}")


def judge_kv(parts: Parts, sequence: Sequence, entry: CommitEntry, held: int) -> None:
    if sequence.state != SequenceState.OPEN:
        return within("kv_len without a row", entry.kv_len, sequence.kv_len, sequence.kv_len)
    base, sampled = len(sequence.tokens), len(entry.token_ids)
    least, most = (base, base + sampled - 1) if sampled else (sequence.kv_len, base)
    if not least <= entry.kv_len <= most:
        raise Invalid(f"kv_len {entry.kv_len} is not within {least}..{most}")
    slots = (held + len(entry.blocks)) * parts.block_size
    if entry.kv_len > slots:
        raise Invalid(f"kv_len {entry.kv_len} is over the row's {slots} slots")
    return None


def judge_copies(parts: Parts, sequence: Sequence, entry: CommitEntry) -> None:
    """Nothing is computed on a tail whose begin is not copied yet."""
    pending = parts.pending_copy(sequence) is not None
    within("copies_done", entry.copies_done, 0, int(pending))
    if pending and not entry.copies_done and not entry.preempted and entry.kv_len > sequence.kv_len:
        raise Conflict("the sequence's copy order is not done")
