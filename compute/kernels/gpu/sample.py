"""Draws a token a row on the GPU, without a word to the host: as `compute.sampler` does for rows without penalties.

    w_i = exp((x_i - max x) / temperature)        the token is the first in the order of ids with Σ_{j ≤ i} w_j > u Σ w

Two launches. The first reads the logits once, in chunks: each one's largest logit, its id, and its mass relative to
that. The second, a program a row, merges them, finds the chunk in which the number u falls, and reads that chunk
again; a greedy row ends at the merge, a filtered one goes on in `ranked`. Nothing depends on who shares the batch.
The number u is the host's (`compute.philox`): seed and position are known before the logits are.
"""

from dataclasses import dataclass, fields
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from compute.kernels.gpu.layer import require
from compute.kernels.gpu.ranked import NEG_INF_KEY, filtered, first_above, shorten, temper, weights

NOT_FINITE: Final = -1  # a logit is NaN or +inf
NOTHING_TO_DRAW: Final = -2  # all logits are -inf
MAX_VOCAB: Final = 2**20
CHUNK: Final = 4096
GROUP: Final = 128
SHORT: Final = 4096
NUCLEUS: Final = 512  # logits at least in the short list of a row without top-k
DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """How each of P rows draws; all [P] on the logits' device. Read by the kernels only, so a graph follows them."""

    wanted: Tensor  # int32: 0 leaves `drawn` as it is
    temperature: Tensor  # float32: 0 takes the first of the largest logits
    top_k: Tensor  # int32: 0 is off, and so is a number not below V
    top_p: Tensor  # float32: 1 is off
    min_p: Tensor  # float32: 0 is off
    uniform: Tensor  # float64 in [0, 1)

    @classmethod
    def allocate(cls, rows: int, device: torch.device) -> "Draws":
        """Rows that nobody wants."""
        return cls(**{name: torch.zeros(rows, dtype=kind, device=device) for name, kind in KINDS.items()})


KINDS: Final = {
    "wanted": torch.int32,
    "temperature": torch.float32,
    "top_k": torch.int32,
    "top_p": torch.float32,
    "min_p": torch.float32,
    "uniform": torch.float64,
}


@dataclass(frozen=True, slots=True)
class SampleScratch:
    """What the first launch leaves for the second, and room for short lists. One call at a time."""

    maxima: Tensor  # [P, chunks] float32
    best: Tensor  # [P, chunks] int32: the first id of the maximum
    masses: Tensor  # [P, chunks] float32
    groups: Tensor  # [P, chunks · CHUNK / GROUP] float32: maxima of GROUP logits
    values: Tensor  # [P, SHORT] float32
    ids: Tensor  # [P, SHORT] int32

    @classmethod
    def allocate(cls, rows: int, vocab_size: int, device: torch.device) -> "SampleScratch":
        chunks = triton.cdiv(vocab_size, CHUNK)
        sizes = (chunks, chunks, chunks, chunks * (CHUNK // GROUP), SHORT, SHORT)
        kinds = (torch.float32, torch.int32, torch.float32, torch.float32, torch.float32, torch.int32)
        return cls(
            *(torch.empty((rows, n), dtype=k, device=device) for n, k in zip(sizes, kinds, strict=True))
        )


@triton.jit
def _sample_scan(
    logits,  # [P, size]
    wanted,  # [P] and the other parameters alike
    temperature,
    top_k,
    top_p,
    maxima,
    best,
    masses,
    groups,
    row_stride,
    size,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
):
    chunk = tl.program_id(0)
    row = tl.program_id(1)
    if tl.load(wanted + row) == 0:
        return
    column = chunk * CHUNK + tl.arange(0, CHUNK)
    source = logits + row.to(tl.int64) * row_stride
    x = tl.load(source + column, mask=column < size, other=-float("inf")).to(tl.float32)
    x = tl.where(x != x, float("inf"), x)  # noqa: PLR0124 - NaN, told apart by nothing else
    top = tl.max(x, 0)
    place = row * tl.num_programs(0) + chunk
    tl.store(maxima + place, top)
    tl.store(best + place, tl.min(tl.where(x == top, column, 2**31 - 1), 0))
    heat = tl.load(temperature + row)
    if heat > 0:
        high, low = temper(heat)
        mass = tl.sum(weights(x, tl.where(tl.abs(top) < float("inf"), top, 0.0), high, low), 0)
        tl.store(masses + place, mass)
        if (tl.load(top_k + row) > 0) | (tl.load(top_p + row) < 1.0):
            per_chunk: tl.constexpr = CHUNK // GROUP
            part = tl.max(tl.reshape(x, [per_chunk, GROUP]), 1)
            tl.store(groups + place * per_chunk + tl.arange(0, per_chunk), part)


@triton.jit
def _draw_plain(row, size, total_of, mass, uniform, top, high, low, CHUNK: tl.constexpr):
    """The token by the chunks' masses: `total_of` and `mass` are float64 [chunks], the first the running sum."""
    target = uniform * tl.max(total_of, 0)
    index = tl.arange(0, mass.shape[0])
    before = total_of - mass
    chosen = tl.max(tl.where((mass > 0) & (before <= target), index, 0), 0)
    rest = target - tl.sum(tl.where(index == chosen, before, 0.0), 0)
    column = chosen * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(row + column, mask=column < size, other=-float("inf")).to(tl.float32)
    return chosen * CHUNK + first_above(weights(x, top, high, low), rest)


@triton.jit
def _draw_filtered(
    row, size, total, top, high, low, top_k, top_p, min_p, uniform, groups, values, ids,
    CHUNK: tl.constexpr, GROUP: tl.constexpr, SHORT: tl.constexpr, NUCLEUS: tl.constexpr,
):  # fmt: skip
    token = tl.full([], -1, tl.int32)
    count = tl.cdiv(size, GROUP)
    least = tl.where(top_k > 0, top_k, tl.minimum(NUCLEUS, count // 2))
    if (size > SHORT) & ((top_k > 0) | (top_p < 1.0)) & (least <= count // 2):
        found, bound = shorten(row, size, groups, count, least, top, values, ids, SHORT, CHUNK)
        if found <= SHORT:
            place = filtered(
                values, found, bound, total, top, high, low, top_k, top_p, min_p, uniform, False, CHUNK
            )
            if place >= 0:
                token = tl.load(ids + place)
    if token < 0:
        floor = tl.full([], NEG_INF_KEY, tl.int64)
        token = filtered(row, size, floor, total, top, high, low, top_k, top_p, min_p, uniform, True, CHUNK)
    return token


@triton.jit
def _sample_pick(
    logits,
    drawn,  # [P] int32
    wanted,
    temperature,
    top_k,
    top_p,
    min_p,
    uniform,
    maxima,
    best,
    masses,
    groups,
    values,
    ids,
    row_stride,
    size,
    chunks,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    SHORT: tl.constexpr,
    NUCLEUS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0)
    if tl.load(wanted + row) == 0:
        return
    index = tl.arange(0, BLOCK_C)
    place = row * chunks + index
    there = index < chunks
    tops = tl.load(maxima + place, mask=there, other=-float("inf"))
    top = tl.max(tops, 0)
    first = tl.load(best + place, mask=there & (tops == top), other=2**31 - 1)
    token = tl.min(first, 0)
    heat = tl.load(temperature + row)
    k = tl.load(top_k + row)
    k = tl.where(k < size, k, 0)
    if tl.abs(top) == float("inf"):
        token = tl.where(top > 0, -1, -2)
    elif (heat > 0) & (k != 1):
        high, low = temper(heat)
        source = logits + row.to(tl.int64) * row_stride
        number = tl.load(uniform + row)
        mass = tl.load(masses + place, mask=there, other=0.0).to(tl.float64)
        mass *= weights(tops, top, high, low)
        running = tl.cumsum(mass, 0)
        p = tl.load(top_p + row)
        floor = tl.minimum(tl.load(min_p + row), 1.0)
        if (k > 0) | (p < 1.0) | (floor > 0.0):
            wide = row.to(tl.int64)
            token = _draw_filtered(
                source, size, tl.max(running, 0), top, high, low, k, p, floor, number,
                groups + wide * chunks * (CHUNK // GROUP), values + wide * SHORT, ids + wide * SHORT,
                CHUNK, GROUP, SHORT, NUCLEUS,
            )  # fmt: skip
        else:
            token = _draw_plain(source, size, running, mass, number, top, high, low, CHUNK)
    tl.store(drawn + row, token)


def sample(logits: Tensor, draws: Draws, drawn: Tensor, scratch: SampleScratch) -> None:
    """Writes a token id of each wanted row of logits [P, V] into drawn [P] int32; or NOT_FINITE, NOTHING_TO_DRAW.

    Logits are float32, bfloat16 or float16, rows dense, as the sampler takes them: soft-capped, with no penalties to
    add. `scratch` is for at least P rows of V. ValueError names what does not fit.
    """
    rows, size = check(logits, draws, drawn)
    chunks = triton.cdiv(size, CHUNK)
    fits = len(scratch.maxima) >= rows and scratch.maxima.shape[1] == chunks
    require(fits, f"scratch is for {tuple(scratch.maxima.shape)} chunks, not {(rows, chunks)}")
    s = scratch
    _sample_scan[(chunks, rows)](
        logits, draws.wanted, draws.temperature, draws.top_k, draws.top_p, s.maxima, s.best, s.masses, s.groups,
        logits.stride(0), size, CHUNK=CHUNK, GROUP=GROUP, num_warps=4,
    )  # fmt: skip
    _sample_pick[(rows,)](
        logits, drawn, draws.wanted, draws.temperature, draws.top_k, draws.top_p, draws.min_p, draws.uniform,
        s.maxima, s.best, s.masses, s.groups, s.values, s.ids, logits.stride(0), size, chunks,
        CHUNK=CHUNK, GROUP=GROUP, SHORT=SHORT, NUCLEUS=NUCLEUS, BLOCK_C=triton.next_power_of_2(chunks), num_warps=8,
    )  # fmt: skip


def check(logits: Tensor, draws: Draws, drawn: Tensor) -> tuple[int, int]:
    """P and V."""
    require(logits.dim() == 2 and logits.stride(1) == 1, "logits must be [P, V], their rows dense")
    require(logits.dtype in DTYPES, f"logits.dtype is {logits.dtype}, not one of {DTYPES}")
    rows, size = logits.shape
    require(rows > 0 and 0 < size <= MAX_VOCAB, f"logits are {rows} rows of {size}, at most {MAX_VOCAB}")
    named = {field.name: getattr(draws, field.name) for field in fields(draws)}
    for name, tensor in {**named, "drawn": drawn}.items():
        kind = KINDS.get(name, torch.int32)
        require(
            tensor.shape == (rows,) and tensor.dtype == kind and tensor.is_contiguous(),
            f"{name} must be dense [{rows}] {kind}, not {tuple(tensor.shape)} {tensor.dtype}",
        )
    return rows, size
