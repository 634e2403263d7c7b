"""The engine on a GPU: a Llama-3-8B shape with random weights, through keeper, daemon and worker, without gRPC.

    python -m benchmarks.engine [--out FILE.json] [--pairs 10]

Keeper and daemon are their own processes, the worker is a third; this one is the gateway's side of its socket. Token
ids are random, so nothing is found in the prefix cache. Beside each figure: the floor that memory bandwidth sets (the
card's own copy bandwidth, measured in the run), and what vLLM 0.24 was measured to do on an H200. Then the daemon's
tax: the same requests through the daemon and through the same allocator within the worker's process, alternating.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.engine_client import Client, Run
from tools.service import environment

LLAMA_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8448,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
WEIGHT_BYTES = 2 * (7.504e9)  # what one decode step reads: every matrix but the embedding
KV_BYTES = 32 * 2 * 8 * 128 * 2  # of a token
VLLM_H200 = {"1x1024/128": 191, "256x512/256": 9600, "16x8192/1": 37_900}  # tokens/s, one H200
REPEATS = 3
TAX = (64, 512, 96)  # requests, tokens in, tokens out


class Engine:
    """The processes of one run, and clients of the two ways to the allocator."""

    def __init__(self, folder: Path, kv_memory: str) -> None:
        model = folder / "llama-8b"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(LLAMA_8B), "utf8")
        self.run_dir = folder / "run"
        self.run_dir.mkdir(mode=0o700)
        run = ["--run-dir", str(self.run_dir)]
        self.log = (folder / "log").open("w+b")
        self.keeper = self.start("kvmanager", "serve", *run, "--kv-memory", kv_memory, "--max-workers", "1")
        self.worker = self.start(
            "benchmarks.engine_worker", *run, "--model", str(model), "--device", "cuda", "--load-format", "dummy",
            "--max-num-seqs", "256", "--max-num-batched-tokens", "2048", stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.worker.stdout is not None
        line = self.worker.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker did not start:\n{self.tail()}")
        self.facts: dict[str, Any] = json.loads(line)
        self.through_daemon = Client(self.run_dir / "worker-d.sock")
        self.in_process = Client(self.run_dir / "worker-l.sock")

    def start(self, *argv: str, stdout: int | None = None) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", *argv]
        return subprocess.Popen(command, stdout=stdout or self.log, stderr=self.log, env=environment())

    def tail(self) -> str:
        """What the processes logged last, but for requests that ended."""
        self.log.seek(0)
        lines = self.log.read().decode().splitlines()
        return "\n".join([line for line in lines if "request ended" not in line][-30:])

    def close(self) -> None:
        for client in (self.through_daemon, self.in_process):
            client.close()
        for process in (self.worker, self.keeper):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def engine(kv_memory: str) -> Iterator[Engine]:
    with tempfile.TemporaryDirectory(prefix="hfe-") as name:
        one = Engine(Path(name), kv_memory)
        try:
            yield one
        except BaseException:
            print(one.tail(), file=sys.stderr)
            raise
        finally:
            one.close()


def prompts(count: int, length: int, rng: random.Random) -> list[list[int]]:
    return [[rng.randrange(128_000) for _ in range(length)] for _ in range(count)]


def repeat(
    client: Client, shape: tuple[int, int, int], rng: random.Random, times: int = REPEATS
) -> list[Run]:
    """(requests, tokens in, tokens out), `times` times after a warm-up."""
    count, length, new = shape
    return [client.run(prompts(count, length, rng), new) for _ in range(times + 1)][1:]


def step_floor_ms(rows: int, context: float, tb_s: float) -> float:
    return (WEIGHT_BYTES + rows * context * KV_BYTES) / tb_s / 1e9


def figures(one: Engine, rng: random.Random) -> dict[str, Any]:
    """The issue of speed: one stream, a full decode batch, throughput, prefill."""
    client, tb_s = one.through_daemon, one.facts["copy_tb_s"]
    single = repeat(client, (1, 1024, 128), rng)
    batch = repeat(client, (64, 1024, 128), rng, 2)
    many = repeat(client, (256, 512, 256), rng, 2)
    prefill = repeat(client, (16, 8192, 1), rng, 2)
    steps = {
        "decode step, 1 row": (report.Figure([run.step_ms(1) for run in single]), step_floor_ms(1, 1088, tb_s)),
        "decode step, 64 rows": (report.Figure([run.step_ms(64) for run in batch]), step_floor_ms(64, 1088, tb_s)),
        "decode step, 256 rows": (report.Figure([run.step_ms(256) for run in many]), step_floor_ms(256, 640, tb_s)),
    }  # fmt: skip
    rates = {
        "1x1024/128": report.Figure([run.output_rate for run in single]),
        "64x1024/128": report.Figure([run.output_rate for run in batch]),
        "256x512/256": report.Figure([run.output_rate for run in many]),
        "16x8192/1": report.Figure([run.prompt_rate for run in prefill]),
    }
    for name, (figure, floor) in steps.items():
        print(f"{name}: {figure.median:.2f} ms, floor {floor:.2f} ms, {floor / figure.median:.1%} of it")
    for name, rate in rates.items():
        print(f"{name}: {rate} tok/s; vLLM 0.24 on one H200: {VLLM_H200.get(name, '–')}")
    return {
        "steps_ms": {n: f.as_json() | {"floor": floor} for n, (f, floor) in steps.items()},
        "tokens_per_second": {n: f.as_json() for n, f in rates.items()},
    }


def tax(one: Engine, pairs: int, rng: random.Random) -> dict[str, Any]:
    """Time through the daemon over time within the process, pair by pair, in changing order."""
    count, length, new = TAX
    times: dict[str, list[float]] = {"daemon": [], "local": []}
    steps: dict[str, list[float]] = {"daemon": [], "local": []}
    ways = {"daemon": one.through_daemon, "local": one.in_process}
    for number in range(pairs + 1):
        batch = prompts(count, length, rng)
        for name in sorted(ways, reverse=bool(number % 2)):
            run = ways[name].run(batch, new)
            times[name].append(run.seconds)
            steps[name].append(run.step_ms(count))
    result = {}
    for what, values in (("whole run", times), ("decode step", steps)):
        ratio = report.ratios(report.Figure(values["daemon"][1:]), report.Figure(values["local"][1:]))
        low, high = interval(ratio.values)
        print(
            f"daemon's tax, {what}: {ratio.median - 1:+.2%} (95 % {low - 1:+.2%} to {high - 1:+.2%}), {pairs} pairs"
        )
        result[what] = ratio.as_json() | {"ci95": [low, high]}
    return {"shape": TAX, "daemon_over_in_process": result}


def interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    rng = random.Random(1)
    medians = sorted(report.Figure(rng.choices(values, k=len(values))).median for _ in range(draws))
    return medians[draws * 25 // 1000], medians[draws * 975 // 1000]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--kv-memory", default="36GiB")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rng = random.Random(7)
    with engine(options.kv_memory) as one:
        facts = one.facts
        print(
            f"{facts['gpu']}: copy {facts['copy_tb_s']:.2f} TB/s, pool {facts['blocks']} blocks by "
            f"{facts['exporter']}, {facts['used_gib']:.1f} GiB of the card in use"
        )
        body = {"device": facts, "model": LLAMA_8B, **figures(one, rng), "tax": tax(one, options.pairs, rng)}
    path = report.write(f"engine-{report.chip(facts['gpu'])}", body)
    if options.out:
        options.out.write_text(path.read_text("utf8"), "utf8")


if __name__ == "__main__":
    main()
