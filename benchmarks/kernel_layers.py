"""Whole decode layers of Llama 3.1 8B as one CUDA graph: what products, small kernels and their overlap cost together.

    python -m benchmarks.kernel_layers [ROWS …]

Microseconds of a layer, by who makes its products: cuBLAS, or ours with so many columns of a
weight read into L2 while the kernel before runs (None: no product overlaps it).
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Final

import torch
from torch import Tensor

from benchmarks.kernel_shapes import DEVICE
from benchmarks.kernel_skinny import COMPILERS, compile_all, compile_in_parallel
from benchmarks.kernel_timing import graph_of, times
from compute.kernels.cuda import CudaKernels, Decode, Step
from compute.kernels.gpu.decode import Scratch
from compute.kernels.gpu.layer import KVLayer
from compute.kernels.gpu.linear import GpuLinear, tile_for
from compute.kernels.gpu.skinny import Tile
from compute.kernels.gpu.splits import sm_count_of, split_count
from compute.kernels.interface import AttentionSpec
from compute.model.hf_config import Rope
from compute.model.linear import Linear, PlainLinear
from compute.model.rope import RotaryTable

LAYERS: Final = 8  # 3.5 GB: far more than L2
HIDDEN, INNER, HEADS, KV_HEADS, DIM, BLOCK = 4096, 14_336, 32, 8, 128, 16
TOKENS: Final = 1024
AHEAD: Final = (None, 0, 128, 256, 512, 1024)
SHAPES: Final = (
    ((HEADS + 2 * KV_HEADS) * DIM, HIDDEN),
    (HIDDEN, HEADS * DIM),
    (2 * INNER, HIDDEN),
    (HIDDEN, INNER),
)
KERNELS: Final = CudaKernels()


@dataclass(frozen=True, slots=True)
class Weights:
    qkv: Linear
    output: Linear
    gate_up: Linear
    down: Linear


def weights() -> list[list[Tensor]]:
    return [
        [torch.empty(shape, dtype=torch.bfloat16, device=DEVICE).normal_(std=0.01) for shape in SHAPES]
        for _ in range(LAYERS)
    ]


def ours(weight: Tensor, ahead: int | None) -> Linear:
    linear = GpuLinear(weight, None)
    linear.tile = replace(linear.tile, ahead=ahead)
    return linear


def library(weight: Tensor) -> Linear:
    return PlainLinear(weight, None)


def step_of(rows: int) -> Step:
    per_row = TOKENS // BLOCK
    pool = torch.zeros((rows * per_row, LAYERS, 2, KV_HEADS, BLOCK, DIM), dtype=torch.bfloat16, device=DEVICE)
    tables = torch.arange(rows * per_row, dtype=torch.int32, device=DEVICE).view(rows, per_row)
    lengths = torch.full((rows,), TOKENS, dtype=torch.int32, device=DEVICE)
    group = HEADS // KV_HEADS
    splits = split_count(rows, KV_HEADS, group, TOKENS, sm_count_of(DEVICE))
    scratch = Scratch.allocate(rows, splits, KVLayer(pool, 0), group) if splits > 1 else None
    slots = (lengths - 1) % BLOCK
    return Step(pool, lengths - 1, tables[:, -1].contiguous(), slots, Decode(tables, lengths, scratch), None)


def spec_of(layer: int, rope: RotaryTable) -> AttentionSpec:
    return AttentionSpec(
        layer=layer,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        scale=DIM**-0.5,
        softcap=None,
        window=None,
        rope=rope,
        q_norm=None,
        k_norm=None,
        norm_eps=1e-5,
    )


def engine(make: Callable[[Tensor], Linear], tensors: list[list[Tensor]], rows: int) -> Callable[[], object]:
    layers = [Weights(*map(make, each)) for each in tensors]
    rope = RotaryTable(Rope(kind="default", theta=500_000.0), DIM, DEVICE)
    rope.reach(TOKENS)
    specs = [spec_of(i, rope) for i in range(LAYERS)]
    step = step_of(rows)
    h, x = torch.randn((2, rows, HIDDEN), dtype=torch.bfloat16, device=DEVICE).unbind()
    norm = torch.ones(HIDDEN, device=DEVICE)

    def run() -> Tensor:
        y = h
        for layer, spec in zip(layers, specs, strict=True):
            y = layer.output(KERNELS.attend(spec, layer.qkv(y), step))
            y = KERNELS.add_norm(y, x, norm, 1e-5)
            y = layer.down(KERNELS.gated(layer.gate_up, y, "silu"))
            y = KERNELS.add_norm(y, x, norm, 1e-5)
        return y

    return graph_of([run])


def jobs() -> list[tuple[Tile, str | None]]:
    tiles = [
        (tile_for(*shape, sm_count_of(DEVICE)), "silu" if shape[0] == 2 * INNER else None) for shape in SHAPES
    ]
    return [(replace(tile, ahead=ahead), activation) for tile, activation in tiles for ahead in AHEAD]


def main() -> None:
    compile_in_parallel("benchmarks.kernel_layers")
    tensors = weights()
    for rows in [int(word) for word in sys.argv[1:]] or [1, 8, 16]:
        runs = {"cublas": engine(library, tensors, rows)}
        runs |= {f"ahead {ahead}": engine(partial(ours, ahead=ahead), tensors, rows) for ahead in AHEAD}
        for name, micros in times(runs, 9, LAYERS).items():
            print(f"{rows:3} rows  {name:12} {median(micros):7.2f} us a layer")


if __name__ == "__main__":
    if sys.argv[1:2] == ["compile"]:
        compile_all(jobs()[int(sys.argv[2]) :: COMPILERS])
    else:
        main()
