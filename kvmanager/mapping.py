"""The pool as torch sees it, in a worker. With `gpu_mapping` the only module of the KV manager that may import torch.

    with PoolMapping(attachment.pool_fd, layout, attachment.num_blocks) as mapping:
        mapping.pool        # [block, layer, K/V, kv head, slot, dim], no copy: stores are seen by every worker

Owns the mapping, not the descriptor. A GPU's memory is `gpu_mapping`'s.
"""

import math
import mmap
import os
from types import TracebackType
from typing import Final, Self

import torch

from kvmanager.errors import Mismatch
from kvmanager.layout import PoolLayout

DTYPES: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8_e4m3": torch.float8_e4m3fn,
}


def as_pool(memory: torch.Tensor, layout: PoolLayout, num_blocks: int) -> torch.Tensor:
    """A pool's bytes (uint8 [size], host or GPU) as blocks of shape `layout.shape(num_blocks)`. No copy.

    Blocks of float8_e4m3 are `layout.block_bytes` apart: the scales between them are not in the shape.
    """
    shape = layout.shape(num_blocks)
    elements = memory.view(DTYPES[layout.dtype])
    within = [math.prod(shape[axis + 1 :]) for axis in range(1, len(shape))]
    strides = (layout.block_bytes // layout.itemsize, *within)
    return elements.as_strided(shape, strides, elements.storage_offset())


class Mapping:
    """A view of a pool, until it is closed."""

    _pool: torch.Tensor | None

    @property
    def pool(self) -> torch.Tensor:
        """All blocks, of shape `layout.shape(num_blocks)`."""
        if self._pool is None:
            raise ValueError("the pool mapping is closed")
        return self._pool

    def close(self) -> None:
        """Gives up this view. The memory is unmapped when the last tensor made from it is gone."""
        self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PoolMapping(Mapping):
    """Maps a pool of `num_blocks` blocks, readable and writable. Mismatch if the descriptor's size is another."""

    def __init__(self, fd: int, layout: PoolLayout, num_blocks: int) -> None:
        expected = num_blocks * layout.block_bytes
        if (found := os.fstat(fd).st_size) != expected:
            raise Mismatch(
                f"pool of {found} bytes, expected {expected}: {num_blocks} blocks of {layout.block_bytes}",
                found=found,
                expected=expected,
            )
        memory = mmap.mmap(fd, expected, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        flat = torch.frombuffer(memory, dtype=torch.uint8)
        self._pool = as_pool(flat, layout, num_blocks)
