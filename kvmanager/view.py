"""The daemon as its admin handlers and gateways see it: pools, workers, and a few facts about the process."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.adminlists import pool_info
from kvmanager.codec import sequence_id
from kvmanager.errors import NotFound
from kvmanager.liveness import MS, Watch
from kvmanager.messages import SequenceId
from kvmanager.packing import pack
from kvmanager.pools import Pool, Pools
from kvmanager.views import RecordView
from kvmanager.workers import Worker, Workers


@dataclass(slots=True, kw_only=True)
class View:
    """Satisfies admin.DaemonView. Looks only; changing goes through a pool's state."""

    run_dir: Path
    memory_budget_bytes: int
    started: float  # time.monotonic()
    store: Pools
    workers: Workers
    watch: Watch
    ready: bool = False
    findings: dict[str, int] = field(default_factory=dict)

    @property
    def pools(self) -> Mapping[str, Pool]:
        return self.store.by_name

    @property
    def boot_epoch(self) -> int:
        """How often a daemon has started on the oldest memory here; 1 without any."""
        return max((pool.state.boot_epoch for pool in self.store), default=1)

    def worker_infos(self) -> list[pb.WorkerInfo]:
        return [self._worker_info(worker) for worker in self.workers.by_session.values()]

    def _worker_info(self, worker: Worker) -> pb.WorkerInfo:
        info = pb.WorkerInfo(
            id=worker.worker_id,
            endpoint=worker.endpoint,
            pool=worker.pool.spec.name,
            model=worker.pool.spec.model,
            state=int(self.workers.state_of(worker)),  # type: ignore[arg-type]
            pid=worker.pid,
            session=worker.session.hex(),
        )
        pulse = self.watch.pulses.get(worker.session)
        if pulse is not None:
            for name in _SAID:
                setattr(info, name, getattr(pulse.last, name))
            info.age_ms = (self.watch.watched - pulse.heard_at) // MS
            info.silent_ms = pulse.silence(self.watch.watched) // MS if pulse.last.busy else 0
        return info

    # ------------------------------------------------------------------------------------- gateways' questions

    def snapshot(self, request: pb.SnapshotRequest) -> pb.Snapshot:
        if request.version == self.workers.version:
            return pb.Snapshot(version=request.version)
        pools = [pool_info(pool) for pool in self.store]
        return pb.Snapshot(version=self.workers.version, workers=self.worker_infos(), pools=pools)

    def read_record(self, request: pb.ReadRecord) -> pb.Record:
        sequence, start = sequence_id(request.sequence), getattr(request, "from")
        record = self._find(sequence, start)
        reply = pb.Record(
            sequence=sequence,
            epoch=record.epoch,
            token_ids=pack(record.token_ids),
            recorded_len=record.recorded_len,
            prompt_len=record.prompt_len,
            finish=int(record.finish),  # type: ignore[arg-type]
            stop_token_id=record.stop_token_id,
        )
        setattr(reply, "from", start)
        return reply

    def find_request(self, request: pb.FindRequest) -> pb.FoundRequest:
        found: list[pb.FoundSequence] = [
            pb.FoundSequence(
                sequence=one.id,
                index=one.index,
                epoch=one.epoch,
                group=one.group,
                request=one.request,
                prompt_len=len(one.prompt),
                prompt=pack(one.prompt),
                session=one.session.hex(),
                finished=one.finished,
            )
            for pool in self.store
            for one in pool.state.find_request(request.request_id, request.tenant)
        ]
        found.sort(key=lambda one: one.index)
        return pb.FoundRequest(sequences=found)

    def _find(self, sequence: SequenceId, start: int) -> RecordView:
        for pool in self.store:
            try:
                return pool.state.read_record(sequence, start)
            except NotFound:
                continue
        raise NotFound("no such sequence: never recorded, or finished longer ago than records are kept")


_SAID = (
    "step",
    "busy",
    "running",
    "waiting",
    "float_blocks",
    "tokens_per_second",
    "steps_waited",
    "wait_p99_ms",
    "preemptions",
    "replayed",
    "reprefilled",
    "prompt_tokens",
    "generation_tokens",
)
