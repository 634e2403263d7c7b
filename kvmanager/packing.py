"""Token ids and blocks as little-endian u32 in `bytes`, and the checks of fields that come from a peer.

Every check raises Invalid with the field's name and its bound; nothing is clamped.
"""

import math
import sys
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Final

from kvmanager.errors import Invalid
from kvmanager.messages import BlockRef

ID_BYTES: Final = 16
HASH_BYTES: Final = 32
MAX_TOKEN_IDS: Final = 2**20
MAX_BLOCKS: Final = 2**18


def pack(values: Iterable[int]) -> bytes:
    words = array("I", values)
    assert words.itemsize == 4, "C's unsigned int has 32 bits on every platform holdfast runs on"
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()


def unpack(data: bytes, field: str, most: int, record: int = 1) -> "array[int]":
    """The u32 values of `data`; Invalid unless they are whole records of `record` words, at most `most` of them."""
    size = 4 * record
    if len(data) % size or len(data) > most * size:
        raise Invalid(
            f"{field}: {len(data)} bytes, expected a multiple of {size} up to {most * size}", field=field
        )
    words = array("I", data)
    if sys.byteorder == "big":
        words.byteswap()
    return words


def pack_blocks(blocks: Sequence[BlockRef]) -> bytes:
    return pack(chain.from_iterable(blocks)) if blocks else b""


def unpack_blocks(data: bytes, field: str) -> tuple[BlockRef, ...]:
    if not data:
        return ()
    words = unpack(data, field, MAX_BLOCKS, record=2)
    return tuple(map(BlockRef, words[0::2], words[1::2]))


def unpack_ids(data: bytes, field: str) -> tuple[int, ...]:
    return tuple(unpack(data, field, MAX_TOKEN_IDS)) if data else ()


def exact(value: bytes, size: int, field: str) -> bytes:
    if len(value) != size:
        raise Invalid(f"{field}: {len(value)} bytes, expected {size}", field=field)
    return value


def short(value: str, most: int, field: str, least: int = 0) -> str:
    """`value`, if it has `least`..`most` characters, all printable."""
    if not least <= len(value) <= most or not value.isprintable():
        raise Invalid(
            f"{field}: {len(value)} characters, expected {least}..{most} printable ones", field=field
        )
    return value


def within(value: int, least: int, most: int, field: str) -> int:
    if not least <= value <= most:
        raise Invalid(f"{field}: {value}, expected {least}..{most}", field=field)
    return value


def number(value: float, field: str) -> float:
    if not math.isfinite(value):
        raise Invalid(f"{field}: {value}, expected a finite number", field=field)
    return value


def finite(value: float, field: str) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise Invalid(f"{field}: {value}, expected a finite number from 0", field=field)
    return value
