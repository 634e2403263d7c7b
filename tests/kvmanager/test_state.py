"""What a pool's state answers: admission, floats, commits judged entry by entry, preemption, endings."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from kvmanager import errors
from kvmanager.messages import (
    Acked,
    BlockRef,
    Commit,
    CommitEntry,
    Fenced,
    FinishReason,
    Grant,
    Granted,
    Opened,
    OpenKind,
    OpenOrAdopt,
    Refused,
    Release,
    Revoke,
    SequenceRef,
    SessionId,
    Wait,
)
from kvmanager.sessions import SessionState
from kvmanager.state import KvState
from tests.support.kv import Worker, buffer_for, open_message, pool_spec, sequence_id

MADE: list[KvState] = []


def pool(num_blocks: int = 16, **changes: object) -> tuple[KvState, Worker]:
    spec = pool_spec(num_blocks, 4, **changes)
    state = KvState.create(buffer_for(spec), spec, 0)
    MADE.append(state)
    return state, Worker(state, "a")


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Every pool is clean at the end of its test."""
    MADE.clear()
    yield
    for state in MADE:
        assert state.check_integrity() == []


# ------------------------------------------------------------------------------------------------- numbers


def test_a_number_is_applied_once_and_acknowledged_again() -> None:
    state, worker = pool()
    worker.grant(1)
    for _ in range(2):
        again = state.apply(worker.session, 1, Grant(count=1), 0)
        assert [(o.number, o.reply) for o in again] == [(1, Acked())]
    assert state.counts().granted == 1


def test_a_gap_is_a_conflict_and_changes_nothing() -> None:
    state, worker = pool()
    with pytest.raises(errors.Conflict) as error:
        state.apply(worker.session, 3, Grant(count=1), 0)
    assert error.value.details == {"expected": "1"}
    assert state.counts().granted == 0


def test_unknown_and_lost_sessions_are_fenced() -> None:
    state, worker = pool()
    with pytest.raises(errors.Fenced):
        state.apply(SessionId(b"?" * 16), 1, Grant(count=1), 0)
    state.lose(worker.session, 0)
    with pytest.raises(errors.Fenced):
        state.apply(worker.session, 1, Grant(count=1), 0)
    with pytest.raises(errors.Fenced):
        state.dead(SessionId(b"?" * 16))


def test_attach_checks_its_fields_and_has_a_bound() -> None:
    state, _ = pool()
    fields: dict[str, Any] = {"worker_id": "w", "endpoint": "e", "pid": 1, "start_time": 1, "now_ns": 0}
    for bad in ({"worker_id": ""}, {"worker_id": "w" * 33}, {"endpoint": "e" * 129}):
        with pytest.raises(errors.Invalid):
            state.attach(SessionId(b"s" * 16), **fields | bad)
    with pytest.raises(errors.Invalid):
        state.attach(SessionId(b"short"), **fields)
    for i in range(63):
        state.attach(SessionId(bytes([i]) * 16), **fields)
    with pytest.raises(errors.Invalid, match="exists"):
        state.attach(SessionId(bytes([0]) * 16), **fields)
    with pytest.raises(errors.ResourceExhausted):
        state.attach(SessionId(b"s" * 16), **fields)


# ------------------------------------------------------------------------------------------------- grants


def test_a_float_is_at_most_an_eighth_of_the_pool() -> None:
    _, worker = pool(32)
    assert len(worker.grant(3)) == 3
    assert len(worker.grant(3)) == 1
    assert worker.grant(1) == []


def test_a_small_pool_grants_one_at_least() -> None:
    _, worker = pool(4)
    assert (worker.grant(3), worker.grant(1)) == ([0], [])


def test_a_starving_worker_gets_what_it_needs_and_others_floats_count_for_themselves() -> None:
    state, worker = pool(16)
    assert len(worker.grant(10, starving=True)) == 10
    assert len(Worker(state, "b").grant(9)) == 2


def test_asking_for_more_than_there_is_gives_what_there_is() -> None:
    _, worker = pool(4)
    assert worker.grant(2**32 - 1, starving=True) == [0, 1, 2, 3]


def two_that_fill_the_pool(**second: object) -> tuple[KvState, Worker, Worker]:
    """Each of two workers runs one sequence of 3 blocks; nothing is free."""
    state, a = pool(7)
    b = Worker(state, "b")
    for worker, number, more in ((a, 1, {}), (b, 2, second)):
        worker.start(number, [number] * 9, 11, **more)
        worker.grant(3, starving=True)
        worker.step(number, 1)
    a.grant(1)
    assert state.counts().free == 0
    return state, a, b


def test_a_full_pool_asks_the_latest_sequence_back_once_and_serves_when_it_returns() -> None:
    state, a, b = two_that_fill_the_pool()
    assert a.grant(2, starving=True) == []
    assert a.unasked == [(b.session, Revoke(sequence=sequence_id(2), epoch=1))]
    assert a.grant(2, starving=True) == []
    assert a.unasked == [], "one victim at a time"
    b.preempt(2, release=False)
    assert (b.unasked, state.preemptions) == ([], 1)
    b.release(2)
    [(session, granted)] = b.unasked
    assert session == a.session
    assert isinstance(granted, Granted)
    assert [block.id for block in granted.blocks] == [5, 4], (
        "the tail was free, the leaf of the cache evicted"
    )


@pytest.mark.parametrize(
    ("second", "victim"), [({"priority": 1}, 1), ({"arrival_ns": 0}, 1), ({"priority": -1}, 2)]
)
def test_priority_decides_before_arrival(second: dict[str, object], victim: int) -> None:
    _, a, _ = two_that_fill_the_pool(**second)
    a.grant(1, starving=True)
    assert [reply.sequence for _, reply in a.unasked] == [sequence_id(victim)]  # type: ignore[union-attr]


def test_the_only_sequence_is_never_asked_back() -> None:
    _, a = pool(4)
    a.start(1, [1] * 9, 3)
    a.grant(4, starving=True)
    assert a.grant(1, starving=True) == []
    assert a.unasked == []


def test_a_victim_that_finishes_instead_serves_too() -> None:
    _, a, b = two_that_fill_the_pool()
    a.grant(1, starving=True)
    b.finish(2, release=False)
    assert b.unasked == []
    b.release(2)
    assert [session for session, _ in b.unasked] == [a.session]


def test_the_end_of_a_worker_serves_those_who_starve() -> None:
    state, a, b = two_that_fill_the_pool()
    a.grant(6, starving=True)
    state.lose(b.session, 1)
    [said] = state.outbox()
    assert (said.session, said.number, len(said.reply.blocks)) == (a.session, 0, 2), "its sealed ones"  # type: ignore[union-attr]
    assert state.outbox() == []
    a.grant(1, starving=True)
    assert state.dead(b.session) == 1
    assert [len(o.reply.blocks) for o in state.outbox()] == [1]  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------- admission


def test_a_new_sequence_has_its_tokens_recorded_and_no_block() -> None:
    state, worker = pool()
    reply = worker.start(1, [1, 2, 3])
    assert reply == Opened(
        sequence=sequence_id(1), epoch=1, kind=OpenKind.NEW, recorded_len=3, kv_len=0, cached_len=0, blocks=[]
    )
    record = state.read_record(sequence_id(1), 1)
    assert (record.token_ids, record.recorded_len, record.prompt_len, record.from_) == ([2, 3], 3, 3, 1)


def test_opening_again_is_yours_with_all_that_is_recorded() -> None:
    _, worker = pool()
    worker.grant(2)
    worker.start(1, [1, 2, 3])
    worker.step(1, 4)
    reply = worker.send(open_message(1, [1, 2, 3]))
    assert isinstance(reply, Opened)
    assert (reply.kind, reply.epoch, reply.recorded_len, reply.kv_len) == (OpenKind.YOURS, 1, 4, 3)
    assert (list(reply.token_ids), list(reply.blocks)) == ([1, 2, 3, 4], [BlockRef(0, 1)])


def test_anothers_sequence_and_a_finished_one_are_conflicts() -> None:
    state, a = pool()
    b = Worker(state, "b")
    a.start(1, [1])
    refused = b.start(1, [1])
    assert isinstance(refused, Refused)
    assert refused.code == errors.Conflict.code
    a.finish(1)
    refused = a.start(1, [1])
    assert isinstance(refused, Refused)
    assert (refused.code, refused.details) == (errors.Conflict.code, {"finish": "LENGTH"})


def test_what_can_never_fit_is_refused_with_both_numbers() -> None:
    _, worker = pool(4)
    assert isinstance(worker.start(1, [1] * 5, 7), Opened)
    refused = worker.start(2, [1] * 5, 8)
    assert isinstance(refused, Refused)
    assert refused.code == errors.PoolTooSmall.code
    assert refused.details == {"needed_blocks": "4", "usable_blocks": "3"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"sequence": b"short"}, "sequence bytes"),
        ({"group": b""}, "group bytes"),
        ({"tenant": b"t"}, "tenant bytes"),
        ({"request": bytes(64 * 1024 + 1)}, "request bytes"),
        ({"request_id": "x" * 257}, "request_id bytes"),
        ({"token_ids": []}, "token_ids length"),
        ({"token_ids": [1] * 65}, "token_ids length"),
        ({"token_ids": [100]}, "token id"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"token_ids": [1] * 60, "max_tokens": 5}, "token_ids length + max_tokens"),
        ({"priority": 2**31}, "priority"),
    ],
)
def test_a_field_out_of_bounds_is_refused_by_name(change: dict[str, Any], field: str) -> None:
    _, worker = pool(64)
    message: OpenOrAdopt = replace(open_message(1, [1]), **change)
    refused = worker.send(message)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.details["field"]) == (errors.Invalid.code, field)


def test_admission_waits_while_the_prompts_in_flight_could_not_be_finished() -> None:
    state, worker = pool(6)
    assert isinstance(worker.start(1, [1] * 8), Opened)
    assert worker.start(2, [2] * 13, 7) == Wait(sequence=sequence_id(2), needed_blocks=7, available_blocks=6)
    assert isinstance(worker.start(3, [2] * 12), Opened), "2 + 3 + 1"
    assert [s.id for s in state.sequences()] == [sequence_id(1).hex(), sequence_id(3).hex()]


def test_committed_prompts_and_the_sessions_own_float_count_but_others_floats_do_not() -> None:
    state, a = pool(6)
    a.start(1, [1] * 8)
    a.grant(4, starving=True)
    assert isinstance(a.start(2, [2] * 12), Opened), "2 free and 4 in the float for 2 + 3 + 1"
    reply = Worker(state, "b").start(3, [3])
    assert reply == Wait(sequence=sequence_id(3), needed_blocks=7, available_blocks=2)


def test_cached_blocks_make_room_but_not_those_that_are_hit() -> None:
    state, worker = pool(4)
    worker.grant(2, starving=True)
    worker.start(1, [1] * 8, 4)
    worker.step(1, 1)
    worker.finish(1)
    Worker(state, "b").grant(1)
    assert state.counts().free == 1
    wait = worker.start(2, [1] * 9, 3)
    assert wait == Wait(sequence=sequence_id(2), needed_blocks=2, available_blocks=1), "2 hits of 3 blocks"
    assert isinstance(worker.start(3, [2] * 8, 4), Opened), "2 more of 1 free and 2 cached"


def test_records_make_room_oldest_first_and_never_those_that_hold_a_row() -> None:
    state, worker = pool(64, max_num_seqs=1)
    for number in (1, 2, 3, 4):
        worker.now_ns += 1
        worker.start(number, [1])
    worker.finish(2, release=False)
    refused = worker.start(5, [1])
    assert isinstance(refused, Refused)
    assert (refused.code, refused.details["records"]) == (errors.ResourceExhausted.code, "4")
    worker.finish(1)
    worker.now_ns += 1
    assert isinstance(worker.start(5, [1]), Opened)
    assert [int(s.id, 16) for s in state.sequences()] == [2, 3, 4, 5]


def test_the_token_arena_has_an_end() -> None:
    _, worker = pool(4, max_num_seqs=64)
    for number in range(1, 6):
        assert isinstance(worker.start(number, [1], 11, bypass_prefix=True), Opened | Wait)
        worker.finish(number, release=False)
    refused = worker.start(6, [1], 11)
    assert isinstance(refused, Refused)
    assert refused.code == errors.ResourceExhausted.code


def test_prefix_statistics_count_tokens() -> None:
    state, worker = pool()
    worker.grant(2)
    worker.start(1, [1] * 8)
    worker.step(1, 1)
    worker.start(2, [1] * 6)
    assert (state.prefix_queries, state.prefix_hits) == (14, 4)
    assert state.tokens_held == 8 + 4
    assert state.live_sequences == 2


# ------------------------------------------------------------------------------------------------- commits


def ready() -> tuple[KvState, Worker, CommitEntry]:
    """A computed prompt of 5, and the entry of its next decode step."""
    state, worker = pool(16)
    worker.grant(4, starving=True)
    worker.start(1, [1, 2, 3, 4, 5], 6)
    worker.step(1, 6)
    entry = CommitEntry(
        sequence=sequence_id(1), epoch=1, base_recorded=6, base_kv=5, token_ids=[7], kv_len=6, blocks=()
    )
    return state, worker, entry


def test_a_commit_records_tokens_seals_full_blocks_and_keeps_the_tail() -> None:
    state, worker, entry = ready()
    assert worker.commit(entry) == Acked(refusals=[])
    info = state.describe_sequence(sequence_id(1).hex())
    assert (info.recorded_len, info.kv_len, info.blocks, info.state) == (7, 6, [0, 1], "open")
    assert [(state.describe_block(b).state, state.describe_block(b).holder) for b in (0, 1)] == [
        ("sealed", ""),
        ("tail", "a"),
    ]
    assert state.read_record(sequence_id(1)).token_ids == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"sequence": sequence_id(9)}, errors.NotFound, "unknown sequence"),
        ({"epoch": 2}, errors.Fenced, "epoch 2"),
        ({"base_recorded": 5}, errors.Conflict, "base 5 recorded"),
        ({"base_kv": 4}, errors.Conflict, "4 valid"),
        ({"kv_len": 5}, errors.Invalid, "kv_len 5 is not within 6..6"),
        ({"kv_len": 7}, errors.Invalid, "kv_len 7 is not within 6..6"),
        ({"token_ids": [], "kv_len": 4}, errors.Invalid, "within 5..6"),
        ({"token_ids": [], "kv_len": 7}, errors.Invalid, "within 5..6"),
        ({"token_ids": [7, 7, 7, 7], "kv_len": 9}, errors.Invalid, "over the row's 8 slots"),
        ({"token_ids": [100]}, errors.Invalid, "token id"),
        ({"token_ids": [1] * 6, "kv_len": 11}, errors.Invalid, "12 tokens"),
        ({"blocks": [BlockRef(3, 2)]}, errors.Conflict, "generation 1, not 2"),
        ({"blocks": [BlockRef(9, 1)]}, errors.Conflict, "float"),
        ({"blocks": [BlockRef(99, 1)]}, errors.Conflict, "float"),
        ({"blocks": [BlockRef(0, 1)]}, errors.Conflict, "float"),
        ({"blocks": [BlockRef(2, 1), BlockRef(2, 1)]}, errors.Conflict, "twice"),
        ({"blocks": [BlockRef(2, 1), BlockRef(3, 1)]}, errors.Invalid, "4 blocks for 11 tokens"),
        ({"preempted": True, "finish": FinishReason.EOS}, errors.Invalid, "not both"),
    ],
)
def test_an_entry_that_does_not_hold_is_refused_and_changes_nothing(
    change: dict[str, Any], code: type[errors.KvError], message: str
) -> None:
    state, worker, entry = ready()
    before = (state.counts(), state.sequences())
    [refusal] = worker.commit(replace(entry, **change)).refusals
    assert refusal.code == code.code
    assert message in refusal.message
    assert (state.counts(), state.sequences()) == before


def test_entries_are_judged_one_by_one() -> None:
    state, worker, entry = ready()
    reply = worker.commit(replace(entry, epoch=7), entry, entry)
    assert [refusal.code for refusal in reply.refusals] == [errors.Fenced.code, errors.Conflict.code]
    assert state.read_record(sequence_id(1)).recorded_len == 7


def test_anothers_sequence_and_anothers_blocks_are_refused() -> None:
    state, worker, entry = ready()
    b = Worker(state, "b")
    b.grant(1)
    assert [r.code for r in b.commit(entry).refusals] == [errors.Fenced.code]
    assert [r.code for r in worker.commit(replace(entry, blocks=b.float)).refusals] == [errors.Conflict.code]


def test_a_finished_sequence_takes_no_second_finish() -> None:
    state, worker, entry = ready()
    last = replace(entry, finish=FinishReason.EOS, stop_token_id=7)
    assert not worker.commit(last).refusals
    again = CommitEntry(
        sequence=sequence_id(1), epoch=1, base_recorded=7, base_kv=6, kv_len=6, finish=FinishReason.STOP
    )
    assert [r.message for r in worker.commit(again).refusals] == ["the sequence is finished"]
    record = state.read_record(sequence_id(1))
    assert (record.finish, record.stop_token_id, record.token_ids[-1]) == (FinishReason.EOS, 7, 7)


def test_finished_records_are_read_until_their_time_is_over() -> None:
    state, worker, _ = ready()
    worker.now_ns = 10
    worker.finish(1)
    assert state.expire(60 * 10**9 + 10) == 0
    assert state.read_record(sequence_id(1)).finish == FinishReason.LENGTH
    assert state.expire(60 * 10**9 + 11) == 1
    with pytest.raises(errors.NotFound):
        state.read_record(sequence_id(1))


def test_a_record_that_holds_a_row_does_not_expire() -> None:
    state, worker, _ = ready()
    worker.finish(1, release=False)
    assert state.expire(10**15) == 0


# ------------------------------------------------------------------------------------------------- preemption


def test_a_preempted_sequence_goes_on_in_a_new_epoch_with_what_is_still_cached() -> None:
    state, worker, _ = ready()
    worker.preempt(1)
    assert state.describe_sequence(sequence_id(1).hex()).state == "preempted"
    reply = worker.start(1, [1, 2, 3, 4, 5, 6])
    assert isinstance(reply, Opened)
    assert (reply.kind, reply.epoch, reply.recorded_len, reply.cached_len) == (OpenKind.RESUMED, 2, 6, 4)
    worker.step(1, 7)
    assert state.read_record(sequence_id(1)).token_ids == [1, 2, 3, 4, 5, 6, 7]


def test_a_resume_with_other_tokens_is_invalid() -> None:
    _, worker, _ = ready()
    worker.preempt(1)
    refused = worker.start(1, [1, 2, 3])
    assert isinstance(refused, Refused)
    assert refused.code == errors.Invalid.code


def test_resuming_before_the_old_row_is_released_keeps_both_apart() -> None:
    state, worker, _ = ready()
    worker.preempt(1, release=False)
    worker.start(1, [1, 2, 3, 4, 5, 6])
    assert state.counts().tail == 1, "the old tail might still be written"
    assert worker.send(Release(rows=[SequenceRef(sequence_id(1), 1)])) == Acked(refusals=[])
    assert state.counts().tail == 0
    assert state.describe_sequence(sequence_id(1).hex()).blocks == [0]


def test_a_preempted_sequence_can_only_be_finished() -> None:
    state, worker, _ = ready()
    worker.preempt(1)
    entry = CommitEntry(sequence=sequence_id(1), epoch=1, base_recorded=6, base_kv=0, kv_len=0)
    assert [r.code for r in worker.commit(entry).refusals] == [errors.Conflict.code]
    assert not worker.commit(replace(entry, finish=FinishReason.CANCELLED)).refusals
    assert state.read_record(sequence_id(1)).finish == FinishReason.CANCELLED


def test_what_still_runs_or_is_unknown_is_not_released() -> None:
    _, worker, _ = ready()
    rows = [SequenceRef(sequence_id(1), 1), SequenceRef(sequence_id(2), 1), SequenceRef(sequence_id(1), 7)]
    reply = worker.send(Release(rows=rows))
    assert isinstance(reply, Acked)
    assert [r.code for r in reply.refusals] == [
        errors.Conflict.code,
        errors.NotFound.code,
        errors.NotFound.code,
    ]


def test_fenced_lets_go_like_a_release() -> None:
    state, worker, _ = ready()
    worker.preempt(1, release=False)
    assert worker.send(Fenced(sequence=sequence_id(1), epoch=1)) == Acked(refusals=[])
    assert state.counts().tail == 0


# ------------------------------------------------------------------------------------------------- endings


def test_the_first_sign_of_death_quarantines_and_only_proof_frees() -> None:
    state, worker, _ = ready()
    assert state.lose(worker.session, 5) == [sequence_id(1)]
    counts = state.counts()
    assert (counts.quarantined, counts.cached, counts.granted, counts.tail) == (3, 1, 0, 0)
    assert [s.state for s in state.sessions()] == [SessionState.LOST]
    record = state.read_record(sequence_id(1))
    assert (record.finish, record.token_ids) == (FinishReason.ERROR, [1, 2, 3, 4, 5, 6])
    b = Worker(state, "b")
    assert sorted(b.grant(16, starving=True)) == [0, *range(4, 16)], "never a quarantined one"
    assert state.lose(worker.session, 6) == [], "twice is once"
    assert state.dead(worker.session) == 3
    assert [s.worker_id for s in state.sessions()] == ["b"]


def test_death_without_a_first_sign_does_both() -> None:
    state, worker, _ = ready()
    assert state.dead(worker.session) == 3
    assert state.counts().free == 15


def test_a_restarted_daemon_keeps_the_cache_ends_the_sequences_and_waits_for_proof() -> None:
    spec = pool_spec(16, 4)
    buffer = buffer_for(spec)
    state = KvState.create(buffer, spec, 0)
    worker = Worker(state, "a")
    worker.grant(4, starving=True)
    worker.start(1, [1, 2, 3, 4, 5, 6, 7, 8], 6)
    worker.step(1, 9)
    again = KvState.recover(buffer, 7)
    assert (again.boot_epoch, again.spec) == (2, spec)
    [session] = again.sessions()
    assert (session.id, session.pid, session.start_time, session.state) == (
        worker.session,
        1,
        2,
        SessionState.LOST,
    )
    assert again.read_record(sequence_id(1)).finish == FinishReason.ERROR
    assert (again.counts().quarantined, again.counts().cached) == (2, 2)
    reply = Worker(again, "b").start(2, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert isinstance(reply, Opened)
    assert reply.cached_len == 8
    assert again.dead(worker.session) == 2
    assert again.check_integrity() == []
    assert KvState.recover(buffer, 8).boot_epoch == 3


def test_time_never_runs_backwards_for_the_cache() -> None:
    state, worker, _ = ready()
    worker.now_ns = 1000
    worker.finish(1)
    worker.now_ns = 5
    worker.start(2, [7] * 4)
    worker.step(2, 1)
    worker.finish(2)
    assert state.check_integrity() == []


def test_a_sequence_is_described_by_a_unique_prefix() -> None:
    state, worker = pool()
    worker.start(1, [1])
    worker.start(2, [1])
    assert state.describe_sequence(f"{1:032X}").request_id == "request-1"
    with pytest.raises(errors.Conflict) as error:
        state.describe_sequence("0000")
    assert error.value.details["matches"] == "2"
    with pytest.raises(errors.NotFound):
        state.describe_sequence("ff")
    with pytest.raises(errors.NotFound):
        state.describe_block(16)


def test_a_commit_that_names_nothing_is_acknowledged() -> None:
    _, worker = pool()
    assert worker.send(Commit(step=1, entries=[])) == Acked(refusals=[])
