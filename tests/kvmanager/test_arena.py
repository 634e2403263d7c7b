"""Extents: first fit, merged when given back, the same after a rebuild from those in use."""

from hypothesis import given
from hypothesis import strategies as st

from kvmanager.arena import Arena


def test_first_fit() -> None:
    arena = Arena(10)
    assert [arena.take(3), arena.take(3), arena.take(3)] == [0, 3, 6]
    arena.give(0, 3)
    assert arena.take(2) == 0
    assert arena.take(2) is None, "one is left in two places"
    assert arena.free_units == 2


def test_claims_are_exclusive() -> None:
    arena = Arena(10)
    assert arena.claim(4, 3)
    assert not arena.claim(6, 1)
    assert not arena.claim(3, 2)
    assert not arena.claim(8, 3), "over the end"
    assert arena.claim(7, 3)
    assert arena.take(4) == 0
    assert arena.take(1) is None


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=60))
def test_against_a_list_of_cells(calls: list[tuple[bool, int]]) -> None:
    arena, cells, taken = Arena(32), [False] * 32, []
    for take, n in calls:
        if take:
            wanted = next((i for i in range(33 - n) if not any(cells[i : i + n])), None)
            offset = arena.take(n)
            assert offset == (0 if n == 0 else wanted)
            if offset is not None:
                cells[offset : offset + n] = [True] * n
                taken.append((offset, n))
        elif taken:
            offset, size = taken.pop(n % len(taken))
            arena.give(offset, size)
            cells[offset : offset + size] = [False] * size
        assert arena.free_units == cells.count(False)
    rebuilt = Arena(32)
    assert all(rebuilt.claim(offset, n) for offset, n in taken)
    assert rebuilt.holes == arena.holes
