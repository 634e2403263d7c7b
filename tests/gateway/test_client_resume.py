"""The client's judgement of failed calls, and what it asks for next."""

import grpc
import pytest

from gateway.client_calls import ERRORS, Broken, Busy, CallError
from gateway.client_resume import Received, Tries, resumable
from holdfast.v1 import generate_pb2 as pb

Code = grpc.StatusCode


def error(code, reason=""):
    return ERRORS.get(code, CallError)(code, "why", reason, {})


def message(index, offset, finish=None):
    return pb.GenerateResponse(index=index, next_offset=offset, finish=finish)


def test_offsets_are_asked_for_and_a_finished_index_is_not_handed_on_twice():
    received = Received(pb.GenerateRequest(request_id="r", sampling=pb.SamplingParams(n=3)))
    assert not received.anything
    assert not received.next_request().resume
    assert received.take(message(2, 4))
    assert received.take(message(0, 1))
    assert received.take(message(2, 7, pb.Finish()))
    assert [(r.index, r.offset) for r in received.next_request().resume] == [(0, 1), (2, 7)]
    assert not received.take(message(2, 7, pb.Finish()))  # a resumed call says it again
    assert received.take(message(0, 2, pb.Finish()))
    assert not received.everything
    assert received.take(message(1, 0, pb.Finish()))
    assert received.everything


def test_a_request_for_nothing_has_not_got_everything():
    """The server's word on n = 0 is to be heard, not swallowed as what comes after the last finish."""
    received = Received(pb.GenerateRequest(request_id="r", sampling=pb.SamplingParams(n=0)))
    assert not received.everything


@pytest.mark.parametrize(
    ("code", "reason", "again"),
    [
        (Code.UNAVAILABLE, "", True),
        (Code.CANCELLED, "", True),
        (Code.INTERNAL, "", True),  # the transport's: the gateway's own has a reason
        (Code.INTERNAL, "INTERNAL", False),
        (Code.UNAVAILABLE, "NO_WORKER", True),
        (Code.ABORTED, "WORKER_LOST", True),
        (Code.ABORTED, "SHUTTING_DOWN", True),
        (Code.ABORTED, "RECORD_LOST", False),
        (Code.ABORTED, "RESUMED_ELSEWHERE", False),
        (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", True),
        (Code.NOT_FOUND, "REQUEST_UNKNOWN", False),
        (Code.INVALID_ARGUMENT, "RESUME_MISMATCH", False),
        (Code.DEADLINE_EXCEEDED, "", False),
        (Code.UNAUTHENTICATED, "UNAUTHENTICATED", False),
    ],
)
def test_what_may_be_had_later_is_resumed_and_nothing_else(code, reason, again):
    assert resumable(error(code, reason)) is again


def test_pauses_grow_until_a_chunk_comes_and_are_bounded_by_the_time_since_the_break():
    told = []
    tries = Tries(0, 60.0, None, lambda why, seconds: told.append((type(why), seconds)))
    broken = Broken(Code.UNAVAILABLE, "gone", "", {})
    assert [tries.after(broken, True) for _ in range(7)] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    tries.went_on()
    assert tries.after(Busy(Code.RESOURCE_EXHAUSTED, "many", "QUEUE_FULL", {}), True) == 0.1
    assert told == [(Broken, 60.0), (Busy, 60.0)]
    with pytest.raises(Broken):
        Tries(3, 0.0, None, None).after(broken, True)
