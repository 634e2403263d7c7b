"""Floats: how many blocks a worker is given, and whose sequence gives way."""

import pytest

from kvmanager.messages import (
    Granted,
    Revoke,
)
from kvmanager.state import KvState
from tests.support.kv import (
    Worker,
    clean,  # noqa: F401 - used by every test
    pool,
    sequence_id,
)


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


def two_that_fill_the_pool(num_blocks: int = 9, **second: object) -> tuple[KvState, Worker, Worker]:
    """Each of two workers runs one sequence of 3 blocks; what is left is kept back for whoever adopts them."""
    state, a = pool(num_blocks)
    b = Worker(state, "b")
    for worker, number, more in ((a, 1, {}), (b, 2, second)):
        worker.start(number, [number] * 9, 11, **more)
        worker.grant(3, starving=True)
        worker.step(number, 1)
    a.grant(1)
    assert state.counts().free == num_blocks - 7
    return state, a, b


def test_a_full_pool_asks_the_latest_sequence_back_once_and_serves_when_it_returns() -> None:
    state, a, b = two_that_fill_the_pool()
    assert a.grant(2, starving=True) == []
    assert a.unasked == [(b.session, Revoke(sequence=sequence_id(2), epoch=1))]
    assert a.grant(2, starving=True) == []
    assert a.unasked == [], "one victim at a time"
    b.preempt(2, release=False)
    [(session, granted)] = b.unasked
    assert session == a.session
    assert isinstance(granted, Granted)
    assert ([block.id for block in granted.blocks], state.preemptions) == ([7], 1), (
        "kept back for it until now"
    )
    assert a.grant(4, starving=True) == []
    assert a.unasked == [], "the row is to be released yet"
    b.release(2)
    [(session, granted)] = b.unasked
    assert session == a.session
    assert isinstance(granted, Granted)
    assert [block.id for block in granted.blocks] == [8, 5, 4], (
        "two were free, the leaf of the cache evicted; one is kept back for the other sequence"
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
    assert [session for session, _ in b.unasked] == [a.session], "the one kept back for it"
    assert a.grant(1, starving=True) == []
    b.release(2)
    assert [session for session, _ in b.unasked] == [a.session]


def test_the_proof_of_a_workers_end_serves_those_who_starve_with_its_float() -> None:
    """What its sequence holds stays for whoever adopts it."""
    state, a, b = two_that_fill_the_pool(10)
    assert b.grant(1) == [7]
    assert a.grant(6, starving=True) == []
    assert state.lose(b.session, 1) == [sequence_id(2)]
    assert state.outbox() == []
    assert state.dead(b.session) == 1
    [said] = state.outbox()
    assert (said.session, said.number) == (a.session, 0)
    assert len(said.reply.blocks) == 1  # type: ignore[union-attr]


def test_the_end_of_an_orphan_serves_those_who_starve() -> None:
    state, a, b = two_that_fill_the_pool()
    state.dead(b.session)
    assert a.grant(1, starving=True) == []
    state.expire(10, orphan_ttl_ns=1)
    [said] = state.outbox()
    assert (said.session, len(said.reply.blocks)) == (a.session, 1)  # type: ignore[union-attr]
    assert len(a.grant(9, starving=True)) == 3, "its three, and the one kept back for it"
