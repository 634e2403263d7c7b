"""Pages of a list: complete, bounded, and their tokens good for one query only."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.errors import Invalid
from kvmanager.paging import MAX_BYTES, MAX_SIZE, bounded, last_key, page

QUERY = ("block", "", "")
SHAPE = (str, int)


def blocks(ids, after=None, extra=""):
    for i in sorted(ids):
        if after is None or ("pool", i) > after:
            yield ("pool", i), pb.BlockInfo(pool="pool", id=i, hash=extra)


def next_page(ids, size, token, extra=""):
    return page(blocks(ids, last_key(token, QUERY, SHAPE), extra), QUERY, size)


def walk(ids, size, extra=""):
    """All pages: the ids of each."""
    token, pages = "", []
    while True:
        items, token = next_page(ids, size, token, extra)
        pages.append([item.id for item in items])
        if not token:
            return pages


@given(st.sets(st.integers(0, 10_000)), st.integers(1, 50))
def test_pages_together_hold_every_item_once_and_in_order(ids, size):
    pages = walk(ids, size)
    assert [i for found in pages for i in found] == sorted(ids)
    assert all(len(found) == size for found in pages[:-1])


def test_an_empty_list_is_one_empty_last_page():
    assert next_page([], 10, "") == ([], "")


def test_items_that_come_and_go_neither_repeat_nor_hide_the_ones_that_stay():
    first, token = next_page(range(0, 20, 2), 3, "")
    assert [item.id for item in first] == [0, 2, 4]
    second, _ = next_page([1, 3, 6, 7, 8, 10], 3, token)  # 4 itself has gone
    assert [item.id for item in second] == [6, 7, 8]


def test_a_page_takes_one_more_item_than_it_shows_and_no_other():
    taken = []
    page((taken.append(key) or (key, item) for key, item in blocks(range(100))), QUERY, 5)
    assert len(taken) == 6


def test_size_0_is_the_default_and_too_much_is_the_most():
    assert (bounded(0), bounded(7), bounded(10**6)) == (100, 7, MAX_SIZE)


def test_a_page_ends_before_its_bytes_would_fill_a_frame():
    items, token = next_page(range(MAX_SIZE), MAX_SIZE, "", "x" * 4000)
    assert sum(item.ByteSize() for item in items) <= MAX_BYTES
    assert token
    assert 1000 < len(items) < MAX_SIZE


def test_one_item_over_the_bytes_is_still_shown():
    pages = walk([1, 2], 10, "x" * (MAX_BYTES + 1))
    assert pages == [[1], [2]]


def token_of(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "!!!!",
        "A" * 5000,
        token_of(3),
        token_of([1, 2, 3]),
        token_of([QUERY, "pool"]),
        token_of([QUERY, [{}, 1]]),
        token_of([QUERY, ["pool", True]]),
        token_of([QUERY, ["pool", "3"]]),
        token_of([QUERY, ["pool"]]),
        token_of([QUERY, ["pool", -1]]),
        token_of([["block", "other", ""], ["pool", 3]]),
        token_of([QUERY, [[[[]]]]]),
    ],
)
def test_a_token_of_another_query_or_of_nobody_is_invalid(token):
    with pytest.raises(Invalid, match="page_token"):
        last_key(token, QUERY, SHAPE)


@given(st.text(min_size=1))
def test_no_text_is_a_token_by_chance(token):
    with pytest.raises(Invalid):
        last_key(token, QUERY, SHAPE)
