"""What worker and gateway say to each other survives the wire: each side's own code reads the other's bytes."""

import math
import struct

import pytest

from compute.codec import MAX_REPLY_BYTES, BadSubmit, Bounds, decode_request, encode_rejected, encode_tokens
from compute.mailbox import Canceled
from compute.plan import Logprob
from compute.request import Request
from compute.scheduler import Rejection, TokenEvent
from gateway import workers
from holdfast import wire
from holdfast.v1 import compute_pb2, generate_pb2
from kvmanager.errors import BY_CODE, Invalid
from kvmanager.messages import FinishReason, SequenceId

BOUNDS = Bounds(vocab_size=100, max_model_len=64)
SEQUENCE = SequenceId(bytes(range(16)))


def submit(**fields: object) -> bytes:
    given: dict[str, object] = {
        "sequence": SEQUENCE,
        "group": bytes(16),
        "n": 1,
        "token_ids": struct.pack("<3I", 1, 2, 99),
        "sampling": generate_pb2.SamplingParams(
            temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, seed=2**64 - 1, logit_bias={5: -1.5}
        ),
        "stopping": generate_pb2.StoppingCriteria(
            max_tokens=10, min_tokens=2, stop_token_ids=[4], stop=["x"]
        ),
        "arrival_ns": 77,
        "priority": -3,
        "tenant": bytes(32),
        "logprobs": 2,
    }
    return wire.encode(compute_pb2.WorkerRequest(submit=compute_pb2.Submit(**(given | fields))))  # type: ignore[arg-type]


def test_a_submit_becomes_a_request_with_every_field() -> None:
    """Unset optionals get the contract's defaults; the record for an adopter has all but the prompt."""
    request = decode_request(submit(), BOUNDS, b"peer")
    assert isinstance(request, Request)
    assert list(request.prompt) == [1, 2, 99]
    assert (request.sampling.top_k, request.sampling.seed, request.sampling.repetition_penalty) == (
        7,
        2**64 - 1,
        1.0,
    )
    assert math.isclose(request.sampling.temperature, 0.5)
    assert dict(request.sampling.logit_bias) == {5: -1.5}
    assert (request.stop.max_tokens, request.stop.min_tokens, request.stop.stop_token_ids) == (10, 2, {4})
    assert (request.priority, request.arrival_ns, request.logprobs, request.client) == (-3, 77, 2, b"peer")
    record = compute_pb2.Submit.FromString(request.record)
    assert (record.token_ids, list(record.stopping.stop)) == (b"", ["x"])


def test_without_max_tokens_the_rest_of_the_context_is_meant() -> None:
    """The default of the contract."""
    request = decode_request(submit(stopping=generate_pb2.StoppingCriteria()), BOUNDS, b"")
    assert isinstance(request, Request)
    assert request.stop.max_tokens == 61


def test_the_prompt_leaves_room_for_a_token() -> None:
    """A prompt as long as the context is refused, with the bound."""
    with pytest.raises(BadSubmit) as caught:
        decode_request(submit(token_ids=bytes(4 * 64)), BOUNDS, b"")
    assert caught.value.error.details == {"field": "token_ids length", "low": "1", "high": "63"}


def test_cancel_keeps_the_reason_that_a_gateway_may_give() -> None:
    """STOP for a matched stop string; everything else is CANCELLED."""
    for given, kept in ((1, FinishReason.STOP), (4, FinishReason.CANCELLED), (0, FinishReason.CANCELLED)):
        frame = wire.encode(
            compute_pb2.WorkerRequest(cancel=compute_pb2.Cancel(sequence=SEQUENCE, reason=given))  # type: ignore[arg-type]
        )
        assert decode_request(frame, BOUNDS, b"") == Canceled(SEQUENCE, kept)


@pytest.mark.parametrize("frame", [b"", b"HF\1\5\xff\xff", wire.encode(compute_pb2.WorkerRequest())])
def test_what_is_no_message_is_a_frame_error(frame: bytes) -> None:
    """Nothing else may leave the decoder."""
    with pytest.raises(wire.FrameError):
        decode_request(frame, BOUNDS, b"")


def event(**fields: object) -> TokenEvent:
    given: dict[str, object] = {"sequence": SEQUENCE, "client": b"c", "epoch": 3, "first_position": 9}
    return TokenEvent(**(given | fields))  # type: ignore[arg-type]


def test_the_gateway_reads_the_tokens_that_the_worker_wrote() -> None:
    """Ids, log-probabilities, finish and times arrive as they left."""
    logprob = Logprob(7, -0.5, 2, ((8, -0.25), (7, -0.5)))
    sent = event(
        token_ids=(7,),
        logprobs=(logprob,),
        finish=FinishReason.STOP,
        stop_token_id=0,
        cached_tokens=16,
        queue_seconds=0.5,
        stalled_seconds=0.25,
    )
    (frame,) = encode_tokens(5, [sent])
    (entry,) = wire.decode(compute_pb2.WorkerReply, frame).tokens.entries
    got = workers.from_entry(entry)
    assert (got.sequence, got.epoch, got.first_position, tuple(got.token_ids)) == (SEQUENCE, 3, 9, (7,))
    assert (got.finish, got.stop_token_id, got.cached_tokens) == (FinishReason.STOP, 0, 16)
    assert (got.queue_seconds, got.stalled_seconds) == (0.5, 0.25)
    assert [(top.token_id, top.logprob) for top in got.logprobs[0].top] == [(8, -0.25), (7, -0.5)]


def test_giant_prompt_logprobs_are_cut_into_several_messages() -> None:
    """No frame comes near the limit, and nothing is lost."""
    many = [Logprob(i % 100, -1.0, 1, [(k, -1.0) for k in range(20)]) for i in range(8000)]
    frames = list(encode_tokens(1, [event(prompt_logprobs=many) for _ in range(4)]))
    assert len(frames) > 1
    assert max(map(len, frames)) <= MAX_REPLY_BYTES + 2**16
    replies = [wire.decode(compute_pb2.WorkerReply, frame) for frame in frames]
    assert sum(len(reply.tokens.entries) for reply in replies) == 4


def test_a_rejection_carries_code_message_and_details() -> None:
    """What the daemon said about a request reaches its gateway."""
    rejection = Rejection(
        sequence=SEQUENCE, client=b"c", code=Invalid.code, message="no", details={"needed_blocks": "13"}
    )
    reply = wire.decode(compute_pb2.WorkerReply, encode_rejected(rejection))
    assert workers.from_rejected(reply.rejected).details == {"needed_blocks": "13"}
    assert BY_CODE[reply.rejected.error.code] is Invalid


NAMES = [bytes(SEQUENCE), bytes([7]) * 16]


def search(**changes: object) -> bytes:
    sampling = {"temperature": 0.0, "beam_width": 4, "length_penalty": -0.5}
    given: dict[str, object] = {"n": 2, "hypotheses": NAMES} | changes
    sampling |= given.pop("sampling", {})  # type: ignore[arg-type]
    return submit(sampling=generate_pb2.SamplingParams(**sampling), **given)  # type: ignore[arg-type]


def test_a_search_is_one_submit_that_names_all_its_answers() -> None:
    request = decode_request(search(), BOUNDS, b"peer")
    assert isinstance(request, Request)
    assert request.beams is not None
    assert (request.beams.width, request.beams.length_penalty) == (4, -0.5)
    assert list(request.indexes) == NAMES
    plain = decode_request(submit(), BOUNDS, b"peer")
    assert isinstance(plain, Request)
    assert (plain.beams, list(plain.indexes)) == (None, [SEQUENCE])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sampling": {"beam_width": 65}}, "sampling.beam_width"),
        ({"sampling": {"beam_width": 1}}, "sampling.beam_width"),
        ({"sampling": {"length_penalty": 11}}, "sampling.length_penalty"),
        ({"sampling": {"length_penalty": math.nan}}, "sampling.length_penalty"),
        ({"n": 5, "hypotheses": [bytes([i]) * 16 for i in range(5)]}, "n"),
        ({"hypotheses": []}, "hypotheses"),
        ({"hypotheses": NAMES[:1] * 2}, "hypotheses"),
        ({"hypotheses": NAMES[::-1]}, "hypotheses"),
        ({"hypotheses": [NAMES[0], b"short"]}, "hypotheses"),
    ],
)
def test_a_search_out_of_bounds_is_refused_by_name(changes: dict[str, object], field: str) -> None:
    with pytest.raises(BadSubmit) as caught:
        decode_request(search(**changes), BOUNDS, b"peer")
    assert caught.value.error.details["field"] == field


def test_an_answer_carries_its_score() -> None:
    event = TokenEvent(sequence=SEQUENCE, client=b"c", epoch=1, first_position=3, token_ids=[4], score=-0.25)
    assert entry_of(event).score == -0.25


def entry_of(event: TokenEvent) -> compute_pb2.TokensEntry:
    (frame,) = encode_tokens(1, [event])
    return wire.decode(compute_pb2.WorkerReply, frame).tokens.entries[0]
