"""Sequence records: what each sequence is, who owns it, which tokens are recorded and which KV is valid.

Tokens and request bytes live in two arenas; a record names its extents. `recorded_len` only grows and is the length
of `tokens`; `kv_len` counts valid slots and may fall. Rows and blocks are not touched here.
"""

import struct
from array import array
from collections import deque
from collections.abc import Sequence as ListOf
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from kvmanager.arena import Arena
from kvmanager.layout import MetaLayout
from kvmanager.messages import FinishReason, SequenceId
from kvmanager.prefix import Tip
from kvmanager.records import MAX_REQUEST_ID_BYTES, SEQUENCE
from kvmanager.store import Store

RECORD = struct.Struct(f"<BBBBIIIQIIIIIiIIQQQQQQIIII16s16s32s{MAX_REQUEST_ID_BYTES}s")
LENGTHS = struct.Struct("<II")  # recorded_len, kv_len
LENGTHS_AT = 8
COPY = struct.Struct("<III")  # source, destination, slots
COPY_AT = 104


class SequenceState(IntEnum):
    UNUSED = 0
    OPEN = 1
    PREEMPTED = 2
    FINISHED = 3
    ORPHANED = 4  # without a worker: the next one that asks for it adopts it


class Copy(NamedTuple):
    """A pending copy order: the first `slots` slots of `destination`, a tail in the row, are still in `source`."""

    source: int
    destination: int
    slots: int


NO_COPY = Copy(0, 0, 0)


@dataclass(slots=True, kw_only=True)
class Sequence:
    """One record and what is derived from it."""

    id: SequenceId
    group: bytes
    index: int
    tenant: bytes
    request_id: str
    request_bytes: int
    max_tokens: int
    priority: int
    arrival_ns: int
    opened_ns: int
    bypass_prefix: bool
    prompt_len: int
    tokens: "array[int]"
    slot: int = -1
    state: SequenceState = SequenceState.OPEN
    finish: FinishReason = FinishReason.NONE
    stop_token_id: int = 0
    epoch: int = 1
    owner: int = 0  # session slot + 1
    row: int = -1
    kv_len: int = 0
    cached_len: int = 0
    token_offset: int = 0
    token_capacity: int = 0
    request_offset: int = 0
    finished_ns: int = 0  # or orphaned
    deaths: int = 0  # of workers that ran it and had committed nothing of it (rule 12)
    stepped: bool = True  # its owner has committed something of it
    target_blocks: int = 0  # blocks of the tokens recorded when it was opened
    tip: Tip = Tip(0, b"", 0)  # noqa: RUF009 - a tuple
    revoked: bool = False
    lost_len: int = 0  # slots that were valid in a pool whose KV was given up; until it is adopted
    moved_ns: int = 0  # when its KV last grew, or it was opened
    copy: Copy | None = None  # of the open row, or of one that its former owner has not released
    private: bool = False  # look-ups find none of its blocks; not in the record: an opener says it again
    held_rows: dict[int, int] = field(
        default_factory=dict
    )  # epoch → row that its former owner has not released

    @property
    def recorded_len(self) -> int:
        return len(self.tokens)


class SequenceTable:
    """All sequence records of a pool."""

    def __init__(self, layout: MetaLayout, store: Store) -> None:
        self._store, self._layout = store, layout
        self.slots: list[Sequence | None] = [None] * layout.num_records
        self.unused = list(range(layout.num_records))[::-1]
        self.by_id: dict[SequenceId, Sequence] = {}
        self.open: dict[int, Sequence] = {}  # by record
        self.orphans: dict[int, Sequence] = {}  # by record
        self.finished: deque[Sequence] = deque()  # oldest first
        self.token_arena = Arena(layout.arena_tokens)
        self.request_arena = Arena(layout.request_bytes)

    def add(self, sequence: Sequence, request: bytes, token_capacity: int) -> bool:
        """Store a new record with its extents; False, and nothing changed, when there is no room."""
        offset = self.token_arena.take(token_capacity) if self.unused else None
        if offset is None:
            return False
        request_offset = self.request_arena.take(len(request))
        if request_offset is None:
            self.token_arena.give(offset, token_capacity)
            return False
        sequence.slot = self.unused.pop()
        sequence.token_offset, sequence.token_capacity = offset, token_capacity
        sequence.request_offset = request_offset
        self._put_tokens(sequence, 0, sequence.tokens)
        if request:
            self._store.put(self._layout.request_arena_at + request_offset, request)
        self.know(sequence)
        self.put(sequence)
        return True

    def know(self, sequence: Sequence) -> None:
        """Enter a sequence that has its record into the look-ups."""
        self.slots[sequence.slot] = sequence
        self.by_id[sequence.id] = sequence
        if sequence.state == SequenceState.OPEN:
            self.open[sequence.slot] = sequence
        elif sequence.state == SequenceState.ORPHANED:
            self.orphans[sequence.slot] = sequence
        elif sequence.state == SequenceState.FINISHED:
            self.finished.append(sequence)

    def append(self, sequence: Sequence, token_ids: ListOf[int]) -> None:
        """Record new tokens; `put_lengths` or `put` follows."""
        self._put_tokens(sequence, len(sequence.tokens), token_ids)
        sequence.tokens.extend(token_ids)

    def request_of(self, sequence: Sequence) -> bytes:
        """The request's bytes, as they were told."""
        at = self._layout.request_arena_at + sequence.request_offset
        return bytes(self._store.raw[at : at + sequence.request_bytes])

    def forget(self, sequence: Sequence) -> None:
        """Drop a finished record that holds no row."""
        assert sequence.state == SequenceState.FINISHED
        assert not sequence.held_rows
        self.slots[sequence.slot] = None
        self.unused.append(sequence.slot)
        del self.by_id[sequence.id]
        self.finished.remove(sequence)
        self.token_arena.give(sequence.token_offset, sequence.token_capacity)
        self.request_arena.give(sequence.request_offset, sequence.request_bytes)
        self._store.put(self._layout.sequences_at + sequence.slot * SEQUENCE.itemsize, bytes(8))

    def put_lengths(self, s: Sequence) -> None:
        at = self._layout.sequences_at + s.slot * SEQUENCE.itemsize + LENGTHS_AT
        self._store.put(at, LENGTHS.pack(len(s.tokens), s.kv_len))

    def put_copy(self, s: Sequence) -> None:
        at = self._layout.sequences_at + s.slot * SEQUENCE.itemsize + COPY_AT
        self._store.put(at, COPY.pack(*(s.copy or NO_COPY)))

    def put(self, s: Sequence) -> None:
        """Store the whole record."""
        request_id = s.request_id.encode()
        numbers = (s.cached_len, s.prompt_len, s.max_tokens, s.priority, s.stop_token_id, s.request_bytes)
        extents = s.token_offset, s.token_capacity, s.request_offset
        times = s.arrival_ns, s.opened_ns, s.finished_ns
        ids = s.id, s.group, s.tenant, request_id
        state = s.state, s.finish, s.bypass_prefix, s.deaths, s.index, len(s.tokens), s.kv_len
        copy = *(s.copy or NO_COPY), len(request_id)
        record = RECORD.pack(*state, s.epoch, s.owner, s.row + 1, *numbers, *extents, *times, *copy, *ids)
        self._store.put(self._layout.sequences_at + s.slot * SEQUENCE.itemsize, record)

    def _put_tokens(self, sequence: Sequence, start: int, token_ids: ListOf[int]) -> None:
        at = self._layout.token_arena_at + (sequence.token_offset + start) * 4
        if token_ids:
            self._store.put(at, struct.pack(f"<{len(token_ids)}I", *token_ids))
