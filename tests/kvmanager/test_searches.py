"""A beam search's records: told ahead, kept while needed, gone when lost, and all or none."""

from dataclasses import replace
from typing import Any

import pytest

from kvmanager import errors
from kvmanager.messages import (
    CommitEntry,
    Fenced,
    FinishReason,
    Opened,
    OpenKind,
    Release,
    SearchMember,
    SequenceRef,
)
from kvmanager.salvage import salvage
from kvmanager.sequences import Role, SequenceState
from kvmanager.state import KvState
from tests.support.kv import (
    Worker,
    buffer_for,
    clean,  # noqa: F401 - used by every test
    fork_message,
    pool,
    pool_spec,
    sequence_id,
)

PROMPT = [1, 2, 3, 4, 5, 6]  # of 4 slots a block: one whole block, half a tail
GROUP = b"g" * 16


def search(width: int = 2, **changes: Any) -> tuple[KvState, Worker]:
    """Sequence 1 is a search that has computed its prompt."""
    state, worker = pool(32, **changes)
    worker.grant(10, starving=True)
    begin(worker, 1, width)
    return state, worker


def begin(worker: Worker, number: int, width: int, group: bytes = GROUP) -> None:
    reply = worker.start(number, PROMPT, 8, group=group, beam_width=width, request=b"all of it")
    assert isinstance(reply, Opened)
    entry = replace(worker.entry(number), kv_len=6, blocks=worker.float[:2])
    worker.float = worker.float[2:]
    assert not worker.commit(entry).refusals
    worker.open[number] = [1, 6, 6, 2]


def beam(
    number: int, token: int, parent: int = 1, base: int = 6, score: float = -1.5, **changes: Any
) -> CommitEntry:
    """A beam that begins with the parent's first `base` tokens and one of its own."""
    whole = base // 4 * 4
    fork = fork_message(parent, group=GROUP, request=b"", beam=True)
    given: dict[str, Any] = {"base_kv": whole, "kv_len": whole, "token_ids": [token]}
    return CommitEntry(
        sequence=sequence_id(number), epoch=1, base_recorded=base, fork=fork, score=score, **(given | changes)
    )


def hypothesis(number: int, token: int, parent: int = 1, base: int = 6, score: float = -2.0) -> CommitEntry:
    ended = {"base_kv": base, "kv_len": base, "finish": FinishReason.STOP, "stop_token_id": token}
    return beam(number, token, parent, base, score, **ended)


def dropped(number: int, recorded: int = 7, epoch: int = 1, **changes: Any) -> CommitEntry:
    given: dict[str, Any] = {"base_kv": 6, "kv_len": 6, "finish": FinishReason.CANCELLED}
    return CommitEntry(sequence=sequence_id(number), epoch=epoch, base_recorded=recorded, **(given | changes))


def known(state: KvState) -> dict[int, Any]:
    return {int.from_bytes(one.id, "big"): one for one in state._parts.sequences.by_id.values()}


def test_a_beam_is_told_ahead_with_its_score_and_whole_blocks() -> None:
    state, worker = search()
    assert not worker.commit(beam(2, 8), beam(3, 9, score=-2.5)).refusals
    records = known(state)
    assert [(records[n].score, records[n].kv_len, list(records[n].tokens)) for n in (2, 3)] == [
        (-1.5, 4, [*PROMPT, 8]),
        (-2.5, 4, [*PROMPT, 9]),
    ]
    row = state.describe_sequence(sequence_id(2).hex()).blocks
    assert row == state.describe_sequence(sequence_id(1).hex()).blocks[:1]
    worker.open[2] = [1, 7, 4, 1]
    written = replace(worker.entry(2, [10]), score=-3.0)
    assert (written.base_kv, written.kv_len, len(written.blocks)) == (4, 7, 1)
    assert not worker.commit(written).refusals
    assert (records[2].score, records[2].kv_len) == (-3.0, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_ids": [8, 9]}, "tokens of a beam"),
        ({"token_ids": []}, "tokens of a beam"),
        ({"kv_len": 6}, "kv_len 6"),
        ({"base_kv": 6, "kv_len": 6}, "base_kv within a block"),
    ],
)
def test_a_beam_that_does_not_hold_is_refused_with_all_behind_it(
    changes: dict[str, Any], message: str
) -> None:
    state, worker = search()
    refusals = worker.commit(beam(2, 8, **changes), beam(3, 9)).refusals
    assert [refusal.code for refusal in refusals] == [errors.Invalid.code] * 2
    assert message in refusals[0].message
    assert known(state).keys() == {1}


def test_beams_and_answers_need_a_search() -> None:
    _, worker = search()
    for fork in (fork_message(1, group=b"x" * 16, beam=True), fork_message(1, group=b"x" * 16, result=True)):
        (refusal,) = worker.commit(replace(hypothesis(2, 8), fork=fork)).refusals
        assert refusal.code == errors.Conflict.code
    (refusal,) = worker.commit(replace(beam(2, 8), fork=fork_message(1, group=GROUP, result=True))).refusals
    assert refusal.code == errors.Invalid.code


def test_a_parked_search_keeps_its_request_and_ends_with_the_best() -> None:
    state, worker = search()
    worker.commit(beam(2, 8))
    worker.commit(worker.entry(1, preempted=True))
    worker.release(1)
    assert state.preemptions == 0
    assert known(state)[1].request_bytes == len(b"all of it")
    best = {"base_kv": 0, "kv_len": 0, "token_ids": [8, 9], "finish": FinishReason.LENGTH, "score": -0.5}
    other = replace(hypothesis(5, 9), fork=fork_message(1, group=GROUP, result=True), token_ids=[9, 9])
    lost = dropped(2, base_kv=4, kv_len=4)
    assert not worker.commit(lost, other, dropped(1, 6, **best)).refusals
    worker.send(Release(rows=[SequenceRef(sequence_id(2), 1)]))
    records = known(state)
    assert records.keys() == {1, 5}
    assert [(list(records[n].tokens)[6:], records[n].finish) for n in (1, 5)] == [
        ([8, 9], FinishReason.LENGTH),
        ([9, 9], FinishReason.STOP),
    ]
    assert records[1].score == -0.5
    assert state.live_sequences == 0


def test_a_hypothesis_stays_whatever_happens_until_it_is_dropped() -> None:
    """Neither time nor want of room takes it; dropping it frees the record at once."""
    state, worker = search(max_num_seqs=2)
    assert not worker.commit(hypothesis(2, 8)).refusals
    assert state.expire(10**15, ttl_ns=0) == 0
    assert known(state)[2].hypothesis
    assert known(state)[2].token_capacity == 7
    assert not worker.commit(dropped(2)).refusals
    assert known(state).keys() == {1}
    (refusal,) = worker.commit(dropped(2)).refusals
    assert refusal.code == errors.NotFound.code


def test_a_lost_beams_record_goes_with_its_row() -> None:
    state, worker = search()
    worker.commit(beam(2, 8), beam(3, 9))
    assert not worker.commit(dropped(2, base_kv=4, kv_len=4)).refusals
    assert known(state).keys() == {1, 2, 3}
    worker.send(Release(rows=[SequenceRef(sequence_id(2), 1)]))
    assert known(state).keys() == {1, 3}
    given_back = replace(
        dropped(3, base_kv=4, kv_len=0), finish=FinishReason.NONE, preempted=True, score=-1.5
    )
    assert not worker.commit(given_back).refusals
    worker.send(Release(rows=[SequenceRef(sequence_id(3), 1)]))
    assert (known(state)[3].state, known(state)[3].score) == (SequenceState.PREEMPTED, -1.5)
    assert not worker.commit(dropped(3, base_kv=0, kv_len=0)).refusals
    assert known(state).keys() == {1}


def test_a_search_begins_only_with_room_for_all_its_records_and_nobody_takes_it() -> None:
    """Three a beam. Others open as long as they leave them."""
    state, worker = search(2, max_num_seqs=2)  # 8 records: 1 + 6 promised, 1 for others
    assert isinstance(worker.start(20, [9], 2), Opened)
    refused = worker.start(21, [9], 2)
    assert getattr(refused, "code", None) == errors.ResourceExhausted.code
    entries = [beam(2, 8), beam(3, 9), hypothesis(4, 10), hypothesis(5, 11)]
    assert not worker.commit(*entries).refusals
    worker.finish(20)
    assert isinstance(worker.start(22, [9], 2), Opened)
    assert len(known(state)) == 6


def test_entries_of_a_search_are_taken_all_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvmanager.room.RECORDS_OF_A_BEAM", 0)
    state, worker = search(2, max_num_seqs=1)  # 4 records
    worker.start(20, [9], 2)
    before = {n: list(one.tokens) for n, one in known(state).items()}
    alone = worker.entry(20, [7])
    entries = [beam(2, 8), alone, beam(3, 9), hypothesis(4, 10)]
    refusals = worker.commit(*entries).refusals
    assert [refusal.sequence for refusal in refusals] == [sequence_id(n) for n in (2, 3, 4)]
    assert {refusal.code for refusal in refusals} == {errors.ResourceExhausted.code}
    assert {n: list(one.tokens) for n, one in known(state).items()} == before | {20: [9, 7]}
    assert not worker.commit(beam(2, 8), beam(3, 9)).refusals


def test_a_new_daemon_finds_what_a_search_recorded() -> None:
    """Scores, roles and the width are in the records: the room it is owed stays its own."""
    spec = pool_spec(32)
    buffer = buffer_for(spec)
    state = KvState.create(buffer, spec, 0)
    worker = Worker(state, "a")
    worker.grant(8, starving=True)
    begin(worker, 1, 2)
    worker.commit(beam(2, 8, score=-1.25), hypothesis(3, 9, score=-2.25))
    stored = state.layout.view(buffer).sequences
    scores = sorted(float(one["score"]) for one in stored if one["state"] and one["role"] == Role.BEAM)
    assert scores == [-2.25, -1.25]
    again = KvState.recover(buffer, 1)
    assert again.check_integrity() == []
    assert known(again).keys() == {1, 2, 3}
    assert again._parts.sequences.searches == {GROUP: 2}


# --------------------------------------------------------------------------------------------- adoption


def lost(*entries: CommitEntry) -> tuple[KvState, Worker, Worker]:
    """A search whose worker is gone, and another worker."""
    state, a = search()
    assert not a.commit(*entries).refusals
    a.give_back()
    b = Worker(state, "b")
    b.grant(4, starving=True)
    state.lose(a.session, 5)
    assert state.check_integrity() == []
    return state, a, b


def take_over(worker: Worker) -> Opened:
    reply = worker.start(1, PROMPT, 8, group=GROUP, beam_width=2)
    assert isinstance(reply, Opened)
    assert worker.state.check_integrity() == []
    return reply


def test_an_adopter_is_told_what_the_search_consists_of() -> None:
    """The search is parked at once, without a row; its hypotheses are the adopter's, its beams still nobody's."""
    state, _, b = lost(beam(2, 8), hypothesis(3, 9))
    found = take_over(b)
    assert (found.kind, found.epoch, found.kv_len, list(found.blocks)) == (OpenKind.ADOPTED, 2, 0, [])
    assert list(found.token_ids) == PROMPT
    assert sorted(found.members) == [
        SearchMember(sequence_id(2), [8], -1.5),
        SearchMember(sequence_id(3), [9], -2.0, FinishReason.STOP),
    ]
    records = known(state)
    owner = state._parts.sessions.by_id[b.session].holder
    assert [(records[n].state, records[n].owner) for n in (1, 2, 3)] == [
        (SequenceState.PREEMPTED, owner),
        (SequenceState.ORPHANED, 0),
        (SequenceState.FINISHED, owner),
    ]
    adopted = b.start(2, [*PROMPT, 8], 8, group=GROUP, prompt_len=len(PROMPT))
    assert isinstance(adopted, Opened)
    assert (adopted.kind, adopted.epoch, adopted.kv_len) == (OpenKind.ADOPTED, 2, 4)
    assert not b.commit(dropped(3)).refusals
    assert known(state).keys() == {1, 2}


def test_the_answer_to_an_adopter_is_the_same_when_it_asks_again() -> None:
    _, _, b = lost(beam(2, 8), hypothesis(3, 9))
    first, second = take_over(b), take_over(b)
    assert second == replace(first, kind=OpenKind.YOURS)


def test_a_search_that_computes_its_prompt_is_adopted_as_any_sequence() -> None:
    state, a = pool(32)
    a.grant(4, starving=True)
    a.start(1, PROMPT, 8, group=GROUP, beam_width=2)
    assert not a.commit(replace(a.entry(1), kv_len=4, blocks=a.float[:1])).refusals
    state.lose(a.session, 5)
    found = take_over(Worker(state, "b"))
    assert (found.kv_len, found.members, len(found.blocks)) == (4, (), 1)


def test_a_search_that_ends_takes_what_no_worker_took_over() -> None:
    state, _, b = lost(beam(2, 8), beam(4, 7), hypothesis(3, 9))
    take_over(b)
    b.start(2, [*PROMPT, 8], 8, group=GROUP, prompt_len=len(PROMPT))
    ended = {"base_kv": 0, "kv_len": 0, "epoch": 2}
    assert not b.commit(dropped(2, epoch=2, base_kv=4, kv_len=4), dropped(3), dropped(1, 6, **ended)).refusals
    b.send(Release(rows=[SequenceRef(sequence_id(2), 2)]))
    assert known(state).keys() == {1}
    assert state.check_integrity() == []


@pytest.mark.parametrize("taken", [False, True])
def test_a_search_that_nobody_asks_for_ends_with_all_it_has(taken: bool) -> None:
    """Also when its adopter dies before it took any beam over."""
    state, _, b = lost(beam(2, 8), hypothesis(3, 9))
    if taken:
        take_over(b)
        b.give_back()
        state.lose(b.session, 6)
    state.expire(10**6, 10**9, 10)
    assert {n: one.finish for n, one in known(state).items()} == {1: FinishReason.CANCELLED}
    assert state._parts.sequences.searches == {}
    assert state.check_integrity() == []


def test_a_beam_whose_worker_says_that_it_stopped_waits_for_the_next() -> None:
    """A hand-over: nothing is in quarantine."""
    state, a = search()
    a.commit(beam(2, 8), hypothesis(3, 9))
    for number in (2, 1):
        a.send(Fenced(sequence=sequence_id(number), epoch=1))
    assert state.counts().quarantined == 0
    b = Worker(state, "b")
    assert len(take_over(b).members) == 2


def test_a_search_of_which_three_workers_died_fails_whole() -> None:
    state, _, worker = lost(beam(2, 8), hypothesis(3, 9))
    for name in "cde":
        take_over(worker)
        assert isinstance(worker.start(2, [*PROMPT, 8], 8, group=GROUP, prompt_len=len(PROMPT)), Opened)
        worker.give_back()
        state.lose(worker.session, 6)
        assert state.check_integrity() == []
        worker = Worker(state, name)
    assert {n: one.finish for n, one in known(state).items()} == {1: FinishReason.ERROR}


def test_without_its_kv_a_search_begins_anew() -> None:
    """Its beams are not carried into the new pool: the prompt gives them again."""
    state, worker = search()
    worker.commit(beam(2, 8), hypothesis(3, 9))
    found = salvage(state._parts.store.raw, state.layout, 9)
    assert [one.sequence.id for one in found.carried] == [sequence_id(1)]
    assert (found.dropped, found.carried[0].sequence.width) == (0, 2)
