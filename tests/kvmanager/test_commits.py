"""Commits, judged entry by entry: what does not hold is refused and changes nothing."""

from dataclasses import replace
from typing import Any

import pytest

from holdfast import wire
from kvmanager import errors
from kvmanager.codec import encode_reply
from kvmanager.messages import (
    Acked,
    BlockRef,
    CommitEntry,
    FinishReason,
    Release,
)
from kvmanager.packing import MAX_BLOCKS
from tests.support.kv import (
    Worker,
    clean,  # noqa: F401 - used by every test
    ready,
    sequence_id,
)


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


def test_more_entries_than_an_operation_has_room_for_are_invalid() -> None:
    """However many a frame holds: the redo area takes two for each record."""
    state, worker, entry = ready()
    idle = replace(entry, token_ids=[], blocks=[], kv_len=entry.base_kv)
    most = 2 * state.layout.num_records
    assert worker.commit(*[idle] * most) == Acked(refusals=[])
    with pytest.raises(errors.Invalid, match="entries"):
        worker.commit(*[idle] * 16_384)


def test_the_answer_to_a_release_of_many_foreign_blocks_fits_a_frame() -> None:
    """It counts what it does not name."""
    _, worker, _ = ready()
    reply = worker.send(Release(blocks=[BlockRef(2**32 - 1, 2**32 - 1)] * MAX_BLOCKS))
    assert isinstance(reply, Acked)
    assert reply.refusals[-1].message == f"{MAX_BLOCKS - len(reply.refusals) + 1} more are not held either"
    wire.encode(encode_reply(reply, 1, 1))


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
