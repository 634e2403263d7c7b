"""Rebuilds a pool's parts from the records in its metadata: refcounts, lists, index and arenas are derived here.

The buffer is only read. It must have passed `integrity.check_buffer`: what that found good is not judged again.
"""

from array import array
from typing import Any, Final

from kvmanager.blocks import FREE, GRANTED, SEALED
from kvmanager.layout import Buffer, MetaLayout, MetaView
from kvmanager.messages import FinishReason, SequenceId, SessionId
from kvmanager.parts import Parts
from kvmanager.prefix import Hash
from kvmanager.sequences import Copy, Sequence, SequenceState
from kvmanager.sessions import Session, SessionState
from kvmanager.store import Store

NUMBERS: Final = (  # the fields that a Sequence has by the same name
    "index",
    "epoch",
    "deaths",
    "owner",
    "cached_len",
    "prompt_len",
    "max_tokens",
    "priority",
    "stop_token_id",
    "request_bytes",
    "kv_len",
    "token_offset",
    "token_capacity",
    "request_offset",
    "arrival_ns",
    "opened_ns",
    "finished_ns",
)


def load(buffer: Buffer, layout: MetaLayout, store: Store, digest: Hash) -> Parts:
    """New parts over `store`, equal to what the records say."""
    parts, view = Parts(layout, store, digest), layout.view(buffer)
    load_blocks(parts, view)
    load_sequences(parts, view)
    load_rows(parts, view)
    load_copies(parts)
    parts.blocks.shared = sum(
        state == SEALED and refs > 1
        for state, refs in zip(parts.blocks.state, parts.blocks.refs, strict=True)
    )
    order_cached(parts)
    load_sessions(parts, view)
    return parts


def load_blocks(parts: Parts, view: MetaView) -> None:
    b, records = parts.blocks, view.blocks
    b.state, b.generation = records["state"].tolist(), records["generation"].tolist()
    b.holder, b.indexed = records["holder"].tolist(), records["indexed"].tolist()
    b.counts = [b.state.count(state) for state in range(5)]
    for block, state in enumerate(b.state):
        if state != FREE:
            b.free.remove(block)
        if state == SEALED:
            record = records[block]
            b.depth[block], b.parent[block] = int(record["depth"]), int(record["parent"])
            b.key[block], b.parent_key[block] = record["hash"].tobytes(), record["parent_hash"].tobytes()
            b.last_use[block] = int(record["last_use"])
            b.tokens[block] = view.block_tokens[block].tobytes()
            if b.indexed[block]:
                b.find(block)


def load_sequences(parts: Parts, view: MetaView) -> None:
    table = parts.sequences
    for slot in view.sequences["state"].nonzero()[0].tolist():
        sequence = sequence_of(view.sequences[slot], view, slot)
        table.know(sequence)
        table.token_arena.claim(sequence.token_offset, sequence.token_capacity)
        table.request_arena.claim(sequence.request_offset, sequence.request_bytes)
    table.unused = [slot for slot in table.unused if table.slots[slot] is None]
    in_order = sorted(table.finished, key=lambda s: (s.finished_ns, s.slot))
    table.finished.clear()
    table.finished.extend(in_order)


def sequence_of(record: Any, view: MetaView, slot: int) -> Sequence:
    numbers: dict[str, Any] = {name: int(record[name]) for name in NUMBERS}
    offset, recorded = numbers["token_offset"], int(record["recorded_len"])
    return Sequence(
        target_blocks=-(-recorded // view.block_tokens.shape[1]),  # what it was opened with, or a block more
        stepped=not numbers["deaths"],  # a commit clears the count
        slot=slot,
        id=SequenceId(record["id"].tobytes()),
        group=record["group"].tobytes(),
        tenant=record["tenant"].tobytes(),
        request_id=record["request_id"].tobytes()[: int(record["request_id_bytes"])].decode(),
        bypass_prefix=bool(record["bypass_prefix"]),
        tokens=array("I", view.token_arena[offset : offset + recorded].tobytes()),
        state=SequenceState(int(record["state"])),
        finish=FinishReason(int(record["finish"])),
        row=int(record["row"]) - 1,
        copy=copy_of(record),
        **numbers,
    )


def copy_of(record: Any) -> Copy | None:
    slots = int(record["copy_slots"])
    return Copy(int(record["copy_source"]), int(record["copy_destination"]), slots) if slots else None


def load_rows(parts: Parts, view: MetaView) -> None:
    """Rows, and with them the references of blocks."""
    rows, b = parts.rows, parts.blocks
    for row in view.rows["sequence"].nonzero()[0].tolist():
        record = view.rows[row]
        rows.sequence[row], rows.epoch[row] = int(record["sequence"]), int(record["epoch"])
        rows.blocks[row] = view.entries[row, : int(record["length"])].tolist()
        for block in rows.blocks[row]:
            b.refs[block] += 1
        sequence = parts.sequences.slots[rows.sequence[row] - 1]
        assert sequence is not None, "check_buffer found the row's sequence"
        if sequence.row == row:
            find_tip(parts, sequence)
        else:
            sequence.held_rows[rows.epoch[row]] = row
            parts.held_rows += 1
    rows.unused = [row for row in rows.unused if rows.sequence[row] == 0]
    rows.entries = sum(map(len, rows.blocks))


def load_copies(parts: Parts) -> None:
    """What pending copy orders read stays what it is."""
    b = parts.blocks
    for sequence in parts.sequences.by_id.values():
        if sequence.copy is not None:
            source = sequence.copy.source
            b.refs[source] += 1
            b.reads[source] = b.reads.get(source, 0) + 1


def find_tip(parts: Parts, sequence: Sequence) -> None:
    """Where the open sequence's next block is sealed; after a private block it stays private."""
    states = parts.blocks.state
    sealed = [block for block in parts.rows.blocks[sequence.row] if states[block] == SEALED]
    sequence.tip = parts.prefix.tip(sequence.tenant, sealed)


def order_cached(parts: Parts) -> None:
    """Sealed blocks without a user, least recently used first, a chain's end before its parents, whatever the records
    say of their use: whoever used the end used all before it."""
    b = parts.blocks
    cached = [block for block, state in enumerate(b.state) if state == SEALED and not b.refs[block]]
    for block in sorted(cached, key=lambda block: -b.depth[block]):
        before = b.parent[block] & 0xFFFFFFFF
        if before < b.num_blocks and b.link(before) == b.parent[block]:
            b.last_use[before] = max(b.last_use[before], b.last_use[block])
    for block in sorted(cached, key=lambda block: (b.last_use[block], -b.depth[block])):
        b.cached.push(block)


def load_sessions(parts: Parts, view: MetaView) -> None:
    for slot in view.sessions["state"].nonzero()[0].tolist():
        record = view.sessions[slot]
        session = Session(
            slot=slot,
            id=SessionId(record["id"].tobytes()),
            worker_id=record["worker_id"].decode(),
            endpoint=record["endpoint"].decode(),
            pid=int(record["pid"]),
            start_time=int(record["start_time"]),
            attached_ns=int(record["attached_ns"]),
            state=SessionState(int(record["state"])),
            number=int(record["number"]),
        )
        session.float_blocks = len(parts.blocks.held(session.holder, GRANTED))
        parts.sessions.adopt(session)
