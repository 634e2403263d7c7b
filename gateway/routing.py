"""Who serves what, and which worker takes the next sequence. Pure: snapshots in, decisions out.

A worker is named by (id, session): the same id after a restart is another worker.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from kvmanager.messages import WorkerState

FRESH_MS: Final = 1500  # of the last heartbeat
SILENT_MS: Final = (
    10_000  # a busy step thread without progress; a chunk of a long prompt may take seconds on a CPU
)
GONE_MS: Final = 10_000  # without a heartbeat: an idle worker is judged by nobody else
ANSWER_SECONDS: Final = 1.2  # of the daemon: 1 s and some slack


class WorkerKey(NamedTuple):
    id: str
    session: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """As the daemon's snapshot told it."""

    key: WorkerKey
    endpoint: str
    pool: str
    model: str
    state: WorkerState
    age_ms: int = 0
    silent_ms: int = 0
    busy: bool = False
    load: int = 0  # sequences running and waiting, of all gateways

    @property
    def alive(self) -> bool:
        """Not fenced, and not frozen: what it has or gets will be answered."""
        return self.state is not WorkerState.LOST and self.age_ms < GONE_MS

    @property
    def healthy(self) -> bool:
        """READY, heard of lately, and advancing or idle."""
        moving = not self.busy or self.silent_ms < SILENT_MS
        return self.state is WorkerState.READY and self.age_ms < FRESH_MS and moving


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One model's KV pool and limits."""

    name: str
    model: str
    fingerprint: str
    max_model_len: int
    vocab_size: int
    dtype: str
    device: str = ""
    num_blocks: int
    block_size: int

    @property
    def accelerated(self) -> bool:
        """On a device that computes best for one worker at a time."""
        return self.device not in {"", "cpu"}

    @property
    def tokens(self) -> int:
        """The longest sequence it can hold: one block stays free."""
        return max(0, self.num_blocks - 1) * self.block_size


@dataclass(frozen=True, slots=True)
class Members:
    """One snapshot."""

    workers: Mapping[WorkerKey, Worker] = field(default_factory=dict)
    pools: Mapping[str, Pool] = field(default_factory=dict)

    def ready(self, model: str) -> Sequence[Worker]:
        """READY workers of `model` that are alive and whose pool is known."""
        return [
            worker
            for worker in self.workers.values()
            if worker.model == model
            and worker.state is WorkerState.READY
            and worker.alive
            and worker.pool in self.pools
        ]

    def serving(self, model: str) -> bool:
        """Some worker of `model` makes progress."""
        return any(worker.healthy for worker in self.ready(model))

    def of_session(self, session: str) -> Worker | None:
        """The living worker of a session, if there is one."""
        alive = (worker for worker in self.workers.values() if worker.alive)
        return next((worker for worker in alive if worker.key.session == session), None)

    def gone(self, key: WorkerKey) -> bool:
        worker = self.workers.get(key)
        return worker is None or not worker.alive


def choose(
    members: Members, model: str, own: Mapping[WorkerKey, int], avoid: Collection[WorkerKey] = ()
) -> Worker | None:
    """A healthy, not avoided worker; a less good one if there is no other; None without any.

    On the CPU the one of least load. Of a GPU's workers one is active: the one of most load, and of several GPUs the
    one with the least to do; so the others stay warm for its death. `own` counts this gateway's sequences by worker:
    the snapshot's load is up to 200 ms old.
    """
    ready = members.ready(model)
    loads = {worker.key: max(worker.load, own.get(worker.key, 0)) for worker in ready}

    def cost(worker: Worker) -> tuple[bool, bool, int, int, WorkerKey]:
        load, beside = loads[worker.key], 0
        if members.pools[worker.pool].accelerated:
            load, beside = sum(loads[w.key] for w in ready if w.pool == worker.pool), -load
        return worker.key in avoid, not worker.healthy, load, beside, worker.key

    return min(ready, key=cost, default=None)
