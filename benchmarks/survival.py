"""What a worker's death costs on a GPU: a Llama-3-8B shape, 64 streams in decode, a warm second worker, SIGKILL.

    python -m benchmarks.survival [--kills 8] [--streams 64]

Through gRPC, gateway, keeper, daemon and workers. Each stream's longest gap between two shown messages across a kill is
its stall; beside it the usual gap between two messages, and what others pay: prefilling all those contexts again, as it
was timed at the start of the run. Then another worker is started, and the next kill follows when it is warm.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from benchmarks import report
from benchmarks.engine import LLAMA_8B
from gateway.client import Client
from tests.chaos.checker import percentile
from tests.chaos.cluster import Cluster

CONTEXT: Final = (2048, 4096)  # tokens of a prompt
MAX_TOKENS: Final = 600  # of a stream: a kill comes in the middle
INTERVAL: Final = 4  # tokens of a message: the gateway's and the client's Python share no core with a step
COMPUTE: Final = (
    "--device", "cuda", "--load-format", "dummy", "--max-num-seqs", "64", "--max-num-batched-tokens", "2048",
)  # fmt: skip


class Reader:
    """One stream: when its messages came, and whether the server's count of tokens is ours."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.prompt, self.times, self.tokens, self.wrong = prompt, list[float](), 0, ""

    async def read(self, client: Client) -> None:
        options = {"temperature": 0.0, "ignore_eos": True, "stream_interval": INTERVAL}
        try:
            async for chunk in client.generate(list(self.prompt), max_tokens=MAX_TOKENS, **options):
                self.tokens += len(chunk.token_ids)
                self.times.append(time.monotonic())
                if chunk.next_offset != self.tokens:
                    self.wrong = (
                        self.wrong or f"{self.tokens} tokens came, the server counts {chunk.next_offset}"
                    )
        except Exception as error:  # noqa: BLE001 - a finding
            self.wrong = f"{type(error).__name__}: {error}"

    def stall(self, at: float) -> float:
        """The gap across this moment; it counts from the fault for those that got nothing since."""
        for a, b in pairwise(self.times):
            if a <= at < b:
                return b - a
        return float("inf")


def victim(cluster: Cluster) -> Any:
    return max(cluster.ready(), key=lambda worker: worker.running)


async def strike(cluster: Cluster, readers: Sequence[Reader]) -> dict[str, Any]:
    """Kills the worker that runs all; what the readers felt."""
    worker = await asyncio.to_thread(victim, cluster)
    usual = [b - a for reader in readers for a, b in pairwise(reader.times[-20:])]
    os.kill(worker.pid, signal.SIGKILL)
    at = time.monotonic()
    while any(reader.times[-1] <= at for reader in readers) and time.monotonic() < at + 20:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    stalls = [1000 * reader.stall(at) for reader in readers]
    told = {"running": worker.running, "usual_ms": 1000 * percentile(usual, 0.5), "stall_ms": stalls}
    felt = f"stall p50 {percentile(stalls, 0.5):.0f} ms, max {max(stalls):.0f} ms"
    print(f"{worker.running} running: {felt}; usual gap {told['usual_ms']:.0f} ms", flush=True)
    return told


async def wave(
    client: Client, prompts: Sequence[Sequence[int]]
) -> tuple[list[Reader], list[asyncio.Task[None]], float]:
    """All streams, each with its first token; how long that took."""
    readers, began = [Reader(prompt) for prompt in prompts], time.monotonic()
    tasks = [asyncio.create_task(reader.read(client)) for reader in readers]
    while not all(reader.times or reader.wrong for reader in readers):
        await asyncio.sleep(0.01)
    return readers, tasks, time.monotonic() - began


async def run(cluster: Cluster, kills: int, streams: int) -> dict[str, Any]:
    rng = random.Random(7)
    prompts = [[rng.randrange(100, 120_000) for _ in range(rng.randint(*CONTEXT))] for _ in range(streams)]
    struck, wrong, prefill_s = [], list[str](), 0.0
    async with Client(cluster.service.target) as client:
        for number in range(kills):
            readers, tasks, seconds = await wave(client, prompts)
            prefill_s = prefill_s or seconds  # later ones are found in the cache
            await asyncio.sleep(1.0)
            struck.append(await strike(cluster, readers))
            await asyncio.gather(*tasks)
            wrong += [reader.wrong for reader in readers if reader.wrong]
            wrong += [f"{reader.tokens} tokens" for reader in readers if reader.tokens != MAX_TOKENS]
            if number + 1 < kills:
                await replace(cluster)
    return {"prefill_s": prefill_s, "contexts": sum(map(len, prompts)), "strikes": struck, "wrong": wrong}


async def replace(cluster: Cluster) -> None:
    started = time.monotonic()
    await asyncio.to_thread(cluster.start_worker, cold=True)
    await asyncio.to_thread(cluster.until_ready, 2)
    print(f"another worker is warm after {time.monotonic() - started:.1f} s", flush=True)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--streams", type=int, default=64)
    given = parser.parse_args(arguments)
    import torch  # noqa: PLC0415 - for the card's name

    with tempfile.TemporaryDirectory(prefix="hfs") as name:
        folder = Path(name)
        model = folder / "llama-8b"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(LLAMA_8B), "utf8")
        with Cluster(folder, compute=COMPUTE, model=model) as cluster:
            found = asyncio.run(run(cluster, given.kills, given.streams))
            pool = cluster.pool
            found |= {"adoptions": pool.adoptions, "reprefilled": pool.reprefilled, "left": cluster.settled()}
    gaps = [gap for one in found["strikes"] for gap in one["stall_ms"]]
    felt = {name: percentile(gaps, share) for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))}
    found = {"gpu": torch.cuda.get_device_name(), "stalls": len(gaps), "stall_ms": felt, **found}
    print(f"{len(gaps)} stalls, ms: {felt}; slots computed again: {found['reprefilled']}")
    print(f"prefilling the {found['contexts']} tokens took {found['prefill_s']:.1f} s")
    print("wrong:", found["wrong"], "left:", found["left"])
    name = f"survival-{report.chip(found['gpu'])}"
    print(report.write(name, found))
    return int(bool(found["wrong"] or found["reprefilled"] or found["left"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
