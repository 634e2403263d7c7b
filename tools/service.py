"""Starts and supervises one holdfast service on this machine: kvmanager, workers, gateway, as real processes.

What `make up`, the demo, the benchmarks and the end-to-end tests run. Owns processes and their log files; knows nothing
of what they say to each other. Each part has a process group of its own, so that Ctrl-C reaches this supervisor alone
and the parts end in order; should the supervisor be killed, the kernel ends them (`tools.part`).
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = Path(__file__).resolve().parent.parent
HEALTH_SERVICE = "holdfast.v1.GenerateService"
GRACE_S = 40.0  # a little more than the parts' own --shutdown-grace
BACKOFF_S = (0.2, 10.0)  # doubles from the first to the second
STEADY_S = 30.0  # a part that lived this long starts the back-off again


@dataclass
class Part:
    """One process: its name, its command line after `python -m`, and whether it is started again when it dies."""

    name: str
    argv: Sequence[str]
    restart: bool = False
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    backoff: float = BACKOFF_S[0]
    again_at: float | None = None  # when a dead one is started again


@dataclass
class Service:
    """`with Service(...) as service:` runs until the block ends; everything it started is gone afterwards."""

    model: Path
    run_dir: Path
    port: int = 50051
    workers: int = 1
    logs: Path | None = None  # folder of one file a part; None: this process's stderr
    kvmanager_args: Sequence[str] = ()
    compute_args: Sequence[str] = ()
    gateway_args: Sequence[str] = ()
    parts: list[Part] = field(default_factory=list)

    def __post_init__(self) -> None:
        run = ["--run-dir", str(self.run_dir)]
        model = ["--model", str(self.model)]
        port = ["--port", str(self.port)]
        self.parts.append(Part("kvmanager", ["kvmanager", "serve", *run, *self.kvmanager_args]))
        for number in range(self.workers):
            argv = ["compute", "serve", *run, *model, *self.compute_args]
            self.parts.append(Part(f"compute-{number}", argv, restart=True))
        gateway = ["gateway", "serve", *run, *model, *port, *self.gateway_args]
        self.parts.append(Part("gateway", gateway, restart=True))

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> "Service":
        for part in self.parts:
            self.start(part)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def part(self, name: str) -> Part:
        return next(part for part in self.parts if part.name == name)

    def start(self, part: Part) -> None:
        log = self._log(part)
        part.process = subprocess.Popen(
            [sys.executable, "-m", "tools.part", *part.argv],
            cwd=ROOT,
            env=environment(),
            stderr=log,
            process_group=0,
        )
        part.started, part.again_at = time.monotonic(), None
        if log is not None:
            log.close()

    def _log(self, part: Part) -> IO[bytes] | None:
        if self.logs is None:
            return None
        self.logs.mkdir(parents=True, exist_ok=True)
        return (self.logs / f"{part.name}.log").open("ab")

    def supervise(self) -> str | None:
        """Starts dead parts again, later each time; the name of a part whose death ends the service, if one died."""
        now = time.monotonic()
        for part in self.parts:
            if part.process is None or part.process.poll() is None:
                continue
            if not part.restart:
                return part.name
            if part.again_at is None:
                steady = now - part.started >= STEADY_S
                part.backoff = BACKOFF_S[0] if steady else min(part.backoff * 2, BACKOFF_S[1])
                part.again_at = now + part.backoff
            if now >= part.again_at:
                self.start(part)
        return None

    def wait_ready(self, timeout: float = 120.0) -> None:
        """Returns when the gateway reports SERVING; TimeoutError, or RuntimeError when a part died."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            dead = self.supervise()
            if dead is not None:
                raise RuntimeError(f"{dead} exited during start{self._tail(dead)}")
            if serving(self.target):
                return
            time.sleep(0.1)
        raise TimeoutError(f"not SERVING after {timeout:.0f} s")

    def _tail(self, name: str) -> str:
        path = self.logs / f"{name}.log" if self.logs else None
        return f":\n{path.read_text('utf8', 'replace')[-2000:]}" if path and path.exists() else ""

    def stop(self, grace: float = GRACE_S) -> None:
        """SIGTERM from the outside in: gateway, workers, kvmanager; SIGKILL for what stays."""
        for part in reversed(self.parts):
            if part.process is not None:
                end(part.process, grace)


def end(process: subprocess.Popen[bytes], grace: float) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def environment() -> dict[str, str]:
    """This process's environment, with the sources importable where the package is not installed."""
    paths = [str(ROOT), str(ROOT / "proto"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def serving(target: str) -> bool:
    """Whether the gateway at `target` says SERVING now."""
    with grpc.insecure_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(service=HEALTH_SERVICE), timeout=1)
        except grpc.RpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
