"""Which worker takes the next sequence, and when the service counts as serving."""

import pytest

from gateway.routing import Members, Pool, Worker, WorkerKey, choose
from kvmanager.messages import WorkerState

POOL = Pool(
    name="p", model="m", fingerprint="", max_model_len=9, vocab_size=9, dtype="", num_blocks=5, block_size=16
)


def worker(name, **fields):
    given = {"model": "m", "pool": "p", "state": WorkerState.READY, "endpoint": f"/{name}"}
    return Worker(key=WorkerKey(name, "s"), **(given | fields))


def members(*workers):
    return Members({w.key: w for w in workers}, {"p": POOL})


def chosen(*workers, own=None, avoid=()):
    found = choose(members(*workers), "m", own or {}, avoid)
    return found and found.key.id


def test_the_least_loaded_worker_is_chosen():
    assert chosen(worker("a", load=3), worker("b", load=1), worker("c", load=2)) == "b"


def test_own_sequences_count_before_the_snapshot_knows_them():
    assert chosen(worker("a"), worker("b", load=1), own={WorkerKey("a", "s"): 2}) == "b"


def test_an_avoided_or_unhealthy_worker_is_the_last_resort():
    sick = worker("b", age_ms=9000)
    assert chosen(worker("a", load=9), sick) == "a"
    assert chosen(worker("a"), sick, avoid={WorkerKey("a", "s")}) == "b"
    assert chosen(worker("a"), avoid={WorkerKey("a", "s")}) == "a"


@pytest.mark.parametrize("state", [s for s in WorkerState if s is not WorkerState.READY])
def test_only_ready_workers_are_chosen(state):
    assert chosen(worker("a", state=state)) is None


def test_a_frozen_worker_is_not_even_the_last_resort():
    frozen = worker("a", age_ms=10_000)
    assert chosen(frozen) is None
    assert members(frozen).gone(frozen.key)


def test_workers_of_another_model_or_of_an_unknown_pool_are_not_chosen():
    assert chosen(worker("a", model="other"), worker("b", pool="none")) is None


@pytest.mark.parametrize(
    ("fields", "serving"),
    [
        ({}, True),
        ({"busy": True, "silent_ms": 100}, True),
        ({"busy": True, "silent_ms": 60_000}, False),
        ({"silent_ms": 60_000}, True),  # idle: nothing to advance
        ({"age_ms": 3000}, False),
        ({"state": WorkerState.DRAINING}, False),
    ],
)
def test_serving_means_progress(fields, serving):
    assert members(worker("a", **fields)).serving("m") is serving


def test_a_worker_is_gone_when_lost_vanished_or_another_session():
    found = members(worker("a"), worker("b", state=WorkerState.LOST), worker("c", state=WorkerState.DRAINING))
    gone = [
        found.gone(WorkerKey(*key)) for key in (("a", "s"), ("a", "t"), ("b", "s"), ("c", "s"), ("d", "s"))
    ]
    assert gone == [False, True, True, False, True]


def test_a_pool_keeps_one_block_free():
    assert POOL.tokens == 64
