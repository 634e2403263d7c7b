"""Attention of one new token a row over its paged KV, split over the sequence and merged in the same launch.

    a split, x = score · log2 e:   m = max_j x_j      l = Σ_j 2^(x_j - m)      o = Σ_j 2^(x_j - m) v_j / l
    merge, L_s = m_s + log2 l_s:   M = max_s L_s      o = Σ_s 2^(L_s - M) o_s / Σ_s 2^(L_s - M)

Flash-Decoding (Dao, Haziza, Massa, Sizov: PyTorch blog, October 2023) over PagedAttention's blocks (Kwon et al., arXiv
2309.06180, section 4). The G query heads of a kv head are the rows of one matrix product (GQA, arXiv 2305.13245), so
every key and value is read once. How many splits have work is decided on the device from the row's length; the one
that finishes last merges, in the order of the splits, so an answer does not depend on who came last. A row with a
single split writes its answer directly; a row of length 0 is padding and gets zeros.

A pool of e4m3 is widened to the queries' dtype; its rows' scales multiply the scores and the probabilities, in float32.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from compute.kernels.gpu.layer import KVLayer, Scores, check_queries, check_tables, require
from compute.kernels.gpu.scores import E4M3_MAX, base2_scores, load_scales, scale_columns
from compute.kernels.gpu.splits import MIN_SPLIT_TOKENS, Tile, sm_count_of, tile_for


@dataclass(frozen=True, slots=True)
class Scratch:
    """What splits leave for the merge. One launch at a time; `arrivals` is zero between launches."""

    outputs: Tensor  # [B, K, splits, G, D] float32
    maxima: Tensor  # [B, K, splits, G] float32: log2 of the split's sum of exponentials
    arrivals: Tensor  # [B, K] int32

    @classmethod
    def allocate(cls, rows: int, splits: int, kv: KVLayer, group: int) -> "Scratch":
        shape = (rows, kv.kv_heads, splits, group)
        device = kv.pool.device
        return cls(
            torch.empty((*shape, kv.head_dim), dtype=torch.float32, device=device),
            torch.empty(shape, dtype=torch.float32, device=device),
            torch.zeros(shape[:2], dtype=torch.int32, device=device),
        )


@triton.jit
def _merge(
    outputs,  # this row's and kv head's [splits, G, D]
    maxima,  # [splits, G]
    active,  # splits that had work
    D: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """[BLOCK_G, BLOCK_D] float32: the splits' answers weighted by their sums."""
    heads = tl.arange(0, BLOCK_G)
    dims = tl.arange(0, BLOCK_D)
    top = tl.full([BLOCK_G], -1.0e30, tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for first in range(0, active, BLOCK_S):
        splits = first + tl.arange(0, BLOCK_S)
        row = splits[:, None] * GROUP + heads[None, :]  # [S, G]
        there = (splits < active)[:, None] & (heads < GROUP)[None, :]
        weight = tl.load(maxima + row, mask=there, other=-float("inf"), cache_modifier=".cg")
        new_top = tl.maximum(top, tl.max(weight, 0))
        weight = tl.exp2(weight - new_top[None, :])
        old = tl.exp2(top - new_top)
        part = tl.load(
            outputs + row[:, :, None] * D + dims[None, None, :],
            mask=there[:, :, None] & (dims < D)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        total = total * old + tl.sum(weight, 0)
        acc = acc * old[:, None] + tl.sum(part * weight[:, :, None], 0)
        top = new_top
    return acc / tl.maximum(total, 1.0e-30)[:, None]


@triton.jit
def _decode(
    q,  # [B, H, D]
    out,  # [B, H, D]
    pool,
    scales,  # of e4m3: this layer's [2, K, slots] float32 of block 0
    tables,  # [B, W] int32
    lengths,  # [B] int32
    outputs,  # [B, K, splits, G, D] float32
    maxima,  # [B, K, splits, G] float32
    arrivals,  # [B, K] int32
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
    MAY_SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MERGE_G: tl.constexpr,
    MERGE_S: tl.constexpr,
    MIN_TILES: tl.constexpr,
    STAGES: tl.constexpr,
):
    split = tl.program_id(0)
    kv_head = tl.program_id(1)
    row = tl.program_id(2)
    length = tl.load(lengths + row)
    first = tl.maximum(length - window, 0) // BLOCK_N if HAS_WINDOW else 0
    last = tl.cdiv(length, BLOCK_N)
    tiles = tl.maximum(tl.cdiv(last - first, tl.num_programs(0)), MIN_TILES)
    active = tl.maximum(tl.cdiv(last - first, tiles), 1)
    if split >= active:
        return

    # Scalars join the pointer before any offset tensor: folded into broadcast offsets, triton 3.5-3.6 has been seen
    # to miscompile such a reduction (InternLM/lmdeploy#4920).
    keys = pool + layer_offset + kv_head * (BLOCK_SIZE * D)
    values = keys + KV_HEADS * BLOCK_SIZE * D
    key_scales = scales + kv_head * BLOCK_SIZE
    value_scales = key_scales + KV_HEADS * BLOCK_SIZE
    table = tables + row.to(tl.int64) * table_stride
    heads = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    columns = tl.arange(0, BLOCK_N)
    query = q + row.to(tl.int64) * q_stride + kv_head * (GROUP * D)
    query_mask = (heads < GROUP)[:, None] & (dims < D)[None, :]
    queries = tl.load(query + heads[:, None] * D + dims[None, :], mask=query_mask, other=0.0)

    top = tl.full([BLOCK_M], -1.0e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    begin = (first + split * tiles) * BLOCK_N
    end = tl.minimum(begin + tiles * BLOCK_N, last * BLOCK_N)
    places = begin + columns
    blocks = tl.load(table + places // BLOCK_SIZE, mask=places < length, other=0)
    for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        places = start + columns
        slot = blocks.to(tl.int64) * block_stride + (places % BLOCK_SIZE) * D
        k = tl.load(keys + slot[:, None] + dims[None, :], mask=(dims < D)[None, :], other=0.0)
        v = tl.load(
            # Beyond the length even values are masked: 0 · NaN is NaN, and a free slot may hold anything.
            values + slot[:, None] + dims[None, :],
            mask=(places < length)[:, None] & (dims < D)[None, :],
            other=0.0,
        )
        at = blocks.to(tl.int64) * scale_stride + places % BLOCK_SIZE
        k_scale, v_scale = load_scales(key_scales, value_scales, at, places < length, IS_FP8)
        # The next turn's blocks: loaded a turn early, they are no wait in front of its keys.
        ahead = places + BLOCK_N
        blocks = tl.load(table + ahead // BLOCK_SIZE, mask=ahead < length, other=0)
        seen = places < length
        if HAS_WINDOW:
            seen &= places >= length - window
        x = scale_columns(tl.dot(queries, tl.trans(k.to(queries.dtype))), k_scale, IS_FP8)
        x = base2_scores(x, factor, cap, HAS_CAP)
        x = tl.where(seen[None, :], x, -float("inf"))
        new_top = tl.maximum(top, tl.max(x, 1))
        p = tl.exp2(x - new_top[:, None])
        old = tl.exp2(top - new_top)
        total = total * old + tl.sum(p, 1)
        p = scale_columns(p, v_scale, IS_FP8)
        acc = tl.dot(p.to(queries.dtype), v.to(queries.dtype), acc * old[:, None])
        top = new_top

    answer = out + row.to(tl.int64) * out_stride + kv_head * (GROUP * D)
    acc = acc / tl.maximum(total * E4M3_MAX if IS_FP8 else total, 1.0e-30)[:, None]
    if MAY_SPLIT:
        if active > 1:
            pair = row * KV_HEADS + kv_head
            base = (pair.to(tl.int64) * tl.num_programs(0)) * GROUP
            here = base + split * GROUP
            part = outputs + here * D
            tl.store(part + heads[:, None] * D + dims[None, :], acc, mask=query_mask)
            tl.store(maxima + here + heads, top + tl.log2(total), mask=heads < GROUP)
            tl.debug_barrier()  # all threads' stores, before one thread announces them
            arrived = tl.atomic_add(arrivals + pair, 1, sem="acq_rel", scope="gpu")
            tl.debug_barrier()
            if arrived == active - 1:
                tl.store(arrivals + pair, 0)
                merged = _merge(
                    outputs + base * D, maxima + base, active, D, GROUP, MERGE_G, BLOCK_D, MERGE_S
                )
                g = tl.arange(0, MERGE_G)
                tl.store(
                    answer + g[:, None] * D + dims[None, :],
                    merged.to(out.dtype.element_ty),
                    mask=(g < GROUP)[:, None] & (dims < D)[None, :],
                )
        else:
            tl.store(
                answer + heads[:, None] * D + dims[None, :], acc.to(out.dtype.element_ty), mask=query_mask
            )
    else:
        tl.store(answer + heads[:, None] * D + dims[None, :], acc.to(out.dtype.element_ty), mask=query_mask)


def decode(
    q: Tensor,
    out: Tensor,
    kv: KVLayer,
    tables: Tensor,
    lengths: Tensor,
    scores: Scores,
    scratch: Scratch | None,
    tile: Tile | None = None,
) -> None:
    """Attends q [B, H, D] into out [B, H, D]; the row's own token is at lengths - 1 and already in the pool.

    tables [B, W] and lengths [B] int32; lengths are read on the device. `scratch` says how many splits there may be
    (None: one). ValueError names what does not fit.
    """
    group = check_queries(q, out, kv)
    rows = check_tables(tables, lengths)
    require(q.shape[0] == rows, f"{q.shape[0]} queries for {rows} rows")
    splits = 1
    if scratch is not None:
        splits = scratch.outputs.shape[2]
        wanted = (kv.kv_heads, splits, group, kv.head_dim)
        require(
            scratch.outputs.shape[0] >= rows and scratch.outputs.shape[1:] == wanted, "scratch does not fit"
        )
    pairs, sm_count = rows * kv.kv_heads, sm_count_of(q.device)
    tile = tile or tile_for(kv.head_dim, group, pairs, splits, sm_count, is_fp8=kv.is_fp8)
    block_d = triton.next_power_of_2(kv.head_dim)
    merge_g = triton.next_power_of_2(group)
    _decode[(splits, kv.kv_heads, rows)](
        q,
        out,
        kv.pool,
        kv.scales,
        tables,
        lengths,
        q if scratch is None else scratch.outputs,
        q if scratch is None else scratch.maxima,
        lengths if scratch is None else scratch.arrivals,
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
        MAY_SPLIT=splits > 1,
        BLOCK_M=max(16, merge_g),
        BLOCK_N=tile.block_n,
        BLOCK_D=block_d,
        MERGE_G=merge_g,
        MERGE_S=max(8192 // (merge_g * block_d), 1),
        MIN_TILES=max(MIN_SPLIT_TOKENS // tile.block_n, 1),
        STAGES=tile.stages,
        num_warps=tile.warps,
    )
