"""The gateway's and the CLI's clients against a real daemon, a silent one, and none."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zmq.asyncio

from holdfast.rundir import RunDir, RunDirError
from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.client import AdminClient, AsyncDaemonClient, attach
from kvmanager.errors import DeadlineExceeded, NotFound, ResourceExhausted, Unavailable
from kvmanager.messages import FinishReason, Grant, Heartbeat, Release, SequenceRef, WorkerState
from tests.kvmanager.processes import ENVIRON, PATIENCE_S, PROMPT, ROOT, Service, Worker, attach_spec


@pytest.fixture(scope="module")
def service():
    with Service("--kv-memory", "4MiB") as service:
        yield service


@pytest.fixture(scope="module")
def worker(service):
    with Worker(service.sockets, worker_id="served") as worker:
        worker.link.heartbeat(Heartbeat(state=WorkerState.READY, step=3, running=2))
        yield worker


@pytest.fixture
async def client(service):
    context = zmq.asyncio.Context()
    async with AsyncDaemonClient(context, service.sockets) as client:
        yield client
    context.destroy(linger=0)


async def test_a_snapshot_names_workers_and_pools_once_a_version(client, worker):
    first = await client.snapshot(timeout_s=PATIENCE_S)
    assert [w.id for w in first.workers] == ["served"]
    assert first.workers[0].endpoint.endswith("worker-served.sock")
    assert first.pools[0].model == "tiny"
    again = await client.snapshot(first.version, PATIENCE_S)
    assert (again.version, len(again.workers), len(again.pools)) == (first.version, 0, 0)


async def test_a_new_state_of_a_worker_is_a_new_version(client, worker):
    before = (await client.snapshot(timeout_s=PATIENCE_S)).version
    worker.link.heartbeat(Heartbeat(state=WorkerState.DRAINING))
    worker.ask(Grant(count=1))
    after = await client.snapshot(before, PATIENCE_S)
    assert after.version > before
    assert after.workers[0].state == pb.WORKER_STATE_DRAINING
    worker.link.heartbeat(Heartbeat(state=WorkerState.READY))


async def test_a_snapshot_that_waits_is_whole_and_comes_with_the_news_or_the_beat(client, worker):
    first = await client.snapshot(timeout_s=PATIENCE_S)
    beat = await client.snapshot(first.version, PATIENCE_S, wait=True)
    assert (beat.version, len(beat.workers), len(beat.pools)) == (first.version, 1, 1)
    parked = asyncio.create_task(client.snapshot(first.version, PATIENCE_S, wait=True))
    await asyncio.sleep(0)
    worker.link.heartbeat(Heartbeat(state=WorkerState.DRAINING))
    states = [(await parked).workers[0].state]
    if states[0] == pb.WORKER_STATE_READY:  # a beat came first
        states.append((await client.snapshot(first.version, PATIENCE_S, wait=True)).workers[0].state)
    assert states[-1] == pb.WORKER_STATE_DRAINING
    worker.link.heartbeat(Heartbeat(state=WorkerState.READY))


async def test_a_request_is_found_by_its_id_and_its_tenant(client, worker):
    opened = worker.open(request_id="mine", tenant=b"t" * 32)
    [found] = await client.find_request("mine", b"t" * 32, PATIENCE_S)
    assert (found.sequence, found.finished, len(found.session)) == (opened.sequence, False, 32)
    for request_id, tenant in (("mine", bytes(32)), ("other", b"t" * 32)):
        assert not await client.find_request(request_id, tenant, PATIENCE_S)
    worker.commit(worker.entry(opened, finish=FinishReason.EOS))
    worker.ask(Release(rows=[SequenceRef(opened.sequence, opened.epoch)]))
    [found] = await client.find_request("mine", b"t" * 32, PATIENCE_S)
    assert found.finished


async def test_records_are_read_from_any_position(client, worker):
    opened = worker.open()
    worker.commit(worker.entry(opened, finish=FinishReason.EOS))
    record = await client.read_record(opened.sequence, 38, PATIENCE_S)
    assert [int.from_bytes(record.token_ids[i : i + 4], "little") for i in (0, 4, 8)] == [138, 139, 7]
    assert (record.recorded_len, record.prompt_len) == (len(PROMPT) + 1, len(PROMPT))
    assert record.finish == pb.Record(finish=FinishReason.EOS).finish
    worker.ask(Release(rows=[SequenceRef(opened.sequence, opened.epoch)]))
    with pytest.raises(NotFound):
        await client.read_record(os.urandom(16), 0, PATIENCE_S)


async def test_questions_may_overlap(client, worker):
    answers = await asyncio.gather(*(client.snapshot(timeout_s=PATIENCE_S) for _ in range(100)))
    assert len({answer.version for answer in answers}) == 1


async def test_without_a_daemon_the_gateway_gets_unavailable_and_later_an_answer():
    with Service("--kv-memory", "4MiB") as service:
        pid = service.status().pid
        context = zmq.asyncio.Context()
        async with AsyncDaemonClient(context, service.sockets) as client:
            os.kill(pid, signal.SIGSTOP)
            with pytest.raises(Unavailable, match=r"0\.3 s"):
                await client.snapshot(timeout_s=0.3)
            os.kill(pid, signal.SIGCONT)
            assert (await client.snapshot(timeout_s=PATIENCE_S)).version
            os.kill(pid, signal.SIGKILL)
            assert await within_patience(client)
        context.destroy(linger=0)


async def within_patience(client):
    """Asks again and again: a question that went down with a daemon is never answered."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(Unavailable):
            return (await client.snapshot(timeout_s=0.5)).version
    return None


def test_the_cli_tells_nobody_there_from_somebody_silent(service, tmp_path):
    with AdminClient(RunDir(tmp_path), 5.0) as client:
        started = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            client.request(pb.StatusRequest())
        assert not isinstance(caught.value, DeadlineExceeded)
        assert time.monotonic() - started < 4
    pid = service.status().pid
    os.kill(pid, signal.SIGSTOP)
    try:
        with AdminClient(service.sockets, 0.3) as client:
            with pytest.raises(DeadlineExceeded):
                client.request(pb.StatusRequest())
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_link_queues_in_order_and_says_when_it_is_full(service, worker, monkeypatch):
    monkeypatch.setattr("kvmanager.client_link.MAX_QUEUED", 50)
    with Worker(service.sockets, worker_id="queued") as queued:
        pid = service.status().pid
        os.kill(pid, signal.SIGSTOP)
        numbers = []
        try:
            with pytest.raises(ResourceExhausted):
                numbers.extend(endless(queued.link))
            assert queued.link.queued == 50
            assert queued.link.unacked == len(numbers) == numbers[-1]
        finally:
            os.kill(pid, signal.SIGCONT)
        queued.answers(numbers)
        assert queued.link.unacked == queued.link.queued == 0


def endless(link):
    """Numbers of messages, sent as they are asked for."""
    while True:
        yield link.send(Grant(count=1))


def test_a_socket_path_that_is_too_long_is_a_clear_error(tmp_path):
    sockets = RunDir(tmp_path / ("x" * 100))
    with pytest.raises(RunDirError, match="107"):
        attach(sockets, attach_spec(RunDir(tmp_path)), 1.0)
    with pytest.raises(RunDirError, match="107"):
        AdminClient(sockets)
    done = subprocess.run(
        [sys.executable, "-m", "kvmanager", "serve", "--run-dir", str(sockets.path)],
        check=False,
        env=ENVIRON,
        cwd=ROOT,
        timeout=PATIENCE_S,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "107" in done.stderr


def test_the_client_imports_neither_numpy_nor_torch():
    code = "import sys, kvmanager.client; print(sorted({'numpy', 'torch', 'cupy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_a_spec_that_is_a_function_is_asked_for_once_there_is_a_connection(service):
    asked = []

    def spec():
        asked.append(connections(service))
        return attach_spec(service.sockets, worker_id="late")

    before = connections(service)
    attach(service.sockets, spec, PATIENCE_S).close()
    assert asked == [before + 1]


def connections(service):
    """How many sockets of this process there are at the attachment socket's other end."""
    inodes = {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
    links = (str(link) for link in map(read_link, Path("/proc/self/fd").iterdir()))
    return sum(link.startswith("socket:[") and link[8:-1] in inodes for link in links)


def read_link(path):
    try:
        return path.readlink()
    except OSError:
        return Path()


def test_what_the_function_raises_ends_the_attach(service):
    def spec():
        raise Unavailable("no GPU is visible")

    with pytest.raises(Unavailable, match="no GPU is visible"):
        attach(service.sockets, spec, PATIENCE_S)
