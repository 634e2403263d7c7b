"""The device's side of a step: where its frame and tables land, and the step as the decoder's kernels read it.

One set of buffers for all steps, at fixed addresses: a graph of a decode step holds them. The stream keeps two steps
from meeting in them.
"""

import torch
from torch import Tensor

from compute.gpu.frame import Arrays, Frame
from compute.gpu.ring import Ring, Sizes
from compute.kernels.cuda import Chunks, Decode, Step
from compute.kernels.gpu.decode import Scratch
from compute.kernels.gpu.handover import publish, receive
from compute.kernels.gpu.layer import KVLayer
from compute.kernels.gpu.splits import PROGRAMS_PER_SM, sm_count_of, split_count


class Inbox:
    """`receive` begins a step, `publish` ends it; `step` is what lies between."""

    def __init__(self, sizes: Sizes, pool: Tensor, num_heads: int) -> None:
        device = pool.device
        self.sizes, self.pool = sizes, pool
        self.ring = Ring(sizes, pinned=device.type == "cuda")
        self.words = torch.zeros(sizes.frame_words, dtype=torch.int32, device=device)
        self.tables = torch.zeros((sizes.rows, sizes.table_width), dtype=torch.int32, device=device)
        self.drawn = torch.zeros(sizes.rows, dtype=torch.int32, device=device)
        self.turn = torch.zeros(1, dtype=torch.int32, device=device)
        self.kv = KVLayer(pool, 0)
        self.group = num_heads // self.kv.kv_heads
        self.scratches: dict[int, Scratch] = {}  # by splits

    def receive(self, frame: Frame) -> Arrays:
        receive(self.ring, self.turn, self.words, self.tables, self.drawn, frame)
        return frame.on_device(self.words)

    def publish(self, rows: int) -> None:
        publish(self.ring, self.turn, self.drawn, rows)

    def reset(self) -> None:
        """After steps that nobody wrote: both sides count from 0 again. Nothing is on its way."""
        self.turn.zero_()
        self.ring.turn = 0

    def splits(self, rows: int, longest: int) -> int:
        """Splits of a decode row, of `rows` up to `longest` tokens long."""
        return split_count(rows, self.kv.kv_heads, self.group, longest, sm_count_of(self.pool.device))

    def step(self, arrays: Arrays, frame: Frame, singles: int, splits: int, max_count: int) -> Step:
        """`singles` rows of one token, split as told; the rest are chunks of up to `max_count` tokens."""
        decode = chunks = None
        if singles:
            lengths = arrays.lengths[:singles]
            decode = Decode(self.tables[:singles], lengths, self._scratch(splits))
        if singles < frame.rows:
            count = frame.rows - singles
            chunks = Chunks(
                self.tables[singles : frame.rows],
                arrays.chunk_lengths[:count],
                arrays.starts[: count + 1],
                singles,
                max_count,
            )
        return Step(self.pool, arrays.positions, arrays.write_blocks, arrays.write_slots, decode, chunks)

    def _scratch(self, splits: int) -> Scratch | None:
        """Room for the most rows that are ever split so often."""
        if splits == 1:
            return None
        if splits not in self.scratches:
            most = min(self.sizes.rows, rows_at(splits, self.kv.kv_heads, self.pool.device))
            self.scratches[splits] = Scratch.allocate(most, splits, self.kv, self.group)
        return self.scratches[splits]


def rows_at(splits: int, kv_heads: int, device: torch.device) -> int:
    """More rows than this are never split so often."""
    return max(PROGRAMS_PER_SM * sm_count_of(device) // (splits * kv_heads), 1)
