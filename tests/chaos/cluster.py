"""A service whose parts can be killed one by one: keeper and daemon, several workers, a gateway. Real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from holdfast.rundir import RunDir
from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.client import AdminClient
from kvmanager.errors import DeadlineExceeded, KvError, Unavailable
from tools.demo import free_port
from tools.service import Part, Service, environment
from tools.up import demo_model

COMPUTE: Final = ("--threads", "1", "--dtype", "float32")
SPIN: Final = {"GOMP_SPINCOUNT": "3000"}


class Cluster:
    """`with Cluster(folder) as cluster:`; whatever it started ends with it."""

    def __init__(
        self,
        folder: Path,
        *,
        model: Path | None = None,
        kvmanager: Sequence[str] = (),
        compute: Sequence[str] = COMPUTE,
        workers: int = 2,
        module: str = "compute",
    ) -> None:
        """`module`: what is run as a worker; one of its own is always started cold."""
        self.folder = folder
        self.service = Service(
            model or demo_model(),
            folder / "run",
            free_port(),
            workers=0,
            logs=folder / "logs",
            kvmanager_args=kvmanager,
        )
        self.compute, self.workers, self.module = compute, workers, module
        self._number = 0
        self._pids: set[int] = set()
        self.unexpected = 0  # workers that ended although nobody had killed them
        self._forks: subprocess.Popen[str] | None = None
        self._cold: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Cluster":
        self.service.__enter__()
        for _ in range(self.workers):
            self.start_worker(cold=True)
        self.service.wait_ready()
        self.until_ready(self.workers)
        return self

    def __exit__(self, *_: object) -> None:
        for info in self.status().workers:
            os.kill(info.pid, signal.SIGCONT)
        if self._forks is not None:
            self._forks.kill()
            self._forks.wait()
        for process in self._cold:
            process.terminate()
        self.service.__exit__()
        for process in self._cold:
            process.kill()
            process.wait()

    # ------------------------------------------------------------------------------------- questions

    def ask(self, body: Any, patience_s: float = 30.0) -> Any:
        """A question to the daemon, over its restarts."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                with AdminClient(RunDir(self.service.run_dir), 2.0) as client:
                    return client.request(body)
            except (Unavailable, DeadlineExceeded):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def status(self) -> pb.Status:
        found: pb.Status = self.ask(pb.StatusRequest())
        return found

    @property
    def pool(self) -> pb.PoolInfo:
        (pool,) = self.status().pools
        return pool

    def ready(self) -> list[pb.WorkerInfo]:
        return [w for w in self.status().workers if w.state == pb.WORKER_STATE_READY]

    def until_ready(self, count: int, patience_s: float = 120.0) -> None:
        """Starts another worker for one that ended without being told, as a supervisor would."""
        deadline = time.monotonic() + patience_s
        while len(self.ready()) < count:
            assert time.monotonic() < deadline, f"{len(self.ready())} of {count} workers are ready"
            if self.living() < count:
                self.unexpected += 1
                self.start_worker(cold=False)
            time.sleep(0.05)

    def living(self) -> int:
        """Workers started here whose processes run, as far as nobody killed them."""
        self._pids = {pid for pid in self._pids if is_alive(pid)}
        return len(self._pids)

    def gateway(self) -> Part:
        return self.service.part("gateway")

    # ------------------------------------------------------------------------------------- parts

    def start_worker(self, *, cold: bool) -> int:
        """Its pid. Cold: a new interpreter; else a fork of one that has imported everything."""
        self._number += 1
        name = f"w{self._number}"
        run = ["--run-dir", str(self.service.run_dir), "--model", str(self.service.model)]
        argv = ["serve", *run, "--worker-id", name, *self.compute]
        log = self.folder / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        if cold or self.module != "compute":
            with log.open("ab") as sink:
                process = subprocess.Popen(
                    [sys.executable, "-m", "tools.part", self.module, *argv],
                    stderr=sink,
                    env=environment(),
                    process_group=0,
                )
            self._cold.append(process)
            pid = process.pid
        else:
            pid = self._fork({"argv": argv, "log": str(log)})
        self._pids.add(pid)
        return pid

    def _fork(self, order: dict[str, Any]) -> int:
        if self._forks is None:
            self._forks = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.forkserver"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**environment(), **SPIN},
            )
        assert self._forks.stdin is not None
        assert self._forks.stdout is not None
        print(json.dumps(order), file=self._forks.stdin, flush=True)
        return int(self._forks.stdout.readline())

    def reap(self) -> None:
        """Cold workers that were killed."""
        for process in self._cold:
            process.poll()

    def restart_gateway(self) -> None:
        """SIGKILL, and another one on the same port."""
        part = self.gateway()
        assert part.process is not None
        part.process.kill()
        part.process.wait()
        self.service.start(part)

    # ------------------------------------------------------------------------------------- afterwards

    def settled(self, patience_s: float = 60.0) -> list[str]:
        """What is not as at the start once everything ended: held blocks, findings of fsck. Empty: all is well."""
        deadline = time.monotonic() + patience_s
        while held(self.pool.blocks) and time.monotonic() < deadline:
            time.sleep(0.2)
        blocks = self.pool.blocks
        left = [f"{held(blocks)} blocks are held: {blocks}"] if held(blocks) else []
        findings = self.ask(pb.FsckRequest()).findings
        return [*left, *(f"{f.subject}: {f.message}" for f in findings)]


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def held(blocks: pb.BlockCounts) -> int:
    """Blocks that are neither free, cached nor float."""
    return blocks.tail + blocks.quarantined + blocks.sealed - blocks.cached


def send(pid: int, number: signal.Signals) -> bool:
    """False if the process is gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


__all__ = ["Cluster", "KvError", "held", "send"]
