"""The decoder's kernels in C, compiled on this machine when a compiler is there; torch's for everything else.

A decode step of a 135M model at 16 rows spends 5 ms in native.c where the torch kernels take over 30: attention reads
the pool in place instead of gathering it. Chunks of a prompt attend by torch.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from compute.batch import Batch
from compute.kernels.build import library
from compute.kernels.interface import AttentionSpec, Stack
from compute.kernels.native_args import StepArgs, layer_args
from compute.kernels.native_decode import decode_stack
from compute.kernels.torch_cpu import TorchKernels, attend_group, gather, window_of
from compute.kernels.torch_cpu import Window as TorchWindow
from compute.model.rope import RotaryTable

if TYPE_CHECKING:
    from compute.model.layer import Layer
    from compute.model.linear import Linear

DEFINES: Final = {torch.bfloat16: ("-DBFLOAT16",), torch.float32: ()}
GATES: Final = {"silu": 0, "gelu_tanh": 1}
MAX_STACK_FLOATS: Final = 65_536  # of one task's queries: G · D
LANES: Final = 16  # as in native.c: elements of a head that are taken at a time
MOST_GROUP: Final = 64  # as in native.c: query heads of one kv head


@dataclass(frozen=True, slots=True)
class Step:
    batch: Batch
    pool: Tensor
    pointer: Any  # of the StepArgs
    keep: tuple[Any, ...]  # what is pointed into
    angles: dict[RotaryTable, tuple[int, int]]  # addresses of cos and sin
    chunks: dict[int | None, list[TorchWindow]]
    decode: int


class NativeKernels:
    """See `interface.Kernels`. For one dtype, on the CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.torch = TorchKernels()
        self.library = library
        self.layers: dict[int, Any] = {}  # pointers to LayerArgs

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        return self._norm(None, x, weight, eps)

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._norm(x.data_ptr(), residual, weight, eps)

    def _norm(self, x: int | None, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(residual)
        rows, size = residual.shape
        self.library.add_norm(x, residual.data_ptr(), weight.data_ptr(), out.data_ptr(), rows, size, eps)
        return out

    def gated(self, product: "Linear", x: Tensor, activation: str) -> Tensor:
        return self.gate(product(x), activation)

    def gate(self, x: Tensor, activation: str) -> Tensor:
        kind = GATES.get(activation)
        if kind is None:
            return self.torch.gate(x, activation)
        rows, size = x.shape
        out = x.new_empty((rows, size // 2))
        self.library.gate(x.data_ptr(), out.data_ptr(), rows, size // 2, kind)
        return out

    def prepare(self, batch: Batch, pool: Tensor, specs: list[AttentionSpec]) -> Step:
        decode = batch.groups[0] if batch.groups[0].width == 1 else None
        chunks = [group for group in batch.groups if group is not decode]
        args = StepArgs(
            pool=pool.data_ptr(),
            layers=pool.shape[1],
            slots=pool.shape[4],
            tokens=batch.num_tokens,
            padded=len(batch.token_ids),
            write_blocks=batch.write_blocks.data_ptr(),
            write_slots=batch.write_slots.data_ptr(),
        )
        if decode is not None:
            args.decode, args.table_width = decode.tables.shape
            args.tables, args.lengths = decode.tables.ctypes.data, decode.lengths.ctypes.data
        turns = {rope: rope.rows(batch.positions, batch.limit) for rope in {spec.rope for spec in specs}}
        return Step(
            batch,
            pool,
            ctypes.byref(args),
            (args, decode, turns),
            {rope: (cos.data_ptr(), sin.data_ptr()) for rope, (cos, sin) in turns.items()},
            {
                kind: [window_of(group, kind, pool) for group in chunks]
                for kind in {spec.window for spec in specs}
            },
            int(args.decode),
        )

    def attend(self, spec: AttentionSpec, qkv: Tensor, step: Step) -> Tensor:
        cos, sin = step.angles[spec.rope]
        out = qkv.new_empty((qkv.shape[0], spec.num_heads * spec.head_dim))
        layer = self.layers.get(spec.layer) or self._layer(spec)
        self.library.attend(layer, step.pointer, qkv.data_ptr(), cos, sin, out.data_ptr())
        if step.decode < len(out):
            self._attend_chunks(spec, qkv, step, out)
        return out

    def _attend_chunks(self, spec: AttentionSpec, qkv: Tensor, step: Step, out: Tensor) -> None:
        """The tokens behind the decode rows: chunks, and padding, whose answers are zero."""
        out[step.decode :].zero_()
        q = qkv.view(len(qkv), -1, spec.head_dim)[:, : spec.num_heads]
        for window in step.chunks[spec.window]:
            attend_group(spec, q, gather(step.pool, spec, window), window, out)

    def stack(
        self, layers: Sequence["Layer"], next_norms: Sequence[Tensor], activation: str, eps: float
    ) -> Stack | None:
        return decode_stack(layers, next_norms, GATES.get(activation), eps)

    def _layer(self, spec: AttentionSpec) -> Any:
        return self.layers.setdefault(spec.layer, ctypes.byref(layer_args(spec)))


def attends(group: int, dim: int) -> bool:
    """Whether native.c can do heads of `dim` elements, `group` for each kv head: it checks neither."""
    return dim % LANES == 0 and group <= MOST_GROUP and group * dim <= MAX_STACK_FLOATS


@cache
def native_kernels(dtype: torch.dtype) -> ctypes.CDLL | None:
    """native.c for `dtype` with its signatures; None where it cannot be had."""
    if dtype not in DEFINES:
        return None
    found = library("native.c", *DEFINES[dtype])
    if found is None:
        return None
    pointer, count, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    found.add_norm.argtypes = (pointer, pointer, pointer, pointer, count, count, real)
    found.gate.argtypes = (pointer, pointer, count, count, count)
    found.attend.argtypes = (pointer, pointer, pointer, pointer, pointer, pointer)
    for name in ("add_norm", "gate", "attend"):
        getattr(found, name).restype = None
    return found
