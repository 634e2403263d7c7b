"""What the KV cache is for: generating with earlier tokens' keys and values kept, and with all of them computed again.

    python -m benchmarks.kv_cache [--tokens 512] [--repeats 3]

The repository's own model, one sequence, greedy, through the runner that serves it. Without the cache every step
computes the whole sequence so far as one chunk: a token's work grows with its position, that of all with the square.
Both must give the same tokens.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from benchmarks import report
from compute.plan import StepPlan, StepRow
from compute.request import SamplingParams
from compute.runner import Runner, load
from compute.sampler import Sampler
from kvmanager.layout import PoolLayout
from kvmanager.mapping import DTYPES
from kvmanager.messages import SequenceId

MODEL = Path(__file__).resolve().parent.parent / "models/stories-6m"
BLOCK = 16
EVERY = 8  # tokens between two points of a course
PROMPT = [300, 17, 42, 901]
GREEDY = SamplingParams(temperature=0.0)


def runner_of(tokens: int, threads: int) -> Runner:
    torch.set_num_threads(threads)
    model = load(MODEL, "float32")
    layout = PoolLayout(model.config.geometry(BLOCK, "float32"))
    blocks = -(-(len(PROMPT) + tokens) // BLOCK)
    return Runner(
        model, torch.zeros(layout.shape(blocks), dtype=DTYPES["float32"]), Sampler(model.config.vocab_size)
    )


def generate(runner: Runner, count: int, *, cached: bool) -> tuple[list[int], list[float]]:
    """The tokens, and the seconds from the start to each of them."""
    tokens, times, kv_len = list(PROMPT), [], 0
    begin = time.perf_counter()
    for number in range(count):
        start = kv_len if cached else 0
        row = StepRow(
            sequence=SequenceId(bytes(16)), epoch=1, token_ids=tokens[start:], start=start,
            blocks=range(len(runner.pool)), sample=True, history=tokens, prompt_len=len(PROMPT), sampling=GREEDY,
        )  # fmt: skip
        drawn = runner.run(StepPlan(number, [row])).rows[0].token_id
        assert drawn is not None
        kv_len = len(tokens)
        tokens.append(drawn)
        times.append(time.perf_counter() - begin)
    return tokens[len(PROMPT) :], times


def measure(tokens: int, repeats: int, threads: int = 2) -> dict[str, list[list[float]]]:
    """Times of each run, with the cache and without, in turn."""
    runner = runner_of(tokens, threads)
    ways = {"with": True, "without": False}
    runs: dict[str, list[list[float]]] = {name: [] for name in ways}
    outputs = set()
    for _ in range(repeats):
        for name, cached in ways.items():
            output, times = generate(runner, tokens, cached=cached)
            outputs.add(tuple(output))
            runs[name].append(times)
    assert len(outputs) == 1, "the cache changed a token"
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    runs = measure(options.tokens, options.repeats)
    figures = {name: report.Figure([times[-1] for times in each]) for name, each in runs.items()}
    for name, figure in figures.items():
        spread = f"{min(figure.values):.2f}-{max(figure.values):.2f}"
        print(f"{options.tokens} tokens {name} the cache: {figure.median:.2f} s ({spread})")
    ratio = report.ratios(figures["without"], figures["with"])
    print(f"without / with: {ratio.median:.1f}")
    courses = {name: course(each) for name, each in runs.items()}
    doubled = {name: growth(each) for name, each in courses.items()}
    print("time of twice as many tokens: " + ", ".join(f"{name} {by:.2f}×" for name, by in doubled.items()))
    body = {name: figure.as_json() for name, figure in figures.items()}
    report.write(
        "kv-cache-cpu",
        {"tokens": options.tokens, "model": MODEL.name, "seconds": body, "ratio": ratio.as_json()}
        | {"growth": doubled, "course": courses},
    )


def course(runs: list[list[float]]) -> list[tuple[int, float]]:
    """Tokens, and the seconds to the last of them: every eighth, the median of the runs."""
    counts = range(EVERY, len(runs[0]) + 1, EVERY)
    return [(count, round(statistics.median(times[count - 1] for times in runs), 4)) for count in counts]


def growth(points: list[tuple[int, float]]) -> float:
    """How much longer all tokens take than half of them: 2 where each costs the same, 4 where time is quadratic."""
    return points[-1][1] / points[len(points) // 2 - 1][1]


if __name__ == "__main__":
    main()
