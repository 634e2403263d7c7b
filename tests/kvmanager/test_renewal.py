"""A pool whose metadata cannot be trusted, with real processes: its KV goes, its requests stay, its workers end."""

import contextlib
import mmap
import os
import signal
import subprocess
import sys
import time

import pytest

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.client import attach
from kvmanager.errors import Fenced
from kvmanager.keeper_link import KeeperLink
from kvmanager.layout import HEADER_BYTES
from kvmanager.messages import FinishReason, OpenKind, Release, SequenceRef
from kvmanager.renewal import end_workers
from tests.kvmanager.processes import (
    ENVIRON,
    PATIENCE_S,
    PROMPT,
    ROOT,
    Service,
    Worker,
    attach_spec,
    eventually,
)
from tests.support.gpu_pool import GpuService

AT = 4096  # in the pool
MIB = 2**20


def kill_daemon(service):
    """SIGKILL, and the status of the next daemon."""
    pid = service.status().pid
    os.kill(pid, signal.SIGKILL)
    return eventually(service.status, lambda status: status.pid != pid)


def spoil(service, pool, at=HEADER_BYTES):
    """Overwrites records, as no daemon would."""
    keeper = KeeperLink(service.sockets.keeper)
    fd = keeper.get(f"meta.{pool}")
    with mmap.mmap(fd, 0) as memory:
        memory[at : at + 4096] = os.urandom(4096)
    os.close(fd)
    keeper.close()


def one_open_one_finished(worker):
    """(the open one, the finished one), 41 tokens each."""
    first, second = worker.open(), worker.open(PROMPT[::-1])
    worker.commit(worker.entry(first))
    worker.commit(worker.entry(second, finish=FinishReason.EOS))
    worker.ask(Release(rows=[SequenceRef(second.sequence, second.epoch)]))
    return first, second


def adopt(service, sequence, name="w1"):
    """What a new worker is told of an open sequence that had 40 valid slots; and what it finds in the memory."""
    with Worker(service.sockets, worker_id=name) as worker:
        opened = worker.open([*PROMPT, 7], sequence=sequence, prompt_len=len(PROMPT))
        assert opened.kind == OpenKind.ADOPTED
        assert list(opened.token_ids) == [*PROMPT, 7]
        return opened, os.pread(worker.attachment.pool_fd, 8, AT)


def refuses(service, worker):
    session = worker.attachment.session
    with pytest.raises(Fenced, match="unknown"):
        attach(service.sockets, attach_spec(service.sockets, resume_session=session), PATIENCE_S)


def test_metadata_that_cannot_be_trusted_costs_the_kv_and_no_request():
    with Service("--kv-memory", "4MiB", "--no-kill-hung") as service, Worker(service.sockets) as old:
        going, ended = one_open_one_finished(old)
        os.pwrite(old.attachment.pool_fd, b"kv bytes", AT)
        spoil(service, old.attachment.pool)
        status = kill_daemon(service)
        [line] = service.log("its requests are kept")
        said = ("level", "live", "finished", "records_dropped", "slots_lost")
        assert [line[key] for key in said] == ["error", 1, 1, 0, 40]
        [pool] = status.pools
        assert (pool.name, pool.sequences, pool.orphans) == (old.attachment.pool, 1, 1)
        assert pool.blocks.free == pool.num_blocks
        for sequence, finish in ((going.sequence, 0), (ended.sequence, int(FinishReason.EOS))):
            record = service.ask(pb.ReadRecord(sequence=sequence))
            assert (record.recorded_len, record.finish) == (41, finish)
        refuses(service, old)
        opened, found = adopt(service, going.sequence)
        assert (opened.epoch, opened.kv_len, opened.lost_len) == (3, 0, 40)
        assert found == bytes(8), "new memory"
        os.pwrite(old.attachment.pool_fd, b"too late", AT)
        assert service.status().pools[0].reprefilled == 40
        assert service.fsck() == []
        assert kill_daemon(service).pools[0].name == pool.name, "the new metadata is trusted"
        assert adopt(service, going.sequence, "w2")[1] == bytes(8)


def test_without_a_header_nothing_can_be_kept_and_the_log_says_so():
    with Service("--kv-memory", "4MiB", "--no-kill-hung") as service, Worker(service.sockets) as old:
        one_open_one_finished(old)
        spoil(service, old.attachment.pool, 0)
        assert not kill_daemon(service).pools
        assert service.log("the pool is dropped: its metadata cannot be trusted")
        with contextlib.closing(KeeperLink(service.sockets.keeper)) as keeper:
            assert keeper.names() == []


class CrashingService(Service):
    """Its daemons fail, as soon as they beat, as often as `fail` said."""

    def start(self, *more, verb="serve"):
        self.budget = self.path / "budget"
        self.fail(0)
        own = [f"--run-dir={self.path}", "--log-format=json", f"--keeper={self.sockets.keeper}"]
        keeper = [sys.executable, "-m", "kvmanager.keeper", "--spare", str(self.path), "json", "debug"]
        child = [
            sys.executable,
            "-m",
            "tests.support.crashing_daemon",
            str(self.budget),
            *own,
            *self.flags[6:],
        ]
        with self.log_path.open("ab") as log:
            return subprocess.Popen([*keeper, *child], stderr=log, env=ENVIRON, cwd=ROOT)

    def fail(self, times):
        self.budget.write_text(str(times))


def told(service):
    return [line.get("fast_crashes", 0) for line in service.log("daemon started") if "spare" in line]


@pytest.mark.parametrize("crashes", [pytest.param(2, marks=pytest.mark.full), 3])
@pytest.mark.chaos
def test_three_fast_crashes_cost_the_kv_and_no_request_and_two_cost_nothing(crashes):
    with CrashingService("--kv-memory=4MiB", "--kill-hung=False") as service, Worker(service.sockets) as old:
        going, _ = one_open_one_finished(old)
        eventually(lambda: service.log("spare daemon started"))
        service.fail(crashes)
        [pool] = kill_daemon(service).pools
        assert told(service) == [0, *range(crashes + 1)]
        assert len(service.log("failpoint")) <= len(service.log("the daemon failed")) == crashes
        if crashes == 2:
            assert pool.blocks.cached + pool.blocks.sealed > 0
            old.resume(service.sockets)
            assert [one.sequence for one in old.holdings().sequences][:1] == [going.sequence]
            return
        assert "3 daemons in a row" in service.log("its requests are kept")[0]["reason"]
        assert (pool.blocks.free, pool.orphans) == (pool.num_blocks, 1)
        refuses(service, old)
        assert adopt(service, going.sequence)[0].lost_len == 40
        assert service.status().pools[0].reprefilled == 40
        assert service.fsck() == []


@pytest.mark.parametrize("exporter", ["vmm", pytest.param("legacy", marks=pytest.mark.full)])
@pytest.mark.chaos
def test_of_a_gpu_pool_the_same_and_a_worker_whose_memory_is_needed_is_killed_for_it(exporter):
    flags = ("--kv-memory=36MiB", f"--gpu-ipc={exporter}")
    with (
        GpuService(*flags, gpu=f"total={64 * MIB}") as service,
        service.worker("open") as (sequence, process),
    ):
        eventually(lambda: service.status().pools[0].sequences == 1)
        process.send_signal(signal.SIGSTOP)
        first = service.status().pools[0]
        spoil(service, first.name)
        [pool] = kill_daemon(service).pools
        assert (pool.name, pool.exporter, pool.orphans) == (first.name, first.exporter, 1)
        if exporter == "vmm":  # legacy memory goes with its allocator
            assert process.wait(PATIENCE_S) == -signal.SIGKILL
            assert service.log("former workers are killed for their memory")
        assert service.log("its requests are kept")[0]["live"] == 1
        assert len(service.allocators()) == (exporter == "legacy")
        assert service.used_bytes() == 38 * MIB
        record = service.ask(pb.ReadRecord(sequence=bytes.fromhex(sequence)))
        assert record.recorded_len == len(PROMPT)


def test_nobody_is_killed_for_a_record_that_names_another_process():
    sleeper = subprocess.Popen(["/bin/sleep", "60"])
    try:
        end_workers([(sleeper.pid, 1), (0, 0), (1, 0), (2**31, 5), (2**64 - 1, 2**64 - 1), (os.getpid(), 1)])
        time.sleep(0.1)
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()
