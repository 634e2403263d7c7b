"""Savings on small traces: what is measured, against numbers by hand and against the optimum."""

import pytest

from benchmarks.beams import Beams, descent, recorded
from benchmarks.paging import Life, trace
from benchmarks.sharing import Savings, beam, filled_slots, parallel

LIVES = [Life(100, 40), Life(35, 60), Life(64, 33)]


def test_the_trace_is_the_same_every_time_and_within_its_bounds() -> None:
    lives = trace(500)
    assert lives == trace(500)
    assert lives[:100] == trace(100)
    assert lives != trace(500, seed=2)
    assert all(4 <= length <= 1024 for life in lives for length in (life.prompt, life.output))


@pytest.mark.parametrize("n", [2, 4])
def test_samples_save_what_can_be_saved_in_blocks(n: int) -> None:
    """One request alone: prompt of 96 in 6 blocks, shared by all from the first decode step on."""
    figures = parallel([Life(96, 400)], n, 8192).figures()
    assert figures["blocks"] == pytest.approx(figures["blocks_optimum"], abs=1e-12)
    assert figures["slots"] == pytest.approx(figures["slots_optimum"], abs=1e-12)
    # n·(96 + t) slots for t = 0, 8, … 392 tokens held, but for the looks at which all of them are not there yet
    steps = [96 + t for t in range(400)]
    assert figures["slots"] == pytest.approx(96 * (n - 1) / n * 400 / sum(steps), abs=0.01)


@pytest.mark.parametrize("n", [2, 6])
def test_nothing_beats_the_optimum_and_the_rest_is_the_begun_tail(n: int) -> None:
    for found in (parallel(LIVES, n, 8192), beam(LIVES, n)):
        figures = found.figures()
        assert 0 <= figures["blocks_optimum"] - figures["blocks"] < 0.05
        assert 0 <= figures["slots_optimum"] - figures["slots"] < 0.1


def test_one_sample_saves_nothing() -> None:
    assert set(parallel(LIVES, 1, 8192).figures().values()) == {0.0}


def test_a_shared_block_counts_once() -> None:
    rows = [([1, 2], 7), ([1, 3], 6), ([4], 4)]
    assert filled_slots(rows, 4) == 4 + 3 + 2 + 4


def test_sums_are_weighed_by_what_is_held() -> None:
    found = Savings(
        16, used_blocks=3, row_blocks=4, needed_blocks=2, filled_slots=5, row_slots=10, needed_slots=4
    )
    assert [*found.figures().values()] == [0.25, 0.5, 0.5, 0.6, 0]


@pytest.mark.parametrize("width", [2, 4, 6])
def test_the_recorded_descents_name_beams_that_exist(width: int) -> None:
    searches = recorded(width)
    assert len(searches) == 16
    assert {len(search) for search in searches} == {256}
    for step in (step for search in searches for step in search):
        assert len(step) == width
        assert set(step) <= set(range(width))


def test_beams_descend_as_told_and_leave_a_pool_without_faults() -> None:
    beams = Beams(4, 16)
    steps = [held for held in beams.run([Life(20, 50)]) if held]
    assert [len(held) for held in steps] == [4] * 50
    assert [{len(one) for one in held} for held in steps] == [{20 + done} for done in range(50)]
    assert beams.state.check_integrity() == []
    counts = beams.state.counts()
    assert (counts.tail, counts.sealed - counts.cached) == (0, 0)
    parents = descent(recorded(4)[0], 4)
    assert next(parents) == [0] * 4
    for before, parent, after in zip(steps, parents, steps[1:], strict=False):
        came_from = [one[: len(before[0])] for one in after]
        assert sorted(came_from) == sorted(before[place] for place in parent)
