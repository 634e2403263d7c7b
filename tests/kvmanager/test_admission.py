"""OpenOrAdopt: new, yours, refused by name, or told to wait."""

from dataclasses import replace
from typing import Any

import pytest

from kvmanager import errors
from kvmanager.messages import (
    BlockRef,
    Opened,
    OpenKind,
    OpenOrAdopt,
    Refused,
    Wait,
)
from tests.support.kv import (
    Worker,
    clean,  # noqa: F401 - used by every test
    open_message,
    pool,
    sequence_id,
)


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
    """One block is kept back for each live sequence, the tail of whoever adopts it (rule 5)."""
    state, worker = pool(7)
    assert isinstance(worker.start(1, [1] * 8), Opened)
    assert worker.start(2, [2] * 13, 7) == Wait(sequence=sequence_id(2), needed_blocks=8, available_blocks=7)
    assert isinstance(worker.start(3, [2] * 12), Opened), "2 + 3 + 1 + 1"
    assert [s.id for s in state.sequences()] == [sequence_id(1).hex(), sequence_id(3).hex()]


def test_committed_prompts_and_the_sessions_own_float_count_but_others_floats_do_not() -> None:
    state, a = pool(7)
    a.start(1, [1] * 8)
    a.grant(4, starving=True)
    assert isinstance(a.start(2, [2] * 12), Opened), "3 free and 4 in the float for 2 + 3 + 1 + 1"
    reply = Worker(state, "b").start(3, [3])
    assert reply == Wait(sequence=sequence_id(3), needed_blocks=9, available_blocks=3)


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
    assert (state.prefix.queries, state.prefix.hits) == (14, 4)
    assert state.tokens_held == 8 + 4
    assert state.live_sequences == 2
