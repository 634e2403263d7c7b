"""The scheduler's rules one by one, against the daemon's own KvState."""

import pytest

from compute.scheduler import Limits, Scheduler
from kvmanager.errors import PoolTooSmall, ResourceExhausted, Unavailable
from kvmanager.messages import Commit, FinishReason, Grant, Opened, OpenKind, OpenOrAdopt, Refusal
from tests.support.scheduling import EOS, Pair, expected_output, make_request


def started(pair: Pair, *requests: object) -> None:
    """Everything submitted has a row, and the float is filled."""
    pair.submit(*requests)  # type: ignore[arg-type]
    while pair.scheduler.progress.step == 0:
        pair.turn()
        pair.deliver()


def test_decodes_come_first_and_prefill_fills_the_rest_of_the_budget() -> None:
    """One step mixes a decode token with a chunk that takes exactly what the budget has left."""
    pair = Pair(num_blocks=200, max_tokens=16)
    started(pair, make_request(1, [2] * 5, max_tokens=50))
    pair.deliver()
    pair.submit(make_request(2, [3] * 40, max_tokens=5))
    for _ in range(20):
        pair.turn()
        pair.deliver()
    mixed = next(plan for plan in pair.plans if len(plan.rows) == 2)
    assert [(len(row.token_ids), row.sample) for row in mixed.rows] == [(1, True), (15, False)]
    chunks = [
        len(row.token_ids)
        for plan in pair.plans
        for row in plan.rows
        if row.start < 40 and row.prompt_len == 40
    ]
    assert chunks == [15, 15, 10]


def test_a_cached_prefix_is_not_computed_again() -> None:
    """The second request with the same prompt starts behind the sealed blocks and says so."""
    pair = Pair(num_blocks=40)
    first, second = make_request(1, [7] * 13), make_request(2, [7] * 13)
    pair.submit(first)
    pair.run()
    pair.plans.clear()
    pair.submit(second)
    pair.run()
    assert pair.plans[0].rows[0].start == 12
    assert pair.output(second) == pair.output(first)
    assert {event.cached_tokens for event in pair.shown if event.sequence == second.sequence} == {12}


@pytest.mark.parametrize("depth", [1, 2])
def test_a_begun_block_is_copied_once_before_the_first_step(depth: int) -> None:
    """The first step's commit says so; the model reads the copied slots as if it had computed them."""
    pair = Pair(num_blocks=40, max_tokens=4, depth=depth)
    pair.submit(make_request(1, [7] * 13))
    pair.run()
    pair.plans.clear()
    prompt = [*[7] * 11, 8, 9, 7, 8, 9, 7]
    request = make_request(2, prompt)
    pair.submit(request)
    sent = len(pair.sent)
    pair.run()
    assert [(len(plan.copies), plan.rows[0].start) for plan in pair.plans[:2]] == [(1, 11), (0, 15)]
    assert pair.plans[0].copies[0].slots == 3
    commits = [m for m in list(pair.sent.values())[sent:] if isinstance(m, Commit)]
    assert [entry.copies_done for message in commits for entry in message.entries][:3] == [1, 0, 0]
    assert pair.output(request) == expected_output(request)[0]
    assert {event.cached_tokens for event in pair.shown if event.sequence == request.sequence} == {11}


def test_without_the_prefix_cache_everything_is_computed_and_nothing_stays() -> None:
    pair = Pair(prefix_caching=False)
    first, second = make_request(1, range(2, 12)), make_request(2, range(2, 12))
    for request in (first, second):
        pair.submit(request)
        pair.run()
        assert pair.output(request) == expected_output(request)[0]
    assert pair.scheduler.progress.prompt_tokens == 20
    assert (pair.state.counts().cached, pair.state.prefix.queries) == (0, 0)


def test_prompt_logprobs_compute_the_whole_prompt() -> None:
    """Such a request bypasses the cache."""
    pair = Pair(num_blocks=40)
    pair.submit(make_request(1, [7] * 13))
    pair.run()
    pair.plans.clear()
    request = make_request(2, [7] * 13)
    object.__setattr__(request, "prompt_logprobs", 3)
    pair.submit(request)
    pair.run()
    assert pair.plans[0].rows[0].start == 0
    assert {row.prompt_logprobs for row in pair.plans[0].rows} == {3}


def test_min_tokens_bans_every_stopping_id_until_then() -> None:
    """The ban covers EOS and stop ids and ends with the minimum."""
    pair = Pair()
    request = make_request(1, max_tokens=6, min_tokens=2, stop_token_ids=frozenset({9}))
    pair.submit(request)
    pair.run()
    banned = [row.banned for plan in pair.plans for row in plan.rows if row.sample]
    assert banned[:3] == [frozenset({EOS, 9}), frozenset({EOS, 9}), frozenset()][: len(banned)]


@pytest.mark.parametrize("reason", [FinishReason.STOP, FinishReason.EOS])
def test_a_sequence_ends_at_its_stopping_token(reason: FinishReason) -> None:
    """A stop id and the end of sequence are told apart, and the token is part of the output."""
    for number in range(1, 400):
        probe = make_request(number, [number % 60, 3, 4], max_tokens=30)
        tokens, _ = expected_output(probe)
        stop_ids = frozenset({tokens[4]}) if reason is FinishReason.STOP and len(tokens) > 5 else frozenset()
        request = make_request(number, [number % 60, 3, 4], max_tokens=30, stop_token_ids=stop_ids)
        if expected_output(request)[1] is reason:
            break
    pair = Pair(num_blocks=40)
    pair.submit(request)
    pair.run()
    assert (pair.output(request), pair.ends(request)) == (expected_output(request)[0], [reason])
    assert pair.shown[-1].stop_token_id == pair.output(request)[-1]


def test_ignore_eos_goes_on_to_max_tokens() -> None:
    """With ignore_eos the end of sequence is a token like any other."""
    request = next(
        one
        for one in (make_request(n, [n % 60, 3, 4], max_tokens=30, ignore_eos=True) for n in range(1, 400))
        if EOS in expected_output(one)[0][:-1]
    )
    pair = Pair(num_blocks=40)
    pair.submit(request)
    pair.run()
    assert pair.ends(request) == [FinishReason.LENGTH]
    assert len(pair.output(request)) == 30


def test_higher_priority_is_opened_and_prefilled_first() -> None:
    """Whoever is more important starts first, whatever the order of arrival."""
    pair = Pair(num_blocks=200, max_num_seqs=1)
    requests = [make_request(n, [n + 1] * 6, priority=p, max_tokens=3) for n, p in ((1, 0), (2, -5), (3, 9))]
    pair.submit(*requests)
    pair.run()
    order = list(dict.fromkeys(event.sequence[-1] for event in pair.shown))
    assert order == [3, 1, 2]


def test_a_large_request_that_waits_is_not_overtaken_for_ever() -> None:
    """Behind a head that got Wait nobody is opened, so a stream of small requests cannot starve it."""
    pair = Pair(num_blocks=16, block_size=4, max_num_seqs=8)
    small = [make_request(n, [n] * 6, max_tokens=10) for n in range(1, 4)]
    started(pair, *small)
    large = make_request(50, list(range(2, 50)), max_tokens=8)
    pair.submit(large)
    later = [make_request(n, [n % 50] * 6, max_tokens=10) for n in range(100, 130)]
    for request in later:
        pair.submit(request)
        pair.turn()
        pair.deliver()
    pair.run()
    shown = [event.sequence for event in pair.shown]
    overtaking = set(shown[: shown.index(large.sequence)]) - {one.sequence for one in small}
    assert len(overtaking) <= 8
    assert pair.ends(large) != []


def test_a_revoked_sequence_goes_on_as_if_nothing_had_happened() -> None:
    """It gives its row back at the boundary, comes back with all its tokens, and shows none of them twice."""
    pair = Pair(num_blocks=40)
    request = make_request(1, [2, 3, 4, 5, 6], max_tokens=20, ignore_eos=True)
    started(pair, request)
    for _ in range(6):
        pair.turn()
        pair.deliver()
    (record,) = pair.state.sequences()
    before = len(pair.output(request))
    pair.scheduler.revoke(request.sequence, record.epoch, pair.now)
    pair.run()
    assert before > 2
    assert (pair.output(request), pair.ends(request)) == (expected_output(request)[0], [FinishReason.LENGTH])
    assert pair.scheduler.progress.preemptions == pair.state.preemptions == 1
    assert pair.shown[-1].epoch == record.epoch + 1
    assert pair.shown[-1].stalled_seconds > 0


def test_a_revoke_of_an_older_epoch_changes_nothing() -> None:
    """Only the present ownership can be asked back."""
    pair = Pair()
    started(pair, make_request(1, max_tokens=20))
    pair.scheduler.revoke(make_request(1).sequence, 77, pair.now)
    pair.run()
    assert pair.scheduler.progress.preemptions == 0


def test_a_pool_too_small_for_all_preempts_the_youngest_and_finishes_everyone() -> None:
    """Decodes outgrow the pool: the daemon asks rows back, and every request still gives its own tokens."""
    pair = Pair(num_blocks=12, block_size=4, max_num_seqs=4)
    requests = [make_request(n, [n + 1] * 6, max_tokens=24, ignore_eos=True) for n in range(1, 5)]
    pair.submit(*requests)
    pair.run()
    assert pair.state.preemptions >= 1
    assert pair.scheduler.progress.steps_waited >= 1
    assert [pair.output(one) for one in requests] == [expected_output(one)[0] for one in requests]
    assert pair.refusals == []
    assert pair.used_blocks() == 0


def test_cancel_frees_the_blocks_within_two_steps() -> None:
    """The row is given back at the next boundary that has something to say."""
    pair = Pair(num_blocks=40)
    keep, drop = (make_request(n, [n] * 9, max_tokens=40, ignore_eos=True) for n in (1, 2))
    started(pair, keep, drop)
    for _ in range(3):
        pair.turn()
        pair.deliver()
    step = pair.scheduler.progress.step
    pair.scheduler.cancel(drop.sequence, FinishReason.CANCELLED)
    pair.turn()
    pair.deliver()
    assert pair.ends(drop) == [FinishReason.CANCELLED]
    assert pair.scheduler.progress.step <= step + 2
    assert [one.id for one in pair.state.sequences() if one.state == "open"] == [keep.sequence.hex()]


def test_a_sequence_that_never_had_a_row_is_canceled_at_once() -> None:
    """Nothing is recorded of it, so nothing has to be acknowledged."""
    pair = Pair()
    request = make_request(1)
    pair.submit(request)
    pair.scheduler.cancel(request.sequence, FinishReason.STOP)
    pair.turn()
    assert pair.ends(request) == [FinishReason.STOP]


def test_a_row_error_fails_that_sequence_only() -> None:
    """Its record is closed with ERROR, its blocks come back, the others go on."""
    pair = Pair(num_blocks=40)
    bad, good = make_request(1, [2] * 6), make_request(2, [3] * 6)
    pair.failing.add(bad.sequence)
    pair.submit(bad, good)
    pair.run()
    assert pair.ends(bad) == [FinishReason.ERROR]
    assert pair.output(good) == expected_output(good)[0]
    assert pair.used_blocks() == 0
    assert pair.state.check_integrity() == []


def test_a_request_that_can_never_fit_is_rejected_with_both_numbers() -> None:
    """The daemon's refusal reaches the client as the end of the sequence."""
    pair = Pair(num_blocks=10, block_size=4)
    request = make_request(1, [2] * 30, max_tokens=20)
    pair.submit(request)
    pair.run()
    assert pair.ends(request) == [PoolTooSmall.code]
    assert pair.rejected[0].details == {"needed_blocks": "13", "usable_blocks": "9"}


def test_a_duplicate_submit_of_a_live_sequence_changes_nothing() -> None:
    """The same message twice is one request."""
    pair = Pair(num_blocks=40)
    request = make_request(1, [2] * 6)
    pair.submit(request, request)
    pair.turn()
    pair.deliver()
    pair.submit(request)
    pair.run()
    assert (pair.output(request), len(pair.ends(request))) == (expected_output(request)[0], 1)


def test_a_full_line_rejects_what_comes_then() -> None:
    """The waiting line is bounded, and says so."""
    limits = Limits(
        max_num_seqs=1,
        max_num_batched_tokens=8,
        max_model_len=64,
        block_size=4,
        num_blocks=8,
        eos_ids=frozenset(),
        vocab_size=64,
        max_waiting=2,
    )
    scheduler = Scheduler(limits)
    for number in (1, 2, 3):
        scheduler.submit(make_request(number))
    outcome = scheduler.settle()
    assert [(one.sequence[-1], one.code) for one in outcome.rejections] == [(3, ResourceExhausted.code)]


def test_draining_finishes_what_runs_and_rejects_the_rest() -> None:
    """What has a row ends as it would have; what waits or comes is UNAVAILABLE, to be sent elsewhere."""
    pair = Pair(num_blocks=40, max_num_seqs=1)
    running, waiting, late = (make_request(n, [n] * 6) for n in (1, 2, 3))
    started(pair, running, waiting)
    pair.scheduler.drain()
    pair.submit(late)
    pair.run()
    assert pair.output(running) == expected_output(running)[0]
    assert pair.ends(waiting) == pair.ends(late) == [Unavailable.code]


def test_the_float_stays_below_an_eighth_of_the_pool_and_is_given_back_when_idle() -> None:
    """What is granted in advance is bounded; idle, nothing stays."""
    pair = Pair(num_blocks=80, block_size=4, max_num_seqs=8, max_tokens=8)
    pair.submit(*(make_request(n, [n] * 6, max_tokens=60, ignore_eos=True) for n in range(1, 9)))
    pair.run()
    assert 4 < pair.max_float <= 10
    assert pair.state.counts().granted == 0


def test_a_refused_commit_ends_its_sequence_and_gives_the_blocks_back() -> None:
    """The record is closed where it stands; blocks of the refused entry return to the daemon."""
    pair = Pair(num_blocks=40)
    request = make_request(1, [2] * 6, max_tokens=30)
    pair.submit(request)
    pair.turn()
    pair.deliver()
    pair.turn()
    commit = next(message for _, message in pair.up if isinstance(message, Commit))
    entry = commit.entries[0]
    pair.scheduler.acked(commit, [Refusal(entry.sequence, entry.epoch, 5, "arena full")])
    outcome = pair.scheduler.settle()
    assert [one.code for one in outcome.rejections] == [5]
    assert outcome.commit is not None
    closing = outcome.commit.entries[0]
    assert (closing.base_recorded, closing.base_kv, closing.finish) == (6, 0, FinishReason.ERROR)
    assert outcome.release is not None
    assert set(entry.blocks) <= set(outcome.release.blocks)
    assert pair.scheduler.idle


def test_a_starving_step_asks_with_starving_and_opens_nobody() -> None:
    """Blocks for the step come before rows for others."""
    pair = Pair(num_blocks=40)
    pair.submit(make_request(1, [2] * 6))
    first = pair.scheduler.orders(pair.now)
    assert [type(message) for message in first] == [Grant, OpenOrAdopt]
    opened = Opened(
        sequence=make_request(1).sequence,
        epoch=1,
        kind=OpenKind.NEW,
        recorded_len=6,
        kv_len=0,
        cached_len=0,
        blocks=(),
    )
    pair.scheduler.opened(opened)
    pair.scheduler.submit(make_request(2))
    assert pair.scheduler.plan(pair.now) is None
    assert pair.scheduler.orders(pair.now) == []  # one Grant is on its way, and nobody is opened


def test_an_idle_worker_holds_nothing_that_another_waits_for() -> None:
    """A request that needs all of the pool but one block runs beside a worker that once had work."""
    pair = Pair(num_blocks=32, block_size=4, max_tokens=16)
    other = Pair(num_blocks=32, block_size=4, max_tokens=16, beside=pair)
    other.submit(make_request(1, [2] * 6, max_tokens=4, ignore_eos=True))
    other.run()
    large = make_request(2, [3] * 110, max_tokens=14, ignore_eos=True)
    pair.submit(large)
    pair.run()
    assert pair.ends(large) == [FinishReason.LENGTH]


def test_a_request_that_waits_holds_no_blocks_that_a_running_one_needs() -> None:
    """One grows into the last blocks of the pool while another worker's prompt waits: neither hangs."""
    pair = Pair(num_blocks=32, block_size=4, max_tokens=16)
    other = Pair(num_blocks=32, block_size=4, max_tokens=16, beside=pair)
    grows = make_request(1, [3] * 60, max_tokens=60, ignore_eos=True)
    waits = make_request(2, [4] * 90, max_tokens=4, ignore_eos=True)
    other.turn()  # asks for a float
    other.deliver()
    started(pair, grows)
    other.submit(waits)
    for _ in range(400):
        for worker in (pair, other):
            worker.turn()
            worker.deliver()
    assert [pair.ends(grows), other.ends(waits)] == [[FinishReason.LENGTH]] * 2


def test_there_is_no_tick_while_only_an_answer_helps() -> None:
    """What is on its way to a silent daemon is not tried again and again."""
    pair = Pair(num_blocks=32, block_size=4, max_num_seqs=2)
    pair.submit(make_request(1, [3] * 100, max_tokens=20, ignore_eos=True), make_request(2, [4] * 60))
    while pair.scheduler.progress.step < 2:
        pair.turn()
        pair.deliver()
    for _ in range(30):  # the daemon hears nothing any more
        pair.turn()
    assert pair.turn() is None
    tick = pair.scheduler.next_tick_ns()
    assert tick is None or tick > pair.now
