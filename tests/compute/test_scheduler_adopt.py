"""Sequences that another worker began, and those that are handed over: nothing lost, doubled or computed twice."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.request import Request
from compute.scheduler import TokenEvent
from kvmanager.errors import Unavailable
from kvmanager.messages import FinishReason
from tests.support.scheduling import Pair, expected_output, make_group, make_request


def again(request: Request, *shown: int) -> Request:
    """As the gateway submits it to another worker."""
    return replace(request, adopt=True, output=tuple(shown), client=b"gateway")


def heard(request: Request, *pairs: Pair) -> list[int]:
    """What a gateway shows of it: whoever says a token, it is the recorded one, and the record fills the gaps."""
    found = {
        position: token
        for event in (event for pair in pairs for event in events_of(pair, request))
        for position, token in enumerate(event.token_ids, event.first_position)
    }
    if not found:
        return []
    tokens = pairs[0].state.read_record(request.sequence).token_ids
    assert {position: tokens[position] for position in found} == found
    return tokens[len(request.prompt) : max(found) + 1]


def beside(pair: Pair, depth: int = 1) -> Pair:
    limits = pair.limits
    return Pair(
        num_blocks=limits.num_blocks,
        block_size=limits.block_size,
        max_num_seqs=limits.max_num_seqs,
        max_tokens=limits.max_num_batched_tokens,
        beside=pair,
        depth=depth,
    )


def until_shown(pair: Pair, request: Request, count: int) -> None:
    while len(pair.output(request)) < count:
        pair.turn()
        pair.deliver()


def until_steps(pair: Pair, count: int) -> None:
    for _ in range(100):
        if len(pair.plans) >= count:
            return
        pair.turn()
        pair.deliver()
    raise AssertionError("no step")


def events_of(pair: Pair, request: Request) -> list[TokenEvent]:
    return [event for event in pair.shown if event.sequence == request.sequence]


# --------------------------------------------------------------------------------------------- adopted


@pytest.mark.parametrize("shown", [4, 5, 6, 7])
@pytest.mark.parametrize("proven", [True, False])
def test_an_adopter_goes_on_at_the_record_and_copies_before_its_first_step(shown: int, proven: bool) -> None:
    """It says the last recorded token once more, whatever the gateway had heard; the tail is copied unless its former
    owner is proven gone."""
    request = make_request(1, [2, 3, 4, 5], max_tokens=12, ignore_eos=True)
    first = Pair()
    first.submit(request)
    until_shown(first, request, shown)
    (record,) = first.state.sequences()
    first.die(proven=proven)
    second = beside(first)
    second.submit(again(request, *first.output(request)[:2]))
    until_steps(second, 1)
    plan = second.plans[0]
    [row] = plan.rows
    assert (row.start, len(row.token_ids), row.epoch) == (record.kv_len, 1, 2)
    begun = record.kv_len % 4
    assert [order.slots for order in plan.copies] == ([begun] if begun and not proven else [])
    assert all(order.destination == row.blocks[-1] for order in plan.copies)
    second.run()
    said = events_of(second, request)[0]
    assert (said.first_position, said.epoch, len(said.token_ids)) == (record.recorded_len - 1, 2, 1)
    assert heard(request, first, second) == expected_output(request)[0]
    assert second.ends(request) == [FinishReason.LENGTH]
    progress = second.scheduler.progress
    assert (progress.replayed, progress.reprefilled) == (1, 0)
    assert second.state.check_integrity() == []


def test_a_prefill_that_was_cut_off_goes_on_after_its_last_committed_chunk() -> None:
    request = make_request(1, [2] * 23, max_tokens=4, ignore_eos=True)
    first = Pair(num_blocks=64, max_tokens=6)
    first.submit(request)
    until_steps(first, 2)
    first.deliver()
    (record,) = first.state.sequences()
    assert record.kv_len == 12
    first.die()
    second = beside(first)
    second.submit(again(request))
    second.run()
    assert [row.start for plan in second.plans for row in plan.rows][:2] == [12, 18]
    assert heard(request, second) == expected_output(request)[0]
    progress = second.scheduler.progress
    assert (progress.replayed, progress.reprefilled) == (6, 0), "at most the one chunk that was on its way"
    assert progress.prompt_tokens == 23


def test_without_a_record_it_begins_anew_with_what_was_shown() -> None:
    """The KV is computed again, and counted; the tokens are the same."""
    request = make_request(1, [2, 3, 4, 5], max_tokens=9, ignore_eos=True)
    tokens, _ = expected_output(request)
    pair = Pair()
    pair.submit(again(request, *tokens[:5]))
    until_steps(pair, 1)
    assert pair.state.read_record(request.sequence).prompt_len == 4
    pair.run()
    said = events_of(pair, request)[0]
    assert (said.first_position, list(said.token_ids), said.epoch) == (8, [tokens[4]], 1)
    assert [token for event in events_of(pair, request) for token in event.token_ids] == tokens[4:]
    progress = pair.scheduler.progress
    assert (progress.replayed, progress.reprefilled) == (0, 8)
    assert pair.state.read_record(request.sequence).token_ids == [2, 3, 4, 5, *tokens]


def test_a_request_that_nobody_had_begun_is_as_new() -> None:
    request = make_request(1, max_tokens=4, ignore_eos=True)
    pair = Pair()
    pair.submit(again(request))
    pair.run()
    assert pair.output(request) == expected_output(request)[0]
    assert (pair.scheduler.progress.replayed, pair.scheduler.progress.reprefilled) == (0, 0)


def test_another_gateway_that_asks_for_a_running_sequence_hears_its_last_token_after_its_record() -> None:
    """Shown only once recorded, also when no commit of its own lets it out."""
    request = make_request(1, max_tokens=30, ignore_eos=True)
    pair = Pair()
    pair.submit(request)
    until_shown(pair, request, 5)
    pair.turn()
    pair.scheduler.submit(again(request))
    pair._say(pair.scheduler.settle())
    assert len(pair.output(request)) == 5
    pair.deliver()
    said = events_of(pair, request)[-2:]
    assert [event.first_position for event in said] == [8, 8]
    assert said[0].token_ids == said[1].token_ids
    while not pair.ends(request):
        pair.turn()
        pair.deliver()
    assert heard(request, pair) == expected_output(request)[0]


# --------------------------------------------------------------------------------------------- suspects


@pytest.mark.parametrize("depth", [1, 2])
def test_a_suspect_has_its_first_step_for_itself(depth: int) -> None:
    """No other step is on its way with it, and no other row is in it; then it is as any other."""
    suspect = make_request(1, [2] * 5, max_tokens=6, ignore_eos=True)
    other = make_request(2, [3] * 5, max_tokens=40, ignore_eos=True)
    first = Pair(num_blocks=40)
    first.submit(suspect)
    first.turn()
    first.deliver(up=10, down=0)
    first.die(proven=True)
    second = beside(first, depth)
    second.submit(other)
    until_steps(second, 3)
    second.submit(again(suspect))
    began = None
    for turn in range(200):
        before = len(second.flight)
        plan = second.turn()
        second.deliver()
        if plan is not None and began is None and suspect.sequence in {row.sequence for row in plan.rows}:
            began = turn
            assert (before, len(plan.rows)) == (0, 1)
            if depth == 2:
                assert len(second.flight) == 1
                assert second.turn() is None, "nothing is launched beside it"
    assert began is not None
    together = [plan for plan in second.plans if len(plan.rows) == 2]
    assert together, "afterwards it shares steps"
    second.run()
    for request in (suspect, other):
        assert second.output(request) == expected_output(request)[0]


# --------------------------------------------------------------------------------------------- handed over


@pytest.mark.parametrize("depth", [1, 2])
def test_a_hand_over_gives_everything_back_at_one_boundary_and_another_goes_on(depth: int) -> None:
    """With steps on their way, forks, followers, a preempted, an opening and a waiting one: each hears UNAVAILABLE once
    it is recorded that this worker stopped, and nothing is copied or computed again."""
    plain = [make_request(i, [i + 1] * 7, max_tokens=20, ignore_eos=True) for i in (1, 2, 3)]
    group = make_group(20, 3, [9] * 6, max_tokens=15, ignore_eos=True)
    late = make_request(40, [8] * 30, max_tokens=5, ignore_eos=True)
    first = Pair(num_blocks=48, max_num_seqs=8, depth=depth)
    first.submit(*plain, *group)
    until_shown(first, group[2], 2)
    found = {record.id: record for record in first.state.sequences()}
    first.scheduler.revoke(plain[2].sequence, found[plain[2].sequence.hex()].epoch, first.now)
    first.submit(late)
    first.scheduler.hand_over()
    steps = len(first.plans)
    for _ in range(6):
        first.turn()
        first.deliver()
    everyone = [*plain, *group, late]
    assert (len(first.plans), first.scheduler.idle, len(first.flight)) == (steps, True, 0)
    assert [first.ends(one) for one in everyone] == [[Unavailable.code]] * 7
    assert first.state.counts().tail == first.state.counts().granted == 0
    assert first.state.orphans == 6, "the late one has no record"
    assert first.state.check_integrity() == []
    second = beside(first)
    second.submit(*(again(one, *heard(one, first)) for one in everyone))
    second.run()
    for one in everyone:
        assert heard(one, first, second) == expected_output(one)[0]
    assert not any(plan.copies for plan in second.plans)
    progress = second.scheduler.progress
    assert progress.reprefilled == 0
    assert progress.replayed <= 5 + 16, "a decode step of each, and what the preempted one had given back"
    assert second.used_blocks() == 0


def test_a_worker_that_resumes_serves_again_what_it_had_given_up_too() -> None:
    request = make_request(1, [2] * 5, max_tokens=12, ignore_eos=True)
    pair = Pair()
    pair.submit(request)
    until_shown(pair, request, 3)
    pair.scheduler.hand_over()
    pair.run()
    refused = make_request(2)
    pair.submit(refused)
    pair.run()
    assert pair.ends(refused) == [Unavailable.code]
    pair.scheduler.resume()
    pair.submit(again(request, *pair.output(request)))
    pair.run()
    assert heard(request, pair) == expected_output(request)[0]
    assert pair.state.check_integrity() == []


def test_a_commit_and_a_hand_over_whose_answers_are_lost_stand() -> None:
    """The daemon died after it had applied both: nothing is refused by the worker's own conclusion."""
    request = make_request(1, [2] * 5, max_tokens=12, ignore_eos=True)
    pair = Pair()
    pair.submit(request)
    until_shown(pair, request, 3)
    pair.turn()
    pair.scheduler.hand_over()
    for _ in range(3):
        pair.turn()
    pair.deliver(down=0)
    pair.restart_daemon()
    assert (pair.refusals, pair.ends(request)) == ([], [Unavailable.code])
    assert len(pair.output(request)) == 4
    pair.run()
    assert pair.state.orphans == 1


# --------------------------------------------------------------------------------------------- any death


@settings(max_examples=60, deadline=None)
@given(
    turns=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=25),
    depth=st.sampled_from([1, 2]),
    num_blocks=st.sampled_from([24, 48]),
    zombie=st.integers(0, 3),
    handed=st.booleans(),
    n=st.integers(1, 3),
)
def test_a_worker_that_dies_at_any_moment_costs_no_token(
    turns: list[tuple[int, int]], depth: int, num_blocks: int, zombie: int, handed: bool, n: int
) -> None:
    """And what it still writes as a zombie changes nothing that the adopter reads."""
    requests = [make_request(i, [i + 1] * (4 * i), max_tokens=11, ignore_eos=True) for i in (1, 2, 3)]
    requests += make_group(20, n, [9] * 6, max_tokens=9, ignore_eos=True) if n > 1 else []
    first = Pair(num_blocks=num_blocks, depth=depth, max_num_seqs=8)
    first.submit(*requests)
    for up, down in turns:
        first.turn()
        first.deliver(up, down)
    if handed:
        first.scheduler.hand_over()
        first.run()
    else:
        first.die()
    second = beside(first, depth)
    alive = [one for one in requests if not any(isinstance(end, FinishReason) for end in first.ends(one))]
    second.submit(*(again(one, *heard(one, first)) for one in alive))
    for _ in range(zombie):
        second.turn()
        second.deliver()
        if not handed:
            first.turn()
    if not handed:
        first.state.dead(first.session)
    second.run()
    assert all(len(first.ends(one) + second.ends(one)) == 1 + (one in alive and handed) for one in requests)
    for one in requests:
        tokens = first.state.read_record(one.sequence).token_ids[len(one.prompt) :]
        assert tokens == expected_output(one)[0]
        if any(isinstance(end, FinishReason) for end in second.ends(one)):
            assert heard(one, first, second) == tokens
    assert second.scheduler.progress.reprefilled == 0
    assert second.state.check_integrity() == []
    assert (second.used_blocks(), second.state.counts().granted) == (0, 0)
