"""The child index against plain comparison: of all blocks after the same one, the longest common beginning."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from kvmanager.children import Children, common

SIZE = 5
tokens = st.lists(st.sampled_from((0, 1, 256, 2**32 - 1)), min_size=SIZE, max_size=SIZE).map(tuple)
parents = st.sampled_from(((1, b"a"), (1, b"b"), (2, b"a")))
siblings = st.lists(st.tuples(parents, tokens), max_size=30, unique=True)


def pack(ids: tuple[int, ...]) -> bytes:
    return struct.pack(f"<{len(ids)}I", *ids)


def alike(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@given(tokens, st.integers(0, SIZE), tokens)
def test_common_counts_whole_tokens(a: tuple[int, ...], cut: int, b: tuple[int, ...]) -> None:
    assert common(pack(a), pack(b[:cut])) == alike(a, b[:cut])


@given(siblings, st.sets(st.integers(0, 29)), parents, tokens, st.integers(0, SIZE))
def test_the_nearest_has_the_longest_common_beginning(
    known: list[tuple[tuple[int, bytes], tuple[int, ...]]],
    removed: set[int],
    parent: tuple[int, bytes],
    wanted: tuple[int, ...],
    cut: int,
) -> None:
    children = Children(SIZE)
    for block, (of, ids) in enumerate(known):
        children.add(*of, pack(ids), block)
    for block, (of, ids) in enumerate(known):
        if block in removed:
            children.remove(*of, pack(ids), block)
    left = {block: ids for block, (of, ids) in enumerate(known) if of == parent and block not in removed}
    best = max((alike(ids, wanted[:cut]) for ids in left.values()), default=0)
    found = children.nearest(*parent, pack(wanted[:cut]))
    if best < children.half:
        assert found is None
    else:
        assert found is not None
        block, slots = found
        assert slots == best == alike(left[block], wanted[:cut])


def test_nothing_is_left_when_all_are_removed() -> None:
    children = Children(SIZE)
    for block in range(3):
        children.add(1, b"a", pack((0, 0, 0, 0, block)), block)
    for block in range(3):
        children.remove(1, b"a", pack((0, 0, 0, 0, block)), block)
    assert children._siblings == {}
