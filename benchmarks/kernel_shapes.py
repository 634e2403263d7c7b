"""Inputs of the attention benchmarks: a paged pool in random block order, and the same tokens as peers want them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from compute.kernels.gpu.layer import KVLayer, Scores, scales_of
from kvmanager.layout import Geometry, PoolLayout
from kvmanager.mapping import as_pool

DEVICE = torch.device("cuda")
L2_TIMES = 8 * 2**26  # bytes that the rotated sets hold in all: many times the 60 MB of L2


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """`rows` sequences of `tokens` tokens each; decode has one new token a row, prefill is all new."""

    rows: int
    tokens: int
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    block_size: int = 16
    dtype: torch.dtype = torch.bfloat16
    fp8: bool = False  # the pool is e4m3

    @property
    def kv_bytes(self) -> int:
        return self.rows * self.tokens * self.kv_heads * 2 * (self.dim + 4 if self.fp8 else self.dim * 2)

    @property
    def causal_flops(self) -> float:
        """Two products of half the square."""
        return self.rows * self.heads * self.dim * 2.0 * self.tokens**2

    @property
    def scores(self) -> Scores:
        return Scores(scale=self.dim**-0.5)

    def __str__(self) -> str:
        return f"{self.rows}×{self.tokens}" + " fp8" * self.fp8


class Paged:
    """A pool whose layers are the KV sets that launches rotate through."""

    def __init__(self, shape: Shape, sets: int | None = None) -> None:
        self.shape = shape
        self.sets = sets or max(4, -(-L2_TIMES // shape.kv_bytes))
        per_row = shape.tokens // shape.block_size
        self.num_blocks = shape.rows * per_row
        torch.manual_seed(7)
        size = (self.num_blocks, self.sets, 2, shape.kv_heads, shape.block_size, shape.dim)
        self.pool = (
            e4m3_pool(size) if shape.fp8 else torch.empty(size, dtype=shape.dtype, device=DEVICE).normal_()
        )
        order = torch.randperm(self.num_blocks, device=DEVICE).to(torch.int32)
        self.tables = order.view(shape.rows, per_row)
        self.lengths = torch.full((shape.rows,), shape.tokens, dtype=torch.int32, device=DEVICE)

    def layer(self, index: int) -> KVLayer:
        return KVLayer(self.pool, index)

    def dense(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, K, S, D], contiguous: what a kernel without paging reads."""
        shape = self.shape
        kv = self.pool[self.tables.long().flatten(), index]
        kv = kv.view(shape.rows, -1, 2, shape.kv_heads, shape.block_size, shape.dim)
        kv = kv.permute(2, 0, 3, 1, 4, 5).reshape(2, shape.rows, shape.kv_heads, shape.tokens, shape.dim)
        return kv[0].contiguous(), kv[1].contiguous()

    def token_major(self, index: int, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values [blocks, slots, K, D] of another block size, in random order, and their tables: FA3's own."""
        shape = self.shape
        keys, values = self.dense(index)
        per_row = shape.tokens // block_size
        order = torch.randperm(shape.rows * per_row, device=DEVICE)
        parts = []
        for dense in (keys, values):
            blocks = dense.transpose(1, 2).reshape(-1, block_size, shape.kv_heads, shape.dim)
            part = torch.empty_like(blocks)
            part[order] = blocks
            parts.append(part)
        return parts[0], parts[1], order.to(torch.int32).view(shape.rows, per_row)

    @cached_property
    def queries(self) -> Tensor:
        """[B, H, D]: one a row."""
        shape = self.shape
        return torch.randn((shape.rows, shape.heads, shape.dim), dtype=shape.dtype, device=DEVICE)

    @cached_property
    def prompt(self) -> Tensor:
        """[B·S, H, D]"""
        shape = self.shape
        size = (shape.rows * shape.tokens, shape.heads, shape.dim)
        return torch.randn(size, dtype=shape.dtype, device=DEVICE)

    @cached_property
    def starts(self) -> Tensor:
        shape = self.shape
        return torch.arange(shape.rows + 1, dtype=torch.int32, device=DEVICE) * shape.tokens


def e4m3_pool(size: tuple[int, int, int, int, int, int]) -> Tensor:
    """Normally distributed elements, all scales 1 / 64."""
    blocks, layers, _, heads, slots, dim = size
    layout = PoolLayout(
        Geometry(num_layers=layers, num_kv_heads=heads, head_dim=dim, block_size=slots, dtype="float8_e4m3")
    )
    pool = as_pool(torch.empty(blocks * layout.block_bytes, dtype=torch.uint8, device=DEVICE), layout, blocks)
    for layer in range(layers):  # one at a time: they are float32 before they are stored
        pool[:, layer].copy_(torch.randn(pool[:, layer].shape, device=DEVICE) * 64)
    scales_of(pool).fill_(1 / 64)
    return pool


def reference(queries: Tensor, keys: Tensor, values: Tensor, positions: Tensor, scale: float) -> Tensor:
    """[N, H, D] float64 of N queries at `positions` over one row's keys and values [K, S, D]."""
    group = queries.shape[1] // keys.shape[0]
    k = keys.double().repeat_interleave(group, 0)
    v = values.double().repeat_interleave(group, 0)
    scores = torch.einsum("nhd,hsd->hns", queries.double(), k) * scale
    hidden = torch.arange(keys.shape[1], device=keys.device) > positions[:, None]
    return torch.einsum("hns,hsd->nhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), v)


def relative_error(answer: Tensor, exact: Tensor) -> float:
    return float((answer.double() - exact).norm() / exact.norm())
