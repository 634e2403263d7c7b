"""A step's words, written on the host and received on the device: what a kernel then reads is what the plan says."""

import numpy as np
import pytest
import torch

from compute.gpu.frame import Frame
from compute.gpu.ring import Ring, Sizes
from compute.kernels.gpu.handover import publish, receive
from compute.philox import uniform
from compute.plan import UNKNOWN, StepRow
from compute.request import SamplingParams
from kvmanager.messages import SequenceId
from tests.support.interpreter import DEVICE

SIZES = Sizes(rows=6, tokens=32, table_width=1500, block_size=4)


def row(
    number: int, start: int, ids: list[int], blocks: list[int], *, epoch: int = 1, **sampling: float
) -> StepRow:
    return StepRow(
        sequence=SequenceId(bytes([number]) * 16),
        epoch=epoch,
        token_ids=ids,
        start=start,
        blocks=blocks,
        sample=True,
        history=(),
        prompt_len=start + len(ids),
        sampling=SamplingParams(**sampling),
    )


class Device:
    """The other side of a ring."""

    def __init__(self) -> None:
        self.ring = Ring(SIZES, pinned=DEVICE.type == "cuda")
        self.words = torch.full((SIZES.frame_words,), -7, dtype=torch.int32, device=DEVICE)
        self.tables = torch.full((SIZES.rows, SIZES.table_width), -7, dtype=torch.int32, device=DEVICE)
        self.drawn = torch.zeros(SIZES.rows, dtype=torch.int32, device=DEVICE)
        self.turn = torch.zeros(1, dtype=torch.int32, device=DEVICE)

    def step(self, rows: list[StepRow], frame: Frame):
        """Written, received; the arrays as the kernels see them. `finish` ends it."""
        self.half = self.ring.write(rows, frame)
        receive(self.ring, self.turn, self.words, self.tables, self.drawn, frame)
        return frame.on_device(self.words)

    def finish(self, drawn: list[int]) -> list[int]:
        self.drawn[: len(drawn)] = torch.tensor(drawn, dtype=torch.int32)
        publish(self.ring, self.turn, self.drawn, len(drawn))
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return self.ring.answers[self.half][: len(drawn)].tolist()


def test_a_frame_s_arrays_fill_it_without_overlap() -> None:
    frame = Frame(3, 5)
    words = np.zeros(frame.words, np.int32)
    for array in frame.on_host(words):
        assert not array.any()
        array[:] = 1
    named = 3 + 8 * 3 + 4 + 4 * 5  # the low words of 1.0 as float64 are zeros
    assert words.astype(bool).sum() == named


@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (3, 5), (64, 64), (7, 2048)])
def test_arrays_are_aligned_whatever_the_step(rows: int, tokens: int) -> None:
    """Kernels are compiled once, not again in the middle of the service."""
    frame = Frame(rows, tokens)
    words = np.zeros(frame.words, np.int32)
    base = words.ctypes.data
    assert {(array.ctypes.data - base) % 16 for array in frame.on_host(words)} == {0}


def test_a_blank_step_writes_nothing() -> None:
    """What runs to be compiled must not touch a slot of the pool, which others use."""
    device = Device()
    device.step([row(1, 3, [7], [5]), row(2, 3, [8, 9], [6, 7])], Frame(2, 3))
    device.finish([1, 1])
    device.ring.blank(Frame(2, 3))
    receive(device.ring, device.turn, device.words, device.tables, device.drawn, Frame(2, 3))
    got = Frame(2, 3).on_device(device.words)
    assert got.write_blocks.tolist() == [-1] * 3
    assert not got.lengths.any()
    assert not got.wanted.any()
    assert not got.chunk_lengths.any()


def test_decode_rows_and_chunks_arrive_as_planned() -> None:
    device = Device()
    rows = [
        row(1, 9, [7], [5, 6, 8], temperature=0.0),
        row(2, 0, [3], [9], temperature=0.7, top_k=5, top_p=0.5, min_p=0.25, seed=11),
        row(3, 2, [4, 5, 6, 2, 1], [10, 12], temperature=1.0),
        row(4, 0, [8, 9], [2], temperature=0.0),
    ]
    got = device.step(rows, Frame(4, 9))
    assert got.ids.tolist() == [7, 3, 4, 5, 6, 2, 1, 8, 9]
    assert got.positions.tolist() == [9, 0, 2, 3, 4, 5, 6, 0, 1]
    assert got.write_blocks.tolist() == [8, 9, 10, 10, 12, 12, 12, 2, 2]
    assert got.write_slots.tolist() == [1, 0, 2, 3, 0, 1, 2, 0, 1]
    assert got.lengths.tolist() == [10, 1, 7, 2]
    assert got.lasts.tolist() == [0, 1, 6, 8]
    assert got.starts[:3].tolist() == [0, 5, 7]
    assert got.chunk_lengths[:2].tolist() == [7, 2]
    assert got.top_k.tolist() == [0, 5, 0, 0]
    torch.testing.assert_close(got.temperature.cpu(), torch.tensor([0.0, 0.7, 1.0, 0.0]))
    torch.testing.assert_close(got.min_p.cpu(), torch.tensor([0.0, 0.25, 0.0, 0.0]))
    assert got.uniform[1].item() == uniform([11], [1])[0]
    assert [device.tables[i, : len(one.blocks)].tolist() for i, one in enumerate(rows)] == [
        one.blocks for one in rows
    ]


def test_padding_writes_nothing_and_wants_nothing() -> None:
    device = Device()
    device.step([row(n, 3, [n], [n]) for n in range(1, 7)], Frame(6, 6))
    device.finish([1] * 6)
    got = device.step([row(1, 9, [7], [5, 6, 8])], Frame(4, 4))
    assert got.wanted.tolist() == [1, 0, 0, 0]
    assert got.lengths.tolist() == [10, 0, 0, 0]
    assert got.write_blocks.tolist() == [8, -1, -1, -1]


def test_an_unknown_token_is_what_its_row_drew_in_the_step_before() -> None:
    """Wherever the row stood then; a failed draw is some token, never an address."""
    device = Device()
    device.step([row(1, 3, [7], [5]), row(2, 3, [8], [6]), row(3, 0, [8], [7])], Frame(4, 4))
    assert device.finish([41, 42, -1]) == [41, 42, -1]
    rows = [row(3, 1, [UNKNOWN], [7]), row(2, 4, [UNKNOWN], [6, 9]), row(9, 0, [5], [3])]
    got = device.step(rows, Frame(4, 4))
    assert got.ids.tolist() == [0, 42, 5, 0]


@pytest.mark.parametrize("change", ["same", "epoch", "sequence"])
def test_a_table_that_stays_in_its_row_costs_only_its_new_blocks(change: str) -> None:
    """And one that does not is written anew, however alike the two look."""
    device = Device()
    blocks = list(range(100, 1400))
    for turn in range(4):
        held = [*blocks, *range(2000, 2000 + turn)]
        if turn >= 2 and change != "same":
            held = [block + 5000 for block in held]
        one = row(
            8 if change == "sequence" and turn >= 2 else 1,
            len(held) * 4 - 1,
            [7],
            held,
            epoch=2 if change == "epoch" and turn >= 2 else 1,
        )
        device.step([one], Frame(1, 1))
        assert device.tables[0, : len(held)].tolist() == held
        device.finish([0])


def test_the_other_half_is_not_touched_by_a_write() -> None:
    """Two steps are on their way: the one that runs keeps its words."""
    device = Device()
    device.ring.write([row(1, 3, [7], [5])], Frame(2, 2))
    before = device.ring.halves[0].words.copy(), device.ring.halves[0].tables.copy()
    device.ring.write([row(1, 4, [UNKNOWN], [5, 6])], Frame(2, 2))
    assert (device.ring.halves[0].words == before[0]).all()
    assert (device.ring.halves[0].tables == before[1]).all()
