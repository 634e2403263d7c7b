"""What must hold of a pool's metadata, checked from its bytes alone.

`check_buffer` needs no daemon: fsck runs it on the metadata of a dead one. It never raises on bad records; the header
must be whole. A finding names its subject and says what is expected. Nothing is repaired here.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from kvmanager import integrity_chains, integrity_copies
from kvmanager.blocks import FREE, GRANTED, QUARANTINED, SEALED, TAIL, BlockState
from kvmanager.layout import Buffer, MetaLayout, MetaView
from kvmanager.prefix import Hash, KeyChain, sha256
from kvmanager.records import MAX_REQUEST_ID_BYTES
from kvmanager.sequences import SequenceState
from kvmanager.sessions import SessionState


class Finding(NamedTuple):
    """One thing that is wrong. `kind`: leak, refcount, row, state, hash, free_list, index, sequence or session."""

    kind: str
    subject: str
    message: str


class Image(NamedTuple):
    """A buffer's arrays and the references that its rows and its copy orders make."""

    layout: MetaLayout
    view: MetaView
    refs: Any  # [num_blocks]: rows that name it
    stranded: Any  # [num_blocks]: those of orphans
    reads: Any  # [num_blocks]: copy orders that read it
    keys: KeyChain


def check_buffer(buffer: Buffer, digest: Hash = sha256) -> list[Finding]:
    """Everything wrong in the metadata's records. Raises CorruptMetadata when the header itself is not readable."""
    layout = MetaLayout.from_header(buffer)
    view = layout.view(buffer)
    counted = np.zeros((3, layout.num_blocks), np.int64)
    image = Image(layout, view, counted[0], counted[1], counted[2], KeyChain(layout.spec, digest))
    found = [*check_words(view), *check_sessions(view), *check_sequences(image), *check_row_records(image)]
    if found:
        return found  # what follows relies on these
    count_references(image)
    return [*check_blocks(image), *check_chains(image), *check_rows(image), *check_copies(image)]


# ------------------------------------------------------------------------------------------------- records


def check_words(view: MetaView) -> Iterator[Finding]:
    if int(view.header["seqlock"]) % 2 or int(view.header["redo_length"]):
        yield Finding("state", "header", "an operation is half applied: its redo log is to be replayed")
    if int(view.header["boot_epoch"]) == 0:
        yield Finding("state", "header", "boot_epoch is 0")


def check_sessions(view: MetaView) -> Iterator[Finding]:
    seen: set[bytes] = set()
    for slot in view.sessions["state"].nonzero()[0].tolist():
        record = view.sessions[slot]
        if int(record["state"]) not in (SessionState.ALIVE, SessionState.LOST):
            yield Finding("session", f"session {slot}", f"unknown state {record['state']}")
        if record["id"].tobytes() in seen:
            yield Finding("session", f"session {slot}", "another record has the same id")
        if not (is_text(record["worker_id"]) and is_text(record["endpoint"])):
            yield Finding("session", f"session {slot}", "worker_id or endpoint is not text")
        seen.add(record["id"].tobytes())


def is_text(raw: bytes) -> bool:
    return raw.decode(errors="replace").encode() == raw


def check_sequences(image: Image) -> Iterator[Finding]:
    records, layout = image.view.sequences, image.layout
    tokens, requests, ids = [], [], set()
    for slot in records["state"].nonzero()[0].tolist():
        record, name = records[slot], f"sequence {records[slot]['id'].tobytes().hex()}"
        yield from (Finding("sequence", name, message) for message in sequence_faults(image, record, slot))
        if record["id"].tobytes() in ids:
            yield Finding("sequence", name, "another record has the same id")
        ids.add(record["id"].tobytes())
        tokens.append((int(record["token_offset"]), int(record["token_capacity"]), name))
        requests.append((int(record["request_offset"]), int(record["request_bytes"]), name))
    yield from overlaps(tokens, layout.arena_tokens, "token")
    yield from overlaps(requests, layout.request_bytes, "request")
    for name, message in integrity_copies.extent_faults(layout, image.view):
        yield Finding("sequence", f"sequence {name}", message)


def sequence_faults(image: Image, record: Any, slot: int) -> Iterator[str]:
    """What is wrong within one record, or between it and its owner and row."""
    yield from record_faults(image.layout, image.view, record)
    recorded = int(record["recorded_len"])
    known = int(record["cached_len"]) <= int(record["kv_len"]) <= recorded
    if not known and int(record["state"]) == SequenceState.OPEN:
        yield f"cached_len {record['cached_len']}, kv_len {record['kv_len']}, recorded_len {recorded}"
    yield from ownership_faults(image, record, slot)


def record_faults(layout: MetaLayout, view: MetaView, record: Any) -> Iterator[str]:
    """What is wrong within one record and the tokens that it names."""
    state, recorded = int(record["state"]), int(record["recorded_len"])
    if state not in list(SequenceState):
        yield f"unknown state {state}"
    if int(record["finish"]) not in (range(1, 6) if state == SequenceState.FINISHED else (0,)):
        yield f"finish reason {record['finish']} in state {state}"
    if not 0 < int(record["prompt_len"]) <= recorded <= int(record["token_capacity"]):
        lengths = f"prompt_len {record['prompt_len']}, recorded_len {recorded}"
        yield f"{lengths}, capacity {record['token_capacity']} are out of order"
    if int(record["request_id_bytes"]) > MAX_REQUEST_ID_BYTES:
        yield f"request id of {record['request_id_bytes']} bytes"
    elif not is_text(record["request_id"].tobytes()[: int(record["request_id_bytes"])]):
        yield "the request id is not text"
    start = int(record["token_offset"])
    if (view.token_arena[start : start + recorded] >= layout.spec.vocab_size).any():
        yield "a recorded token id is out of the vocabulary"


def ownership_faults(image: Image, record: Any, slot: int) -> Iterator[str]:
    view, state = image.view, int(record["state"])
    owner, row = int(record["owner"]), int(record["row"])
    alive = 0 < owner <= len(view.sessions) and int(view.sessions[owner - 1]["state"]) == SessionState.ALIVE
    if not alive and (owner or state not in (SequenceState.FINISHED, SequenceState.ORPHANED)):
        yield f"its owner {owner} is no living session"
    if owner and state == SequenceState.ORPHANED:
        yield f"an orphan with owner {owner}"
    if state != SequenceState.ORPHANED and (state == SequenceState.OPEN) != (row != 0):
        yield f"row {row - 1} in state {state}"
    elif row > image.layout.num_rows:
        yield f"row {row - 1}, there are {image.layout.num_rows}"
    elif row:
        its = view.rows[row - 1]
        if int(its["sequence"]) != slot + 1 or int(its["epoch"]) != int(record["epoch"]):
            yield f"row {row - 1} belongs to record {int(its['sequence']) - 1}, epoch {its['epoch']}"


def overlaps(extents: list[tuple[int, int, str]], size: int, what: str) -> Iterator[Finding]:
    end = 0
    for start, length, name in sorted(extent for extent in extents if extent[1]):
        if start < end or start + length > size:
            yield Finding("sequence", name, f"{what} extent at {start} overlaps another or the arena's end")
        end = max(end, start + length)


def check_row_records(image: Image) -> Iterator[Finding]:
    view, layout = image.view, image.layout
    for row in view.rows["sequence"].nonzero()[0].tolist():
        record, name = view.rows[row], f"row {row}"
        sequence, length = int(record["sequence"]), int(record["length"])
        if sequence > layout.num_records or not view.sequences[sequence - 1]["state"]:
            yield Finding("row", name, f"belongs to record {sequence - 1}, which is unused")
        elif not owned(view.sequences[sequence - 1]):
            yield Finding("row", name, "belongs to a sequence without owner")
        elif int(view.sequences[sequence - 1]["row"]) != row + 1 and open_in(view, sequence, record):
            yield Finding("row", name, "is a second row of a sequence's present epoch")
        if length > layout.row_capacity:
            yield Finding("row", name, f"{length} blocks, capacity {layout.row_capacity}")
            continue
        blocks = view.entries[row, :length]
        if (blocks >= layout.num_blocks).any():
            yield Finding("row", name, f"names block {blocks.max()} of {layout.num_blocks}")
        if len(np.unique(blocks)) < length:
            yield Finding("row", name, "names a block twice")


def owned(sequence: Any) -> bool:
    """Whether rows of it may be there."""
    return int(sequence["owner"]) > 0 or int(sequence["state"]) == SequenceState.ORPHANED


def open_in(view: MetaView, sequence: int, row: Any) -> bool:
    """Is the sequence open in the epoch that the row was made for?"""
    record = view.sequences[sequence - 1]
    return int(record["state"]) == SequenceState.OPEN and int(record["epoch"]) == int(row["epoch"])


# ------------------------------------------------------------------------------------------------- blocks


def count_references(image: Image) -> None:
    view = image.view
    for row in view.rows["sequence"].nonzero()[0].tolist():
        blocks = view.entries[row, : int(view.rows[row]["length"])]
        orphan = int(view.sequences[int(view.rows[row]["sequence"]) - 1]["state"]) == SequenceState.ORPHANED
        image.refs[blocks] += 1
        image.stranded[blocks] += orphan
    image.reads[:] = integrity_copies.reads(image.layout, image.view)


def check_blocks(image: Image) -> Iterator[Finding]:
    records, sessions = image.view.blocks, image.view.sessions["state"].tolist()
    refs, reads, stranded = image.refs.tolist(), image.reads.tolist(), image.stranded.tolist()
    for block, (state, indexed, holder) in enumerate(
        zip(records["state"].tolist(), records["indexed"].tolist(), records["holder"].tolist(), strict=True)
    ):
        rows = refs[block] - (stranded[block] if state == QUARANTINED else 0)
        for kind, message in block_faults(state, indexed, rows, reads[block]):
            yield Finding(kind, f"block {block}", message)
        held_by = sessions[holder - 1] if 0 < holder <= len(sessions) else 0
        kept = state == QUARANTINED and not holder and (reads[block] or stranded[block])
        wanted = 0 if kept else HOLDERS.get(state, 0)
        if held_by != wanted or (holder and not wanted):
            yield Finding(
                "state", f"block {block}", f"{name_of(state)}, but its holder {holder} is not as it should be"
            )


HOLDERS = {GRANTED: SessionState.ALIVE, TAIL: SessionState.ALIVE, QUARANTINED: SessionState.LOST}


def block_faults(state: int, indexed: int, refs: int, reads: int) -> Iterator[tuple[str, str]]:
    """What contradicts itself in one block's record, the rows that name it and the copy orders that read it."""
    if state > QUARANTINED:
        yield "state", f"unknown state {state}"
    elif state in (FREE, GRANTED, QUARANTINED) and refs:
        yield "refcount", f"{name_of(state)}, but {refs} rows name it"
    elif state == TAIL and refs != 1:
        yield ("refcount", f"{refs} rows name a tail") if refs else ("leak", "a tail that no row names")
    elif state == SEALED and not refs and not reads and not indexed:
        yield "leak", "sealed, but neither a row nor a look-up can find it"
    if indexed not in (0, 1) or (indexed and state != SEALED):
        yield "index", f"indexed {indexed} while {name_of(state)}"


def name_of(state: int) -> str:
    return BlockState(state).name.lower() if state <= QUARANTINED else f"state {state}"


def check_copies(image: Image) -> Iterator[Finding]:
    for name, message in integrity_copies.order_faults(image.view):
        yield Finding("sequence", f"sequence {name}", message)


def check_chains(image: Image) -> Iterator[Finding]:
    for kind, block, message in integrity_chains.faults(image.view, image.keys):
        yield Finding(kind, f"block {block}", message)


def check_rows(image: Image) -> Iterator[Finding]:
    """Rows against their sequences: sealed blocks hold the sequence's tokens, in order; tails are the owner's."""
    view = image.view
    for row in view.rows["sequence"].nonzero()[0].tolist():
        sequence = view.sequences[int(view.rows[row]["sequence"]) - 1]
        blocks = view.entries[row, : int(view.rows[row]["length"])].tolist()
        states = [int(view.blocks[block]["state"]) for block in blocks]
        sealed = states.count(SEALED)
        if set(states[:sealed]) - {SEALED}:
            yield Finding("row", f"row {row}", "a sealed block follows a tail")
        elif int(sequence["row"]) == row + 1:
            yield from check_open_row(image, row, sequence, sealed)
        yield from check_row_blocks(image, row, sequence, blocks)


def check_open_row(image: Image, row: int, sequence: Any, sealed: int) -> Iterator[Finding]:
    kv_len, size = int(sequence["kv_len"]), image.layout.block_size
    if kv_len > int(image.view.rows[row]["length"]) * size:
        yield Finding("sequence", f"row {row}", f"kv_len {kv_len} is over the row's slots")
    if sealed != kv_len // size:
        yield Finding("state", f"row {row}", f"{sealed} sealed blocks, but kv_len {kv_len}")


def check_row_blocks(image: Image, row: int, sequence: Any, blocks: list[int]) -> Iterator[Finding]:
    view, size = image.view, image.layout.block_size
    start, parent_key = int(sequence["token_offset"]), image.keys.root(sequence["tenant"].tobytes())
    for i, block in enumerate(blocks):
        record = view.blocks[block]
        if int(record["state"]) == TAIL and int(record["holder"]) != int(sequence["owner"]):
            yield Finding(
                "state", f"block {block}", f"a tail in row {row} that the row's owner does not hold"
            )
        if int(record["state"]) == SEALED:
            tokens = view.token_arena[start + i * size : start + (i + 1) * size]
            if int(record["depth"]) != i or record["parent_hash"].tobytes() != parent_key:
                yield Finding(
                    "row", f"block {block}", f"entry {i} of row {row}, but of another chain or depth"
                )
            elif not np.array_equal(view.block_tokens[block], tokens):
                yield Finding(
                    "hash", f"block {block}", f"entry {i} of row {row} holds other tokens than the sequence"
                )
            parent_key = record["hash"].tobytes()
