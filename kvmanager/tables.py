"""The block tables: each row is one sequence's blocks in order, its logical-to-physical map.

A row belongs to one (sequence, epoch). Entries are written once, at the row's end: replacing one takes a new row. What
that costs: a preempted sequence has two rows until its former owner releases the old one. References of the blocks
are counted by the callers; a row only names them.
"""

import struct

from kvmanager.layout import MetaLayout
from kvmanager.records import ROW
from kvmanager.store import Store

RECORD = struct.Struct("<IIQ")  # sequence record + 1, length, epoch
LENGTH = struct.Struct("<I")
LENGTH_AT = 4


class RowTable:
    """All rows of a pool."""

    def __init__(self, layout: MetaLayout, store: Store) -> None:
        self.capacity = layout.row_capacity
        self._store, self._at, self._entries_at = store, layout.rows_at, layout.entries_at
        self.sequence = [0] * layout.num_rows  # record + 1
        self.epoch = [0] * layout.num_rows
        self.blocks: list[list[int]] = [[] for _ in range(layout.num_rows)]
        self.unused = list(range(layout.num_rows))[::-1]
        self.entries = 0  # of all rows

    def open(self, record: int, epoch: int, blocks: list[int]) -> int:
        """A new row that starts with `blocks`; there is an unused one."""
        row = self.unused.pop()
        self.entries += len(blocks)
        self.sequence[row], self.epoch[row], self.blocks[row] = record + 1, epoch, list(blocks)
        self._put_entries(row, 0, blocks)
        self._put_record(row)
        return row

    def append(self, row: int, blocks: list[int]) -> None:
        """Write the next entries of a row."""
        entries = self.blocks[row]
        assert len(entries) + len(blocks) <= self.capacity
        self._put_entries(row, len(entries), blocks)
        entries.extend(blocks)
        self.entries += len(blocks)
        self._store.put(self._at + row * ROW.itemsize + LENGTH_AT, LENGTH.pack(len(entries)))

    def close(self, row: int) -> list[int]:
        """End a row; its blocks, in order."""
        blocks = self.blocks[row]
        self.entries -= len(blocks)
        self.sequence[row], self.epoch[row], self.blocks[row] = 0, 0, []
        self._put_record(row)
        self.unused.append(row)
        return blocks

    def _put_entries(self, row: int, start: int, blocks: list[int]) -> None:
        if blocks:
            at = self._entries_at + (row * self.capacity + start) * 4
            self._store.put(at, struct.pack(f"<{len(blocks)}I", *blocks))

    def _put_record(self, row: int) -> None:
        record = RECORD.pack(self.sequence[row], len(self.blocks[row]), self.epoch[row])
        self._store.put(self._at + row * ROW.itemsize, record)
