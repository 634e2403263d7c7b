"""y = x·Wᵀ + b for a few rows x: as fast as the weights can be read.

    yᵀ [N, T] = W [N, K] · xᵀ [K, T]        T rows, padded to the tensor cores' least width

The weights are the tall operand: they go from memory through shared memory into the tensor cores and never through
registers, in a pipeline deep enough to cover the memory's latency. A program has a strip of outputs. Where strips are
too few to fill the machine, several programs share one and cut K; the last to finish adds the partial sums, in the
order of the cuts. Tile and cuts depend on the weight only, so a row's answer has the same bits in every batch.

A program reads its first weights into L2 while the kernel before is still running (programmatic dependent launch), and
waits for it before it touches anything else.

With an activation, W is [gate; up] and y = activation(gate) · up: a strip is half gate, half up.
"""

from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from compute.kernels.gpu.gate import KINDS, activated
from compute.kernels.gpu.layer import DTYPES, require
from compute.kernels.gpu.overlap import overlaps, take_turns

MAX_ROWS: Final = 16
PARTIAL_SUMS: Final = 2**22  # of a launch, in all
MAX_STRIPS: Final = 4096  # that may be cut
K_MULTIPLE: Final = 16  # of the inputs: rows then start where the widest loads may
WIDEST_LOAD: Final = 8  # weights: 16 bytes


@dataclass(frozen=True, slots=True)
class Tile:
    """How a weight is read."""

    block_n: int  # its rows, to a program
    block_k: int  # columns, to a turn of the loop
    warps: int
    stages: int  # turns on their way
    cuts: int  # of K, a program each
    ahead: int | None = 256  # columns read into L2 while the kernel before runs; None: nothing overlaps


@dataclass(frozen=True, slots=True)
class Scratch:
    """What programs leave for the last of their strip. One launch at a time; `arrivals` is zero between launches."""

    sums: Tensor  # [PARTIAL_SUMS] float32
    arrivals: Tensor  # [MAX_STRIPS] int32

    @classmethod
    @cache
    def of(cls, device: torch.device) -> "Scratch":
        """The device's, shared by all its products: they run one after the other."""
        sums = torch.empty(PARTIAL_SUMS, dtype=torch.float32, device=device)
        return cls(sums, torch.zeros(MAX_STRIPS, dtype=torch.int32, device=device))


@triton.jit
def _prefetch(weights, rows, COLUMNS: tl.constexpr, PIECES: tl.constexpr):
    """Asks L2 for COLUMNS weights of each row, in PIECES: a thread asks for one."""
    SIZE: tl.constexpr = COLUMNS // PIECES
    places = weights + rows[:, None] + (tl.arange(0, PIECES) * SIZE)[None, :]
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [places.to(tl.int64), SIZE * 2],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _sum_of_cuts(
    sums, arrivals, acc, tokens_there, CUTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr
):
    """Leaves acc [BLOCK_N, BLOCK_T] for the last of the strip. Returns whether this is it, and the sum of all."""
    cut = tl.program_id(0)
    strip = tl.program_id(1)
    places = tl.arange(0, BLOCK_T)[None, :] * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    first = sums + strip * (CUTS * BLOCK_N * BLOCK_T)
    tl.store(first + cut * (BLOCK_N * BLOCK_T) + places, acc, mask=tokens_there)
    tl.debug_barrier()  # all threads' stores, before one thread announces them
    arrived = tl.atomic_add(arrivals + strip, 1, sem="acq_rel", scope="gpu")
    tl.debug_barrier()
    is_last = arrived == CUTS - 1
    if is_last:
        tl.store(arrivals + strip, 0)
        acc = tl.zeros_like(acc)
        for other in tl.static_range(CUTS):
            part = first + other * (BLOCK_N * BLOCK_T) + places
            acc += tl.load(part, mask=tokens_there, other=0.0, cache_modifier=".cg")
    return is_last, acc


@triton.jit(do_not_specialize=["tokens"])
def _skinny(
    x,  # [tokens, K]
    weights,  # [N, K]; [2N, K] with an activation
    bias,  # [N] or [2N]
    out,  # [tokens, N]
    sums,
    arrivals,
    tokens,
    size_n,
    size_k,
    x_stride,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,  # of gate.KINDS; -1: none
    EVEN_K: tl.constexpr,
    CUTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAPS: tl.constexpr,
    AHEAD: tl.constexpr,
    PIECES: tl.constexpr,
):
    cut = tl.program_id(0)
    strip = tl.program_id(1)
    GATED: tl.constexpr = ACTIVATION >= 0
    OUTPUTS: tl.constexpr = BLOCK_N // 2 if GATED else BLOCK_N
    places = tl.arange(0, BLOCK_N)
    rows = tl.minimum(strip * OUTPUTS + places % OUTPUTS, size_n - 1) + places // OUTPUTS * size_n
    row_starts = rows.to(tl.int64) * size_k
    turns = tl.cdiv(size_k, BLOCK_K)
    begin = cut * turns // CUTS * BLOCK_K
    end = (cut + 1) * turns // CUTS * BLOCK_K
    if OVERLAPS and AHEAD > 0:
        _prefetch(weights + tl.minimum(begin, size_k - AHEAD), row_starts, AHEAD, PIECES)
    take_turns(OVERLAPS)

    token = tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_K)
    w_places = weights + row_starts[:, None] + columns[None, :]
    x_places = x + token[:, None] * x_stride + columns[None, :]
    acc = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        if EVEN_K:
            w = tl.load(w_places + start)
            x_there = (token < tokens)[:, None]
        else:
            there = (start + columns < size_k)[None, :]
            w = tl.load(w_places + start, mask=there, other=0.0)
            x_there = (token < tokens)[:, None] & there
        part = tl.load(x_places + start, mask=x_there, other=0.0)
        acc = tl.dot(w, tl.trans(part), acc)

    if CUTS > 1:
        is_last, acc = _sum_of_cuts(sums, arrivals, acc, (token < tokens)[None, :], CUTS, BLOCK_N, BLOCK_T)
        if not is_last:
            return
    if HAS_BIAS:
        acc += tl.load(bias + rows).to(tl.float32)[:, None]
    if GATED:
        left, right = tl.split(tl.permute(tl.reshape(acc, (2, OUTPUTS, BLOCK_T)), (1, 2, 0)))
        acc = activated(left, ACTIVATION) * right
    output = strip * OUTPUTS + tl.arange(0, OUTPUTS)
    tl.store(
        out + token[None, :] * size_n + output[:, None],
        acc.to(out.dtype.element_ty),
        mask=(token < tokens)[None, :] & (output < size_n)[:, None],
    )


def skinny(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tile: Tile,
    scratch: Scratch,
    activation: str | None = None,
) -> Tensor:
    """x [T, K] · weight [N, K]ᵀ + bias [N] → [T, N], T up to MAX_ROWS; with an activation of the gate, [T, N / 2].

    ValueError names what does not fit.
    """
    tokens, size_k = x.shape
    outputs = check(x, weight, bias, activation)
    block_n = tile.block_n if activation is None else tile.block_n // 2
    strips = triton.cdiv(outputs, block_n)
    block_t = max(16, triton.next_power_of_2(tokens))
    if tile.cuts > 1:
        fits = strips <= MAX_STRIPS and strips * tile.cuts * tile.block_n * block_t <= PARTIAL_SUMS
        require(fits, f"{tile.cuts} cuts of {strips} strips do not fit the scratch")
    may_overlap = overlaps() and tile.ahead is not None
    pieces = max(32 * tile.warps // tile.block_n, 1)
    ahead = min(tile.ahead or 0, size_k) // (WIDEST_LOAD * pieces) * (WIDEST_LOAD * pieces)
    out = torch.empty((tokens, outputs), dtype=x.dtype, device=x.device)
    if tokens == 0:
        return out
    _skinny[(tile.cuts, strips)](
        x,
        weight,
        weight if bias is None else bias,
        out,
        scratch.sums,
        scratch.arrivals,
        tokens,
        outputs,
        size_k,
        x.stride(0),
        HAS_BIAS=bias is not None,
        ACTIVATION=-1 if activation is None else KINDS[activation],
        EVEN_K=size_k % tile.block_k == 0,
        CUTS=tile.cuts,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        BLOCK_T=block_t,
        STAGES=tile.stages,
        OVERLAPS=may_overlap,
        AHEAD=ahead,
        PIECES=pieces,
        num_warps=tile.warps,
        launch_pdl=may_overlap,
    )
    return out


def check(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> int:
    """Outputs of a row."""
    require(x.dim() == 2 and x.stride(1) == 1, "x must be [T, K], its rows dense")
    require(len(x) <= MAX_ROWS, f"{len(x)} rows are more than {MAX_ROWS}")
    fits = weight.dim() == 2 and weight.is_contiguous() and weight.shape[1] == x.shape[1]
    require(fits, f"weight must be [N, {x.shape[1]}] and dense, not {tuple(weight.shape)}")
    require(x.shape[1] % K_MULTIPLE == 0, f"{x.shape[1]} inputs are no multiple of {K_MULTIPLE}")
    require(weight.dtype in DTYPES, f"weight.dtype is {weight.dtype}, not bfloat16 or float16")
    require(x.dtype == weight.dtype, f"x.dtype is {x.dtype}, the weight's is {weight.dtype}")
    outputs = weight.shape[0]
    require(bias is None or bias.shape == (outputs,), f"bias must be [{outputs}]")
    if activation is None:
        return outputs
    require(activation in KINDS, f"activation {activation} is not one of {tuple(KINDS)}")
    require(outputs % 2 == 0, "gate and up must be of one size")
    return outputs // 2
