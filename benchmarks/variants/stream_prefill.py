"""The streaming prefill: see `compute.kernels.gpu.hopper_prefill`; tiles follow each other without a gap."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from benchmarks.variants.stream_consumer import MAILS, consumer, look_up, place_of, read_mail, span
from compute.kernels.gpu.layer import KVLayer, Scores, check_queries, check_tables
from compute.kernels.gpu.prefill import check_chunks
from compute.kernels.gpu.splits import sm_count_of

PANEL = gl.constexpr(64)


@dataclass(frozen=True, slots=True)
class Plan:
    """What varies: work handed out as programs get free; keys and values by a warp each; a box a block or two panels;
    answers through shared memory; registers of a consumer's and the producers' threads; bytes of KV at a time."""

    dynamic: bool = True
    producers: int = 2
    whole: bool = True
    staged: bool = True
    ping_pong: bool = True
    registers: tuple[int, int] = (240, 24)
    block_n: int = 128
    stages: int = 2
    section_bytes: int = 2**60
    load: bool = True


@gluon.jit
def _fetch(
    pool, pieces, full, stage, blocks, row, BLOCK_SIZE: gl.constexpr, N: gl.constexpr, D: gl.constexpr,
    WHOLE: gl.constexpr, LOAD: gl.constexpr,
):  # fmt: skip
    """One tile of keys or values: a box for each block (and panel), all on one barrier."""
    BLOCKS: gl.constexpr = N // BLOCK_SIZE
    PANELS: gl.constexpr = D // PANEL
    if not LOAD:
        mbarrier.arrive(full.index(stage), count=1)
    elif WHOLE:
        mbarrier.expect(full.index(stage), N * D * 2)
        for block in gl.static_range(BLOCKS):
            tma.async_copy_global_to_shared(
                pool, [(blocks[block] + row) // 8, 0, 0, 0], full.index(stage), pieces.index(stage * BLOCKS + block)
            )  # fmt: skip
    else:
        mbarrier.expect(full.index(stage), N * D * 2)
        for panel in gl.static_range(PANELS):
            for block in gl.static_range(BLOCKS):
                piece = pieces.index((stage * PANELS + panel) * BLOCKS + block)
                tma.async_copy_global_to_shared(
                    pool, [blocks[block] + row, panel * PANEL], full.index(stage), piece
                )


@gluon.jit
def _blocks(table, first, used, block_rows, BLOCKS: gl.constexpr):
    """Rows of the pool where a tile's blocks start; beyond the row's last block its last one, which consumers mask."""
    blocks = ()
    for block in gl.static_range(BLOCKS):
        blocks = blocks + (gl.load(table + gl.minimum(first + block, used)) * block_rows,)  # type: ignore[assignment]  # noqa: RUF005
    return blocks


@gluon.jit
def _advance(work, counter, DYNAMIC: gl.constexpr):
    """What follows: DYNAMIC: what no program has taken yet; every program's first piece is that of its own number."""
    if DYNAMIC:
        return gl.atomic_add(counter, 1, sem="relaxed") + gl.num_programs(0)
    else:
        return work + gl.num_programs(0)


@gluon.jit
def _settle(
    work, counter, works, tiles, pairs, section, starts, lengths, window,
    KV_HEADS: gl.constexpr, GROUP: gl.constexpr, HAS_WINDOW: gl.constexpr, M: gl.constexpr, N: gl.constexpr,
    DYNAMIC: gl.constexpr,
):  # fmt: skip
    """`work`, or where it has no turns the next piece that has; at or above `works` where there is none."""
    turns = 0
    while (turns == 0) & (work < works):
        tile, pair = place_of(work, tiles, pairs, section)
        _start, count, length = look_up(pair, starts, lengths, KV_HEADS)
        _last, _right, _left, turns = span(tile, count, length, window, GROUP, HAS_WINDOW, M, N)
        if turns == 0:
            work = _advance(work, counter, DYNAMIC)
    return work


@gluon.jit
def _send(mail, mail_full, mail_empty, n, work):
    slot = n % MAILS
    mbarrier.wait(mail_empty.index(slot), ((n // MAILS) & 1) ^ 1)
    mail.index(slot).store(gl.full([1], work, gl.int32, gl.BlockedLayout([1], [32], [1], [0])))
    mbarrier.arrive(mail_full.index(slot), count=1)


@gluon.jit
def _scheduler(
    pool, k_pieces, v_pieces, k_full, k_empty, v_full, v_empty, mail, mail_full, mail_empty, tables, starts, lengths,
    counter, works, tiles, pairs, section, table_stride, block_rows, layer_row, window,
    KV_HEADS: gl.constexpr, GROUP: gl.constexpr, HAS_WINDOW: gl.constexpr, BLOCK_SIZE: gl.constexpr,
    M: gl.constexpr, N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr, WHOLE: gl.constexpr,
    DYNAMIC: gl.constexpr, BOTH: gl.constexpr, LOAD: gl.constexpr,
):  # fmt: skip
    """Hands out the work, one piece ahead, and brings its keys (BOTH: and its values)."""
    n = 0
    base = 0
    work = _settle(
        gl.program_id(0), counter, works, tiles, pairs, section, starts, lengths, window, KV_HEADS, GROUP, HAS_WINDOW,
        M, N, DYNAMIC,
    )  # fmt: skip
    _send(mail, mail_full, mail_empty, n, gl.where(work < works, work, -1))
    while work < works:
        following = _settle(
            _advance(work, counter, DYNAMIC), counter, works, tiles, pairs, section, starts, lengths, window, KV_HEADS,
            GROUP, HAS_WINDOW, M, N, DYNAMIC,
        )  # fmt: skip
        n += 1
        _send(mail, mail_full, mail_empty, n, gl.where(following < works, following, -1))
        tile, pair = place_of(work, tiles, pairs, section)
        _start, count, length = look_up(pair, starts, lengths, KV_HEADS)
        last, _right, _left, turns = span(tile, count, length, window, GROUP, HAS_WINDOW, M, N)
        table = tables + (pair // KV_HEADS).to(gl.int64) * table_stride
        used = (length - 1) // BLOCK_SIZE
        k_row = layer_row + pair % KV_HEADS * BLOCK_SIZE
        v_row = k_row + KV_HEADS * BLOCK_SIZE
        for turn in range(turns):
            stage = (base + turn) % STAGES
            phase = ((base + turn) // STAGES) & 1
            blocks = _blocks(table, (last - turn) * (N // BLOCK_SIZE), used, block_rows, N // BLOCK_SIZE)
            mbarrier.wait(k_empty.index(stage), phase ^ 1)
            _fetch(pool, k_pieces, k_full, stage, blocks, k_row, BLOCK_SIZE, N, D, WHOLE, LOAD)
            if BOTH:
                mbarrier.wait(v_empty.index(stage), phase ^ 1)
                _fetch(pool, v_pieces, v_full, stage, blocks, v_row, BLOCK_SIZE, N, D, WHOLE, LOAD)
        base += turns
        work = following
    if DYNAMIC:  # the last program leaves the counters as it found them
        if gl.atomic_add(counter + 1, 1, sem="acq_rel") == gl.num_programs(0) - 1:
            gl.store(counter, 0)
            gl.store(counter + 1, 0)


@gluon.jit
def _valuer(
    pool, v_pieces, v_full, v_empty, mail, mail_full, mail_empty, tables, starts, lengths, tiles, pairs, section,
    table_stride, block_rows, layer_row, window,
    KV_HEADS: gl.constexpr, GROUP: gl.constexpr, HAS_WINDOW: gl.constexpr, BLOCK_SIZE: gl.constexpr,
    M: gl.constexpr, N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr, WHOLE: gl.constexpr,
    LOAD: gl.constexpr,
):  # fmt: skip
    """Brings the values of the work that the scheduler hands out."""
    n = 0
    base = 0
    work = read_mail(mail, mail_full, mail_empty, 0, 1)
    while work >= 0:
        tile, pair = place_of(work, tiles, pairs, section)
        _start, count, length = look_up(pair, starts, lengths, KV_HEADS)
        last, _right, _left, turns = span(tile, count, length, window, GROUP, HAS_WINDOW, M, N)
        table = tables + (pair // KV_HEADS).to(gl.int64) * table_stride
        used = (length - 1) // BLOCK_SIZE
        v_row = layer_row + (KV_HEADS + pair % KV_HEADS) * BLOCK_SIZE
        for turn in range(turns):
            stage = (base + turn) % STAGES
            phase = ((base + turn) // STAGES) & 1
            blocks = _blocks(table, (last - turn) * (N // BLOCK_SIZE), used, block_rows, N // BLOCK_SIZE)
            mbarrier.wait(v_empty.index(stage), phase ^ 1)
            _fetch(pool, v_pieces, v_full, stage, blocks, v_row, BLOCK_SIZE, N, D, WHOLE, LOAD)
        base += turns
        n += 1
        work = read_mail(mail, mail_full, mail_empty, n, 1)


@gluon.jit
def _stream_prefill(
    q, out, pool, tables, starts, lengths, counter, works, tiles, pairs, section, block_rows, layer_row, table_stride,
    q_stride, out_stride, window, factor, cap,
    KV_HEADS: gl.constexpr, D: gl.constexpr, BLOCK_SIZE: gl.constexpr, GROUP: gl.constexpr, HAS_CAP: gl.constexpr,
    HAS_WINDOW: gl.constexpr, M: gl.constexpr, N: gl.constexpr, STAGES: gl.constexpr, PING_PONG: gl.constexpr,
    WHOLE: gl.constexpr, STAGED: gl.constexpr, DYNAMIC: gl.constexpr, PRODUCERS: gl.constexpr, LOAD: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr, OPERAND: gl.constexpr,
):  # fmt: skip
    kind: gl.constexpr = pool.dtype
    plain: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    BLOCKS: gl.constexpr = N // BLOCK_SIZE
    PANELS: gl.constexpr = D // PANEL
    queries = gl.allocate_shared_memory(kind, [4, M // 2, D], plain)
    keys = gl.allocate_shared_memory(kind, [STAGES, N * PANELS, PANEL], plain)
    values = gl.allocate_shared_memory(kind, [STAGES, N * PANELS, PANEL], plain)
    if WHOLE:
        box: gl.constexpr = gl.NVMMASharedLayout(128, 16, 4)
        k_pieces = keys._reinterpret(kind, [STAGES * BLOCKS, BLOCK_SIZE // 8, PANELS, 8, PANEL], box)
        v_pieces = values._reinterpret(kind, [STAGES * BLOCKS, BLOCK_SIZE // 8, PANELS, 8, PANEL], box)
    else:
        k_pieces = keys._reinterpret(kind, [STAGES * BLOCKS * PANELS, BLOCK_SIZE, PANEL], plain)
        v_pieces = values._reinterpret(kind, [STAGES * BLOCKS * PANELS, BLOCK_SIZE, PANEL], plain)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    order = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    mail = gl.allocate_shared_memory(gl.int32, [MAILS, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    mail_full = gl.allocate_shared_memory(gl.int64, [MAILS, 1], mbarrier.MBarrierLayout())
    mail_empty = gl.allocate_shared_memory(gl.int64, [MAILS, 1], mbarrier.MBarrierLayout())
    for half in gl.static_range(2):
        mbarrier.init(order.index(half), count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(k_empty.index(stage), count=2)  # both consumers
        mbarrier.init(v_empty.index(stage), count=2)
    for slot in gl.static_range(MAILS):
        mbarrier.init(mail_full.index(slot), count=1)
        mbarrier.init(mail_empty.index(slot), count=1 + PRODUCERS)
    fence_async_shared()
    if PRODUCERS == 2:
        gl.warp_specialize(
            [
                (consumer, (
                    0, q, out, queries, keys, values, k_full, k_empty, v_full, v_empty, order, mail, mail_full,
                    mail_empty, starts, lengths, tiles, pairs, section, q_stride, out_stride, window, factor, cap,
                    KV_HEADS, GROUP, HAS_CAP, HAS_WINDOW, M, N, D, STAGES, PING_PONG, OPERAND, STAGED,
                )),
                (consumer, (
                    1, q, out, queries, keys, values, k_full, k_empty, v_full, v_empty, order, mail, mail_full,
                    mail_empty, starts, lengths, tiles, pairs, section, q_stride, out_stride, window, factor, cap,
                    KV_HEADS, GROUP, HAS_CAP, HAS_WINDOW, M, N, D, STAGES, PING_PONG, OPERAND, STAGED,
                )),
                (_scheduler, (
                    pool, k_pieces, v_pieces, k_full, k_empty, v_full, v_empty, mail, mail_full, mail_empty, tables,
                    starts, lengths, counter, works, tiles, pairs, section, table_stride, block_rows, layer_row, window,
                    KV_HEADS, GROUP, HAS_WINDOW, BLOCK_SIZE, M, N, D, STAGES, WHOLE, DYNAMIC, False, LOAD,
                )),
                (_valuer, (
                    pool, v_pieces, v_full, v_empty, mail, mail_full, mail_empty, tables, starts, lengths, tiles, pairs,
                    section, table_stride, block_rows, layer_row, window, KV_HEADS, GROUP, HAS_WINDOW, BLOCK_SIZE, M, N,
                    D, STAGES, WHOLE, LOAD,
                )),
            ],
            [4, 1, 1],
            [CONSUMER_REGISTERS, PRODUCER_REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (consumer, (
                    0, q, out, queries, keys, values, k_full, k_empty, v_full, v_empty, order, mail, mail_full,
                    mail_empty, starts, lengths, tiles, pairs, section, q_stride, out_stride, window, factor, cap,
                    KV_HEADS, GROUP, HAS_CAP, HAS_WINDOW, M, N, D, STAGES, PING_PONG, OPERAND, STAGED,
                )),
                (consumer, (
                    1, q, out, queries, keys, values, k_full, k_empty, v_full, v_empty, order, mail, mail_full,
                    mail_empty, starts, lengths, tiles, pairs, section, q_stride, out_stride, window, factor, cap,
                    KV_HEADS, GROUP, HAS_CAP, HAS_WINDOW, M, N, D, STAGES, PING_PONG, OPERAND, STAGED,
                )),
                (_scheduler, (
                    pool, k_pieces, v_pieces, k_full, k_empty, v_full, v_empty, mail, mail_full, mail_empty, tables,
                    starts, lengths, counter, works, tiles, pairs, section, table_stride, block_rows, layer_row, window,
                    KV_HEADS, GROUP, HAS_WINDOW, BLOCK_SIZE, M, N, D, STAGES, WHOLE, DYNAMIC, True, LOAD,
                )),
            ],
            [4, 1],
            [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip


def operand_layout(block_n: int, dim: int) -> Any:
    """[N, D] in shared memory as boxes of whole blocks leave it: [8 keys][panel][key][64], 128-byte swizzle."""
    bases = [[0, 1], [0, 2], [0, 4], [0, 8], [0, 16], [0, 32], [1, 8], [2, 16], [4, 32]]
    bases += [[0, 64]] if dim == 128 else []
    rows = 8
    while rows < block_n:
        bases.append([rows, 0])
        rows *= 2
    return gl.SharedLinearLayout(bases, alignment=1024)


@cache
def counter_of(device: torch.device) -> Tensor:
    return torch.zeros(2, dtype=torch.int32, device=device)


def stream_prefill(
    q: Tensor,
    out: Tensor,
    kv: KVLayer,
    tables: Tensor,
    starts: Tensor,
    lengths: Tensor,
    max_count: int,
    scores: Scores,
    plan: Plan,
) -> Any:
    group = check_queries(q, out, kv)
    rows = check_tables(tables, lengths)
    check_chunks(starts, rows, max_count)
    dim, size = kv.head_dim, kv.block_size
    flat = kv.pool.view(-1, dim)
    if plan.whole:
        shape = [flat.shape[0] // 8, dim // 64, 8, 64]
        layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
        box = TensorDescriptor(flat, shape, [8 * dim, 64, dim, 1], [size // 8, dim // 64, 8, 64], layout)
        operand = operand_layout(plan.block_n, dim)
    else:
        layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
        box = TensorDescriptor.from_tensor(flat, [size, 64], layout)
        operand = layout
    block_m = 128
    tiles = triton.cdiv(max_count * group, block_m)
    pairs = kv.kv_heads * rows
    works = tiles * pairs
    row_bytes = tables.shape[1] * size * dim * 4
    return _stream_prefill[(min(works, sm_count_of(q.device)),)](
        q, out, box, tables, starts, lengths, counter_of(q.device), works, tiles, pairs,
        max(1, min(plan.section_bytes // row_bytes, pairs)),
        kv.block_stride // dim, kv.layer_offset // dim, tables.stride(0), q.stride(0), out.stride(0),
        scores.window or 0, scores.factor, scores.cap,
        KV_HEADS=kv.kv_heads, D=dim, BLOCK_SIZE=size, GROUP=group, HAS_CAP=scores.softcap is not None,
        HAS_WINDOW=scores.window is not None, M=block_m, N=plan.block_n, STAGES=plan.stages, PING_PONG=plan.ping_pong,
        WHOLE=plan.whole, STAGED=plan.staged, DYNAMIC=plan.dynamic, PRODUCERS=plan.producers, LOAD=plan.load,
        CONSUMER_REGISTERS=plan.registers[0], PRODUCER_REGISTERS=plan.registers[1], OPERAND=operand,
        num_warps=4,
    )  # fmt: skip
