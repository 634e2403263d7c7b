"""Numbers of messages, what a preempted sequence may do, and how sessions, sequences and daemons end."""

from dataclasses import replace
from typing import Any

import pytest

from kvmanager import errors
from kvmanager.messages import (
    Acked,
    Commit,
    CommitEntry,
    Fenced,
    FinishReason,
    Grant,
    Holding,
    Opened,
    OpenKind,
    Refused,
    Release,
    SequenceRef,
    SessionId,
    Wait,
)
from kvmanager.sessions import SessionState
from kvmanager.state import KvState
from tests.support.kv import (
    Worker,
    buffer_for,
    clean,  # noqa: F401 - used by every test
    pool,
    pool_spec,
    ready,
    sequence_id,
)


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


def test_a_resume_says_anew_whether_it_takes_cached_blocks() -> None:
    _, worker = pool()
    worker.grant(2)
    worker.start(1, [1, 2, 3, 4, 5], bypass_prefix=True)
    worker.step(1, 6)
    worker.preempt(1)
    reply = worker.start(1, [1, 2, 3, 4, 5, 6])
    assert isinstance(reply, Opened)
    assert reply.cached_len == 4


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


def test_fenced_gives_up_a_sequence_and_nothing_of_it_is_in_doubt() -> None:
    """The worker said that it stopped: another one goes on in the same tail."""
    state, worker, _ = ready()
    assert worker.send(Fenced(sequence=sequence_id(1), epoch=1)) == Acked()
    assert (state.orphans, state.counts().tail, state.counts().quarantined) == (1, 0, 1)
    assert state.describe_block(1).holder == ""
    [refusal] = worker.commit(worker.entry(1, [7])).refusals
    assert refusal.code == errors.Fenced.code
    reply = Worker(state, "b").start(1, [1, 2, 3, 4, 5, 6], 6)
    assert isinstance(reply, Opened)
    assert (reply.kind, reply.epoch, reply.kv_len, reply.copies) == (OpenKind.ADOPTED, 2, 5, ())
    assert [block.id for block in reply.blocks] == [0, 1]


def test_fenced_gives_up_a_preempted_sequence_with_the_row_that_it_held() -> None:
    state, worker, _ = ready()
    worker.preempt(1, release=False)
    assert worker.send(Fenced(sequence=sequence_id(1), epoch=1)) == Acked()
    assert (state.orphans, state.counts().tail, state.counts().quarantined) == (1, 0, 0)


def test_fenced_lets_go_of_what_has_ended_like_a_release() -> None:
    state, worker, _ = ready()
    worker.finish(1, release=False)
    assert worker.send(Fenced(sequence=sequence_id(1), epoch=1)) == Acked(refusals=[])
    assert (state.orphans, state.counts().tail) == (0, 0)


def test_the_first_sign_of_death_quarantines_and_only_proof_frees() -> None:
    """The sequence waits for another worker with all that it has: a sealed block, and its tail in quarantine."""
    state, worker, _ = ready()
    assert state.lose(worker.session, 5) == [sequence_id(1)]
    counts = state.counts()
    assert (counts.quarantined, counts.sealed, counts.cached, counts.granted, counts.tail) == (3, 1, 0, 0, 0)
    assert [s.state for s in state.sessions()] == [SessionState.LOST]
    record = state.read_record(sequence_id(1))
    assert (record.finish, record.token_ids) == (FinishReason.NONE, [1, 2, 3, 4, 5, 6])
    assert (state.orphans, state.live_sequences, state.tokens_held) == (1, 1, 5)
    b = Worker(state, "b")
    assert sorted(b.grant(16, starving=True)) == list(range(4, 15)), (
        "never a quarantined one; one is kept back"
    )
    assert state.lose(worker.session, 6) == [], "twice is once"
    assert state.dead(worker.session) == 2
    assert (state.counts().quarantined, state.orphans) == (1, 1), "the begun tail is the orphan's"
    assert [s.worker_id for s in state.sessions()] == ["b"]


def test_death_without_a_first_sign_does_both() -> None:
    state, worker, _ = ready()
    assert state.dead(worker.session) == 2
    assert state.counts().free == 14


def test_a_restarted_daemon_keeps_the_cache_and_the_living_sessions_which_go_on() -> None:
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
        SessionState.ALIVE,
    )
    assert again.number_of(worker.session) == worker.number
    holdings = again.holdings(worker.session)
    assert list(holdings.sequences) == [Holding(sequence_id(1), 1, 9, FinishReason.NONE)]
    assert list(holdings.blocks) == worker.float
    worker.state = again
    worker.step(1, 10)
    assert again.read_record(sequence_id(1)).token_ids == [*range(1, 11)]
    reply = Worker(again, "b").start(2, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert isinstance(reply, Opened)
    assert reply.cached_len == 8
    assert again.check_integrity() == []
    assert again.dead(worker.session) == 1
    assert again.orphans == 1
    assert again.check_integrity() == []
    assert KvState.recover(buffer, 8).boot_epoch == 3


def test_a_restarted_daemon_admits_no_more_than_the_prompts_in_flight_leave_room_for() -> None:
    """As the daemon before it: what an open prompt still needs is not given away."""
    spec = pool_spec(9, 4)
    buffer = buffer_for(spec)
    state = KvState.create(buffer, spec, 0)
    Worker(state, "a").start(1, [1] * 16)
    again = KvState.recover(buffer, 7)
    wait = Worker(again, "b").start(2, [2] * 16)
    assert wait == Wait(sequence=sequence_id(2), needed_blocks=10, available_blocks=9)


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
