"""What happens to a token's q, k and v before attention, in one pass: norm, rotation, and the write into the pool.

    x' = x / sqrt(mean(x²) + eps) · w        per head, where the model has q and k norms (Qwen 3, Gemma 3)
    (a, b) → (a cos - b sin, b cos + a sin)  pairs (i, i + D/2) of q and k: RoPE, arXiv 2104.09864, section 3.2.2

    x → e4m3(x / s), s = max|x| / 448        a row of k or v, where the pool is e4m3; s goes to the slot's scales

q is changed in place, on request k too; k and v go to their slot. Arithmetic in float32, one rounding at the store.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from compute.kernels.gpu.layer import KVLayer, require
from compute.kernels.gpu.overlap import overlaps, take_turns
from compute.kernels.gpu.scores import E4M3_MAX

HEADS_PER_PROGRAM: Final = 8


@triton.jit
def _rope_kv_write(
    qkv,  # [T, H + 2K, D]
    pool,
    scales,  # of e4m3: this layer's [2, K, slots] float32 of block 0
    table,  # [2, positions, D] float32: cos, signed sin
    positions,  # [N] int64 or int32
    write_blocks,  # [N]: -1 for a token that is padding
    write_slots,  # [N]
    q_norm,  # [D] float32
    k_norm,  # [D] float32
    layer_offset,
    block_stride,
    scale_stride,
    row_stride,
    table_plane,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_NORM: tl.constexpr,
    IS_FP8: tl.constexpr,
    KEEP_KEYS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    take_turns(OVERLAPS)
    token = tl.program_id(0)
    block = tl.load(write_blocks + token).to(tl.int64)
    if block < 0:
        return
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    pair = tl.arange(0, BLOCK_HALF)
    there = (head < HEADS + 2 * KV_HEADS)[:, None] & (pair < D // 2)[None, :]
    x = qkv + token.to(tl.int64) * row_stride
    place = head[:, None] * D + pair[None, :]
    a = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
    b = tl.load(x + place + D // 2, mask=there, other=0.0).to(tl.float32)
    is_q = (head < HEADS)[:, None]
    is_v = (head >= HEADS + KV_HEADS)[:, None]
    in_half = pair < D // 2
    first, second = a, b
    if HAS_NORM:
        size = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D + eps)[:, None]
        q_first = tl.load(q_norm + pair, mask=in_half, other=0.0)[None, :]
        q_second = tl.load(q_norm + D // 2 + pair, mask=in_half, other=0.0)[None, :]
        k_first = tl.load(k_norm + pair, mask=in_half, other=0.0)[None, :]
        k_second = tl.load(k_norm + D // 2 + pair, mask=in_half, other=0.0)[None, :]
        first = a * size * tl.where(is_q, q_first, k_first)
        second = b * size * tl.where(is_q, q_second, k_second)
    angle = table + tl.load(positions + token).to(tl.int64) * D + pair
    cos = tl.load(angle, mask=in_half, other=0.0)[None, :]
    sin = tl.load(angle + table_plane + D // 2, mask=in_half, other=0.0)[None, :]
    turned_first = tl.where(is_v, a, first * cos - second * sin)
    turned_second = tl.where(is_v, b, second * cos + first * sin)
    stays = there & ((~is_v) if KEEP_KEYS else is_q)
    tl.store(x + place, turned_first.to(qkv.dtype.element_ty), mask=stays)
    tl.store(x + place + D // 2, turned_second.to(qkv.dtype.element_ty), mask=stays)
    # Behind the queries, heads [H, H + K) are keys and [H + K, H + 2K) values: the pool has them in the same order.
    write_slot = tl.load(write_slots + token).to(tl.int64)
    if IS_FP8:
        peak = tl.maximum(tl.max(tl.abs(turned_first), 1), tl.max(tl.abs(turned_second), 1))
        scale = tl.where(peak > 0, tl.maximum(peak, 1.0e-30) / E4M3_MAX, 1.0)
        turned_first /= scale[:, None]
        turned_second /= scale[:, None]
        is_kv = (head >= HEADS) & (head < HEADS + 2 * KV_HEADS)
        at = scales + block * scale_stride + write_slot
        tl.store(at + (head - HEADS) * BLOCK_SIZE, scale, mask=is_kv)
    turned_first = turned_first.to(pool.dtype.element_ty)
    turned_second = turned_second.to(pool.dtype.element_ty)
    slot = pool + layer_offset + block * block_stride + write_slot * D
    into = (head - HEADS)[:, None] * (BLOCK_SIZE * D) + pair[None, :]
    tl.store(slot + into, turned_first, mask=there & ~is_q)
    tl.store(slot + into + D // 2, turned_second, mask=there & ~is_q)


def rope_kv_write(
    qkv: Tensor,
    kv: KVLayer,
    table: Tensor,
    positions: Tensor,
    write_blocks: Tensor,
    write_slots: Tensor,
    norms: tuple[Tensor, Tensor, float] | None = None,
    keep_keys: bool = False,
) -> None:
    """Norms and rotates q of qkv [T, (H + 2K)·D] in place; writes its k and v to (write_blocks, write_slots) [N].

    `keep_keys`: k is also changed in place, for attention over the step's own tokens.

    `table` [2, positions, D] float32 holds cos and signed sin (`compute.model.rope`) for every value of `positions`
    [N]. A token with block -1 is padding and left alone, as are those from N on. `norms`: weights of q and k [D]
    float32, and eps. ValueError names what does not fit.
    """
    dim, kv_heads = kv.head_dim, kv.kv_heads
    all_heads = qkv.shape[1] // dim
    heads = all_heads - 2 * kv_heads
    tokens = positions.shape[0]
    require(qkv.dim() == 2 and qkv.stride(1) == 1, "qkv must be [T, (H + 2K)·D], its rows dense")
    require(
        heads > 0 and qkv.shape[1] == all_heads * dim, f"qkv of width {qkv.shape[1]} does not fit the pool"
    )
    require(kv.takes(qkv.dtype), f"qkv.dtype is {qkv.dtype}, the pool's is {kv.pool.dtype}")
    require(
        write_blocks.shape == write_slots.shape == positions.shape, "one block, slot and position a token"
    )
    require(qkv.shape[0] >= tokens, f"{tokens} positions for {qkv.shape[0]} tokens")
    require(table.dtype == torch.float32 and table.is_contiguous(), "the rotary table must be dense float32")
    require(
        table.dim() == 3 and table.shape[::2] == (2, dim), f"the rotary table must be [2, positions, {dim}]"
    )
    q_norm, k_norm, eps = norms or (table, table, 0.0)
    _rope_kv_write[(tokens, triton.cdiv(all_heads, HEADS_PER_PROGRAM))](
        qkv,
        kv.pool,
        kv.scales,
        table,
        positions,
        write_blocks,
        write_slots,
        q_norm,
        k_norm,
        kv.layer_offset,
        kv.block_stride,
        kv.scale_stride,
        qkv.stride(0),
        table.stride(0),
        eps,
        HEADS=heads,
        KV_HEADS=kv_heads,
        D=dim,
        BLOCK_SIZE=kv.block_size,
        HAS_NORM=norms is not None,
        IS_FP8=kv.is_fp8,
        KEEP_KEYS=keep_keys,
        BLOCK_H=HEADS_PER_PROGRAM,
        BLOCK_HALF=triton.next_power_of_2(dim // 2),
        OVERLAPS=overlaps(),
        num_warps=4,
        launch_pdl=overlaps(),
    )
