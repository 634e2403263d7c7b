"""MHA, GQA and MQA: what fewer KV heads save in memory, and in the time of decode attention on this CPU.

    python -m benchmarks.heads [--repeats 15] [--threads 2]

32 query heads of 128 over 32, 8 and 1 KV heads, bf16. A token's KV is of 32 layers; how many requests of 2,048 tokens
fit is what the daemon's own sizing makes of --kv-memory 13.5GiB. Time: the worker's own decode kernel, one layer at a
time, 8 rows of 2,048 tokens each in blocks of 16 in random order, over as many layers as hold 1 GiB, so that no cache
of the processor keeps one (MQA: 128 layers); kinds in turn. GPU figures: `benchmarks.kernels`.
"""

import argparse
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks import report
from compute.batch import build
from compute.kernels import NativeKernels, TorchKernels, native_kernels
from compute.kernels.interface import AttentionSpec, HostKernels
from compute.model.hf_config import Rope
from compute.model.rope import RotaryTable
from compute.plan import StepPlan, StepRow
from compute.request import SamplingParams
from kvmanager.config import KvManagerSettings
from kvmanager.layout import Geometry, PoolLayout
from kvmanager.messages import SequenceId
from kvmanager.sizing import cpu_plan

KINDS = {"MHA": 32, "GQA": 8, "MQA": 1}
HEADS, DIM, LAYERS, BLOCK = 32, 128, 32, 16
ROWS, CONTEXT = 8, 2048
KV_MEMORY = "13.5GiB"
ROTATED_BYTES = 2**30
ENOUGH_MEMORY = 2**40  # the host's, which is not asked here


class Decode:
    """Decode attention of one kind: a step of ROWS rows, and the layers that it goes through."""

    def __init__(self, kv_heads: int) -> None:
        geometry = Geometry(1, kv_heads, DIM, BLOCK, "bfloat16")
        per_row = CONTEXT // BLOCK
        self.layer_bytes = ROWS * per_row * PoolLayout(geometry).block_bytes
        layers = -(-ROTATED_BYTES // self.layer_bytes)
        torch.manual_seed(7)
        self.pool = torch.empty(
            ROWS * per_row, layers, 2, kv_heads, BLOCK, DIM, dtype=torch.bfloat16
        ).normal_()
        self.qkv = torch.randn(ROWS, (HEADS + 2 * kv_heads) * DIM, dtype=torch.bfloat16)
        rope = RotaryTable(Rope(), DIM, self.pool.device)
        self.specs = [
            AttentionSpec(
                layer=layer, num_heads=HEADS, num_kv_heads=kv_heads, head_dim=DIM, scale=DIM**-0.5, softcap=None,
                window=None, rope=rope, q_norm=None, k_norm=None, norm_eps=1e-6,
            )
            for layer in range(layers)
        ]  # fmt: skip
        tables = torch.randperm(ROWS * per_row).view(ROWS, per_row).tolist()
        batch = build(StepPlan(0, [decode_row(table) for table in tables]), BLOCK, self.pool.device)
        self.kernels = kernels_here()
        self.step = self.kernels.prepare(batch, self.pool, self.specs)

    def attend(self, layer: int = 0) -> Tensor:
        """[ROWS, HEADS·DIM]"""
        return self.kernels.attend(self.specs[layer], self.qkv.clone(), self.step)

    def milliseconds(self) -> float:
        """Of one layer, the mean over all of them."""
        begin = time.perf_counter()
        for layer in range(len(self.specs)):
            self.attend(layer)
        return 1e3 * (time.perf_counter() - begin) / len(self.specs)


def kernels_here() -> HostKernels:
    """As a worker chooses them: in C where a compiler is."""
    library = native_kernels(torch.bfloat16)
    return TorchKernels() if library is None else NativeKernels(library)


def decode_row(blocks: list[int]) -> StepRow:
    """The last token of a context of CONTEXT."""
    return StepRow(
        sequence=SequenceId(bytes(16)), epoch=1, token_ids=[7], start=CONTEXT - 1, blocks=blocks, sample=True,
        history=(), prompt_len=CONTEXT, sampling=SamplingParams(),
    )  # fmt: skip


def memory(kv_heads: int) -> dict[str, int]:
    """Bytes of a token, blocks of the pool, and requests of CONTEXT tokens in it beside the block that is kept back."""
    layout = PoolLayout(Geometry(LAYERS, kv_heads, DIM, BLOCK, "bfloat16"))
    settings = KvManagerSettings.model_validate({"kv_memory": KV_MEMORY})
    blocks = cpu_plan(layout, settings, ENOUGH_MEMORY).num_blocks
    return {
        "token_bytes": layout.token_bytes,
        "blocks": blocks,
        "requests": (blocks - 1) // (CONTEXT // BLOCK),
    }


def measure(repeats: int) -> dict[str, dict[str, Any]]:
    runs = {name: Decode(kv_heads) for name, kv_heads in KINDS.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for run in runs.values():
            run.milliseconds()
        for _ in range(repeats):
            for name, run in runs.items():
                times[name].append(run.milliseconds())
    return {
        name: {
            **memory(KINDS[name]),
            "kernels": type(run.kernels).__name__,
            "layer_bytes": run.layer_bytes,
            "ms": (figure := report.Figure(times[name])).as_json(),
            "gb_per_s": run.layer_bytes / figure.median / 1e6,
        }
        for name, run in runs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = measure(options.repeats)
    print(
        "| | KV heads | KV of a token | requests of 2,048 | decode ms a layer | GB/s |\n|---|---|---|---|---|---|"
    )
    for name, row in rows.items():
        kib, ms = row["token_bytes"] / 1024, row["ms"]
        spread = f"{ms['median']:.2f} ({ms['min']:.2f}–{ms['max']:.2f})"
        print(
            f"| {name} | {KINDS[name]} | {kib:.0f} KiB | {row['requests']} | {spread} | {row['gb_per_s']:.1f} |"
        )
    settings = {"kv_memory": KV_MEMORY, "rows": ROWS, "context": CONTEXT, "threads": options.threads}
    report.write("heads-cpu", {"settings": settings, "kinds": rows})


if __name__ == "__main__":
    main()
