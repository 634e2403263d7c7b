"""Steps of decode rows only, all layers in one call (decode.c), where every product of the model runs on AMX tiles.

The same arithmetic as layer by layer, to the last bit; what is saved is Python and the waking of threads between the
kernels: 2 ms of a 20 ms step at 16 rows of a 135M model, and of 12 ms alone.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compute.kernels.build import library
from compute.kernels.native_args import LayerArgs, layer_args
from compute.kernels.native_linear import TiledLinear, tiles

if TYPE_CHECKING:
    from compute.model.layer import Layer

POINTER, COUNT = ctypes.c_void_p, ctypes.c_int64


class ProductArgs(ctypes.Structure):
    """`Product` in decode.c."""

    _fields_ = [("weights", POINTER), ("bias", POINTER), ("outputs", COUNT), ("inputs", COUNT)]


class BlockArgs(ctypes.Structure):
    """`Block` in decode.c."""

    _fields_ = [
        ("attention", LayerArgs),
        *[(name, POINTER) for name in ("cos", "sin")],
        *[(name, ProductArgs) for name in ("qkv", "output", "gate_up", "down")],
        *[(name, POINTER) for name in ("post_attention_norm", "mlp_norm", "post_mlp_norm", "next_norm")],
    ]


class RoomArgs(ctypes.Structure):
    """`Rooms` in decode.c."""

    _fields_ = [
        (name, POINTER) for name in ("residual", "hidden", "qkv", "attended", "wide", "narrow", "added")
    ]


class DecodeStack:
    """See `interface.Stack`. `products`: of each layer, already known to be tiled."""

    def __init__(
        self, layers: Sequence["Layer"], next_norms: Sequence[Tensor], kind: int, eps: float, run: Any
    ) -> None:
        self.keep = (layers, next_norms)
        self.ropes = [layer.spec.rope for layer in layers]
        self.blocks = (BlockArgs * len(layers))(*map(block_args, layers, next_norms))
        first: Any = layers[0]
        self.widths = (first.qkv.outputs, first.output.inputs, first.gate_up.outputs, first.down.inputs)
        self.sizes = (first.qkv.inputs, first.down.inputs, kind, eps)
        self.run = run

    def takes(self, step: Any) -> bool:
        return bool(step.decode == step.batch.num_tokens)

    def __call__(self, h: Tensor, residual: Tensor, step: Any) -> Tensor:
        for block, rope in zip(self.blocks, self.ropes, strict=True):
            block.cos, block.sin = step.angles[rope]
        qkv, attended, wide, narrow = (h.new_empty((len(h), width)) for width in self.widths)
        attended[step.decode :].zero_()  # padding: nobody writes its answers
        added = torch.empty_like(h)
        rooms = RoomArgs(*(room.data_ptr() for room in (residual, h, qkv, attended, wide, narrow, added)))
        self.run(self.blocks, len(self.blocks), step.pointer, ctypes.byref(rooms), *self.sizes)
        return h


def block_args(layer: "Layer", next_norm: Tensor) -> BlockArgs:
    return BlockArgs(
        attention=layer_args(layer.spec),
        **{name: product_args(getattr(layer, name)) for name in ("qkv", "output", "gate_up", "down")},
        post_attention_norm=address(layer.post_attention_norm),
        mlp_norm=address(layer.mlp_norm),
        post_mlp_norm=address(layer.post_mlp_norm),
        next_norm=address(next_norm),
    )


def product_args(linear: TiledLinear) -> ProductArgs:
    return ProductArgs(*linear.arguments, linear.outputs, linear.inputs)


def address(weight: Tensor | None) -> int | None:
    return None if weight is None else weight.data_ptr()


def decode_stack(
    layers: Sequence["Layer"], next_norms: Sequence[Tensor], kind: int | None, eps: float
) -> DecodeStack | None:
    """None where a product is not tiled, the activation is not in C, or the library cannot be had."""
    products = [part for layer in layers for part in (layer.qkv, layer.output, layer.gate_up, layer.down)]
    if kind is None or not all(isinstance(product, TiledLinear) for product in products):
        return None
    found = decode_library()
    return None if found is None else DecodeStack(layers, next_norms, kind, eps, found.decode)


@cache
def decode_library() -> ctypes.CDLL | None:
    found = library("decode.c") if tiles() is not None else None
    if found is not None:
        found.decode.argtypes = (POINTER, COUNT, POINTER, POINTER, COUNT, COUNT, COUNT, ctypes.c_float)
        found.decode.restype = None
    return found
