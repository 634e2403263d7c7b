"""What the client's calls are made of: requests from flat options, chunks, and the typed errors of statuses.

The public names are re-exported by gateway.client, whose docstring draws the tree of errors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from holdfast.v1 import generate_pb2 as pb

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]


class CallError(Exception):
    """`code` is the gRPC status, `reason` and `details` are the server's ErrorInfo."""

    def __init__(self, code: grpc.StatusCode, message: str, reason: str, details: dict[str, str]) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.details = details
        self.retry_seconds: float | None = None


class InvalidRequest(CallError):  # noqa: N818 - the tree above says they are errors
    pass


class Unauthenticated(CallError):  # noqa: N818
    pass


class Busy(CallError):  # noqa: N818
    pass


class Unreachable(CallError):  # noqa: N818
    pass


class DeadlineExpired(CallError):  # noqa: N818
    pass


class Broken(CallError):  # noqa: N818
    pass


_CODE = grpc.StatusCode
ERRORS: Final[Mapping[grpc.StatusCode, type[CallError]]] = {
    _CODE.INVALID_ARGUMENT: InvalidRequest,
    _CODE.FAILED_PRECONDITION: InvalidRequest,
    _CODE.UNIMPLEMENTED: InvalidRequest,
    _CODE.NOT_FOUND: InvalidRequest,
    _CODE.UNAUTHENTICATED: Unauthenticated,
    _CODE.RESOURCE_EXHAUSTED: Busy,
    _CODE.UNAVAILABLE: Unreachable,
    _CODE.DEADLINE_EXCEEDED: DeadlineExpired,
    _CODE.ABORTED: Broken,
    # Our gateway never says this, and what the caller cancels raises CancelledError: the server or a proxy went away.
    _CODE.CANCELLED: Unreachable,
}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of one continuation. `finish` stands in the last one of each index."""

    request_id: str
    index: int
    text: str
    token_ids: tuple[int, ...]
    next_offset: int
    finish: pb.Finish | None
    message: pb.GenerateResponse  # everything else: logprobs, prompt_logprobs


PARTS: Final = (
    ("sampling", pb.SamplingParams.DESCRIPTOR),
    ("stopping", pb.StoppingCriteria.DESCRIPTOR),
    ("response", pb.ResponseOptions.DESCRIPTOR),
)


def build_request(prompt: Prompt, options: Mapping[str, Any]) -> pb.GenerateRequest:
    """The request of a prompt and flat options; TypeError for an option that the contract does not have."""
    rest = {name: value for name, value in options.items() if value is not None}
    fields: dict[str, Any] = {
        name: rest.pop(name) for name in ("request_id", "model", "priority") if name in rest
    }
    for part, descriptor in PARTS:
        fields[part] = {name: rest.pop(name) for name in descriptor.fields_by_name if name in rest}
    if isinstance(prompt, str):
        fields["text"] = prompt
    elif prompt and isinstance(prompt[0], Mapping):
        fields["chat"] = to_chat(prompt, rest.pop("add_generation_prompt", None))
    else:
        fields["token_ids"] = {"ids": prompt}
    if rest:
        raise TypeError(f"unknown option {next(iter(rest))}")
    return pb.GenerateRequest(**fields)


def to_chat(messages: Sequence[Any], add_generation_prompt: bool | None = None) -> pb.ChatPrompt:
    return pb.ChatPrompt(
        messages=[pb.ChatMessage(role=item["role"], content=item["content"]) for item in messages],
        add_generation_prompt=add_generation_prompt,
    )


def to_chunk(message: pb.GenerateResponse) -> Chunk:
    return Chunk(
        message.request_id,
        message.index,
        message.text,
        tuple(message.token_ids),
        message.next_offset,
        message.finish if message.HasField("finish") else None,
        message,
    )


async def to_error(error: grpc.aio.AioRpcError, call: Any, shown: bool) -> CallError:
    """The typed error of a status. `shown`: chunks of the request were handed on, so that what would be a reason to
    send it again is Broken.
    """
    reason, details, retry = "", {}, None
    status = await rpc_status.aio.from_call(call)
    for item in status.details if status else ():
        info, delay = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if item.Unpack(info):
            reason, details = info.reason, dict(info.metadata)
        elif item.Unpack(delay):
            retry = delay.retry_delay.ToMilliseconds() / 1000
    kind = ERRORS.get(error.code(), CallError)
    broken = shown and (kind is Unreachable or reason == "REQUEST_UNKNOWN")
    found = (Broken if broken else kind)(error.code(), error.details() or error.code().name, reason, details)
    found.retry_seconds = retry
    return found
