"""The daemon's answers to the command line: one handler per admin message, from state to protobuf.

Handlers look at a DaemonView and raise KvErrors; sockets, envelopes and clocks are the server's. Looking changes
nothing; flush and evict drop only blocks that nobody uses.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from google.protobuf.message import Message

from holdfast import __version__
from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.adminlists import LISTINGS, PoolView, Query, copied, pool_info
from kvmanager.errors import Conflict, Invalid, NotFound
from kvmanager.paging import Key, last_key, page

SERVING: Final = "SERVING"
NOT_SERVING: Final = "NOT_SERVING"
MAX_FINDINGS: Final = 10_000  # in one reply; more of them say nothing new
MAX_ID_CHARS: Final = 128
HEXADECIMAL: Final = frozenset("0123456789abcdefABCDEF")


class DaemonView(Protocol):
    """What the handlers need of the daemon. The server's own object has these attributes."""

    @property
    def boot_epoch(self) -> int: ...
    @property
    def started(self) -> float: ...  # time.monotonic()
    @property
    def run_dir(self) -> Path: ...
    @property
    def memory_budget_bytes(self) -> int: ...
    @property
    def pools(self) -> Mapping[str, PoolView]: ...
    @property
    def ready(self) -> bool: ...  # False until the pools it found were checked
    @property
    def findings(
        self,
    ) -> MutableMapping[str, int]: ...  # pool → findings of its last check, none for a clean one
    def worker_infos(self) -> Sequence[pb.WorkerInfo]: ...


def status(view: DaemonView, _request: pb.StatusRequest) -> pb.Status:
    workers = view.worker_infos()
    word, reason = health(view, workers)
    return pb.Status(
        version=__version__,
        pid=os.getpid(),
        boot_epoch=view.boot_epoch,
        uptime_seconds=time.monotonic() - view.started,
        pools=[pool_info(pool) for pool in view.pools.values()],
        workers=workers,
        health=word,
        health_reason=reason,
        run_dir=str(view.run_dir),
        memory_budget_bytes=view.memory_budget_bytes,
    )


def health(view: DaemonView, workers: Sequence[pb.WorkerInfo]) -> tuple[str, str]:
    """The verdict and its reason. A daemon without workers is healthy: they come and go."""
    if not view.ready:
        return NOT_SERVING, "starting"
    broken = [f"pool {name}: {count} integrity findings" for name, count in view.findings.items() if count]
    if broken:
        return NOT_SERVING, "; ".join(broken) + "; see kvmanager fsck"
    return SERVING, "" if any(w.state != pb.WORKER_STATE_LOST for w in workers) else "no worker attached"


# ---------------------------------------------------------------------------------------------- list, describe


def list_(view: DaemonView, request: pb.ListRequest) -> pb.ListReply:
    listing = LISTINGS.get(request.kind)
    if listing is None:
        raise Invalid(f"kind: {request.kind} cannot be listed", field="kind")
    if request.state and request.kind != pb.RESOURCE_KIND_BLOCK:
        raise Invalid("state: only blocks are listed by state", field="state")
    asked: Key = (listing.field, request.pool, request.state)
    after = last_key(request.page_token, asked, listing.key)
    pools = chosen(view, request.pool)
    query = Query(pools, [w for w in view.worker_infos() if w.pool in pools], request.state, after)
    reply = pb.ListReply(total_size=listing.size(query))
    items, reply.next_page_token = page(listing.items(query), asked, request.page_size)
    getattr(reply, listing.field).extend(items)
    return reply


def chosen(view: DaemonView, name: str) -> Mapping[str, PoolView]:
    """The named pool, or all of them."""
    return {name: one_pool(view, name)} if name else view.pools


def one_pool(view: DaemonView, name: str) -> PoolView:
    """The named pool; without a name the only one."""
    if name:
        if name not in view.pools:
            raise NotFound(f"no pool {name!r}", pool=name)
        return view.pools[name]
    if not view.pools:
        raise NotFound("no pool yet: one is made when a worker first attaches")
    if len(view.pools) > 1:
        raise Invalid(f"pool: there are {len(view.pools)}, name one of {', '.join(view.pools)}", field="pool")
    return next(iter(view.pools.values()))


def describe(view: DaemonView, request: pb.DescribeRequest) -> pb.DescribeReply:
    if request.kind not in DESCRIBERS:
        raise Invalid(f"kind: {request.kind} cannot be described", field="kind")
    if not 1 <= len(request.id) <= MAX_ID_CHARS:
        raise Invalid(f"id: {len(request.id)} characters, expected 1..{MAX_ID_CHARS}", field="id")
    return DESCRIBERS[request.kind](view, request)


def describe_block(view: DaemonView, request: pb.DescribeRequest) -> pb.DescribeReply:
    if not (request.id.isascii() and request.id.isdecimal() and len(request.id) < 20):
        raise Invalid(f"id: {request.id!r} is no block id, expected a decimal number", field="id")
    state = one_pool(view, request.pool).state
    block = state.describe_block(int(request.id), time.monotonic_ns())
    return pb.DescribeReply(block=copied(pb.BlockInfo, block))


def describe_sequence(view: DaemonView, request: pb.DescribeRequest) -> pb.DescribeReply:
    if set(request.id) - HEXADECIMAL:
        raise Invalid(f"id: {request.id!r} is no prefix of a sequence id, expected hexadecimal", field="id")
    now_ns, found, matches = time.monotonic_ns(), None, 0
    for pool in chosen(view, request.pool).values():
        try:
            found = pool.state.describe_sequence(request.id, now_ns)
            matches += 1
        except NotFound:
            continue
        except Conflict as conflict:
            matches += int(conflict.details["matches"])
    if matches > 1:
        raise Conflict(f"{matches} sequences begin with {request.id}; give more digits", matches=matches)
    if found is None:
        raise NotFound(f"no sequence {request.id}", id=request.id)
    return pb.DescribeReply(sequence=copied(pb.SequenceInfo, found))


def describe_worker(view: DaemonView, request: pb.DescribeRequest) -> pb.DescribeReply:
    for worker in view.worker_infos():
        if worker.id == request.id and request.pool in ("", worker.pool):
            return pb.DescribeReply(worker=worker)
    raise NotFound(f"no worker {request.id!r}", id=request.id)


def describe_pool(view: DaemonView, request: pb.DescribeRequest) -> pb.DescribeReply:
    return pb.DescribeReply(pool=pool_info(one_pool(view, request.id)))


DESCRIBERS: Final[Mapping[int, Callable[[DaemonView, pb.DescribeRequest], pb.DescribeReply]]] = {
    pb.RESOURCE_KIND_BLOCK: describe_block,
    pb.RESOURCE_KIND_SEQUENCE: describe_sequence,
    pb.RESOURCE_KIND_WORKER: describe_worker,
    pb.RESOURCE_KIND_POOL: describe_pool,
}


# ---------------------------------------------------------------------------------------------- fsck, flush, evict


def fsck(view: DaemonView, request: pb.FsckRequest) -> pb.FsckReply:
    pools = chosen(view, request.pool)
    reply = pb.FsckReply(pools=len(pools))
    for name, pool in pools.items():
        findings = pool.state.check_integrity()
        view.findings[name] = len(findings)
        reply.findings.extend(reported(name, findings))
        reply.blocks += pool.spec.num_blocks
        reply.sequences += len(pool.state.sequences())
    return reply


def reported(pool: str, findings: Sequence[Any]) -> Iterator[pb.FsckFinding]:
    for finding in findings[:MAX_FINDINGS]:
        yield pb.FsckFinding(pool=pool, kind=finding.kind, subject=finding.subject, message=finding.message)
    if len(findings) > MAX_FINDINGS:
        rest = f"{len(findings) - MAX_FINDINGS} more findings are not listed"
        yield pb.FsckFinding(pool=pool, kind="omitted", subject=f"pool {pool}", message=rest)


def flush(view: DaemonView, request: pb.FlushRequest) -> pb.FlushReply:
    return pb.FlushReply(evicted=sum(pool.state.flush() for pool in chosen(view, request.pool).values()))


def evict(view: DaemonView, request: pb.EvictRequest) -> pb.EvictReply:
    if not request.count:
        raise Invalid("count: 0, expected at least 1", field="count")
    return pb.EvictReply(evicted=one_pool(view, request.pool).state.evict(request.count))


HANDLERS: Final[Mapping[str, Callable[[DaemonView, Any], Message]]] = {
    "status": status,
    "list": list_,
    "describe": describe,
    "fsck": fsck,
    "flush": flush,
    "evict": evict,
}
