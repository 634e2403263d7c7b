"""One sequence to generate, as the scheduler and the sampler see it. Plain data; bounds were checked at the link."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvmanager.messages import SequenceId


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is drawn. Temperature 0 is greedy; a value at its default switches its filter off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0  # 64 bits, this index's own


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRules:
    """When a sequence ends by its tokens. Stop strings are the gateway's."""

    max_tokens: int
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A validated Submit. `client` names the gateway that sent it and means nothing to the scheduler."""

    sequence: SequenceId
    group: bytes
    index: int
    n: int = 1  # sequences of the group
    request_id: str
    prompt: Sequence[int]
    sampling: SamplingParams
    stop: StopRules
    logprobs: int = 0
    prompt_logprobs: int = 0
    priority: int = 0
    arrival_ns: int = 0
    tenant: bytes = bytes(32)
    record: bytes = b""  # the Submit without its prompt, kept by the daemon for an adopter
    client: bytes = b""
    adopt: bool = False  # it was submitted before: its record decides how it goes on
    output: Sequence[int] = ()  # with adopt: tokens that were shown, for a daemon without its record
