"""Exact block ids: which block is granted, evicted, cached, in which order."""

import pytest

from kvmanager.blocks import BlockPool, BlockQueue
from kvmanager.layout import MetaLayout
from kvmanager.messages import BlockRef, Release
from kvmanager.state import KvState
from kvmanager.store import Store
from tests.support.kv import Worker, buffer_for, pool_spec, sequence_id


def pool(num_blocks: int = 8) -> tuple[KvState, Worker]:
    spec = pool_spec(num_blocks, 4)
    state = KvState.create(buffer_for(spec), spec, 0)
    return state, Worker(state, "a")


def cached(state: KvState) -> list[int]:
    return list(state._parts.blocks.cached)


def test_a_queue_keeps_its_order_and_removes_from_the_middle() -> None:
    links = [0] * 6, [0] * 6
    queue, other = BlockQueue(4, *links), BlockQueue(5, *links)
    for block in (2, 0, 3):
        queue.push(block)
    other.push(1)
    queue.remove(0)
    assert list(queue) == [2, 3]
    assert (queue.pop(), queue.pop(), queue.length) == (2, 3, 0)
    assert list(other) == [1]


def test_free_blocks_are_granted_in_order_and_come_back_at_the_end() -> None:
    _, worker = pool()
    assert worker.grant(3, starving=True) == [0, 1, 2]
    worker.give_back()
    assert worker.grant(7, starving=True) == [3, 4, 5, 6, 7, 0, 1]


def test_each_grant_is_another_generation() -> None:
    _, worker = pool(2)
    worker.grant(1)
    old = worker.float[0]
    assert old == BlockRef(0, 1)
    worker.give_back()
    worker.grant(2, starving=True)
    assert worker.float == [BlockRef(1, 1), BlockRef(0, 2)]
    reply = worker.send(Release(blocks=[old]))
    assert [refusal.message for refusal in reply.refusals] == ["block 0 is in generation 2, not 1"]  # type: ignore[union-attr]


def test_a_chain_is_cached_tail_first_and_evicted_in_that_order() -> None:
    state, worker = pool()
    worker.grant(4, starving=True)
    worker.start(1, list(range(1, 13)))
    worker.step(1, 1)
    worker.finish(1)
    assert cached(state) == [2, 1, 0]
    assert state.evict(1) == 1
    assert cached(state) == [1, 0]
    assert state.describe_block(2).state == "free"


def test_free_blocks_are_granted_before_the_cache_is_touched() -> None:
    state, worker = pool(6)
    worker.grant(2, starving=True)
    worker.start(1, list(range(1, 9)))
    worker.step(1, 1)
    worker.finish(1)
    assert worker.grant(4, starving=True) == [2, 3, 4, 5]
    assert cached(state) == [1, 0]
    assert worker.grant(1, starving=True) == [1], "the leaf"
    assert (cached(state), state.evictions) == ([0], 1)


def test_the_least_recently_used_chain_goes_first_and_a_hit_renews_it() -> None:
    state, worker = pool()
    worker.grant(4, starving=True)
    for number, first in ((1, 10), (2, 20)):
        worker.now_ns += 1
        worker.start(number, [first] * 8)
        worker.step(number, 1)
        worker.finish(number)
    assert cached(state) == [1, 0, 3, 2]
    worker.now_ns += 1
    worker.start(3, [10] * 9, 1)
    worker.finish(3)
    assert cached(state) == [3, 2, 1, 0]


def test_a_shared_block_is_counted_and_cached_after_its_last_user() -> None:
    state, worker = pool()
    worker.grant(3, starving=True)
    worker.start(1, [1] * 8)
    worker.step(1, 1)
    worker.start(2, [1] * 9)
    assert (state.describe_block(0).refcount, state.counts().shared) == (2, 2)
    worker.finish(1)
    assert (state.describe_block(0).refcount, state.counts().shared, cached(state)) == (1, 0, [])
    worker.finish(2)
    assert cached(state) == [1, 0]


def test_a_tail_is_free_at_its_release_and_not_before() -> None:
    state, worker = pool()
    worker.grant(1)
    worker.start(1, [1, 2])
    worker.step(1, 3)
    worker.finish(1, release=False)
    assert (state.counts().tail, state.counts().free) == (1, 7)
    worker.release(1)
    assert (state.counts().tail, state.counts().free) == (0, 8)


def test_describe_tells_a_blocks_place_in_its_chain() -> None:
    state, worker = pool()
    worker.grant(2, starving=True)
    worker.start(1, [1, 2, 3, 4, 5, 6, 7, 8])
    worker.step(1, 9)
    first, second = state.describe_block(0), state.describe_block(1)
    assert (second.depth, second.parent_hash, second.token_ids) == (1, first.hash, [5, 6, 7, 8])
    assert (second.state, second.holder, second.indexed) == ("sealed", "", True)
    assert second.sequences == [sequence_id(1).hex()]


def test_listing_leaves_out_free_blocks_unless_asked() -> None:
    state, worker = pool()
    worker.grant(2, starving=True)
    assert [(b.id, b.state, b.holder) for b in state.blocks()] == [(0, "granted", "a"), (1, "granted", "a")]
    assert [b.id for b in state.blocks("free", start=5)] == [5, 6, 7]


def test_wrong_calls_of_ours_do_not_pass() -> None:
    spec = pool_spec()
    layout = MetaLayout(spec)
    blocks = BlockPool(layout, Store(buffer_for(spec), layout))
    for call in (
        lambda: blocks.open_tail(0),
        lambda: blocks.share(0),
        lambda: blocks.take(17, 1),
        blocks.evict,
    ):
        with pytest.raises(AssertionError):
            call()
