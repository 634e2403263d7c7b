"""What the daemon tells a gateway, translated: membership and records. The only module here with kvmanager.proto."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.routing import Members, Pool, Worker, WorkerKey
from gateway.workers import Submission, from_record, unpack_ids
from holdfast.v1 import kvmanager_pb2 as kv
from kvmanager.messages import FinishReason, SequenceId, WorkerState


class Daemon(Protocol):
    """What of kvmanager.client.AsyncDaemonClient is used here. Errors are kvmanager.errors."""

    async def snapshot(self, version: int, timeout_s: float, wait: bool) -> kv.Snapshot: ...

    async def read_record(self, sequence: SequenceId, from_: int, timeout_s: float) -> kv.Record: ...

    async def find_request(
        self, request_id: str, tenant: bytes, timeout_s: float
    ) -> Sequence[kv.FoundSequence]: ...


@dataclass(frozen=True, slots=True)
class Recorded:
    """A sequence's record from position `first` on."""

    epoch: int
    first: int
    token_ids: tuple[int, ...]
    recorded_len: int
    finish: FinishReason
    stop_token_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One record of a request that is looked for. `submitted` is what it was asked for with, its prompt included."""

    submitted: Submission
    session: str  # of the worker that runs it; "" for none
    finished: bool


def from_snapshot(snapshot: kv.Snapshot) -> Members:
    """Workers in a state unknown here are left out: they take no requests of ours."""
    workers = [from_worker(worker) for worker in snapshot.workers if worker.state in KNOWN_STATES]
    return Members(
        {worker.key: worker for worker in workers}, {pool.name: from_pool(pool) for pool in snapshot.pools}
    )


KNOWN_STATES = frozenset(map(int, WorkerState))


def from_worker(info: kv.WorkerInfo) -> Worker:
    return Worker(
        key=WorkerKey(info.id, info.session),
        endpoint=info.endpoint,
        pool=info.pool,
        model=info.model,
        state=WorkerState(info.state),
        age_ms=info.age_ms,
        silent_ms=info.silent_ms,
        busy=info.busy,
        load=info.running + info.waiting,
    )


def from_pool(info: kv.PoolInfo) -> Pool:
    return Pool(
        name=info.name,
        model=info.model,
        fingerprint=info.fingerprint,
        max_model_len=info.max_model_len,
        vocab_size=info.vocab_size,
        dtype=info.dtype,
        device=info.device,
        num_blocks=info.num_blocks,
        block_size=info.geometry.block_size,
    )


async def read_record(daemon: Daemon, sequence: bytes, first: int, timeout_s: float) -> Recorded:
    record = await daemon.read_record(SequenceId(sequence), first, timeout_s)
    return Recorded(
        record.epoch,
        getattr(record, "from"),  # a keyword in Python
        unpack_ids(record.token_ids),
        record.recorded_len,
        FinishReason(record.finish),
        record.stop_token_id,
    )


async def find_request(daemon: Daemon, request_id: str, tenant: bytes, timeout_s: float) -> list[Found]:
    """All records of the request, in no order; FrameError if one cannot be read."""
    found = await daemon.find_request(request_id, tenant, timeout_s)
    prompts = {one.group: one.prompt[: 4 * one.prompt_len] for one in found if one.prompt}  # once is enough
    return [
        Found(
            submitted=from_record(one.request, prompts.get(one.group, b"")),
            session=one.session,
            finished=one.finished,
        )
        for one in found
    ]
