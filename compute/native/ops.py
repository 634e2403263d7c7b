"""The native kernels as functions over torch tensors. Callers ask `available(dtype)` first.

Pointers are taken per call, so tensors must be contiguous and stay alive for the call; launchers check shapes, the
kernels do not.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compute.native.build import library

SUFFIX = {torch.bfloat16: "bf16", torch.float32: "f32"}
MAX_DIM, MAX_GROUP = 256, 64  # as in kernels.c


class Shape(ctypes.Structure):
    """As in kernels.c."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("rows", "q_heads", "kv_heads", "dim")),
        *((name, ctypes.c_int32) for name in ("block_size", "table_stride", "window")),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("block_stride", ctypes.c_int64),
    ]


def available(dtype: torch.dtype) -> bool:
    return dtype in SUFFIX and library() is not None


def function(name: str, dtype: torch.dtype) -> Any:
    """The kernel of this storage type; callers know that it is available."""
    loaded = library()
    assert loaded is not None
    return getattr(loaded, f"{name}_{SUFFIX[dtype]}")


Rope = tuple[Tensor, Tensor]  # cos, sin of each row's position: [rows, dim / 2] float32


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """Where each row's slots are. tables: [rows, n] int32 block ids. positions: [rows] int32 of the new token."""

    tables: Tensor
    positions: Tensor


@dataclass(frozen=True, slots=True)
class Decode:
    """RoPE, KV write and attention for decode rows of one model layer shape, over one pool.

    pool: [blocks, layers, 2, kv heads, block size, dim], storage type bf16 or f32.
    """

    pool: Tensor
    q_heads: int
    scale: float
    softcap: float = 0.0

    def fits(self) -> bool:
        kv_heads, dim = self.pool.shape[3], self.pool.shape[5]
        small = dim <= MAX_DIM and dim % 16 == 0 and self.q_heads // kv_heads <= MAX_GROUP
        return small and self.pool.is_contiguous() and available(self.pool.dtype)

    def __call__(self, layer: int, qkv: Tensor, rope: Rope, rows: DecodeRows, window: int = 0) -> Tensor:
        """qkv: [rows, (q heads + 2 kv heads) * dim] before RoPE. Writes K and V of each row into its slot; returns
        [rows, q heads * dim]. `window` > 0: a row sees that many slots, itself included."""
        cos, sin = rope
        _, _, _, kv_heads, block_size, dim = self.pool.shape
        tables, positions = rows.tables, rows.positions
        out = torch.empty(qkv.shape[0], self.q_heads * dim, dtype=qkv.dtype)
        shape = Shape(
            qkv.shape[0], self.q_heads, kv_heads, dim, block_size, tables.shape[1], window,
            self.scale, self.softcap, self.pool.stride(0),
        )  # fmt: skip
        layer_pointer = self.pool.data_ptr() + layer * self.pool.stride(1) * self.pool.element_size()
        function("decode", qkv.dtype)(
            ctypes.byref(shape),
            pointer(qkv),
            pointer(cos),
            pointer(sin),
            ctypes.c_void_p(layer_pointer),
            pointer(tables),
            pointer(positions),
            pointer(out),
        )
        return out


def add_rms_norm(
    x: Tensor | None, residual: Tensor, weight: Tensor, eps: float, offset: float = 0.0
) -> Tensor:
    """residual += x in place (if given); returns rms_norm(residual) * (weight + offset). x, residual: [rows, width]."""
    out = torch.empty_like(residual)
    rows, width = residual.shape
    function("add_rms_norm", residual.dtype)(
        rows,
        width,
        None if x is None else pointer(x),
        pointer(residual),
        pointer(weight),
        ctypes.c_float(offset),
        ctypes.c_float(eps),
        pointer(out),
    )
    return out


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [rows, 2 * width], gate first; [rows, width]."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, width, dtype=gate_up.dtype)
    function("silu_mul", gate_up.dtype)(rows, width, pointer(gate_up), pointer(out))
    return out


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
