"""OpenOrAdopt: may this sequence start (or go on), and with which cached blocks? Protocol rules 1, 10 and 11.

    0 ......... cached_len ............ len(token_ids) ............ prompt_len + max_tokens
    [ cached blocks ][ to be computed: from the float ][ output: never reserved in blocks, but in the token arena ]

Adopting another worker's sequence is not built: its owner's end closes it.
"""

from array import array
from typing import Final

from kvmanager.errors import Conflict, Invalid, KvError, PoolTooSmall, ResourceExhausted
from kvmanager.layout import within
from kvmanager.messages import Fork, Opened, OpenKind, OpenOrAdopt, Refused, Wait
from kvmanager.parts import Parts
from kvmanager.records import MAX_REQUEST_BYTES, MAX_REQUEST_ID_BYTES
from kvmanager.sequences import Role, Sequence, SequenceState
from kvmanager.sessions import Session

RECORDS_OF_A_BEAM: Final = 3  # its own, its successor's within one commit, a hypothesis'


def open_sequence(
    parts: Parts, session: Session, message: OpenOrAdopt, now_ns: int
) -> Opened | Wait | Refused:
    """The daemon's decision. Nothing has changed unless it is Opened."""
    try:
        validate(parts, message)
        known = parts.sequences.by_id.get(message.sequence)
        if known is None:
            return open_new(parts, session, message, now_ns)
        return reopen(parts, session, known, message)
    except KvError as error:
        return Refused(
            sequence=message.sequence, code=error.code, message=error.message, details=error.details
        )


def validate(parts: Parts, message: OpenOrAdopt) -> None:
    """Invalid for a field out of bounds, whatever the state."""
    spec = parts.spec
    validate_terms(parts, message)
    within("sequence bytes", len(message.sequence), 16, 16)
    within("token_ids length", len(message.token_ids), 1, spec.max_model_len)
    within("token id", max(message.token_ids), 0, spec.vocab_size - 1)
    within("token id", min(message.token_ids), 0, spec.vocab_size - 1)


def validate_terms(parts: Parts, message: OpenOrAdopt | Fork) -> None:
    """Invalid for a field out of bounds of those that every new record has."""
    within("group bytes", len(message.group), 16, 16)
    within("tenant bytes", len(message.tenant), 32, 32)
    within("request bytes", len(message.request), 0, MAX_REQUEST_BYTES)
    within("request_id bytes", len(message.request_id.encode()), 0, MAX_REQUEST_ID_BYTES)
    within("index", message.index, 0, 2**32 - 1)
    within("priority", message.priority, -(2**31), 2**31 - 1)
    within("arrival_ns", message.arrival_ns, 0, 2**64 - 1)
    within("max_tokens", message.max_tokens, 1, parts.spec.max_model_len)


def open_new(parts: Parts, session: Session, message: OpenOrAdopt, now_ns: int) -> Opened | Wait:
    """A sequence that nobody knew."""
    capacity = capacity_of(parts, len(message.token_ids), message.max_tokens)
    sequence = Sequence(
        id=message.sequence,
        group=message.group,
        index=message.index,
        tenant=message.tenant,
        request_id=message.request_id,
        request_bytes=len(message.request),
        max_tokens=message.max_tokens,
        priority=message.priority,
        arrival_ns=message.arrival_ns,
        opened_ns=now_ns,
        bypass_prefix=message.bypass_prefix,
        prompt_len=len(message.token_ids),
        tokens=array("I", message.token_ids),
        role=Role.SEARCH if message.beam_width else Role.PLAIN,
        width=message.beam_width,
    )
    hits = find_prefix(parts, sequence)
    wait = lacks_blocks(parts, session, sequence, hits)
    if wait:
        return wait
    make_room(parts, sequence, message.request, capacity)
    start(parts, session, sequence, hits)
    return opened(parts, sequence, OpenKind.NEW)


def reopen(parts: Parts, session: Session, known: Sequence, message: OpenOrAdopt) -> Opened | Wait:
    """A sequence with a record: yours already, or yours again after a preemption."""
    if known.state == SequenceState.FINISHED:
        raise Conflict("the sequence is finished", finish=known.finish.name)
    if known.owner != session.holder:
        raise Conflict("another worker runs the sequence")
    if known.state == SequenceState.OPEN:
        return opened(parts, known, OpenKind.YOURS)
    if array("I", message.token_ids) != known.tokens:
        raise Invalid(
            "token_ids differ from the recorded ones", field="token_ids", recorded=known.recorded_len
        )
    known.bypass_prefix = message.bypass_prefix  # what is still to be computed decides, not how it began
    hits = find_prefix(parts, known)
    wait = lacks_blocks(parts, session, known, hits)
    if wait:
        return wait
    if not parts.rows.unused:
        raise ResourceExhausted("all table rows are taken", rows=len(parts.rows.blocks))
    known.epoch += 1
    known.state = SequenceState.OPEN
    parts.sequences.open[known.slot] = known
    start(parts, session, known, hits)
    return opened(parts, known, OpenKind.RESUMED)


def capacity_of(parts: Parts, prompt_len: int, max_tokens: int) -> int:
    """Tokens that a record has room for. Invalid or PoolTooSmall if there can never be as many."""
    capacity = prompt_len + max_tokens
    within("token_ids length + max_tokens", capacity, 1, parts.spec.max_model_len)
    refuse_too_large(parts, capacity)
    return capacity


def refuse_too_large(parts: Parts, tokens: int) -> None:
    """One block is kept back: a sequence alone must be able to finish beside another's tail."""
    needed, usable = parts.blocks_of(tokens), parts.blocks.num_blocks - 1
    if needed > usable:
        raise PoolTooSmall(
            f"prompt and max_tokens need {needed} blocks, the pool has {usable}",
            needed_blocks=needed,
            usable_blocks=usable,
        )


def find_prefix(parts: Parts, sequence: Sequence) -> list[int]:
    """Cached blocks; never the last token's, whose logits are still to be computed."""
    if sequence.bypass_prefix:
        return []
    most = (sequence.recorded_len - 1) // parts.block_size
    return parts.prefix.find(sequence.tenant, sequence.tokens.tobytes(), most)


def lacks_blocks(parts: Parts, session: Session, sequence: Sequence, hits: list[int]) -> Wait | None:
    """Wait while the prompts in flight, with this one, could not be finished (rule 1)."""
    blocks = parts.blocks
    available = blocks.available + session.float_blocks - sum(blocks.refs[hit] == 0 for hit in hits)
    needed = parts.blocks_of(sequence.recorded_len) - len(hits) + 1
    for other in parts.sequences.open.values():
        needed += max(0, other.target_blocks - len(parts.rows.blocks[other.row]))
    if needed <= available:
        return None
    return Wait(sequence=sequence.id, needed_blocks=needed, available_blocks=max(0, available))


def make_room(parts: Parts, sequence: Sequence, request: bytes, capacity: int) -> None:
    """Store the record. Finished records make room before their time, oldest first."""
    while not (
        parts.rows.unused
        and leaves_room(parts, sequence, capacity)
        and parts.sequences.add(sequence, request, capacity)
    ):
        forget_oldest(parts)


def leaves_room(parts: Parts, sequence: Sequence, capacity: int) -> bool:
    """Whether the searches that run still find room for all their records: in one commit as many beams begin as end,
    and as many hypotheses are kept. A search itself begins only when it leaves that room."""
    table = parts.sequences
    if sequence.group in table.searches or not (table.searches or sequence.role == Role.SEARCH):
        return True
    owed_records, owed_tokens = owed(parts)
    if sequence.role == Role.SEARCH:
        most = RECORDS_OF_A_BEAM * sequence.width
        owed_records, owed_tokens = owed_records + most, owed_tokens + most * capacity
    return len(table.unused) > owed_records and table.token_arena.free_units >= owed_tokens + capacity


def owed(parts: Parts) -> tuple[int, int]:
    """Records and tokens that running searches may still take."""
    records = tokens = 0
    for group, width in parts.sequences.searches.items():
        members = [one for one in parts.sequences.by_id.values() if one.group == group]
        capacity = max(one.token_capacity for one in members)
        left = max(0, RECORDS_OF_A_BEAM * width - sum(one.role == Role.BEAM for one in members))
        records, tokens = records + left, tokens + left * capacity
    return records, tokens


def forget_oldest(parts: Parts) -> None:
    """Drop a finished record before its time; ResourceExhausted without any."""
    oldest = next((old for old in parts.sequences.finished if not old.held_rows), None)
    if oldest is None:
        raise ResourceExhausted(
            "no room for another sequence's record, tokens or request",
            records=parts.layout.num_records,
            free_records=len(parts.sequences.unused),
            free_tokens=parts.sequences.token_arena.free_units,
        )
    parts.sequences.forget(oldest)


def start(parts: Parts, session: Session, sequence: Sequence, hits: list[int]) -> None:
    """Give the sequence its row, which begins with the cached blocks."""
    blocks = parts.blocks
    for block in hits:
        blocks.share(block)
    sequence.tip = parts.prefix.tip(sequence.tenant, hits)
    sequence.owner = session.holder
    sequence.row = parts.rows.open(sequence.slot, sequence.epoch, hits)
    sequence.kv_len = sequence.cached_len = len(hits) * parts.block_size
    sequence.target_blocks = parts.blocks_of(sequence.recorded_len)
    parts.sequences.put(sequence)
    if not sequence.bypass_prefix:
        parts.prefix_queries += sequence.recorded_len
        parts.prefix_hits += sequence.cached_len


def opened(parts: Parts, sequence: Sequence, kind: OpenKind) -> Opened:
    return Opened(
        sequence=sequence.id,
        epoch=sequence.epoch,
        kind=kind,
        recorded_len=sequence.recorded_len,
        kv_len=sequence.kv_len,
        cached_len=sequence.cached_len,
        blocks=[parts.blocks.ref(block) for block in parts.rows.blocks[sequence.row]],
        token_ids=list(sequence.tokens) if kind == OpenKind.YOURS else (),
    )
