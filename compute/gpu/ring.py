"""The ring through which steps travel to the GPU by value, and drawn tokens back (protocol rule 2).

    half 0   [ frame | tables ]     step n      written while step n - 1 runs, read by step n's first kernel
    half 1   [ frame | tables ]     step n + 1  written when step n - 1 is done

Two halves of pinned host memory, used in turn: at most two steps are on their way. Nothing a running step reads is ever
changed. A half keeps which sequence each of its tables belongs to, so a sequence that stays in its row costs only the
blocks it has taken since.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from compute.gpu.frame import Arrays, Frame, Words, aligned
from compute.philox import uniform
from compute.plan import UNKNOWN, StepRow
from kvmanager.messages import SequenceId

HALVES = 2


@dataclass(frozen=True, slots=True)
class Sizes:
    """The largest step of a worker."""

    rows: int
    tokens: int
    table_width: int  # blocks of the longest sequence
    block_size: int

    @property
    def frame_words(self) -> int:
        """Room for the largest frame."""
        return Frame(self.rows, self.tokens).words

    @property
    def half_words(self) -> int:
        return self.frame_words + aligned(self.rows * self.table_width)


class Half:
    """One step's words on the host."""

    def __init__(self, words: Words, sizes: Sizes) -> None:
        self.words = words[: sizes.frame_words]
        count = sizes.rows * sizes.table_width
        self.tables = words[sizes.frame_words : sizes.frame_words + count].reshape(sizes.rows, -1)
        self.held: list[tuple[SequenceId, int, int] | None] = [None] * sizes.rows  # sequence, epoch, blocks

    def write_table(self, place: int, row: StepRow) -> None:
        blocks, count = row.blocks, 0
        held = self.held[place]
        if held is not None and held[:2] == (row.sequence, row.epoch):
            count = min(held[2], len(blocks))
        if count < len(blocks):
            self.tables[place, count : len(blocks)] = blocks[count:]
        self.held[place] = (row.sequence, row.epoch, len(blocks))


class Ring:
    """The host's side. `write` the step that is launched next; `half` says which half it went to."""

    def __init__(self, sizes: Sizes, pinned: bool) -> None:
        self.sizes = sizes
        self.words = torch.zeros((HALVES, sizes.half_words), dtype=torch.int32, pin_memory=pinned)
        self.drawn = torch.zeros((HALVES, sizes.rows), dtype=torch.int32, pin_memory=pinned)
        self.halves = [Half(half, sizes) for half in self.words.numpy()]
        self.answers = self.drawn.numpy()
        self.turn = 0  # steps written so far
        self.places: dict[SequenceId, int] = {}  # rows of the last step, where it draws

    def write(self, rows: Sequence[StepRow], frame: Frame) -> int:
        """`rows`: those of one token first. Which half they are in now; it must be free."""
        half = self.turn % HALVES
        self.turn += 1
        target = self.halves[half]
        arrays = frame.on_host(target.words)
        singles = sum(len(row.token_ids) == 1 for row in rows)
        self._write_tokens(arrays, rows, singles)
        self._write_rows(arrays, rows, singles)
        write_draws(arrays, rows)
        for place, row in enumerate(rows):
            target.write_table(place, row)
        self.places = {row.sequence: place for place, row in enumerate(rows) if row.sample}
        return half

    def blank(self, frame: Frame) -> None:
        """Both halves hold a step of padding alone: for kernels that are run to be compiled and captured."""
        for half in self.halves:
            for name, array in frame.on_host(half.words)._asdict().items():
                array[:] = -1 if name == "write_blocks" else 0

    def _write_tokens(self, arrays: Arrays, rows: Sequence[StepRow], singles: int) -> None:
        size = self.sizes.block_size
        alone = rows[:singles]
        starts = np.array([row.start for row in alone], np.int64)
        arrays.ids[:singles] = [self._id(row) for row in alone]
        arrays.positions[:singles] = starts
        arrays.write_slots[:singles] = starts % size
        arrays.write_blocks[:singles] = [row.blocks[row.start // size] for row in alone]
        at = singles
        for row in rows[singles:]:
            end = at + len(row.token_ids)
            positions = np.arange(row.start, row.start + end - at)
            arrays.ids[at:end] = row.token_ids
            arrays.positions[at:end] = positions
            arrays.write_slots[at:end] = positions % size
            arrays.write_blocks[at:end] = np.asarray(row.blocks, np.int32)[positions // size]
            at = end
        arrays.ids[at:] = 0
        arrays.positions[at:] = 0
        arrays.write_blocks[at:] = -1

    def _id(self, row: StepRow) -> int:
        token_id = row.token_ids[0]
        return token_id if token_id != UNKNOWN else -1 - self.places[row.sequence]

    @staticmethod
    def _write_rows(arrays: Arrays, rows: Sequence[StepRow], singles: int) -> None:
        count = len(rows)
        tokens = np.array([len(row.token_ids) for row in rows], np.int64)
        arrays.lengths[:count] = tokens + [row.start for row in rows]
        arrays.lengths[count:] = 0
        ends = np.cumsum(tokens)
        arrays.lasts[:count] = ends - 1
        arrays.lasts[count:] = 0
        if singles < count:
            arrays.starts[: count - singles + 1] = np.concatenate(([0], ends[singles:] - singles))
            arrays.chunk_lengths[: count - singles] = arrays.lengths[singles:count]


def write_draws(arrays: Arrays, rows: Sequence[StepRow]) -> None:
    """How each row draws. Numbers are drawn here: seed and position are known before the logits."""
    count = len(rows)
    params = [row.sampling for row in rows]
    arrays.wanted[:count] = [row.sample for row in rows]
    arrays.wanted[count:] = 0
    arrays.temperature[:count] = [param.temperature for param in params]
    if not arrays.temperature[:count].any():
        return  # greedy: the other wishes do not matter
    arrays.top_p[:count] = [param.top_p for param in params]
    arrays.min_p[:count] = [param.min_p for param in params]
    arrays.top_k[:count] = [param.top_k for param in params]
    positions = [row.start + len(row.token_ids) for row in rows]
    arrays.uniform[:count] = uniform([param.seed for param in params], positions)
