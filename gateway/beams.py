"""What a beam search asks of a request and of the pool. Pure judgements; `validate` calls them."""

from collections.abc import Sequence
from typing import Final

import grpc

from gateway import bounds
from gateway.errors import Refusal, invalid
from holdfast.v1 import generate_pb2 as pb

OFF: Final = ("top_k", "min_p", "frequency_penalty", "presence_penalty")


def check_beams(request: pb.GenerateRequest) -> None:
    """Refusal for what has no meaning in a search: it is greedy, and ends by tokens alone."""
    sampling = request.sampling
    if sampling.beam_width <= 1:
        return
    n = sampling.n if sampling.HasField("n") else 1
    if n > sampling.beam_width:
        raise invalid("sampling.n", f"{n} is more than beam_width {sampling.beam_width}", value=n)
    if sampling.HasField("temperature") and sampling.temperature != 0.0:
        raise out_of_place("temperature", "unset or 0")
    for name in ("top_p", "repetition_penalty"):
        if sampling.HasField(name) and getattr(sampling, name) != 1.0:
            raise out_of_place(name, "unset or 1")
    for name in OFF:
        if getattr(sampling, name):
            raise out_of_place(name, "unset or 0")
    if sampling.logit_bias:
        raise out_of_place("logit_bias", "empty")
    if request.stopping.stop:
        raise invalid("stopping.stop", "a beam search has no stop strings: it ends by stop_token_ids")


def out_of_place(name: str, wanted: str) -> Refusal:
    return invalid(f"sampling.{name}", f"a beam search is greedy: {wanted} with beam_width")


def most_tokens(prompt: int, width: int, pool_tokens: int, block_size: int) -> int:
    """max_tokens for which the pool can hold `width` beams that share no more than the prompt's whole blocks.

    prompt's blocks + width x own blocks + width (fresh tails, while those of lost beams return) <= blocks - 1; and in
    one step the daemon records up to three outputs a beam, and the request, in an arena of four times the pool's slots.
    """
    shared = prompt // block_size
    own = (pool_tokens // block_size - shared - width) // width
    recorded = 4 * (pool_tokens + block_size) // (3 * width + 1)
    return min((shared + own) * block_size, recorded) - prompt


def check_room(stopping: pb.StoppingCriteria, prompt: int, width: int, most: int) -> None:
    """Refusal unless what is asked for fits."""
    if most < 1 or (stopping.HasField("max_tokens") and stopping.max_tokens > most):
        wanted = stopping.max_tokens if stopping.HasField("max_tokens") else 1
        raise Refusal(
            grpc.StatusCode.FAILED_PRECONDITION,
            "KV_POOL_TOO_SMALL",
            f"sampling.beam_width: {width} beams of {prompt} prompt tokens + max_tokens {wanted} are more than the KV "
            f"pool holds, which has room for max_tokens {max(most, 0)}",
            {"field": "sampling.beam_width", "max_tokens": str(wanted), "most": str(max(most, 0))},
            field_name="sampling.beam_width",
        )


def check_ends(width: int, stop_ids: Sequence[int], vocab_size: int) -> None:
    """So many tokens that `width` of them end no beam, whatever the model's ends of text are."""
    if width + len(set(stop_ids)) >= vocab_size:
        raise invalid(
            "sampling.beam_width", f"{width} and the stop_token_ids leave no choice of {vocab_size} tokens"
        )


def check_logprobs(top: int, max_tokens: int) -> None:
    """They travel in one message an index."""
    if top and (top + 1) * max_tokens > bounds.MAX_PROMPT_LOGPROBS:
        most = bounds.MAX_PROMPT_LOGPROBS // max_tokens - 1
        raise invalid("response.logprobs", f"{top} is more than {most}, for beams of {max_tokens} tokens")
