"""The one judge of what a client may ask: bounds of every field, defaults of every unset one.

`check_request` needs no model and runs first; `complete` needs the prompt's length and the model's limits. Both raise
Refusal and change nothing of the client's message; what leaves is a `Plan` whose Submit fields are all filled.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from gateway import bounds
from gateway.errors import Refusal, invalid, unsupported
from holdfast.v1 import generate_pb2 as pb


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model and its pool can hold. `pool_tokens`: (num_blocks - 1) x block_size."""

    max_model_len: int
    vocab_size: int
    pool_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A request with every default filled. `seed` is index 0's; index i draws with mix(seed, i)."""

    prompt: Sequence[int]
    sampling: pb.SamplingParams
    stopping: pb.StoppingCriteria
    n: int
    seed: int
    logprobs: int
    prompt_logprobs: int
    skip_special_tokens: bool
    stream_interval: int
    priority: int


def check_request(request: pb.GenerateRequest) -> None:
    """Refusal for the first field outside the bounds that hold for every model."""
    check_name("request_id", request.request_id)
    check_model_name(request.model)
    check_prompt(request)
    check_ranges("sampling", request.sampling, bounds.SAMPLING)
    check_biases(request.sampling.logit_bias)
    check_stopping(request.stopping)
    check_ranges("response", request.response, bounds.RESPONSE)
    bounds.PRIORITY.check("priority", request.priority)
    check_resume(request)
    check_unbuilt(request)


def check_name(name: str, value: str) -> None:
    if not bounds.REQUEST_ID.fullmatch(value):
        raise invalid(name, "at most 128 characters of [A-Za-z0-9._:-]")


def check_model_name(value: str) -> None:
    if len(value) > bounds.MAX_NAME_CHARACTERS:
        raise invalid("model", f"at most {bounds.MAX_NAME_CHARACTERS} characters")


def check_prompt(request: pb.GenerateRequest) -> None:
    match request.WhichOneof("prompt"):
        case "text":
            check_text("text", request.text)  # an empty one may still have a token: the model's begin of text
        case "token_ids":
            if not request.token_ids.ids:
                raise invalid("token_ids.ids", "at least one id", "PROMPT_EMPTY")
        case "chat":
            check_chat(request.chat)
        case _:
            raise invalid("prompt", "exactly one of text, token_ids and chat is required", "PROMPT_MISSING")


def check_text(name: str, text: str) -> None:
    if len(text.encode()) > bounds.MAX_TEXT_BYTES:
        raise invalid(name, f"at most {bounds.MAX_TEXT_BYTES} bytes of UTF-8", "PROMPT_TOO_LONG")


def check_chat(chat: pb.ChatPrompt) -> None:
    if not 1 <= len(chat.messages) <= bounds.MAX_MESSAGES:
        raise invalid("chat.messages", f"{len(chat.messages)} is outside of [1, {bounds.MAX_MESSAGES}]")
    for index, message in enumerate(chat.messages):
        if not 1 <= len(message.role) <= bounds.MAX_ROLE_CHARACTERS:
            raise invalid(f"chat.messages[{index}].role", f"1..{bounds.MAX_ROLE_CHARACTERS} characters")
    if sum(len(message.content.encode()) for message in chat.messages) > bounds.MAX_TEXT_BYTES:
        raise invalid("chat.messages", f"at most {bounds.MAX_TEXT_BYTES} bytes of UTF-8", "PROMPT_TOO_LONG")


def check_ranges(prefix: str, message: Any, ranges: Mapping[str, bounds.Range]) -> None:
    for name, allowed in ranges.items():
        if allowed.default is None or message.HasField(name):
            allowed.check(f"{prefix}.{name}", getattr(message, name))


def check_biases(biases: Mapping[int, float]) -> None:
    if len(biases) > bounds.MAX_BIASES:
        raise invalid("sampling.logit_bias", f"at most {bounds.MAX_BIASES} entries, got {len(biases)}")
    for token_id, value in biases.items():
        bounds.BIAS.check(f"sampling.logit_bias[{token_id}]", value)


def check_stopping(stopping: pb.StoppingCriteria) -> None:
    if stopping.HasField("max_tokens"):
        bounds.MAX_TOKENS.check("stopping.max_tokens", stopping.max_tokens)
        check_min_tokens(stopping.min_tokens, stopping.max_tokens)
    if len(stopping.stop) > bounds.MAX_STOPS:
        raise invalid("stopping.stop", f"at most {bounds.MAX_STOPS} strings, got {len(stopping.stop)}")
    for index, text in enumerate(stopping.stop):
        if not 1 <= len(text.encode()) <= bounds.MAX_STOP_BYTES:
            raise invalid(f"stopping.stop[{index}]", f"1..{bounds.MAX_STOP_BYTES} bytes of UTF-8")
    if len(stopping.stop_token_ids) > bounds.MAX_STOP_IDS:
        got = len(stopping.stop_token_ids)
        raise invalid("stopping.stop_token_ids", f"at most {bounds.MAX_STOP_IDS} ids, got {got}")


def check_min_tokens(least: int, most: int) -> None:
    if least > most:
        raise invalid("stopping.min_tokens", f"{least} is more than max_tokens {most}", value=least)


def num_indexes(request: pb.GenerateRequest) -> int:
    """n, in a request that has been checked."""
    return request.sampling.n if request.sampling.HasField("n") else 1


def check_resume(request: pb.GenerateRequest) -> None:
    """Each index at most once, and below n; offsets are judged by the record."""
    if len(request.resume) > bounds.MAX_RESUMES:
        raise invalid("resume", f"at most {bounds.MAX_RESUMES} entries, got {len(request.resume)}")
    if request.resume and not request.request_id:
        raise invalid("request_id", "required with resume")
    seen: set[int] = set()
    for place, entry in enumerate(request.resume):
        if entry.index >= num_indexes(request):
            bound = f"{entry.index} is not below n, which is {num_indexes(request)}"
            raise invalid(f"resume[{place}].index", bound, value=entry.index)
        if entry.index in seen:
            raise invalid(f"resume[{place}].index", f"{entry.index} stands there twice", value=entry.index)
        seen.add(entry.index)


def check_unbuilt(request: pb.GenerateRequest) -> None:
    if request.sampling.beam_width > 1:
        raise unsupported("sampling.beam_width", "beam search is not built yet")


def check_prompt_logprobs(top: int, prompt: int) -> None:
    if top and (top + 1) * prompt > bounds.MAX_PROMPT_LOGPROBS:
        most = bounds.MAX_PROMPT_LOGPROBS // prompt - 1
        raise invalid("response.prompt_logprobs", f"{top} is more than {most}, for {prompt} prompt tokens")


def check_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    if max(ids, default=0) < vocab_size:
        return
    for index, token_id in enumerate(ids):
        if token_id >= vocab_size:
            raise invalid(f"{name}[{index}]", f"id {token_id} is not below {vocab_size}", value=token_id)


def complete(request: pb.GenerateRequest, prompt: Sequence[int], limits: Limits) -> Plan:
    """The request with every default filled, within the model's limits; Refusal if it does not fit."""
    if not prompt:
        raise invalid("prompt", "at least one token", "PROMPT_EMPTY")
    stopping = complete_stopping(request.stopping, len(prompt), limits)
    check_ids("token_ids.ids" if request.HasField("token_ids") else "prompt", prompt, limits.vocab_size)
    check_ids("stopping.stop_token_ids", stopping.stop_token_ids, limits.vocab_size)
    check_ids("sampling.logit_bias", sorted(request.sampling.logit_bias), limits.vocab_size)
    sampling = complete_sampling(request.sampling, limits.vocab_size)
    response = request.response
    check_prompt_logprobs(response.prompt_logprobs, len(prompt))
    return Plan(
        prompt=prompt,
        sampling=sampling,
        stopping=stopping,
        n=sampling.n,
        seed=sampling.seed,
        logprobs=response.logprobs,
        prompt_logprobs=response.prompt_logprobs,
        skip_special_tokens=skips_special_tokens(response),
        stream_interval=stream_interval(response),
        priority=request.priority,
    )


def skips_special_tokens(response: pb.ResponseOptions) -> bool:
    return response.skip_special_tokens if response.HasField("skip_special_tokens") else True


def stream_interval(response: pb.ResponseOptions) -> int:
    return response.stream_interval if response.HasField("stream_interval") else 1


def complete_sampling(given: pb.SamplingParams, vocab_size: int) -> pb.SamplingParams:
    """A copy with no unset field; top_k at or above the vocabulary is "off"."""
    sampling = pb.SamplingParams()
    sampling.CopyFrom(given)
    for name, allowed in bounds.SAMPLING.items():
        if allowed.default is not None and not given.HasField(name):
            setattr(sampling, name, type(getattr(given, name))(allowed.default))
    if not given.HasField("seed"):
        sampling.seed = secrets.randbits(64)
    if sampling.top_k >= vocab_size:
        sampling.top_k = 0
    return sampling


def complete_stopping(given: pb.StoppingCriteria, prompt: int, limits: Limits) -> pb.StoppingCriteria:
    """A copy with max_tokens set: asked for, or the rest of the context and of the pool.

    0 ......... prompt ............ prompt + max_tokens <= min(context, pool)
    """
    wanted = given.max_tokens if given.HasField("max_tokens") else 1
    for room, refused in ((limits.max_model_len, prompt_too_long), (limits.pool_tokens, pool_too_small)):
        if prompt + wanted > room:
            raise refused(prompt, wanted, room)
    stopping = pb.StoppingCriteria()
    stopping.CopyFrom(given)
    if not given.HasField("max_tokens"):
        stopping.max_tokens = min(limits.max_model_len, limits.pool_tokens) - prompt
    check_min_tokens(stopping.min_tokens, stopping.max_tokens)
    return stopping


def too_much(prompt: int, wanted: int, room: int) -> tuple[str, str]:
    """The field to change, and what both fields come to: the prompt only if no max_tokens would fit beside it."""
    field = "prompt" if prompt >= room else "stopping.max_tokens"
    return field, f"prompt of {prompt} tokens + max_tokens {wanted} is {prompt + wanted} tokens, more than"


def prompt_too_long(prompt: int, wanted: int, context: int) -> Refusal:
    field, sum_is_more_than = too_much(prompt, wanted, context)
    return invalid(
        field,
        f"{sum_is_more_than} the context of {context}",
        "PROMPT_TOO_LONG",
        prompt_tokens=prompt,
        max_tokens=wanted,
        max_model_len=context,
    )


def pool_too_small(prompt: int, wanted: int, pool: int) -> Refusal:
    field, sum_is_more_than = too_much(prompt, wanted, pool)
    return Refusal(
        grpc.StatusCode.FAILED_PRECONDITION,
        "KV_POOL_TOO_SMALL",
        f"{field}: {sum_is_more_than} the {pool} of the KV pool",
        {"field": field, "needed_tokens": str(prompt + wanted), "pool_tokens": str(pool)},
        field_name=field,
    )
