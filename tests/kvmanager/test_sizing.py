"""How many blocks: each number that a user, a device or another pool brings, and the bounds."""

import pytest

from kvmanager.config import KvManagerSettings
from kvmanager.errors import NoMemory, PoolTooSmall, Unavailable
from kvmanager.gpu_memory import (
    GRANULE,
    LEGACY,
    VMM,
    DeviceFacts,
    allocation_bytes,
    pool_bytes_within,
)
from kvmanager.layout import Geometry, PoolLayout
from kvmanager.sizing import exporter_of, gpu_plan, wanted_bytes

GIB = 2**30
LLAMA_8B = PoolLayout(Geometry(num_layers=32, num_kv_heads=8, head_dim=128, block_size=16, dtype="bfloat16"))
H200 = DeviceFacts(total=140 * GIB, free=139 * GIB, major=9, minor=0, vmm=1, legacy=1)
PEAK = 18 * GIB


def settings(**flags):
    return KvManagerSettings(run_dir="/run/holdfast", **flags)


def blocks(facts=H200, peak=PEAK, others=0, **flags):
    return gpu_plan(LLAMA_8B, settings(**flags), facts, peak, others).num_blocks


def within(bytes_left):
    """Blocks of an allocation of so many bytes, the trailer's granule taken off."""
    return (bytes_left - GRANULE) // LLAMA_8B.block_bytes


def test_a_share_is_what_workers_and_other_pools_leave():
    assert LLAMA_8B.block_bytes == GRANULE
    assert blocks() == within(126 * GIB - 2 * PEAK)
    assert blocks(max_workers=1) == within(126 * GIB - PEAK)
    assert blocks(gpu_memory_utilization=0.5) == within(70 * GIB - 2 * PEAK)
    assert blocks(others=30 * GIB) == within(126 * GIB - 2 * PEAK - 30 * GIB)


def test_it_is_never_more_than_what_is_free_less_what_is_set_aside():
    crowded = DeviceFacts(total=140 * GIB, free=60 * GIB, major=9, minor=0, vmm=1, legacy=1)
    assert blocks(crowded) == within(60 * GIB - 2 * PEAK)
    with pytest.raises(NoMemory, match="lower --kv-memory or --max-workers") as caught:
        blocks(crowded, kv_memory=30 * GIB)
    assert int(caught.value.details["available"]) == 24 * GIB


def test_a_given_size_wins_over_the_share():
    assert blocks(kv_memory=10 * GIB) == 10 * GIB // LLAMA_8B.block_bytes
    assert blocks(num_blocks_override=33) == 33
    assert wanted_bytes(LLAMA_8B, settings(num_blocks_override=33), PEAK) == 34 * GRANULE + 2 * PEAK
    assert wanted_bytes(LLAMA_8B, settings(), PEAK) is None


def test_too_small_is_said_with_all_the_numbers():
    with pytest.raises(PoolTooSmall) as caught:
        blocks(peak=63 * GIB, others=GRANULE)
    for number in (H200.total, H200.free, 126 * GIB, GRANULE, LLAMA_8B.block_bytes, "0.9", "2 workers"):
        assert str(number) in caught.value.message


@pytest.mark.parametrize(
    ("vmm", "legacy", "wish", "expected"),
    [(1, 1, "auto", VMM), (0, 1, "auto", LEGACY), (1, 1, "legacy", LEGACY), (1, 0, "vmm", VMM)],
)
def test_the_best_way_that_works_or_the_one_that_is_forced(vmm, legacy, wish, expected):
    assert exporter_of(DeviceFacts(1, 1, 9, 0, vmm, legacy), wish) == expected


@pytest.mark.parametrize(("vmm", "legacy", "wish"), [(0, 0, "auto"), (0, 1, "vmm"), (1, 0, "legacy")])
def test_a_way_that_does_not_work_is_refused(vmm, legacy, wish):
    with pytest.raises(Unavailable, match=f"--gpu-ipc {wish}"):
        exporter_of(DeviceFacts(1, 1, 9, 0, vmm, legacy), wish)


@pytest.mark.parametrize("size", [0, 1, GRANULE - 1, GRANULE, GRANULE + 1, 7 * GRANULE])
def test_an_allocation_is_whole_granules_and_one_more(size):
    allocation = allocation_bytes(size)
    assert allocation % GRANULE == 0
    assert size + GRANULE <= allocation < size + 2 * GRANULE
    assert size <= pool_bytes_within(allocation) < size + GRANULE
    assert pool_bytes_within(allocation - 1) < size or size == 0
