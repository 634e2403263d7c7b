"""Two steps on their way at once: the second is planned before anybody has read what the first one draws."""

import pytest

from compute.plan import UNKNOWN
from compute.request import Request, SamplingParams
from kvmanager.messages import FinishReason
from tests.support.scheduling import EOS, Pair, expected_output, make_request


def started(*requests: Request, **shape: int) -> Pair:
    """Two steps deep; everything submitted has a row and its prompt is computed."""
    pair = Pair(num_blocks=shape.pop("num_blocks", 100), depth=2, **shape)
    pair.submit(*requests)
    while len(pair.plans) < 2:
        pair.turn()
        pair.deliver()
    return pair


def ending_by_eos(least: int = 4) -> Request:
    """A request that draws EOS after a few tokens."""
    for number in range(1, 400):
        request = make_request(number, [number % 60 + 2, 3, 5], max_tokens=40)
        tokens, finish = expected_output(request)
        if finish is FinishReason.EOS and least <= len(tokens) < 20:
            return request
    raise AssertionError("no such request")


def test_a_decode_row_names_a_token_that_is_not_known_yet() -> None:
    """The device knows it; its history ends before it."""
    pair = started(make_request(1, [2, 3, 4], max_tokens=6, ignore_eos=True))
    row = pair.plans[1].rows[0]
    assert (row.token_ids, row.start) == ((UNKNOWN,), 3)
    pair.run()
    ids = [row.token_ids for plan in pair.plans for row in plan.rows]
    assert ids == [[2, 3, 4]] + 5 * [(UNKNOWN,)]


def test_no_step_is_planned_beyond_the_last_token() -> None:
    """How many tokens there will be is known before they are."""
    request = make_request(1, max_tokens=5, ignore_eos=True)
    pair = started(request)
    pair.run()
    assert len(pair.output(request)) == 5
    assert sum(len(plan.rows) for plan in pair.plans) == 5
    assert pair.scheduler.progress.steps_waited == 0


def test_what_a_step_draws_after_the_end_is_dropped_and_its_row_stays_until_then() -> None:
    """Protocol rule 7: the blocks leave when the last step that names them is done."""
    request = ending_by_eos()
    tokens, _ = expected_output(request)
    pair = started(request)
    while not pair.ends(request):
        pair.turn()
        pair.deliver()
    assert pair.scheduler.idle
    assert len(pair.flight) == 1, "the step after the end is still on its way"
    assert pair.used_blocks() > 0
    pair.run()
    assert pair.output(request) == tokens
    assert tokens[-1] == EOS
    assert sum(len(plan.rows) for plan in pair.plans) == len(tokens) + 1
    assert pair.used_blocks() == 0


@pytest.mark.parametrize("what", ["cancel", "revoke"])
def test_a_row_given_back_under_a_step_is_released_after_it(what: str) -> None:
    request = make_request(1, max_tokens=30, ignore_eos=True)
    pair = started(request)
    assert pair.flight
    if what == "cancel":
        pair.scheduler.cancel(request.sequence, FinishReason.CANCELLED)
    else:
        (found,) = pair.state.sequences()
        pair.scheduler.revoke(request.sequence, found.epoch, pair.now)
    pair.turn()
    held = pair.used_blocks()
    assert held > 0
    pair.run()
    assert pair.used_blocks() == 0
    tokens, _ = expected_output(request)
    assert pair.output(request) == tokens[: len(pair.output(request))]
    assert (len(pair.output(request)) == 30) == (what == "revoke")


@pytest.mark.parametrize(
    "wish",
    [
        {"sampling": SamplingParams(temperature=0.0, repetition_penalty=1.2)},
        {"sampling": SamplingParams(temperature=0.0, presence_penalty=0.1)},
        {"sampling": SamplingParams(temperature=0.0, logit_bias={3: 1.0})},
        {"logprobs": 2},
    ],
    ids=lambda wish: next(iter(wish)),
)
def test_a_draw_that_needs_the_history_waits_for_it(wish: dict[str, object]) -> None:
    """Nothing is planned ahead of such a sequence, and that is no waiting for blocks."""
    request = make_request(1, max_tokens=6, ignore_eos=True)
    for name, value in wish.items():
        object.__setattr__(request, name, value)
    pair = started(request)
    pair.run()
    assert all(UNKNOWN not in row.token_ids for plan in pair.plans for row in plan.rows)
    assert pair.scheduler.progress.steps_waited == 0


def test_min_tokens_waits_only_until_they_are_there() -> None:
    """Bans hold up to the least number of tokens; after it steps run ahead again."""
    request = make_request(1, max_tokens=8, min_tokens=3, ignore_eos=True)
    pair = started(request)
    pair.run()
    unknown = [UNKNOWN in row.token_ids for plan in pair.plans for row in plan.rows]
    assert unknown == [False] * 4 + [True] * 4
    assert pair.output(request) == expected_output(request)[0]


def test_an_error_of_a_row_ends_it_alone_though_a_second_step_is_launched() -> None:
    bad, good = make_request(1, max_tokens=6, ignore_eos=True), make_request(2, max_tokens=6, ignore_eos=True)
    pair = started(bad, good)
    pair.failing = {bad.sequence}
    pair.run()
    assert pair.ends(bad) == [FinishReason.ERROR]
    assert pair.output(good) == expected_output(good)[0]
    assert pair.used_blocks() == 0
    assert pair.state.check_integrity() == []
