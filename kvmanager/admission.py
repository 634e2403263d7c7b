"""OpenOrAdopt: may this sequence start (or go on), and with which cached blocks? Protocol rules 1, 10 and 11.

    0 ......................... cached_len ..... len(token_ids) ............ prompt_len + max_tokens
    [ cached blocks ][ a begin, copied ][ to be computed: from the float ][ output: reserved in the token arena alone ]

A sequence whose worker is gone is adopted (`orphans`): it comes before all that is new.
"""

from array import array

from kvmanager.errors import Conflict, Invalid, KvError, ResourceExhausted
from kvmanager.following import follow, wait_behind
from kvmanager.layout import within
from kvmanager.lost_searches import members_of, opened_search, take_over_search
from kvmanager.messages import CopyOrder, Fork, Opened, OpenKind, OpenOrAdopt, Refused, Wait
from kvmanager.orphans import adopt, lacks_fresh, own
from kvmanager.parts import Parts
from kvmanager.prefix import Begin
from kvmanager.records import MAX_REQUEST_BYTES, MAX_REQUEST_ID_BYTES
from kvmanager.room import capacity_of, make_room
from kvmanager.sequences import Role, Sequence, SequenceState
from kvmanager.sessions import Session


def open_sequence(
    parts: Parts, session: Session, message: OpenOrAdopt, now_ns: int
) -> Opened | Wait | Refused:
    """The daemon's decision. Nothing has changed unless it is Opened."""
    try:
        validate(parts, message)
        known = parts.sequences.by_id.get(message.sequence)
        if known is None:
            return open_new(parts, session, message, now_ns)
        return reopen(parts, session, known, message, now_ns)
    except KvError as error:
        return Refused(
            sequence=message.sequence, code=error.code, message=error.message, details=error.details
        )


def validate(parts: Parts, message: OpenOrAdopt) -> None:
    """Invalid for a field out of bounds, whatever the state."""
    spec = parts.spec
    validate_terms(parts, message)
    within("sequence bytes", len(message.sequence), 16, 16)
    within("prompt_len", message.prompt_len, 0, len(message.token_ids))
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
    capacity = capacity_of(parts, message.prompt_len or len(message.token_ids), message.max_tokens)
    within("token_ids length", len(message.token_ids), 1, capacity)
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
        moved_ns=now_ns,
        bypass_prefix=message.bypass_prefix or message.no_cache,
        private=message.no_cache,
        prompt_len=message.prompt_len or len(message.token_ids),
        stepped=False,
        tokens=array("I", message.token_ids),
        role=Role.SEARCH if message.beam_width else Role.PLAIN,
        width=message.beam_width,
    )
    hits = find_prefix(parts, sequence)
    wait = follow(parts, session, sequence, hits, now_ns) or lacks_blocks(parts, session, sequence, hits)
    if wait:
        return wait
    begin = find_begin(parts, session, sequence, hits)
    make_room(parts, sequence, message.request, capacity)
    start(parts, session, sequence, hits, begin)
    if sequence.recorded_len > sequence.prompt_len:  # its record was lost
        parts.reprefilled += sequence.recorded_len - 1 - sequence.kv_len
    return opened(parts, sequence, OpenKind.NEW)


def reopen(
    parts: Parts, session: Session, known: Sequence, message: OpenOrAdopt, now_ns: int
) -> Opened | Wait:
    """A sequence with a record: yours already, yours again after a preemption, or yours after another's end."""
    if known.state == SequenceState.FINISHED:
        raise Conflict("the sequence is finished", finish=known.finish.name)
    if known.state == SequenceState.ORPHANED:
        return take_over(parts, session, known, message, now_ns)
    if known.owner != session.holder:
        raise Conflict("another worker runs the sequence")
    if known.state == SequenceState.PREEMPTED and (members := members_of(parts, known)):
        return opened_search(known, members, OpenKind.YOURS)  # the answer before was lost
    if known.state == SequenceState.OPEN:
        return opened(parts, known, OpenKind.YOURS)
    if array("I", message.token_ids) != known.tokens:
        raise Invalid(
            "token_ids differ from the recorded ones", field="token_ids", recorded=known.recorded_len
        )
    wait = behind_suspect(parts, session, known, now_ns)
    return wait or resume(parts, session, known, message, OpenKind.RESUMED, now_ns)


def take_over(
    parts: Parts, session: Session, known: Sequence, message: OpenOrAdopt, now_ns: int
) -> Opened | Wait:
    """Adopt a sequence that has no worker; one without KV begins anew, from the cache."""
    common = min(len(message.token_ids), known.recorded_len)
    if array("I", message.token_ids)[:common] != known.tokens[:common] or common < known.prompt_len:
        raise Invalid(
            "token_ids differ from the recorded ones", field="token_ids", recorded=known.recorded_len
        )
    if members := members_of(parts, known):
        return take_over_search(parts, session, known, members, now_ns)
    wait = behind_suspect(parts, session, known, now_ns)
    if wait is None and known.row < 0:
        return resume(parts, session, known, message, OpenKind.ADOPTED, now_ns)
    wait = wait or lacks_fresh(parts, known)
    if wait:
        return wait
    adopt(parts, session, known, now_ns)
    return opened(parts, known, OpenKind.ADOPTED)


def behind_suspect(parts: Parts, session: Session, known: Sequence, now_ns: int) -> Wait | None:
    """Suspects run alone, one by one, also one that was preempted before its first step: a death of both at once
    would count against both."""
    if not known.deaths:
        return None
    other = next((s for s in parts.sequences.open.values() if suspect(s, session, known)), None)
    if other is None:
        return None
    return wait_behind(parts, session, known, other, other.kv_len + 1, now_ns)


def suspect(sequence: Sequence, session: Session, known: Sequence) -> bool:
    """Whether workers died of it, perhaps, and this session has not shown yet that it is harmless. Beams of one search
    go together."""
    if known.role == sequence.role == Role.BEAM and known.group == sequence.group:
        return False
    return sequence.deaths > 0 and not sequence.stepped and sequence.owner == session.holder


def resume(  # noqa: PLR0917 - who, what, how and when
    parts: Parts, session: Session, known: Sequence, message: OpenOrAdopt, kind: OpenKind, now_ns: int
) -> Opened | Wait:
    """Give a sequence without a row a new one, which begins with what is cached of it. Who adopts waits for nobody."""
    # What is still to be computed decides, not how it began.
    known.bypass_prefix, known.private = message.bypass_prefix or message.no_cache, message.no_cache
    hits = find_prefix(parts, known)
    wait = follow(parts, session, known, hits, now_ns) if kind == OpenKind.RESUMED else None
    wait = wait or lacks_blocks(parts, session, known, hits)
    if wait:
        return wait
    if not parts.rows.unused:
        raise ResourceExhausted("all table rows are taken", rows=len(parts.rows.blocks))
    begin = find_begin(parts, session, known, hits)
    known.epoch, known.moved_ns = known.epoch + 1, now_ns
    if kind == OpenKind.ADOPTED:
        own(parts, session, known)
    known.state = SequenceState.OPEN
    parts.sequences.open[known.slot] = known
    start(parts, session, known, hits, begin)
    lost, known.lost_len = max(0, known.lost_len - known.kv_len), 0
    parts.reprefilled += lost
    return opened(parts, known, kind, lost)


def find_prefix(parts: Parts, sequence: Sequence) -> list[int]:
    """Cached blocks; never the last token's, whose logits are still to be computed."""
    if sequence.bypass_prefix:
        return []
    most = (sequence.recorded_len - 1) // parts.block_size
    return parts.prefix.find(sequence.tenant, sequence.tokens.tobytes(), most)


def lacks_blocks(
    parts: Parts, session: Session, sequence: Sequence, hits: list[int], source: int | None = None
) -> Wait | None:
    """Wait while the prompts in flight, with this one, could not be finished (rule 1). `source`: a block beside
    the hits that is to be kept."""
    blocks, kept = parts.blocks, hits if source is None else [*hits, source]
    available = blocks.available + session.float_blocks - sum(blocks.refs[block] == 0 for block in kept)
    needed = parts.blocks_of(sequence.recorded_len) - len(hits) + 1 + parts.reserve
    needed -= sequence.slot in parts.sequences.orphans  # it has no tail that would be copied
    for other in parts.sequences.open.values():
        needed += max(0, other.target_blocks - len(parts.rows.blocks[other.row]))
    if needed <= available:
        return None
    return Wait(sequence=sequence.id, needed_blocks=needed, available_blocks=max(0, available))


def start(parts: Parts, session: Session, sequence: Sequence, hits: list[int], begin: Begin | None) -> None:
    """Give the sequence its row, which begins with the cached blocks and perhaps a copy of part of the next."""
    for block in hits:
        parts.blocks.share(block)
    sequence.tip = parts.prefix.tip(sequence.tenant, hits, private=sequence.private)
    sequence.owner = session.holder
    sequence.row = parts.rows.open(sequence.slot, sequence.epoch, hits)
    sequence.kv_len = sequence.cached_len = len(hits) * parts.block_size
    if begin is not None:
        parts.order_copy(sequence, session, begin.source, begin.slots)
        sequence.kv_len = sequence.cached_len = sequence.cached_len + begin.slots
        parts.partial_hits += begin.slots
    sequence.target_blocks = parts.blocks_of(sequence.recorded_len)
    parts.sequences.put(sequence)
    if not sequence.bypass_prefix:
        parts.prefix_queries += sequence.recorded_len
        parts.prefix_hits += sequence.cached_len


def find_begin(parts: Parts, session: Session, sequence: Sequence, hits: list[int]) -> Begin | None:
    """What to begin the next block with: at least half of it, not the last token. None also where keeping the source
    during the copy would take room from prompts in flight, or the pool has no block left for the copy."""
    if sequence.bypass_prefix or sequence.copy is not None:
        return None
    size, blocks = parts.block_size, parts.blocks
    end = min((len(hits) + 1) * size, sequence.recorded_len - 1)
    wanted = sequence.tokens[len(hits) * size : end].tobytes()
    begin = parts.prefix.find_begin(sequence.tenant, hits, wanted)
    if begin is None or lacks_blocks(parts, session, sequence, hits, begin.source):
        return None
    unused = sum(blocks.refs[block] == 0 for block in (*hits, begin.source))
    return begin if parts.grantable > unused + 1 else None  # it is one more that may have to be adopted


def opened(parts: Parts, sequence: Sequence, kind: OpenKind, lost_len: int = 0) -> Opened:
    return Opened(
        sequence=sequence.id,
        epoch=sequence.epoch,
        kind=kind,
        recorded_len=sequence.recorded_len,
        kv_len=sequence.kv_len,
        cached_len=sequence.cached_len,
        blocks=[parts.blocks.ref(block) for block in parts.rows.blocks[sequence.row]],
        token_ids=list(sequence.tokens) if kind in (OpenKind.YOURS, OpenKind.ADOPTED) else (),
        lost_len=lost_len,
        alone=sequence.deaths > 0,
        copies=copies_of(parts, sequence),
    )


def copies_of(parts: Parts, sequence: Sequence) -> tuple[CopyOrder, ...]:
    """What is to be copied before the sequence's next step."""
    copy, ref = parts.pending_copy(sequence), parts.blocks.ref
    return () if copy is None else (CopyOrder(ref(copy.source), ref(copy.destination), copy.slots),)
