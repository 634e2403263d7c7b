"""The decoder's kernels in plain torch: norms, gates, and paged attention batched over the whole step.

Each layer's attention gathers the KV of one group of rows at a time: an index_select of whole (block, head) rows
of the pool, 1-2 KiB each, gives [2, B, K, S, D] at once. Keys that a query must not see are masked, and the slots
beyond a row's length are cleared after the gather, because 0 · NaN is NaN and a free slot may hold anything.
The pool is [blocks, L, 2, K, slots, D]; S is a multiple of KV_GRID, so that a sum over keys is split alike
whatever else is in the step.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from compute.batch import Batch, Group
from compute.kernels.interface import AttentionSpec
from compute.model.rope import RotaryTable, rotate

if TYPE_CHECKING:
    from compute.model.linear import Linear

KV_GRID: Final = 64
SCORE_BYTES: Final = 64 * 2**20  # most memory for one group's scores where they are stored


@dataclass(frozen=True, slots=True)
class Window:
    """One group's view of the pool for one window: B rows, S keys."""

    group: Group
    rows: Tensor  # [2·B·K·blocks] (block, head) rows of layer 0
    bias: Tensor  # [B, 1, width, S]: 0 where the query sees the key, else -inf
    empty: Tensor | None  # [B, 1, S, 1]: slots that hold no token of the row; None where there are none
    queries: Tensor | None  # [B·width] token of each query, padding repeats one; None: they are in order
    answers: Tensor | None  # [tokens of the group] → place in [B·width]


@dataclass(frozen=True, slots=True)
class Step:
    batch: Batch
    pool: Tensor  # [blocks, L, 2, K, slots, D]
    windows: dict[int | None, list[Window]]
    rotations: dict[RotaryTable, tuple[Tensor, Tensor]]


class TorchKernels:
    """See `interface.Kernels`."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return functional.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self.norm(residual.add_(x), weight, eps)

    def gated(self, product: "Linear", x: Tensor, activation: str) -> Tensor:
        return self.gate(product(x), activation)

    def gate(self, x: Tensor, activation: str) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        if activation == "silu":
            return functional.silu(left).mul_(right)
        return functional.gelu(left, approximate="tanh" if activation == "gelu_tanh" else "none").mul_(right)

    def prepare(self, batch: Batch, pool: Tensor, specs: list[AttentionSpec]) -> Step:
        kinds = {spec.window for spec in specs}
        return Step(
            batch,
            pool,
            {kind: [window_of(group, kind, pool) for group in batch.groups] for kind in kinds},
            {rope: typed_rows(rope, batch, pool.dtype) for rope in {spec.rope for spec in specs}},
        )

    def attend(self, spec: AttentionSpec, qkv: Tensor, step: Step) -> Tensor:
        heads, kv_heads, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        qkv = qkv.view(-1, heads + 2 * kv_heads, dim)
        self.rotate(spec, qkv, step)
        write(qkv, spec, step)
        out = qkv.new_zeros((qkv.shape[0], heads * dim))
        for window in step.windows[spec.window]:
            kv = gather(step.pool, spec, window)
            attend_group(spec, qkv[:, :heads], kv, window, out)
        return out

    def stack(self, layers: Any, next_norms: Any, activation: str, eps: float) -> None:
        """None: layer by layer is all there is."""

    def rotate(self, spec: AttentionSpec, qkv: Tensor, step: Step) -> None:
        """Norms and rotates q and k [T, H + K, D] in place."""
        heads = spec.num_heads
        q_and_k = qkv[:, : heads + spec.num_kv_heads]
        if spec.q_norm is not None and spec.k_norm is not None:
            q_and_k[:, :heads] = self.norm(q_and_k[:, :heads], spec.q_norm, spec.norm_eps)
            q_and_k[:, heads:] = self.norm(q_and_k[:, heads:], spec.k_norm, spec.norm_eps)
        q_and_k.copy_(rotate(q_and_k, *step.rotations[spec.rope]))


def typed_rows(rope: RotaryTable, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    cos, sin = rope.rows(batch.positions, batch.limit)
    return cos.to(dtype), sin.to(dtype)


def write(qkv: Tensor, spec: AttentionSpec, step: Step) -> None:
    """Stores k and v of the N real tokens in their slots of this layer."""
    batch = step.batch
    kv = qkv[: batch.num_tokens, spec.num_heads :]
    kv = kv.reshape(batch.num_tokens, 2, spec.num_kv_heads, spec.head_dim)
    step.pool[:, spec.layer][batch.write_blocks, :, :, batch.write_slots] = kv


def window_of(group: Group, window: int | None, pool: Tensor) -> Window:
    """Which pool rows the group reads, and what each query may see of them."""
    _, layers, _, kv_heads, block_size, _ = pool.shape
    starts = group.lengths - group.counts
    first = np.zeros_like(starts) if window is None else np.maximum(starts + 1 - window, 0) // block_size
    grid = max(KV_GRID // block_size, 1)
    most = int((-(-group.lengths // block_size) - first).max())
    places = first[:, None] + np.arange(-(-most // grid) * grid)  # [B, blocks] places in the tables
    used = places * block_size < group.lengths[:, None]
    blocks = np.take_along_axis(group.tables, np.where(used, places, 0), axis=1)
    heads = np.arange(2 * kv_heads).reshape(2, 1, kv_heads, 1)
    rows = blocks[None, :, None, :] * (layers * 2 * kv_heads) + heads  # [2, B, K, blocks]

    keys = (places[:, :, None] * block_size + np.arange(block_size)).reshape(len(starts), 1, -1)  # [B, 1, S]
    queries = np.minimum(starts[:, None] + np.arange(group.width), group.lengths[:, None] - 1)[:, :, None]
    seen = keys <= queries if window is None else (keys <= queries) & (keys > queries - window)
    empty = keys >= group.lengths[:, None, None]
    bias = torch.zeros(seen.shape, dtype=pool.dtype).masked_fill_(torch.from_numpy(~seen), float("-inf"))
    return Window(
        group,
        torch.from_numpy(rows.reshape(-1)).to(pool.device),
        bias.unsqueeze(1).to(pool.device),
        torch.from_numpy(empty[:, :, :, None]).to(pool.device) if empty.any() else None,
        *padding_of(group, pool.device),
    )


def padding_of(group: Group, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Query tokens of a ragged group as [B·width], and the way back."""
    if group.dense:
        return None, None
    columns = np.arange(group.width)
    firsts = group.first + np.cumsum(group.counts) - group.counts
    queries = firsts[:, None] + np.minimum(columns, group.counts[:, None] - 1)
    answers = np.flatnonzero(columns < group.counts[:, None])
    return torch.from_numpy(queries.reshape(-1)).to(device), torch.from_numpy(answers).to(device)


def gather(pool: Tensor, spec: AttentionSpec, window: Window) -> Tensor:
    """[2, B, K, S, D]: a copy of one layer's keys and values for one group."""
    rows = pool.view(-1, pool.shape[4] * pool.shape[5])[spec.layer * 2 * spec.num_kv_heads :]
    size = len(window.group.counts)
    kv = rows.index_select(0, window.rows).view(2, size, spec.num_kv_heads, -1, spec.head_dim)
    return kv if window.empty is None else kv.masked_fill_(window.empty, 0)


def attend_group(spec: AttentionSpec, q: Tensor, kv: Tensor, window: Window, out: Tensor) -> None:
    """Attention of one group's queries, q [T, H, D], over kv [2, B, K, S, D]; answers go to their rows of out."""
    group, dim = window.group, spec.head_dim
    tokens = slice(group.first, group.first + group.num_tokens)
    q = q[tokens] if window.queries is None else q[window.queries]
    shape = (len(group.counts), group.width, spec.num_kv_heads, -1, dim)
    q = q.reshape(shape).permute(0, 2, 3, 1, 4).flatten(2, 3)  # [B, K, G·width, D]
    stored = spec.softcap is not None or group.width == 1
    answer = stored_scores(spec, q, kv, window) if stored else fused(spec, q, kv, window)
    answer = answer.reshape(len(q), spec.num_kv_heads, -1, group.width, dim)
    answer = answer.permute(0, 3, 1, 2, 4).reshape(-1, out.shape[1])
    out[tokens] = answer if window.answers is None else answer[window.answers]


def fused(spec: AttentionSpec, q: Tensor, kv: Tensor, window: Window) -> Tensor:
    """Flash attention: no scores in memory. Grouped heads are extra queries, so no key is repeated."""
    bias = window.bias.repeat(1, 1, q.shape[2] // window.group.width, 1)  # [B, 1, G·width, S]
    return functional.scaled_dot_product_attention(q, kv[0], kv[1], attn_mask=bias, scale=spec.scale)


def stored_scores(spec: AttentionSpec, q: Tensor, kv: Tensor, window: Window) -> Tensor:
    """softmax(cap · tanh(q·k / cap) + bias)·v in slices of queries that keep the scores bounded."""
    size, kv_heads, queries, dim = q.shape
    width, keys = window.group.width, kv.shape[3]
    q = q.view(size, kv_heads, queries // width, width, dim)
    most = max(SCORE_BYTES // (size * kv_heads * (queries // width) * keys * 4), 1)
    parts = [
        scored(spec, q[:, :, :, i : i + most], kv, window.bias[:, :, None, i : i + most])
        for i in range(0, width, most)
    ]
    return torch.cat(parts, dim=3)


def scored(spec: AttentionSpec, q: Tensor, kv: Tensor, bias: Tensor) -> Tensor:
    """One slice: q [B, K, G, n, D], kv [2, B, K, S, D], bias [B, 1, 1, n, S] → [B, K, G, n, D]."""
    shape = q.shape
    scores = torch.matmul(q.flatten(2, 3), kv[0].transpose(2, 3)).float().mul_(spec.scale)
    if spec.softcap is not None:
        scores.div_(spec.softcap).tanh_().mul_(spec.softcap)
    scores.view(*shape[:4], -1).add_(bias)
    return torch.matmul(scores.softmax(-1).to(q.dtype), kv[1]).view(shape)
