"""A step's first kernel takes its frame and tables out of the ring, its last one puts the drawn tokens back.

`turn` on the device counts steps as the host does, so a graph of fixed addresses finds the half that is its own. Both
sides of the ring are pinned host memory, read past the caches (host stores between replays are seen, ld.cv) and only as
far as a row's length says. A token id below 0 names the row of the step before that drew it.
"""

from typing import Final

import triton
import triton.language as tl
from torch import Tensor

from compute.gpu.frame import Frame
from compute.gpu.ring import Ring

BLOCK: Final = 1024
VARYING: Final = ("words", "ids_at", "ids_end", "lengths_at", "frame_programs")


@triton.jit(do_not_specialize=VARYING)
def _receive(
    ring,  # [2, half_words] int32, pinned
    turn,  # [1] int32
    frame,  # [frame_words] int32
    tables,  # [R, W] int32
    drawn,  # [R] int32: by the step before
    words,
    ids_at,
    ids_end,
    lengths_at,
    frame_programs,
    row_programs,
    half_words,
    tables_at,
    table_width,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    half = ring + (tl.load(turn) & 1).to(tl.int64) * half_words
    places = tl.arange(0, BLOCK)
    if program < frame_programs:
        place = program * BLOCK + places
        there = place < words
        value = tl.load(half + place, mask=there, other=0, cache_modifier=".cv")
        unknown = there & (place >= ids_at) & (place < ids_end) & (value < 0)
        known = tl.load(drawn + (-1 - value), mask=unknown, other=0)
        # A row whose draw failed has a code below 0 there; nobody reads what comes of it.
        value = tl.where(unknown, tl.maximum(known, 0), value)
        tl.store(frame + place, value, mask=there)
    else:
        part = program - frame_programs
        row = part // row_programs
        first = part % row_programs * BLOCK
        blocks = tl.cdiv(tl.load(half + lengths_at + row, cache_modifier=".cv"), BLOCK_SIZE)
        if first < blocks:
            place = row.to(tl.int64) * table_width + first + places
            there = first + places < blocks
            value = tl.load(half + tables_at + place, mask=there, other=0, cache_modifier=".cv")
            tl.store(tables + place, value, mask=there)


@triton.jit(do_not_specialize=["rows"])
def _publish(
    drawn,  # [R] int32
    answers,  # [2, R] int32, pinned
    turn,  # [1] int32
    size,
    rows,
    BLOCK: tl.constexpr,
):
    now = tl.load(turn)
    target = answers + (now & 1) * size
    for first in range(0, rows, BLOCK):
        place = first + tl.arange(0, BLOCK)
        tl.store(target + place, tl.load(drawn + place, mask=place < rows), mask=place < rows)
    tl.debug_barrier()  # every thread has read the turn
    tl.store(turn, now + 1)


def receive(ring: Ring, turn: Tensor, words: Tensor, tables: Tensor, drawn: Tensor, frame: Frame) -> None:
    """The next step's frame → `words`, its rows' blocks → `tables` [R, W], up to what each length needs."""
    sizes = ring.sizes
    frame_programs = triton.cdiv(frame.words, BLOCK)
    row_programs = triton.cdiv(sizes.table_width, BLOCK)
    _receive[(frame_programs + frame.rows * row_programs,)](
        ring.words,
        turn,
        words,
        tables,
        drawn,
        frame.words,
        frame.ids_at,
        frame.ids_at + frame.tokens,
        frame.lengths_at,
        frame_programs,
        row_programs,
        sizes.half_words,
        sizes.frame_words,
        sizes.table_width,
        BLOCK_SIZE=sizes.block_size,
        BLOCK=BLOCK,
        num_warps=4,
    )


def publish(ring: Ring, turn: Tensor, drawn: Tensor, rows: int) -> None:
    """The first `rows` of `drawn` → the step's half of `ring.drawn`; the step is over."""
    _publish[(1,)](drawn, ring.drawn, turn, ring.sizes.rows, rows, BLOCK=256, num_warps=2)
