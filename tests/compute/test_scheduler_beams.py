"""Beam search: what it gives is the textbook's answer, whatever happens to its rows; every copied slot is read back."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from compute.plan import CopyOrder
from compute.request import Request
from kvmanager import room
from kvmanager.errors import Invalid, ResourceExhausted
from kvmanager.messages import Commit, FinishReason
from tests.support.kv import Worker
from tests.support.scheduling import Found, Pair, expected_search, make_request, make_search

PROMPT = (2, 3, 4, 5, 6)  # of 4 slots a block: a whole block, and one slot of the tail


def pair_for(width: int = 4, **shape: int) -> Pair:
    return Pair(**({"num_blocks": 200, "max_num_seqs": 2 * width, "max_tokens": 32} | shape))


def same(found: Sequence[Found], wanted: Sequence[Found]) -> None:
    assert [one[:2] for one in found] == [one[:2] for one in wanted]
    assert [one[2] for one in found] == pytest.approx([one[2] for one in wanted])


def check(pair: Pair, *requests: Request) -> None:
    """The answers; and nothing is left of the search but its answers' records."""
    for request in requests:
        same(pair.found(request), expected_search(request))
    assert pair.refusals == []
    assert pair.rejected == []
    clean(pair)


def clean(pair: Pair) -> None:
    assert pair.used_blocks() == 0
    assert pair.state.live_sequences == 0
    assert all(record.state == "finished" for record in pair.state.sequences())
    assert pair.state.check_integrity() == []
    assert pair.scheduler._roster.searches == []


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0, -1.0])
@pytest.mark.parametrize(("width", "n"), [(2, 1), (2, 2), (3, 2), (4, 4), (8, 5)])
def test_a_search_gives_the_best_outputs_in_order(width: int, n: int, penalty: float, depth: int) -> None:
    pair = pair_for(width, depth=depth)
    request = make_search(1, width, PROMPT, n, penalty, max_tokens=9)
    pair.submit(request)
    pair.run()
    check(pair, request)
    assert pair.scheduler.progress.prompt_tokens == len(PROMPT)
    assert len(pair.state.sequences()) == n


@pytest.mark.parametrize("stop_ids", [frozenset(), frozenset(range(2, 14)), frozenset(range(2, 40))], ids=len)
@pytest.mark.parametrize("min_tokens", [0, 3, 9])
@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_search_ends_by_tokens_or_by_its_length(
    stop_ids: frozenset[int], min_tokens: int, ignore_eos: bool
) -> None:
    pair = pair_for(3)
    asked = {"max_tokens": 9, "min_tokens": min_tokens, "stop_token_ids": stop_ids, "ignore_eos": ignore_eos}
    request = make_search(1, 3, PROMPT, 3, **asked)
    pair.submit(request)
    pair.run()
    check(pair, request)


@pytest.mark.parametrize("depth", [1, 2])
def test_searches_groups_of_other_widths_and_plain_requests_share_steps(depth: int) -> None:
    pair = Pair(num_blocks=300, max_num_seqs=16, max_tokens=24, depth=depth)
    searches = [make_search(10 * i, i + 1, PROMPT[: i + 1] * 3, i, max_tokens=5 + i) for i in range(1, 5)]
    plain = [make_request(100 + i, PROMPT * (i + 1), ignore_eos=True) for i in range(3)]
    for search, one in zip(searches, [*plain, None], strict=True):
        pair.submit(search, *([one] if one else []))
    pair.run()
    check(pair, *searches)
    assert all(pair.ends(one) == [FinishReason.LENGTH] for one in plain)
    assert any(len({bool(row.candidates) for row in plan.rows}) == 2 for plan in pair.plans)


def test_every_beam_is_in_one_step_and_the_best_child_goes_on_in_its_parents_row() -> None:
    pair = pair_for()
    request = make_search(1, 4, PROMPT, 4, ignore_eos=True)
    pair.submit(request)
    pair.run()
    assert [len(plan.rows) for plan in pair.plans] == [1] + [4] * 7
    lead = pair.plans[0].rows[0]
    first = pair.plans[1]
    assert first.copies == [CopyOrder(lead.blocks[1], row.blocks[1], 1) for row in first.rows]
    assert {row.blocks[0] for row in first.rows} == {lead.blocks[0]}
    for before, after in zip(pair.plans[1:], pair.plans[2:], strict=False):
        known = {row.sequence for row in before.rows}
        assert sum(row.sequence not in known for row in after.rows) >= len(after.copies)
        assert any(row.sequence in known for row in after.rows)


def test_the_records_hold_the_whole_search_after_every_commit() -> None:
    """Beams with their scores, hypotheses, the request: what an adopter goes on with. Lost beams are gone."""
    pair = pair_for()
    request = make_search(1, 4, PROMPT, 2, max_tokens=9, stop_token_ids=frozenset(range(2, 6)))
    pair.submit(request)
    seen = 0
    while not pair.found(request):
        pair.turn()
        pair.deliver()
        records = pair.state._parts.sequences
        searches = pair.scheduler._roster.searches
        if not searches or not searches[0].beams:
            continue
        seen += 1
        (search,) = searches
        held = {one.id: (list(one.tokens), one.score) for one in records.by_id.values() if one.role == 2}
        beams = {one.request.sequence: (one.tokens, one.score) for one in search.beams}
        finished = {one.record: (one.tokens, one.total) for one in search.finished}
        assert held == beams | finished
        assert list(records.by_id[request.sequence].tokens) == list(PROMPT)
        assert len(held) <= 8
    assert seen > 2
    pair.run()
    check(pair, request)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_long_search_takes_no_more_records_than_its_beams(depth: int) -> None:
    """Four records a place: 8 beams for 200 tokens would need 1,600 if lost beams stayed."""
    pair = pair_for(8, max_num_seqs=8, num_blocks=1000, depth=depth)
    request = make_search(1, 8, PROMPT, 8, max_tokens=200, ignore_eos=True)
    pair.submit(request)
    pair.run()
    check(pair, request)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("turns", range(8))
def test_a_search_that_is_canceled_ends_all_its_indexes(turns: int, depth: int) -> None:
    """By the name of any of them."""
    pair = pair_for(depth=depth)
    request = make_search(1, 4, PROMPT, 3, ignore_eos=True)
    other = make_request(50, ignore_eos=True)
    pair.submit(request, other)
    for _ in range(turns):
        pair.turn()
        pair.deliver()
    assert request.beams is not None
    pair.scheduler.cancel(request.beams.indexes[turns % 3], FinishReason.CANCELLED)
    pair.run()
    assert [one[1] for one in pair.found(request)] == [FinishReason.CANCELLED] * 3
    assert pair.ends(other) == [FinishReason.LENGTH]
    assert pair.refusals == []
    clean(pair)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("turns", range(1, 9))
@pytest.mark.parametrize("which", [0, -1])
def test_a_search_whose_row_is_revoked_comes_back_right(which: int, turns: int, depth: int) -> None:
    pair = pair_for(depth=depth, max_tokens=4, max_num_seqs=4)
    request = make_search(1, 4, PROMPT, 4, ignore_eos=True)
    pair.submit(request)
    for _ in range(turns):
        pair.turn()
        pair.deliver()
    running = [record for record in pair.state.sequences() if record.state == "open"]
    if running:
        victim = running[which]
        pair.scheduler.revoke(type(request.sequence)(bytes.fromhex(victim.id)), victim.epoch, pair.now)
    pair.run()
    check(pair, request)


def test_a_search_in_a_full_pool_comes_back_right() -> None:
    """It is the youngest and gives way."""
    pair = Pair(num_blocks=20, max_num_seqs=32, max_tokens=32, depth=2)
    search = make_search(100, 4, [*PROMPT, 9], 4, ignore_eos=True, max_tokens=12)
    plain = [
        make_request(15 + 10 * i, [*PROMPT * 2, i, 7, 7], ignore_eos=True, max_tokens=25) for i in range(4)
    ]
    pair.submit(search)
    for _ in range(2):
        pair.turn()
        pair.deliver()
    pair.submit(*plain)
    pair.run()
    check(pair, search)
    assert all(pair.ends(one) == [FinishReason.LENGTH] for one in plain)
    assert pair.scheduler.progress.preemptions > 0
    epochs = {row.epoch for plan in pair.plans for row in plan.rows if row.candidates}
    assert len(epochs) > 1


def test_searches_that_do_not_fit_at_once_take_turns() -> None:
    pair = Pair(num_blocks=30, max_num_seqs=32, max_tokens=12)
    searches = [make_search(10 * i, 4, [*PROMPT, i], 4, ignore_eos=True, max_tokens=18) for i in range(1, 5)]
    pair.submit(*searches)
    pair.run()
    check(pair, *searches)


def test_a_search_wider_than_the_worker_is_refused() -> None:
    pair = pair_for(2, max_num_seqs=3)
    request = make_search(1, 4, PROMPT, 2)
    pair.submit(request)
    pair.run()
    assert [rejection.code for rejection in pair.rejected] == [Invalid.code] * 2
    assert "beam_width 4" in pair.rejected[0].message


def test_wide_searches_wait_for_places() -> None:
    pair = pair_for(4, max_num_seqs=5)
    searches = [make_search(10 * i, 4, PROMPT, 1, ignore_eos=True) for i in range(1, 4)]
    pair.submit(*searches, make_request(90, ignore_eos=True))
    pair.run()
    check(pair, *searches)
    assert max(len(plan.rows) for plan in pair.plans) <= 5


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("turns", [1, 4])
def test_a_row_that_fails_ends_its_search_alone(turns: int, depth: int) -> None:
    pair = pair_for(depth=depth)
    bad, good = (
        make_search(1, 3, PROMPT, 2, ignore_eos=True),
        make_search(20, 3, PROMPT[1:], 2, ignore_eos=True),
    )
    pair.submit(bad, good)
    for _ in range(turns):
        pair.turn()
        pair.deliver()
    (search,) = [one for one in pair.scheduler._roster.searches if one.request.request is bad]
    pair.failing |= {member.request.sequence for member in search.members}
    pair.run()
    assert [one[1] for one in pair.found(bad)] == [FinishReason.ERROR] * 2
    check(pair, good)


@pytest.mark.parametrize("promised", [0, 3])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("taken", [3, 6, 9, 10, 11, 12, 13, 14])
def test_a_search_without_room_for_its_records_fails_whole(
    taken: int, depth: int, promised: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker's sequences hold the records. Where none are promised to a search (0) it is the commit of a step
    that finds no room: the daemon takes all of its entries or none, and the search goes."""
    monkeypatch.setattr(room, "RECORDS_OF_A_BEAM", promised)
    pair = pair_for(4, max_num_seqs=4, depth=depth)
    beside = Worker(pair.state, "beside")
    for number in range(100, 100 + taken):
        beside.start(number, [number - 90])
    request = make_search(1, 4, PROMPT, 2, max_tokens=9)
    pair.submit(request)
    pair.run()
    if pair.rejected:
        assert [rejection.code for rejection in pair.rejected] == [ResourceExhausted.code] * 2
        assert pair.found(request) == []
    else:
        same(pair.found(request), expected_search(request))
    assert bool(pair.rejected) == (taken > (3 if promised else 9))
    assert bool(pair.refusals) == (bool(pair.rejected) and not promised)
    for number in range(100, 100 + taken):
        beside.finish(number)
    clean(pair)


def test_logprobs_are_those_of_the_hypothesis() -> None:
    pair = pair_for()
    request = replace(make_search(1, 4, PROMPT, 3, 0.0, ignore_eos=True), logprobs=2)
    pair.submit(request)
    pair.run()
    check(pair, request)
    for event in (one for one in pair.shown if one.finish):
        assert [one.token_id for one in event.logprobs] == list(event.token_ids)
        assert sum(one.logprob for one in event.logprobs) == pytest.approx(event.score)
        assert {len(one.top) for one in event.logprobs} == {2}


def test_beams_are_told_ahead_of_their_first_write() -> None:
    """With their token and the whole blocks of their parent."""
    pair = pair_for()
    request = make_search(1, 4, PROMPT, 1, ignore_eos=True)
    pair.submit(request)
    commits = []
    for _ in range(3):
        pair.turn()
        commits += [message for _, message in pair.up if isinstance(message, Commit)]
        pair.deliver()
    forks = [entry for commit in commits for entry in commit.entries if entry.fork][:4]
    assert {(one.base_recorded, one.base_kv, one.kv_len, len(one.blocks)) for one in forks} == {(5, 4, 4, 0)}
    pair.run()
    check(pair, request)
