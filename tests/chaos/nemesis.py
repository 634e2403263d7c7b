"""What goes wrong, when and to whom: seeded, one fault at a time or two, each followed by a recovery."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from holdfast.v1 import kvmanager_pb2 as pb
from tests.chaos.checker import Fault
from tests.chaos.cluster import Cluster, send
from tests.chaos.watch import Watch
from tests.chaos.workload import Stream

SETTLE_S = (0.3, 1.2)  # between a recovery and the next fault
COLD_SHARE = 0.12
SUPERVISOR_S = 1.0
STEADY_S = 2.0  # a daemon in service for a second has a spare beside it half a second later


@dataclass(slots=True)
class Nemesis:
    """`streams` are those of the run so far; a fault waits until `least` of them are in decode on its victim."""

    cluster: Cluster
    streams: list[Stream]
    watch: Watch
    seed: int
    least: int = 8
    faults: list[Fault] = field(default_factory=list)
    random: Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)

    async def run(self, kind: str, count: int, tell: Callable[[str], None]) -> None:
        """`count` faults of one kind: worker, daemon, gateway, zombie, double, upgrade."""
        act = getattr(self, f"do_{kind}")
        for number in range(count):
            await asyncio.sleep(self.random.uniform(*SETTLE_S))
            await act()
            if (number + 1) % 10 == 0:
                tell(f"{kind}: {number + 1} of {count}")

    # ------------------------------------------------------------------------------------- victims

    async def busiest(self) -> pb.WorkerInfo:
        """The worker that runs most, once it runs enough."""
        deadline = time.monotonic() + 30
        while True:
            ready = await self._ready()
            victim = max(ready, key=lambda worker: worker.running, default=None)
            enough = victim is not None and victim.running >= self.least
            if victim is not None and len(ready) >= 2 and (enough or time.monotonic() > deadline):
                return victim
            await asyncio.sleep(0.05)

    async def _ready(self) -> list[pb.WorkerInfo]:
        return await asyncio.to_thread(self.cluster.ready)

    def note(self, kind: str, streams: int, *, cold: bool = False) -> None:
        self.faults.append(Fault(kind, time.monotonic(), streams, cold))

    def decoding(self) -> int:
        return sum(stream.in_decode() for stream in self.streams[-200:])

    async def replace(self, *, cold: bool) -> None:
        """Another worker for the one that is gone, a moment later, as a supervisor's back-off has it."""
        await asyncio.sleep(SUPERVISOR_S)
        self.cluster.reap()
        await asyncio.to_thread(self.cluster.start_worker, cold=cold)
        await asyncio.to_thread(self.cluster.until_ready, self.cluster.workers)

    # ------------------------------------------------------------------------------------- faults

    async def do_worker(self) -> None:
        victim, cold = await self.busiest(), self.random.random() < COLD_SHARE
        self.note("worker", min(victim.running, self.decoding()), cold=cold)
        send(victim.pid, signal.SIGKILL)
        await self.replace(cold=cold)

    async def do_daemon(self) -> None:
        await self.busiest()
        status = await asyncio.to_thread(self.cluster.status)
        self.note("daemon", self.decoding())
        send(status.pid, signal.SIGKILL)
        await asyncio.to_thread(self.cluster.until_ready, self.cluster.workers)
        await asyncio.sleep(STEADY_S)

    async def do_double(self) -> None:
        """The daemon, and a worker a moment before or after."""
        victim, status = await self.busiest(), await asyncio.to_thread(self.cluster.status)
        pids = [victim.pid, status.pid]
        self.random.shuffle(pids)
        self.note("double", self.decoding())
        send(pids[0], signal.SIGKILL)
        await asyncio.sleep(self.random.uniform(0, 0.3))
        send(pids[1], signal.SIGKILL)
        await self.replace(cold=False)

    async def do_gateway(self) -> None:
        await self.busiest()
        self.note("gateway", self.decoding())
        await asyncio.to_thread(self.cluster.restart_gateway)
        await self._until_flowing(self.faults[-1].at)

    async def _until_flowing(self, since: float) -> None:
        """Whoever reads has heard something since."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            last = [
                max(map(max, stream.times.values())) for stream in self.streams[-200:] if stream.in_decode()
            ]
            if last and min(last) > since:
                return
            await asyncio.sleep(0.1)

    async def do_zombie(self) -> None:
        """Stopped until others have adopted its sequences, then woken: what it writes late must harm nobody."""
        victim = await self.busiest()
        self.note("zombie", min(victim.running, self.decoding()))
        os.kill(victim.pid, signal.SIGSTOP)
        await self._until_fenced(victim.id)
        await self._until_seen()
        send(victim.pid, signal.SIGCONT)
        await self.replace(cold=False)

    async def _until_fenced(self, worker_id: str) -> None:
        while any(worker.id == worker_id for worker in await self._ready()):
            await asyncio.sleep(0.05)

    async def _until_seen(self) -> None:
        """The watch has looked at what is in quarantine now: what is written from here on is seen."""
        seen = self.watch.samples + 2
        while self.watch.samples < seen:
            await asyncio.sleep(0.02)

    async def do_upgrade(self) -> None:
        """The busiest worker is drained, and replaced by a new process."""
        victim = await self.busiest()
        self.note("upgrade", min(victim.running, self.decoding()))
        await asyncio.to_thread(self.cluster.ask, pb.DrainRequest(worker=victim.id))
        await self._until_idle(victim.id)
        send(victim.pid, signal.SIGTERM)
        await self.replace(cold=False)

    async def _until_idle(self, worker_id: str) -> None:
        while True:
            workers = (await asyncio.to_thread(self.cluster.status)).workers
            found = next((worker for worker in workers if worker.id == worker_id), None)
            if found is None or not (found.running or found.waiting or found.state == pb.WORKER_STATE_READY):
                return
            await asyncio.sleep(0.05)
