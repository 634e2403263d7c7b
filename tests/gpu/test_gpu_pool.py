"""A pool in a real GPU's memory: made by one process, held by a descriptor, written by a second, read by a third.

PYTHONPATH=.:proto python3 -m pytest -m gpu tests/gpu -q -s
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu
pytest.importorskip("cuda.bindings.driver")

from compute.device import uuid_of  # noqa: E402 - only where CUDA's bindings are
from holdfast.v1 import kvmanager_pb2 as pb  # noqa: E402
from kvmanager.errors import NoMemory  # noqa: E402
from kvmanager.gpu_mapping import GUARD  # noqa: E402
from kvmanager.gpu_memory import GRANULE, LEGACY, VMM, allocation_bytes  # noqa: E402
from kvmanager.gpu_pools import GpuAllocators  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
NONCE = bytes(range(16))
ALLOCATION = allocation_bytes(2**31)  # of pool_child's pool
SLACK = 256 * 2**20  # what else may come and go on the device meanwhile


@pytest.fixture(scope="module", autouse=True)
def _modules_are_found_by_children():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "proto")]))
        yield


@pytest.fixture(scope="module")
def device():
    return uuid_of("cuda")


@pytest.fixture
def allocators():
    return GpuAllocators(contextlib.nullcontext)


@pytest.fixture(params=[VMM, LEGACY])
def made(request, allocators, device):
    """(exporter, descriptor) of a pool of 2 GiB."""
    memory = allocators.create(request.param, device, ALLOCATION, NONCE)
    yield request.param, memory.pool_fd
    os.close(memory.pool_fd)
    if memory.hold_fd is not None:
        allocators.let_go(memory.hold_fd)


def child(*arguments, fds=()):
    command = [sys.executable, "-m", "tests.gpu.pool_child", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, pass_fds=fds)


def answer(made, role, *arguments, nonce=NONCE):
    """What a process that maps the pool and does one thing says."""
    exporter, fd = made
    with child(role, fd, exporter, nonce.hex(), *arguments, fds=(fd,)) as process:
        return process.communicate(timeout=120)[0].strip()


def kill_while_it_computes(process):
    assert process.stdout.readline() == "written\n"
    time.sleep(1.0)  # kernels are queued and running
    process.send_signal(signal.SIGKILL)
    process.wait()


def eventually_free(allocators, device, least):
    deadline = time.monotonic() + 20
    while (free := allocators.facts(device).free) < least:
        assert time.monotonic() < deadline, f"{free} bytes free, expected {least}"
    return free


def test_the_facts_are_those_of_this_gpu(allocators, device):
    facts = allocators.facts(device)
    print(facts)
    assert 0 < facts.free <= facts.total
    assert facts.total > 2**33
    assert facts.major >= 8
    assert (facts.vmm, facts.legacy) == (1, 1)


def test_what_a_worker_wrote_outlives_its_sigkill_in_the_middle_of_a_kernel(made):
    exporter, fd = made
    with child("write", fd, exporter, NONCE.hex(), 77, 3.5, fds=(fd,)) as writer:
        kill_while_it_computes(writer)
    assert answer(made, "read", 77) == "3.5 3.5"
    assert answer(made, "read", 78) == "0.0 0.0"


def test_another_nonce_is_refused(made):
    assert answer(made, "read", 0, nonce=bytes(16)).startswith("Mismatch nonce:")


def test_a_descriptor_alone_keeps_the_memory_and_its_close_frees_it(allocators, device):
    before = allocators.facts(device).free
    started = time.perf_counter()
    memory = allocators.create(VMM, device, ALLOCATION, NONCE)
    print(f"allocator process, 2 GiB: {time.perf_counter() - started:.2f} s")
    time.sleep(2.0)  # nobody has it mapped, its creator is gone
    assert allocators.facts(device).free < before - ALLOCATION + SLACK
    assert answer((VMM, memory.pool_fd), "read", 5) == "0.0 0.0"
    os.close(memory.pool_fd)
    eventually_free(allocators, device, before - SLACK)


def test_a_legacy_allocation_is_freed_when_its_lifeline_is_let_go(allocators, device):
    before = allocators.facts(device).free
    memory = allocators.create(LEGACY, device, ALLOCATION, NONCE)
    assert allocators.facts(device).free < before - ALLOCATION + SLACK
    allocators.let_go(memory.hold_fd)
    eventually_free(allocators, device, before - SLACK)
    os.close(memory.pool_fd)


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (0, "stored"),
        (ALLOCATION - GRANULE, "stored"),  # the trailer's granule is memory
        (-1, "faulted"),
        (-GUARD, "faulted"),
        (ALLOCATION, "faulted"),
        (ALLOCATION + GUARD - 1, "faulted"),
    ],
)
def test_a_store_beyond_either_end_faults(allocators, device, offset, expected):
    memory = allocators.create(VMM, device, ALLOCATION, NONCE)
    assert answer((VMM, memory.pool_fd), "poke", offset) == expected
    assert answer((VMM, memory.pool_fd), "read", 9) == "0.0 0.0"  # another process is not hit by the fault
    os.close(memory.pool_fd)


def test_more_than_the_gpu_has_is_no_memory_with_the_numbers(allocators, device):
    for exporter in (VMM, LEGACY):
        with pytest.raises(NoMemory, match="free") as caught:
            allocators.create(exporter, device, 2**43, NONCE)
        assert 0 < int(caught.value.details["available"]) < 2**43


@pytest.mark.parametrize("way", ["vmm", "legacy"])
def test_the_service_keeps_a_gpu_pool_over_dead_workers_and_a_dead_daemon(allocators, device, way):
    pytest.importorskip("structlog")
    pytest.importorskip("pydantic")
    from tests.kvmanager.processes import Service, eventually

    before = allocators.facts(device).free
    with Service("--kv-memory", "2GiB", "--gpu-ipc", way) as service:
        with child("worker", service.path, "writer", "write", 77, 3.5) as writer:
            kill_while_it_computes(writer)
        eventually(lambda: not service.status().workers)
        lost, gone = service.log("worker lost")[-1], service.log("worker gone")[-1]
        print("seen dying", lost, "proven dead", gone)
        assert lost["reason"] == "its attachment closed"  # before the driver let its process end
        first = service.status()
        os.kill(first.pid, signal.SIGKILL)
        eventually(service.status, lambda status: status.pid != first.pid and status.pools)
        with child("worker", service.path, "reader", "read", 77) as reader:
            assert reader.communicate(timeout=120)[0] == "3.5 3.5\n"
        eventually(lambda: not service.status().workers)
        assert service.status().pools[0].exporter == f"cuda-{way}"
        service.ask(pb.DeletePoolRequest(pool=first.pools[0].name))
        eventually_free(allocators, device, before - SLACK)
