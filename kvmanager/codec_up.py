"""Worker → daemon: protobuf <-> kvmanager.messages. Each pair fills or reads the body of one envelope."""

from collections.abc import Callable
from typing import Any, Final

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.codec_fields import few, member, sequence_id
from kvmanager.errors import Invalid
from kvmanager.messages import (
    Commit,
    CommitEntry,
    Fenced,
    FinishReason,
    Fork,
    Grant,
    Heartbeat,
    OpenOrAdopt,
    Release,
    SequenceRef,
    WorkerState,
)
from kvmanager.packing import (
    HASH_BYTES,
    ID_BYTES,
    MAX_BLOCKS,
    exact,
    finite,
    pack,
    pack_blocks,
    short,
    unpack_blocks,
    unpack_ids,
    within,
)

MAX_REQUEST_BYTES: Final = 64 * 1024
MAX_BOUND_MS: Final = 600_000


def encode_grant(body: pb.Grant, message: Grant) -> None:
    body.count, body.starving = message.count, message.starving


def decode_grant(body: pb.Grant) -> Grant:
    return Grant(count=within(body.count, 1, MAX_BLOCKS, "count"), starving=body.starving)


def encode_open(body: pb.OpenOrAdopt, message: OpenOrAdopt) -> None:
    body.sequence, body.group, body.index = message.sequence, message.group, message.index
    body.request, body.token_ids = message.request, pack(message.token_ids)
    body.max_tokens, body.priority, body.arrival_ns = message.max_tokens, message.priority, message.arrival_ns
    body.tenant, body.bypass_prefix, body.request_id = (
        message.tenant,
        message.bypass_prefix,
        message.request_id,
    )
    body.prompt_len = message.prompt_len
    body.no_cache = message.no_cache


def decode_open(body: pb.OpenOrAdopt) -> OpenOrAdopt:
    if not body.token_ids:
        raise Invalid("token_ids: empty, expected at least one token", field="token_ids")
    within(len(body.request), 0, MAX_REQUEST_BYTES, "request bytes")
    return OpenOrAdopt(
        sequence=sequence_id(body.sequence),
        group=exact(body.group, ID_BYTES, "group"),
        index=within(body.index, 0, 63, "index"),
        request=body.request,
        token_ids=unpack_ids(body.token_ids, "token_ids"),
        max_tokens=within(body.max_tokens, 1, 2**31 - 1, "max_tokens"),
        priority=within(body.priority, -1000, 1000, "priority"),
        arrival_ns=within(body.arrival_ns, 0, 2**63 - 1, "arrival_ns"),
        tenant=exact(body.tenant, HASH_BYTES, "tenant"),
        bypass_prefix=body.bypass_prefix,
        prompt_len=body.prompt_len,
        request_id=short(body.request_id, 128, "request_id"),
        no_cache=body.no_cache,
    )


def encode_entry(body: pb.CommitEntry, entry: CommitEntry) -> None:
    body.sequence, body.epoch = entry.sequence, entry.epoch
    body.base_recorded, body.base_kv, body.kv_len = entry.base_recorded, entry.base_kv, entry.kv_len
    body.token_ids, body.blocks = pack(entry.token_ids), pack_blocks(entry.blocks)
    body.preempted, body.stop_token_id = entry.preempted, entry.stop_token_id
    body.copies_done = entry.copies_done
    body.finish = int(entry.finish)  # type: ignore[assignment]  # the stub wants the enum's own int type
    if entry.fork is not None:
        encode_fork(body.fork, entry.fork)


def decode_entry(body: pb.CommitEntry) -> CommitEntry:
    return CommitEntry(
        sequence=sequence_id(body.sequence, "entries.sequence"),
        epoch=body.epoch,
        base_recorded=body.base_recorded,
        base_kv=body.base_kv,
        token_ids=unpack_ids(body.token_ids, "entries.token_ids"),
        kv_len=body.kv_len,
        blocks=unpack_blocks(body.blocks, "entries.blocks"),
        preempted=body.preempted,
        finish=member(FinishReason, body.finish, "entries.finish"),
        stop_token_id=body.stop_token_id,
        copies_done=body.copies_done,
        fork=decode_fork(body.fork) if body.HasField("fork") else None,
    )


def encode_fork(body: pb.Fork, fork: Fork) -> None:
    body.parent, body.parent_epoch = fork.parent, fork.parent_epoch
    body.group, body.index, body.request = fork.group, fork.index, fork.request
    body.max_tokens, body.priority, body.arrival_ns = fork.max_tokens, fork.priority, fork.arrival_ns
    body.tenant, body.request_id = fork.tenant, fork.request_id


def decode_fork(body: pb.Fork) -> Fork:
    within(len(body.request), 0, MAX_REQUEST_BYTES, "fork.request bytes")
    return Fork(
        parent=sequence_id(body.parent, "fork.parent"),
        parent_epoch=body.parent_epoch,
        group=exact(body.group, ID_BYTES, "fork.group"),
        index=within(body.index, 0, 63, "fork.index"),
        request=body.request,
        max_tokens=within(body.max_tokens, 1, 2**31 - 1, "fork.max_tokens"),
        priority=within(body.priority, -1000, 1000, "fork.priority"),
        arrival_ns=within(body.arrival_ns, 0, 2**63 - 1, "fork.arrival_ns"),
        tenant=exact(body.tenant, HASH_BYTES, "fork.tenant"),
        request_id=short(body.request_id, 128, "fork.request_id"),
    )


def encode_commit(body: pb.Commit, message: Commit) -> None:
    body.step = message.step
    for entry in message.entries:
        encode_entry(body.entries.add(), entry)


def decode_commit(body: pb.Commit) -> Commit:
    return Commit(step=body.step, entries=tuple(map(decode_entry, few(body.entries, "entries"))))


def encode_release(body: pb.Release, message: Release) -> None:
    for sequence, epoch in message.rows:
        body.rows.add(sequence=sequence, epoch=epoch)
    body.blocks = pack_blocks(message.blocks)


def decode_release(body: pb.Release) -> Release:
    rows = (
        SequenceRef(sequence_id(row.sequence, "rows.sequence"), row.epoch) for row in few(body.rows, "rows")
    )
    return Release(rows=tuple(rows), blocks=unpack_blocks(body.blocks, "blocks"))


def encode_fenced(body: pb.Fenced, message: Fenced) -> None:
    body.sequence, body.epoch = message.sequence, message.epoch


def decode_fenced(body: pb.Fenced) -> Fenced:
    return Fenced(sequence=sequence_id(body.sequence), epoch=body.epoch)


_COUNTERS: Final = (
    "step",
    "busy",
    "running",
    "waiting",
    "float_blocks",
    "steps_waited",
    "preemptions",
    "replayed",
    "reprefilled",
    "prompt_tokens",
    "generation_tokens",
)


def encode_heartbeat(body: pb.Heartbeat, message: Heartbeat) -> None:
    for name in (*_COUNTERS, "bound_ms", "tokens_per_second", "wait_p99_ms"):
        setattr(body, name, getattr(message, name))
    body.state = int(message.state)  # type: ignore[assignment]


def decode_heartbeat(body: pb.Heartbeat) -> Heartbeat:
    within(body.state, WorkerState.WARMING, WorkerState.DRAINING, "state")  # LOST is the daemon's word
    return Heartbeat(
        state=WorkerState(body.state),
        bound_ms=within(body.bound_ms, 0, MAX_BOUND_MS, "bound_ms"),
        tokens_per_second=finite(body.tokens_per_second, "tokens_per_second"),
        wait_p99_ms=finite(body.wait_p99_ms, "wait_p99_ms"),
        **{name: getattr(body, name) for name in _COUNTERS},
    )


BODIES: Final[dict[type, tuple[str, Callable[[Any, Any], None], Callable[[Any], Any]]]] = {
    Grant: ("grant", encode_grant, decode_grant),
    OpenOrAdopt: ("open_or_adopt", encode_open, decode_open),
    Commit: ("commit", encode_commit, decode_commit),
    Release: ("release", encode_release, decode_release),
    Fenced: ("fenced", encode_fenced, decode_fenced),
    Heartbeat: ("heartbeat", encode_heartbeat, decode_heartbeat),
}
