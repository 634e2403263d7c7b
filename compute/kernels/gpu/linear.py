"""y = x·Wᵀ + b on an NVIDIA GPU: a few rows by `skinny`, more by the vendor's library."""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from compute.kernels.gpu.gate import gate
from compute.kernels.gpu.layer import DTYPES
from compute.kernels.gpu.skinny import K_MULTIPLE, MAX_ROWS, MAX_STRIPS, PARTIAL_SUMS, Scratch, Tile, skinny
from compute.kernels.gpu.splits import sm_count_of

PROGRAMS_PER_SM: Final = 2  # that fit at a time, by their shared memory
BLOCK_N, BLOCK_K, WARPS, STAGES = 64, 128, 4, 5
AHEAD: Final = 256


class GpuLinear:
    """Weights as they are: [out, in]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias
        self.tile = tile_for(weight.shape[0], weight.shape[1], sm_count_of(weight.device))
        self.scratch = Scratch.of(weight.device)
        self.most = MAX_ROWS if takes(weight) else 0

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) <= self.most:
            return skinny(x, self.weight, self.bias, self.tile, self.scratch)
        return functional.linear(x, self.weight, self.bias)

    def gated(self, x: Tensor, activation: str) -> Tensor:
        """Where the weight is [gate; up]: activation(gate) · up, [T, in] → [T, out / 2]."""
        if len(x) <= self.most:
            return skinny(x, self.weight, self.bias, self.tile, self.scratch, activation)
        return gate(functional.linear(x, self.weight, self.bias), activation)


def takes(weight: Tensor) -> bool:
    """Whether `skinny` does: its tiles are those of Hopper."""
    fits = weight.dtype in DTYPES and weight.is_contiguous() and weight.shape[1] % K_MULTIPLE == 0
    return fits and (not weight.is_cuda or torch.cuda.get_device_capability(weight.device) >= (9, 0))


def tile_for(outputs: int, inputs: int, sm_count: int) -> Tile:
    """Of benchmarks/kernel_skinny.py. As many programs as there is room for at once; by the weight alone."""
    strips = -(-outputs // BLOCK_N)
    room = min(PARTIAL_SUMS // (strips * BLOCK_N * MAX_ROWS), -(-inputs // BLOCK_K))
    cuts = max(min(PROGRAMS_PER_SM * sm_count // strips, room), 1) if strips <= MAX_STRIPS else 1
    return Tile(BLOCK_N, BLOCK_K, WARPS, STAGES, cuts, AHEAD)
