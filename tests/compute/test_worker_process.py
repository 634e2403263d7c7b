"""A real worker beside a real KV manager: what a gateway sees of it, also when one of them stops or dies."""

import os
import signal
import time
from collections.abc import Iterator

import pytest
import zmq

from holdfast.v1 import generate_pb2
from kvmanager.errors import Invalid, Unavailable
from tests.support.worker_process import DEADLINE_S, Gateway, Service, Stream, service

LENGTH = generate_pb2.FINISH_REASON_LENGTH


@pytest.fixture(scope="module")
def shared() -> Iterator[Service]:
    """One service for the tests that leave it as they found it."""
    with service() as one:
        one.kvmanager()
        one.worker()
        one.until_logged("w", "ready")
        yield one


@pytest.fixture
def own() -> Iterator[Service]:
    """A service for a test that breaks it."""
    with service() as one:
        one.kvmanager()
        yield one


@pytest.fixture
def gateway(shared: Service) -> Gateway:
    return shared.gateway()


def used_blocks(one: Service) -> int:
    """Blocks that are neither free nor cached nor float."""
    (pool,) = one.ask("status")["pools"]
    blocks = pool["blocks"]
    return int(pool["num_blocks"] - blocks["free"] - blocks["cached"] - blocks["granted"])


def until_unused(one: Service) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while used_blocks(one):
        assert time.monotonic() < deadline, "blocks are still in use"
        time.sleep(0.05)


def test_tokens_come_in_order_and_the_same_alone_as_together(gateway: Gateway) -> None:
    """Eight ragged requests at once give what each of them gives alone, and usage counts the cached prefix."""
    prompts = [[3 + i] * (5 + 7 * i) for i in range(8)]
    together = [gateway.submit(prompt, stopping={"max_tokens": 12}) for prompt in prompts]
    gateway.until_ended(*together)
    alone: list[Stream] = []
    for prompt in prompts:
        alone.append(gateway.submit(prompt, stopping={"max_tokens": 12}))
        gateway.until_ended(alone[-1])
    assert [one.tokens for one in alone] == [one.tokens for one in together]
    assert {one.finish for one in together} == {LENGTH}
    assert {len(one.tokens) for one in together} == {12}
    last = alone[-1].last
    assert last is not None
    assert last.cached_tokens == 48


def test_a_step_gives_a_gateway_one_message(gateway: Gateway) -> None:
    """Sixteen streams of thirty tokens need some dozens of messages, not 480."""
    before = gateway.messages
    streams = [gateway.submit([9, 9, i], stopping={"max_tokens": 30}) for i in range(16)]
    gateway.until_ended(*streams)
    assert gateway.messages - before < 120


def test_cancel_ends_the_sequence_and_frees_its_blocks(shared: Service, gateway: Gateway) -> None:
    """The end says CANCELLED, or STOP where the gateway matched a stop string."""
    streams = [gateway.submit([5, 6, i], stopping={"max_tokens": 1500}) for i in range(2)]
    gateway.until(lambda: all(stream.tokens for stream in streams))
    gateway.cancel(streams[0])
    gateway.cancel(streams[1], generate_pb2.FINISH_REASON_STOP)
    gateway.until_ended(*streams)
    assert [one.finish for one in streams] == [
        generate_pb2.FINISH_REASON_CANCELLED,
        generate_pb2.FINISH_REASON_STOP,
    ]
    assert all(len(one.tokens) < 1500 for one in streams)
    until_unused(shared)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"sampling": {"temperature": 101.0}}, "sampling.temperature"),
        ({"sampling": {"top_p": float("nan")}}, "sampling.top_p"),
        ({"sampling": {"logit_bias": {9999: 1.0}}}, "sampling.logit_bias id"),
        ({"stopping": {"max_tokens": 5000}}, "stopping.max_tokens"),
        ({"stopping": {"min_tokens": 9}}, "stopping.min_tokens"),
        ({"stopping": {"stop_token_ids": [256]}}, "stopping.stop_token_ids"),
        ({"token_ids": b""}, "token_ids length"),
        ({"token_ids": b"\xff\xff\xff\xff"}, "token_ids"),
        ({"token_ids": b"\1\2\3"}, "token_ids"),
        ({"tenant": b"short"}, "tenant bytes"),
        ({"group": b""}, "group bytes"),
        ({"priority": 2000}, "priority"),
        ({"logprobs": 21}, "logprobs"),
        ({"index": 1}, "index"),
    ],
)
def test_a_bad_submit_is_rejected_with_the_field_and_the_bound(
    gateway: Gateway, fields: dict[str, object], named: str
) -> None:
    """The worker judges every field again, whoever sent it."""
    stream = gateway.submit([5, 6], **fields)
    gateway.until_ended(stream)
    assert stream.error == Invalid.code
    assert stream.message.startswith(named)


def test_garbage_is_dropped_and_the_worker_serves_on(shared: Service, gateway: Gateway) -> None:
    """Frames that are no message, too many of them, or too large, end nothing but themselves."""
    context = zmq.Context()
    noisy = context.socket(zmq.DEALER)
    noisy.setsockopt(zmq.LINGER, 0)
    noisy.connect(f"ipc://{shared.folder / 'worker-w.sock'}")
    for frames in (
        [b""],
        [b"HF"],
        [b"HF\1\5" + os.urandom(50)],
        [b"HF\2\5"],
        [os.urandom(5000)],
        [b"x"] * 50,
    ):
        noisy.send_multipart(frames)
    noisy.send(bytes(9 * 2**20))
    stream = gateway.submit([5, 6, 7])
    gateway.until_ended(stream)
    context.destroy(0)
    assert stream.finish == LENGTH
    assert shared.until_logged("w", "dropped a message on the worker's socket")["reason"]


def test_a_gateway_that_vanishes_takes_its_sequences_along(shared: Service) -> None:
    """Nobody reads what they would give: they end, and their blocks come back."""
    lost = Gateway(shared.folder / "worker-w.sock")
    stream = lost.submit([5, 6, 7], stopping={"max_tokens": 2000})
    lost.until(lambda: stream.tokens)
    lost.close()
    shared.until_logged("w", "a gateway is gone")
    until_unused(shared)


def test_the_end_of_a_request_is_one_line(shared: Service, gateway: Gateway) -> None:
    """Request id, reason, tokens and times stand in one canonical line."""
    stream = gateway.submit([5, 6, 7], request_id="line-1", stopping={"max_tokens": 5})
    gateway.until_ended(stream)
    lines = [line for line in shared.log("w") if line.get("request_id") == "line-1"]
    assert [line["message"] for line in lines] == ["request ended"]
    assert lines[0]["reason"] == "length"
    assert (lines[0]["prompt_tokens"], lines[0]["output_tokens"], lines[0]["preemptions"]) == (3, 5, 0)
    assert {"sequence", "cached_tokens", "queue_s", "ttft_s", "decode_s", "tokens_per_s"} <= lines[0].keys()


def test_the_name_of_a_living_worker_cannot_be_taken(shared: Service, gateway: Gateway) -> None:
    """A second worker of the same name ends with one line, and the first keeps its socket."""
    second = shared.worker("w")
    assert second.wait(DEADLINE_S) == 1
    stream = gateway.submit([5, 6, 7])
    gateway.until_ended(stream)
    assert stream.finish == LENGTH
    assert "error: another process is worker-w" in (shared.folder / "w.log").read_text()


def test_a_daemon_that_is_silent_for_two_seconds_stops_no_step(own: Service) -> None:
    """Tokens are computed while it is silent, shown when it is back, and none is lost."""
    own.worker()
    own.until_logged("w", "ready")
    gateway = own.gateway()
    whole = gateway.submit([5, 6, 7], stopping={"max_tokens": 1800})
    gateway.until(lambda: len(whole.tokens) >= 20)
    pid = own.daemon_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(0.3)
        gateway.pump()
        frozen = len(whole.tokens)
        time.sleep(1.6)
        gateway.pump()
        assert len(whole.tokens) == frozen
    finally:
        os.kill(pid, signal.SIGCONT)
    caught_up = time.monotonic()
    gateway.until(lambda: len(whole.tokens) > frozen + 50 or whole.ended)
    gateway.until_ended(whole)
    again = gateway.submit([5, 6, 7], stopping={"max_tokens": 1800})
    gateway.until_ended(again)
    assert time.monotonic() > caught_up
    assert (len(whole.tokens), whole.finish) == (1800, LENGTH)
    assert whole.tokens == again.tokens


def test_a_killed_daemon_ends_every_request_and_the_worker(own: Service) -> None:
    """Each request hears UNAVAILABLE, the process exits 1 with a line that says why."""
    worker = own.worker()
    own.until_logged("w", "ready")
    gateway = own.gateway()
    streams = [gateway.submit([5, 6, i], stopping={"max_tokens": 1900}) for i in range(3)]
    gateway.until(lambda: all(stream.tokens for stream in streams))
    os.kill(own.daemon_pid(), signal.SIGKILL)
    gateway.until_ended(*streams)
    assert [one.error for one in streams] == [Unavailable.code] * 3
    assert worker.wait(DEADLINE_S) == 1
    assert own.until_logged("w", "worker ends")["reason"] == "the KV manager is gone"


def test_sigterm_finishes_what_runs_and_rejects_what_comes(own: Service) -> None:
    """Draining: the running request gets all its tokens, a new one is told to go elsewhere, exit code 0."""
    worker = own.worker()
    own.until_logged("w", "ready")
    gateway = own.gateway()
    running = gateway.submit([5, 6, 7], stopping={"max_tokens": 900})
    gateway.until(lambda: running.tokens)
    worker.terminate()
    own.until_logged("w", "draining")
    late = gateway.submit([5, 6, 8])
    gateway.until_ended(running, late)
    assert (len(running.tokens), running.finish) == (900, LENGTH)
    assert late.error == Unavailable.code
    assert worker.wait(DEADLINE_S) == 0
    assert not list(own.folder.glob("worker-*"))


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
        one.start("kvmanager", "kvmanager", "serve", "--num-blocks-override", "24")
        one.worker("w", "--max-num-seqs", "8")
        one.until_logged("w", "ready")
        gateway = one.gateway()
        prompts = [[7 + i] * 9 for i in range(6)]
        together = [gateway.submit(prompt, stopping={"max_tokens": 120}) for prompt in prompts]
        gateway.until_ended(*together)
        alone = []
        for prompt in prompts:
            alone.append(gateway.submit(prompt, stopping={"max_tokens": 120}))
            gateway.until_ended(alone[-1])
        assert [stream.tokens for stream in together] == [stream.tokens for stream in alone]
        assert sum(line.get("preemptions", 0) for line in one.log("w")) >= 1
        until_unused(one)
        one.ask("fsck")
