"""Pages of a list: complete, bounded, and their tokens good for one query only."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.errors import Invalid
from kvmanager.paging import MAX_BYTES, MAX_SIZE, Listing, bounded, page

QUERY = ("block", "", "")


def blocks(ids, extra=""):
    keys = [("pool", i) for i in sorted(ids)]
    return Listing(keys, lambda key: pb.BlockInfo(pool="pool", id=key[1], hash=extra))


def walk(listing, size):
    """All pages: the ids of each."""
    token, pages = "", []
    while True:
        items, token = page(listing, QUERY, size, token)
        pages.append([item.id for item in items])
        if not token:
            return pages


@given(st.sets(st.integers(0, 10_000)), st.integers(1, 50))
def test_pages_together_hold_every_item_once_and_in_order(ids, size):
    pages = walk(blocks(ids), size)
    assert [i for found in pages for i in found] == sorted(ids)
    assert all(len(found) == size for found in pages[:-1])


def test_an_empty_list_is_one_empty_last_page():
    assert page(blocks([]), QUERY, 10, "") == ([], "")


def test_items_that_come_and_go_neither_repeat_nor_hide_the_ones_that_stay():
    first, token = page(blocks(range(0, 20, 2)), QUERY, 3, "")
    assert [item.id for item in first] == [0, 2, 4]
    second, _ = page(blocks([1, 3, 6, 7, 8, 10]), QUERY, 3, token)  # 4 itself has gone
    assert [item.id for item in second] == [6, 7, 8]


def test_size_0_is_the_default_and_too_much_is_the_most():
    assert (bounded(0), bounded(7), bounded(10**6)) == (100, 7, MAX_SIZE)


def test_a_page_ends_before_its_bytes_would_fill_a_frame():
    items, token = page(blocks(range(MAX_SIZE), extra="x" * 4000), QUERY, MAX_SIZE, "")
    assert sum(item.ByteSize() for item in items) <= MAX_BYTES
    assert token
    assert 1000 < len(items) < MAX_SIZE


def test_one_item_over_the_bytes_is_still_shown():
    pages = walk(blocks([1, 2], extra="x" * (MAX_BYTES + 1)), 10)
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
        token_of([["block", "other", ""], ["pool", 3]]),
        token_of([QUERY, [[[[]]]]]),
    ],
)
def test_a_token_of_another_query_or_of_nobody_is_invalid(token):
    with pytest.raises(Invalid, match="page_token"):
        page(blocks(range(10)), QUERY, 2, token)


@given(st.text(min_size=1))
def test_no_text_is_a_token_by_chance(token):
    with pytest.raises(Invalid):
        page(blocks(range(10)), QUERY, 2, token)
