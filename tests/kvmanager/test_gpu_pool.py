"""Pools on a GPU end to end, over a fake one: allocator, keeper, daemon and workers are real processes."""

import contextlib
import os
import signal

import pytest

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.client import attach
from kvmanager.errors import Invalid, NoMemory, PoolTooSmall, Unavailable
from kvmanager.gpu_memory import LEGACY, VMM
from kvmanager.keeper_link import KeeperLink
from tests.kvmanager.processes import PATIENCE_S, Worker, attach_spec, eventually
from tests.support.fake_gpu import UUID
from tests.support.gpu_pool import GpuService

MIB = 2**20


def killed_writer(service, value, model="tiny"):
    """Another process writes block 3 and is killed; returns once the daemon has seen the end of it."""
    with service.worker("write", "3", value, model=model) as (said, process):
        assert said == "written"
        process.kill()
    eventually(lambda: not service.status().workers)


def read(service, block):
    """What another new process finds in a block."""
    with service.worker("read", str(block)) as (said, _):
        return said


@pytest.mark.parametrize("exporter", [VMM, pytest.param(LEGACY, marks=pytest.mark.full)])
@pytest.mark.chaos
def test_what_a_killed_worker_wrote_outlives_it_the_allocator_and_the_daemon(exporter):
    with GpuService("--kv-memory=4MiB", f"--gpu-ipc={exporter.removeprefix('cuda-')}") as service:
        killed_writer(service, "7")
        assert len(service.allocators()) == (exporter == LEGACY)
        first = service.status()
        assert (first.pools[0].exporter, first.pools[0].device) == (exporter, UUID)
        os.kill(first.pid, signal.SIGKILL)
        second = eventually(service.status, lambda status: status.pid != first.pid and status.pools)
        assert second.boot_epoch == first.boot_epoch + 1
        assert (read(service, 3), read(service, 4)) == ("7.0", "0.0")
        eventually(lambda: not service.status().workers)
        assert service.used_bytes() > 4 * MIB
        assert service.fsck() == []
        assert service.ask(pb.DeletePoolRequest(pool=first.pools[0].name)).freed_bytes > 4 * MIB
        eventually(lambda: not service.used_bytes() and not service.allocators())
        assert read(service, 3) == "0.0"  # a new pool


@pytest.mark.full
def test_a_legacy_allocator_ends_with_the_keeper():
    with GpuService("--kv-memory=4MiB", "--gpu-ipc=legacy") as service:
        killed_writer(service, "1")
        assert service.allocators()
        service.process.terminate()
        assert service.process.wait(PATIENCE_S) == 0
        eventually(lambda: not service.used_bytes())


@pytest.mark.full
def test_a_legacy_pool_whose_allocator_is_gone_is_shared_no_more():
    with GpuService("--kv-memory=4MiB", "--gpu-ipc=legacy") as service:
        with service.worker("write", "3", "5") as (said, _):
            assert said == "written"
            (allocator,) = service.allocators()
            os.kill(allocator, signal.SIGKILL)
            assert "Unavailable" in eventually(lambda: read(service, 3), lambda said: "legacy IPC" in said)
        eventually(lambda: not service.status().workers)
        assert read(service, 3) == "0.0"  # nobody had it any more: a new one
        assert service.log("pool dropped")[-1]["reason"] == "unused, and its allocator is gone"


@pytest.mark.full
def test_a_restarted_daemon_drops_a_legacy_pool_whose_memory_is_gone():
    with GpuService("--kv-memory=4MiB", "--gpu-ipc=legacy") as service:
        killed_writer(service, "5")
        first = service.status().pid
        os.kill(service.process.pid, signal.SIGSTOP)  # the keeper: no new daemon before the allocator is gone
        os.kill(first, signal.SIGKILL)
        os.kill(service.allocators()[0], signal.SIGKILL)
        os.kill(service.process.pid, signal.SIGCONT)
        status = eventually(service.status, lambda status: status.pid != first)
        assert not status.pools
        with contextlib.closing(KeeperLink(service.sockets.keeper)) as keeper:
            assert not [name for name in keeper.names() if name.startswith(("pool.", "meta.", "hold."))]


@pytest.mark.full
def test_auto_takes_what_works():
    with GpuService("--kv-memory=4MiB", gpu="vmm=0") as service:
        assert read(service, 1) == "0.0"
        assert service.status().pools[0].exporter == LEGACY
    with GpuService("--kv-memory=4MiB") as service:
        assert read(service, 1) == "0.0"
        assert service.status().pools[0].exporter == VMM


def refusal(service, error, **changes):
    with pytest.raises(error) as caught:
        attach(service.sockets, attach_spec(service.sockets, **({"device": UUID} | changes)), PATIENCE_S)
    return caught.value


@pytest.mark.full
def test_what_cannot_be_had_is_refused_with_the_reason():
    with GpuService("--gpu-ipc=vmm", gpu=f"total={64 * MIB},vmm=0") as service:
        other = UUID.replace("4", "5")
        assert "expected cpu or a GPU" in refusal(service, Invalid, device="cuda:0").message
        assert (
            refusal(service, Unavailable, device=other).message == f"device: no {other} here; visible: {UUID}"
        )
        small = refusal(service, Unavailable)
        assert small.message.startswith("--gpu-ipc vmm:")
        assert small.message.endswith("what works here: legacy")
        assert service.used_bytes() == 0
    with GpuService(gpu="mps=1") as service:
        assert "MPS" in refusal(service, Unavailable).message
    with GpuService(gpu=f"total={64 * MIB}") as service:
        error = refusal(service, PoolTooSmall, peak_bytes=29 * MIB)
        for word in (64 * MIB, 2 * 29 * MIB, "--gpu-memory-utilization 0.9", "--max-workers", "0 blocks"):
            assert str(word) in error.message


def test_more_than_is_free_is_no_memory_with_both_numbers():
    with GpuService("--kv-memory=60MiB", gpu=f"total={64 * MIB}") as service:
        error = refusal(service, NoMemory, peak_bytes=2 * MIB)
        assert int(error.details["asked"]) == 62 * MIB
        assert int(error.details["available"]) == 60 * MIB
        assert service.used_bytes() == 0


@pytest.mark.full
def test_the_share_of_the_gpu_is_what_workers_and_other_pools_leave():
    with GpuService("--gpu-memory-utilization=0.5", gpu=f"total={128 * MIB}") as service:
        with Worker(service.sockets, device=UUID, peak_bytes=4 * MIB) as worker:
            # half of 128, less 2 x 4 set aside, less the trailer's granule
            assert worker.attachment.pool_bytes == worker.attachment.num_blocks * 8192 == 54 * MIB
            assert worker.attachment.allocation_bytes == service.used_bytes() == 56 * MIB
            other = attach_spec(service.sockets, device=UUID, model="b", worker_id="b", peak_bytes=4 * MIB)
            with pytest.raises(PoolTooSmall, match=f"{56 * MIB} of other pools"):
                attach(service.sockets, other, PATIENCE_S)


@pytest.mark.full
def test_a_third_worker_of_a_gpu_pool_is_one_too_many():
    with GpuService("--kv-memory=4MiB") as service:
        workers = [Worker(service.sockets, device=UUID, worker_id=f"w{n}") for n in range(2)]
        with pytest.raises(Exception, match="--max-workers 2 are attached"):
            Worker(service.sockets, device=UUID, worker_id="w2")
        for worker in workers:
            worker.close()


@pytest.mark.full
def test_an_idle_pool_of_the_same_gpu_makes_room_and_one_of_the_host_does_not():
    with GpuService("--kv-memory=24MiB", gpu=f"total={64 * MIB}") as service:
        with service.worker("write", "3", "1", model="one"), service.worker("write", "3", "1", model="two"):
            eventually(lambda: len(service.status().workers) == 2)
        eventually(lambda: not service.status().workers)
        with Worker(service.sockets, model="three", device=UUID), Worker(service.sockets, worker_id="host"):
            models = [pool.model for pool in service.status().pools]
        assert sorted(models) == ["three", "tiny", "two"]
        assert service.used_bytes() == 2 * 26 * MIB


@pytest.mark.full
def test_a_daemon_that_waits_for_an_allocator_beats():
    """The allocator stands still for longer than the keeper bears silence."""
    with GpuService("--kv-memory=4MiB", gpu="slow=6") as service:
        pid = service.status().pid
        with Worker(service.sockets, device=UUID):
            assert service.status().pid == pid
        assert not service.log("the daemon is silent")
