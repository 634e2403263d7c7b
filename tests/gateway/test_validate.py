"""Every field of every request is bounded: what lies outside is INVALID_ARGUMENT that names the field."""

import math

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import bounds, validate
from gateway.errors import Refusal
from holdfast.v1 import generate_pb2 as pb

LIMITS = validate.Limits(max_model_len=100, vocab_size=50, pool_tokens=80)
PROMPT = [1, 2, 3]


def request(**fields):
    return pb.GenerateRequest(**({"token_ids": {"ids": PROMPT}} | fields))


def complete(**fields):
    given = request(**fields)
    validate.check_request(given)
    return validate.complete(given, PROMPT, LIMITS)


def refusal(call, *args, **fields):
    with pytest.raises(Refusal) as caught:
        call(*args, **fields)
    return caught.value


def outside(allowed, kind):
    """Values around the bounds that a field of protobuf type `kind` can hold."""
    step = 1 if kind != "float" else 1e-3
    values = [allowed.low - step, allowed.high + step, -1, 2**31, 2**32 - 1]
    values += [allowed.low] if allowed.open_low else []
    values += [math.nan, math.inf, -math.inf] if kind == "float" else []
    fits = {"float": lambda v: True, "uint32": lambda v: 0 <= v < 2**32}[kind]
    return [v for v in values if fits(v) and not (allowed.low <= v <= allowed.high and not allowed.open_low)
            and not (allowed.open_low and allowed.low < v <= allowed.high)]  # fmt: skip


KINDS = {2: "float", 13: "uint32"}  # FieldDescriptor's numbers of types
TABLE = [
    (part, name, allowed, KINDS[descriptor.fields_by_name[name].type])
    for part, descriptor, ranges in (
        ("sampling", pb.SamplingParams.DESCRIPTOR, bounds.SAMPLING),
        ("response", pb.ResponseOptions.DESCRIPTOR, bounds.RESPONSE),
    )
    for name, allowed in ranges.items()
]
BAD = [(part, name, value) for part, name, allowed, kind in TABLE for value in outside(allowed, kind)]


@pytest.mark.parametrize(("part", "name", "value"), BAD, ids=str)
def test_a_value_outside_the_bounds_is_refused_by_name(part, name, value):
    found = refusal(complete, **{part: {name: int(value) if name in INTEGERS else value}})
    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    assert found.field_name == f"{part}.{name}"
    assert found.details["bound"]


INTEGERS = {name for _, name, _, kind in TABLE if kind == "uint32"}


def inside(allowed, name):
    low = math.nextafter(allowed.low, math.inf) if allowed.open_low else allowed.low
    values = [allowed.high, 1e-6 if allowed.open_low else low]
    return [int(v) if name in INTEGERS else v for v in values if name != "beam_width" or v == 1]


GOOD = [(part, name, value) for part, name, allowed, _ in TABLE for value in inside(allowed, name)]


@pytest.mark.parametrize(("part", "name", "value"), GOOD, ids=str)
def test_the_bounds_themselves_are_accepted(part, name, value):
    complete(**{part: {name: value}})


def test_the_table_covers_every_scalar_field():
    """A field added to the contract must be bounded here, or named as bounded elsewhere."""
    elsewhere = {"logit_bias", "seed", "skip_special_tokens"}
    fields = {f.name for d in (pb.SamplingParams, pb.ResponseOptions) for f in d.DESCRIPTOR.fields}
    assert fields == {name for _, name, _, _ in TABLE} | elsewhere


OTHERS = [
    ("request_id", {"request_id": "x" * 129}),
    ("request_id", {"request_id": "a b"}),
    ("request_id", {"request_id": "é"}),
    ("request_id", {"request_id": "a\n"}),
    ("model", {"model": "m" * 129}),
    ("priority", {"priority": 1001}),
    ("priority", {"priority": -1001}),
    ("priority", {"priority": 2**31 - 1}),
    ("text", {"text": "x" * (2**20 + 1)}),
    ("text", {"text": "🙂" * (2**18 + 1)}),
    ("token_ids.ids", {"token_ids": {"ids": []}}),
    ("chat.messages", {"chat": {"messages": []}}),
    ("chat.messages", {"chat": {"messages": [{"role": "user"}] * 1025}}),
    ("chat.messages", {"chat": {"messages": [{"role": "user", "content": "x" * 2**19}] * 3}}),
    ("chat.messages[1].role", {"chat": {"messages": [{"role": "user"}, {"role": ""}]}}),
    ("chat.messages[0].role", {"chat": {"messages": [{"role": "r" * 65}]}}),
    ("sampling.logit_bias", {"sampling": {"logit_bias": dict.fromkeys(range(1025), 1.0)}}),
    ("sampling.logit_bias[3]", {"sampling": {"logit_bias": {3: 100.5}}}),
    ("sampling.logit_bias[3]", {"sampling": {"logit_bias": {3: math.nan}}}),
    ("sampling.logit_bias[3]", {"sampling": {"logit_bias": {3: -math.inf}}}),
    ("sampling.logit_bias[0]", {"sampling": {"logit_bias": {50: 1.0}}}),
    ("stopping.max_tokens", {"stopping": {"max_tokens": 0}}),
    ("stopping.min_tokens", {"stopping": {"max_tokens": 5, "min_tokens": 6}}),
    ("stopping.min_tokens", {"stopping": {"min_tokens": 78}}),
    ("stopping.stop", {"stopping": {"stop": ["x"] * 17}}),
    ("stopping.stop[1]", {"stopping": {"stop": ["x", ""]}}),
    ("stopping.stop[0]", {"stopping": {"stop": ["x" * 257]}}),
    ("stopping.stop[0]", {"stopping": {"stop": ["🙂" * 65]}}),
    ("stopping.stop_token_ids", {"stopping": {"stop_token_ids": [1] * 65}}),
    ("stopping.stop_token_ids[1]", {"stopping": {"stop_token_ids": [1, 50]}}),
    ("resume", {"resume": [{"index": 0}] * 65}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fields"), OTHERS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(OTHERS)])
def test_every_other_field_is_bounded_too(name, fields):
    if set(fields) & {"text", "chat"}:
        found = refusal(validate.check_request, pb.GenerateRequest(**fields))
    else:
        found = refusal(complete, **fields)
    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    assert found.field_name == name


def test_a_prompt_is_required():
    assert refusal(validate.check_request, pb.GenerateRequest()).reason == "PROMPT_MISSING"
    assert refusal(validate.complete, request(), [], LIMITS).reason == "PROMPT_EMPTY"


def test_ids_of_the_prompt_are_below_the_vocabulary():
    assert refusal(validate.complete, request(), [1, 50], LIMITS).field_name == "token_ids.ids[1]"
    text = pb.GenerateRequest(text="x")
    assert refusal(validate.complete, text, [1, 50], LIMITS).field_name == "prompt[1]"
    assert refusal(validate.complete, request(), [2**31], LIMITS).details["value"] == str(2**31)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stopping": {"max_tokens": 0}}, "stopping.max_tokens: must be at least 1, got 0"),
        ({"sampling": {"n": 2**32 - 1}}, "sampling.n: 4294967295 is outside of [1, 64]"),
        ({"sampling": {"temperature": -0.5}}, "sampling.temperature: -0.5 is outside of [0, 100]"),
        ({"sampling": {"top_p": 0.0}}, "sampling.top_p: 0 is outside of (0, 1]"),
        ({"priority": -1_234_567}, "priority: -1234567 is outside of [-1000, 1000]"),
    ],
)
def test_bounds_are_told_as_a_person_would_write_them(fields, message):
    assert str(refusal(complete, **fields)) == message


@pytest.mark.parametrize(
    ("prompt", "most", "context", "pool", "message"),
    [
        (90, 20, 100, 200, "stopping.max_tokens: prompt of 90 tokens + max_tokens 20 is 110 tokens, "
                           "more than the context of 100"),
        (100, 20, 100, 200, "prompt: prompt of 100 tokens + max_tokens 20 is 120 tokens, "
                            "more than the context of 100"),
        (100, None, 100, 200, "prompt: prompt of 100 tokens + max_tokens 1 is 101 tokens, "
                              "more than the context of 100"),
        (70, 20, 100, 80, "stopping.max_tokens: prompt of 70 tokens + max_tokens 20 is 90 tokens, "
                          "more than the 80 of the KV pool"),
        (80, 1, 100, 80, "prompt: prompt of 80 tokens + max_tokens 1 is 81 tokens, "
                         "more than the 80 of the KV pool"),
    ],
)  # fmt: skip
def test_what_does_not_fit_names_the_field_to_change_and_all_numbers(prompt, most, context, pool, message):
    given = request(stopping={} if most is None else {"max_tokens": most})
    found = refusal(validate.complete, given, [1] * prompt, validate.Limits(context, 50, pool))
    assert str(found) == message
    assert found.field_name == found.details["field"] == message.partition(":")[0]


def test_what_is_not_built_is_unimplemented():
    found = refusal(complete, sampling={"beam_width": 2})
    assert (found.code, found.reason) == (grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED_PARAMETER")


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("request_id", {"resume": [{"index": 0}]}),
        ("resume[1].index", {"request_id": "r", "resume": [{"index": 0}, {"index": 1}]}),
        (
            "resume[1].index",
            {"request_id": "r", "sampling": {"n": 2}, "resume": [{"index": 1}, {"index": 1}]},
        ),
        ("resume[0].index", {"request_id": "r", "sampling": {"n": 2}, "resume": [{"index": 2}]}),
    ],
)
def test_a_resume_names_a_request_and_each_of_its_indexes_at_most_once(name, fields):
    found = refusal(validate.check_request, request(**fields))
    assert (found.code, found.field_name) == (grpc.StatusCode.INVALID_ARGUMENT, name)


@settings(deadline=None)
@given(
    st.integers(1, 200), st.one_of(st.none(), st.integers(1, 200)), st.integers(2, 150), st.integers(2, 150)
)
def test_prompt_and_output_fit_the_context_and_the_pool_or_are_refused(prompt, most, context, pool):
    limits = validate.Limits(context, 50, pool)
    given = request(stopping={} if most is None else {"max_tokens": most})
    wanted = prompt + (most or 1)
    if wanted > min(context, pool):
        found = refusal(validate.complete, given, [1] * prompt, limits)
        assert found.reason == ("PROMPT_TOO_LONG" if wanted > context else "KV_POOL_TOO_SMALL")
    else:
        plan = validate.complete(given, [1] * prompt, limits)
        assert plan.stopping.max_tokens == (most or min(context, pool) - prompt)


def test_prompt_logprobs_of_a_giant_prompt_are_bounded():
    limits = validate.Limits(2**20, 50, 2**20)
    given = request(response={"prompt_logprobs": 20})
    found = refusal(validate.complete, given, [1] * 20_000, limits)
    assert found.field_name == "response.prompt_logprobs"
    validate.complete(given, [1] * 10_000, limits)
    validate.complete(request(), [1] * 500_000, limits)


def test_defaults_are_filled_and_the_request_is_left_alone():
    given = request()
    plan = validate.complete(given, PROMPT, LIMITS)
    assert not given.HasField("sampling")
    for name, allowed in bounds.SAMPLING.items():
        if allowed.default is not None:
            assert plan.sampling.HasField(name)
            assert getattr(plan.sampling, name) == allowed.default
    assert plan.sampling.HasField("seed")
    assert (plan.n, plan.stream_interval, plan.skip_special_tokens) == (1, 1, True)
    assert plan.stopping.max_tokens == 77


def test_zero_and_unset_differ():
    assert complete(sampling={"temperature": 0.0}).sampling.temperature == 0.0
    assert complete(sampling={"seed": 0}).seed == 0
    assert not complete(response={"skip_special_tokens": False}).skip_special_tokens


def test_a_top_k_of_the_whole_vocabulary_is_off():
    assert complete(sampling={"top_k": 50}).sampling.top_k == 0
    assert complete(sampling={"top_k": 2**32 - 1}).sampling.top_k == 0
    assert complete(sampling={"top_k": 49}).sampling.top_k == 49
