"""Variants of the Hopper prefill against cuDNN and the present one, in one run (temporary).

    python -m benchmarks.kernel_variants [OUT.json]

Every variant is compiled and checked against float64 in a process of its own, so that one that hangs or faults only
loses its row; then all that passed are timed in alternation, as CUDA graphs: what the host needs for a launch is not
the kernel's. Rows "(call)" are single launches, host and all.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernel_peers import dense_prefill
from benchmarks.kernel_shapes import Paged, Shape
from benchmarks.kernel_timing import graph_of, paired, times
from compute.kernels.gpu.hopper_prefill import Plan, hopper_prefill
from tests.kernels.paged import Case, build, error, expected, fresh_of

MB = 2**20
SHAPES = [Shape(rows=8, tokens=2048), Shape(rows=2, tokens=8192), Shape(rows=1, tokens=16384)]
PRESENT = (False, Plan())
VARIANTS: dict[str, tuple[bool, Plan]] = {
    "snake": (False, Plan(snake=True)),
    "two producers": (False, Plan(producers=2)),
    "inverse": (False, Plan(inverse=True)),
    "wide": (False, Plan(wide=True)),
    "snake, 22 MB": (False, Plan(snake=True, section_bytes=22 * MB)),
    "paged, all": (False, Plan(snake=True, producers=2, inverse=True, wide=True)),
    "fresh": (True, Plan()),
    "fresh snake inverse": (True, Plan(snake=True, inverse=True)),
    "fresh, all": (True, Plan(snake=True, producers=2, inverse=True, wide=True)),
    "fresh, all, 22 MB": (
        True,
        Plan(snake=True, producers=2, inverse=True, wide=True, section_bytes=22 * MB),
    ),
}
LLAMA: dict[str, Any] = {"heads": 32, "kv_heads": 8, "dim": 128, "dtype": torch.bfloat16}
CASES = (
    Case(lengths=(1500, 128, 37, 4000, 300), counts=(1200, 128, 37, 1, 300), **LLAMA),
    Case(lengths=(1900,), counts=(1900,), **LLAMA),
    Case(lengths=(700, 260, 1), counts=(700, 100, 1), window=200, **LLAMA),
)


def timed_fresh(paged: Paged) -> Tensor:
    """The prompt and its keys and values, as the step computes them: [T, H + 2K, D]."""
    keys, values = (x.transpose(1, 2).flatten(0, 1) for x in paged.dense(0))
    return torch.cat((paged.prompt, keys, values), 1)


def launch_of(paged: Paged, fresh: Tensor, out: Tensor, variant: tuple[bool, Plan]) -> Callable[[], object]:
    q = fresh[:, : paged.shape.heads]
    rest = (paged.tables, paged.starts, paged.lengths, paged.shape.tokens, paged.shape.scores, True)
    return partial(hopper_prefill, q, out, paged.layer(0), *rest, fresh if variant[0] else None, variant[1])


def worse(first: float, second: float) -> float:
    return second if second != second or second > first else first


def check(name: str) -> float:
    """Largest error against float64 over ragged rows, and against the present kernel over the timed shapes."""
    is_fresh, plan = VARIANTS[name]
    worst = 0.0
    for case in CASES:
        torch.manual_seed(5)
        paged = build(case, torch.device("cuda"))
        rows = (paged.tables, paged.starts, paged.lengths, max(case.counts), case.scores, True)
        fresh = fresh_of(paged) if is_fresh else None
        for _ in range(3):
            out = torch.full_like(paged.q, float("nan")).contiguous()
            hopper_prefill(paged.q, out, paged.kv, *rows, fresh, plan)
            worst = worse(worst, error(out, expected(paged)))
    for shape in SHAPES:
        timed = Paged(shape, 1)
        fresh = timed_fresh(timed)
        exact, out = torch.empty_like(timed.prompt), torch.full_like(timed.prompt, float("nan"))
        launch_of(timed, fresh, exact, PRESENT)()
        launch_of(timed, fresh, out, VARIANTS[name])()
        worst = worse(worst, error(out, exact.double()))
    return worst


def checked(name: str) -> tuple[float, str]:
    """Error and fault of a variant, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.kernel_variants", "check", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return float("nan"), "hangs"
    if done.returncode:
        return float("nan"), done.stderr.strip()[-400:]
    return float(done.stdout.splitlines()[-1]), ""


def usable() -> dict[str, float]:
    """Errors of the variants that are right; prints what is wrong with the others."""
    begin = time.monotonic()
    with ThreadPoolExecutor(len(VARIANTS)) as pool:
        found = dict(zip(VARIANTS, pool.map(checked, VARIANTS), strict=True))
    for name, (worst, fault) in found.items():
        if fault or not worst < 1e-2:
            print(f"dropped: {name}: error {worst} {fault}", flush=True)
    print(f"checked {len(found)} in {time.monotonic() - begin:.0f} s", flush=True)
    return {name: worst for name, (worst, fault) in found.items() if not fault and worst < 1e-2}


def report(shape: Shape, found: dict[str, list[float]], errors: dict[str, float]) -> list[dict[str, Any]]:
    rows = []
    print(shape)
    for name, values in found.items():
        to_cudnn, to_present = paired(values, found["cudnn"]), paired(values, found["present"])
        micros = median(values)
        print(
            f"  {name:>22} {micros:8.1f} us  {shape.causal_flops / micros / 1e6:4.0f} TFLOPS  to cuDNN {to_cudnn}"
            f"  to present {to_present}  error {errors.get(name, 0.0):.1e}",
            flush=True,
        )
        row = {"shape": str(shape), "name": name, "us": micros, "error": errors.get(name)}
        row["to_cudnn"] = [to_cudnn.median, to_cudnn.low, to_cudnn.high]
        row["to_present"] = [to_present.median, to_present.low, to_present.high]
        rows.append(row)
    return rows


def rows_of(shape: Shape, errors: dict[str, float]) -> list[dict[str, Any]]:
    paged = Paged(shape, 1)
    fresh, out = timed_fresh(paged), torch.empty_like(paged.prompt)
    calls = {"cudnn": dense_prefill(paged, "cudnn"), "present": launch_of(paged, fresh, out, PRESENT)}
    runs = {f"{name} (call)": call for name, call in calls.items()}
    calls |= {name: launch_of(paged, fresh, out, VARIANTS[name]) for name in errors}
    runs |= {name: graph_of([call]) for name, call in calls.items()}
    return report(shape, times(runs, 15), errors)


def main() -> None:
    arguments = sys.argv[1:]
    with torch.inference_mode():
        if arguments[:1] == ["check"]:
            print(check(arguments[1]))
            return
        errors = usable()
        rows = [row for shape in SHAPES for row in rows_of(shape, errors)]
    if arguments:
        Path(arguments[0]).write_text(json.dumps(rows, indent=1), "utf8")


if __name__ == "__main__":
    main()
