"""protobuf <-> kvmanager.messages, both directions, in their envelopes.

Decoding trusts nothing: lengths, ranges and enum values are checked, and Invalid names the field. Whether a message
makes sense in the present state is not judged here.
"""

from collections.abc import Callable
from typing import Any, Final

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager import codec_down, codec_up
from kvmanager.codec_fields import decode_error, encode_error, sequence_id
from kvmanager.errors import Invalid
from kvmanager.messages import Heartbeat, Numbered, Reply

__all__ = [
    "REQUESTS",
    "decode_error",
    "decode_reply",
    "decode_request",
    "encode_error",
    "encode_reply",
    "encode_request",
    "sequence_id",
]

REQUESTS: Final[dict[str, Callable[[Any], Any]]] = {
    name: decode for name, _, decode in codec_up.BODIES.values()
}
REPLIES: Final[dict[str, Callable[[Any], Any]]] = {
    name: decode for name, _, decode in codec_down.BODIES.values()
}


def _fill(envelope: Any, bodies: dict[type, Any], message: object) -> None:
    name, encode, _ = bodies[type(message)]
    body = getattr(envelope, name)
    body.SetInParent()  # a message without a set field is a message all the same
    encode(body, message)


def encode_request(
    message: Numbered | Heartbeat, session: bytes, boot_epoch: int, number: int
) -> pb.DaemonRequest:
    envelope = pb.DaemonRequest(session=session, boot_epoch=boot_epoch, number=number)
    _fill(envelope, codec_up.BODIES, message)
    return envelope


def decode_request(envelope: pb.DaemonRequest) -> Numbered | Heartbeat:
    """The worker's message; Invalid for a malformed one and for any other kind of message."""
    case = envelope.WhichOneof("body")
    if case not in REQUESTS:
        raise Invalid(f"body: {case or 'empty'} is no message of a worker", field="body")
    message: Numbered | Heartbeat = REQUESTS[case](getattr(envelope, case))
    return message


def encode_reply(message: Reply, boot_epoch: int, number: int) -> pb.DaemonReply:
    envelope = pb.DaemonReply(boot_epoch=boot_epoch, number=number)
    _fill(envelope, codec_down.BODIES, message)
    return envelope


def decode_reply(envelope: pb.DaemonReply) -> Reply:
    """What the daemon told a worker. An Error is raised as the KvError it stands for."""
    case = envelope.WhichOneof("body")
    if case == "error":
        raise decode_error(envelope.error)
    if case not in REPLIES:
        raise Invalid(f"body: {case or 'empty'} is no reply to a worker", field="body")
    reply: Reply = REPLIES[case](getattr(envelope, case))
    return reply
