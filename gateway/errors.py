"""Errors of the gateway, as gRPC clients see them: a status code, a message, and google.rpc details.

Every refusal is a `Refusal`; `FIELD_REASONS` and `WIRE` are the whole list of what can be told. What a peer inside
the service says (a worker's or the daemon's Error) is translated by the total table `WIRE`: its code becomes a status
and a reason, and its own message never leaves, because it may name addresses, files or other tenants' ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN: Final = "holdfast"


@dataclass(eq=False)
class Refusal(Exception):  # noqa: N818 - reads as `raise Refusal(...)`
    """A request that ends with a status. `details` are strings a program may read; `field` names a bad field."""

    code: grpc.StatusCode
    reason: str
    message: str
    details: Mapping[str, str] = field(default_factory=dict)
    field_name: str = ""
    retry_seconds: float | None = None

    def __str__(self) -> str:
        return self.message


def invalid(name: str, bound: str, reason: str = "INVALID_ARGUMENT", **details: object) -> Refusal:
    """`name` is outside `bound`; both are told."""
    return Refusal(
        grpc.StatusCode.INVALID_ARGUMENT,
        reason,
        f"{name}: {bound}",
        {"field": name, "bound": bound} | {key: str(value) for key, value in details.items()},
        field_name=name,
    )


def unsupported(name: str, why: str) -> Refusal:
    return Refusal(
        grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED_PARAMETER", f"{name}: {why}", {"field": name}, name
    )


def unavailable(reason: str, message: str, retry_seconds: float = 1.0) -> Refusal:
    """Nothing was shown yet: the client may send the request again."""
    return Refusal(grpc.StatusCode.UNAVAILABLE, reason, message, retry_seconds=retry_seconds)


def exhausted(reason: str, message: str, retry_seconds: float = 1.0) -> Refusal:
    return Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, reason, message, retry_seconds=retry_seconds)


def worker_lost() -> Refusal:
    """Tokens were shown and their worker is gone: the client must not replay blindly."""
    return Refusal(
        grpc.StatusCode.ABORTED,
        "WORKER_LOST",
        "the worker was lost after the first token; output is incomplete",
    )


def internal(reason: str = "INTERNAL") -> Refusal:
    return Refusal(grpc.StatusCode.INTERNAL, reason, "internal error")


class Told(NamedTuple):
    """What a client hears about an error inside the service."""

    code: grpc.StatusCode
    reason: str
    message: str
    retry_seconds: float | None = None
    shown: frozenset[str] = frozenset()  # details that may pass: numbers of the request's own


_CODE = grpc.StatusCode
# By holdfast.v1.ErrorCode; a test holds it total.
WIRE: Final[Mapping[int, Told]] = {
    0: Told(_CODE.INTERNAL, "INTERNAL", "internal error"),
    1: Told(_CODE.INVALID_ARGUMENT, "REFUSED_BY_WORKER", "the worker refused the request as invalid"),
    2: Told(_CODE.INTERNAL, "INTERNAL", "internal error"),
    3: Told(_CODE.ABORTED, "CONFLICT", "the request was overtaken by another operation"),
    4: Told(_CODE.ABORTED, "WORKER_LOST", "the worker lost the sequence"),
    5: Told(_CODE.RESOURCE_EXHAUSTED, "KV_CACHE_EXHAUSTED", "no room in the KV cache now", 1.0),
    6: Told(
        _CODE.FAILED_PRECONDITION,
        "KV_POOL_TOO_SMALL",
        "the request can never fit the KV pool",
        shown=frozenset({"needed_blocks", "usable_blocks"}),
    ),
    7: Told(_CODE.INTERNAL, "INTERNAL", "internal error"),
    8: Told(_CODE.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", "the worker is out of memory", 1.0),
    9: Told(_CODE.UNAVAILABLE, "WORKER_UNAVAILABLE", "the worker cannot serve now", 1.0),
    10: Told(_CODE.INTERNAL, "INTERNAL", "internal error"),
    11: Told(_CODE.UNIMPLEMENTED, "UNSUPPORTED_PARAMETER", "the worker does not support a parameter"),
}


def from_wire(code: int, details: Mapping[str, str]) -> Refusal:
    """The refusal a client hears for a peer's Error; an unknown code is an internal error."""
    told = WIRE.get(code, WIRE[0])
    shown = {key: value for key, value in details.items() if key in told.shown and value.isdecimal()}
    return Refusal(told.code, told.reason, told.message, shown, retry_seconds=told.retry_seconds)


def to_status(refusal: Refusal) -> grpc.Status:
    """A grpc.Status with google.rpc details, for `context.abort_with_status`."""
    number: int = refusal.code.value[0]
    details = [_packed(item) for item in _details(refusal)]
    message = status_pb2.Status(code=number, message=refusal.message, details=details)
    assert code_pb2.Code.Name(number) == refusal.code.name
    return rpc_status.to_status(message)  # type: ignore[no-any-return]  # grpc_status carries no types


def _details(refusal: Refusal) -> Sequence[object]:
    info = error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN, metadata=dict(refusal.details))
    found: list[object] = [info]
    if refusal.field_name:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=refusal.field_name, description=refusal.message
        )
        found.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if refusal.retry_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(refusal.retry_seconds * 1000))
        found.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return found


def _packed(message: object) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)  # type: ignore[arg-type]
    return packed
