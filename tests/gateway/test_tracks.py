"""Tracks: whatever is lost, doubled or reordered on the way, every position comes out once, in order."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.tracks import Entry, Track
from kvmanager.messages import FinishReason

PROMPT = 3


def entry(first, ids, epoch=1, **fields):
    return Entry(sequence=b"s", epoch=epoch, first_position=first, token_ids=ids, **fields)


def drained(track, most=7):
    found = []
    while batch := track.take(most).token_ids:
        found.extend(batch)
    return found


@settings(deadline=None)
@given(st.data())
def test_every_token_comes_out_once_and_in_order(data):
    """Entries in any order, some lost, some twice; gaps are read from the record."""
    total = data.draw(st.integers(1, 40))
    record = list(range(1000, 1000 + total))
    cuts = sorted({0, total, *data.draw(st.lists(st.integers(0, total), max_size=8))})
    spans = list(pairwise(cuts))
    sent = data.draw(st.lists(st.sampled_from(spans), max_size=20))
    track, out = Track(PROMPT, limit=data.draw(st.integers(4, 64))), []
    for a, b in sent:
        track.accept(entry(PROMPT + a, record[a:b], logprobs=record[a:b]))
        if data.draw(st.booleans()):
            out += drained(track)
            if track.missing:
                track.feed(track.end, record[track.end - PROMPT :])
    track.accept(entry(PROMPT + total, [], finish=FinishReason.EOS))
    while not track.done:
        out += drained(track)
        if track.missing:
            track.feed(track.end, record[track.end - PROMPT :])
    assert out == record
    assert track.finish is FinishReason.EOS


def test_an_older_epoch_has_no_effect():
    track = Track(PROMPT)
    assert track.accept(entry(3, [1], epoch=2))
    assert not track.accept(entry(4, [9], epoch=1))
    assert track.accept(entry(4, [2], epoch=2))
    assert drained(track) == [1, 2]


def test_nothing_is_accepted_after_the_end():
    track = Track(PROMPT)
    track.accept(entry(3, [1], finish=FinishReason.STOP, stop_token_id=1))
    assert not track.accept(entry(4, [2]))
    assert drained(track) == [1]
    assert (track.done, track.stop_token_id) == (True, 1)


def test_batches_never_mix_tokens_with_and_without_logprobs():
    track = Track(PROMPT)
    track.accept(entry(3, [1, 2], logprobs=["a", "b"]))
    track.accept(entry(6, [4]))
    assert track.take(9).logprobs == ["a", "b"]
    assert track.missing
    track.feed(5, [3, 4])
    batch = track.take(9)
    assert (batch.token_ids, batch.logprobs) == ([3, 4], [])


def test_an_overflowing_buffer_keeps_an_offset_only():
    track = Track(PROMPT, limit=4)
    for position in range(3, 13):
        track.accept(entry(position, [position]))
    assert (track.ready, track.end, track.known) == (4, 7, 13)
    assert not track.missing  # first deliver what is here
    assert drained(track) == [3, 4, 5, 6]
    assert track.missing
    track.feed(7, list(range(7, 13)))
    assert drained(track) == [7, 8, 9, 10]
    track.feed(11, [11, 12])
    assert drained(track) == [11, 12]
    track.accept(entry(13, [13]))
    assert drained(track) == [13]
