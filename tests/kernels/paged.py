"""Pools with NaN in every slot that holds no token, scales included, and attention over them in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

from compute.kernels.gpu.layer import KVLayer, Scores, scales_of
from kvmanager.layout import Geometry, PoolLayout
from kvmanager.mapping import as_pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Rows with `lengths` tokens of KV, the last `counts` of them new."""

    lengths: tuple[int, ...]
    counts: tuple[int, ...]
    heads: int = 4
    kv_heads: int = 2
    dim: int = 64
    block_size: int = 16
    dtype: torch.dtype = torch.float16
    window: int | None = None
    softcap: float | None = None
    layers: int = 2
    fp8: bool = False  # the pool is e4m3; queries and answers stay of `dtype`

    @property
    def scores(self) -> Scores:
        return Scores(scale=self.dim**-0.5, softcap=self.softcap, window=self.window)

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.") + "-fp8" * self.fp8
        parts = f"h{self.heads}k{self.kv_heads}d{self.dim}b{self.block_size}-{kind}"
        return f"{parts}-w{self.window}-c{self.softcap}-" + ".".join(map(str, self.lengths[:4]))


@dataclass(frozen=True, slots=True)
class Paged:
    case: Case
    pool: Tensor
    kv: KVLayer
    tables: Tensor  # [B, W] int32, in a wider tensor
    lengths: Tensor
    starts: Tensor
    q: Tensor  # [T, H, D]
    rows: list[tuple[Tensor, Tensor]]  # each row's keys and values [S, K, D], as the pool holds them
    exact: list[tuple[Tensor, Tensor]]  # before they were quantised


def build(case: Case, device: torch.device) -> Paged:
    """Random tokens in randomly ordered blocks; every other slot of the pool is NaN."""
    size, layer = case.block_size, case.layers - 1
    wanted = [-(-length // size) for length in case.lengths]
    num_blocks = sum(wanted) + 3
    pool = poisoned(case, num_blocks, torch.device("cpu"))
    order = torch.randperm(num_blocks).tolist()
    tables = torch.full((len(wanted), max(wanted) + 2), 2**30, dtype=torch.int32)  # beyond: never followed
    rows, exact = [], []
    for row, (length, count) in enumerate(zip(case.lengths, wanted, strict=True)):
        blocks = [order.pop() for _ in range(count)]
        tables[row, :count] = torch.tensor(blocks, dtype=torch.int32)
        kv = torch.randn(2, case.kv_heads, length, case.dim).to(case.dtype)
        exact.append((kv[0].transpose(0, 1), kv[1].transpose(0, 1)))
        stored, scales = quantised(kv) if case.fp8 else (kv, None)
        for place, block in enumerate(blocks):
            part = stored[:, :, place * size : (place + 1) * size]
            pool[block, layer, :, :, : part.shape[2]] = part
            if scales is not None:
                some = scales[:, :, place * size : (place + 1) * size]
                scales_of(pool)[block, layer, :, :, : part.shape[2]] = some
        if scales is not None:
            kv = stored.float() * scales[..., None]
        rows.append((kv[0].transpose(0, 1), kv[1].transpose(0, 1)))
    starts = torch.tensor([0, *case.counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    q = torch.randn(int(starts[-1]), case.heads + 2 * case.kv_heads, case.dim).to(case.dtype).to(device)
    pool = moved(pool, device)
    return Paged(
        case,
        pool,
        KVLayer(pool, layer),
        tables.to(device)[:, : max(wanted)],
        torch.tensor(case.lengths, dtype=torch.int32, device=device),
        starts.to(device),
        q[:, : case.heads],
        rows,
        exact,
    )


def poisoned(case: Case, num_blocks: int, device: torch.device) -> Tensor:
    """A pool of NaN; so are its scales."""
    kind = "float8_e4m3" if case.fp8 else str(case.dtype).removeprefix("torch.")
    layout = PoolLayout(
        Geometry(
            num_layers=case.layers,
            num_kv_heads=case.kv_heads,
            head_dim=case.dim,
            block_size=case.block_size,
            dtype=kind,
        )
    )
    memory = torch.full((num_blocks * layout.block_bytes,), 0xFF, dtype=torch.uint8, device=device)
    return as_pool(memory, layout, num_blocks)


def moved(pool: Tensor, device: torch.device) -> Tensor:
    """The pool with all that stands between its blocks, on the device."""
    memory = pool.as_strided((pool.stride(0) * len(pool),), (1,))
    return memory.to(device).as_strided(pool.shape, pool.stride())


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 [..., D], and float32 scales [...]."""
    peak = x.float().abs().amax(-1)
    scales = torch.where(peak > 0, peak / 448, 1.0)
    return (x.float() / scales[..., None]).to(torch.float8_e4m3fn), scales


def expected(paged: Paged, rows: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
    """[T, H, D] float64, over the pool's keys and values or over others."""
    case, answers, device = paged.case, [], paged.q.device
    queries = paged.q.double().split(list(case.counts))
    for q, (keys, values), length in zip(queries, rows or paged.rows, case.lengths, strict=True):
        if not len(q):
            continue
        group = case.heads // case.kv_heads
        k = keys.to(device).double().repeat_interleave(group, 1)
        v = values.to(device).double().repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * case.scores.scale
        if case.softcap is not None:
            scores = case.softcap * (scores / case.softcap).tanh()
        places = torch.arange(length, device=device)
        mine = length - len(q) + torch.arange(len(q), device=device)[:, None]
        seen = places <= mine
        if case.window is not None:
            seen &= places > mine - case.window
        scores = scores.masked_fill(~seen, float("-inf"))
        answers.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
    return torch.cat(answers)


def fresh_of(paged: Paged) -> Tensor:
    """Queries, keys and values of the new tokens [T, H + 2K, D]; NaN where a row's first token is not new."""
    case = paged.case
    fresh = torch.full(
        (len(paged.q), case.heads + 2 * case.kv_heads, case.dim), float("nan"), dtype=case.dtype
    )
    begin = 0
    for (keys, values), length, count in zip(paged.rows, case.lengths, case.counts, strict=True):
        if length == count:
            fresh[begin : begin + count, case.heads : -case.kv_heads] = keys
            fresh[begin : begin + count, -case.kv_heads :] = values
        begin += count
    return fresh.to(paged.q.device)


def error(answer: Tensor, reference: Tensor) -> float:
    """‖answer - reference‖ / ‖reference‖; NaN anywhere gives NaN, which no bound holds."""
    difference = answer.double() - reference
    return float(difference.norm() / reference.norm())
