"""One layer of the pool as kernels address it, and what every attention kernel accepts.

A block is one extent [layer][K,V][kv head][slot][dim]; its place is block · block_stride + layer_offset, in 64 bits.
With e4m3 [layer][K,V][kv head][slot] float32 scales stand behind it: an element's value is its number times the scale
of its row. FP8 formats: Micikevicius et al., arXiv 2209.05433; a row is scaled so that its largest is E4M3_MAX.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

HEAD_DIMS: Final = (32, 64, 80, 96, 128, 256)
BLOCK_SIZES: Final = (16, 32, 64, 128)
DTYPES: Final = (torch.bfloat16, torch.float16)
FP8: Final = torch.float8_e4m3fn
E4M3_MAX: Final = 448.0
SCALE_BYTES: Final = 4
MAX_BLOCK_ELEMENTS: Final = 2**31 - 1  # offsets within a block are 32 bits wide
LOG2_E: Final = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class KVLayer:
    """Layer `layer` of a pool [num_blocks, L, 2, K, block_size, D]; of e4m3 as `kvmanager.mapping.as_pool` makes it."""

    pool: Tensor
    layer: int

    def __post_init__(self) -> None:
        pool = self.pool
        check_pool(pool)
        require(
            pool.dtype in {*DTYPES, FP8},
            f"pool.dtype is {pool.dtype}, not bfloat16, float16 or float8_e4m3fn",
        )
        require(0 <= self.layer < pool.shape[1], f"layer {self.layer} is not below {pool.shape[1]}")
        require(self.head_dim in HEAD_DIMS, f"head_dim {self.head_dim} is not one of {HEAD_DIMS}")
        require(self.block_size in BLOCK_SIZES, f"block_size {self.block_size} is not one of {BLOCK_SIZES}")
        require(self.block_stride <= MAX_BLOCK_ELEMENTS, "a block has more than 2^31 - 1 elements")

    @property
    def kv_heads(self) -> int:
        return int(self.pool.shape[3])

    @property
    def block_size(self) -> int:
        return int(self.pool.shape[4])

    @property
    def head_dim(self) -> int:
        return int(self.pool.shape[5])

    @property
    def block_stride(self) -> int:
        """Elements from one block to the next."""
        return int(self.pool.stride(0))

    @property
    def layer_offset(self) -> int:
        """Elements from a block's start to this layer's keys."""
        return self.layer * int(self.pool.stride(1))

    @property
    def is_fp8(self) -> bool:
        return self.pool.dtype == FP8

    @property
    def scales(self) -> Tensor:
        """What kernels address scales from: this layer's of block 0 and on; the pool itself where it has none."""
        return scales_of(self.pool)[:, self.layer] if self.is_fp8 else self.pool

    @property
    def scale_stride(self) -> int:
        """Scales' places from one block to the next."""
        return self.block_stride // SCALE_BYTES if self.is_fp8 else 0

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether queries, keys and values computed in `dtype` go with this pool."""
        return dtype in DTYPES if self.is_fp8 else dtype == self.pool.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How a query's product with a key becomes a score: softcap · tanh(scale · q·k / softcap), or scale · q·k.

    A query at position p sees keys in (p - window, p]; None: all up to p.
    """

    scale: float
    softcap: float | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        require(self.softcap is None or self.softcap > 0, "softcap must be above 0")
        require(self.window is None or self.window > 0, "window must be above 0")

    @property
    def factor(self) -> float:
        """What q·k is multiplied by: into base 2 for exp2, or into tanh's argument."""
        return self.scale * LOG2_E if self.softcap is None else self.scale / self.softcap

    @property
    def cap(self) -> float:
        """The cap in base 2; 0 without one."""
        return 0.0 if self.softcap is None else self.softcap * LOG2_E


def require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def check_pool(pool: Tensor) -> None:
    """[blocks, L, 2, K, slots, D], dense; e4m3: blocks dense, and behind each its scales."""
    require(pool.dim() == 6, f"pool must be [blocks, L, 2, K, slots, D], not {tuple(pool.shape)}")
    if pool.dtype != FP8:
        require(pool.is_contiguous(), "pool must be contiguous")
        return
    _, layers, two, heads, slots, dim = pool.shape
    rows = layers * two * heads * slots
    dense = (two * heads * slots * dim, heads * slots * dim, slots * dim, dim, 1)
    require(pool.stride()[1:] == dense, "a pool of e4m3 must be contiguous within a block")
    require(
        pool.stride(0) >= rows * (dim + SCALE_BYTES),
        f"blocks of e4m3 are {pool.stride(0)} bytes apart, fewer than {rows * dim} and {rows} float32 scales",
    )
    words = (pool.stride(0), rows * dim, pool.storage_offset())
    require(all(at % SCALE_BYTES == 0 for at in words), "scales of e4m3 blocks must be aligned")


def scales_of(pool: Tensor) -> Tensor:
    """The scales [blocks, L, 2, K, slots] float32 of a pool of e4m3. No copy."""
    blocks, layers, _, heads, slots, dim = pool.shape
    end = (blocks - 1) * pool.stride(0) + layers * 2 * heads * slots * (dim + SCALE_BYTES)
    words = pool.view(torch.uint8).as_strided((end,), (1,)).view(torch.float32)
    return words.as_strided(
        (blocks, layers, 2, heads, slots),
        (pool.stride(0) // SCALE_BYTES, 2 * heads * slots, heads * slots, slots, 1),
        words.storage_offset() + layers * 2 * heads * slots * dim // SCALE_BYTES,
    )


def check_queries(q: Tensor, out: Tensor, kv: KVLayer) -> int:
    """q and out [T, H, D], heads and dims dense. Returns G."""
    require(
        q.dim() == 3 and q.shape[2] == kv.head_dim, f"q must be [T, H, {kv.head_dim}], not {tuple(q.shape)}"
    )
    require(out.shape == q.shape, f"out is {tuple(out.shape)}, q is {tuple(q.shape)}")
    for name, tensor in (("q", q), ("out", out)):
        require(tensor.stride()[1:] == (kv.head_dim, 1), f"the heads of {name} must be dense")
        require(kv.takes(tensor.dtype), f"{name}.dtype is {tensor.dtype}, the pool's is {kv.pool.dtype}")
    require(out.dtype == q.dtype, f"out.dtype is {out.dtype}, q.dtype is {q.dtype}")
    require(q.shape[1] % kv.kv_heads == 0, f"{q.shape[1]} query heads over {kv.kv_heads} kv heads")
    return int(q.shape[1]) // kv.kv_heads


def check_tables(tables: Tensor, lengths: Tensor) -> int:
    """tables [B, W] and lengths [B], int32. Returns B."""
    require(tables.dim() == 2 and tables.stride(1) == 1, "tables must be [B, W], its rows dense")
    require(tables.dtype == lengths.dtype == torch.int32, "tables and lengths must be int32")
    require(lengths.shape == tables.shape[:1], f"{tables.shape[0]} tables, lengths {tuple(lengths.shape)}")
    return int(tables.shape[0])
