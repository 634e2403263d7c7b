"""The prefill attention of `prefill` for Hopper, in Gluon: tiles come by TMA, products run on wgmma, roles on warps.

    producer, 1 warp        pages of K and V → shared memory, two tiles ahead       full ─┐
    consumer 0, 4 warps     rows [0, 64) of a tile                                        ├─ barriers, one pair a buffer
    consumer 1, 4 warps     rows [64, 128)                                         empty ─┘

FlashAttention-3 (Shah et al., arXiv 2407.08608, section 3): while a tile's scores become probabilities, the tensor
cores compute the next scores and the last product with V. The pool is one 2-D tensor [rows, D] to the copy engine; a
box is [slots of a block, 64], so that pieces stand in shared memory as one swizzled [keys, D] operand whatever blocks
they came from. Programs stay on their SM and take tiles in turn, the longest first. Keys run from the diagonal down:

    turn   n-1 ...... | left ..... | ..... 1 | 0            0 .. right: cut by the diagonal, always masked
           cut by window   whole     masked                 turn 0 also clears values beyond the length: 0 · NaN is NaN
"""

from typing import Final

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from compute.kernels.gpu.decode import sm_count_of
from compute.kernels.gpu.layer import KVLayer, Scores, check_queries, check_tables
from compute.kernels.gpu.prefill import check_chunks

HEAD_DIMS: Final = (64, 128)
BLOCK_M: Final = 128
BLOCK_N: Final = 128
STAGES: Final = 2
PING_PONG: Final = True  # one consumer's softmax under the other's products, by turns
MAX_ROWS: Final = 2**31 - 1  # of the pool as [rows, D]: the copy engine's coordinates are 32 bits wide
PANEL: Final = gl.constexpr(64)  # elements of a row in one 128-byte swizzle


@gluon.jit
def _look_up(work, pairs, starts, lengths, KV_HEADS: gl.constexpr):
    """First token, new tokens and length of a piece of work's row."""
    row = work % pairs // KV_HEADS
    start = gl.load(starts + row)
    return start, gl.load(starts + row + 1) - start, gl.load(lengths + row)


@gluon.jit
def _span(
    work, tiles, pairs, start, count, length, window,
    KV_HEADS: gl.constexpr, GROUP: gl.constexpr, HAS_WINDOW: gl.constexpr, M: gl.constexpr, N: gl.constexpr,
):  # fmt: skip
    """Rows and keys of a piece of work; turns, right and left as in the module's drawing, no turns without rows."""
    tile = tiles - 1 - work // pairs
    row = work % pairs // KV_HEADS
    low = length - count + tile * M // GROUP  # first and last position of the tile
    high = gl.minimum(length - count + (tile * M + M - 1) // GROUP, length - 1)
    last = high // N
    right = gl.maximum(last + 1 - (low + 1) // N, 1)
    first = 0
    left = last + 1
    if HAS_WINDOW:
        first = gl.maximum(low - window + 1, 0) // N
        # Key tile k is whole on this side from k · N > high - window on.
        left = last + 1 - gl.maximum(high - window + N, 0) // N
    turns = last + 1 - first
    turns = gl.where(tile * M < count * GROUP, turns, 0)
    right = gl.minimum(right, turns)
    left = gl.minimum(gl.maximum(left, right), turns)
    return row, work % pairs % KV_HEADS, tile * M, last, right, left, turns


@gluon.jit
def _scores(x, factor, cap, HAS_CAP: gl.constexpr):
    x = x * factor
    if HAS_CAP:
        x = cap * (1 - 2 / (1 + gl.exp2(x * 2.8853900817779268)))  # tanh by exp2, as in `scores`
    return x


@gluon.jit
def _softmax(
    x, top, total, first_key, positions, window, factor, cap,
    HAS_CAP: gl.constexpr, HAS_WINDOW: gl.constexpr, MASKED: gl.constexpr, N: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """Probabilities before division, the new maximum and sum, and what old sums are to be multiplied by."""
    if HAS_CAP or MASKED:
        x = _scores(x, factor, cap, HAS_CAP)
    if MASKED:
        keys = first_key + gl.arange(0, N, gl.SliceLayout(0, LAYOUT))
        seen = keys[None, :] <= positions[:, None]
        if HAS_WINDOW:
            seen = seen & (keys[None, :] > positions[:, None] - window)
        x = gl.where(seen, x, -float("inf"))
    if HAS_CAP or MASKED:
        new_top = gl.maximum(top, gl.max(x, 1))
        p = gl.exp2(x - new_top[:, None])
    else:  # one multiply-add an element; factor is above 0
        new_top = gl.maximum(top, gl.max(x, 1) * factor)
        p = gl.exp2(x * factor - new_top[:, None])
    old = gl.exp2(top - new_top)
    return p, new_top, total * old + gl.sum(p, 1), old


@gluon.jit
def _await_keys(turn, there, k_full, STAGES: gl.constexpr):
    mbarrier.wait(k_full.index(turn % STAGES), (turn // STAGES) & 1, pred=there)


@gluon.jit
def _turns(
    half: gl.constexpr, begin, end, turns, base, handed, last, o, p, top, total, queries, keys, values, k_full, k_empty,
    v_full, v_empty, order, positions, window, factor, cap,
    HAS_CAP: gl.constexpr, HAS_WINDOW: gl.constexpr, MASKED: gl.constexpr, N: gl.constexpr, D: gl.constexpr,
    STAGES: gl.constexpr, S_LAYOUT: gl.constexpr, O_LAYOUT: gl.constexpr, PING_PONG: gl.constexpr,
):  # fmt: skip
    """Turns [begin, end): scores of this turn beside the product of the last turn's probabilities with its values."""
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    ROWS: gl.constexpr = queries.shape[0]
    for turn in range(begin, end):
        here = base + turn
        stage = here % STAGES
        before = here - 1
        before_stage = before % STAGES
        if PING_PONG:
            mbarrier.wait(order.index(half), (handed + turn + half) & 1)
        zero = gl.zeros([ROWS, N], gl.float32, S_LAYOUT)
        s = warpgroup_mma(queries, keys.index(stage).permute((1, 0)), zero, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(before_stage), (before // STAGES) & 1)
        o = warpgroup_mma(p, values.index(before_stage), o, is_async=True)
        if PING_PONG:
            mbarrier.arrive(order.index(1 - half), count=1)
        s = warpgroup_mma_wait(1, deps=(s,))
        mbarrier.arrive(k_empty.index(stage), count=1)
        first_key = (last - turn) * N
        soft, top, total, old = _softmax(
            s, top, total, first_key, positions, window, factor, cap, HAS_CAP, HAS_WINDOW, MASKED, N, S_LAYOUT
        )
        new_p = gl.convert_layout(soft.to(values.dtype), P_LAYOUT)
        old = gl.convert_layout(old, gl.SliceLayout(1, O_LAYOUT))
        # Between the softmax and the wait for its companion product stands a wait for the next turn's keys: a branch,
        # behind which the assembler does not sink the softmax. That the wait names new_p keeps the compiler to it too.
        _await_keys(here + 1, turn + 1 < turns, k_full, STAGES)
        o, p, new_p, old, total = warpgroup_mma_wait(0, deps=(o, p, new_p, old, total))
        mbarrier.arrive(v_empty.index(before_stage), count=1)
        o = o * old[:, None]
        p = new_p
    return o, p, top, total


@gluon.jit
def _load_queries(
    q, work, tiles, pairs, start, count, q_stride, half: gl.constexpr,
    KV_HEADS: gl.constexpr, GROUP: gl.constexpr, ROWS: gl.constexpr, D: gl.constexpr,
):  # fmt: skip
    """[ROWS, D]: half a tile's query lanes; zeros beyond the row's tokens."""
    LOAD: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    kv_head = work % pairs % KV_HEADS
    lanes = ((tiles - 1 - work // pairs) * 2 + half) * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, LOAD))
    tokens = lanes // GROUP
    dims = gl.arange(0, D, gl.SliceLayout(0, LOAD))
    place = tokens.to(gl.int64) * q_stride + lanes % GROUP * D
    query = q + start.to(gl.int64) * q_stride + kv_head * (GROUP * D)
    return gl.load(query + place[:, None] + dims[None, :], mask=(tokens < count)[:, None], other=0.0)


@gluon.jit
def _consumer(
    half: gl.constexpr, q, out, queries, keys, values, k_full, k_empty, v_full, v_empty, order, starts, lengths,
    works, tiles, pairs, q_stride, out_stride, window, factor, cap,
    KV_HEADS: gl.constexpr, GROUP: gl.constexpr, HAS_CAP: gl.constexpr, HAS_WINDOW: gl.constexpr,
    M: gl.constexpr, N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr, PING_PONG: gl.constexpr,
):  # fmt: skip
    """Half of every tile's rows: 64 query lanes, from their load to their answer."""
    ROWS: gl.constexpr = M // 2
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    LOAD: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    mine = queries.index(half)
    base = 0
    handed = 0  # times that both consumers have had their turn at the tensor cores
    next_start, next_count, next_length = _look_up(gl.program_id(0), pairs, starts, lengths, KV_HEADS)
    loaded = _load_queries(
        q, gl.program_id(0), tiles, pairs, next_start, next_count, q_stride, half, KV_HEADS, GROUP, ROWS, D
    )
    for work in range(gl.program_id(0), works, gl.num_programs(0)):
        start, count, length = next_start, next_count, next_length
        _row, kv_head, lane, last, right, left, turns = _span(
            work, tiles, pairs, start, count, length, window, KV_HEADS, GROUP, HAS_WINDOW, M, N
        )
        # What comes next is looked up, and its queries loaded, under this piece's products. Only what is loaded is
        # carried to the next turn: triton 3.6 loses members of a tuple derived from it.
        following = gl.minimum(work + gl.num_programs(0), works - 1)
        next_start, next_count, next_length = _look_up(following, pairs, starts, lengths, KV_HEADS)
        if turns > 0:
            mine.store(loaded)
            fence_async_shared()

            lanes = lane + half * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, S_LAYOUT))
            positions = length - count + lanes // GROUP
            stage = base % STAGES
            phase = (base // STAGES) & 1
            mbarrier.wait(k_full.index(stage), phase)
            zero = gl.zeros([ROWS, N], gl.float32, S_LAYOUT)
            s = warpgroup_mma(mine, keys.index(stage).permute((1, 0)), zero, use_acc=False, is_async=True)
            s = warpgroup_mma_wait(0, deps=(s,))
            mbarrier.arrive(k_empty.index(stage), count=1)
            top = gl.full([ROWS], -1.0e30, gl.float32, gl.SliceLayout(1, S_LAYOUT))
            total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, S_LAYOUT))
            soft, top, total, _old = _softmax(
                s,
                top,
                total,
                last * N,
                positions,
                window,
                factor,
                cap,
                HAS_CAP,
                HAS_WINDOW,
                True,
                N,
                S_LAYOUT,
            )
            p = gl.convert_layout(soft.to(values.dtype), P_LAYOUT)
            mbarrier.wait(v_full.index(stage), phase)
            if (last + 1) * N > length:
                tail = values.index(stage)
                there = last * N + gl.arange(0, N, gl.SliceLayout(1, LOAD)) < length
                held = tail.load(LOAD)
                tail.store(gl.where(there[:, None], held, 0.0).to(values.dtype))
                fence_async_shared()

            o = gl.zeros([ROWS, D], gl.float32, O_LAYOUT)
            _await_keys(base + 1, turns > 1, k_full, STAGES)
            o, p, top, total = _turns(
                half, 1, right, turns, base, handed, last, o, p, top, total, mine, keys, values, k_full, k_empty,
                v_full, v_empty, order, positions, window, factor, cap, HAS_CAP, HAS_WINDOW, True, N, D, STAGES,
                S_LAYOUT, O_LAYOUT, PING_PONG,
            )  # fmt: skip
            o, p, top, total = _turns(
                half, right, left, turns, base, handed, last, o, p, top, total, mine, keys, values, k_full, k_empty,
                v_full, v_empty, order, positions, window, factor, cap, HAS_CAP, HAS_WINDOW, False, N, D, STAGES,
                S_LAYOUT, O_LAYOUT, PING_PONG,
            )  # fmt: skip
            if HAS_WINDOW:
                o, p, top, total = _turns(
                    half, left, turns, turns, base, handed, last, o, p, top, total, mine, keys, values, k_full, k_empty,
                    v_full, v_empty, order, positions, window, factor, cap, HAS_CAP, HAS_WINDOW, True, N, D, STAGES,
                    S_LAYOUT, O_LAYOUT, PING_PONG,
                )  # fmt: skip
            final = base + turns - 1
            mbarrier.wait(v_full.index(final % STAGES), (final // STAGES) & 1)
            o = warpgroup_mma(p, values.index(final % STAGES), o, is_async=True)
            loaded = _load_queries(
                q, following, tiles, pairs, next_start, next_count, q_stride, half, KV_HEADS, GROUP, ROWS, D
            )
            o = warpgroup_mma_wait(0, deps=(o,))
            mbarrier.arrive(v_empty.index(final % STAGES), count=1)

            o = o / gl.convert_layout(total, gl.SliceLayout(1, O_LAYOUT))[:, None]
            lanes = lane + half * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, O_LAYOUT))
            tokens = lanes // GROUP
            dims = gl.arange(0, D, gl.SliceLayout(0, O_LAYOUT))
            place = tokens.to(gl.int64) * out_stride + lanes % GROUP * D
            answer = out + start.to(gl.int64) * out_stride + kv_head * (GROUP * D)
            gl.store(
                answer + place[:, None] + dims[None, :], o.to(values.dtype), mask=(tokens < count)[:, None]
            )
        else:
            loaded = _load_queries(
                q, following, tiles, pairs, next_start, next_count, q_stride, half, KV_HEADS, GROUP, ROWS, D
            )
        base += turns
        handed += gl.maximum(turns - 1, 0)


@gluon.jit
def _fetch(
    pool, pieces, full, stage, blocks, row, BLOCK_SIZE: gl.constexpr, N: gl.constexpr, D: gl.constexpr
):  # fmt: skip
    """One tile of keys or values: a box for each block and panel, all on one barrier."""
    BLOCKS: gl.constexpr = N // BLOCK_SIZE
    PANELS: gl.constexpr = D // PANEL
    mbarrier.expect(full.index(stage), N * D * 2)
    for panel in gl.static_range(PANELS):
        for block in gl.static_range(BLOCKS):
            piece = pieces.index((stage * PANELS + panel) * BLOCKS + block)
            tma.async_copy_global_to_shared(
                pool, [blocks[block] + row, panel * PANEL], full.index(stage), piece
            )


@gluon.jit
def _producer(
    pool, k_pieces, v_pieces, k_full, k_empty, v_full, v_empty, tables, starts, lengths,
    works, tiles, pairs, table_stride, block_rows, layer_row, window,
    KV_HEADS: gl.constexpr, GROUP: gl.constexpr, HAS_WINDOW: gl.constexpr, BLOCK_SIZE: gl.constexpr,
    M: gl.constexpr, N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Brings the keys and values of every turn, as soon as both consumers are done with their buffer."""
    BLOCKS: gl.constexpr = N // BLOCK_SIZE
    base = 0
    for work in range(gl.program_id(0), works, gl.num_programs(0)):
        start, count, length = _look_up(work, pairs, starts, lengths, KV_HEADS)
        row, kv_head, _lane, last, _right, _left, turns = _span(
            work, tiles, pairs, start, count, length, window, KV_HEADS, GROUP, HAS_WINDOW, M, N
        )
        table = tables + row.to(gl.int64) * table_stride
        used = (length - 1) // BLOCK_SIZE
        k_row = layer_row + kv_head * BLOCK_SIZE
        v_row = k_row + KV_HEADS * BLOCK_SIZE
        for turn in range(turns):
            stage = (base + turn) % STAGES
            phase = ((base + turn) // STAGES) & 1
            first = (last - turn) * BLOCKS
            blocks = ()
            for block in gl.static_range(
                BLOCKS
            ):  # beyond the row's last block its last one, which consumers mask
                blocks = blocks + (gl.load(table + gl.minimum(first + block, used)) * block_rows,)  # type: ignore[assignment]  # noqa: RUF005
            mbarrier.wait(k_empty.index(stage), phase ^ 1)
            _fetch(pool, k_pieces, k_full, stage, blocks, k_row, BLOCK_SIZE, N, D)
            mbarrier.wait(v_empty.index(stage), phase ^ 1)
            _fetch(pool, v_pieces, v_full, stage, blocks, v_row, BLOCK_SIZE, N, D)
        base += turns


@gluon.jit
def _hopper_prefill(
    q,  # [T, H, D]
    out,  # [T, H, D]
    pool,  # descriptor of the pool as [rows, D], boxes of [BLOCK_SIZE, 64]
    tables,  # [B, W] int32
    starts,  # [B + 1] int32
    lengths,  # [B] int32
    works,  # tiles · pairs
    tiles,  # of the longest chunk
    pairs,  # B · K
    block_rows,  # rows of the pool in a block
    layer_row,  # of the layer's keys in a block
    table_stride,
    q_stride,
    out_stride,
    window,
    factor,
    cap,
    KV_HEADS: gl.constexpr,
    D: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    GROUP: gl.constexpr,
    HAS_CAP: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    M: gl.constexpr,
    N: gl.constexpr,
    STAGES: gl.constexpr,
    PING_PONG: gl.constexpr,
):
    kind: gl.constexpr = pool.dtype
    operand: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    PIECES: gl.constexpr = STAGES * (N // BLOCK_SIZE) * (D // PANEL)
    queries = gl.allocate_shared_memory(kind, [2, M // 2, D], operand)
    k_pieces = gl.allocate_shared_memory(kind, [PIECES, BLOCK_SIZE, PANEL], operand)
    v_pieces = gl.allocate_shared_memory(kind, [PIECES, BLOCK_SIZE, PANEL], operand)
    keys = k_pieces._reinterpret(kind, [STAGES, N, D], operand)
    values = v_pieces._reinterpret(kind, [STAGES, N, D], operand)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    order = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for half in gl.static_range(2):
        mbarrier.init(order.index(half), count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(k_empty.index(stage), count=2)  # both consumers
        mbarrier.init(v_empty.index(stage), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_consumer, (
                0, q, out, queries, keys, values, k_full, k_empty, v_full, v_empty, order, starts, lengths, works,
                tiles, pairs, q_stride, out_stride, window, factor, cap, KV_HEADS, GROUP, HAS_CAP, HAS_WINDOW, M, N, D,
                STAGES, PING_PONG,
            )),
            (_consumer, (
                1, q, out, queries, keys, values, k_full, k_empty, v_full, v_empty, order, starts, lengths, works,
                tiles, pairs, q_stride, out_stride, window, factor, cap, KV_HEADS, GROUP, HAS_CAP, HAS_WINDOW, M, N, D,
                STAGES, PING_PONG,
            )),
            (_producer, (
                pool, k_pieces, v_pieces, k_full, k_empty, v_full, v_empty, tables, starts, lengths, works, tiles,
                pairs, table_stride, block_rows, layer_row, window, KV_HEADS, GROUP, HAS_WINDOW, BLOCK_SIZE, M, N, D,
                STAGES,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


def supports(kv: KVLayer, capability: tuple[int, int]) -> bool:
    """Whether `hopper_prefill` takes this pool on such a GPU; `prefill` takes all of them on any."""
    rows = kv.pool.numel() // kv.head_dim
    return capability[0] == 9 and kv.head_dim in HEAD_DIMS and rows <= MAX_ROWS


def hopper_prefill(
    q: Tensor,
    out: Tensor,
    kv: KVLayer,
    tables: Tensor,
    starts: Tensor,
    lengths: Tensor,
    max_count: int,
    scores: Scores,
    ping_pong: bool = PING_PONG,
) -> None:
    """As `prefill.prefill`, where `supports` says so."""
    group = check_queries(q, out, kv)
    rows = check_tables(tables, lengths)
    check_chunks(starts, rows, max_count)
    dim, size = kv.head_dim, kv.block_size
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    flat = kv.pool.view(-1, dim)
    tiles = triton.cdiv(max_count * group, BLOCK_M)
    works = tiles * kv.kv_heads * rows
    _hopper_prefill[(min(works, sm_count_of(q.device)),)](
        q,
        out,
        TensorDescriptor.from_tensor(flat, [size, 64], layout),
        tables,
        starts,
        lengths,
        works,
        tiles,
        kv.kv_heads * rows,
        kv.block_stride // dim,
        kv.layer_offset // dim,
        tables.stride(0),
        q.stride(0),
        out.stride(0),
        scores.window or 0,
        scores.factor,
        scores.cap,
        KV_HEADS=kv.kv_heads,
        D=dim,
        BLOCK_SIZE=size,
        GROUP=group,
        HAS_CAP=scores.softcap is not None,
        HAS_WINDOW=scores.window is not None,
        M=BLOCK_M,
        N=BLOCK_N,
        STAGES=STAGES,
        PING_PONG=ping_pong,
        num_warps=4,
    )
