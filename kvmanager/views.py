"""Read-only pictures of a pool for status, get and describe: plain records with the fields of kvmanager.proto."""

from collections.abc import Iterator
from dataclasses import dataclass

from kvmanager.blocks import GRANTED, SEALED, BlockState
from kvmanager.errors import Conflict, NotFound
from kvmanager.messages import FinishReason, Holding, Holdings, SequenceId, SessionId
from kvmanager.parts import Parts
from kvmanager.sequences import Sequence, SequenceState
from kvmanager.sessions import Session, SessionState

SECOND = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCounts:
    """By state; the first five add up to the pool. `cached` and `shared` are parts of `sealed`."""

    free: int
    granted: int
    tail: int
    sealed: int
    quarantined: int
    cached: int
    shared: int
    pinned: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockInfo:
    pool: str
    id: int
    generation: int
    state: str
    refcount: int
    holder: str
    hash: str
    parent_hash: str
    depth: int
    idle_seconds: float
    indexed: bool
    sequences: list[str]
    token_ids: list[int]
    pinned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceInfo:
    pool: str
    id: str
    request_id: str
    index: int
    worker: str
    epoch: int
    prompt_len: int
    recorded_len: int
    kv_len: int
    cached_len: int
    priority: int
    state: str
    finish: str
    num_blocks: int
    age_seconds: float
    tenant: str
    blocks: list[int]
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    id: SessionId
    worker_id: str
    endpoint: str
    pid: int
    start_time: int
    attached_ns: int
    state: SessionState
    number: int
    float_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordView:
    """A sequence's recorded tokens from position `from_` on."""

    sequence: SequenceId
    epoch: int
    from_: int
    token_ids: list[int]
    recorded_len: int
    prompt_len: int
    finish: FinishReason
    stop_token_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundView:
    """What another gateway needs to go on with a sequence."""

    id: SequenceId
    index: int
    epoch: int
    group: bytes
    request: bytes
    prompt: list[int]
    session: bytes  # of its worker; empty: none
    finished: bool


def find_request(parts: Parts, request_id: str, tenant: bytes) -> list[FoundView]:
    own = [s for s in parts.sequences.by_id.values() if (s.request_id, s.tenant) == (request_id, tenant)]
    if not own:
        return []
    latest = max(own, key=lambda s: (s.arrival_ns, s.opened_ns)).group
    return [found_view(parts, s) for s in own if s.group == latest]


def found_view(parts: Parts, s: Sequence) -> FoundView:
    owner = parts.owner(s)
    return FoundView(
        id=s.id,
        index=s.index,
        epoch=s.epoch,
        group=s.group,
        request=parts.sequences.request_of(s),
        prompt=list(s.tokens[: s.prompt_len]),
        session=owner.id if owner else b"",
        finished=s.state == SequenceState.FINISHED,
    )


def holdings(parts: Parts, session: Session) -> Holdings:
    own = [s for s in parts.sequences.by_id.values() if s.owner == session.holder]
    return Holdings(
        sequences=[Holding(s.id, s.epoch, s.recorded_len, s.finish) for s in own],
        blocks=[parts.blocks.ref(block) for block in parts.blocks.held(session.holder, GRANTED)],
    )


def counts(parts: Parts) -> BlockCounts:
    blocks = parts.blocks
    free, granted, tail, sealed, quarantined = blocks.counts
    return BlockCounts(
        free=free,
        granted=granted,
        tail=tail,
        sealed=sealed,
        quarantined=quarantined,
        cached=blocks.cached.length,
        shared=blocks.shared,
        pinned=0,
    )


def users(parts: Parts) -> dict[int, list[str]]:
    """Block → the sequences whose rows name it."""
    found: dict[int, list[str]] = {}
    for row, owner in enumerate(parts.rows.sequence):
        sequence = parts.sequences.slots[owner - 1] if owner else None
        for block in parts.rows.blocks[row] if sequence else ():
            assert sequence is not None
            found.setdefault(block, []).append(sequence.id.hex())
    return found


def worker_of(parts: Parts, holder: int) -> str:
    session = parts.sessions.slots[holder - 1] if holder else None
    return session.worker_id if session else ""


def blocks(parts: Parts, now_ns: int, state: str | None, start: int) -> Iterator[BlockInfo]:
    """Blocks by id from `start` on; `state` None: all but free."""
    used = users(parts)
    for block in range(start, parts.blocks.num_blocks):
        name = BlockState(parts.blocks.state[block]).name.lower()
        if name == state or (state is None and name != "free"):
            yield block_info(parts, block, now_ns, used.get(block, []))


def block_info(parts: Parts, block: int, now_ns: int, sequences: list[str], whole: bool = False) -> BlockInfo:
    b = parts.blocks
    sealed, cached = b.state[block] == SEALED, b.state[block] == SEALED and b.refs[block] == 0
    return BlockInfo(
        pool=parts.spec.name,
        id=block,
        generation=b.generation[block],
        state=BlockState(b.state[block]).name.lower(),
        refcount=b.refs[block],
        holder=worker_of(parts, b.holder[block]),
        hash=b.key[block].hex() if sealed else "",
        parent_hash=b.parent_key[block].hex() if sealed else "",
        depth=b.depth[block],
        idle_seconds=max(0, now_ns - b.last_use[block]) * SECOND if cached else 0.0,
        indexed=bool(b.indexed[block]),
        sequences=sequences,
        token_ids=list(memoryview(b.tokens[block]).cast("I")) if whole and sealed else [],
        pinned=False,
    )


def describe_block(parts: Parts, block: int, now_ns: int) -> BlockInfo:
    if not 0 <= block < parts.blocks.num_blocks:
        raise NotFound(f"no block {block}, the pool has {parts.blocks.num_blocks}")
    return block_info(parts, block, now_ns, users(parts).get(block, []), whole=True)


def sequence_info(parts: Parts, s: Sequence, now_ns: int, whole: bool = False) -> SequenceInfo:
    row = s.row if s.row >= 0 else next(reversed(s.held_rows.values()), -1)
    blocks = parts.rows.blocks[row] if row >= 0 else []
    return SequenceInfo(
        pool=parts.spec.name,
        id=s.id.hex(),
        request_id=s.request_id,
        index=s.index,
        worker=worker_of(parts, s.owner),
        epoch=s.epoch,
        prompt_len=s.prompt_len,
        recorded_len=s.recorded_len,
        kv_len=s.kv_len,
        cached_len=s.cached_len,
        priority=s.priority,
        state=s.state.name.lower(),
        finish=s.finish.name.lower() if s.finish else "",
        num_blocks=len(blocks),
        age_seconds=max(0, now_ns - s.opened_ns) * SECOND,
        tenant=s.tenant[:4].hex(),
        blocks=list(blocks) if whole else [],
        row=row,
    )


def sequences(parts: Parts, now_ns: int) -> list[SequenceInfo]:
    """All records, oldest first."""
    known = sorted(parts.sequences.by_id.values(), key=lambda s: (s.opened_ns, s.slot))
    return [sequence_info(parts, s, now_ns) for s in known]


def describe_sequence(parts: Parts, prefix: str, now_ns: int) -> SequenceInfo:
    """By a hexadecimal prefix of its id: NotFound without a match, Conflict with several."""
    found = [s for s in parts.sequences.by_id.values() if s.id.hex().startswith(prefix.lower())]
    if not found:
        raise NotFound(f"no sequence {prefix!r}")
    if len(found) > 1:
        raise Conflict(f"{len(found)} sequences begin with {prefix!r}", matches=len(found))
    return sequence_info(parts, found[0], now_ns, whole=True)


def read_record(parts: Parts, sequence: SequenceId, from_: int) -> RecordView:
    s = parts.sequences.by_id.get(sequence)
    if s is None:
        raise NotFound("unknown sequence, or its time is over")
    return RecordView(
        sequence=s.id,
        epoch=s.epoch,
        from_=from_,
        token_ids=s.tokens[from_:].tolist(),
        recorded_len=s.recorded_len,
        prompt_len=s.prompt_len,
        finish=s.finish,
        stop_token_id=s.stop_token_id,
    )


def sessions(parts: Parts) -> list[SessionInfo]:
    return [
        SessionInfo(
            id=s.id,
            worker_id=s.worker_id,
            endpoint=s.endpoint,
            pid=s.pid,
            start_time=s.start_time,
            attached_ns=s.attached_ns,
            state=s.state,
            number=s.number,
            float_blocks=s.float_blocks,
        )
        for s in parts.sessions.by_id.values()
    ]
