"""A fork is told with its first write: it shares what is sealed, and owns its tail."""

import itertools
from dataclasses import replace
from typing import Any

import pytest

from kvmanager import errors
from kvmanager.forks import MAX_FORK_BYTES
from kvmanager.messages import CommitEntry, FinishReason
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


def parent(blocks: int = 16, **changes: Any) -> tuple[KvState, Worker]:
    """Sequence 1 has computed its prompt and drawn a token; the float holds enough for what follows."""
    state, worker = pool(blocks, **changes)
    worker.grant(10, starving=True)
    worker.start(1, PROMPT, 8)
    worker.step(1, 7)
    return state, worker


def blocks_of(state: KvState, number: int) -> list[int]:
    return state.describe_sequence(sequence_id(number).hex()).blocks


def test_a_fork_shares_whole_blocks_and_has_a_tail_of_its_own() -> None:
    state, worker = parent()
    assert not worker.commit(worker.fork(2, 1, 6, [8, 9])).refusals
    one, two = blocks_of(state, 1), blocks_of(state, 2)
    assert (one[0], len(one), len(two)) == (two[0], 2, 2)
    assert one[1] != two[1]
    assert [state.describe_block(b).refcount for b in (one[0], one[1], two[1])] == [2, 1, 1]
    assert [state.describe_block(b).state for b in (one[0], one[1], two[1])] == ["sealed", "tail", "tail"]
    assert state.read_record(sequence_id(2)).token_ids == [*PROMPT, 8, 9]
    info = state.describe_sequence(sequence_id(2).hex())
    assert (info.epoch, info.prompt_len, info.recorded_len, info.kv_len, info.cached_len) == (1, 6, 8, 7, 6)
    assert state.counts().shared == 1
    assert state.check_integrity() == []


def test_a_fork_goes_on_seals_and_is_found_by_look_up() -> None:
    state, worker = parent()
    worker.commit(worker.fork(2, 1, 6, [8, 9]))
    worker.step(2, 10)
    worker.step(2, 11)
    reply = worker.start(3, [*PROMPT, 8, 9, 10], 4)
    assert [block.id for block in reply.blocks] == blocks_of(state, 2)[:2]


def test_a_full_tail_is_shared_and_not_copied() -> None:
    state, worker = pool(16)
    worker.grant(10, starving=True)
    worker.start(1, PROMPT[:4], 8)
    worker.step(1, 7)
    assert not worker.commit(worker.fork(2, 1, 4, [8, 9])).refusals
    assert blocks_of(state, 1) == blocks_of(state, 2)[:1]


def test_a_fork_may_begin_anywhere_behind_the_prompt() -> None:
    state, worker = parent()
    for token in (8, 9, 10):
        worker.step(1, token)
    assert not worker.commit(worker.fork(2, 1, 9, [3, 4])).refusals
    assert blocks_of(state, 1)[:2] == blocks_of(state, 2)[:2]
    assert state.read_record(sequence_id(2)).token_ids == [*PROMPT, 7, 8, 9, 3, 4]


def test_a_fork_that_ends_with_its_first_token_has_a_record_and_no_row() -> None:
    state, worker = parent()
    entry = replace(worker.fork(2, 1, 6, [8]), finish=FinishReason.STOP, stop_token_id=8)
    before = state.counts()
    assert not worker.commit(entry).refusals
    record = state.read_record(sequence_id(2))
    assert (record.token_ids, record.finish, record.stop_token_id) == ([*PROMPT, 8], FinishReason.STOP, 8)
    assert (state.counts(), state.live_sequences) == (before, 1)
    assert state.check_integrity() == []
    assert state.expire(1, ttl_ns=0) == 1


def test_parent_and_forks_in_one_commit() -> None:
    """The parent's own entry seals what the forks share, and may end it: its row is there until its Release."""
    state, worker = pool(16)
    worker.grant(10, starving=True)
    worker.start(1, PROMPT, 8)
    first = replace(worker.entry(1, [7]), finish=FinishReason.LENGTH)
    assert not worker.commit(first, worker.fork(2, 1, 6, [8, 9]), worker.fork(3, 1, 6, [8, 9])).refusals
    worker.release(1)
    assert blocks_of(state, 2)[0] == blocks_of(state, 3)[0]
    assert state.describe_block(blocks_of(state, 2)[0]).refcount == 2
    assert not worker.commit(worker.fork(4, 2, 6, [7, 7])).refusals


REFUSED: list[tuple[dict[str, Any], dict[str, Any], type[errors.KvError], str]] = [
    ({"sequence": sequence_id(1)}, {}, errors.Conflict, "already"),
    ({"epoch": 2}, {}, errors.Invalid, "epoch 2"),
    ({"preempted": True}, {}, errors.Invalid, "preempted"),
    ({"base_recorded": 5}, {}, errors.Invalid, "base_recorded 5"),
    ({"base_recorded": 8}, {}, errors.Invalid, "base_recorded 8"),
    ({"base_kv": 7}, {}, errors.Invalid, "base_kv 7"),
    ({"kv_len": 5}, {}, errors.Invalid, "kv_len 5 is not within 6..7"),
    ({"kv_len": 8}, {}, errors.Invalid, "kv_len 8 is not within 6..7"),
    ({"blocks": ()}, {}, errors.Invalid, "over the row's 4 slots"),
    ({"token_ids": [100, 1]}, {}, errors.Invalid, "token id"),
    ({"token_ids": [1] * 9}, {}, errors.Invalid, "15 tokens"),
    ({}, {"parent": sequence_id(9)}, errors.NotFound, "unknown parent"),
    ({}, {"parent_epoch": 2}, errors.Conflict, "row of epoch 2"),
    ({}, {"tenant": b"x" * 32}, errors.Invalid, "tenant"),
    ({}, {"tenant": b"x"}, errors.Invalid, "tenant bytes"),
    ({}, {"group": b""}, errors.Invalid, "group bytes"),
    ({}, {"max_tokens": 59}, errors.Invalid, "max_tokens"),
    ({}, {"max_tokens": 58}, errors.PoolTooSmall, "16 blocks"),
    ({}, {"request": bytes(65 * 1024)}, errors.Invalid, "request bytes"),
]


@pytest.mark.parametrize(("entry", "terms", "code", "message"), REFUSED)
def test_a_fork_that_does_not_hold_is_refused_and_changes_nothing(
    entry: dict[str, Any], terms: dict[str, Any], code: type[errors.KvError], message: str
) -> None:
    state, worker = parent()
    before = (state.counts(), state.sequences())
    fork = replace(worker.fork(2, 1, 6, [8, 9]), **entry)
    [refusal] = worker.commit(replace(fork, fork=fork_message(1, **terms))).refusals
    assert refusal.code == code.code
    assert message in refusal.message
    assert (state.counts(), state.sequences()) == before
    assert state.check_integrity() == []


def test_nobody_forks_what_another_worker_runs_or_what_is_not_computed() -> None:
    state, worker = parent()
    other = Worker(state, "b")
    other.open[1] = worker.open[1]
    other.grant(2, starving=True)
    [refusal] = other.commit(other.fork(2, 1, 6, [8, 9])).refusals
    assert refusal.code == errors.Fenced.code
    worker.start(3, [9] * 9, 8)
    worker.open[3] = [1, 9, 8, 0]
    [refusal] = worker.commit(worker.fork(4, 3, 9, [8, 9])).refusals
    assert "committed" in refusal.message


def test_a_fork_without_room_for_its_record_is_refused() -> None:
    """Four records a sequence: the fifth live one has none, and its blocks stay float."""
    state, worker = parent(max_num_seqs=1)
    for number in (2, 3, 4):
        assert not worker.commit(worker.fork(number, 1, 6, [8, 9])).refusals
    entry = worker.fork(5, 1, 6, [8, 9])
    [refusal] = worker.commit(entry).refusals
    assert refusal.code == errors.ResourceExhausted.code
    assert state.describe_block(entry.blocks[0].id).state == "granted"
    worker.finish(3)
    worker.float += entry.blocks
    assert not worker.commit(worker.fork(5, 1, 6, [8, 9])).refusals


def ended(number: int, parent_len: int = 6, request: bytes = b"") -> CommitEntry:
    return CommitEntry(
        sequence=sequence_id(number),
        epoch=1,
        base_recorded=parent_len,
        base_kv=parent_len,
        token_ids=[8],
        kv_len=parent_len,
        finish=FinishReason.LENGTH,
        fork=fork_message(1, request=request),
    )


def test_what_the_forks_of_one_commit_store_is_bounded() -> None:
    """An operation has to fit the redo area, however often a record makes room for the next one."""
    state, worker = parent(32, max_num_seqs=16)
    half = bytes(MAX_FORK_BYTES // 2)
    refusals = worker.commit(*(ended(n, request=half) for n in (2, 3, 4))).refusals
    assert [(r.sequence, r.code) for r in refusals] == [(sequence_id(4), errors.ResourceExhausted.code)]
    most = 2 * state.layout.num_records // 3
    assert not worker.commit(*(ended(10 + n) for n in range(most))).refusals
    with pytest.raises(errors.Invalid, match="entries"):
        worker.commit(*(ended(100 + n) for n in range(most + 1)))
    worker.number -= 1
    long = list(range(1, 50))
    worker.start(9, long, 1)
    rounds = worker.commit(
        *(replace(ended(200 + n, 49), fork=fork_message(9, max_tokens=1)) for n in range(40))
    )
    assert {r.code for r in rounds.refusals} == {errors.ResourceExhausted.code}
    assert 0 < len(rounds.refusals) < 40
    assert state.check_integrity() == []


@pytest.mark.parametrize("order", list(itertools.permutations(range(1, 5))))
def test_members_leave_in_any_order_and_nothing_leaks(order: tuple[int, ...]) -> None:
    """Refcounts fall one by one; what is shared stays until the last one."""
    state, worker = parent()
    for number in (2, 3, 4):
        worker.commit(worker.fork(number, 1, 6, [8, 9 + number]))
    shared = blocks_of(state, 1)[0]
    for left, number in zip((3, 2, 1, 0), order, strict=True):
        worker.finish(number)
        assert state.describe_block(shared).refcount == left
        assert state.check_integrity() == []
    worker.give_back()
    counts = state.counts()
    assert (counts.tail, counts.shared, counts.free + counts.cached) == (0, 0, 16)


def test_a_lost_worker_leaves_only_tails_in_quarantine() -> None:
    """Both wait for another worker; the block that they share is theirs as before."""
    state, worker = parent()
    worker.commit(worker.fork(2, 1, 6, [8, 9]))
    worker.give_back()
    assert len(state.lose(worker.session, 5)) == 2
    assert (state.counts().quarantined, state.counts().shared, state.counts().cached) == (2, 1, 0)
    assert (state.dead(worker.session), state.orphans) == (0, 2)
    assert state.expire(100, orphan_ttl_ns=1) == 0
    assert (state.counts().quarantined, state.counts().cached, state.orphans) == (0, 1, 0)


def test_a_new_daemon_finds_forks_as_they_were() -> None:
    spec = pool_spec(16)
    buffer = buffer_for(spec)
    state = KvState.create(buffer, spec, 0)
    worker = Worker(state, "a")
    worker.grant(4, starving=True)
    worker.start(1, PROMPT, 8)
    worker.step(1, 7)
    worker.commit(worker.fork(2, 1, 6, [8, 9]))
    tokens = state.read_record(sequence_id(2)).token_ids
    again = KvState.recover(buffer, 1)
    assert again.check_integrity() == []
    assert again.read_record(sequence_id(2)).token_ids == tokens
    assert again.counts().shared == 1
