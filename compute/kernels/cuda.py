"""The decoder's kernels on an NVIDIA GPU: which launcher gets which rows of a step.

The kernels are `compute.kernels.gpu`'s. Rows of one token are attended by the split decode, chunks by the Hopper
prefill where the GPU and the pool allow it, else by the plain one. Everything a step names lies on the device already
(`compute.gpu.inbox`): nothing here reads or waits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compute.kernels.gpu.decode import Scratch, decode
from compute.kernels.gpu.gate import gate
from compute.kernels.gpu.hopper_prefill import hopper_prefill, supports
from compute.kernels.gpu.layer import KVLayer, Scores
from compute.kernels.gpu.linear import GpuLinear
from compute.kernels.gpu.norm import add_norm
from compute.kernels.gpu.prefill import prefill
from compute.kernels.gpu.rope_kv_write import rope_kv_write
from compute.kernels.interface import AttentionSpec, Stack

if TYPE_CHECKING:
    from compute.model.layer import Layer
    from compute.model.linear import Linear


@dataclass(frozen=True, slots=True)
class Decode:
    """The step's rows of one token: its first B tokens."""

    tables: Tensor  # [B, W] int32
    lengths: Tensor  # [B] int32; 0 is padding
    scratch: Scratch | None  # None: a row is not split


@dataclass(frozen=True, slots=True)
class Chunks:
    """The step's rows of more tokens, which are those from `first` on."""

    tables: Tensor  # [B, W] int32
    lengths: Tensor  # [B] int32
    starts: Tensor  # [B + 1] int32, from `first`
    first: int
    max_count: int


@dataclass(frozen=True, slots=True)
class Step:
    """What the layers of a step share. T tokens."""

    pool: Tensor
    positions: Tensor  # [T] int32
    write_blocks: Tensor  # [T] int32; -1 is padding
    write_slots: Tensor  # [T] int32
    decode: Decode | None
    chunks: Chunks | None


class CudaKernels:
    """See `interface.Kernels`. bfloat16 and float16, over a pool of the same or of e4m3."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return add_norm(x, None, weight, eps)

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        return add_norm(x, residual, weight, eps)

    def gated(self, product: "Linear", x: Tensor, activation: str) -> Tensor:
        if isinstance(product, GpuLinear):
            return product.gated(x, activation)
        return gate(product(x), activation)

    def stack(
        self, layers: "Sequence[Layer]", next_norms: Sequence[Tensor], activation: str, eps: float
    ) -> Stack | None:
        return None

    def attend(self, spec: AttentionSpec, qkv: Tensor, step: Step) -> Tensor:
        kv = KVLayer(step.pool, spec.layer)
        norms = None
        if spec.q_norm is not None and spec.k_norm is not None:
            norms = (spec.q_norm, spec.k_norm, spec.norm_eps)
        rope_kv_write(
            qkv,
            kv,
            spec.rope.table,
            step.positions,
            step.write_blocks,
            step.write_slots,
            norms,
            keep_keys=is_hopper(kv),
        )
        heads = qkv.view(len(qkv), -1, spec.head_dim)
        q = heads[:, : spec.num_heads]
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        scores = Scores(scale=spec.scale, softcap=spec.softcap, window=spec.window)
        if step.decode is not None:
            part, rows = step.decode, len(step.decode.lengths)
            decode(q[:rows], out[:rows], kv, part.tables, part.lengths, scores, part.scratch)
        if step.chunks is not None:
            attend_chunks(heads, out, kv, step.chunks, scores)
        return out.view(len(qkv), -1)


def is_hopper(kv: KVLayer) -> bool:
    """Whether the Hopper prefill takes chunks over this pool."""
    return kv.pool.is_cuda and supports(kv, torch.cuda.get_device_capability(kv.pool.device))


def attend_chunks(heads: Tensor, out: Tensor, kv: KVLayer, chunks: Chunks, scores: Scores) -> None:
    """`heads` [T, H + 2K, D]: the step's queries, keys and values, of which out [T, H, D] wants the chunks'."""
    fresh, out = heads[chunks.first :], out[chunks.first :]
    q = fresh[:, : out.shape[1]]
    rest = (chunks.tables, chunks.starts, chunks.lengths, chunks.max_count, scores)
    if is_hopper(kv):
        hopper_prefill(q, out, kv, *rest, fresh=fresh)
    else:
        prefill(q, out, kv, *rest)
