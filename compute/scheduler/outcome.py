"""What a step boundary has to say: to the daemon, to the gateways, to the log. Plain data."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from compute.plan import Logprob
from compute.request import Request
from kvmanager.messages import Commit, FinishReason, Release, SequenceId, SequenceRef


@dataclass(slots=True, kw_only=True)
class TokenEvent:
    """What one step gave one sequence; shown only after the Outcome's commit was recorded (protocol rule 3).

    Made once a token: not frozen, because that triples its cost.
    """

    sequence: SequenceId
    client: bytes
    epoch: int
    first_position: int  # of token_ids[0]; the end of the sequence when there is none
    token_ids: Sequence[int] = ()
    logprobs: Sequence[Logprob] = ()
    prompt_logprobs: Sequence[Logprob] = ()  # all of them, with the first token
    finish: FinishReason = FinishReason.NONE
    stop_token_id: int | None = None
    cached_tokens: int = 0
    queue_seconds: float = 0.0
    stalled_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """The sequence will not be generated (any more). `code` is a wire code of kvmanager.errors."""

    sequence: SequenceId
    client: bytes
    code: int
    message: str
    details: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HandedOver:
    """A sequence that this worker has stopped and dropped; its gateway hears so once that is recorded."""

    ref: SequenceRef
    rejection: Rejection


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One request's end, for the canonical log line. Times in seconds, None where it never came so far."""

    request: Request
    reason: str
    output_tokens: int
    cached_tokens: int
    preemptions: int
    queue_s: float | None
    ttft_s: float | None
    decode_s: float | None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`commit`, then `release`, then what was handed over, go to the daemon; `events` wait for the commit's
    acknowledgement, if there is one."""

    commit: Commit | None = None
    release: Release | None = None
    events: Sequence[TokenEvent] = ()
    rejections: Sequence[Rejection] = ()
    ended: Sequence[Ended] = ()
    handed_over: Sequence[HandedOver] = ()
