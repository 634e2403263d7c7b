"""The two that `benchmarks.prefix` compares: a worker with the prefix cache and one without, and the daemon's CPU time.

On the CPU each is a whole service of its own, asked through gRPC. On a GPU they are two workers of one daemon and one
pool, asked as a gateway asks them: two sets of weights, but one memory for keys and values. Only one of the two has
requests at a time; the other sleeps.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import grpc

from benchmarks.engine_client import Client
from holdfast.v1 import generate_pb2 as pb
from holdfast.v1 import generate_pb2_grpc as rpc
from tools.service import Service, end, environment

Prompts = Sequence[Sequence[int]]
FLAGS = {"with": "--enable-prefix-caching", "without": "--no-enable-prefix-caching"}
START_S = 240


@dataclass(frozen=True, slots=True)
class Took:
    """One batch of requests."""

    seconds: float
    daemon_us: float  # CPU time of the KV manager's daemon


class Sides(Protocol):
    """`with sides:` until both are ready; `run` is one batch on the side of this name, all requests at once."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def run(self, side: str, prompts: Prompts, new_tokens: int) -> Took: ...


def cpu_us(pid: int) -> float:
    """CPU time of a process so far: of its threads to the nanosecond, or in ticks where the kernel tells no more."""
    try:
        tasks = [(task / "schedstat").read_text("utf8") for task in Path(f"/proc/{pid}/task").iterdir()]
        return sum(int(task.split()[0]) for task in tasks) / 1e3
    except OSError:
        fields = Path(f"/proc/{pid}/stat").read_text("utf8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * 1e6 / os.sysconf("SC_CLK_TCK")


def asked(run_dir: Path, *command: str) -> dict[str, Any]:
    """What `kvmanager` answers; nothing while it cannot."""
    argv = [sys.executable, "-m", "kvmanager", "--run-dir", str(run_dir), "-o", "json", *command]
    found = subprocess.run(argv, capture_output=True, check=False, env=environment())
    reply: dict[str, Any] = json.loads(found.stdout) if found.returncode == 0 else {}
    return reply


class Services:
    """Two services on the CPU."""

    def __init__(self, folder: Path, model: Path, port: int, threads: int, dtype: str) -> None:
        self.services: dict[str, Service] = {}
        self.daemons: dict[str, int] = {}  # process ids
        for number, (name, flag) in enumerate(FLAGS.items()):
            run_dir = folder / f"run-{number}"
            run_dir.mkdir(mode=0o700)
            compute = ["--dtype", dtype, "--threads", str(threads), flag]
            self.services[name] = Service(
                model, run_dir, port + number, logs=folder / f"logs-{number}", compute_args=compute
            )
        self.open = ExitStack()

    def __enter__(self) -> Self:
        for service in self.services.values():
            self.open.enter_context(service)
        for name, service in self.services.items():
            service.wait_ready()
            self.daemons[name] = int(asked(service.run_dir, "status")["pid"])
        return self

    def __exit__(self, *_: object) -> None:
        self.open.close()

    def run(self, side: str, prompts: Prompts, new_tokens: int) -> Took:
        before = cpu_us(self.daemons[side])
        seconds = asyncio.run(generate(self.services[side].target, prompts, new_tokens))
        return Took(seconds, cpu_us(self.daemons[side]) - before)


async def generate(target: str, prompts: Prompts, new_tokens: int) -> float:
    """Seconds until every prompt has its tokens."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = rpc.GenerateServiceStub(channel)
        start = time.perf_counter()
        counts = await asyncio.gather(*(stream(stub, prompt, new_tokens) for prompt in prompts))
        assert counts == [new_tokens] * len(prompts), counts
        return time.perf_counter() - start


async def stream(stub: Any, prompt: Sequence[int], new_tokens: int) -> int:
    request = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=prompt),
        sampling=pb.SamplingParams(temperature=0),
        stopping=pb.StoppingCriteria(max_tokens=new_tokens, ignore_eos=True),
    )
    return sum([len(message.token_ids) async for message in stub.Generate(request)])


class Workers:
    """One daemon and two workers on one device, without a gateway."""

    def __init__(self, folder: Path, config: dict[str, Any], device: str, kv_memory: str) -> None:
        self.model, self.device, self.kv_memory = folder / "model", device, kv_memory
        self.model.mkdir()
        (self.model / "config.json").write_text(json.dumps(config), "utf8")
        self.run_dir = folder / "run"
        self.run_dir.mkdir(mode=0o700)
        self.log = (folder / "log").open("w+b")
        self.processes: list[subprocess.Popen[bytes]] = []
        self.clients: dict[str, Client] = {}
        self.daemon = 0  # process id

    def __enter__(self) -> Self:
        try:
            self.start("kvmanager", "serve", "--kv-memory", self.kv_memory, "--max-workers", "2")
            for name, flag in FLAGS.items():
                self.start(
                    "compute", "serve", "--model", str(self.model), "--device", self.device, "--worker-id", name,
                    "--load-format", "dummy", flag,
                )  # fmt: skip
            self.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        self.clients = {name: Client(self.run_dir / f"worker-{name}.sock") for name in FLAGS}
        return self

    def start(self, *argv: str) -> None:
        command = [sys.executable, "-m", *argv, "--run-dir", str(self.run_dir)]
        self.processes.append(
            subprocess.Popen(command, stdout=self.log, stderr=self.log, env=environment() | one_thread())
        )

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and all(one.poll() is None for one in self.processes):
            workers = asked(self.run_dir, "get", "workers").get("items", [])
            if [worker["state"] for worker in workers].count("ready") == len(FLAGS):
                self.daemon = int(asked(self.run_dir, "status")["pid"])
                return
            time.sleep(0.5)
        self.log.seek(0)
        raise RuntimeError(f"the workers did not start:\n{self.log.read().decode()[-3000:]}")

    def run(self, side: str, prompts: Prompts, new_tokens: int) -> Took:
        before = cpu_us(self.daemon)
        seconds = self.clients[side].run(prompts, new_tokens).seconds
        return Took(seconds, cpu_us(self.daemon) - before)

    def __exit__(self, *_: object) -> None:
        for client in self.clients.values():
            client.close()
        for process in reversed(self.processes):
            end(process, 20)
        self.log.close()


def one_thread() -> dict[str, str]:
    """The GPU's worker needs no OpenMP team; whoever set one keeps it."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
