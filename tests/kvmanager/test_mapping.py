"""The pool as a torch tensor: the daemon's bytes themselves, in the layout's shape."""

import os

import pytest
import torch

from kvmanager.errors import Mismatch
from kvmanager.layout import Geometry, PoolLayout
from kvmanager.mapping import DTYPES, PoolMapping, as_pool
from kvmanager.memory import MemfdExporter


def pool(dtype="float32", blocks=6):
    layout = PoolLayout(Geometry(num_layers=2, num_kv_heads=3, head_dim=8, block_size=4, dtype=dtype))
    return layout, blocks, MemfdExporter().create("pool", blocks * layout.block_bytes, lambda: None)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_shape_and_dtype_are_the_layouts(dtype):
    layout, blocks, fd = pool(dtype)
    with PoolMapping(fd, layout, blocks) as mapping:
        assert mapping.pool.shape == (6, 2, 2, 3, 4, 8)
        assert mapping.pool.dtype == DTYPES[dtype]
        assert all(block.is_contiguous() for block in mapping.pool)
        assert mapping.pool.stride(0) * layout.itemsize == layout.block_bytes
        assert mapping.pool.is_contiguous() == (dtype != "float8_e4m3")
    os.close(fd)


def test_scales_stand_behind_a_block_s_elements_and_in_front_of_the_next_block():
    layout, blocks, fd = pool("float8_e4m3")
    with PoolMapping(fd, layout, blocks) as mapping:
        for block in mapping.pool:
            block.view(torch.uint8).fill_(0x38)
    extent = 2 * 2 * 3 * 4 * 8
    scales = bytes(4 * 2 * 2 * 3 * 4)
    assert os.pread(fd, blocks * layout.block_bytes, 0) == (b"8" * extent + scales) * blocks
    os.close(fd)


def test_a_view_starts_where_its_bytes_do():
    layout, blocks, fd = pool("float8_e4m3")
    os.close(fd)
    memory = torch.zeros(16 + blocks * layout.block_bytes, dtype=torch.uint8)[16:]
    assert as_pool(memory, layout, blocks).data_ptr() == memory.data_ptr()


def test_stores_reach_every_mapping_and_the_descriptor():
    layout, blocks, fd = pool()
    with PoolMapping(fd, layout, blocks) as mine, PoolMapping(fd, layout, blocks) as other:
        mine.pool[3, 1, 0, 2] = torch.arange(32.0).view(4, 8)
        assert torch.equal(other.pool[3, 1, 0, 2], torch.arange(32.0).view(4, 8))
        assert any(os.pread(fd, layout.block_bytes, 3 * layout.block_bytes))
        assert not any(os.pread(fd, layout.block_bytes, 2 * layout.block_bytes))
    os.close(fd)


def test_a_block_is_one_contiguous_extent():
    layout, blocks, fd = pool()
    with PoolMapping(fd, layout, blocks) as mapping:
        step = mapping.pool[1].data_ptr() - mapping.pool[0].data_ptr()
        assert step == layout.block_bytes
        assert mapping.pool[4].is_contiguous()
    os.close(fd)


def test_a_descriptor_of_another_size_is_a_mismatch():
    layout, blocks, fd = pool()
    with pytest.raises(Mismatch, match="expected"):
        PoolMapping(fd, layout, blocks + 1)
    os.close(fd)


def test_a_closed_mapping_is_closed_but_tensors_made_from_it_stay_readable():
    layout, blocks, fd = pool()
    mapping = PoolMapping(fd, layout, blocks)
    view = mapping.pool[2]
    view.fill_(3.0)
    mapping.close()
    mapping.close()
    with pytest.raises(ValueError, match="closed"):
        _ = mapping.pool
    os.close(fd)
    assert float(view.sum()) == 3.0 * view.numel()
    del view
    assert not [line for line in open("/proc/self/maps") if "holdfast-pool" in line]  # noqa: PTH123, SIM115
