"""Errors of the KV manager, as its clients see them.

    KvError                  code INTERNAL: our bug, told to the peer
    ├── Invalid              a field is malformed or out of bounds
    ├── NotFound
    ├── Conflict             refused in the present state
    ├── Fenced               an older epoch or session
    ├── ResourceExhausted    no record, arena or block now
    ├── PoolTooSmall         can never fit this pool
    ├── Mismatch             geometry, fingerprint or device differs from the pool's
    ├── NoMemory             the host or device cannot hold the pool
    ├── Unavailable          the daemon cannot be reached, or cannot serve now
    │   └── DeadlineExceeded the client's own word, never sent: somebody is there, and silent
    └── Unimplemented

Each class has one wire code (holdfast.v1.ErrorCode, by number here so that policy imports no protobuf); a test
keeps both lists equal. `details` are strings a program may read: numbers and names, never addresses or ids of others.
"""

from typing import ClassVar


class KvError(Exception):
    """Base; by itself an internal error."""

    code: ClassVar[int] = 10

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details = {key: str(value) for key, value in details.items()}


class Invalid(KvError):  # noqa: N818 - reads as `raise Invalid(...)`; the tree above says they are errors
    code = 1


class NotFound(KvError):  # noqa: N818
    code = 2


class Conflict(KvError):  # noqa: N818
    code = 3


class Fenced(KvError):  # noqa: N818
    code = 4


class ResourceExhausted(KvError):  # noqa: N818
    code = 5


class PoolTooSmall(KvError):  # noqa: N818
    code = 6


class Mismatch(KvError):  # noqa: N818
    code = 7


class NoMemory(KvError):  # noqa: N818
    code = 8


class Unavailable(KvError):  # noqa: N818
    code = 9


class DeadlineExceeded(Unavailable):
    """Raised by clients only."""


class Unimplemented(KvError):  # noqa: N818
    code = 11


BY_CODE: dict[int, type[KvError]] = {KvError.code: KvError} | {
    cls.code: cls for cls in KvError.__subclasses__()
}


def from_code(code: int, message: str, details: dict[str, str]) -> KvError:
    """The error a peer sent; an unknown code is an internal error."""
    return BY_CODE.get(code, KvError)(message, **details)
