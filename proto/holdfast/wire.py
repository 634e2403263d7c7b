"""Framing: four bytes before every protobuf message between holdfast's processes.

    0   1   2         3
    'H' 'F' version   kind      then the serialised message

A frame of another version, of an unexpected kind or over the size limit is refused before it is parsed, with
FrameError; the receiver drops the peer's message and goes on. No socket is touched here.
"""

from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from holdfast.v1 import compute_pb2, kvmanager_pb2

VERSION: Final = 1
HEADER_BYTES: Final = 4
MAX_FRAME_BYTES: Final = 8 * 2**20  # a prompt of 1 M ids is 4 MiB

_KINDS: Final[dict[type[Message], int]] = {
    kvmanager_pb2.AttachRequest: 1,
    kvmanager_pb2.AttachReply: 2,
    kvmanager_pb2.DaemonRequest: 3,
    kvmanager_pb2.DaemonReply: 4,
    compute_pb2.WorkerRequest: 5,
    compute_pb2.WorkerReply: 6,
}

M = TypeVar("M", bound=Message)


class FrameError(ValueError):
    """The bytes are not a frame of the expected kind and version."""


def encode(message: Message) -> bytes:
    """One frame. The message is ours, so a size over the limit is our bug."""
    body = message.SerializeToString()
    assert len(body) + HEADER_BYTES <= MAX_FRAME_BYTES, f"frame of {len(body)} bytes"
    return bytes((0x48, 0x46, VERSION, _KINDS[type(message)])) + body


def decode(kind: type[M], frame: bytes) -> M:
    """The message in `frame`; FrameError unless it is one `kind` of this protocol version."""
    if not HEADER_BYTES <= len(frame) <= MAX_FRAME_BYTES:
        raise FrameError(f"frame of {len(frame)} bytes, bounds {HEADER_BYTES}..{MAX_FRAME_BYTES}")
    if frame[:2] != b"HF":
        raise FrameError("not a holdfast frame")
    if frame[2] != VERSION:
        raise FrameError(f"protocol version {frame[2]}, this side speaks {VERSION}")
    if frame[3] != _KINDS[kind]:
        raise FrameError(f"frame kind {frame[3]}, expected {_KINDS[kind]}")
    return parse(kind, frame[HEADER_BYTES:])


def parse(kind: type[M], body: bytes) -> M:
    """The message in `body`, with protobuf's own error as FrameError."""
    message = kind()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise FrameError(f"malformed {kind.DESCRIPTOR.name}: {error}") from None
    return message
