"""The decoder's kernels on an NVIDIA GPU: what a step shares between its layers, and which launcher gets which rows.

The kernels are `compute.kernels.gpu`'s. A step's tables and lengths travel in one copy. Decode rows split their
sequences by how many rows there are; chunks go to the Hopper prefill where the GPU and the pool allow it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from compute.batch import Batch, Group, Ints
from compute.kernels.gpu.decode import Scratch, decode
from compute.kernels.gpu.gate import gate
from compute.kernels.gpu.hopper_prefill import hopper_prefill, supports
from compute.kernels.gpu.layer import KVLayer, Scores
from compute.kernels.gpu.norm import add_norm
from compute.kernels.gpu.prefill import prefill
from compute.kernels.gpu.rope_kv_write import rope_kv_write
from compute.kernels.gpu.splits import sm_count_of, split_count
from compute.kernels.interface import AttentionSpec, Stack

if TYPE_CHECKING:
    from compute.model.layer import Layer


@dataclass(frozen=True, slots=True)
class Decode:
    """The step's rows of one token: its first B tokens."""

    tables: Tensor  # [B, W] int32
    lengths: Tensor  # [B] int32
    scratch: Scratch | None


@dataclass(frozen=True, slots=True)
class Chunks:
    """The step's rows of more tokens, which are [first, last) of the step."""

    tables: Tensor  # [B, W] int32
    lengths: Tensor  # [B] int32
    starts: Tensor  # [B + 1] int32, from `first`
    first: int
    last: int
    max_count: int


@dataclass(frozen=True, slots=True)
class Step:
    batch: Batch
    pool: Tensor
    decode: Decode | None
    chunks: Chunks | None


class CudaKernels:
    """See `interface.Kernels`. bfloat16 and float16, over a pool of the same or of e4m3; one step at a time."""

    def __init__(self) -> None:
        self.scratches: dict[tuple[int, int], Scratch] = {}  # by splits and G

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return add_norm(x, None, weight, eps)

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        return add_norm(x, residual, weight, eps)

    def gate(self, x: Tensor, activation: str) -> Tensor:
        return gate(x, activation)

    def stack(
        self, layers: "Sequence[Layer]", next_norms: Sequence[Tensor], activation: str, eps: float
    ) -> Stack | None:
        return None

    def prepare(self, batch: Batch, pool: Tensor, specs: list[AttentionSpec]) -> Step:
        singles = [group for group in batch.groups if group.width == 1]
        longer = [group for group in batch.groups if group.width > 1]
        arrays = [*(each for group in singles[:1] for each in (group.tables, group.lengths)), *merged(longer)]
        sent = on_device(arrays, pool.device)
        for rope in {spec.rope for spec in specs}:
            rope.rows(
                batch.positions[:0], batch.limit
            )  # makes its table long enough; the kernel reads it itself
        decode_part = chunk_part = None
        if singles:
            tables, lengths = sent[:2]
            decode_part = Decode(tables, lengths, self.scratch_for(singles[0], pool, specs[0]))
        if longer:
            tables, lengths, starts = sent[-3:]
            first = longer[0].first
            width = max(group.width for group in longer)
            chunk_part = Chunks(tables, lengths, starts, first, batch.num_tokens, width)
        return Step(batch, pool, decode_part, chunk_part)

    def scratch_for(self, group: Group, pool: Tensor, spec: AttentionSpec) -> Scratch | None:
        rows, longest = len(group.lengths), int(group.lengths.max())
        per_head = spec.num_heads // spec.num_kv_heads
        splits = split_count(rows, spec.num_kv_heads, per_head, longest, sm_count_of(pool.device))
        if splits == 1:
            return None
        key = (splits, per_head)
        found = self.scratches.get(key)
        if found is None or len(found.arrivals) < rows:
            found = self.scratches[key] = Scratch.allocate(rows, splits, KVLayer(pool, 0), per_head)
        return found

    def attend(self, spec: AttentionSpec, qkv: Tensor, step: Step) -> Tensor:
        batch, kv = step.batch, KVLayer(step.pool, spec.layer)
        norms = (
            (spec.q_norm, spec.k_norm, spec.norm_eps)
            if spec.q_norm is not None and spec.k_norm is not None
            else None
        )
        real = batch.num_tokens
        table = spec.rope.table
        rope_kv_write(qkv, kv, table, batch.positions[:real], batch.write_blocks, batch.write_slots, norms)
        q = qkv.view(len(qkv), -1, spec.head_dim)[:, : spec.num_heads]
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        out[real:].zero_()
        scores = Scores(scale=spec.scale, softcap=spec.softcap, window=spec.window)
        if step.decode is not None:
            part, rows = step.decode, len(step.decode.lengths)
            decode(q[:rows], out[:rows], kv, part.tables, part.lengths, scores, part.scratch)
        if step.chunks is not None:
            attend_chunks(q, out, kv, step.chunks, scores)
        return out.view(len(qkv), -1)


def attend_chunks(q: Tensor, out: Tensor, kv: KVLayer, chunks: Chunks, scores: Scores) -> None:
    hopper = q.is_cuda and supports(kv, torch.cuda.get_device_capability(q.device))
    tokens = slice(chunks.first, chunks.last)
    launch = hopper_prefill if hopper else prefill
    launch(q[tokens], out[tokens], kv, chunks.tables, chunks.starts, chunks.lengths, chunks.max_count, scores)


def merged(groups: list[Group]) -> list[Ints]:
    """Tables, lengths and starts of all groups' rows, in their order; tables as wide as the widest."""
    if not groups:
        return []
    widest = max(group.tables.shape[1] for group in groups)
    tables = [
        np.pad(group.tables, ((0, 0), (0, widest - group.tables.shape[1])), mode="edge") for group in groups
    ]
    counts = np.concatenate([group.counts for group in groups])
    lengths = np.concatenate([group.lengths for group in groups])
    return [np.concatenate(tables), lengths, np.concatenate(([0], np.cumsum(counts)))]


def on_device(arrays: list[Ints], device: torch.device) -> list[Tensor]:
    """The arrays as int32 tensors, sent in one copy."""
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]).astype(np.int32))
    if device.type == "cuda":
        flat = flat.pin_memory()
    parts = torch.split(flat.to(device, non_blocking=True), [array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
