"""y = x·Wᵀ + b, by the fastest way that this device and library have.

On a GPU: `kernels.gpu.linear`. On the CPU: AMX tiles where the CPU has them (`kernels.native_linear`, bfloat16), else
oneDNN with weights in a blocked layout of its own; both reorder the weights once, at load time. oneDNN's operators are
not public API of torch, so they are tried on a small matrix first; without them F.linear serves.
"""

from collections.abc import Callable
from functools import cache
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from compute.kernels.native_linear import tiled

Linear = Callable[[Tensor], Tensor]  # [T, in] → [T, out]

PACK_ROWS: Final = 16  # the batch oneDNN optimises the layout for; 1..512 rows run well with it
PACKED_DTYPES: Final = (torch.bfloat16, torch.float32)


class PlainLinear:
    """Weights as they are: [out, in]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class PackedLinear:
    """Weights in oneDNN's layout; the plain ones are not kept."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACK_ROWS)
        self.bias = bias
        self.run = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self.run(x, self.packed, self.bias, "none", [], "")
        return y


@cache
def packing_works(dtype: torch.dtype) -> bool:
    """Whether this build of torch packs and multiplies `dtype` correctly."""
    if dtype not in PACKED_DTYPES or not torch._C._has_mkldnn:
        return False
    x = (torch.arange(4 * 32) % 7 - 3).to(dtype).view(4, 32)
    weight = (torch.arange(16 * 32) % 5 - 2).to(dtype).view(16, 32)
    try:
        return torch.equal(PackedLinear(weight, None)(x), F.linear(x, weight))
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return False


def make_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The best Linear for weight [out, in] where it lies."""
    if weight.device.type == "cuda":
        from compute.kernels.gpu.linear import GpuLinear  # noqa: PLC0415 - Triton comes with CUDA's torch alone

        return GpuLinear(weight, bias)
    fast = tiled(weight, bias)
    if fast is not None:
        return fast
    return PackedLinear(weight, bias) if packing_works(weight.dtype) else PlainLinear(weight, bias)
