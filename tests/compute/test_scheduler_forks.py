"""n sequences of one prompt: computed once, drawn from one row, forked into tails of their own."""

from dataclasses import replace

import pytest

from compute.plan import UNKNOWN, CopyOrder
from compute.request import Request
from kvmanager.errors import ResourceExhausted
from kvmanager.messages import Commit, FinishReason
from tests.support.kv import Worker
from tests.support.scheduling import Pair, expected_output, make_group

PROMPT = (2, 3, 4, 5, 6)  # of 4 slots a block: a whole block, and one slot of the tail


def pair_for(n: int = 4, **shape: int) -> Pair:
    return Pair(**({"num_blocks": 200, "max_num_seqs": 2 * n, "max_tokens": 32} | shape))


def check(pair: Pair, requests: list[Request]) -> None:
    for request in requests:
        tokens, finish = expected_output(request)
        assert (pair.output(request), pair.ends(request)) == (tokens, [finish])
    assert pair.refusals == []
    assert pair.used_blocks() == 0
    assert pair.state.check_integrity() == []


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("n", [2, 4, 8, 64])
def test_a_group_computes_its_prompt_once(n: int, depth: int) -> None:
    pair = pair_for(n, depth=depth, num_blocks=1000, max_tokens=64)
    requests = make_group(1, n, PROMPT, ignore_eos=True)
    pair.submit(*requests)
    pair.run()
    check(pair, requests)
    assert pair.scheduler.progress.prompt_tokens == len(PROMPT)
    assert [len(row.token_ids) for plan in pair.plans for row in plan.rows if row.start < len(PROMPT)] == [5]
    assert pair.scheduler.progress.generation_tokens == 8 * n


def test_followers_fork_in_the_step_after_the_prompt_with_a_copy_each() -> None:
    """The lead keeps its tail; every other member's begins with the slots below the fork."""
    pair = pair_for()
    requests = make_group(1, 4, PROMPT, ignore_eos=True)
    pair.submit(*requests)
    pair.run()
    prompt, fork = pair.plans[:2]
    assert (len(prompt.rows), len(prompt.rows[0].forks), prompt.copies) == (1, 3, [])
    lead, *others = fork.rows
    assert fork.copies == [CopyOrder(lead.blocks[1], row.blocks[1], 1) for row in others]
    assert {row.blocks[0] for row in fork.rows} == {lead.blocks[0]}
    assert len({row.blocks[1] for row in fork.rows}) == 4


def test_a_tail_that_is_full_is_not_copied() -> None:
    pair = pair_for()
    requests = make_group(1, 4, PROMPT[:4], ignore_eos=True)
    pair.submit(*requests)
    pair.run()
    check(pair, requests)
    assert not any(plan.copies for plan in pair.plans)


def test_a_fork_is_told_with_two_tokens_and_counts_the_whole_prompt_as_cached() -> None:
    pair = pair_for()
    requests = make_group(1, 2, PROMPT, ignore_eos=True)
    pair.submit(*requests)
    commits = []
    for _ in range(6):
        pair.turn()
        commits += [message for _, message in pair.up if isinstance(message, Commit)]
        pair.deliver()
    (entry,) = [entry for commit in commits for entry in commit.entries if entry.fork]
    assert (entry.base_recorded, entry.base_kv, entry.kv_len, len(entry.token_ids)) == (5, 5, 6, 2)
    assert [len(block) for block in (entry.blocks,)] == [1]
    pair.run()
    cached = [{event.cached_tokens for event in pair.shown if event.sequence == r.sequence} for r in requests]
    assert cached == [{0}, {5}]


@pytest.mark.parametrize("depth", [1, 2])
def test_two_steps_on_their_way_wait_for_the_draws_of_a_group_and_for_nothing_else(depth: int) -> None:
    pair = pair_for(depth=depth)
    requests = make_group(1, 3, PROMPT, ignore_eos=True)
    pair.submit(*requests)
    pair.run()
    ids = [[row.token_ids == (UNKNOWN,) for row in plan.rows] for plan in pair.plans]
    assert ids[1] == [False] * 3
    assert all(all(row) for row in ids[2:]) == (depth == 2)


@pytest.mark.parametrize("depth", [1, 2])
def test_members_that_end_with_their_first_token_never_have_a_row(depth: int) -> None:
    pair = pair_for(8, depth=depth)
    requests = make_group(1, 8, PROMPT, max_tokens=1)
    pair.submit(*requests)
    pair.run()
    check(pair, requests)
    assert [len(plan.rows) for plan in pair.plans] == [1]
    stopped = make_group(50, 8, PROMPT, ignore_eos=True)
    first = {expected_output(one)[0][0] for one in stopped[1:4]} - {expected_output(stopped[0])[0][0]}
    stopped = [replace(one, stop=replace(one.stop, stop_token_ids=frozenset(first))) for one in stopped]
    pair.submit(*stopped)
    pair.run()
    check(pair, stopped)


@pytest.mark.parametrize("seqs", [1, 2, 3])
def test_more_members_than_places_wait_for_one(seqs: int) -> None:
    """They fork later, as long as the lead runs; after that the next one leads."""
    pair = pair_for(max_num_seqs=seqs)
    requests = make_group(1, 7, PROMPT, ignore_eos=True)
    pair.submit(*requests)
    pair.run()
    check(pair, requests)
    assert max(len(plan.rows) for plan in pair.plans) == seqs
    assert pair.scheduler.progress.prompt_tokens <= len(PROMPT) * -(-7 // seqs)


def test_a_late_member_leads_its_own_group() -> None:
    """Whoever comes after the prompt was computed finds it in the cache, as far as its blocks are whole."""
    pair = pair_for()
    requests = make_group(1, 4, PROMPT, ignore_eos=True)
    pair.submit(*requests[:2])
    for _ in range(4):
        pair.turn()
        pair.deliver()
    pair.submit(*requests[2:])
    pair.run()
    check(pair, requests)
    assert pair.scheduler.progress.prompt_tokens == 2 * len(PROMPT)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": (9, 9, 9)},
        {"priority": 1},
        {"tenant": b"x" * 32},
        {"client": b"other"},
        {"prompt_logprobs": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_members_that_differ_compute_for_themselves(change: dict[str, object]) -> None:
    pair = pair_for()
    first, second = make_group(1, 2, PROMPT, ignore_eos=True)
    second = replace(second, **change)  # type: ignore[arg-type]
    pair.submit(first, second)
    pair.run()
    check(pair, [first, second])
    assert not any(row.forks for plan in pair.plans for row in plan.rows)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("what", ["cancel", "revoke"])
def test_when_the_lead_leaves_the_others_go_on(what: str, turns: int, depth: int) -> None:
    """Whatever stage it is in: waiting, opening, within its prompt, just forked."""
    pair = pair_for(depth=depth, max_tokens=4)
    requests = make_group(1, 4, PROMPT, ignore_eos=True)
    pair.submit(*requests)
    for _ in range(turns):
        pair.turn()
        pair.deliver()
    if what == "cancel":
        pair.scheduler.cancel(requests[0].sequence, FinishReason.CANCELLED)
    else:
        for record in pair.state.sequences():
            if record.id == requests[0].sequence.hex():
                pair.scheduler.revoke(requests[0].sequence, record.epoch, pair.now)
    pair.run()
    check(pair, requests[1:] if what == "cancel" else requests)
    assert len(pair.ends(requests[0])) == 1


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("turns", range(6))
def test_a_follower_that_is_canceled_leaves_alone(turns: int, depth: int) -> None:
    pair = pair_for(depth=depth)
    requests = make_group(1, 4, PROMPT, ignore_eos=True)
    pair.submit(*requests)
    for _ in range(turns):
        pair.turn()
        pair.deliver()
    pair.scheduler.cancel(requests[2].sequence, FinishReason.CANCELLED)
    pair.run()
    check(pair, [requests[0], requests[1], requests[3]])
    assert pair.ends(requests[2]) == [FinishReason.CANCELLED]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 8])
def test_a_fork_without_room_for_its_record_opens_for_itself(max_tokens: int, depth: int) -> None:
    """The records are taken by others that another worker runs; what was drawn and not recorded is never shown."""
    pair = pair_for(depth=depth, max_num_seqs=4)
    beside = Worker(pair.state, "beside")
    for number in range(100, 115):
        beside.start(number, [number - 90])
    requests = make_group(1, 4, PROMPT, max_tokens=max_tokens, ignore_eos=True)
    pair.submit(*requests)
    while not pair.refusals:
        pair.turn()
        pair.deliver()
    assert pair.refusals[0].code == ResourceExhausted.code
    for number in range(100, 115):
        beside.finish(number)
    pair.run()
    assert pair.scheduler.progress.prompt_tokens > len(PROMPT)
    pair.refusals.clear()
    check(pair, requests)
    assert pair.rejected == []
