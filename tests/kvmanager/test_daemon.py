"""The daemon with real workers and sockets: attaching, committing, dying, and who may say what."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import zmq

from holdfast import wire
from holdfast.rundir import RunDir
from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.client import AdminClient, DaemonLink, attach
from kvmanager.errors import (
    Conflict,
    DeadlineExceeded,
    Fenced,
    Invalid,
    Mismatch,
    NoMemory,
    NotFound,
    PoolTooSmall,
    Unavailable,
    Unimplemented,
)
from kvmanager.messages import Commit, FinishReason, Grant, Heartbeat, Release, SequenceRef, WorkerState
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


@pytest.fixture(scope="module")
def shared():
    """One service for the tests that leave others alone: each takes a model, so a pool, of its own."""
    with Service("--kv-memory", "4MiB") as service:
        yield service


@pytest.fixture
def attached(shared, request):
    """Makes workers of this test's own model on the shared service."""
    model = request.node.name[:120]
    return partial(Worker, shared.sockets, model=model, worker_id=f"w{abs(hash(model)) % 10**8}")


@pytest.fixture
def service():
    """A service of the test's own, for tests that look at all of it."""
    with Service("--kv-memory", "4MiB") as service:
        yield service


@contextlib.contextmanager
def worker_process(service, worker_id="w1"):
    """A worker process whose prompt is recorded; ended, if it still runs, at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.kvmanager.worker_process", str(service.path), worker_id],
        stdout=subprocess.PIPE,
        env=ENVIRON,
        cwd=ROOT,
    )
    try:
        assert process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def worker_states(service):
    return {worker.id: worker.state for worker in service.status().workers}


def test_a_worker_attaches_commits_and_its_record_can_be_read(shared, attached):
    with attached() as worker:
        assert os.fstat(worker.attachment.pool_fd).st_size == worker.attachment.pool_bytes
        opened = worker.open()
        worker.commit(worker.entry(opened))
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(worker.attachment.metadata_fd, b"x", 0)
        record = shared.ask(read_record(opened.sequence))
        assert record.recorded_len == len(PROMPT) + 1
        assert worker.link.unacked == 0
        assert shared.fsck() == []


def read_record(sequence, start=0):
    request = pb.ReadRecord(sequence=sequence)
    setattr(request, "from", start)
    return request


def test_the_second_request_finds_the_first_ones_prefix(attached):
    with attached() as worker:
        first = worker.open()
        worker.commit(worker.entry(first, finish=FinishReason.EOS))
        worker.ask(Release(rows=[SequenceRef(first.sequence, first.epoch)]))
        assert worker.open().cached_len == 32


def test_a_killed_workers_blocks_are_quarantined_then_free(service):
    with worker_process(service) as process:
        held = service.counts()
        assert held.granted + held.tail + held.sealed == 7
        process.send_signal(signal.SIGKILL)
        eventually(lambda: service.status().workers, lambda workers: not workers)
    after = service.counts()
    assert (after.granted, after.tail, after.quarantined) == (0, 0, 1), "the begun tail is its sequence's"
    assert (after.sealed, after.cached) == (2, 0)
    assert service.fsck() == []
    lost, gone = service.log("worker lost"), service.log("worker gone")
    assert lost[0]["reason"] in ("its attachment closed", "its process ended")
    assert gone[0]["blocks_freed"] == 4


def test_a_closed_attachment_alone_frees_nothing(service):
    with Worker(service.sockets) as worker:
        worker.commit(worker.entry(worker.open()))
    eventually(lambda: worker_states(service), {"w0": pb.WORKER_STATE_LOST}.__eq__)
    assert service.counts().quarantined == 1
    assert service.fsck() == []


def test_a_worker_that_drained_has_left_and_one_with_something_open_is_lost(service):
    for number, opens in enumerate((False, True)):
        with Worker(service.sockets, worker_id=f"w{number}") as worker:
            worker.open() if opens else worker.take(1)
            worker.link.heartbeat(Heartbeat(state=WorkerState.DRAINING))
            eventually(lambda n=number: worker_states(service)[f"w{n}"] == pb.WORKER_STATE_DRAINING)
    eventually(lambda: worker_states(service)["w1"] == pb.WORKER_STATE_LOST)
    assert [(line["worker"], line["level"]) for line in service.log("worker left")] == [("w0", "info")]
    assert [(line["worker"], line["open_sequences"]) for line in service.log("worker lost")] == [("w1", 1)]


def test_a_worker_that_hangs_while_busy_is_fenced_and_killed(service):
    with worker_process(service) as process:
        eventually(lambda: worker_states(service)["w1"] == pb.WORKER_STATE_READY)
        process.send_signal(signal.SIGSTOP)
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
        eventually(lambda: service.status().workers, lambda workers: not workers)
    assert "silent" in service.log("worker lost")[0]["reason"]


def test_a_daemon_that_was_stopped_blames_nobody_and_applies_everything_in_order(service):
    with worker_process(service), Worker(service.sockets) as worker:
        daemon = service.status().pid
        eventually(lambda: worker_states(service)["w1"] == pb.WORKER_STATE_READY)
        os.kill(daemon, signal.SIGSTOP)
        try:
            numbers = [worker.link.send(Grant(count=1)) for _ in range(50)]
            time.sleep(1.9)
        finally:
            os.kill(daemon, signal.SIGCONT)
        granted = [reply.blocks for reply in worker.answers(numbers)]
        assert all(len(blocks) == 1 for blocks in granted)
        assert len({block for blocks in granted for block in blocks}) == 50
        assert pb.WORKER_STATE_LOST not in worker_states(service).values()
        assert service.log("worker lost") == []
        assert service.status().pid == daemon


def test_messages_are_for_sessions_on_their_own_connection(shared, attached):
    with attached() as worker:
        worker.take(1)
        with contextlib.closing(DaemonLink(worker.context, shared.sockets, worker.attachment)) as second:
            # Its Hello, from the same process, moved the session to the second connection.
            second.socket.poll(1000, second.events)
            second.flush()
            eventually(lambda: refused(worker.link))
        stranger = [sys.executable, "-c", STRANGER, str(shared.path), worker.attachment.session.hex()]
        done = subprocess.run(
            stranger, check=True, env=ENVIRON, cwd=ROOT, timeout=PATIENCE_S, capture_output=True, text=True
        )
        assert done.stdout.split() == ["FENCED", "FENCED"], done.stderr


def refused(link):
    link.send(Grant(count=1))
    link.socket.poll(1000)
    try:
        link.receive()
    except Fenced:
        return True
    return False


STRANGER = """
import sys
from pathlib import Path
import zmq
from holdfast import wire
from holdfast.v1 import kvmanager_pb2 as pb
socket = zmq.Context().socket(zmq.DEALER)
socket.linger = 0
socket.connect(f"ipc://{Path(sys.argv[1]) / 'daemon.sock'}")
session = bytes.fromhex(sys.argv[2])
for body in ({"hello": pb.Hello()}, {"number": 2, "grant": pb.Grant(count=1)}):
    socket.send(wire.encode(pb.DaemonRequest(session=session, boot_epoch=1, **body)))
    assert socket.poll(10000)
    error = wire.decode(pb.DaemonReply, socket.recv()).error
    print(pb.ErrorCode.Name(error.code).removeprefix("ERROR_CODE_"))
socket.context.destroy()
"""


def test_bad_requests_are_answered_and_the_daemon_goes_on(shared, attached):
    with attached() as worker:
        worker.link._sent += 5  # a number that leaves a gap
        number = worker.link.send(Grant(count=1))
        with pytest.raises(Conflict, match="follows"):
            worker.answers([number])
    with pytest.raises(Unimplemented, match="pin"):
        shared.ask(pb.PinRequest())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_layers": 3}, "geometry.num_layers"),
        ({"block_size": 32}, "geometry.block_size"),
        ({"model_fingerprint": bytes(32)}, "model_fingerprint"),
        ({"vocab_size": 999}, "vocab_size"),
        ({"max_model_len": 513}, "max_model_len"),
    ],
)
def test_a_worker_that_does_not_fit_the_pool_is_told_the_field_and_both_values(
    shared, attached, change, field
):
    with attached() as worker:
        with pytest.raises(Mismatch, match=field) as caught:
            attached(worker_id="other", **change)
        assert caught.value.details["field"] == field
        assert caught.value.details["worker"] != caught.value.details["pool"]
        assert worker.ask(Grant(count=1)).blocks


def test_two_workers_share_a_pool_but_not_a_name(attached):
    with attached() as first, attached(worker_id="twin", max_model_len=64) as second:
        assert first.attachment.pool == second.attachment.pool
        with pytest.raises(Conflict, match="twin"):
            attached(worker_id="twin")


def test_two_models_are_two_pools(shared, attached):
    with attached() as first:
        first.commit(first.entry(first.open()))
        other = {"model": "other/Model", "model_fingerprint": bytes(32), "head_dim": 32}
        with attached(worker_id="of-another-model", **other) as second:
            assert (first.attachment.num_blocks, second.attachment.num_blocks) == (512, 256)
            assert second.open().cached_len == 0
            names = {pool.name for pool in shared.status().pools}
            assert {first.attachment.pool, second.attachment.pool} <= names


def gone_with_its_orphans(service, process):
    """Kills the worker; what it ran ends because nobody asks for it."""
    process.kill()
    eventually(lambda: service.status().workers, lambda workers: not workers)
    eventually(lambda: [pool.sequences for pool in service.status().pools], [0].__eq__)


@pytest.fixture
def short():
    """A service of the test's own that waits for no adopter."""
    with Service("--kv-memory", "4MiB", "--orphan-ttl", "1") as service:
        yield service


def test_a_pool_that_nobody_uses_gives_way_to_a_worker_that_differs(short):
    with worker_process(short, "w1") as process:
        gone_with_its_orphans(short, process)
    with Worker(short.sockets, block_size=32) as worker:
        assert worker.attachment.num_blocks == 256
        assert len(short.status().pools) == 1
    assert short.log("pool dropped")


def test_a_pool_with_an_orphan_is_in_use(service):
    with worker_process(service) as process:
        process.kill()
        eventually(lambda: service.status().workers, lambda workers: not workers)
    with pytest.raises(Mismatch, match="in use"):
        attach(service.sockets, attach_spec(service.sockets, block_size=32), PATIENCE_S)


def test_a_pool_is_deleted_by_request_once_nobody_uses_it(short):
    service = short
    service.status()
    with pytest.raises(NotFound):
        service.ask(pb.DeletePoolRequest(pool="none"))
    with worker_process(service) as process:
        (pool,) = service.status().pools
        with pytest.raises(Conflict, match="in use"):
            service.ask(pb.DeletePoolRequest(pool=pool.name))
        gone_with_its_orphans(service, process)
    freed = service.ask(pb.DeletePoolRequest(pool=pool.name)).freed_bytes
    assert freed == pool.pool_bytes + pool.metadata_bytes
    assert not service.status().pools


def test_sigterm_ends_work_that_takes_seconds():
    """A check of a pool with half a million blocks, here."""
    with Service("--num-blocks-override", "524288") as service:
        with Worker(service.sockets, num_layers=1, num_kv_heads=1, head_dim=8):
            with AdminClient(service.sockets, 0.2) as client, pytest.raises(DeadlineExceeded):
                client.request(pb.FsckRequest())
            service.process.terminate()
            assert service.process.wait(PATIENCE_S) == 0
        assert service.log("daemon ended")[-1].get("code", 0) == 0


def test_a_gpu_and_a_hopeless_budget_are_refused_by_name():
    with Service("--kv-memory", "1MiB") as service:
        with pytest.raises(Invalid, match="GPU"):
            attach(service.sockets, attach_spec(service.sockets, device="GPU-1234"), PATIENCE_S)
        big = attach_spec(service.sockets, num_layers=64, num_kv_heads=64, head_dim=128)
        with pytest.raises(PoolTooSmall, match="kv-memory"):
            attach(service.sockets, big, PATIENCE_S)


def test_more_memory_than_there_is_is_an_error_with_both_numbers():
    with Service("--kv-memory", "100TiB", "--num-blocks-override", "100000000") as service:
        with pytest.raises(NoMemory, match="available") as caught:
            attach(service.sockets, attach_spec(service.sockets, num_layers=64), PATIENCE_S)
        assert int(caught.value.details["asked"]) > int(caught.value.details["available"]) > 0


def test_sigterm_ends_keeper_and_daemon_at_once(service):
    daemon = service.status().pid
    started = time.monotonic()
    service.process.terminate()
    assert service.process.wait(PATIENCE_S) == 0
    assert time.monotonic() - started < 5  # about 0.1 s on an idle machine
    with pytest.raises(ProcessLookupError):
        os.kill(daemon, 0)
    assert not list(service.path.glob("*.sock"))


def test_the_daemon_maps_no_torch_and_the_keeper_little_more_than_python(shared):
    daemon = Path(f"/proc/{shared.status().pid}/maps").read_text()
    assert "numpy" in daemon
    assert not any(name in daemon for name in ("torch", "cupy", "libcuda", "grpc"))
    keeper = Path(f"/proc/{shared.process.pid}/maps").read_text()
    assert not any(name in keeper for name in ("torch", "numpy", "zmq", "protobuf", "_upb", "pydantic"))


def test_attach_says_what_it_waits_for_and_gives_up_at_the_timeout(tmp_path):
    reasons = []
    sockets = RunDir(tmp_path)
    with pytest.raises(Unavailable, match=r"attach\.sock"):
        attach(sockets, attach_spec(sockets), 0.5, reasons.append)
    assert len(reasons) == 1


def test_commit_entries_are_judged_one_by_one(attached):
    with attached() as worker:
        good, bad = worker.open(), worker.open([1, 2, 3])
        entries = [worker.entry(good), worker.entry(bad, [1, 2, 3], epoch=99)]
        acked = worker.ask(Commit(step=1, entries=entries))
        assert [(r.sequence, r.code) for r in acked.refusals] == [(bad.sequence, Fenced.code)]


def test_a_peer_that_never_reads_is_dropped_and_the_others_are_served(service):
    with worker_process(service):
        deaf = zmq.Context()
        socket = deaf.socket(zmq.DEALER)
        socket.setsockopt(zmq.RCVHWM, 1)
        socket.linger = 0
        socket.connect(f"ipc://{service.sockets.daemon}")
        question = wire.encode(
            pb.DaemonRequest(number=1, list=pb.ListRequest(kind=pb.RESOURCE_KIND_BLOCK, state="free"))
        )
        for _ in range(5000):
            with contextlib.suppress(zmq.Again):
                socket.send(question, zmq.NOBLOCK)
        assert service.fsck() == []
        assert pb.WORKER_STATE_LOST not in worker_states(service).values()
        deaf.destroy(linger=0)
