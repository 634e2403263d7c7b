"""The least memory that sequences need: by hand, and against a set of all beginnings."""

import random

import pytest

from benchmarks.optimum import common, distinct_blocks, distinct_slots

A = [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("sequences", "slots", "blocks"),
    [
        ([], 0, 0),
        ([[]], 0, 0),
        ([A], 6, 2),
        ([A, A], 6, 2),
        ([A, A[:3]], 6, 2),  # the shorter one's tail is the beginning of the other's first block
        ([A, [9]], 7, 3),
        ([[*A, 7], [*A, 8]], 8, 3),  # part within the second block: both need it
        ([[*A[:4], 7], [*A[:4], 8], [*A[:4], 9]], 7, 4),  # part at a block's border
        ([[9, *A], A], 13, 4),  # the same tokens elsewhere are others
        ([[1, 2], [1, 3], [1, 2, 4]], 4, 2),
    ],
)
def test_by_hand(sequences: list[list[int]], slots: int, blocks: int) -> None:
    for order in (sequences, sequences[::-1]):
        assert (distinct_slots(order), distinct_blocks(order, 4)) == (slots, blocks)


def trees(rng: random.Random) -> list[list[int]]:
    """Sequences that copy a part of another and go on by themselves."""
    found = [[rng.randrange(3) for _ in range(rng.randrange(12))]]
    for _ in range(rng.randrange(8)):
        parent = rng.choice(found)
        found.append(
            parent[: rng.randrange(len(parent) + 1)] + [rng.randrange(3) for _ in range(rng.randrange(9))]
        )
    return found


@pytest.mark.parametrize("seed", range(50))
def test_each_beginning_counts_once(seed: int) -> None:
    sequences = trees(random.Random(seed))
    beginnings = {tuple(one[:end]) for one in sequences for end in range(1, len(one) + 1)}
    assert distinct_slots(sequences) == len(beginnings)
    for size in (1, 2, 4):
        ends = {
            tuple(one[: min(at + size, len(one))]) for one in sequences for at in range(0, len(one), size)
        }
        alike = {
            end
            for end in ends
            for other in ends
            if other != end and other[: len(end)] == end and -(-len(other) // size) == -(-len(end) // size)
        }
        assert distinct_blocks(sequences, size) == len(ends - alike)


@pytest.mark.parametrize("length", range(20))
def test_what_two_sequences_have_in_common(length: int) -> None:
    rest = [7] * (19 - length)
    assert common([*range(length), 50, *rest], [*range(length), 60, *rest]) == length
