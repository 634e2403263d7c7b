"""What a daemon's death leaves to the next one: memory, metadata, prefix hits, and workers that must still end."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.client import attach
from kvmanager.errors import Fenced, Mismatch
from kvmanager.messages import CommitEntry, FinishReason, Holding, OpenKind, Release, SequenceRef
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


@pytest.fixture
def service():
    with Service("--kv-memory", "4MiB") as service:
        yield service


def kill_daemon(service):
    """SIGKILL, and the status of the next daemon."""
    pid = service.status().pid
    os.kill(pid, signal.SIGKILL)
    return eventually(service.status, lambda status: status.pid != pid)


def worker_script(service, *args):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.kvmanager.worker_process", str(service.path), *args],
        stdout=subprocess.PIPE,
        env=ENVIRON,
        cwd=ROOT,
    )


def test_memory_metadata_and_prefix_hits_outlive_the_daemon(service):
    with Worker(service.sockets) as worker:
        os.pwrite(worker.attachment.pool_fd, b"kv bytes", 4096)
        first = worker.open()
        worker.commit(worker.entry(first, finish=FinishReason.EOS))
        worker.ask(Release(rows=[SequenceRef(first.sequence, first.epoch)]))
        pool = worker.attachment.pool
        status = kill_daemon(service)
        assert [(p.name, p.blocks.cached) for p in status.pools] == [(pool, 2)]
        assert status.boot_epoch == 2
        request = pb.ReadRecord(sequence=first.sequence)
        assert service.ask(request).recorded_len == 41
        assert worker.attachment.connection.recv(1) == b""
    with Worker(service.sockets, worker_id="w1") as worker:
        assert worker.attachment.boot_epoch == 2
        assert os.pread(worker.attachment.pool_fd, 8, 4096) == b"kv bytes"
        opened = worker.open()
        assert opened.cached_len == 32
    assert service.fsck() == []


def test_a_living_workers_blocks_are_its_own_across_the_restart_until_it_ends(service):
    """It is neither lost nor asked for anything; what it held when it died waits for another, its float is free."""
    process = worker_script(service, "w1")
    with contextlib.closing(process.stdout):
        assert process.stdout.readline()
        process.send_signal(signal.SIGSTOP)  # it cannot see that its daemon is gone
        status = kill_daemon(service)
        assert [(w.id, w.state) for w in status.workers] == [("w1", pb.WORKER_STATE_WARMING)]
        assert (status.pools[0].blocks.granted, status.pools[0].blocks.tail) == (4, 1)
        process.kill()
        process.wait()
        counts = eventually(service.counts, lambda counts: counts.granted == 0)
        assert (counts.quarantined, counts.sealed, counts.cached) == (1, 2, 0)
        assert service.fsck() == []


def test_a_worker_that_died_with_the_daemon_leaves_only_its_orphans(service):
    process = worker_script(service, "w1")
    with contextlib.closing(process.stdout):
        assert process.stdout.readline()
        daemon = service.status().pid
        os.kill(daemon, signal.SIGSTOP)  # it must not see the worker's end
        process.kill()
        process.wait()
        os.kill(daemon, signal.SIGKILL)
        status = eventually(service.status, lambda status: status.pid != daemon)
        assert not status.workers
        (pool,) = status.pools
        assert (pool.sequences, pool.blocks.quarantined, pool.blocks.granted) == (1, 1, 0)
        assert service.fsck() == []


def test_a_living_worker_attaches_again_and_its_numbers_go_on(service):
    with Worker(service.sockets) as worker:
        opened = worker.open()
        worker.commit(worker.entry(opened))
        kept, session = list(worker.float), worker.attachment.session
        kill_daemon(service)
        assert worker.attachment.connection.recv(1) == b""
        worker.resume(service.sockets)
        assert (worker.attachment.session, worker.attachment.boot_epoch) == (session, 2)
        assert worker.attachment.answer.number == 3, "an Open, a Grant, a Commit"
        holdings = worker.holdings()
        assert list(holdings.sequences) == [Holding(opened.sequence, 1, 41, FinishReason.NONE)]
        assert list(holdings.blocks) == kept
        entry = CommitEntry(
            sequence=opened.sequence, epoch=1, base_recorded=41, base_kv=40, token_ids=[8], kv_len=41
        )
        worker.commit(entry)
        assert service.ask(pb.ReadRecord(sequence=opened.sequence)).recorded_len == 42
        assert service.fsck() == []


def test_a_session_is_no_strangers_and_no_fenced_workers(service):
    """Another process, another model, a session that is attached, unknown or lost: refused, and nothing changes."""
    with Worker(service.sockets) as worker:
        session = worker.attachment.session
        opened = worker.open()
        refused(service, Fenced, "attached", resume_session=session)
        kill_daemon(service)
        script = [sys.executable, "-m", "tests.kvmanager.attach_again", str(service.path), session.hex()]
        stranger = subprocess.run(
            script, check=False, capture_output=True, text=True, env=ENVIRON, cwd=ROOT, timeout=PATIENCE_S
        )
        assert "another process" in stranger.stdout
        refused(service, Mismatch, "block_size", resume_session=session, block_size=32)
        refused(service, Fenced, "unknown", resume_session=bytes(range(16)))
        worker.resume(service.sockets)
        assert [one.sequence for one in worker.holdings().sequences] == [opened.sequence]
    eventually(service.status, lambda status: status.workers[0].state == pb.WORKER_STATE_LOST)
    refused(service, Fenced, "lost", resume_session=session)
    assert service.fsck() == []


def refused(service, error, match, **changes):
    with pytest.raises(error, match=match):
        attach(service.sockets, attach_spec(service.sockets, **changes), PATIENCE_S)


@pytest.mark.full
def test_a_worker_that_does_not_come_back_is_lost_and_killed(service):
    """Its sequence waits for another worker, which does not wait for the proof."""
    process = worker_script(service, "w1")
    with contextlib.closing(process.stdout):
        sequence = bytes.fromhex(json.loads(process.stdout.readline())["sequence"])
        process.send_signal(signal.SIGSTOP)
        kill_daemon(service)
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
    eventually(service.status, lambda status: not status.workers)
    assert service.log("worker lost")[-1]["reason"] == "it did not attach again"
    with Worker(service.sockets, worker_id="w2") as worker:
        opened = worker.open([*PROMPT, 7], sequence=sequence, prompt_len=len(PROMPT))
        assert (opened.kind, opened.epoch, opened.kv_len) == (OpenKind.ADOPTED, 2, 40)
        assert list(opened.token_ids) == [*PROMPT, 7]


@pytest.mark.chaos
def test_a_daemon_that_stops_beating_is_killed_and_replaced(service):
    pid = service.status().pid
    os.kill(pid, signal.SIGSTOP)
    status = eventually(service.status, lambda status: status.pid != pid)
    assert service.log("the daemon is silent")
    assert service.fsck() == []
    assert status.health == "SERVING"


def test_the_daemon_ends_with_its_keeper(service):
    pid = service.status().pid
    service.process.kill()
    service.process.wait()
    eventually(lambda: not alive(pid))
    assert service.log("the memory is the keeper's")


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_second_daemon_on_the_same_keeper_is_refused(service):
    pid = service.status().pid
    second = subprocess.run(
        [sys.executable, "-m", "kvmanager", "serve", *service.flags, "--keeper", str(service.sockets.keeper)],
        check=False,
        env=ENVIRON,
        cwd=ROOT,
        timeout=PATIENCE_S,
        capture_output=True,
        text=True,
    )
    assert second.returncode == 7
    assert "another daemon" in second.stderr
    assert service.status().pid == pid


def test_a_keeper_and_its_daemon_may_be_started_apart_and_in_any_order():
    """`kvmanager keeper`, and beside it `kvmanager serve --keeper SOCKET`, killed and started again."""
    with Service(keeper_only=True) as apart:
        for boot in (1, 2):
            daemon = apart.start("--keeper", str(apart.sockets.keeper), "--kv-memory", "4MiB")
            with Worker(apart.sockets, worker_id=f"w{boot}") as worker:
                assert worker.attachment.boot_epoch == boot
                opened = worker.open()
                assert opened.cached_len == (0, 32)[boot - 1]
                worker.commit(worker.entry(opened))
            daemon.kill()
            daemon.wait()
