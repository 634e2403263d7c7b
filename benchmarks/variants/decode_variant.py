"""The decode kernel with what varies as arguments: see `compute.kernels.gpu.decode`."""

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from compute.kernels.gpu.decode import Scratch, _merge
from compute.kernels.gpu.layer import KVLayer, Scores, check_queries, check_tables
from compute.kernels.gpu.scores import base2_scores
from compute.kernels.gpu.splits import MIN_SPLIT_TOKENS, Tile


@dataclass(frozen=True, slots=True)
class Choice:
    """Tile, splits, rows of the product (0: as few as may be), and: launched before its forerunner has ended; merge
    by weights that are known first; splits cut evenly; keys and values not kept in L2."""

    tile: Tile
    splits: int
    block_m: int = 0
    early: bool = False
    flat: bool = False
    even: bool = False
    evict: bool = False
    merge_turn: int = 8192


@triton.jit
def _flat_merge(
    outputs,  # this row's and kv head's [splits, G, D]
    maxima,  # [splits, G]
    active,  # splits that had work
    D: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """As `_merge`, but every weight is known before the first answer is read: no turn waits for the one before."""
    heads = tl.arange(0, BLOCK_G)
    dims = tl.arange(0, BLOCK_D)
    every = tl.arange(0, SPLITS)
    there = (every < active)[:, None] & (heads < GROUP)[None, :]
    weights = tl.load(
        maxima + every[:, None] * GROUP + heads[None, :],
        mask=there,
        other=-float("inf"),
        cache_modifier=".cg",
    )
    top = tl.maximum(tl.max(weights, 0), -1.0e30)
    total = tl.sum(tl.exp2(weights - top[None, :]), 0)
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for first in tl.static_range(0, SPLITS, BLOCK_S):
        splits = first + tl.arange(0, BLOCK_S)
        row = splits[:, None] * GROUP + heads[None, :]  # [S, G]
        there = (splits < active)[:, None] & (heads < GROUP)[None, :]
        part = tl.load(
            outputs + row[:, :, None] * D + dims[None, None, :],
            mask=there[:, :, None] & (dims < D)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        weight = tl.load(maxima + row, mask=there, other=-float("inf"), cache_modifier=".cg")
        acc += tl.sum(part * tl.exp2(weight - top[None, :])[:, :, None], 0)
    return acc / tl.maximum(total, 1.0e-30)[:, None]


@triton.jit
def _decode_variant(
    q,  # [B, H, D]
    out,  # [B, H, D]
    pool,
    tables,  # [B, W] int32
    lengths,  # [B] int32
    outputs,  # [B, K, splits, G, D] float32
    maxima,  # [B, K, splits, G] float32
    arrivals,  # [B, K] int32
    layer_offset,
    block_stride,
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
    MAY_SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MERGE_G: tl.constexpr,
    MERGE_S: tl.constexpr,
    MIN_TILES: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
    FLAT: tl.constexpr,
    EVEN: tl.constexpr,
    POLICY: tl.constexpr,
    SPLITS: tl.constexpr,
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
    table = tables + row.to(tl.int64) * table_stride
    heads = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    columns = tl.arange(0, BLOCK_N)
    query = q + row.to(tl.int64) * q_stride + kv_head * (GROUP * D)
    query_mask = (heads < GROUP)[:, None] & (dims < D)[None, :]
    begin = (first + split * tiles) * BLOCK_N
    end = tl.minimum(begin + tiles * BLOCK_N, last * BLOCK_N)
    if EVEN:
        begin = (first + split * (last - first) // active) * BLOCK_N
        end = (first + (split + 1) * (last - first) // active) * BLOCK_N
    places = begin + columns
    blocks = tl.load(table + places // BLOCK_SIZE, mask=places < length, other=0)
    if EARLY:  # lengths and tables are older than the kernel before this one; all else may be its work
        gdc_wait()
        gdc_launch_dependents()
    queries = tl.load(query + heads[:, None] * D + dims[None, :], mask=query_mask, other=0.0)

    top = tl.full([BLOCK_M], -1.0e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        places = start + columns
        slot = blocks.to(tl.int64) * block_stride + (places % BLOCK_SIZE) * D
        k = tl.load(
            keys + slot[:, None] + dims[None, :], mask=(dims < D)[None, :], other=0.0, eviction_policy=POLICY
        )
        v = tl.load(
            # Beyond the length even values are masked: 0 · NaN is NaN, and a free slot may hold anything.
            values + slot[:, None] + dims[None, :],
            mask=(places < length)[:, None] & (dims < D)[None, :],
            other=0.0,
            eviction_policy=POLICY,
        )
        # The next turn's blocks: loaded a turn early, they are no wait in front of its keys.
        ahead = places + BLOCK_N
        blocks = tl.load(table + ahead // BLOCK_SIZE, mask=ahead < length, other=0)
        seen = places < length
        if HAS_WINDOW:
            seen &= places >= length - window
        x = base2_scores(tl.dot(queries, tl.trans(k)), factor, cap, HAS_CAP)
        x = tl.where(seen[None, :], x, -float("inf"))
        new_top = tl.maximum(top, tl.max(x, 1))
        p = tl.exp2(x - new_top[:, None])
        old = tl.exp2(top - new_top)
        total = total * old + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * old[:, None])
        top = new_top

    answer = out + row.to(tl.int64) * out_stride + kv_head * (GROUP * D)
    acc = acc / tl.maximum(total, 1.0e-30)[:, None]
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
                if FLAT:
                    merged = _flat_merge(
                        outputs + base * D, maxima + base, active, D, GROUP, MERGE_G, BLOCK_D, MERGE_S, SPLITS
                    )
                else:
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


def decode_variant(
    q: Tensor,
    out: Tensor,
    kv: KVLayer,
    tables: Tensor,
    lengths: Tensor,
    scores: Scores,
    scratch: Scratch | None,
    choice: Choice,
) -> Any:
    group = check_queries(q, out, kv)
    rows = check_tables(tables, lengths)
    tile, splits = choice.tile, choice.splits
    block_d = triton.next_power_of_2(kv.head_dim)
    merge_g = triton.next_power_of_2(group)
    merge_s = max(choice.merge_turn // (merge_g * block_d), 1)
    every = triton.next_power_of_2(splits)
    return _decode_variant[(splits, kv.kv_heads, rows)](
        q, out, kv.pool, tables, lengths,
        q if scratch is None else scratch.outputs,
        q if scratch is None else scratch.maxima,
        lengths if scratch is None else scratch.arrivals,
        kv.layer_offset, kv.block_stride, tables.stride(0), q.stride(0), out.stride(0),
        scores.window or 0, scores.factor, scores.cap,
        KV_HEADS=kv.kv_heads, D=kv.head_dim, BLOCK_SIZE=kv.block_size, GROUP=group,
        HAS_CAP=scores.softcap is not None, HAS_WINDOW=scores.window is not None, MAY_SPLIT=splits > 1,
        BLOCK_M=max(choice.block_m, 16, merge_g), BLOCK_N=tile.block_n, BLOCK_D=block_d, MERGE_G=merge_g,
        MERGE_S=min(merge_s, every), MIN_TILES=max(MIN_SPLIT_TOKENS // tile.block_n, 1), STAGES=tile.stages,
        EARLY=choice.early, FLAT=choice.flat, EVEN=choice.even, POLICY="evict_first" if choice.evict else "",
        SPLITS=every, num_warps=tile.warps, launch_pdl=choice.early,
    )  # fmt: skip
