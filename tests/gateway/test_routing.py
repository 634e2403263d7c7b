"""Which worker takes the next sequence, and when the service counts as serving."""

from dataclasses import replace

import pytest

from gateway.routing import Members, Pool, Worker, WorkerKey, choose
from kvmanager.messages import WorkerState

POOL = Pool(
    name="p",
    model="m",
    fingerprint="",
    max_model_len=9,
    vocab_size=9,
    dtype="",
    device="cpu",
    num_blocks=5,
    block_size=16,
)


def worker(name, **fields):
    given = {"model": "m", "pool": "p", "state": WorkerState.READY, "endpoint": f"/{name}"}
    return Worker(**({"key": WorkerKey(name, "s")} | given | fields))


GPU = replace(POOL, name="g", device="GPU-1")
OTHER_GPU = replace(POOL, name="h", device="GPU-2")


def members(*workers):
    return Members({w.key: w for w in workers}, {pool.name: pool for pool in (POOL, GPU, OTHER_GPU)})


def chosen(*workers, own=None, avoid=()):
    found = choose(members(*workers), "m", own or {}, avoid)
    return found and found.key.id


def test_the_least_loaded_worker_is_chosen():
    assert chosen(worker("a", load=3), worker("b", load=1), worker("c", load=2)) == "b"


def test_of_the_workers_of_a_gpu_the_active_one_is_chosen():
    assert chosen(worker("a", pool="g"), worker("b", pool="g", load=7)) == "b"
    assert chosen(worker("a", pool="g"), worker("b", pool="g")) == "a"  # whoever asks
    own = {WorkerKey("b", "s"): 1}
    assert chosen(worker("a", pool="g"), worker("b", pool="g"), own=own) == "b"


def test_a_warm_worker_takes_over_when_the_active_one_is_sick_or_avoided():
    warm = worker("a", pool="g")
    assert chosen(warm, worker("b", pool="g", load=7, age_ms=9000)) == "a"
    assert chosen(warm, worker("b", pool="g", load=7), avoid={WorkerKey("b", "s")}) == "a"


def test_of_two_gpus_the_one_with_less_to_do_is_chosen():
    first = worker("a", pool="g", load=3), worker("b", pool="g", load=1)
    second = worker("c", pool="h", load=2), worker("d", pool="h")
    assert chosen(*first, *second) == "c"
    assert chosen(*first, worker("c", pool="h", load=5)) == "a"


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


def test_a_session_names_its_living_worker():
    found = members(worker("a"), worker("b", state=WorkerState.LOST))
    found.workers[WorkerKey("c", "t")] = worker("c", key=WorkerKey("c", "t"))
    assert found.of_session("t").key.id == "c"
    assert found.of_session("s").key.id == "a"
    assert found.of_session("u") is None


def test_a_pool_keeps_one_block_free():
    assert POOL.tokens == 64
