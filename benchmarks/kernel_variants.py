"""Variants of the attention kernels against cuDNN and the present kernels, in one run (temporary).

    python -m benchmarks.kernel_variants [prefill|decode] [OUT.json]

Every variant is compiled and checked against float64 in a process of its own, so that one that hangs or faults only
loses its row; then all that passed are timed in alternation.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.kernel_peers import dense_decode, dense_prefill
from benchmarks.kernel_shapes import Paged, Shape
from benchmarks.kernel_timing import graph_of, paired, times
from benchmarks.kernels import decode_launches
from benchmarks.variants.decode_variant import Choice, decode_variant
from benchmarks.variants.stream_prefill import Plan, stream_prefill
from compute.kernels.gpu.decode import Scratch
from compute.kernels.gpu.hopper_prefill import hopper_prefill
from compute.kernels.gpu.layer import KVLayer
from compute.kernels.gpu.splits import Tile
from tests.kernels.paged import Case, build, error, expected

MB = 2**20
PREFILL = [Shape(rows=8, tokens=2048), Shape(rows=2, tokens=8192), Shape(rows=1, tokens=16384)]
WIDE = Shape(rows=2, tokens=8192, block_size=128)
PLANS = {
    "stream": Plan(),
    "static": Plan(dynamic=False),
    "boxes32": Plan(whole=False),
    "1 producer": Plan(producers=1),
    "1 producer, boxes32": Plan(producers=1, whole=False),
    "4-byte stores": Plan(staged=False),
    "232/40": Plan(registers=(232, 40)),
    "24 MB": Plan(section_bytes=24 * MB),
    "12 MB": Plan(section_bytes=12 * MB),
    "24 MB 232/40": Plan(section_bytes=24 * MB, registers=(232, 40)),
    "no ping-pong": Plan(ping_pong=False),
    "N 64, 4 stages": Plan(block_n=64, stages=4),
    "probe: no loads": Plan(load=False),
}
EVERY = dict(flat=True, even=True, early=True)
DECODE: list[tuple[Shape, dict[str, Choice]]] = [
    (
        Shape(rows=1, tokens=65536),
        {
            "copy": Choice(Tile(64, 2, 3), 33),
            "flat": Choice(Tile(64, 2, 3), 33, flat=True),
            "even": Choice(Tile(64, 2, 3), 33, even=True),
            "early": Choice(Tile(64, 2, 3), 33, early=True),
            "evict": Choice(Tile(64, 2, 3), 33, evict=True),
            "all": Choice(Tile(64, 2, 3), 33, **EVERY),
            "all 64/4/3 33": Choice(Tile(64, 4, 3), 33, **EVERY),
            "all 64/4/4 33": Choice(Tile(64, 4, 4), 33, **EVERY),
            "all 64/4/4 16": Choice(Tile(64, 4, 4), 16, **EVERY),
            "all 64/4/6 16": Choice(Tile(64, 4, 6), 16, **EVERY),
            "all 128/8/3 16": Choice(Tile(128, 8, 3), 16, **EVERY),
            "all 64/4/3 49": Choice(Tile(64, 4, 3), 49, **EVERY),
        },
    ),
    (
        Shape(rows=16, tokens=1024),
        {
            "copy": Choice(Tile(128, 8, 3), 1),
            "early": Choice(Tile(128, 8, 3), 1, early=True),
            "early 64/4/4": Choice(Tile(64, 4, 4), 1, early=True),
            "early 64/4/6": Choice(Tile(64, 4, 6), 1, early=True),
            "early 64/8/6": Choice(Tile(64, 8, 6), 1, early=True),
            "2 splits 64/4/3": Choice(Tile(64, 4, 3), 2, **EVERY),
            "2 splits 64/2/3": Choice(Tile(64, 2, 3), 2, **EVERY),
        },
    ),
    (
        Shape(rows=1, tokens=1024),
        {
            "early 16": Choice(Tile(64, 2, 3), 16, **EVERY),
            "early 8": Choice(Tile(64, 4, 3), 8, **EVERY),
        },
    ),
    (
        Shape(rows=8, tokens=16384),
        {
            "all 64/2/3 4": Choice(Tile(64, 2, 3), 4, **EVERY),
            "all 64/4/3 4": Choice(Tile(64, 4, 3), 4, **EVERY),
            "all 64/2/3 6": Choice(Tile(64, 2, 3), 6, **EVERY),
        },
    ),
    (
        Shape(rows=64, tokens=4096),
        {
            "early": Choice(Tile(64, 4, 2), 1, early=True),
            "early evict": Choice(Tile(64, 4, 2), 1, early=True, evict=True),
        },
    ),
    (
        Shape(rows=256, tokens=1024),
        {
            "early": Choice(Tile(64, 4, 3), 1, early=True),
            "early evict": Choice(Tile(64, 4, 3), 1, early=True, evict=True),
        },
    ),
    (
        Shape(rows=64, tokens=8192, kv_heads=1),
        {
            "copy": Choice(Tile(128, 4, 3), 2),
            "all": Choice(Tile(128, 4, 3), 2, **EVERY),
            "64/4/3 4": Choice(Tile(64, 4, 3), 4, **EVERY),
            "64/4/4 4": Choice(Tile(64, 4, 4), 4, **EVERY),
            "64/8/3 4": Choice(Tile(64, 8, 3), 4, **EVERY),
            "64/4/3 6": Choice(Tile(64, 4, 3), 6, **EVERY),
            "128/4/2 4": Choice(Tile(128, 4, 2), 4, **EVERY),
            "32/4/4 6": Choice(Tile(32, 4, 4), 6, **EVERY),
            "M64 64/4/3 4": Choice(Tile(64, 4, 3), 4, block_m=64, **EVERY),
            "M64 64/4/4 2": Choice(Tile(64, 4, 4), 2, block_m=64, **EVERY),
            "M64 128/4/2 2": Choice(Tile(128, 4, 2), 2, block_m=64, **EVERY),
            "M64 128/4/3 2": Choice(Tile(128, 4, 3), 2, block_m=64, **EVERY),
        },
    ),
]
CHUNKS = (
    Case(lengths=(1500, 128, 37, 4000), counts=(1200, 128, 37, 1), heads=32, kv_heads=8, dim=128, dtype=torch.bfloat16),
    Case(lengths=(1900,), counts=(1900,), heads=32, kv_heads=8, dim=128, dtype=torch.bfloat16),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Job:
    kind: str
    shape: int
    name: str


def prefill_launch(paged: Paged, out: torch.Tensor, plan: Plan | None) -> Callable[[], object]:
    rest = (paged.tables, paged.starts, paged.lengths, paged.shape.tokens, paged.shape.scores)
    if plan is None:
        return partial(hopper_prefill, paged.prompt, out, paged.layer(0), *rest)
    return partial(stream_prefill, paged.prompt, out, paged.layer(0), *rest, plan)


def variant_launches(paged: Paged, choice: Choice) -> list[Callable[[], object]]:
    shape = paged.shape
    out = torch.empty_like(paged.queries)
    scratch = None
    if choice.splits > 1:
        scratch = Scratch.allocate(shape.rows, choice.splits, paged.layer(0), shape.heads // shape.kv_heads)

    def launch(layer: KVLayer) -> None:
        decode_variant(paged.queries, out, layer, paged.tables, paged.lengths, shape.scores, scratch, choice)

    return [partial(launch, paged.layer(i)) for i in range(paged.sets)]


def check_prefill(plan: Plan) -> float:
    """Largest error; and, by launching them once, all that the timed shapes need compiled."""
    worst = 0.0
    if plan.load:
        for case in CHUNKS:
            torch.manual_seed(5)
            paged = build(case, torch.device("cuda"))
            rows = (paged.tables, paged.starts, paged.lengths)
            for _ in range(3):
                out = torch.full_like(paged.q, float("nan"))
                stream_prefill(paged.q, out, paged.kv, *rows, max(case.counts), case.scores, plan)
                found = error(out, expected(paged))
                worst = found if found != found else max(worst, found)
    for shape in (*PREFILL, WIDE):
        timed = Paged(shape, 1)
        prefill_launch(timed, torch.empty_like(timed.prompt), plan)()
        torch.cuda.synchronize()
    return worst


def check_decode(shape: Shape, choice: Choice) -> float:
    case = Case(
        lengths=(1000, 65, 1, 4097, 8192), counts=(1,) * 5, heads=32, kv_heads=shape.kv_heads, dim=128,
        dtype=torch.bfloat16,
    )  # fmt: skip
    torch.manual_seed(5)
    paged = build(case, torch.device("cuda"))
    scratch = None
    if choice.splits > 1:
        scratch = Scratch.allocate(5, choice.splits, paged.kv, 32 // shape.kv_heads)
    worst = 0.0
    for _ in range(5):
        out = torch.full_like(paged.q, float("nan"))
        decode_variant(paged.q, out, paged.kv, paged.tables, paged.lengths, case.scores, scratch, choice)
        found = error(out, expected(paged))
        worst = found if found != found else max(worst, found)
    small = Paged(shape if shape.kv_bytes < 2**28 else Shape(rows=2, tokens=8192, kv_heads=shape.kv_heads), 4)
    variant_launches(small, choice)[-1]()
    torch.cuda.synchronize()
    return worst


def check(job: Job) -> tuple[float, str]:
    """Error and fault of a variant, from a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.kernel_variants",
        "check",
        job.kind,
        str(job.shape),
        job.name,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    except subprocess.TimeoutExpired:
        return float("nan"), "hangs"
    if done.returncode:
        return float("nan"), done.stderr.strip().splitlines()[-1][:160]
    return float(done.stdout.splitlines()[-1]), ""


def usable(jobs: list[Job]) -> dict[Job, float]:
    """Errors of the variants that are right; prints what is wrong with the others."""
    begin = time.monotonic()
    with ThreadPoolExecutor(14) as pool:
        found = dict(zip(jobs, pool.map(check, jobs), strict=True))
    for job, (worst, fault) in found.items():
        if fault or not worst < 1e-2:
            print(f"dropped: {job.kind} {job.name}: error {worst} {fault}", flush=True)
    print(f"checked {len(jobs)} in {time.monotonic() - begin:.0f} s", flush=True)
    return {job: worst for job, (worst, fault) in found.items() if not fault and worst < 1e-2}


def report(shape: Shape, found: dict[str, list[float]], errors: dict[str, float]) -> list[dict[str, Any]]:
    rows = []
    print(f"{shape} K{shape.kv_heads} block {shape.block_size}")
    for name, values in found.items():
        micros = median(values)
        row: dict[str, Any] = {"shape": str(shape), "kv_heads": shape.kv_heads, "block": shape.block_size}
        row |= {"name": name, "us": micros, "error": errors.get(name)}
        row["tflops"] = shape.causal_flops / micros / 1e6
        row["tb_per_s"] = shape.kv_bytes / micros / 1e6
        text = ""
        if "cudnn" in found and name != "cudnn":
            ratio = paired(values, found["cudnn"])
            row["to_cudnn"] = [ratio.median, ratio.low, ratio.high]
            text = f"to cuDNN {ratio}"
        before = paired(values, found["present"])
        row["to_present"] = [before.median, before.low, before.high]
        error_text = f"{errors[name]:.1e}" if name in errors else ""
        print(f"  {name:>22} {micros:9.1f} us  {text}  to present {before}  {error_text}", flush=True)
        rows.append(row)
    return rows


def prefill_rows() -> list[dict[str, Any]]:
    right = usable([Job("prefill", 0, name) for name in PLANS])
    errors = {job.name: worst for job, worst in right.items()}
    rows = []
    for shape in (*PREFILL, WIDE):
        paged = Paged(shape, 1)
        out = torch.empty_like(paged.prompt)
        runs = {"cudnn": dense_prefill(paged, "cudnn"), "present": prefill_launch(paged, out, None)}
        runs |= {name: prefill_launch(paged, out, PLANS[name]) for name in errors}
        rows += report(shape, times(runs, 15 if shape.tokens < 16384 else 9), errors)
    return rows


def decode_rows() -> list[dict[str, Any]]:
    jobs = [Job("decode", i, name) for i, (_, choices) in enumerate(DECODE) for name in choices]
    right = usable(jobs)
    rows = []
    for i, (shape, choices) in enumerate(DECODE):
        paged = Paged(shape)
        errors = {job.name: worst for job, worst in right.items() if job.shape == i}
        runs = {"present": graph_of(decode_launches(paged)[0])}
        if shape.kv_heads > 1:
            runs["cudnn"] = graph_of(dense_decode(paged, "cudnn"))
        runs |= {name: graph_of(variant_launches(paged, choices[name])) for name in errors}
        rows += report(shape, times(runs, 21, paged.sets), errors)
        del paged, runs
        torch.cuda.empty_cache()
    return rows


def main() -> None:
    arguments = sys.argv[1:]
    with torch.inference_mode():
        if arguments[0] == "check":
            shape, choices = DECODE[int(arguments[2])]
            name = arguments[3]
            print(
                check_prefill(PLANS[name])
                if arguments[1] == "prefill"
                else check_decode(shape, choices[name])
            )
            return
        rows = []
        if arguments[0] in ("prefill", "all"):
            rows += prefill_rows()
        if arguments[0] in ("decode", "all"):
            rows += decode_rows()
    if len(arguments) > 1:
        Path(arguments[1]).write_text(json.dumps(rows, indent=1), "utf8")


if __name__ == "__main__":
    main()
