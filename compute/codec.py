"""Gateway ↔ worker: protobuf to plain records and back. The only module of compute that knows compute.proto.

Every field of a Submit is judged again here, by the bounds of generate.proto: the peer may be another version, or not
a gateway at all. Frames that are no message are FrameError; a Submit with a bad field is BadSubmit, and is answered.
"""

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from compute.mailbox import Canceled
from compute.plan import Logprob
from compute.request import Request, SamplingParams, StopRules
from compute.scheduler import Rejection, TokenEvent
from holdfast import wire
from holdfast.v1 import compute_pb2, generate_pb2, kvmanager_pb2
from kvmanager.errors import Invalid
from kvmanager.messages import FinishReason, SequenceId

ID_BYTES: Final = 16
TENANT_BYTES: Final = 32
MAX_RECORD_BYTES: Final = 64 * 1024
MAX_REPLY_BYTES: Final = 4 * 2**20  # a Tokens message is cut above it
LOGPROB_BYTES: Final = 16  # of one token, more or less

# field: (lowest, highest) allowed
SAMPLING_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "temperature": (0, 100),
    "top_p": (math.nextafter(0, 1), 1),
    "min_p": (0, 1),
    "repetition_penalty": (math.nextafter(0, 1), 10),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
}
OPTIONAL: Final = ("temperature", "top_p", "repetition_penalty", "seed")
PLAIN: Final = ("top_k", "min_p", "frequency_penalty", "presence_penalty")
MAX_BIASES: Final = 1024
MAX_STOP_IDS: Final = 64


@dataclass(frozen=True, slots=True)
class Bounds:
    """What this worker's model can take."""

    vocab_size: int
    max_model_len: int


class BadSubmit(Exception):  # noqa: N818 - reads as `raise BadSubmit(...)`
    """A Submit with a field out of bounds; `error` names it."""

    def __init__(self, sequence: SequenceId, error: Invalid) -> None:
        super().__init__(error.message)
        self.sequence = sequence
        self.error = error


def decode_request(frame: bytes, bounds: Bounds, client: bytes) -> Request | Canceled:
    """One message of the gateway whose ZeroMQ identity is `client`. FrameError or BadSubmit."""
    message = wire.decode(compute_pb2.WorkerRequest, frame)
    match message.WhichOneof("body"):
        case "submit":
            sequence = sequence_id(message.submit.sequence)
            try:
                return decode_submit(message.submit, bounds, client)
            except Invalid as error:
                raise BadSubmit(sequence, error) from None
        case "cancel":
            matched = message.cancel.reason == generate_pb2.FINISH_REASON_STOP
            reason = FinishReason.STOP if matched else FinishReason.CANCELLED
            return Canceled(sequence_id(message.cancel.sequence), reason)
        case _:
            raise wire.FrameError("a request without a body")


def sequence_id(value: bytes) -> SequenceId:
    if len(value) != ID_BYTES:
        raise wire.FrameError(f"sequence of {len(value)} bytes, expected {ID_BYTES}")
    return SequenceId(value)


# ------------------------------------------------------------------------------------------------- Submit


def decode_submit(submit: compute_pb2.Submit, bounds: Bounds, client: bytes) -> Request:
    """Invalid for the first field out of bounds."""
    within("n", submit.n, 1, 64)
    within("index", submit.index, 0, submit.n - 1)
    within("group bytes", len(submit.group), ID_BYTES, ID_BYTES)
    within("tenant bytes", len(submit.tenant), TENANT_BYTES, TENANT_BYTES)
    within("request_id characters", len(submit.request_id), 0, 128)
    within("priority", submit.priority, -1000, 1000)
    within("arrival_ns", submit.arrival_ns, 0, 2**63 - 1)
    within("logprobs", submit.logprobs, 0, 20)
    within("prompt_logprobs", submit.prompt_logprobs, 0, 20)
    prompt = unpack_ids(submit.token_ids, bounds)
    largest = MAX_REPLY_BYTES // LOGPROB_BYTES
    within("prompt_logprobs x prompt tokens", (submit.prompt_logprobs + 1) * len(prompt), 0, largest)
    stop = decode_stopping(submit.stopping, len(prompt), bounds)
    output = unpack_ids(submit.output_ids, bounds) if submit.output_ids else ()
    within("output_ids length", len(output), 0, stop.max_tokens - 1)
    return Request(
        sequence=SequenceId(submit.sequence),
        group=submit.group,
        index=submit.index,
        n=submit.n,
        request_id=submit.request_id,
        prompt=prompt,
        sampling=decode_sampling(submit.sampling, bounds),
        stop=stop,
        logprobs=submit.logprobs,
        prompt_logprobs=submit.prompt_logprobs,
        priority=submit.priority,
        arrival_ns=submit.arrival_ns,
        tenant=submit.tenant,
        record=record_of(submit),
        client=client,
        adopt=submit.adopt,
        output=output,
    )


def within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # false for NaN
        raise Invalid(f"{name} {value} is not within {low:g}..{high}", field=name, low=low, high=high)


def unpack_ids(packed: bytes, bounds: Bounds) -> Sequence[int]:
    if len(packed) % 4:
        raise Invalid(f"token_ids of {len(packed)} bytes is no list of u32", field="token_ids")
    within("token_ids length", len(packed) // 4, 1, bounds.max_model_len - 1)
    ids = struct.unpack(f"<{len(packed) // 4}I", packed)
    within("token_ids", max(ids), 0, bounds.vocab_size - 1)
    return ids


def decode_sampling(given: generate_pb2.SamplingParams, bounds: Bounds) -> SamplingParams:
    for name, (low, high) in SAMPLING_BOUNDS.items():
        if name in PLAIN or given.HasField(name):
            within(f"sampling.{name}", getattr(given, name), low, high)
    within("sampling.logit_bias entries", len(given.logit_bias), 0, MAX_BIASES)
    for token_id, bias in given.logit_bias.items():
        within("sampling.logit_bias id", token_id, 0, bounds.vocab_size - 1)
        within("sampling.logit_bias", bias, -100, 100)
    plain = {name: getattr(given, name) for name in PLAIN}
    set_ones = {name: getattr(given, name) for name in OPTIONAL if given.HasField(name)}
    return SamplingParams(**plain, **set_ones, logit_bias=dict(given.logit_bias))


def decode_stopping(given: generate_pb2.StoppingCriteria, prompt_len: int, bounds: Bounds) -> StopRules:
    room = bounds.max_model_len - prompt_len
    max_tokens = given.max_tokens if given.HasField("max_tokens") else room
    within("stopping.max_tokens", max_tokens, 1, room)
    within("stopping.min_tokens", given.min_tokens, 0, max_tokens)
    within("stopping.stop_token_ids entries", len(given.stop_token_ids), 0, MAX_STOP_IDS)
    within("stopping.stop_token_ids", max(given.stop_token_ids, default=0), 0, bounds.vocab_size - 1)
    return StopRules(
        max_tokens=max_tokens,
        min_tokens=given.min_tokens,
        stop_token_ids=frozenset(given.stop_token_ids),
        ignore_eos=given.ignore_eos,
    )


def record_of(submit: compute_pb2.Submit) -> bytes:
    """What the daemon keeps for an adopter: everything but the prompt, which it has."""
    bare = compute_pb2.Submit()
    bare.CopyFrom(submit)
    bare.token_ids = bare.output_ids = b""
    bare.adopt = False
    record = bare.SerializeToString()
    within("request bytes", len(record), 0, MAX_RECORD_BYTES)
    return record


# ------------------------------------------------------------------------------------------------ replies


def encode_tokens(step: int, events: Iterable[TokenEvent]) -> Iterator[bytes]:
    """The frames of one step for one gateway: one, but for giant prompt log-probabilities."""
    reply = compute_pb2.WorkerReply()
    reply.tokens.step = step
    size = 0
    for event in events:
        entry = encode_event(event)
        size += entry.ByteSize()
        if size > MAX_REPLY_BYTES and reply.tokens.entries:
            yield wire.encode(reply)
            del reply.tokens.entries[:]
            size = entry.ByteSize()
        reply.tokens.entries.append(entry)
    yield wire.encode(reply)


def encode_event(event: TokenEvent) -> compute_pb2.TokensEntry:
    entry = compute_pb2.TokensEntry(
        sequence=event.sequence,
        epoch=event.epoch,
        first_position=event.first_position,
        token_ids=struct.pack(f"<{len(event.token_ids)}I", *event.token_ids),
        finish=enum(event.finish),
        cached_tokens=event.cached_tokens,
        queue_seconds=event.queue_seconds,
        stalled_seconds=event.stalled_seconds,
    )
    entry.logprobs.extend(map(encode_logprob, event.logprobs))
    entry.prompt_logprobs.extend(map(encode_logprob, event.prompt_logprobs))
    if event.stop_token_id is not None:
        entry.stop_token_id, entry.stopped_by_token = event.stop_token_id, True
    return entry


def encode_logprob(given: Logprob) -> generate_pb2.TokenLogprob:
    return generate_pb2.TokenLogprob(
        token_id=given.token_id,
        logprob=given.logprob,
        rank=given.rank,
        top=[generate_pb2.TopLogprob(token_id=token_id, logprob=value) for token_id, value in given.top],
    )


def encode_rejected(rejection: Rejection) -> bytes:
    error = kvmanager_pb2.Error(
        code=enum(rejection.code), message=rejection.message, details=rejection.details
    )
    return wire.encode(
        compute_pb2.WorkerReply(rejected=compute_pb2.Rejected(sequence=rejection.sequence, error=error))
    )


def enum(value: int) -> Any:
    """The stubs want each enum's own int type; the wire has numbers."""
    return int(value)
