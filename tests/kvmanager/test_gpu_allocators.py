"""Allocator processes as the daemon starts them: answers, refusals, silence, and what is left behind."""

import contextlib
import os
import sys
import time

import pytest

from kvmanager import gpu_pools
from kvmanager.errors import NoMemory, Unavailable
from kvmanager.gpu_memory import GRANULE, LEGACY, VMM, decode_handle, nonce_at
from kvmanager.gpu_pools import GpuAllocators
from tests.kvmanager.processes import eventually
from tests.support.fake_gpu import UUID, used_bytes
from tests.support.gpu_pool import PATHS

NONCE = bytes(range(16))
SIZE = 4 * GRANULE
GPU = 77


@pytest.fixture(autouse=True)
def _gpu(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PATHS)
    monkeypatch.setenv("FAKE_GPU", f"id={GPU},total={16 * GRANULE}")


def allocators(module="tests.support.gpu_allocator"):
    return GpuAllocators(contextlib.nullcontext, module)


def open_fds():
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_a_device_is_described_by_what_was_tried_on_it(monkeypatch):
    facts = allocators().facts(UUID)
    assert (facts.total, facts.free) == (16 * GRANULE, 16 * GRANULE)
    assert (facts.major, facts.minor, facts.vmm, facts.legacy) == (9, 0, 1, 1)
    monkeypatch.setenv("FAKE_GPU", f"id={GPU},granule={2 * GRANULE},legacy=0")
    facts = allocators().facts(UUID)
    assert (facts.vmm, facts.legacy) == (0, 0)


def test_memory_is_zero_but_for_the_nonce_and_lives_by_its_descriptor_alone():
    before = open_fds()
    memory = allocators().create(VMM, UUID, SIZE, NONCE)
    assert memory.hold_fd is None
    assert os.fstat(memory.pool_fd).st_size == SIZE
    assert os.pread(memory.pool_fd, 16, nonce_at(SIZE)) == NONCE
    assert not any(os.pread(memory.pool_fd, GRANULE, 0))
    assert used_bytes(GPU) == SIZE
    os.close(memory.pool_fd)
    assert used_bytes(GPU) == 0
    assert open_fds() == before


def test_a_legacy_allocation_lives_until_its_lifeline_is_let_go():
    before = open_fds()
    gpus = allocators()
    memory = gpus.create(LEGACY, UUID, SIZE, NONCE)
    assert decode_handle(os.pread(memory.pool_fd, 4096, 0))[1] == SIZE
    assert used_bytes(GPU) == SIZE
    copy = os.dup(memory.hold_fd)  # as the keeper has one
    gpus.let_go(memory.hold_fd)
    assert used_bytes(GPU) == 0
    os.close(copy)
    os.close(memory.pool_fd)
    assert open_fds() == before


def test_a_lifeline_whose_holders_die_ends_the_allocator():
    memory = allocators().create(LEGACY, UUID, SIZE, NONCE)
    os.close(memory.hold_fd)
    os.close(memory.pool_fd)
    eventually(lambda: used_bytes(GPU) == 0)


@pytest.mark.parametrize("exporter", [VMM, LEGACY])
def test_more_than_there_is_names_both_numbers_and_the_flags(exporter):
    with pytest.raises(NoMemory, match="lower --gpu-memory-utilization or --kv-memory") as caught:
        allocators().create(exporter, UUID, 17 * GRANULE, NONCE)
    assert caught.value.details == {
        "asked": str(17 * GRANULE),
        "available": str(16 * GRANULE),
        "total": str(16 * GRANULE),
    }
    assert used_bytes(GPU) == 0


def test_the_real_one_says_what_is_missing_on_a_machine_without_a_gpu():
    if os.path.exists("/dev/nvidiactl"):  # noqa: PTH110
        pytest.skip("there is a GPU")
    with pytest.raises(Unavailable, match=r"cuda-bindings is not installed|no NVIDIA driver here"):
        allocators(gpu_pools.MODULE).facts(UUID)


def test_a_process_that_ends_or_stays_silent_is_an_error_within_the_bound(tmp_path, monkeypatch):
    (tmp_path / "ends.py").write_text("")
    (tmp_path / "sleeps.py").write_text("import time; time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(Unavailable, match="ended without an answer"):
        allocators("ends").facts(UUID)
    monkeypatch.setattr(gpu_pools, "ANSWER_BOUND_S", 0.5)
    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"did not answer within 0\.5 s"):
        allocators("sleeps").create(LEGACY, UUID, SIZE, NONCE)
    assert time.monotonic() - started < 10


def test_a_daemon_that_is_stopped_meanwhile_leaves_no_process(tmp_path, monkeypatch):
    (tmp_path / "sleeps.py").write_text("import time; time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    started = []
    monkeypatch.setattr(gpu_pools, "python", lambda: (sys.executable, "-P", "-m"))

    @contextlib.contextmanager
    def stopped():
        raise KeyboardInterrupt
        yield

    real = GpuAllocators._start
    monkeypatch.setattr(GpuAllocators, "_start", lambda *a: started.append(real(*a)) or started[-1])
    with pytest.raises(KeyboardInterrupt):
        GpuAllocators(stopped, "sleeps").facts(UUID)
    assert started[0].returncode == -9
