"""Beam searches that another worker, or another daemon, goes on with: the answer is the textbook's, nothing leaks."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.request import Request
from kvmanager.errors import Unavailable
from kvmanager.messages import FinishReason, OpenOrAdopt
from tests.compute.test_scheduler_adopt import again, beside
from tests.compute.test_scheduler_beams import PROMPT, check, clean, pair_for
from tests.support.scheduling import Pair, make_search

WIDTH = 3


def make(number: int = 1, **asked: object) -> Request:
    return make_search(number, WIDTH, PROMPT, 2, **({"max_tokens": 9} | asked))


def turns(pair: Pair, count: int) -> None:
    for _ in range(count):
        pair.turn()
        pair.deliver()


def beams_of(pair: Pair) -> int:
    searches = pair.scheduler._roster.searches
    return len(searches[0].beams) if searches else 0


def until_beams(pair: Pair) -> None:
    while not beams_of(pair):
        turns(pair, 1)
    turns(pair, 3)  # some have come and gone
    assert beams_of(pair) == WIDTH


# --------------------------------------------------------------------------------------------- adopted


@pytest.mark.parametrize("proven", [True, False])
@pytest.mark.parametrize("stop_ids", [frozenset(), frozenset(range(2, 12))], ids=len)
@pytest.mark.parametrize("count", range(1, 14))
def test_an_adopter_gives_the_same_answer(count: int, stop_ids: frozenset[int], proven: bool) -> None:
    """Whenever the worker dies: nothing that was committed is computed again, and of each beam less than a block."""
    request = make(stop_token_ids=stop_ids)
    first = pair_for(WIDTH)
    first.submit(request)
    turns(first, count)
    if first.found(request):
        return
    committed = {s.id: s.kv_len for s in first.state._parts.sequences.by_id.values()}
    first.die(proven=proven)
    second = beside(first)
    second.submit(again(request))
    second.run()
    if not proven:
        first.state.dead(first.session)
    check(second, request)
    rows = {row.sequence: row for plan in reversed(second.plans) for row in plan.rows}
    for name in committed.keys() & rows.keys():
        assert rows[name].start == committed[name], "committed slots are computed again"
    assert second.scheduler.progress.reprefilled == 0
    assert second.scheduler.progress.replayed <= WIDTH * second.limits.block_size + len(PROMPT)


def test_each_adopter_of_many_goes_on_where_the_last_one_was() -> None:
    """Also when it dies between the search's opening and that of its beams."""
    request = make(max_tokens=12, ignore_eos=True)
    pairs = [pair_for(WIDTH)]
    pairs[0].submit(request)
    until_beams(pairs[0])
    for count in (0, 1, 2, 1, 3, 2):
        pairs[-1].die(proven=True)
        pairs.append(beside(pairs[-1]))
        pairs[-1].submit(again(request))
        turns(pairs[-1], count)
        assert not pairs[-1].found(request)
    pairs[-1].run()
    check(pairs[-1], request)


@pytest.mark.parametrize("count", range(1, 5))
def test_a_cancel_leaves_nothing_of_a_search_that_was_just_taken_over(count: int) -> None:
    request = make()
    first = pair_for(WIDTH)
    first.submit(request)
    until_beams(first)
    first.die(proven=True)
    second = beside(first)
    second.submit(again(request))
    for _ in range(count):
        second.turn()
        second.deliver(1, 1)
    second.scheduler.cancel(request.indexes[1], FinishReason.CANCELLED)
    second.run()
    assert [event.finish for event in second.shown] == [FinishReason.CANCELLED] * 2
    assert second.refusals == []
    clean(second)


def test_a_search_that_nobody_asks_for_goes_with_all_its_records() -> None:
    request = make()
    first = pair_for(WIDTH)
    first.submit(request)
    until_beams(first)
    first.die(proven=True)
    first.state.expire(first.now + 10, 10**12, 5)
    assert [(one.state, one.finish) for one in first.state.sequences()] == [("finished", "cancelled")]
    assert first.state.check_integrity() == []
    assert first.used_blocks() == 0


def test_a_search_of_which_workers_die_fails_alone_and_whole() -> None:
    """Its beams are suspects together: they run beside each other, and beside nobody else (rule 12)."""
    request = make()
    first = pair_for(WIDTH)
    first.submit(request)
    until_beams(first)
    pair = first
    for _ in range(3):
        pair.die(proven=True)
        pair = beside(pair)
        pair.submit(again(request))
        turns(pair, 2)  # the beams' rows are here, and nothing is committed
    pair.die(proven=True)
    assert [(one.state, one.finish) for one in first.state.sequences()] == [("finished", "error")]
    assert first.state.check_integrity() == []


def test_suspects_of_one_search_go_on_together() -> None:
    request = make()
    first = pair_for(WIDTH)
    first.submit(request)
    until_beams(first)
    for _ in range(2):
        first.die(proven=True)
        first = beside(first)
        first.submit(again(request))
        turns(first, 2)
    first.run()
    check(first, request)


def test_an_answer_that_another_worker_began_has_no_log_probabilities() -> None:
    """Of all its tokens or of none."""
    request = replace(make(), logprobs=2)
    first = pair_for(WIDTH)
    first.submit(request)
    until_beams(first)
    first.die(proven=True)
    second = beside(first)
    second.submit(again(request))
    second.run()
    check(second, request)
    assert [list(event.logprobs) for event in second.shown] == [[], []]


# --------------------------------------------------------------------------------------------- handed over


@pytest.mark.parametrize("count", range(1, 14))
def test_a_search_is_handed_over(count: int) -> None:
    """Each index is given back, once the last record is; the next worker goes on with all of it."""
    request = make()
    first = pair_for(WIDTH)
    first.submit(request)
    turns(first, count)
    if first.found(request):
        return
    first.scheduler.hand_over()
    first.run()
    assert [one.code for one in first.rejected] == [Unavailable.code] * 2
    assert {one.sequence for one in first.rejected} == set(request.indexes)
    second = beside(first)
    second.submit(again(request))
    second.run()
    check(second, request)
    assert second.scheduler.progress.reprefilled == 0


# --------------------------------------------------------------------------------------------- another daemon


@pytest.mark.parametrize("down", [0, 1, 1000])
@pytest.mark.parametrize("up", [0, 1, 2, 1000])
@pytest.mark.parametrize("count", range(1, 12, 2))
def test_a_daemon_that_starts_anew_loses_nothing_of_a_search(count: int, up: int, down: int) -> None:
    """Whatever of its commits was applied, and whatever of the answers came."""
    request = make(stop_token_ids=frozenset(range(2, 8)))
    pair = pair_for(WIDTH)
    pair.submit(request)
    turns(pair, count)
    for _ in range(3):  # beams begin and end among what is not answered
        pair.turn()
        pair.deliver(up, down)
    pair.restart_daemon()
    pair.run()
    check(pair, request)


def test_the_answer_of_an_adoption_may_be_lost() -> None:
    request = make()
    first = pair_for(WIDTH)
    first.submit(request)
    until_beams(first)
    first.die(proven=True)
    second = beside(first)
    second.submit(again(request))
    second.turn()
    assert any(isinstance(message, OpenOrAdopt) for _, message in second.up)
    second.deliver(1000, 0)
    second.restart_daemon()
    second.run()
    check(second, request)


# --------------------------------------------------------------------------------------------- stories

EVENTS: dict[str, Callable[[Pair], None]] = {
    "turn": lambda pair: turns(pair, 1),
    "silence": lambda pair: (pair.turn(), None)[1],
    "trickle": lambda pair: (pair.turn(), pair.deliver(1, 1))[1],
    "daemon": Pair.restart_daemon,
}


@settings(deadline=None)
@given(
    story=st.lists(st.sampled_from([*EVENTS, "turn", "turn", "kill", "hand over"]), max_size=25),
    penalty=st.sampled_from([1.0, 0.0, -1.0]),
    ends=st.sampled_from([0, 4, 12]),
)
def test_any_story_ends_with_the_answer(story: list[str], penalty: float, ends: int) -> None:
    request = make_search(
        1, WIDTH, PROMPT, 2, penalty, max_tokens=9, stop_token_ids=frozenset(range(2, 2 + ends))
    )
    pair = pair_for(WIDTH, num_blocks=60)
    pair.submit(request)
    for event in story:
        if pair.found(request) or (pair.up and event == "hand over"):
            continue
        if event in EVENTS:
            EVENTS[event](pair)
            continue
        if event == "hand over":
            pair.scheduler.hand_over()
            pair.run()
            if pair.found(request):
                continue
        else:
            pair.die(proven=True)
        records = pair.state.sequences()
        if records and all(one.state == "finished" for one in records):
            return  # the answer is in the records, and was not said
        pair = beside(pair)
        pair.submit(again(request))
    pair.run()
    if pair.rejected:  # its record had ended before it was asked for
        assert all(one.state == "finished" for one in pair.state.sequences())
        return
    check(pair, request)
