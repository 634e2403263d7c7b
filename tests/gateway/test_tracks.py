"""Tracks: whatever is lost, doubled or reordered on the way, every position comes out once, in order."""

import struct
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


@settings(deadline=None)
@given(st.data())
def test_two_owners_in_any_order_give_every_position_once(data):
    """The first owner records a part and dies; another adopts, says the last recorded token again and goes on.

    Their entries overlap, are lost, come twice, and the first owner's late ones come among the second's, wrong ones
    too once the second has spoken. The record is read whenever the track asks, and is as long as it is by then.
    """
    total = data.draw(st.integers(2, 40))
    right = list(range(1000, 1000 + total))
    adopted = data.draw(st.integers(1, total))
    mine = list(pairwise(sorted({0, adopted, *data.draw(st.lists(st.integers(0, adopted), max_size=6))})))
    cuts = sorted({adopted, total, *data.draw(st.lists(st.integers(adopted, total), max_size=6))})
    others = [(adopted - 1, adopted), *pairwise(cuts)]
    track, out, recorded, spoken = Track(PROMPT, limit=data.draw(st.integers(2, 64))), [], adopted, False

    def deliver():
        if track.missing:
            track.feed(track.end, right[track.end - PROMPT : recorded])
        return drained(track)

    for _ in range(data.draw(st.integers(0, 30))):
        if others and data.draw(st.booleans()):
            a, b = others.pop(0)
            recorded = max(recorded, b)
            if data.draw(st.booleans()):  # else lost
                track.accept(entry(PROMPT + a, right[a:b], epoch=2))
                spoken = True
        else:
            a, b = data.draw(st.sampled_from(mine))
            wrong = spoken and data.draw(st.booleans())
            track.accept(entry(PROMPT + a, [0] * (b - a + 5) if wrong else right[a:b], epoch=1))
        if data.draw(st.booleans()):
            out += deliver()
    recorded = total
    track.accept(entry(PROMPT + total, [], epoch=2, finish=FinishReason.LENGTH))
    while not track.done:
        out += deliver()
    assert out == right


@settings(deadline=None)
@given(st.data())
def test_a_record_opened_anew_goes_on_behind_what_is_here(data):
    """Its epochs begin again, below those that were heard, and it holds no more than what was sent along."""
    total = data.draw(st.integers(2, 30))
    right = list(range(1000, 1000 + total))
    here, heard = sorted((data.draw(st.integers(1, total)), data.draw(st.integers(1, total))))
    track = Track(PROMPT)
    track.accept(entry(PROMPT, right[:here], epoch=7))
    track.accept(entry(PROMPT + heard, [], epoch=7))  # the record was longer; that is lost
    out = drained(track) if data.draw(st.booleans()) else []
    known = list(struct.unpack(f"<{here}I", track.output_ids))
    assert known == right[:here]
    assert not track.accept(entry(PROMPT + here - 1, right[here - 1 : here], epoch=1))
    track.begin_again(1, PROMPT + len(known))
    for place in range(here, total):
        track.accept(entry(PROMPT + place, [right[place]], epoch=1))
    track.accept(entry(PROMPT + total, [], finish=FinishReason.EOS))
    assert out + drained(track) == right
    assert track.done


def test_a_resumed_track_begins_behind_what_was_delivered():
    track = Track(PROMPT)
    track.skip([1, 2])
    track.feed(PROMPT, [1, 2, 3])
    track.accept(entry(6, [4], epoch=3))
    assert drained(track) == [3, 4]
    assert track.output_ids == struct.pack("<4I", 1, 2, 3, 4)


def test_usage_is_of_whoever_brought_the_first_token():
    track = Track(PROMPT)
    track.accept(entry(3, [], cached_tokens=1, queue_seconds=1.0))
    track.accept(entry(3, [5], epoch=2, cached_tokens=2, queue_seconds=2.0))
    track.accept(entry(4, [6], epoch=3, cached_tokens=3, queue_seconds=3.0))
    assert (track.cached_tokens, track.queue_seconds) == (2, 2.0)


def test_prompt_logprobs_of_a_second_owner_replace_those_of_the_first():
    track = Track(PROMPT)
    track.accept(entry(3, [], prompt_logprobs=["a"]))
    track.accept(entry(3, [5], epoch=2, prompt_logprobs=["a", "b"]))
    assert track.prompt_logprobs == ["a", "b"]


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
