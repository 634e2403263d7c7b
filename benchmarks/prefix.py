"""The prefix cache under load: requests with a long beginning in common, with the cache and without it.

    python -m benchmarks.prefix [--pairs 10] [--requests 10]                        # two services on the CPU
    python -m benchmarks.prefix --device cuda [--pairs 10] [--requests 20]          # two workers on one GPU

A batch is `requests` prompts of 2,048 + 128 tokens, sent at once, 32 tokens out each. A share of them, 0, 50 or 90 %,
begins with the same 2,048 tokens, a system prompt that was computed before; everything else is random and new each
time. "first seen": that beginning is new, too, and whoever comes first computes it. With and without the cache
(`--no-enable-prefix-caching`) in turn, the same prompts in changing order; a ratio is of one pair, its interval 95 % of
the median. CPU time is the daemon's, per request; then the same of its policy alone, without messages.
"""

import argparse
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import prefix_policy, report, shapes
from benchmarks.engine import LLAMA_8B, interval
from benchmarks.prefix_sides import Services, Sides, Took, Workers

SHARED, OWN, NEW = 2048, 128, 32
SHARES = (0.0, 0.5, 0.9)
VOCAB = 8000  # of every shape measured here, at least


@dataclass(slots=True)
class Pairs:
    """Runs of one share, pair by pair."""

    requests: int
    took: dict[str, list[Took]] = field(default_factory=lambda: {"with": [], "without": []})

    def rate(self, side: str) -> report.Figure:
        """Requests a second."""
        return report.Figure([self.requests / one.seconds for one in self.took[side]])

    def daemon_us(self, side: str) -> report.Figure:
        """CPU time a request."""
        return report.Figure([one.daemon_us / self.requests for one in self.took[side]])

    def as_json(self) -> dict[str, Any]:
        speedup = report.ratios(self.rate("with"), self.rate("without"))
        us = [
            a - b
            for a, b in zip(self.daemon_us("with").values, self.daemon_us("without").values, strict=True)
        ]
        return {
            "requests_per_second": {side: self.rate(side).as_json() for side in self.took},
            "speedup": with_interval(report.Figure(speedup.values)),
            "daemon_us": {side: self.daemon_us(side).as_json() for side in self.took},
            "daemon_us_difference": with_interval(report.Figure(us)),
        }


def with_interval(figure: report.Figure) -> dict[str, Any]:
    return figure.as_json() | {"ci95": list(interval(figure.values))}


def batch(rng: random.Random, requests: int, share: float, beginning: Sequence[int]) -> list[list[int]]:
    """Prompts in random order, of which `share` begin with `beginning`."""
    shared = round(requests * share)

    def fresh(count: int) -> list[int]:
        return [rng.randrange(10, VOCAB) for _ in range(count)]

    prompts = [[*beginning, *fresh(OWN)] for _ in range(shared)]
    prompts += [fresh(len(beginning) + OWN) for _ in range(requests - shared)]
    rng.shuffle(prompts)
    return prompts


def alternate(
    sides: Sides, share: float, pairs: int, requests: int, *, first_seen: bool = False, shared: int = SHARED
) -> Pairs:
    """A pair to warm up, which also computes the beginning that the others find; then `pairs` pairs."""
    rng = random.Random(f"{share} {first_seen}")
    found = Pairs(requests)
    beginning = [rng.randrange(10, VOCAB) for _ in range(shared)]
    for number in range(pairs + 1):
        if first_seen:
            beginning = [rng.randrange(10, VOCAB) for _ in range(shared)]
        prompts = batch(rng, requests, share, beginning)
        for side in ("with", "without")[:: 1 if number % 2 else -1]:
            took = sides.run(side, prompts if number else [*prompts[:1], [*beginning, 1]], NEW)
            if number:
                found.took[side].append(took)
    return found


def measure(sides: Sides, pairs: int, requests: int, shared: int = SHARED) -> dict[str, Any]:
    """Every share, then the last one with beginnings that nobody has seen."""
    result = {}
    runs = [(f"{share:.0%}", share, False) for share in SHARES] + [
        (f"{SHARES[-1]:.0%}, first seen", SHARES[-1], True)
    ]
    with sides:
        for name, share, first_seen in runs:
            found = alternate(sides, share, pairs, requests, first_seen=first_seen, shared=shared).as_json()
            result[name] = found
            show(name, found)
    return result


def show(name: str, row: dict[str, Any]) -> None:
    rates, (low, high) = row["requests_per_second"], row["speedup"]["ci95"]
    print(
        f"{name}: {rates['with']['median']:.2f} requests/s with, {rates['without']['median']:.2f} without: "
        f"{row['speedup']['median']:.3f}× ({low:.3f}–{high:.3f}); daemon {row['daemon_us']['with']['median']:.0f} µs a "
        f"request with, {row['daemon_us']['without']['median']:.0f} without"
    )


def policy(shared: int = SHARED) -> dict[str, Any]:
    figures = prefix_policy.measure(shared + OWN, NEW)
    line = ", ".join(f"{name} {figure.median:.0f}" for name, figure in figures.items())
    print(f"the daemon's policy alone, µs a request of which nothing is found: {line}")
    return {name: with_interval(figure) for name, figure in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--requests", type=int, help="in a batch; 10 on the CPU, 20 on a GPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--port", type=int, default=50971)
    parser.add_argument("--kv-memory", default="16GiB", help="on a GPU")
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    requests = options.requests or (20 if on_gpu else 10)
    with tempfile.TemporaryDirectory(prefix="hfp-") as name:
        folder, sides = Path(name), None
        if on_gpu:
            sides = Workers(folder, LLAMA_8B, "cuda", options.kv_memory)
        else:
            model = shapes.checkpoint(folder / "llama-7m", shape=shapes.LLAMA_7M)
            sides = Services(folder, model, options.port, options.threads, "float32")
        body = {"shares": measure(sides, options.pairs, requests), "policy_us": policy()}
    settings = {"shared": SHARED, "own": OWN, "new": NEW, "requests": requests, "pairs": options.pairs}
    chip = gpu_name() if on_gpu else "cpu"
    report.write(f"prefix-{report.chip(chip)}", {"settings": settings, "device": chip, **body})


def gpu_name() -> str:
    from benchmarks.kernels import gpu  # noqa: PLC0415 - Triton comes with CUDA's torch alone

    return gpu()["gpu"]


if __name__ == "__main__":
    main()
