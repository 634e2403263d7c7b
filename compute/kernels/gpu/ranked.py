"""The token of a row that samples with top-k, top-p or min-p, without sorting: what `sample` calls for such rows.

    least kept logit by top-k:   the largest t with  #{x ≥ t} ≥ k
    by top-p:                    the largest t with  Σ_{x ≥ t} w ≥ p · (mass of the top k, or of all)

Both are found by bisection over the bits of a float32, four parts a turn; they count over a short list of the row's
largest logits where that is known to hold all that may be kept, else over the row. Ties with the last one kept are
kept, as in `compute.filters`. Sums are float32 within a block and float64 over blocks, always in the same order.
"""

from typing import Final

import triton
import triton.language as tl

NO_KEY: Final = tl.constexpr(-(2**31))  # below the key of every float
NEG_INF_KEY: Final = tl.constexpr(-2139095041)  # of -inf


@triton.jit
def temper(temperature):
    """log2 e / temperature in two float32, the second is what the first rounds away."""
    scale = 1.4426950408889634 / tl.minimum(tl.maximum(temperature, 1.0e-20), 1.0e30).to(tl.float64)
    high = scale.to(tl.float32)
    return high, (scale - high.to(tl.float64)).to(tl.float32)


@triton.jit
def weights(x, top, high, low):
    """exp((x - top) / temperature), float32; 0 for -inf. `top` is finite."""
    below = x - top
    # Beyond it the second product could be infinite and of the other sign.
    return tl.exp2(tl.where(below > -1.0e25, below * high + below * low, below * high))


@triton.jit
def keys(x):
    """int32 in the order of the float32 x; both zeros have one key."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def first_above(w, rest):
    """Index in w [N] of the first whose running weight exceeds `rest` (float64); rounding aside, there is one."""
    index = tl.arange(0, w.shape[0])
    running = tl.cumsum(w, 0).to(tl.float64)
    hit = tl.min(tl.where((running > rest) & (w > 0), index, w.shape[0]), 0)
    last = tl.max(tl.where(w > 0, index, 0), 0)
    return tl.where(hit < w.shape[0], hit, last)


@triton.jit
def _least(
    values,  # [n]
    n,
    bottom,  # int64: a key known to hold, or the lowest there is
    ceiling,  # int64: a key above all
    need,  # float64
    top,
    high,
    low,
    BY_MASS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The largest key t, int64, such that the values of key ≥ t weigh (or count) at least `need`."""
    columns = tl.arange(0, BLOCK)
    while ceiling - bottom > 1:
        span = ceiling - bottom
        first = tl.maximum(bottom + span // 4, bottom + 1)
        second = bottom + span // 2
        third = tl.maximum(bottom + span * 3 // 4, second)
        size_1 = tl.full([], 0.0, tl.float64)
        size_2 = tl.full([], 0.0, tl.float64)
        size_3 = tl.full([], 0.0, tl.float64)
        for start in tl.range(0, n, BLOCK, num_stages=3):
            there = start + columns < n
            x = tl.load(values + start + columns, mask=there, other=-float("inf")).to(tl.float32)
            key = keys(x)
            size = weights(x, top, high, low) if BY_MASS else tl.where(there, 1.0, 0.0)
            size_1 += tl.sum(tl.where(key >= first.to(tl.int32), size, 0.0), 0).to(tl.float64)
            size_2 += tl.sum(tl.where(key >= second.to(tl.int32), size, 0.0), 0).to(tl.float64)
            size_3 += tl.sum(tl.where(key >= third.to(tl.int32), size, 0.0), 0).to(tl.float64)
        ceiling = tl.where(
            size_1 < need, first, tl.where(size_2 < need, second, tl.where(size_3 < need, third, ceiling))
        )
        bottom = tl.where(
            size_3 >= need, third, tl.where(size_2 >= need, second, tl.where(size_1 >= need, first, bottom))
        )
    return bottom


@triton.jit
def _measure(values, n, least, min_p, top, high, low, BLOCK: tl.constexpr):
    """Number and weight, both float64, of the values of key ≥ least that weigh at least min_p."""
    columns = tl.arange(0, BLOCK)
    count = tl.full([], 0.0, tl.float64)
    mass = tl.full([], 0.0, tl.float64)
    for start in tl.range(0, n, BLOCK, num_stages=3):
        there = start + columns < n
        x = tl.load(values + start + columns, mask=there, other=-float("inf")).to(tl.float32)
        w = weights(x, top, high, low)
        kept = there & (keys(x) >= least) & (w >= min_p)
        count += tl.sum(tl.where(kept, 1.0, 0.0), 0).to(tl.float64)
        mass += tl.sum(tl.where(kept, w, 0.0), 0).to(tl.float64)
    return count, mass


@triton.jit
def _place(values, n, least, min_p, target, top, high, low, BLOCK: tl.constexpr):
    """Index of the first kept value whose running weight exceeds `target`."""
    columns = tl.arange(0, BLOCK)
    running = tl.full([], 0.0, tl.float64)
    before = tl.full([], 0.0, tl.float64)
    chosen = tl.full([], 0, tl.int32)
    for start in tl.range(0, n, BLOCK, num_stages=3):
        x = tl.load(values + start + columns, mask=start + columns < n, other=-float("inf")).to(tl.float32)
        w = weights(x, top, high, low)
        mass = tl.sum(tl.where((keys(x) >= least) & (w >= min_p), w, 0.0), 0).to(tl.float64)
        here = (mass > 0) & (running <= target)  # the last such block is the one
        chosen = tl.where(here, start, chosen)
        before = tl.where(here, running, before)
        running += mass
    x = tl.load(values + chosen + columns, mask=chosen + columns < n, other=-float("inf")).to(tl.float32)
    w = weights(x, top, high, low)
    kept = tl.where((keys(x) >= least) & (w >= min_p), w, 0.0)
    return chosen + first_above(kept, target - before)


@triton.jit
def filtered(
    values,  # [n]: the row, or all its logits of key ≥ bottom
    n,
    bottom,  # int64
    total,  # float64: the row's mass
    top,
    high,
    low,
    top_k,  # 0: off
    top_p,  # 1: off
    min_p,
    uniform,
    IS_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Index of the drawn value; -1 if the values of a short list do not hold top_p of the row's mass."""
    ceiling = keys(top).to(tl.int64) + 1
    least = tl.full([], NO_KEY, tl.int64)
    whole = total
    if top_k > 0:
        least = _least(values, n, bottom, ceiling, top_k.to(tl.float64), top, high, low, False, BLOCK)
        above, whole = _measure(values, n, least + 1, 0.0, top, high, low, BLOCK)
        bits = least.to(tl.int32)
        last = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
        whole += (top_k - above) * weights(last, top, high, low)
    holds = True
    if top_p < 1.0:
        need = top_p.to(tl.float64) * whole
        if not IS_ROW:
            _, mass = _measure(values, n, NO_KEY, 0.0, top, high, low, BLOCK)
            holds = (mass >= need) | (top_k > 0)
        if holds:
            nucleus = _least(values, n, bottom, ceiling, need, top, high, low, True, BLOCK)
            least = tl.maximum(least, nucleus)
    place = tl.full([], -1, tl.int32)
    if holds:
        _, mass = _measure(values, n, least, min_p, top, high, low, BLOCK)
        place = _place(values, n, least, min_p, uniform * mass, top, high, low, BLOCK)
    return place


@triton.jit
def shorten(
    row,  # [size] logits
    size,
    maxima,  # [groups] float32: of each GROUP logits of the row
    groups,
    wanted,  # at least so many logits, below `groups`
    top,
    values,  # [SHORT] float32
    ids,  # [SHORT] int32
    SHORT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Lists, by id, the logits that are not below the wanted-th largest of the groups' maxima.

    Returns how many they are, and the bound's key. The list is of no use if they are more than SHORT.
    """
    columns = tl.arange(0, BLOCK)
    ceiling = keys(top).to(tl.int64) + 1
    floor = tl.full([], NEG_INF_KEY, tl.int64)
    bound = _least(maxima, groups, floor, ceiling, wanted.to(tl.float64), top, 0.0, 0.0, False, BLOCK)
    count = tl.full([], 0, tl.int32)
    for start in tl.range(0, size, BLOCK, num_stages=3):
        there = start + columns < size
        x = tl.load(row + start + columns, mask=there, other=-float("inf")).to(tl.float32)
        kept = (keys(x) >= bound) & there
        place = count + tl.cumsum(kept.to(tl.int32), 0) - 1
        tl.store(values + place, x, mask=kept & (place < SHORT))
        tl.store(ids + place, start + columns, mask=kept & (place < SHORT))
        count += tl.sum(kept.to(tl.int32), 0)
    tl.debug_barrier()  # the list is read by other threads than wrote it
    return count, bound
