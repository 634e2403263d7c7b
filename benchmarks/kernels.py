"""The attention kernels on this GPU beside cuDNN, torch's flash and FA3, in one run.

    python -m benchmarks.kernels [--quick]

Prints tables and writes benchmarks/results/kernels-h200.json (kernels-GPU.json elsewhere). Decode: CUDA-graph replay
over rotating KV sets larger than L2. Prefill: graph replay too, or the host's launches would be timed; TFLOP/s of half
the square. Ratios are paired: engines alternate replay by replay, above 1 means that ours takes less time; the interval
is 95 % of the median.
"""

import subprocess
import sys
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks import report
from benchmarks.kernel_peers import Launch, dense_decode, dense_prefill, fa3, fa3_decode, fa3_prefill
from benchmarks.kernel_shapes import Paged, Shape, reference, relative_error
from benchmarks.kernel_timing import graph_of, paired, times
from compute.kernels.gpu.decode import Scratch, decode
from compute.kernels.gpu.hopper_prefill import hopper_prefill, supports
from compute.kernels.gpu.layer import KVLayer
from compute.kernels.gpu.prefill import prefill
from compute.kernels.gpu.splits import sm_count_of, split_count

DECODE = [
    Shape(rows=b, tokens=s)
    for b, s in ((64, 4096), (8, 16384), (1, 65536), (256, 1024), (16, 1024), (1, 1024))
]
PREFILL = [Shape(rows=b, tokens=s) for b, s in ((8, 2048), (2, 8192), (1, 16384))]
PREFILL_CALLS = 2  # of a graph
HEADS = {
    name: Shape(rows=64, tokens=8192, kv_heads=kv) for name, kv in (("MHA", 32), ("GQA-8", 8), ("MQA", 1))
}


def decode_launches(paged: Paged) -> tuple[list[Launch], torch.Tensor]:
    shape, out = paged.shape, torch.empty_like(paged.queries)
    group = shape.heads // shape.kv_heads
    splits = split_count(shape.rows, shape.kv_heads, group, shape.tokens, sm_count_of(out.device))
    scratch = Scratch.allocate(shape.rows, splits, paged.layer(0), group) if splits > 1 else None

    def launch(layer: KVLayer) -> None:
        decode(paged.queries, out, layer, paged.tables, paged.lengths, shape.scores, scratch)

    return [partial(launch, paged.layer(i)) for i in range(paged.sets)], out


def decode_error(paged: Paged, out: torch.Tensor, launch: Launch) -> float:
    """Largest relative error over some rows, on the set of `launch`: the last."""
    out.fill_(float("nan"))
    launch()
    keys, values = paged.dense(paged.sets - 1)
    errors = []
    for row in range(0, paged.shape.rows, max(paged.shape.rows // 8, 1)):
        position = paged.lengths[row : row + 1] - 1
        exact = reference(
            paged.queries[row : row + 1], keys[row], values[row], position, paged.shape.scores.scale
        )
        errors.append(relative_error(out[row : row + 1], exact))
    return max(errors)


def decode_row(shape: Shape, repeats: int, peers: bool = True) -> dict[str, Any]:
    paged = Paged(shape, None if shape.kv_bytes < 2**32 else 2)
    ours, out = decode_launches(paged)
    worst = decode_error(paged, out, ours[-1])
    runs = {"holdfast": graph_of(ours)}
    if peers:
        runs["cudnn"] = graph_of(dense_decode(paged, "cudnn"))
        runs["flash"] = graph_of(dense_decode(paged, "flash"))
        ops = fa3()
        if ops is not None:
            runs["fa3"] = graph_of(fa3_decode(ops, paged, shape.block_size))
    found = times(runs, repeats, paged.sets)
    return {
        "shape": str(shape),
        "kv_heads": shape.kv_heads,
        "kv_bytes": shape.kv_bytes,
        "error": worst,
        "us": {name: median(values) for name, values in found.items()},
        "tb_per_s": {name: shape.kv_bytes / median(values) / 1e6 for name, values in found.items()},
        "ratio": {
            name: asdict(paired(found["holdfast"], found[name])) for name in runs if name != "holdfast"
        },
    }


def prefill_error(paged: Paged, out: torch.Tensor, launch: Launch) -> float:
    """Largest relative error over the first and the last queries of some rows."""
    out.fill_(float("nan"))
    launch()
    keys, values = paged.dense(0)
    errors, tokens = [], paged.shape.tokens
    for row in range(min(paged.shape.rows, 2)):
        for first in (0, tokens - 64):
            place = slice(row * tokens + first, row * tokens + first + 64)
            positions = torch.arange(first, first + 64, device=out.device)
            exact = reference(
                paged.prompt[place], keys[row], values[row], positions, paged.shape.scores.scale
            )
            errors.append(relative_error(out[place], exact))
    return max(errors) if not bool(out.isnan().any()) else float("nan")


def step_of(paged: Paged) -> torch.Tensor:
    """Queries, keys and values of all tokens as a step computes them: [T, H + 2K, D]."""
    keys, values = (x.transpose(1, 2).flatten(0, 1) for x in paged.dense(0))
    return torch.cat((paged.prompt, keys, values), 1)


def prefill_row(shape: Shape, repeats: int) -> dict[str, Any]:
    paged = Paged(shape, 1)
    out = torch.empty_like(paged.prompt)
    layer = paged.layer(0)
    rest = (paged.tables, paged.starts, paged.lengths, shape.tokens, shape.scores)
    runs: dict[str, Launch] = {"triton": partial(prefill, paged.prompt, out, layer, *rest)}
    if supports(layer, torch.cuda.get_device_capability()):
        fresh = step_of(paged)
        prompt = fresh[:, : shape.heads]
        runs["gluon"] = partial(hopper_prefill, prompt, out, layer, *rest)
        # Prompts without a cached prefix attend to the step's own keys and values; the pool is not read.
        runs["gluon, whole prompts"] = partial(hopper_prefill, prompt, out, layer, *rest, fresh=fresh)
    worst = {name: prefill_error(paged, out, run) for name, run in runs.items()}
    runs["cudnn"] = dense_prefill(paged, "cudnn")
    runs["flash"] = dense_prefill(paged, "flash")
    ops = fa3()
    if ops is not None:
        runs |= {f"fa3 block {size}": fa3_prefill(ops, paged, size) for size in (16, 128)}
    graphs = {name: graph_of([run] * PREFILL_CALLS) for name, run in runs.items()}
    found = times(graphs, repeats, PREFILL_CALLS)
    return {
        "shape": str(shape),
        "error": worst,
        "us": {name: median(values) for name, values in found.items()},
        "tflops": {name: shape.causal_flops / median(values) / 1e6 for name, values in found.items()},
        "ratio": {
            ours: {name: asdict(paired(found[ours], found[name])) for name in runs if name not in worst}
            for ours in worst
        },
    }


def print_row(row: dict[str, Any], unit: str) -> None:
    figures = "  ".join(f"{name} {row['us'][name]:.1f} us {row[unit][name]:.4g}" for name in row["us"])
    print(f"{row['shape']:>9} K{row.get('kv_heads', 8):<3} error {row['error']}  {figures}")
    for name, ratio in row["ratio"].items():
        print(f"{'':>12}{name}: {ratio}")


def gpu() -> dict[str, str]:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    name, driver = (
        subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")
    )
    return {"gpu": f"one {name}", "driver": driver, "cuda": str(torch.version.cuda)}


def main() -> None:
    repeats = 15 if "--quick" in sys.argv else 51
    body: dict[str, Any] = {"gpu": gpu(), "setting": "Hq32 Hkv8 d128 bf16 block 16, random block order"}
    with torch.inference_mode():
        print("decode: us a call, TB/s of KV")
        body["decode"] = [decode_row(shape, repeats) for shape in DECODE]
        for row in body["decode"]:
            print_row(row, "tb_per_s")
        print("decode, 32 query heads over 32, 8 and 1 kv heads, 64×8192")
        body["heads"] = {name: decode_row(shape, repeats, peers=False) for name, shape in HEADS.items()}
        for row in body["heads"].values():
            print_row(row, "tb_per_s")
        print("prefill, causal: us a call, TFLOP/s")
        body["prefill"] = [prefill_row(shape, repeats // 2) for shape in PREFILL]
        for row in body["prefill"]:
            print_row(row, "tflops")
    print(report.write(f"kernels-{report.chip(body['gpu']['gpu'])}", body))


if __name__ == "__main__":
    main()
