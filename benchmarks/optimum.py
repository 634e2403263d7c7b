"""The least memory that sequences need, from their tokens alone: what sharing could save at best.

Knows nothing of pools, tables or forks. A slot holds the keys and values of one position, which depend on every token
up to it: two sequences need the same slot as far as they have the same beginning, and not one position further.

    slots    distinct (beginning, position) pairs: the nodes of the tree that the sequences make
    blocks   the same in pieces of `size` slots: two sequences can have a block in common if one's slots in it are the
             other's, or the beginning of them

In sorted order a sequence has most in common with the one behind it, so each adds what it has beyond that.
"""

from collections.abc import Sequence
from itertools import pairwise


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Positions up to which both have the same tokens."""
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    low, high = 0, length  # the beginnings of length `low` are equal, those of `high` are not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle)
    return low


def distinct_slots(sequences: Sequence[list[int]]) -> int:
    """Slots for all of them, each beginning once."""
    ordered = sorted(sequences)
    return sum(map(len, ordered)) - sum(common(a, b) for a, b in pairwise(ordered))


def distinct_blocks(sequences: Sequence[list[int]], size: int) -> int:
    """Blocks of `size` slots for all of them, where whoever can share a block does."""
    ordered = sorted(sequences)
    behind = [common(a, b) for a, b in pairwise([*ordered, []])]
    return sum(
        0 if shared == len(one) else -(-len(one) // size) - shared // size
        for one, shared in zip(ordered, behind, strict=True)
    )
