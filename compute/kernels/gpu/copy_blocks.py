"""Copies the first slots of blocks to other blocks, all layers, all orders in one launch (copy-on-write, adoption).

A block is L · 2 · K runs of block_size · D elements; an order copies the first slots · D of each. The scales of e4m3
are as many runs of block_size · 1, and a second launch. PagedAttention's block copy: Kwon et al., arXiv 2309.06180,
section 4.4.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from compute.kernels.gpu.layer import FP8, check_pool, require, scales_of

RUNS_PER_PROGRAM: Final = 8


@triton.jit
def _copy_blocks(
    pool,
    orders,  # [N, 3] int32: source, destination, slots
    block_stride,
    runs,  # L · 2 · K
    RUN: tl.constexpr,  # block_size · D
    D: tl.constexpr,
    BLOCK_RUNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    order = orders + tl.program_id(1) * 3
    source = pool + tl.load(order).to(tl.int64) * block_stride
    destination = pool + tl.load(order + 1).to(tl.int64) * block_stride
    size = tl.load(order + 2) * D
    run = tl.program_id(0) * BLOCK_RUNS + tl.arange(0, BLOCK_RUNS)
    for first in range(0, size, BLOCK):
        within = first + tl.arange(0, BLOCK)
        place = run[:, None] * RUN + within[None, :]
        there = (run < runs)[:, None] & (within < size)[None, :]
        tl.store(destination + place, tl.load(source + place, mask=there), mask=there)


def copy_blocks(pool: Tensor, orders: Tensor) -> None:
    """orders [N, 3] int32 on the pool's device: source block, destination block, slots.

    Orders run side by side: no destination may be another order's source or destination. ValueError names what does
    not fit; the ids are the caller's to vouch for.
    """
    check_pool(pool)
    require(orders.dim() == 2 and orders.shape[1] == 3, f"orders must be [N, 3], not {tuple(orders.shape)}")
    require(orders.dtype == torch.int32 and orders.is_contiguous(), "orders must be dense int32")
    if not orders.shape[0]:
        return
    if pool.dtype == FP8:
        _copy(scales_of(pool).unsqueeze(-1), orders)
        pool = pool.view(torch.uint8)
    _copy(pool, orders)


def _copy(pool: Tensor, orders: Tensor) -> None:
    runs = int(pool.shape[1] * pool.shape[2] * pool.shape[3])
    run = int(pool.shape[4] * pool.shape[5])
    _copy_blocks[(triton.cdiv(runs, RUNS_PER_PROGRAM), orders.shape[0])](
        pool,
        orders,
        pool.stride(0),
        runs,
        RUN=run,
        D=int(pool.shape[5]),
        BLOCK_RUNS=RUNS_PER_PROGRAM,
        BLOCK=min(512, triton.next_power_of_2(run)),
        num_warps=4,
    )
