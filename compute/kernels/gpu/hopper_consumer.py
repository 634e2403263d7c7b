"""What the Hopper prefill's consumers do: scores, softmax and the products of half a tile each, turn by turn.

See `hopper_prefill` for the roles and the drawing of a tile's turns. Device functions only: nothing here is launched.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)


@gluon.jit
def place_of(work, works, tiles, pairs, section):
    """Tile and pair of a piece of work: `section` pairs after another, in each the longest tiles first.

    Every other round of the programs goes backwards, so that none has the longer tile of every round.
    """
    begin = work // gl.num_programs(0) * gl.num_programs(0)
    end = gl.minimum(begin + gl.num_programs(0), works)
    work = gl.where(work // gl.num_programs(0) % 2 == 1, begin + end - 1 - work, work)
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
    tile, count, length, window, GROUP: gl.constexpr, HAS_WINDOW: gl.constexpr, M: gl.constexpr, N: gl.constexpr,
):  # fmt: skip
    """Keys of a tile; turns, right and left as in the module's drawing, no turns without rows."""
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
    q, tile, kv_head, start, count, q_stride, half: gl.constexpr,
    GROUP: gl.constexpr, ROWS: gl.constexpr, D: gl.constexpr,
):  # fmt: skip
    """[ROWS, D]: half a tile's query lanes; zeros beyond the row's tokens."""
    LOAD: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    lanes = (tile * 2 + half) * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, LOAD))
    tokens = lanes // GROUP
    dims = gl.arange(0, D, gl.SliceLayout(0, LOAD))
    place = tokens.to(gl.int64) * q_stride + lanes % GROUP * D
    query = q + start.to(gl.int64) * q_stride + kv_head * (GROUP * D)
    return gl.load(query + place[:, None] + dims[None, :], mask=(tokens < count)[:, None], other=0.0)


@gluon.jit
def _store_answers(
    answers, out, tile, kv_head, start, count, out_stride, half: gl.constexpr,
    GROUP: gl.constexpr, ROWS: gl.constexpr, D: gl.constexpr,
):  # fmt: skip
    """Half a tile's rows to their tokens: 16 bytes a thread, by way of shared memory."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    lanes = (tile * 2 + half) * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    tokens = lanes // GROUP
    dims = gl.arange(0, D, gl.SliceLayout(0, LAYOUT))
    place = tokens.to(gl.int64) * out_stride + lanes % GROUP * D
    answer = out + start.to(gl.int64) * out_stride + kv_head * (GROUP * D)
    mask = (tokens < count)[:, None]
    gl.store(answer + place[:, None] + dims[None, :], gl.convert_layout(answers, LAYOUT), mask=mask)


@gluon.jit
def consumer(
    half: gl.constexpr, q, out, queries, keys, values, k_full, k_empty, v_full, v_empty, order, starts, lengths,
    works, tiles, pairs, section, q_stride, out_stride, window, factor, cap,
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
    first_tile, first_pair = place_of(gl.program_id(0), works, tiles, pairs, section)
    next_start, next_count, next_length = look_up(first_pair, starts, lengths, KV_HEADS)
    loaded = _load_queries(
        q, first_tile, first_pair % KV_HEADS, next_start, next_count, q_stride, half, GROUP, ROWS, D
    )
    for work in range(gl.program_id(0), works, gl.num_programs(0)):
        start, count, length = next_start, next_count, next_length
        tile, pair = place_of(work, works, tiles, pairs, section)
        last, right, left, turns = span(tile, count, length, window, GROUP, HAS_WINDOW, M, N)
        kv_head = pair % KV_HEADS
        lane = tile * M
        # What comes next is looked up, and its queries loaded, under this piece's products. Only what is loaded is
        # carried to the next turn: triton 3.6 loses members of a tuple derived from it.
        following = gl.minimum(work + gl.num_programs(0), works - 1)
        next_tile, next_pair = place_of(following, works, tiles, pairs, section)
        next_start, next_count, next_length = look_up(next_pair, starts, lengths, KV_HEADS)
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
                q, next_tile, next_pair % KV_HEADS, next_start, next_count, q_stride, half, GROUP, ROWS, D
            )
            o = warpgroup_mma_wait(0, deps=(o,))
            mbarrier.arrive(v_empty.index(final % STAGES), count=1)

            o = o * gl.convert_layout(1.0 / total, gl.SliceLayout(1, O_LAYOUT))[:, None]
            _store_answers(
                o.to(values.dtype), out, tile, kv_head, start, count, out_stride, half, GROUP, ROWS, D
            )
        else:
            loaded = _load_queries(
                q, next_tile, next_pair % KV_HEADS, next_start, next_count, q_stride, half, GROUP, ROWS, D
            )
        base += turns
        handed += gl.maximum(turns - 1, 0)
