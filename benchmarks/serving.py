"""holdfast through gRPC against transformers `generate`, alternating in one run, on the same random 135M Llama.

    python -m benchmarks.serving [--repeats 5] [--threads 2]

bf16, greedy, the same token-id prompts (128 in, 64 out), `threads` torch threads each. gateway, daemon and this client
share the same cores with the worker; the peer has them to itself while it runs. Output tokens over the wall time of the
whole batch, prefill included. Also: the share of decode steps that waited for the daemon.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks import report, shapes
from holdfast.v1 import generate_pb2 as pb
from holdfast.v1 import generate_pb2_grpc as rpc
from tools.service import Service, environment

PROMPT_TOKENS, NEW_TOKENS = 128, 64
STREAMS = (16, 1)


@dataclass
class Peer:
    """The transformers process, one run at a time."""

    process: subprocess.Popen[str]

    @classmethod
    def start(cls, folder: Path, threads: int) -> "Peer":
        argv = [sys.executable, "-m", "benchmarks.peer_transformers", str(folder), str(threads)]
        pipe = subprocess.PIPE
        return cls(subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, env=environment()))

    def run(self, prompts: Sequence[Sequence[int]]) -> float:
        """Output tokens per second."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"prompts": prompts, "new_tokens": NEW_TOKENS}) + "\n")
        self.process.stdin.flush()
        seconds = json.loads(self.process.stdout.readline())["seconds"]
        return len(prompts) * NEW_TOKENS / float(seconds)


async def ours(target: str, prompts: Sequence[Sequence[int]]) -> float:
    """Output tokens per second of all prompts sent at once."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = rpc.GenerateServiceStub(channel)
        start = time.perf_counter()
        counts = await asyncio.gather(*(stream(stub, prompt) for prompt in prompts))
        assert counts == [NEW_TOKENS] * len(prompts), counts
        return sum(counts) / (time.perf_counter() - start)


async def stream(stub: Any, prompt: Sequence[int]) -> int:
    request = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=prompt),
        sampling=pb.SamplingParams(temperature=0),
        stopping=pb.StoppingCriteria(max_tokens=NEW_TOKENS, ignore_eos=True),
    )
    return sum([len(message.token_ids) async for message in stub.Generate(request)])


def prompts(count: int, rng: random.Random) -> list[list[int]]:
    """Fresh random prompts: nothing to find in the prefix cache."""
    return [[rng.randrange(10, 49000) for _ in range(PROMPT_TOKENS)] for _ in range(count)]


def alternate(peer: Peer, target: str, streams: int, repeats: int) -> dict[str, report.Figure]:
    """A warm-up of each, then `repeats` pairs on the same prompts."""
    rng = random.Random(streams)
    pairs = []
    for _ in range(repeats + 1):
        batch = prompts(streams, rng)
        pairs.append((peer.run(batch), asyncio.run(ours(target, batch))))
    theirs, mine = (report.Figure(column) for column in zip(*pairs[1:], strict=True))
    return {"transformers": theirs, "holdfast": mine, "ratio": report.ratios(mine, theirs)}


def waits(service: Service) -> dict[str, float]:
    """How often a step's launch was delayed by the daemon, from the worker's own counters."""
    argv = [
        sys.executable,
        "-m",
        "kvmanager",
        "--run-dir",
        str(service.run_dir),
        "-o",
        "json",
        "get",
        "workers",
    ]
    out = subprocess.run(argv, capture_output=True, check=True, env=environment()).stdout
    worker = json.loads(out)["items"][0]
    steps, waited = int(worker["step"]), int(worker.get("steps_waited", 0))
    return {"steps": steps, "steps_waited": waited, "wait_p99_ms": float(worker.get("wait_p99_ms", 0))}


def show(results: dict[int, dict[str, report.Figure]], waited: dict[str, float]) -> None:
    print("| streams | transformers tok/s | holdfast tok/s | ratio |\n|---|---|---|---|")
    for streams, row in results.items():
        ratio = row["ratio"]
        spread = f"{ratio.median:.2f}× ({min(ratio.values):.2f}–{max(ratio.values):.2f})"
        print(f"| {streams} | {row['transformers']} | {row['holdfast']} | {spread} |")
    print(
        f"steps {waited['steps']:.0f}, waited {waited['steps_waited']:.0f}, p99 wait {waited['wait_p99_ms']:.2f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--port", type=int, default=50961)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hfb-") as name:
        measure(Path(name), options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    model = shapes.checkpoint(folder / "llama-135m")
    peer = Peer.start(model, options.threads)
    compute = ["--dtype", "bfloat16", "--threads", str(options.threads)]
    (folder / "run").mkdir(mode=0o700)
    try:
        with Service(
            model, folder / "run", options.port, logs=folder / "logs", compute_args=compute
        ) as service:
            service.wait_ready()
            results = {n: alternate(peer, service.target, n, options.repeats) for n in STREAMS}
            waited = waits(service)
    finally:
        peer.process.terminate()
        peer.process.wait()
    show(results, waited)
    figures = {str(n): {key: value.as_json() for key, value in row.items()} for n, row in results.items()}
    settings = {"prompt_tokens": PROMPT_TOKENS, "new_tokens": NEW_TOKENS, "threads": options.threads}
    report.write("serving-cpu", {"settings": settings, "output_tokens_per_second": figures, "waits": waited})


if __name__ == "__main__":
    main()
