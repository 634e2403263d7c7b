"""Commit and Release: what a worker says it computed, judged entry by entry, and what it lets go of.

    before   0 ....... base_kv ....... base_recorded
    after    0 ............... kv_len ............ base_recorded + len(token_ids)

KV of a token exists only once the token was recorded, and a sampled token needs the KV of all before it.
"""

from kvmanager.errors import Conflict, KvError, NotFound
from kvmanager.forks import Room, ahead, child_of, judge_ahead, keep, keep_finished, without_row
from kvmanager.judging import judge, judge_blocks, judge_copies, judge_kv, judge_tokens, require_float
from kvmanager.layout import STORES_OF_A_RECORD, within
from kvmanager.lost_searches import drop_members
from kvmanager.messages import (
    Acked,
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
from kvmanager.searches import in_groups, reserve
from kvmanager.sequences import Role, Sequence, SequenceState
from kvmanager.sessions import Session

NO_SEQUENCE = SequenceId(bytes(16))
MOST_REFUSALS = 4096  # that a Release's answer names


def commit(parts: Parts, session: Session, message: Commit, now_ns: int) -> Acked:
    """Apply each entry that holds; name the others. Invalid for more entries than one operation has room for."""
    forks = [entry for entry in message.entries if entry.fork is not None]
    stores = len(message.entries) + 2 * len(forks)  # of whole records
    within("entries, a fork for three", stores, 0, STORES_OF_A_RECORD * parts.layout.num_records)
    room = Room.of(parts, message.entries) if forks else None
    refusals = []
    for entries in in_groups(parts, message.entries):
        refusals += apply_group(parts, session, entries, room, now_ns)
    return Acked(refusals=refusals)


def apply_group(
    parts: Parts, session: Session, entries: list[CommitEntry], room: Room | None, now_ns: int
) -> list[Refusal]:
    """One entry, or those of a search: all of them or, refused for want of room, none."""
    done = 0
    try:
        if room is not None and len(entries) > 1:
            reserve(parts, entries, room)
        for entry in entries:
            if room is not None and entry.fork is not None:
                fork_entry(parts, session, entry, room, now_ns)
            else:
                apply_entry(parts, session, judge(parts, session, entry), entry, now_ns)
            done += 1
    except KvError as error:
        refused = entries[done:]
        return [Refusal(one.sequence, one.epoch, error.code, error.message) for one in refused]
    return []


def fork_entry(parts: Parts, session: Session, entry: CommitEntry, room: Room, now_ns: int) -> None:
    """Judge a fork and its first entry, then store both."""
    assert entry.fork is not None
    child = child_of(parts, session, entry, entry.fork, now_ns)
    ended = without_row(entry)
    held = parts.blocks_of(entry.kv_len) if ended else len(child.shared)
    judge_tokens(parts, child.sequence, entry)
    judge_blocks(parts, session, child.sequence, entry, held)
    judge_copies(parts, child.sequence, entry)
    if ahead(entry):
        judge_ahead(parts, entry)
    else:
        judge_kv(parts, child.sequence, entry, held)
    room.take(entry.base_recorded, len(child.request))
    if ended:
        keep_finished(parts, child, entry, now_ns)
    else:
        keep(parts, child)
        apply_entry(parts, session, child.sequence, entry, now_ns)


# ------------------------------------------------------------------------------------------------- applying


def apply_entry(parts: Parts, session: Session, sequence: Sequence, entry: CommitEntry, now_ns: int) -> None:
    if sequence.state == SequenceState.FINISHED:  # a hypothesis that is not among the best
        parts.sequences.forget(sequence)
        return
    if entry.blocks:
        take_blocks(parts, session, sequence, [ref.id for ref in entry.blocks])
    if entry.token_ids:
        parts.sequences.append(sequence, entry.token_ids)
    if entry.copies_done:
        parts.end_copy(sequence, now_ns)
    if not sequence.stepped and entry.kv_len > sequence.kv_len:
        prove_harmless(parts, sequence)
    if entry.preempted:
        parked = sequence.role == Role.SEARCH and sequence.kv_len == len(sequence.tokens)
        parts.preemptions += not parked  # its beams run
        parts.hold_row(sequence, SequenceState.PREEMPTED)
    else:
        if entry.kv_len > sequence.kv_len:
            sequence.kv_len, sequence.moved_ns = entry.kv_len, now_ns
        if entry.kv_len // parts.block_size > sequence.tip.depth and sequence.row >= 0:
            seal_full(parts, sequence)
    if entry.finish:
        sequence.stop_token_id = entry.stop_token_id
        finish(parts, sequence, entry.finish, now_ns)
    sequence.score = entry.score
    store(parts, sequence)


def store(parts: Parts, sequence: Sequence) -> None:
    """What an entry has changed."""
    if sequence.lost:
        parts.sequences.forget(sequence)
    elif sequence.state == SequenceState.OPEN:
        parts.sequences.put_lengths(sequence)
        if sequence.role == Role.BEAM:
            parts.sequences.put_score(sequence)
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
    parts.sequences.over(sequence)
    if sequence.role == Role.SEARCH:
        drop_members(parts, sequence, now_ns)


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
    if sequence.lost:
        parts.sequences.forget(sequence)


def fenced(parts: Parts, session: Session, message: FencedMessage, now_ns: int) -> Acked:
    """The worker has stopped and dropped a sequence: one that lives waits for another worker, and nothing of it is in
    quarantine; what was held of an ended one comes back as by a Release."""
    sequence = parts.sequences.by_id.get(message.sequence)
    live = sequence is not None and sequence.state in (SequenceState.OPEN, SequenceState.PREEMPTED)
    if live and sequence is not None and (sequence.owner, sequence.epoch) == (session.holder, message.epoch):
        orphan(parts, sequence, now_ns, quarantine=False)
        return Acked()
    return release(parts, session, Release(rows=[SequenceRef(message.sequence, message.epoch)]), now_ns)
