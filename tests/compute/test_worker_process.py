"""A real worker beside a real KV manager: what a gateway sees of it, while both live."""

import os
from collections.abc import Iterator

import pytest
import zmq

from holdfast.v1 import generate_pb2
from kvmanager.errors import Invalid
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
def gateway(shared: Service) -> Gateway:
    return shared.gateway()


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
    shared.until_unused()


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


def test_a_gateway_that_vanishes_leaves_its_sequences_to_another(shared: Service, gateway: Gateway) -> None:
    """They run on; whoever asks for one hears its last token again, and the rest."""
    lost = Gateway(shared.folder / "worker-w.sock")
    stream = lost.submit([5, 6, 7], stopping={"max_tokens": 2000})
    lost.until(lambda: len(stream.tokens) > 5)
    lost.close()
    shared.until_logged("w", "a gateway is gone")
    (sequence,) = lost.streams
    rest = gateway.submit([5, 6, 7], sequence=sequence, stopping={"max_tokens": 2000}, adopt=True)
    gateway.until_ended(rest)
    assert rest.last is not None
    assert (rest.finish, rest.last.first_position) == (LENGTH, 3 + 2000 - 1)
    assert len(stream.tokens) <= 2000 - len(rest.tokens) + 1
    shared.until_unused()


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
