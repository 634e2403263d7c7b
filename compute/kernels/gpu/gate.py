"""The gated half of an MLP: activation(left) · right, elementwise over [T, 2F].

silu(x) = x σ(x)        gelu(x) = x Φ(x), or with tanh        Shazeer, arXiv 2002.05202, section 2
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from compute.kernels.gpu.layer import require
from compute.kernels.gpu.overlap import overlaps, take_turns

KINDS: Final = {"silu": 0, "gelu_tanh": 1, "gelu": 2}
BLOCK: Final = 1024


@triton.jit
def activated(x, KIND: tl.constexpr):
    """float32, elementwise."""
    if KIND == 0:
        x = x / (1 + tl.exp(-x))
    elif KIND == 1:
        # 0.5 · (1 + tanh(u)) is the logistic function of 2u.
        u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        x = x / (1 + tl.exp(-2 * u))
    else:
        x = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    return x


@triton.jit
def _gate(
    x,  # [T, 2F]
    out,  # [T, F]
    size,
    x_stride,
    KIND: tl.constexpr,
    OVERLAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    take_turns(OVERLAPS)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = columns < size
    left = tl.load(x + row * x_stride + columns, mask=there, other=0.0).to(tl.float32)
    right = tl.load(x + row * x_stride + size + columns, mask=there, other=0.0).to(tl.float32)
    left = activated(left, KIND)
    tl.store(out + row * size + columns, (left * right).to(out.dtype.element_ty), mask=there)


def gate(x: Tensor, activation: str) -> Tensor:
    """[T, 2F] → [T, F]; `activation` is silu, gelu_tanh or gelu. ValueError names what does not fit."""
    require(activation in KINDS, f"activation {activation} is not one of {tuple(KINDS)}")
    require(x.dim() == 2 and x.stride(1) == 1 and x.shape[1] % 2 == 0, "x must be [T, 2F], its rows dense")
    rows, size = x.shape[0], x.shape[1] // 2
    out = torch.empty((rows, size), dtype=x.dtype, device=x.device)
    if rows:
        grid = (rows, triton.cdiv(size, BLOCK))
        _gate[grid](
            x,
            out,
            size,
            x.stride(0),
            KIND=KINDS[activation],
            OVERLAPS=overlaps(),
            BLOCK=BLOCK,
            num_warps=4,
            launch_pdl=overlaps(),
        )
    return out
