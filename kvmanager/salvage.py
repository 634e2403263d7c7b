"""What is kept of a pool whose KV is given up: its requests. Protocol rule 14. Reads the buffer, changes nothing.

    old metadata    record: ids, tokens, request, lengths, row ──> KV     the row and all it leads to is not looked at
    new metadata    record: ids, tokens, request, kv_len 0, no row        an orphan; its adopter computes it again

Nothing else in the buffer vouches for a record, so each is judged by itself. Of two records that contradict each other
(one id, one extent) neither is kept: nobody can say which is true.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from kvmanager.endings import MOST_DEATHS
from kvmanager.integrity import record_faults
from kvmanager.layout import Buffer, MetaLayout, MetaView
from kvmanager.parts import Parts
from kvmanager.records import MAX_REQUEST_BYTES
from kvmanager.recover import sequence_of
from kvmanager.sequences import Sequence, SequenceState

MOST_EPOCHS = 2**63  # of a record that holds


class Carried(NamedTuple):
    """A sequence for another pool, and its request's bytes."""

    sequence: Sequence
    request: bytes


class Salvage(NamedTuple):
    carried: list[Carried]
    dropped: int  # records that do not hold

    @property
    def live(self) -> int:
        """Sequences that another worker will finish."""
        return sum(one.sequence.state == SequenceState.ORPHANED for one in self.carried)

    @property
    def lost_slots(self) -> int:
        """Slots that were valid, of live sequences."""
        return sum(one.sequence.lost_len for one in self.carried)


def salvage(buffer: Buffer, layout: MetaLayout, now_ns: int) -> Salvage:
    """Every record that holds; finished ones first, in the order in which they finished."""
    view = layout.view(buffer)
    used = view.sequences["state"].nonzero()[0].tolist()
    good = [slot for slot in used if not any(faults(layout, view, view.sequences[slot]))]
    kept = set(good) - set(contradictory(view, good))
    carried = [carry_over(view, slot, now_ns) for slot in kept]
    carried.sort(key=lambda one: (one.sequence.finished_ns, one.sequence.arrival_ns))
    return Salvage(carried, len(used) - len(kept))


def store(parts: Parts, carried: Iterable[Carried]) -> None:
    """Keeps them in a new pool of the same size; one operation each."""
    for sequence, request in carried:
        kept = parts.sequences.add(sequence, request, sequence.token_capacity)
        assert kept, "there was room for it before"
        parts.store.commit()


# ------------------------------------------------------------------------------------------------- judging


def faults(layout: MetaLayout, view: MetaView, record: Any) -> Iterator[str]:
    """Why a record cannot be kept, as far as it says itself."""
    yield from record_faults(layout, view, record)
    yield from extent_faults(layout, record)
    tokens = int(record["prompt_len"]) + int(record["max_tokens"])
    if not int(record["max_tokens"]) or tokens > layout.spec.max_model_len:
        yield f"max_tokens {record['max_tokens']}"
    if -(-tokens // layout.block_size) > layout.num_blocks - 1:
        yield f"{tokens} tokens in {layout.num_blocks} blocks"
    if not 0 < int(record["epoch"]) < MOST_EPOCHS:
        yield f"epoch {record['epoch']}"
    if int(record["deaths"]) > MOST_DEATHS:
        yield f"{record['deaths']} deaths"


def extent_faults(layout: MetaLayout, record: Any) -> Iterator[str]:
    """The record's tokens and request lie within their arenas."""
    if int(record["token_offset"]) + int(record["token_capacity"]) > layout.arena_tokens:
        yield "its tokens are beyond the arena"
    if int(record["request_bytes"]) > MAX_REQUEST_BYTES:
        yield f"a request of {record['request_bytes']} bytes"
    if int(record["request_offset"]) + int(record["request_bytes"]) > layout.request_bytes:
        yield "its request is beyond the arena"


def contradictory(view: MetaView, slots: list[int]) -> Iterator[int]:
    """Records with another one's id, or with tokens or request bytes where another one has its own."""
    records = view.sequences
    ids = Counter(records[slot]["id"].tobytes() for slot in slots)
    yield from (slot for slot in slots if ids[records[slot]["id"].tobytes()] > 1)
    for offset, length in (("token_offset", "token_capacity"), ("request_offset", "request_bytes")):
        yield from overlapping(
            [(int(records[slot][offset]), int(records[slot][length]), slot) for slot in slots]
        )


def overlapping(extents: list[tuple[int, int, int]]) -> Iterator[int]:
    """Of (start, length, who): who shares a unit with somebody."""
    end, last = 0, -1
    for start, length, slot in sorted(extent for extent in extents if extent[1]):
        if start < end:
            yield from (last, slot)
        if start + length > end:
            end, last = start + length, slot


# ------------------------------------------------------------------------------------------------- keeping


def carry_over(view: MetaView, slot: int, now_ns: int) -> Carried:
    """The sequence as another pool's record: nobody's, without KV; a finished one as it is."""
    sequence = sequence_of(view.sequences[slot], view, slot)
    had_kv = sequence.state in (SequenceState.OPEN, SequenceState.ORPHANED)
    request = view.request_arena[sequence.request_offset :][: sequence.request_bytes].tobytes()
    sequence.owner, sequence.row, sequence.copy = 0, -1, None
    sequence.opened_ns = min(sequence.opened_ns, now_ns)
    if sequence.state == SequenceState.FINISHED:
        sequence.finished_ns = min(sequence.finished_ns, now_ns)
        sequence.kv_len = min(sequence.kv_len, sequence.recorded_len)
        return Carried(sequence, request)
    sequence.lost_len = min(sequence.kv_len, sequence.recorded_len) if had_kv else 0
    sequence.state, sequence.finished_ns = SequenceState.ORPHANED, now_ns
    sequence.kv_len = sequence.cached_len = 0
    sequence.epoch += 1
    return Carried(sequence, request)
