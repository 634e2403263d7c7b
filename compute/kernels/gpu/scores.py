"""From q·k to a score in base 2, shared by the attention kernels."""

import triton
import triton.language as tl


@triton.jit
def base2_scores(products, factor, cap, HAS_CAP: tl.constexpr):
    """log2(e) · scale · q·k, or its soft-capped form (Gemma 2, arXiv 2408.00118, section 2): cap · tanh(x / cap)."""
    x = products * factor
    if HAS_CAP:
        x = cap * (1 - 2 / (1 + tl.exp2(x * 2.8853900817779268)))  # tanh by exp2: 2x · log2 e
    return x
