"""Linear layers in bfloat16 by AMX tiles (linear.c), where the CPU and a compiler have them."""

import ctypes
from functools import cache
from typing import Final

import torch
from torch import Tensor

from compute.kernels.build import library

GRID: Final = 32  # of both sizes of a weight


class TiledLinear:
    """Weights packed for linear.c; the plain ones are not kept."""

    def __init__(self, weight: Tensor, bias: Tensor | None, run: ctypes.CDLL) -> None:
        self.outputs, self.inputs = weight.shape
        tiles = weight.reshape(self.outputs // 16, 16, self.inputs // 32, 16, 2)
        self.packed = tiles.permute(0, 2, 3, 1, 4).contiguous()  # [N/16, K/32, pair, output, 2]
        self.bias = None if bias is None else bias.contiguous()
        self.arguments = (self.packed.data_ptr(), None if self.bias is None else self.bias.data_ptr())
        self.run = run.linear

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        rows = x.shape[0]
        y = x.new_empty((rows, self.outputs))
        self.run(x.data_ptr(), *self.arguments, y.data_ptr(), rows, self.outputs, self.inputs)
        return y


@cache
def tiles() -> ctypes.CDLL | None:
    """linear.c, if this process may use AMX."""
    found = library("linear.c")
    if found is None or found.linear_ready() != 0:
        return None
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    found.linear.argtypes = (pointer, pointer, pointer, pointer, count, count, count)
    found.linear.restype = None
    return found


def tiled(weight: Tensor, bias: Tensor | None) -> TiledLinear | None:
    """A TiledLinear for weight [out, in], or None where it does not apply."""
    fits = weight.dtype == torch.bfloat16 and weight.shape[0] % GRID == 0 and weight.shape[1] % GRID == 0
    found = tiles() if fits else None
    return None if found is None else TiledLinear(weight, bias, found)
