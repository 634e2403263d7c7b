"""Every store into the metadata goes through here, so that an operation is seen whole or not at all.

An operation stages (offset, bytes) pairs with `put`; `commit` then stores, in this order:

    1  the pairs, one after the other, into the redo area      [offset u64 | length u32 | bytes] …
    2  their CRC-32
    3  the publish word: the redo log's length                 from here on the operation has happened
    4  seqlock + 1 (odd), the pairs to their places, seqlock + 1 (even)
    5  the publish word: 0

A process killed before 3 leaves the state before the operation, after 3 the state after it (`replay`). The store
judges nothing about what is written and keeps no copy of it.
"""

import struct
import zlib
from collections.abc import Callable

from kvmanager.layout import Buffer, CorruptMetadata, MetaLayout
from kvmanager.records import BOOT_EPOCH_AT, REDO_CHECKSUM_AT, REDO_LENGTH_AT, SEQLOCK_AT

PAIR = struct.Struct("<QI")
WORD = struct.Struct("<Q")
Hook = Callable[[int, bytes], None]


def condemn(buffer: Buffer) -> None:
    """One store, after which no daemon trusts this metadata again (`check_buffer`)."""
    memoryview(buffer).cast("B")[BOOT_EPOCH_AT : BOOT_EPOCH_AT + 8] = bytes(8)


class Store:
    """The one writer of a metadata buffer. `hook`, for tests, sees each single store just before it is made."""

    def __init__(self, buffer: Buffer, layout: MetaLayout, hook: Hook | None = None) -> None:
        self.raw = memoryview(buffer).cast("B")
        self.hook = hook
        self._redo_at, self._redo_bytes = layout.redo_at, layout.redo_bytes
        self._staged: list[tuple[int, bytes]] = []

    def put(self, offset: int, data: bytes) -> None:
        """Stage one store of the operation."""
        self._staged.append((offset, data))

    def commit(self) -> None:
        """Make the staged stores happen together. Nothing staged: nothing happens."""
        staged, self._staged = self._staged, []
        if staged:
            log = b"".join([part for at, data in staged for part in (PAIR.pack(at, len(data)), data)])
            assert len(log) <= self._redo_bytes, (
                f"operation of {len(log)} bytes, redo area {self._redo_bytes}"
            )
            self._store(self._redo_at, log)
            self._store(REDO_CHECKSUM_AT, WORD.pack(zlib.crc32(log)))
            self._store(REDO_LENGTH_AT, WORD.pack(len(log)))
            self._apply(staged)

    def replay(self) -> bool:
        """Finish an operation that a killed process had published; True if there was one."""
        length = self._word(REDO_LENGTH_AT)
        if length:
            self._apply(self._published(length))
        elif self._word(SEQLOCK_AT) % 2:
            raise CorruptMetadata("the seqlock is odd, but no operation is published")
        return length > 0

    def _apply(self, pairs: list[tuple[int, bytes]]) -> None:
        odd = self._word(SEQLOCK_AT) | 1
        self._store(SEQLOCK_AT, WORD.pack(odd))
        for at, data in pairs:
            self._store(at, data)
        self._store(SEQLOCK_AT, WORD.pack(odd + 1))
        self._store(REDO_LENGTH_AT, bytes(8))

    def _published(self, length: int) -> list[tuple[int, bytes]]:
        """The pairs of the redo log, each checked to lie within the buffer."""
        if length > self._redo_bytes:
            raise CorruptMetadata(f"redo log of {length} bytes, its area has {self._redo_bytes}")
        log = bytes(self.raw[self._redo_at : self._redo_at + length])
        if zlib.crc32(log) != self._word(REDO_CHECKSUM_AT):
            raise CorruptMetadata("the redo log's checksum does not match its bytes")
        return list(self._pairs(log))

    def _pairs(self, log: bytes) -> list[tuple[int, bytes]]:
        pairs, cursor = [], 0
        while cursor < len(log):
            if cursor + PAIR.size > len(log):
                raise CorruptMetadata("the redo log ends within a pair")
            at, size = PAIR.unpack_from(log, cursor)
            cursor += PAIR.size
            if at + size > self._redo_at or cursor + size > len(log):
                raise CorruptMetadata(f"the redo log names {size} bytes at {at}")
            pairs.append((at, log[cursor : cursor + size]))
            cursor += size
        return pairs

    def _word(self, at: int) -> int:
        word: int = WORD.unpack_from(self.raw, at)[0]
        return word

    def _store(self, at: int, data: bytes) -> None:
        if self.hook is not None:
            self.hook(at, data)
        self.raw[at : at + len(data)] = data
