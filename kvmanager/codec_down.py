"""Daemon → worker: protobuf <-> kvmanager.messages. Each pair fills or reads the body of one envelope."""

from collections.abc import Callable
from typing import Any, Final

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.codec_fields import encode_error, few, member, sequence_id
from kvmanager.errors import Invalid, from_code
from kvmanager.messages import (
    Acked,
    BlockRef,
    CopyOrder,
    Drain,
    FinishReason,
    Granted,
    Handover,
    Holding,
    Holdings,
    Opened,
    OpenKind,
    Refusal,
    Refused,
    Resume,
    Retry,
    Revoke,
    Wait,
)
from kvmanager.packing import pack, pack_blocks, unpack_blocks, unpack_ids


def encode_acked(body: pb.Acked, message: Acked) -> None:
    body.granted = pack_blocks(message.granted)
    for refusal in message.refusals:
        added = body.refusals.add(sequence=refusal.sequence, epoch=refusal.epoch)
        added.error.code = refusal.code  # type: ignore[assignment]
        added.error.message = refusal.message


def decode_refusal(body: pb.Refusal) -> Refusal:
    sequence = sequence_id(body.sequence, "refusals.sequence")
    return Refusal(sequence, body.epoch, int(body.error.code), body.error.message)


def decode_acked(body: pb.Acked) -> Acked:
    refusals = tuple(map(decode_refusal, few(body.refusals, "refusals")))
    return Acked(refusals=refusals, granted=unpack_blocks(body.granted, "granted"))


def encode_granted(body: pb.Granted, message: Granted) -> None:
    body.blocks = pack_blocks(message.blocks)


def decode_granted(body: pb.Granted) -> Granted:
    return Granted(blocks=unpack_blocks(body.blocks, "blocks"))


def encode_opened(body: pb.Opened, message: Opened) -> None:
    body.sequence, body.epoch = message.sequence, message.epoch
    body.kind = int(message.kind)  # type: ignore[assignment]
    body.recorded_len, body.kv_len, body.cached_len = message.recorded_len, message.kv_len, message.cached_len
    body.blocks, body.token_ids = pack_blocks(message.blocks), pack(message.token_ids)
    body.lost_len, body.alone = message.lost_len, message.alone
    for source, destination, slots in message.copies:
        body.copies.add(source=pack_blocks([source]), destination=pack_blocks([destination]), slots=slots)


def decode_copy(body: pb.CopyOrder) -> CopyOrder:
    source, destination = (
        one_block(getattr(body, name), f"copies.{name}") for name in ("source", "destination")
    )
    return CopyOrder(source, destination, body.slots)


def one_block(data: bytes, field: str) -> BlockRef:
    blocks = unpack_blocks(data, field)
    if len(blocks) != 1:
        raise Invalid(f"{field}: {len(blocks)} blocks, expected 1", field=field)
    return blocks[0]


def decode_opened(body: pb.Opened) -> Opened:
    return Opened(
        sequence=sequence_id(body.sequence),
        epoch=body.epoch,
        kind=member(OpenKind, body.kind, "kind"),
        recorded_len=body.recorded_len,
        kv_len=body.kv_len,
        cached_len=body.cached_len,
        blocks=unpack_blocks(body.blocks, "blocks"),
        token_ids=unpack_ids(body.token_ids, "token_ids"),
        lost_len=body.lost_len,
        alone=body.alone,
        copies=tuple(map(decode_copy, few(body.copies, "copies"))),
    )


def encode_wait(body: pb.Wait, message: Wait) -> None:
    body.sequence = message.sequence
    body.needed_blocks, body.available_blocks = message.needed_blocks, message.available_blocks
    body.for_prefix = message.for_prefix


def decode_wait(body: pb.Wait) -> Wait:
    return Wait(
        sequence=sequence_id(body.sequence),
        needed_blocks=body.needed_blocks,
        available_blocks=body.available_blocks,
        for_prefix=body.for_prefix,
    )


def encode_refused(body: pb.Refused, message: Refused) -> None:
    body.sequence = message.sequence
    body.error.CopyFrom(encode_error(from_code(message.code, message.message, message.details)))


def decode_refused(body: pb.Refused) -> Refused:
    return Refused(
        sequence=sequence_id(body.sequence),
        code=int(body.error.code),
        message=body.error.message,
        details=dict(body.error.details),
    )


def encode_revoke(body: pb.Revoke, message: Revoke) -> None:
    body.sequence, body.epoch = message.sequence, message.epoch


def decode_revoke(body: pb.Revoke) -> Revoke:
    return Revoke(sequence=sequence_id(body.sequence), epoch=body.epoch)


def encode_retry(body: pb.Retry, message: Retry) -> None:
    body.sequence = message.sequence


def decode_retry(body: pb.Retry) -> Retry:
    return Retry(sequence=sequence_id(body.sequence))


def encode_holdings(body: pb.Holdings, message: Holdings) -> None:
    body.blocks = pack_blocks(message.blocks)
    for sequence, epoch, recorded_len, finish in message.sequences:
        added = body.sequences.add(sequence=sequence, epoch=epoch, recorded_len=recorded_len)
        added.finish = int(finish)  # type: ignore[assignment]


def decode_holding(body: pb.Holding) -> Holding:
    finish = member(FinishReason, body.finish, "sequences.finish")
    return Holding(sequence_id(body.sequence, "sequences.sequence"), body.epoch, body.recorded_len, finish)


def decode_holdings(body: pb.Holdings) -> Holdings:
    return Holdings(
        sequences=tuple(map(decode_holding, body.sequences)), blocks=unpack_blocks(body.blocks, "blocks")
    )


def encode_nothing(_body: object, _message: object) -> None:
    """Nothing to say beyond the kind."""


BODIES: Final[dict[type, tuple[str, Callable[[Any, Any], None], Callable[[Any], Any]]]] = {
    Acked: ("acked", encode_acked, decode_acked),
    Granted: ("granted", encode_granted, decode_granted),
    Opened: ("opened", encode_opened, decode_opened),
    Wait: ("wait", encode_wait, decode_wait),
    Refused: ("refused", encode_refused, decode_refused),
    Revoke: ("revoke", encode_revoke, decode_revoke),
    Retry: ("retry", encode_retry, decode_retry),
    Holdings: ("holdings", encode_holdings, decode_holdings),
    Drain: ("drain", encode_nothing, lambda _: Drain()),
    Handover: ("handover", encode_nothing, lambda _: Handover()),
    Resume: ("resume", encode_nothing, lambda _: Resume()),
}
