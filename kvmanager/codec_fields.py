"""Pieces of a message that both directions share: ids, enum values, errors."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final, TypeVar

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.errors import Invalid, KvError, from_code
from kvmanager.messages import SequenceId
from kvmanager.packing import ID_BYTES, exact

MAX_ENTRIES: Final = 16_384

E = TypeVar("E", bound=IntEnum)


def sequence_id(value: bytes, field: str = "sequence") -> SequenceId:
    return SequenceId(exact(value, ID_BYTES, field))


def member(kind: type[E], value: int, field: str) -> E:
    try:
        return kind(value)
    except ValueError:
        raise Invalid(f"{field}: {value} is no {kind.__name__}", field=field) from None


def few(items: Sequence[Any], field: str) -> Sequence[Any]:
    if len(items) > MAX_ENTRIES:
        raise Invalid(f"{field}: {len(items)} entries, at most {MAX_ENTRIES}", field=field)
    return items


def encode_error(error: KvError) -> pb.Error:
    return pb.Error(code=error.code, message=error.message, details=error.details)  # type: ignore[arg-type]


def decode_error(error: pb.Error) -> KvError:
    """The error a peer sent. Its details never become arguments by name."""
    found = from_code(error.code, error.message, {})
    found.details = dict(error.details)
    return found
