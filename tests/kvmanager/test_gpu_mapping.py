"""A worker's view of GPU memory, over the fake GPU: zero copy, guarded, and only of the pool that was meant."""

import gc
import os
from pathlib import Path

import pytest
import torch

from kvmanager.errors import Mismatch, Unavailable
from kvmanager.gpu_driver import DriverError
from kvmanager.gpu_mapping import GUARD, GpuPoolMapping, Span
from kvmanager.gpu_memory import LEGACY, VMM, allocation_bytes, encode_handle
from kvmanager.layout import Geometry, PoolLayout
from kvmanager.memory import sealed_file
from tests.support.fake_gpu import UUID, FakeGpu, host_bytes

LAYOUT = PoolLayout(Geometry(num_layers=2, num_kv_heads=3, head_dim=8, block_size=4, dtype="float32"))
BLOCKS = 6
NONCE = bytes(range(16))
SIZE = allocation_bytes(BLOCKS * LAYOUT.block_bytes)


@pytest.fixture(params=[VMM, LEGACY])
def made(request):
    """(exporter, descriptor) of a pool as an allocator leaves it."""
    driver = FakeGpu()
    if request.param == VMM:
        handle = driver.create(SIZE)
        os.pwrite(handle, NONCE, SIZE - 16)
        fd = driver.export(handle)
        driver.release(handle)
        yield VMM, fd
    else:
        address = driver.allocate(SIZE)
        driver.write(address + SIZE - 16, NONCE)
        fd = sealed_file("t", encode_handle(driver.share(address), SIZE))
        yield LEGACY, fd
        driver.deallocate(address)
    os.close(fd)


def mapping(made, **changes):
    given = {"device": UUID, "exporter": made[0], "nonce": NONCE, "allocation": SIZE, "driver": FakeGpu()}
    given |= {"as_bytes": host_bytes} | changes
    return GpuPoolMapping(made[1], LAYOUT, BLOCKS, **given)


def test_stores_reach_every_mapping(made):
    with mapping(made) as mine, mapping(made) as other:
        assert mine.pool.shape == LAYOUT.shape(BLOCKS)
        mine.pool[3, 1, 0, 2] = torch.arange(32.0).view(4, 8)
        assert torch.equal(other.pool[3, 1, 0, 2], torch.arange(32.0).view(4, 8))
        assert not other.pool[4].any()


def test_a_tensor_keeps_the_memory_and_the_last_one_lets_it_go(made):
    before = mapped_fakes()
    first = mapping(made)
    view = first.pool[2]
    first.close()
    with pytest.raises(ValueError, match="closed"):
        _ = first.pool
    del first
    gc.collect()
    view.fill_(3.0)
    assert mapped_fakes() == before + 1
    del view
    gc.collect()
    assert mapped_fakes() == before


def mapped_fakes():
    return sum("fake-gpu" in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_memory_with_another_nonce_is_another_pools(made):
    before = mapped_fakes()
    with pytest.raises(Mismatch, match="nonce"):
        mapping(made, nonce=bytes(16))
    gc.collect()
    assert mapped_fakes() == before


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"allocation": SIZE + 1}, Mismatch, f"pool of {SIZE + 1} bytes of GPU memory, expected {SIZE}"),
        ({"device": UUID.replace("4", "5")}, Unavailable, f"visible: {UUID}"),
        ({"exporter": "cuda-fabric"}, Mismatch, "this worker maps memfd, cuda-vmm, cuda-legacy"),
    ],
)
def test_what_does_not_fit_is_named(made, changes, error, words):
    with pytest.raises(error, match=words):
        mapping(made, **changes)


def test_a_descriptor_of_something_else_is_refused():
    for exporter, error in ((VMM, Unavailable), (LEGACY, Mismatch)):
        fd = sealed_file("t", bytes(4096))
        with pytest.raises(error):
            mapping((exporter, fd))
        os.close(fd)


def test_a_pool_shared_by_an_allocator_that_is_gone_says_so():
    handle = (2**22 - 1).to_bytes(8, "little").ljust(64, b"\0")
    fd = sealed_file("t", encode_handle(handle, SIZE))
    with pytest.raises(Unavailable, match="CUDA_ERROR_INVALID_HANDLE; the pool is shared as cuda-legacy"):
        mapping((LEGACY, fd))
    os.close(fd)


def test_both_ends_are_guarded_by_addresses_without_memory():
    driver = FakeGpu()
    fd = driver.create(SIZE)
    os.pwrite(fd, NONCE, SIZE - 16)
    with mapping((VMM, fd), driver=driver) as guarded:
        start = guarded.pool.data_ptr()
        assert protection(start - GUARD) == protection(start - 1) == "---p"
        assert protection(start) == protection(start + SIZE - 1) == "rw-s"
        assert protection(start + SIZE) == protection(start + SIZE + GUARD - 1) == "---p"
    os.close(fd)


def protection(address):
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= address < end:
            return line.split()[1]
    return None


def test_a_mapping_that_fails_gives_its_addresses_back():
    driver = FakeGpu()
    fd = driver.create(SIZE)
    ranges = []

    class NoRoom(FakeGpu):
        def map(self, address, size, handle):
            raise DriverError("cuMemMap", "CUDA_ERROR_OUT_OF_MEMORY")

        def unreserve(self, address, size):
            ranges.append(size)
            super().unreserve(address, size)

    with pytest.raises(Unavailable, match="cuMemMap failed with CUDA_ERROR_OUT_OF_MEMORY"):
        mapping((VMM, fd), driver=NoRoom())
    assert ranges == [SIZE + 2 * GUARD]
    os.close(fd)


def test_torch_is_offered_bytes_at_the_address():
    class At:
        address, index = 1 << 40, 0

    memory = At()
    span = Span(memory, 100)
    assert span.__cuda_array_interface__["data"] == (1 << 40, False)
    assert span.__cuda_array_interface__["shape"] == (100,)
    assert span.memory is memory
