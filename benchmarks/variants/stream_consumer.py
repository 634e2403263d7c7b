"""What the streaming prefill's consumers do: a tile's last product runs beside the next tile's first scores."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from compute.kernels.gpu.hopper_consumer import _await_keys, _softmax

MAILS = gl.constexpr(4)


@gluon.jit
def read_mail(mail, mail_full, mail_empty, n, WARPS: gl.constexpr):
    """The n-th piece of work of this program; below 0 after the last."""
    slot = n % MAILS
    mbarrier.wait(mail_full.index(slot), (n // MAILS) & 1)
    work = gl.max(mail.index(slot).load(gl.BlockedLayout([1], [32], [WARPS], [0])), 0)
    mbarrier.arrive(mail_empty.index(slot), count=1)
    return work


@gluon.jit
def place_of(work, tiles, pairs, section):
    """Tile and pair of a piece of work: `section` pairs after another, in each the longest tiles first."""
    group = work // (tiles * section)
    size = gl.minimum(pairs - group * section, section)
    rest = work - group * (tiles * section)
    return tiles - 1 - rest // size, group * section + rest % size


@gluon.jit
def look_up(pair, starts, lengths, KV_HEADS: gl.constexpr):
    """First token, new tokens and length of a pair's row."""
    row = pair // KV_HEADS
    start = gl.load(starts + row)
    return start, gl.load(starts + row + 1) - start, gl.load(lengths + row)


@gluon.jit
def span(
    tile, count, length, window,
    GROUP: gl.constexpr, HAS_WINDOW: gl.constexpr, M: gl.constexpr, N: gl.constexpr,
):  # fmt: skip
    """Last key tile; right, left and turns as in the module's drawing, no turns without rows."""
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
    return last, right, left, turns


@gluon.jit
def operand_of(all_stages, stage, N: gl.constexpr, D: gl.constexpr, OPERAND: gl.constexpr):
    """[N, D]: one stage as the tensor cores read it."""
    return all_stages.index(stage)._reinterpret(all_stages.dtype, [N, D], OPERAND)


@gluon.jit
def _turns(
    half: gl.constexpr, begin, end, turns, base, last, o, p, top, total, mine, keys, values, k_full, k_empty,
    v_full, v_empty, order, positions, window, factor, cap,
    HAS_CAP: gl.constexpr, HAS_WINDOW: gl.constexpr, MASKED: gl.constexpr, N: gl.constexpr, D: gl.constexpr,
    STAGES: gl.constexpr, S_LAYOUT: gl.constexpr, O_LAYOUT: gl.constexpr, PING_PONG: gl.constexpr,
    OPERAND: gl.constexpr,
):  # fmt: skip
    """Turns [begin, end): scores of this turn beside the product of the last turn's probabilities with its values."""
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    ROWS: gl.constexpr = mine.shape[0]
    for turn in range(begin, end):
        here = base + turn
        stage = here % STAGES
        before = here - 1
        before_stage = before % STAGES
        if PING_PONG:
            mbarrier.wait(order.index(half), (here + half) & 1)
        zero = gl.zeros([ROWS, N], gl.float32, S_LAYOUT)
        k = operand_of(keys, stage, N, D, OPERAND)
        s = warpgroup_mma(mine, k.permute((1, 0)), zero, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(before_stage), (before // STAGES) & 1)
        o = warpgroup_mma(p, operand_of(values, before_stage, N, D, OPERAND), o, is_async=True)
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
        # A wait for the next keys stands between the softmax and the wait for its companion product: see hopper_consumer.
        _await_keys(here + 1, turn + 1 < turns, k_full, STAGES)
        o, p, new_p, old, total = warpgroup_mma_wait(0, deps=(o, p, new_p, old, total))
        mbarrier.arrive(v_empty.index(before_stage), count=1)
        o = o * old[:, None]
        p = new_p
    return o, p, top, total


@gluon.jit
def _fetch_queries(
    mine, q, tile, kv_head, start, count, q_stride, half: gl.constexpr, GROUP: gl.constexpr, ROWS: gl.constexpr,
    D: gl.constexpr,
):  # fmt: skip
    """Asynchronously half a tile's query lanes [ROWS, D] into shared memory; zeros beyond the row's tokens."""
    LOAD: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    lanes = (tile * 2 + half) * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, LOAD))
    tokens = lanes // GROUP
    dims = gl.arange(0, D, gl.SliceLayout(0, LOAD))
    place = tokens.to(gl.int64) * q_stride + lanes % GROUP * D
    query = q + start.to(gl.int64) * q_stride + kv_head * (GROUP * D)
    there = (tokens < count)[:, None] & (dims >= 0)[None, :]
    async_copy.async_copy_global_to_shared(mine, query + place[:, None] + dims[None, :], mask=there)
    async_copy.commit_group()


@gluon.jit
def _clear_tail(
    values, v_full, here, last, length, there,
    N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr, OPERAND: gl.constexpr,
):  # fmt: skip
    """Zeros for the values beyond the length, of a tile's first turn: 0 · NaN is NaN."""
    LOAD: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    if there & ((last + 1) * N > length):
        stage = here % STAGES
        mbarrier.wait(v_full.index(stage), (here // STAGES) & 1)
        tail = operand_of(values, stage, N, D, OPERAND)
        held = last * N + gl.arange(0, N, gl.SliceLayout(1, LOAD)) < length
        tail.store(gl.where(held[:, None], tail.load(LOAD), 0.0).to(values.dtype))
        fence_async_shared()


@gluon.jit
def _answer(
    o, total, mine, out, tile, kv_head, start, count, out_stride, half: gl.constexpr,
    GROUP: gl.constexpr, ROWS: gl.constexpr, D: gl.constexpr, O_LAYOUT: gl.constexpr, STAGED: gl.constexpr,
):  # fmt: skip
    """Divides and stores; STAGED: through the tile's query buffer, so that a thread stores 16 bytes."""
    LOAD: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    WRITE: gl.constexpr = LOAD if STAGED else O_LAYOUT
    o = (o / gl.convert_layout(total, gl.SliceLayout(1, O_LAYOUT))[:, None]).to(out.dtype.element_ty)
    lanes = (tile * 2 + half) * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, WRITE))
    tokens = lanes // GROUP
    dims = gl.arange(0, D, gl.SliceLayout(0, WRITE))
    place = tokens.to(gl.int64) * out_stride + lanes % GROUP * D
    answer = out + start.to(gl.int64) * out_stride + kv_head * (GROUP * D)
    if STAGED:
        mine.store(o)
        gl.store(answer + place[:, None] + dims[None, :], mine.load(LOAD), mask=(tokens < count)[:, None])
    else:
        gl.store(answer + place[:, None] + dims[None, :], o, mask=(tokens < count)[:, None])


@gluon.jit
def consumer(
    half: gl.constexpr, q, out, queries, keys, values, k_full, k_empty, v_full, v_empty, order, mail, mail_full,
    mail_empty, starts, lengths, tiles, pairs, section, q_stride, out_stride, window, factor, cap,
    KV_HEADS: gl.constexpr, GROUP: gl.constexpr, HAS_CAP: gl.constexpr, HAS_WINDOW: gl.constexpr,
    M: gl.constexpr, N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr, PING_PONG: gl.constexpr,
    OPERAND: gl.constexpr, STAGED: gl.constexpr,
):  # fmt: skip
    """Half of every tile's rows: 64 query lanes, from their load to their answer."""
    ROWS: gl.constexpr = M // 2
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    work = read_mail(mail, mail_full, mail_empty, 0, 4)
    if work >= 0:
        n = 0
        base = 0
        tile, pair = place_of(work, tiles, pairs, section)
        start, count, length = look_up(pair, starts, lengths, KV_HEADS)
        last, right, left, turns = span(tile, count, length, window, GROUP, HAS_WINDOW, M, N)
        _fetch_queries(
            queries.index(half), q, tile, pair % KV_HEADS, start, count, q_stride, half, GROUP, ROWS, D
        )
        async_copy.wait_group(0)
        fence_async_shared()
        mbarrier.wait(k_full.index(0), 0)
        zero = gl.zeros([ROWS, N], gl.float32, S_LAYOUT)
        s = warpgroup_mma(
            queries.index(half), operand_of(keys, 0, N, D, OPERAND).permute((1, 0)), zero,
            use_acc=False, is_async=True,
        )  # fmt: skip
        s = warpgroup_mma_wait(0, deps=(s,))
        mbarrier.arrive(k_empty.index(0), count=1)
        lanes = (tile * 2 + half) * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, S_LAYOUT))
        positions = length - count + lanes // GROUP
        top = gl.full([ROWS], -1.0e30, gl.float32, gl.SliceLayout(1, S_LAYOUT))
        total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, S_LAYOUT))
        soft, top, total, _old = _softmax(
            s, top, total, last * N, positions, window, factor, cap, HAS_CAP, HAS_WINDOW, True, N, S_LAYOUT
        )
        p = gl.convert_layout(soft.to(values.dtype), P_LAYOUT)
        _clear_tail(values, v_full, 0, last, length, True, N, D, STAGES, OPERAND)
        while work >= 0:
            tile, pair = place_of(work, tiles, pairs, section)
            last, right, left, turns = span(tile, count, length, window, GROUP, HAS_WINDOW, M, N)
            mine = queries.index((n % 2) * 2 + half)
            # The next piece of work: its queries come under this one's products.
            next_work = read_mail(mail, mail_full, mail_empty, n + 1, 4)
            there = next_work >= 0
            next_tile, next_pair = place_of(gl.maximum(next_work, 0), tiles, pairs, section)
            next_start, next_count, next_length = look_up(next_pair, starts, lengths, KV_HEADS)
            theirs = queries.index(((n + 1) % 2) * 2 + half)
            _fetch_queries(
                theirs,
                q,
                next_tile,
                next_pair % KV_HEADS,
                next_start,
                next_count,
                q_stride,
                half,
                GROUP,
                ROWS,
                D,
            )

            lanes = (tile * 2 + half) * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, S_LAYOUT))
            positions = length - count + lanes // GROUP
            o = gl.zeros([ROWS, D], gl.float32, O_LAYOUT)
            _await_keys(base + 1, turns > 1, k_full, STAGES)
            o, p, top, total = _turns(
                half, 1, right, turns, base, last, o, p, top, total, mine, keys, values, k_full, k_empty,
                v_full, v_empty, order, positions, window, factor, cap, HAS_CAP, HAS_WINDOW, True, N, D, STAGES,
                S_LAYOUT, O_LAYOUT, PING_PONG, OPERAND,
            )  # fmt: skip
            o, p, top, total = _turns(
                half, right, left, turns, base, last, o, p, top, total, mine, keys, values, k_full, k_empty,
                v_full, v_empty, order, positions, window, factor, cap, HAS_CAP, HAS_WINDOW, False, N, D, STAGES,
                S_LAYOUT, O_LAYOUT, PING_PONG, OPERAND,
            )  # fmt: skip
            if HAS_WINDOW:
                o, p, top, total = _turns(
                    half, left, turns, turns, base, last, o, p, top, total, mine, keys, values, k_full, k_empty,
                    v_full, v_empty, order, positions, window, factor, cap, HAS_CAP, HAS_WINDOW, True, N, D, STAGES,
                    S_LAYOUT, O_LAYOUT, PING_PONG, OPERAND,
                )  # fmt: skip

            # This tile's last product beside the next tile's first scores; those of no tile are thrown away.
            next_last, _right, _left, next_turns = span(
                next_tile, next_count, next_length, window, GROUP, HAS_WINDOW, M, N
            )
            here = base + turns
            stage = here % STAGES
            final = here - 1
            async_copy.wait_group(0)
            fence_async_shared()
            mbarrier.wait(k_full.index(stage), (here // STAGES) & 1, pred=there)
            if PING_PONG:
                mbarrier.wait(order.index(half), (here + half) & 1)
            zero = gl.zeros([ROWS, N], gl.float32, S_LAYOUT)
            k = operand_of(keys, stage, N, D, OPERAND)
            s = warpgroup_mma(theirs, k.permute((1, 0)), zero, use_acc=False, is_async=True)
            mbarrier.wait(v_full.index(final % STAGES), (final // STAGES) & 1)
            o = warpgroup_mma(p, operand_of(values, final % STAGES, N, D, OPERAND), o, is_async=True)
            if PING_PONG:
                mbarrier.arrive(order.index(1 - half), count=1)
            s = warpgroup_mma_wait(1, deps=(s,))
            mbarrier.arrive(k_empty.index(stage), count=1, pred=there)
            lanes = (next_tile * 2 + half) * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, S_LAYOUT))
            positions = next_length - next_count + lanes // GROUP
            next_top = gl.full([ROWS], -1.0e30, gl.float32, gl.SliceLayout(1, S_LAYOUT))
            none = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, S_LAYOUT))
            soft, next_top, next_total, _old = _softmax(
                s, next_top, none, next_last * N, positions, window, factor, cap, HAS_CAP, HAS_WINDOW, True, N, S_LAYOUT
            )  # fmt: skip
            next_p = gl.convert_layout(soft.to(values.dtype), P_LAYOUT)
            _await_keys(here + 1, there & (next_turns > 1), k_full, STAGES)
            o, p, next_p, total, next_total = warpgroup_mma_wait(0, deps=(o, p, next_p, total, next_total))
            mbarrier.arrive(v_empty.index(final % STAGES), count=1)
            _answer(
                o, total, mine, out, tile, pair % KV_HEADS, start, count, out_stride, half, GROUP, ROWS, D, O_LAYOUT,
                STAGED,
            )  # fmt: skip
            _clear_tail(values, v_full, here, next_last, next_length, there, N, D, STAGES, OPERAND)
            p = next_p
            top = next_top
            total = next_total
            work = next_work
            start = next_start
            count = next_count
            length = next_length
            base = here
            n += 1
