"""Reads the pool's memory itself and sees that no committed slot ever changes, and what is written late.

Looks at what the keeper holds, as anybody may: the metadata says which slots are committed, the pool what they hold.
"""

import mmap
import os
import threading
import time
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np

from holdfast.rundir import RunDir
from kvmanager.blocks import FREE, QUARANTINED, SEALED
from kvmanager.keeper_link import KeeperLink
from kvmanager.layout import MetaLayout, PoolLayout
from kvmanager.sequences import SequenceState

PAUSE_S: Final = 0.1


class Watch:
    """Samples in a thread until `stop`. `changed`: committed slots that were rewritten; `late`: blocks that a fenced
    worker wrote to."""

    def __init__(self, run_dir: Path, pool: str) -> None:
        link = KeeperLink(RunDir(run_dir).keeper)
        self._memory = [self._map(link, f"{kind}.{pool}") for kind in ("meta", "pool")]
        link.close()
        self._layout = MetaLayout.from_header(self._memory[0])
        geometry = PoolLayout(self._layout.spec.geometry)
        shape = geometry.shape(self._layout.num_blocks)
        size = geometry.block_bytes // (np.prod(shape[1:]).item())
        self._pool = np.frombuffer(self._memory[1], f"V{size}").reshape(shape)
        self._sealed: dict[tuple[int, int], int] = {}
        self._begun: dict[
            tuple[bytes, int, int], tuple[int, int]
        ] = {}  # (sequence, block, generation) → slots, sum
        self._quarantine: dict[tuple[int, int], int] = {}
        self.changed: list[str] = []
        self.late = self.samples = self.torn = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    @staticmethod
    def _map(link: KeeperLink, name: str) -> mmap.mmap:
        fd = link.get(name)
        try:
            return mmap.mmap(fd, os.fstat(fd).st_size, prot=mmap.PROT_READ)
        finally:
            os.close(fd)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping.wait(PAUSE_S):
            self.sample()

    def sample(self) -> None:
        """One look. What changed in the metadata while we looked is not judged."""
        before = self._records()
        if before is None:
            self.torn += 1
            return
        blocks, sequences, rows = before
        found = self._sums(blocks, sequences, rows)
        after = self._records()
        if after is None:
            self.torn += 1
            return
        self._judge(found, after[0])
        self.samples += 1

    def _records(self) -> tuple[Any, Any, Any] | None:
        """Copies of the records, taken between two operations of the daemon."""
        view = self._layout.view(self._memory[0])
        for _ in range(50):
            lock = int(view.header["seqlock"])
            if lock % 2 == 0 and not int(view.header["redo_length"]):
                copies = view.blocks.copy(), view.sequences.copy(), view.entries.copy()
                if int(view.header["seqlock"]) == lock:
                    return copies
            time.sleep(0.002)
        return None

    def _sums(self, blocks: Any, sequences: Any, rows: Any) -> dict[str, dict[Any, Any]]:
        sealed, stranded = (
            (blocks["state"] == state).nonzero()[0].tolist() for state in (SEALED, QUARANTINED)
        )
        generation, state = blocks["generation"].tolist(), blocks["state"].tolist()
        stranded += [b for b, g in self._quarantine if generation[b] == g and state[b] == FREE]
        return {
            "sealed": {(b, generation[b]): self._sum(b, self._layout.block_size) for b in sealed},
            "quarantine": {(b, generation[b]): self._sum(b, self._layout.block_size) for b in stranded},
            "begun": dict(self._tails(sequences, rows, generation)),
        }

    def _tails(self, sequences: Any, rows: Any, generation: list[int]) -> Any:
        size = self._layout.block_size
        live = np.isin(sequences["state"], (SequenceState.OPEN, SequenceState.ORPHANED)) & (
            sequences["row"] > 0
        )
        for record in sequences[live & (sequences["copy_slots"] == 0) & (sequences["kv_len"] % size > 0)]:
            kv_len = int(record["kv_len"])
            block = int(rows[int(record["row"]) - 1][kv_len // size])
            yield (
                (record["id"].tobytes(), block, generation[block]),
                (kv_len % size, self._sum(block, kv_len % size)),
            )

    def _sum(self, block: int, slots: int) -> int:
        return zlib.crc32(np.ascontiguousarray(self._pool[block, :, :, :, :slots]).view(np.uint8).data)

    def _judge(self, found: dict[str, dict[Any, Any]], after: Any) -> None:
        """Sums of blocks that are still what they were when the look began."""
        same = after["generation"].tolist(), after["state"].tolist()
        for key, value in found["sealed"].items():
            still = same[0][key[0]] == key[1] and same[1][key[0]] == SEALED
            if still and self._sealed.setdefault(key, value) != value:
                self.changed.append(f"sealed block {key[0]}, generation {key[1]}")
                self._sealed[key] = value
        for key, value in found["quarantine"].items():
            self.late += self._quarantine.setdefault(key, value) != value
            self._quarantine[key] = value
        for key, (slots, value) in found["begun"].items():
            self._judge_tail(key, slots, value)

    def _judge_tail(self, key: tuple[bytes, int, int], slots: int, value: int) -> None:
        """The slots that were committed the last time must hold what they held."""
        known = self._begun.get(key)
        if known is not None and known[0] <= slots and self._sum(key[1], known[0]) != known[1]:
            after = self._layout.view(self._memory[0]).blocks[key[1]]
            if int(after["generation"]) == key[2] and int(after["state"]) != 0:
                self.changed.append(f"{known[0]} committed slots of block {key[1]}")
        self._begun[key] = slots, value
