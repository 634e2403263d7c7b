"""One operation is seen whole or not at all, and always in the same order of stores."""

import zlib

import pytest

from kvmanager.layout import CorruptMetadata, MetaLayout
from kvmanager.records import REDO_CHECKSUM_AT, REDO_LENGTH_AT, SEQLOCK_AT
from kvmanager.store import PAIR, WORD, Store
from tests.support.kv import buffer_for, pool_spec

SPEC = pool_spec()
LAYOUT = MetaLayout(SPEC)
A, B = LAYOUT.blocks_at, LAYOUT.rows_at


def published(buffer: bytearray, log: bytes, length: int | None = None, checksum: int | None = None) -> None:
    """As a process leaves it that was killed right after the publish word."""
    buffer[LAYOUT.redo_at : LAYOUT.redo_at + len(log)] = log
    checksum = zlib.crc32(log) if checksum is None else checksum
    buffer[REDO_CHECKSUM_AT : REDO_CHECKSUM_AT + 8] = WORD.pack(checksum)
    buffer[REDO_LENGTH_AT : REDO_LENGTH_AT + 8] = WORD.pack(len(log) if length is None else length)


def test_the_log_is_published_before_anything_is_applied() -> None:
    seen: list[tuple[int, bytes]] = []
    store = Store(buffer_for(SPEC), LAYOUT, lambda at, data: seen.append((at, data)))
    store.put(A, b"one")
    store.put(B, b"three")
    assert seen == [], "put only stages"
    store.commit()
    log = PAIR.pack(A, 3) + b"one" + PAIR.pack(B, 5) + b"three"
    assert seen == [
        (LAYOUT.redo_at, log),
        (REDO_CHECKSUM_AT, WORD.pack(zlib.crc32(log))),
        (REDO_LENGTH_AT, WORD.pack(len(log))),
        (SEQLOCK_AT, WORD.pack(1)),
        (A, b"one"),
        (B, b"three"),
        (SEQLOCK_AT, WORD.pack(2)),
        (REDO_LENGTH_AT, WORD.pack(0)),
    ]


def test_nothing_staged_stores_nothing() -> None:
    seen: list[int] = []
    store = Store(buffer_for(SPEC), LAYOUT, lambda at, _data: seen.append(at))
    store.commit()
    assert seen == []


def test_a_published_log_is_replayed_once() -> None:
    buffer = buffer_for(SPEC)
    published(buffer, PAIR.pack(A, 3) + b"one")
    buffer[SEQLOCK_AT] = 1
    store = Store(buffer, LAYOUT)
    assert store.replay()
    assert buffer[A : A + 3] == b"one"
    assert buffer[SEQLOCK_AT] == 2
    assert not store.replay()


@pytest.mark.parametrize(
    ("log", "length", "checksum", "reason"),
    [
        (PAIR.pack(A, 3) + b"one", None, 7, "checksum"),
        (PAIR.pack(A, 3) + b"one", 2**40, None, "redo log of"),
        (PAIR.pack(A, 9) + b"one", None, None, "names 9 bytes"),
        (PAIR.pack(LAYOUT.redo_at, 3) + b"one", None, None, "names 3 bytes"),
        (PAIR.pack(2**63, 3) + b"one", None, None, "names 3 bytes"),
        (PAIR.pack(A, 3) + b"one" + b"x", None, None, "ends within a pair"),
    ],
)
def test_a_log_that_is_not_ours_is_corrupt(
    log: bytes, length: int | None, checksum: int | None, reason: str
) -> None:
    buffer = buffer_for(SPEC)
    published(buffer, log, length, checksum)
    before = bytes(buffer)
    with pytest.raises(CorruptMetadata, match=reason):
        Store(buffer, LAYOUT).replay()
    assert buffer == before


def test_an_odd_seqlock_without_a_log_is_corrupt() -> None:
    buffer = buffer_for(SPEC)
    buffer[SEQLOCK_AT] = 1
    with pytest.raises(CorruptMetadata, match="seqlock"):
        Store(buffer, LAYOUT).replay()
