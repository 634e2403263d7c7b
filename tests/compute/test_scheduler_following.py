"""Requests that wait for a prefix which another sequence is computing, on one worker and on two of one pool."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compute.request import Request
from kvmanager.messages import FinishReason
from tests.support.scheduling import Pair, expected_output, make_request

PROMPT = [7, 8, 9] * 8  # six blocks of 4


def computed(pair: Pair, prompt_len: int = len(PROMPT)) -> int:
    """Prompt tokens that this worker computed."""
    rows = [row for plan in pair.plans for row in plan.rows]
    return sum(max(0, min(prompt_len, row.start + len(row.token_ids)) - row.start) for row in rows)


def two_workers(**numbers: int) -> tuple[Pair, Pair]:
    one = Pair(**numbers)  # type: ignore[arg-type]
    return one, Pair(**numbers, beside=one)  # type: ignore[arg-type]


def go(*pairs: Pair, turns: int = 3000) -> None:
    """Turns of all workers until nobody has anything left."""
    quiet = 0
    for _ in range(turns):
        before = [pair.number for pair in pairs]
        for pair in pairs:
            pair.now = max(one.now for one in pairs)
            pair.turn()
            pair.deliver()
        busy = before != [pair.number for pair in pairs] or any(not pair.scheduler.idle for pair in pairs)
        quiet = 0 if busy else quiet + 1
        if quiet == 3:
            return
    raise AssertionError("no end in sight: somebody waits for nothing")


def right(pair: Pair, *requests: Request) -> bool:
    return all(
        (pair.output(one), pair.ends(one)) == (expected_output(one)[0], [expected_output(one)[1]])
        for one in requests
    )


@pytest.mark.parametrize("depth", [1, 2])
def test_on_one_worker_an_equal_prompt_is_computed_once(depth: int) -> None:
    """But for its last token, which every request computes for itself."""
    pair = Pair(num_blocks=40, max_tokens=8, depth=depth)
    requests = [make_request(number, PROMPT) for number in (1, 2, 3)]
    pair.submit(*requests)
    pair.run()
    assert right(pair, *requests)
    assert pair.state.prefix.waits == 2
    assert computed(pair) <= len(PROMPT) + 2 * 4


def test_on_two_workers_the_second_computes_what_the_first_does_not() -> None:
    one, two = two_workers(num_blocks=40, max_tokens=8)
    first, second = make_request(1, [*PROMPT, 2, 3]), make_request(2, [*PROMPT, 4, 5])
    one.submit(first)
    two.submit(second)
    go(one, two)
    assert right(one, first)
    assert right(two, second)
    assert (computed(one), computed(two)) == (24, 0)


def test_who_shares_nothing_passes_a_waiting_one() -> None:
    """A parked request does not hold the line, as one that waits for blocks does."""
    one, two = two_workers(num_blocks=40, max_tokens=4)
    one.submit(make_request(1, PROMPT))
    one.turn()
    one.deliver()
    waiting, other = make_request(2, PROMPT), make_request(3, [2, 3, 4], max_tokens=2)
    two.submit(waiting, other)
    for _ in range(8):
        two.turn()
        two.deliver()
    assert right(two, other)
    assert not two.output(waiting)
    go(one, two)
    assert right(two, waiting)


def begin() -> tuple[Pair, Pair, Request, Request]:
    """The first worker is in the middle of a prompt, and a request of the second waits for it."""
    one, two = two_workers(num_blocks=40, max_tokens=4)
    leader, follower = make_request(1, PROMPT), make_request(2, PROMPT)
    one.submit(leader)
    for _ in range(3):
        one.turn()
        one.deliver()
    two.submit(follower)
    for _ in range(4):
        two.turn()
        two.deliver()
    assert two.state.prefix.waits == 1
    assert not two.plans
    return one, two, leader, follower


def test_a_cancelled_leader_lets_the_other_go_on_where_it_stopped() -> None:
    one, two, leader, follower = begin()
    one.scheduler.cancel(leader.sequence, FinishReason.CANCELLED)
    go(one, two)
    assert right(two, follower)
    assert 0 < computed(two) < len(PROMPT)


def test_a_dead_leaders_follower_goes_on() -> None:
    one, two, _, follower = begin()
    two.state.lose(one.session, two.now)
    for outgoing in two.state.outbox():
        two.workers[outgoing.session].down.append((outgoing.number, outgoing.reply))
    go(two)
    assert right(two, follower)
    assert 0 < computed(two) < len(PROMPT)


def test_a_waiting_request_can_be_cancelled() -> None:
    one, two, leader, follower = begin()
    two.scheduler.cancel(follower.sequence, FinishReason.CANCELLED)
    go(one, two)
    assert right(one, leader)
    assert two.ends(follower) == [FinishReason.CANCELLED]


def test_a_draining_worker_rejects_who_waits() -> None:
    one, two, leader, follower = begin()
    two.scheduler.drain()
    go(one, two)
    assert right(one, leader)
    assert len(two.ends(follower)) == 1
    assert not two.output(follower)


asks = st.tuples(
    st.just("ask"),
    st.integers(0, 1),  # which worker
    st.integers(0, 6),  # blocks of the common begin, and a bit
    st.lists(st.integers(2, 5), min_size=1, max_size=6),
    st.integers(-1, 1),
)
events = st.one_of(
    asks,
    asks,
    st.tuples(st.just("turn"), st.integers(0, 1)),
    st.tuples(st.just("deliver"), st.integers(0, 1), st.integers(0, 4), st.integers(0, 4)),
    st.tuples(st.just("cancel"), st.integers(0, 20)),
)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from((14, 24, 60)), st.integers(1, 2), st.lists(events, min_size=8, max_size=40))
def test_whatever_two_workers_share_every_request_ends_with_its_own_tokens(
    blocks: int, depth: int, script: Sequence[tuple[object, ...]]
) -> None:
    """Waits, preemptions and cancels in any order: no circle, no lost wake-up, no leak."""
    pairs = two_workers(num_blocks=blocks, max_tokens=8, depth=depth)
    asked: list[tuple[Pair, Request]] = []
    canceled = set()
    for event in script:
        match event:
            case ("ask", int(which), int(common), list(rest), int(priority)):
                ids = [*PROMPT[: max(0, 4 * common - 1)], *rest]
                request = make_request(len(asked) + 1, ids, priority=priority, max_tokens=6)
                asked.append((pairs[which], request))
                pairs[which].submit(request)
            case ("turn", int(which)):
                pairs[which].now = max(pair.now for pair in pairs)
                pairs[which].turn()
            case ("deliver", int(which), int(up), int(down)):
                pairs[which].deliver(up, down)
            case ("cancel", int(index)) if asked:
                pair, request = asked[index % len(asked)]
                canceled.add(request.sequence)
                pair.scheduler.cancel(request.sequence, FinishReason.CANCELLED)
    go(*pairs)
    for pair, request in asked:
        assert request.sequence in canceled or right(pair, request)
        assert len(pair.ends(request)) == 1
    assert pairs[0].used_blocks() == 0
    assert pairs[0].state.check_integrity() == []
