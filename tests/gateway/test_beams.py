"""What a beam search may ask for: refused by the name of the field, or completed."""

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import validate
from gateway.beams import most_tokens
from gateway.errors import Refusal
from holdfast.v1 import generate_pb2 as pb

LIMITS = validate.Limits(max_model_len=200, vocab_size=50, pool_tokens=63 * 16, block_size=16)
PROMPT = [1, 2, 3]


def complete(limits=LIMITS, **fields):
    request = pb.GenerateRequest(**({"token_ids": {"ids": PROMPT}} | fields))
    validate.check_request(request)
    return validate.complete(request, PROMPT, limits)


def beams(width=4, **sampling):
    return {"sampling": {"beam_width": width} | sampling}


OUT_OF_PLACE = [
    ("sampling.temperature", {"sampling": {"temperature": 0.7}}),
    ("sampling.temperature", {"sampling": {"temperature": 1.0}}),
    ("sampling.top_p", {"sampling": {"top_p": 0.9}}),
    ("sampling.top_k", {"sampling": {"top_k": 5}}),
    ("sampling.min_p", {"sampling": {"min_p": 0.1}}),
    ("sampling.repetition_penalty", {"sampling": {"repetition_penalty": 1.1}}),
    ("sampling.frequency_penalty", {"sampling": {"frequency_penalty": 0.5}}),
    ("sampling.presence_penalty", {"sampling": {"presence_penalty": -0.5}}),
    ("sampling.logit_bias", {"sampling": {"logit_bias": {4: 1.0}}}),
    ("sampling.n", {"sampling": {"n": 5}}),
    ("stopping.stop", {"stopping": {"stop": ["x"]}}),
]


@pytest.mark.parametrize(("field", "fields"), OUT_OF_PLACE, ids=str)
def test_what_has_no_meaning_in_a_search_is_refused_by_name(field, fields):
    asked = {part: dict(values) for part, values in fields.items()}
    asked["sampling"] = {"beam_width": 4} | asked.get("sampling", {})
    with pytest.raises(Refusal) as caught:
        complete(**asked)
    assert (caught.value.code, caught.value.field_name) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    asked["sampling"]["beam_width"] = 1
    complete(**asked)


def test_a_search_is_completed_greedy():
    plan = complete(**beams(4, n=4, temperature=0.0, seed=3, length_penalty=0.5))
    assert (plan.beam_width, plan.n, plan.sampling.temperature, plan.seed) == (4, 4, 0.0, 3)
    assert plan.sampling.length_penalty == 0.5
    assert complete(**beams()).sampling.length_penalty == 1.0


def test_beams_that_do_not_fit_the_pool_are_refused_with_the_numbers():
    small = validate.Limits(max_model_len=2000, vocab_size=50, pool_tokens=20 * 16, block_size=16)
    plan = complete(small, **beams(4))
    most = plan.stopping.max_tokens
    assert 0 < most == most_tokens(3, 4, 20 * 16, 16)
    complete(small, **beams(4), stopping={"max_tokens": most})
    with pytest.raises(Refusal) as caught:
        complete(small, **beams(4), stopping={"max_tokens": most + 1})
    assert (caught.value.reason, caught.value.field_name) == ("KV_POOL_TOO_SMALL", "sampling.beam_width")
    assert caught.value.details["most"] == str(most)


@given(st.integers(1, 100), st.integers(2, 64), st.integers(2, 4000), st.sampled_from((8, 16)))
def test_what_fits_holds_all_beams_with_their_fresh_tails(prompt, width, blocks, size):
    most = most_tokens(prompt, width, (blocks - 1) * size, size)
    if most < 1:
        return
    shared, whole = prompt // size, -(-(prompt + most) // size)
    assert shared + width * (whole - shared) + width <= blocks - 1
    assert (3 * width + 1) * (prompt + most) <= 4 * blocks * size


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (beams(48) | {"stopping": {"stop_token_ids": [1, 2], "max_tokens": 1}}, "sampling.beam_width"),
        ({"sampling": {"beam_width": 2}, "response": {"logprobs": 20}}, "response.logprobs"),
    ],
)
def test_what_a_search_cannot_say_is_refused(fields, field):
    limits = validate.Limits(max_model_len=20_000, vocab_size=50, pool_tokens=10**6, block_size=16)
    with pytest.raises(Refusal) as caught:
        complete(limits, **fields)
    assert caught.value.field_name == field
