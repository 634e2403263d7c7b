"""From q·k to a score in base 2, and the scales of e4m3 rows; shared by the attention kernels."""

from typing import Final

import triton
import triton.language as tl

from compute.kernels.gpu import layer

E4M3_MAX: Final = tl.constexpr(layer.E4M3_MAX)


@triton.jit
def base2_scores(products, factor, cap, HAS_CAP: tl.constexpr):
    """log2(e) · scale · q·k, or its soft-capped form (Gemma 2, arXiv 2408.00118, section 2): cap · tanh(x / cap)."""
    x = products * factor
    if HAS_CAP:
        x = cap * (1 - 2 / (1 + tl.exp2(x * 2.8853900817779268)))  # tanh by exp2: 2x · log2 e
    return x


@triton.jit
def load_scales(keys, values, at, there, IS_FP8: tl.constexpr):
    """Scales [N] float32 of keys and of values, 0 where there is no token; not loaded without e4m3.

    The values' are times E4M3_MAX, by which the answer is divided again: a probability times a mere scale would leave
    float16's range.
    """
    if IS_FP8:
        k_scale = tl.load(keys + at, mask=there, other=0.0)
        v_scale = tl.load(values + at, mask=there, other=0.0) * E4M3_MAX
    else:
        k_scale = at
        v_scale = at
    return k_scale, v_scale


@triton.jit
def scale_columns(x, scale, IS_FP8: tl.constexpr):
    """x [M, N] times scale [N]."""
    if IS_FP8:
        x *= scale[None, :]
    return x
