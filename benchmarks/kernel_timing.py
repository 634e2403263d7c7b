"""Time of launches on the GPU: graph replays or single calls, several engines in turn, so that each pair of runs saw
the same clock and the same neighbours."""

import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Launch = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median of paired ratios with a 95 % interval (bootstrap over the pairs)."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def paired(ours: list[float], theirs: list[float]) -> Ratio:
    """theirs / ours, run by run: above 1 where ours takes less time."""
    values = [b / a for a, b in zip(ours, theirs, strict=True)]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(1000))
    return Ratio(statistics.median(values), medians[25], medians[974])


def graph_of(launches: list[Launch]) -> Launch:
    """All launches, one after the other, as one CUDA graph."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()  # the inputs were made on another stream
    with torch.cuda.stream(stream):
        for launch in launches[:2]:
            launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()

    def replay() -> None:
        assert launches  # they hold the tensors whose addresses the graph has
        graph.replay()

    return replay


def times(runs: Mapping[str, Launch], repeats: int, calls: int = 1) -> dict[str, list[float]]:
    """Microseconds of one call, for each engine and repeat. Engines alternate; their order changes every turn."""
    names = list(runs)
    found: dict[str, list[float]] = {name: [] for name in names}
    for run in runs.values():
        run()
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(once(runs[name]) / calls)
    return found


def once(run: Launch) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    # A short kernel in front keeps the GPU busy while the host enqueues the timed ones.
    torch.cuda._sleep(20_000)  # type: ignore[no-untyped-call]
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1000.0
