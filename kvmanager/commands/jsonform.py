"""Protobuf messages as the JSON that scripts read.

Names as in the .proto file, every field always there, numbers as numbers (protobuf's own JSON makes strings of 64-bit
ones), bytes in hexadecimal, enums as lower-case words without their prefix.
"""

from collections.abc import Set
from typing import Any

from google.protobuf.message import Message

Field = Any  # a FieldDescriptor and an EnumDescriptor: protobuf has one class of each in Python and one in C
Enum = Any


def to_json(message: Message, omit: Set[str] = frozenset()) -> dict[str, Any]:
    """The message's fields by name, without those of `omit`."""
    shown = (field for field in message.DESCRIPTOR.fields if field.name not in omit)
    return {field.name: value_of(field, getattr(message, field.name)) for field in shown}


def value_of(field: Field, value: Any) -> Any:
    return [scalar(field, item) for item in value] if field.is_repeated else scalar(field, value)


def scalar(field: Field, value: Any) -> Any:
    if field.message_type is not None:
        return to_json(value)
    if field.enum_type is not None:
        return word(field.enum_type, value)
    return value.hex() if isinstance(value, bytes) else value


def word(kind: Enum, number: int) -> str:
    """WORKER_STATE_READY as `ready`; a number this version does not know as digits."""
    value = kind.values_by_number.get(number)
    if value is None:
        return str(number)
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(value.name).removeprefix(prefix).lower()
