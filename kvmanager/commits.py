"""Commit and Release: what a worker says it computed, judged entry by entry, and what it lets go of.

    before   0 ....... base_kv ....... base_recorded
    after    0 ............... kv_len ............ base_recorded + len(token_ids)

KV of a token exists only once the token was recorded, and a sampled token needs the KV of all before it.
"""

from kvmanager.blocks import GRANTED
from kvmanager.errors import Conflict, Fenced, Invalid, KvError, NotFound
from kvmanager.forks import Room, child_of, keep, keep_finished, without_row
from kvmanager.layout import within
from kvmanager.messages import (
    Acked,
    BlockRef,
    Commit,
    CommitEntry,
    FinishReason,
    Refusal,
    Release,
    SequenceId,
    SequenceRef,
)
from kvmanager.messages import Fenced as FencedMessage
from kvmanager.orphans import orphan
from kvmanager.parts import Parts
from kvmanager.sequences import Sequence, SequenceState
from kvmanager.sessions import Session

NO_SEQUENCE = SequenceId(bytes(16))
MOST_REFUSALS = 4096  # that a Release's answer names


def commit(parts: Parts, session: Session, message: Commit, now_ns: int) -> Acked:
    """Apply each entry that holds; name the others. Invalid for more entries than one operation has room for."""
    forks = [entry for entry in message.entries if entry.fork is not None]
    stores = len(message.entries) + 2 * len(forks)  # of whole records
    within("entries, a fork for three", stores, 0, 2 * parts.layout.num_records)
    room = Room.of(parts, message.entries) if forks else None
    refusals = []
    for entry in message.entries:
        try:
            if room is not None and entry.fork is not None:
                fork_entry(parts, session, entry, room, now_ns)
            else:
                apply_entry(parts, session, judge(parts, session, entry), entry, now_ns)
        except KvError as error:
            refusals.append(Refusal(entry.sequence, entry.epoch, error.code, error.message))
    return Acked(refusals=refusals)


# ------------------------------------------------------------------------------------------------- judging


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
    if sequence.state == SequenceState.FINISHED:
        raise Conflict("the sequence is finished")
    if entry.preempted and entry.finish:
        raise Invalid("an entry is preempted or finished, not both")
    if sequence.state == SequenceState.PREEMPTED and not (
        entry.finish and not entry.token_ids and not entry.blocks
    ):
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
    base, sampled = len(sequence.tokens), len(entry.token_ids)
    least, most = (base, base + sampled - 1) if sampled else (sequence.kv_len, base)
    if not least <= entry.kv_len <= most:
        raise Invalid(f"kv_len {entry.kv_len} is not within {least}..{most}")
    if sequence.state == SequenceState.OPEN:
        slots = (held + len(entry.blocks)) * parts.block_size
        if entry.kv_len > slots:
            raise Invalid(f"kv_len {entry.kv_len} is over the row's {slots} slots")
    elif entry.kv_len:
        raise Invalid("a preempted sequence has no KV")


def judge_copies(parts: Parts, sequence: Sequence, entry: CommitEntry) -> None:
    """Nothing is computed on a tail whose begin is not copied yet."""
    pending = parts.pending_copy(sequence) is not None
    within("copies_done", entry.copies_done, 0, int(pending))
    if pending and not entry.copies_done and not entry.preempted and entry.kv_len > sequence.kv_len:
        raise Conflict("the sequence's copy order is not done")


def fork_entry(parts: Parts, session: Session, entry: CommitEntry, room: Room, now_ns: int) -> None:
    """Judge a fork and its first entry, then store both."""
    assert entry.fork is not None
    child = child_of(parts, session, entry, entry.fork, now_ns)
    ended = without_row(entry)
    held = parts.blocks_of(entry.kv_len) if ended else len(child.shared)
    judge_tokens(parts, child.sequence, entry)
    judge_blocks(parts, session, child.sequence, entry, held)
    judge_copies(parts, child.sequence, entry)
    judge_kv(parts, child.sequence, entry, held)
    room.take(entry.base_recorded, len(child.request))
    if ended:
        keep_finished(parts, child, entry, now_ns)
    else:
        keep(parts, child)
        apply_entry(parts, session, child.sequence, entry, now_ns)


# ------------------------------------------------------------------------------------------------- applying


def apply_entry(parts: Parts, session: Session, sequence: Sequence, entry: CommitEntry, now_ns: int) -> None:
    if entry.blocks:
        take_blocks(parts, session, sequence, [ref.id for ref in entry.blocks])
    if entry.token_ids:
        parts.sequences.append(sequence, entry.token_ids)
    if entry.copies_done:
        parts.end_copy(sequence, now_ns)
    if not sequence.stepped and entry.kv_len > sequence.kv_len:
        prove_harmless(parts, sequence)
    if entry.preempted:
        parts.hold_row(sequence, SequenceState.PREEMPTED)
        parts.preemptions += 1
    else:
        if entry.kv_len > sequence.kv_len:
            sequence.kv_len, sequence.moved_ns = entry.kv_len, now_ns
        if entry.kv_len // parts.block_size > sequence.tip.depth and sequence.row >= 0:
            seal_full(parts, sequence)
    if entry.finish:
        sequence.stop_token_id = entry.stop_token_id
        finish(parts, sequence, entry.finish, now_ns)
    if sequence.state == SequenceState.OPEN:
        parts.sequences.put_lengths(sequence)
    else:
        parts.sequences.put(sequence)


def prove_harmless(parts: Parts, sequence: Sequence) -> None:
    """A step of it was committed: no death so far was its fault (rule 12)."""
    sequence.stepped = True
    if sequence.deaths:
        sequence.deaths = 0
        parts.sequences.put(sequence)


def take_blocks(parts: Parts, session: Session, sequence: Sequence, blocks: list[int]) -> None:
    """From the float into the row."""
    for block in blocks:
        parts.blocks.open_tail(block)
    session.float_blocks -= len(blocks)
    parts.rows.append(sequence.row, blocks)


def seal_full(parts: Parts, sequence: Sequence) -> None:
    """Seal the row's blocks that lie wholly below kv_len."""
    row, size = parts.rows.blocks[sequence.row], parts.block_size
    for i in range(sequence.tip.depth, sequence.kv_len // size):
        tokens = sequence.tokens[i * size : (i + 1) * size].tobytes()
        sequence.tip = parts.prefix.seal(row[i], sequence.tip, tokens)


def finish(parts: Parts, sequence: Sequence, reason: FinishReason, now_ns: int) -> None:
    """Close the record; `put` follows. A row stays until its Release."""
    kv_len = sequence.kv_len
    if sequence.row >= 0:
        parts.hold_row(sequence, SequenceState.FINISHED)
    sequence.state, sequence.finish, sequence.finished_ns = SequenceState.FINISHED, reason, now_ns
    sequence.kv_len = kv_len
    parts.sequences.finished.append(sequence)


# ------------------------------------------------------------------------------------------------- letting go


def release(parts: Parts, session: Session, message: Release, now_ns: int) -> Acked:
    """No launched step names these any more. What is not the session's to release is named in the answer."""
    refusals = []
    for ref in message.rows:
        try:
            release_row(parts, session, ref, now_ns)
        except KvError as error:
            refusals.append(Refusal(ref.sequence, ref.epoch, error.code, error.message))
    for block in message.blocks:
        try:
            require_float(parts, session, block)
        except KvError as error:
            refusals.append(Refusal(NO_SEQUENCE, 0, error.code, error.message))
        else:
            parts.blocks.give_back(block.id)
            session.float_blocks -= 1
    return Acked(refusals=few(refusals))


def few(refusals: list[Refusal]) -> list[Refusal]:
    """What one answer has room for; the last says how many are not named."""
    rest = len(refusals) - MOST_REFUSALS
    if rest <= 0:
        return refusals
    more = Refusal(NO_SEQUENCE, 0, Conflict.code, f"{rest} more are not held either")
    return [*refusals[:MOST_REFUSALS], more]


def release_row(parts: Parts, session: Session, ref: SequenceRef, now_ns: int) -> None:
    sequence = parts.sequences.by_id.get(ref.sequence)
    if sequence is None or sequence.owner != session.holder:
        raise NotFound("this session has no such sequence")
    if ref.epoch not in sequence.held_rows:
        running = sequence.state == SequenceState.OPEN and sequence.epoch == ref.epoch
        raise Conflict("the sequence still runs") if running else NotFound("the row is released already")
    parts.end_row(sequence, ref.epoch, now_ns)


def fenced(parts: Parts, session: Session, message: FencedMessage, now_ns: int) -> Acked:
    """The worker has stopped and dropped a sequence: one that lives waits for another worker, and nothing of it is in
    quarantine; what was held of an ended one comes back as by a Release."""
    sequence = parts.sequences.by_id.get(message.sequence)
    live = sequence is not None and sequence.state in (SequenceState.OPEN, SequenceState.PREEMPTED)
    if live and sequence is not None and (sequence.owner, sequence.epoch) == (session.holder, message.epoch):
        orphan(parts, sequence, now_ns, quarantine=False)
        return Acked()
    return release(parts, session, Release(rows=[SequenceRef(message.sequence, message.epoch)]), now_ns)
