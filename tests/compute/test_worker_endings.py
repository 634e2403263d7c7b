"""A worker beside a KV manager when one of them stops or dies: what a gateway hears, and how the process ends."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from holdfast.v1 import generate_pb2
from kvmanager.errors import Unavailable
from tests.support.worker_process import DEADLINE_S, Service, service

LENGTH = generate_pb2.FINISH_REASON_LENGTH


@pytest.fixture
def own() -> Iterator[Service]:
    """A service for a test that breaks it."""
    with service() as one:
        one.kvmanager()
        yield one


@pytest.mark.chaos
def test_a_daemon_that_is_silent_for_two_seconds_stops_no_step(own: Service) -> None:
    """Tokens are computed while it is silent and shown when it is back: none is lost, none comes twice."""
    worker = own.worker()
    own.until_logged("w", "ready")
    gateway = own.gateway()
    stream = gateway.submit([5, 6, 7], stopping={"max_tokens": 1800})
    gateway.until(lambda: len(stream.tokens) >= 20)
    daemon = own.daemon_pid()
    os.kill(daemon, signal.SIGSTOP)
    try:
        time.sleep(0.2)
        gateway.pump()
        shown = len(stream.tokens)
        time.sleep(1.7)
        gateway.pump()
        assert len(stream.tokens) == shown
        os.kill(worker.pid, signal.SIGSTOP)  # so that its last heartbeat is from before the daemon's return
    finally:
        os.kill(daemon, signal.SIGCONT)
    (seen,) = own.ask("get", "workers")["items"]
    os.kill(worker.pid, signal.SIGCONT)
    gateway.until_ended(stream)
    assert seen["step"] > shown + 50
    assert (len(stream.tokens), stream.finish) == (1800, LENGTH)


def test_sequences_of_a_gateway_that_nobody_replaces_end_after_a_while(own: Service) -> None:
    """Their record says CANCELLED, and their blocks come back."""
    own.worker("w", "--gateway-ttl", "0.2")
    own.until_logged("w", "ready")
    gateway = own.gateway()
    stream = gateway.submit([5, 6, 7], stopping={"max_tokens": 2000})
    gateway.until(lambda: stream.tokens)
    gateway.close()
    ended = own.until_logged("w", "request ended")
    assert ended["reason"] == "cancelled"
    assert 0 < ended["output_tokens"] < 2000
    own.until_unused()


def test_sigterm_finishes_what_runs_and_rejects_what_comes(own: Service) -> None:
    """Draining: the running request gets all its tokens, a new one is told to go elsewhere, exit code 0."""
    worker = own.worker()
    own.until_logged("w", "ready")
    gateway = own.gateway()
    running = gateway.submit([5, 6, 7], stopping={"max_tokens": 700})
    gateway.until(lambda: running.tokens)
    worker.terminate()
    own.until_logged("w", "draining")
    late = gateway.submit([5, 6, 8])
    gateway.until_ended(running, late)
    assert (len(running.tokens), running.finish) == (700, LENGTH)
    assert late.error == Unavailable.code
    assert worker.wait(DEADLINE_S) == 0
    assert not list(own.folder.glob("worker-*"))
    assert own.until_logged("kvmanager", "worker left")["level"] == "info"
    assert "worker lost" not in (own.folder / "kvmanager.log").read_text()


def test_the_socket_of_a_killed_worker_goes_when_another_starts(own: Service) -> None:
    """Names are random, so nobody would take that one again."""
    killed = own.worker("killed")
    own.until_logged("killed", "attached")
    killed.kill()
    killed.wait(DEADLINE_S)
    assert len(list(own.folder.glob("worker-killed.*"))) == 2
    own.worker("next")
    own.until_logged("next", "attached")
    assert sorted(path.name for path in own.folder.glob("worker-*")) == [
        "worker-next.lock",
        "worker-next.sock",
    ]


def test_a_second_sigterm_ends_at_once(own: Service) -> None:
    """What still runs is told UNAVAILABLE."""
    worker = own.worker()
    own.until_logged("w", "ready")
    gateway = own.gateway()
    running = gateway.submit([5, 6, 7], stopping={"max_tokens": 2000})
    gateway.until(lambda: running.tokens)
    worker.terminate()
    own.until_logged("w", "draining")
    worker.terminate()
    gateway.until_ended(running)
    assert running.error == Unavailable.code
    assert worker.wait(DEADLINE_S) == 0


def test_a_worker_waits_for_its_daemon_and_says_so() -> None:
    """Started first, it says what it waits for; at the timeout it ends with one line and code 1."""
    with service() as one:
        worker = one.worker("w", "--attach-timeout", "0.5")
        assert worker.wait(DEADLINE_S) == 1
        assert one.until_logged("w", "waiting for the KV manager")
        assert "Traceback" not in (one.folder / "w.log").read_text()


def test_weights_that_are_missing_are_one_line(own: Service) -> None:
    """A user's error has no traceback."""
    worker = own.start("w", "compute", "serve", "--model", str(own.model))
    assert worker.wait(DEADLINE_S) == 1
    text = (own.folder / "w.log").read_text()
    assert "error: " in text
    assert "Traceback" not in text


def test_a_pool_too_small_for_all_preempts_and_changes_no_token() -> None:
    """Rows are asked back and resumed; every stream is what it is alone."""
    with service() as one:
        one.start("kvmanager", "kvmanager", "serve", "--num-blocks-override", "20")
        one.worker("w", "--max-num-seqs", "8")
        one.until_logged("w", "ready")
        assert one.until_logged("w", "the pool is smaller than one request may be")["tokens"] == 19 * 16
        gateway = one.gateway()
        prompts = [[7 + i] * 9 for i in range(5)]
        together = [gateway.submit(prompt, stopping={"max_tokens": 100}) for prompt in prompts]
        gateway.until_ended(*together)
        alone = []
        for prompt in prompts:
            alone.append(gateway.submit(prompt, stopping={"max_tokens": 100}))
            gateway.until_ended(alone[-1])
        assert [stream.tokens for stream in together] == [stream.tokens for stream in alone]
        assert sum(line.get("preemptions", 0) for line in one.log("w")) >= 1
        one.until_unused()
        one.ask("fsck")
