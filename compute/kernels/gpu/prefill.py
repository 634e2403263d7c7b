"""Causal attention of chunks of new tokens over a paged prefix and the chunk itself, rows of any lengths.

    query at position p:   o = Σ_{j ≤ p} softmax_j(score(q, k_j)) v_j,   j > p - window where there is one

FlashAttention-2's forward loop (Dao, arXiv 2307.08691, algorithm 1): running maximum, running sum, one division at the
end. A tile's M rows are query tokens times the G heads of one kv head, so a key is read once for all of them. The
chunk's own keys and values are read from the pool like the prefix: they are written before. The loop has up to three
phases: tiles cut by the window's left edge, whole tiles without any mask, tiles cut by the diagonal.

    keys   0 ..... | left edge | whole | whole | whole | diagonal | ..... length
                   begin       whole_begin             whole_end  end
"""

from dataclasses import dataclass
from typing import Final

import triton
import triton.language as tl
from torch import Tensor

from compute.kernels.gpu.layer import KVLayer, Scores, check_queries, check_tables, require
from compute.kernels.gpu.scores import E4M3_MAX, base2_scores, load_scales, scale_columns

FEW_LANES: Final = 1024  # fewer leave SMs idle in tiles of 256


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows (query tokens times G) and keys of a turn, warps of a program, turns loaded ahead."""

    block_m: int
    block_n: int
    warps: int
    stages: int


@triton.jit
def _attend(
    acc,  # [M, BLOCK_D] float32
    total,  # [M] float32
    top,  # [M] float32
    queries,  # [M, BLOCK_D]
    positions,  # [M] of each row's query
    keys,  # this layer's and kv head's keys of block 0
    values,
    key_scales,  # of e4m3: those of `keys` and `values`
    value_scales,
    table,  # [W] int32
    begin,
    end,
    length,
    block_stride,
    scale_stride,
    window,
    factor,
    cap,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    IS_FP8: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One phase: the tiles [begin, end) of keys."""
    dims = tl.arange(0, BLOCK_D)
    columns = tl.arange(0, BLOCK_N)
    places = begin + columns
    blocks = tl.load(table + places // BLOCK_SIZE, mask=places < length, other=0)
    for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        places = start + columns
        slot = blocks.to(tl.int64) * block_stride + (places % BLOCK_SIZE) * D
        if BLOCK_D == D:
            k = tl.load(keys + slot[:, None] + dims[None, :])
        else:
            k = tl.load(keys + slot[:, None] + dims[None, :], mask=(dims < D)[None, :], other=0.0)
        if MASKED:
            # Beyond the length even values are masked: 0 · NaN is NaN, and a free slot may hold anything.
            there = (places < length)[:, None] & (dims < D)[None, :]
            v = tl.load(values + slot[:, None] + dims[None, :], mask=there, other=0.0)
        elif BLOCK_D == D:
            v = tl.load(values + slot[:, None] + dims[None, :])
        else:
            v = tl.load(values + slot[:, None] + dims[None, :], mask=(dims < D)[None, :], other=0.0)
        at = blocks.to(tl.int64) * scale_stride + places % BLOCK_SIZE
        k_scale, v_scale = load_scales(key_scales, value_scales, at, places < length, IS_FP8)
        # The next turn's blocks: loaded a turn early, they are no wait in front of its keys.
        ahead = places + BLOCK_N
        blocks = tl.load(table + ahead // BLOCK_SIZE, mask=ahead < length, other=0)

        x = scale_columns(tl.dot(queries, tl.trans(k.to(queries.dtype))), k_scale, IS_FP8)
        if HAS_CAP or MASKED:
            x = base2_scores(x, factor, cap, HAS_CAP)
        if MASKED:
            seen = places[None, :] <= positions[:, None]
            if HAS_WINDOW:
                seen &= places[None, :] > positions[:, None] - window
            x = tl.where(seen, x, -float("inf"))
        if HAS_CAP or MASKED:
            new_top = tl.maximum(top, tl.max(x, 1))
            p = tl.exp2(x - new_top[:, None])
        else:  # one multiply-add an element; factor is above 0
            new_top = tl.maximum(top, tl.max(x, 1) * factor)
            p = tl.exp2(x * factor - new_top[:, None])
        old = tl.exp2(top - new_top)
        total = total * old + tl.sum(p, 1)
        p = scale_columns(p, v_scale, IS_FP8)
        acc = tl.dot(p.to(queries.dtype), v.to(queries.dtype), acc * old[:, None])
        top = new_top
    return acc, total, top


@triton.jit
def _prefill(
    q,  # [T, H, D]
    out,  # [T, H, D]
    pool,
    scales,  # of e4m3: this layer's [2, K, slots] float32 of block 0
    tables,  # [B, W] int32
    starts,  # [B + 1] int32: a row's tokens in q are [starts[b], starts[b + 1])
    lengths,  # [B] int32: tokens with KV, the chunk included
    layer_offset,
    block_stride,
    scale_stride,
    table_stride,
    q_stride,
    out_stride,
    window,
    factor,
    cap,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    IS_FP8: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the last tokens first: they have the most keys to see
    kv_head = tl.program_id(1)
    row = tl.program_id(2)
    start = tl.load(starts + row)
    count = tl.load(starts + row + 1) - start
    if tile * BLOCK_M >= count * GROUP:
        return
    length = tl.load(lengths + row)

    # Scalars join the pointer before any offset tensor: see decode.
    keys = pool + layer_offset + kv_head * (BLOCK_SIZE * D)
    values = keys + KV_HEADS * BLOCK_SIZE * D
    key_scales = scales + kv_head * BLOCK_SIZE
    value_scales = key_scales + KV_HEADS * BLOCK_SIZE
    table = tables + row.to(tl.int64) * table_stride
    lanes = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    tokens = lanes // GROUP
    heads = lanes % GROUP
    dims = tl.arange(0, BLOCK_D)
    mask = (tokens < count)[:, None] & (dims < D)[None, :]
    query = q + start.to(tl.int64) * q_stride + kv_head * (GROUP * D)
    places = tokens.to(tl.int64)[:, None] * q_stride + heads[:, None] * D + dims[None, :]
    queries = tl.load(query + places, mask=mask, other=0.0)

    positions = length - count + tokens  # [M]
    low = length - count + tile * BLOCK_M // GROUP  # the tile's first and last positions
    high = tl.minimum(length - count + (tile * BLOCK_M + BLOCK_M - 1) // GROUP, length - 1)
    begin = 0
    whole_begin = 0
    if HAS_WINDOW:
        begin = tl.maximum(low - window + 1, 0) // BLOCK_N * BLOCK_N
        whole_begin = tl.cdiv(tl.maximum(high - window + 1, 0), BLOCK_N) * BLOCK_N
    whole_end = (low + 1) // BLOCK_N * BLOCK_N
    end = high + 1
    top = tl.full([BLOCK_M], -1.0e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if HAS_WINDOW:
        whole_begin = tl.minimum(whole_begin, tl.cdiv(end, BLOCK_N) * BLOCK_N)
        whole_end = tl.maximum(whole_end, whole_begin)
        acc, total, top = _attend(
            acc, total, top, queries, positions, keys, values, key_scales, value_scales, table, begin, whole_begin,
            length, block_stride, scale_stride, window, factor, cap, D, BLOCK_SIZE, HAS_CAP, HAS_WINDOW, IS_FP8,
            True, BLOCK_N, BLOCK_D, 1,
        )  # fmt: skip
    acc, total, top = _attend(
        acc, total, top, queries, positions, keys, values, key_scales, value_scales, table, whole_begin, whole_end,
        length, block_stride, scale_stride, window, factor, cap, D, BLOCK_SIZE, HAS_CAP, HAS_WINDOW, IS_FP8,
        False, BLOCK_N, BLOCK_D, STAGES,
    )  # fmt: skip
    acc, total, top = _attend(
        acc, total, top, queries, positions, keys, values, key_scales, value_scales, table, whole_end, end,
        length, block_stride, scale_stride, window, factor, cap, D, BLOCK_SIZE, HAS_CAP, HAS_WINDOW, IS_FP8,
        True, BLOCK_N, BLOCK_D, 1,
    )  # fmt: skip

    acc = acc / (total * E4M3_MAX if IS_FP8 else total)[:, None]
    answer = out + start.to(tl.int64) * out_stride + kv_head * (GROUP * D)
    places = tokens.to(tl.int64)[:, None] * out_stride + heads[:, None] * D + dims[None, :]
    tl.store(answer + places, acc.to(out.dtype.element_ty), mask=mask)


def tile_for(head_dim: int, lanes: int, *, is_fp8: bool) -> Tile:
    """The fastest of benchmarks/kernel_sweep.py on an H200. `lanes`: query tokens times G of the longest chunk.

    Heads of 80 and 96 are padded to 128; with the masks of the padding 256 rows do not fit into registers. Neither do
    they beside e4m3 that is widened there.
    """
    if lanes < FEW_LANES:
        return Tile(64, 64, 4, 3) if head_dim <= 128 else Tile(64, 32, 4, 2)
    if is_fp8 and head_dim > 128:
        return Tile(128, 32, 8, 2)
    return Tile(256, 64, 8, 2) if head_dim in (64, 128) and not is_fp8 else Tile(128, 64, 8, 2)


def check_chunks(starts: Tensor, rows: int, max_count: int) -> None:
    require(
        starts.shape == (rows + 1,) and str(starts.dtype) == "torch.int32",
        f"starts must be [{rows + 1}] int32",
    )
    require(max_count > 0, "max_count must be above 0")


def prefill(
    q: Tensor,
    out: Tensor,
    kv: KVLayer,
    tables: Tensor,
    starts: Tensor,
    lengths: Tensor,
    max_count: int,
    scores: Scores,
    tile: Tile | None = None,
) -> None:
    """Attends each row's new tokens, q [T, H, D] into out [T, H, D]; their keys and values are already in the pool.

    tables [B, W], starts [B + 1], lengths [B] int32, read on the device; no row has more than `max_count` new tokens.
    ValueError names what does not fit.
    """
    group = check_queries(q, out, kv)
    rows = check_tables(tables, lengths)
    check_chunks(starts, rows, max_count)
    tile = tile or tile_for(kv.head_dim, max_count * group, is_fp8=kv.is_fp8)
    _prefill[(triton.cdiv(max_count * group, tile.block_m), kv.kv_heads, rows)](
        q,
        out,
        kv.pool,
        kv.scales,
        tables,
        starts,
        lengths,
        kv.layer_offset,
        kv.block_stride,
        kv.scale_stride,
        tables.stride(0),
        q.stride(0),
        out.stride(0),
        scores.window or 0,
        scores.factor,
        scores.cap,
        KV_HEADS=kv.kv_heads,
        D=kv.head_dim,
        BLOCK_SIZE=kv.block_size,
        GROUP=group,
        HAS_CAP=scores.softcap is not None,
        HAS_WINDOW=scores.window is not None,
        IS_FP8=kv.is_fp8,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_D=triton.next_power_of_2(kv.head_dim),
        STAGES=tile.stages,
        num_warps=tile.warps,
    )
