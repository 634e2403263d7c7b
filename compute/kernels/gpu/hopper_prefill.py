"""The prefill attention of `prefill` for Hopper, in Gluon: tiles come by TMA, products run on wgmma, roles on warps.

    producers, 1 warp each  pages of K, of V → shared memory, two tiles ahead       full ─┐
    consumer 0, 4 warps     rows [0, 64) of a tile                                        ├─ barriers, one pair a buffer
    consumer 1, 4 warps     rows [64, 128)                                         empty ─┘

FlashAttention-3 (Shah et al., arXiv 2407.08608, section 3): while a tile's scores become probabilities, the tensor
cores compute the next scores and the last product with V. The pool is one 2-D tensor [rows, D] to the copy engine; a
box is [slots of a block, 64], so that pieces stand in shared memory as one swizzled [keys, D] operand whatever blocks
they came from. A row whose first token is new (a prompt without a cached prefix) takes keys and values from where the
step computed them: a box is a whole tile then. Programs stay on their SM and take tiles in turn, the longest first, to
and fro so that none always has the longer ones. Keys run from the diagonal down:

    turn   n-1 ...... | left ..... | ..... 1 | 0            0 .. right: cut by the diagonal, always masked
           cut by window   whole     masked                 turn 0 also clears values beyond the length: 0 · NaN is NaN
"""

from typing import Final

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from compute.kernels.gpu.hopper_consumer import consumer, look_up, place_of, span
from compute.kernels.gpu.layer import KVLayer, Scores, check_queries, check_tables, require
from compute.kernels.gpu.prefill import check_chunks
from compute.kernels.gpu.splits import sm_count_of

HEAD_DIMS: Final = (64, 128)
BLOCK_M: Final = 128
BLOCK_N: Final = 128
STAGES: Final = 2
PING_PONG: Final = True  # one consumer's softmax under the other's products, by turns
MAX_ROWS: Final = 2**31 - 1  # of the pool as [rows, D]: the copy engine's coordinates are 32 bits wide
PANEL: Final = gl.constexpr(64)  # elements of a row in one 128-byte swizzle


SECTION_BYTES: Final = 22 * 2**20  # keys and values that stay in L2 while their tiles are worked on
SECTION_TOKENS: Final = (
    4096  # longer chunks have so many tiles a pair that sections only leave programs uneven
)


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
def _fetch_fresh(chunk, panels, full, stage, token, column, N: gl.constexpr, D: gl.constexpr):
    """One tile of keys or values from where the step computed them: a box for each panel."""
    PANELS: gl.constexpr = D // PANEL
    mbarrier.expect(full.index(stage), N * D * 2)
    for panel in gl.static_range(PANELS):
        tma.async_copy_global_to_shared(
            chunk, [token, column + panel * PANEL], full.index(stage), panels.index(stage * PANELS + panel)
        )


@gluon.jit
def _blocks(table, first, used, block_rows, BLOCKS: gl.constexpr):
    """Rows of the pool where a tile's blocks start; beyond the row's last block its last one, which consumers mask."""
    blocks = ()
    for block in gl.static_range(BLOCKS):
        blocks = blocks + (gl.load(table + gl.minimum(first + block, used)) * block_rows,)  # type: ignore[assignment]  # noqa: RUF005
    return blocks


@gluon.jit
def _producer(
    pool, chunk, k_pieces, v_pieces, k_full, k_empty, v_full, v_empty, tables, starts, lengths,
    works, tiles, pairs, section, table_stride, block_rows, layer_row, window,
    KV_HEADS: gl.constexpr, GROUP: gl.constexpr, HAS_WINDOW: gl.constexpr, BLOCK_SIZE: gl.constexpr,
    M: gl.constexpr, N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
    FRESH: gl.constexpr, KEYS: gl.constexpr, VALUES: gl.constexpr,
):  # fmt: skip
    """Brings the KEYS and VALUES of every turn, as soon as both consumers are done with their buffer. FRESH: those of a
    row whose first token is new come from `chunk`."""
    BLOCKS: gl.constexpr = N // BLOCK_SIZE
    operand: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    k_panels = k_pieces._reinterpret(k_pieces.dtype, [STAGES * (D // PANEL), N, PANEL], operand)
    v_panels = v_pieces._reinterpret(v_pieces.dtype, [STAGES * (D // PANEL), N, PANEL], operand)
    base = 0
    for work in range(gl.program_id(0), works, gl.num_programs(0)):
        tile, pair = place_of(work, works, tiles, pairs, section)
        start, count, length = look_up(pair, starts, lengths, KV_HEADS)
        last, _right, _left, turns = span(tile, count, length, window, GROUP, HAS_WINDOW, M, N)
        table = tables + (pair // KV_HEADS).to(gl.int64) * table_stride
        used = (length - 1) // BLOCK_SIZE
        kv_head = pair % KV_HEADS
        k_row = layer_row + kv_head * BLOCK_SIZE
        v_row = k_row + KV_HEADS * BLOCK_SIZE
        k_column = (KV_HEADS * GROUP + kv_head) * D
        v_column = k_column + KV_HEADS * D
        paged = turns
        if FRESH:
            paged = gl.where(count == length, 0, turns)
            for turn in range(turns - paged):
                stage = (base + turn) % STAGES
                phase = ((base + turn) // STAGES) & 1
                token = start + (last - turn) * N
                if KEYS:
                    mbarrier.wait(k_empty.index(stage), phase ^ 1)
                    _fetch_fresh(chunk, k_panels, k_full, stage, token, k_column, N, D)
                if VALUES:
                    mbarrier.wait(v_empty.index(stage), phase ^ 1)
                    _fetch_fresh(chunk, v_panels, v_full, stage, token, v_column, N, D)
        for turn in range(paged):
            stage = (base + turn) % STAGES
            phase = ((base + turn) // STAGES) & 1
            blocks = _blocks(table, (last - turn) * BLOCKS, used, block_rows, BLOCKS)
            if KEYS:
                mbarrier.wait(k_empty.index(stage), phase ^ 1)
                _fetch(pool, k_pieces, k_full, stage, blocks, k_row, BLOCK_SIZE, N, D)
            if VALUES:
                mbarrier.wait(v_empty.index(stage), phase ^ 1)
                _fetch(pool, v_pieces, v_full, stage, blocks, v_row, BLOCK_SIZE, N, D)
        base += turns


@gluon.jit(do_not_specialize=["works", "tiles", "pairs", "section"])  # they vary from step to step
def _hopper_prefill(
    q,  # [T, H, D]
    out,  # [T, H, D]
    pool,  # descriptor of the pool as [rows, D], boxes of [BLOCK_SIZE, 64]
    chunk,  # descriptor of the step's qkv as [T, (H + 2K)·D], boxes of [N, 64]; of the pool, not FRESH
    tables,  # [B, W] int32
    starts,  # [B + 1] int32
    lengths,  # [B] int32
    works,  # tiles · pairs
    tiles,  # of the longest chunk
    pairs,  # B · K
    section,  # pairs whose tiles are taken before those of the next
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
    FRESH: gl.constexpr,
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
            (consumer, (
                0, q, out, queries, keys, values, k_full, k_empty, v_full, v_empty, order, starts, lengths, works,
                tiles, pairs, section, q_stride, out_stride, window, factor, cap, KV_HEADS, GROUP, HAS_CAP,
                HAS_WINDOW, M, N, D, STAGES, PING_PONG,
            )),
            (consumer, (
                1, q, out, queries, keys, values, k_full, k_empty, v_full, v_empty, order, starts, lengths, works,
                tiles, pairs, section, q_stride, out_stride, window, factor, cap, KV_HEADS, GROUP, HAS_CAP,
                HAS_WINDOW, M, N, D, STAGES, PING_PONG,
            )),
            (_producer, (
                pool, chunk, k_pieces, v_pieces, k_full, k_empty, v_full, v_empty, tables, starts, lengths, works,
                tiles, pairs, section, table_stride, block_rows, layer_row, window, KV_HEADS, GROUP, HAS_WINDOW,
                BLOCK_SIZE, M, N, D, STAGES, FRESH, True, False,
            )),
            (_producer, (
                pool, chunk, k_pieces, v_pieces, k_full, k_empty, v_full, v_empty, tables, starts, lengths, works,
                tiles, pairs, section, table_stride, block_rows, layer_row, window, KV_HEADS, GROUP, HAS_WINDOW,
                BLOCK_SIZE, M, N, D, STAGES, FRESH, False, True,
            )),
        ],
        [4, 1, 1],
        [240, 24, 24],
    )  # fmt: skip


def supports(kv: KVLayer, capability: tuple[int, int]) -> bool:
    """Whether `hopper_prefill` takes this pool on such a GPU; `prefill` takes all of them on any."""
    rows = kv.pool.numel() // kv.head_dim
    return capability[0] == 9 and kv.head_dim in HEAD_DIMS and rows <= MAX_ROWS and not kv.is_fp8


def check_fresh(fresh: Tensor, q: Tensor, kv: KVLayer) -> None:
    heads = q.shape[1] + 2 * kv.kv_heads
    require(fresh.shape[1:] == (heads, kv.head_dim), f"fresh must be [T, {heads}, {kv.head_dim}]")
    require(len(fresh) >= len(q), f"fresh has {len(fresh)} tokens, q {len(q)}")
    require(fresh.dtype == kv.pool.dtype, f"fresh.dtype is {fresh.dtype}, the pool's is {kv.pool.dtype}")
    require(fresh.stride()[1:] == (kv.head_dim, 1), "the heads of fresh must be dense")


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
    fresh: Tensor | None = None,
) -> None:
    """As `prefill.prefill`, where `supports` says so.

    `fresh` [T, H + 2K, D]: keys and values as the pool holds them of the step's tokens, behind H heads of no matter.
    """
    group = check_queries(q, out, kv)
    rows = check_tables(tables, lengths)
    check_chunks(starts, rows, max_count)
    dim, size = kv.head_dim, kv.block_size
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    flat = kv.pool.view(-1, dim)
    tiles = triton.cdiv(max_count * group, BLOCK_M)
    works = tiles * kv.kv_heads * rows
    pairs = kv.kv_heads * rows
    section = pairs
    if max_count <= SECTION_TOKENS:
        section = max(1, min(SECTION_BYTES // (max_count * dim * 4), pairs))
    pages = TensorDescriptor.from_tensor(flat, [size, 64], layout)
    chunk = pages
    if fresh is not None:
        check_fresh(fresh, q, kv)
        wide = fresh.as_strided((fresh.shape[0], fresh.shape[1] * dim), (fresh.stride(0), 1))
        chunk = TensorDescriptor.from_tensor(wide, [BLOCK_N, 64], layout)
    _hopper_prefill[(min(works, sm_count_of(q.device)),)](
        q,
        out,
        pages,
        chunk,
        tables,
        starts,
        lengths,
        works,
        tiles,
        pairs,
        section,
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
        FRESH=fresh is not None,
        num_warps=4,
    )
