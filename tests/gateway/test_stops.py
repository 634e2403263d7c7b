"""Stop strings against the naive model: decode everything, find the first match."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.stops import StopMatcher


def naive(text, stops, include, least=0):
    """(sent text, matched): the match that ends first at or after `least` + 1 characters, the longest of those."""
    for end in range(least + 1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


def stream(pieces, stops, include, blocked=0):
    matcher, sent = StopMatcher(stops, include), ""
    for number, piece in enumerate(pieces):
        scan = matcher.push(piece, may_match=number >= blocked)
        sent += scan.text
        if scan.matched is not None:
            return sent, scan.matched
    return sent + matcher.flush(), None


letters = st.text("ab🙂", min_size=1, max_size=4)


@settings(deadline=None)
@given(st.lists(st.text("ab🙂", max_size=3), max_size=12), st.lists(letters, max_size=4), st.booleans())
def test_equals_the_naive_model_however_the_text_is_cut(pieces, stops, include):
    assert stream(pieces, stops, include) == naive("".join(pieces), stops, include)


@settings(deadline=None)
@given(st.lists(letters, max_size=10), st.lists(letters, min_size=1, max_size=3), st.integers(0, 10))
def test_nothing_matches_that_ends_before_min_tokens(pieces, stops, blocked):
    least = len("".join(pieces[:blocked]))
    assert stream(pieces, stops, True, blocked) == naive("".join(pieces), stops, True, least)


@settings(deadline=None)
@given(st.lists(letters, max_size=10), st.lists(letters, min_size=1, max_size=3))
def test_holds_back_no_more_than_the_begin_of_a_stop_string(pieces, stops):
    matcher, text, sent = StopMatcher(stops), "", ""
    for piece in pieces:
        scan = matcher.push(piece)
        if scan.matched:
            break
        text, sent = text + piece, sent + scan.text
        held = text[len(sent) :]
        assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["ab", "c"], ["abc"], ("", "abc")),
        (["xa", "ab"], ["aab"], ("x", "aab")),
        (["one", "two"], [], ("onetwo", None)),
        (["the end"], ["end", "the end"], ("", "the end")),
        (["aaa"], ["b"], ("aaa", None)),
    ],
)
def test_examples(pieces, stops, expected):
    assert stream(pieces, stops, include=False) == expected
