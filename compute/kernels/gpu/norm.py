"""RMSNorm, alone or behind the residual's addition.

    r ← r + x        y = r / sqrt(mean(r²) + eps) · w        Zhang and Sennrich, arXiv 1910.07467, equation 4

Sums in float32; the norm is of the residual as it is stored.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from compute.kernels.gpu.layer import require
from compute.kernels.gpu.overlap import overlaps, take_turns

MAX_SIZE: Final = 65_536  # one program holds a row


@triton.jit
def _add_norm(
    x,  # [T, E]
    residual,  # [T, E]
    weight,  # [E] float32
    out,  # [T, E]
    eps,
    x_stride,
    SIZE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    OVERLAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    there = columns < SIZE
    factor = tl.load(weight + columns, mask=there, other=0.0)  # no kernel writes it
    take_turns(OVERLAPS)
    value = tl.load(x + row * x_stride + columns, mask=there, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        value += tl.load(residual + row * SIZE + columns, mask=there, other=0.0).to(tl.float32)
        stored = value.to(residual.dtype.element_ty)
        tl.store(residual + row * SIZE + columns, stored, mask=there)
        value = stored.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / SIZE + eps)
    value = value * scale * factor
    tl.store(out + row * SIZE + columns, value.to(out.dtype.element_ty), mask=there)


def add_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """The norm of x [T, E], as a new tensor; with a residual [T, E], residual += x in place, and its norm.

    weight [E] float32. ValueError names what does not fit.
    """
    require(x.dim() == 2 and x.stride(1) == 1, "x must be [T, E], its rows dense")
    rows, size = x.shape
    require(0 < size <= MAX_SIZE, f"rows of {size} are longer than {MAX_SIZE}")
    require(weight.shape == (size,) and weight.dtype == torch.float32, f"weight must be [{size}] float32")
    if residual is not None:
        fits = residual.shape == x.shape and residual.dtype == x.dtype and residual.is_contiguous()
        require(fits, "residual must be like x, and dense")
    out = torch.empty((rows, size), dtype=x.dtype, device=x.device)
    if rows:
        block = triton.next_power_of_2(size)
        _add_norm[(rows,)](
            x,
            out if residual is None else residual,
            weight,
            out,
            eps,
            x.stride(0),
            SIZE=size,
            HAS_RESIDUAL=residual is not None,
            OVERLAPS=overlaps(),
            BLOCK=block,
            num_warps=max(1, min(16, block // 512)),
            launch_pdl=overlaps(),
        )
    return out
