"""What is evicted: the least recently used first, and nothing before the cached blocks that follow it."""

import pytest

from kvmanager.blocks import BlockPool
from kvmanager.state import KvState
from tests.support.kv import (
    Worker,
    clean,  # noqa: F401 - used by every test
    pool,
)
from tests.support.storm import Storm


def run(worker: Worker, number: int, prompt: list[int], at: int, **terms: object) -> None:
    """Computes a prompt at a time, and two tokens behind it; the row stays."""
    worker.now_ns = at
    worker.start(number, prompt, **terms)
    worker.grant(6, starving=True)
    worker.step(number, 1)
    worker.give_back()


def end(worker: Worker, number: int, at: int) -> None:
    worker.now_ns = at
    worker.finish(number)


def order(state: KvState) -> list[list[int]]:
    """The tokens of the cached blocks, in the order of their eviction."""
    found = []
    while state.counts().cached:
        before = {block.id for block in state.blocks("sealed")}
        tokens = {block: state.describe_block(block).token_ids for block in before}
        assert state.evict(1) == 1
        [gone] = before - {block.id for block in state.blocks("sealed")}
        found.append(tokens[gone])
        assert state.check_integrity() == []
    return found


def test_chains_lose_their_ends_first_and_the_least_recently_used_before_others() -> None:
    state, worker = pool(24)
    run(worker, 1, [1] * 8, 1)
    run(worker, 2, [2] * 8, 2)
    end(worker, 2, 3)
    end(worker, 1, 4)
    run(worker, 3, [2] * 5, 5)
    end(worker, 3, 6)
    assert order(state) == [[2] * 4, [1] * 4, [1] * 4, [2] * 4]
    assert state.evictions == 4


def test_the_end_of_a_private_twin_is_a_use_of_the_block_that_is_found() -> None:
    """What the second sequence sealed behind its own copies follows the first one's blocks: it goes before them."""
    state, worker = pool(24)
    run(worker, 1, [1] * 8, 1)
    run(worker, 2, [1] * 8 + [5] * 4, 2, bypass_prefix=True)
    run(worker, 3, [9] * 4, 3)
    end(worker, 1, 4)
    end(worker, 3, 5)
    end(worker, 2, 6)
    assert state.check_integrity() == []
    assert order(state) == [[9] * 4, [5] * 4, [1] * 4, [1] * 4]


def test_the_end_of_a_fork_is_a_use_of_the_twins_of_what_it_shares() -> None:
    """The parent still runs on its private blocks; what the fork sealed behind them hangs at those that are found."""
    state, worker = pool(24)
    run(worker, 1, [1] * 8, 1)
    run(worker, 2, [1] * 8, 2, bypass_prefix=True)
    end(worker, 1, 3)
    worker.grant(1)
    worker.now_ns = 4
    assert not worker.commit(worker.fork(3, 2, 8, [7] * 5)).refusals
    end(worker, 3, 5)
    assert state.check_integrity() == []
    assert order(state) == [[7] * 4, [1] * 4, [1] * 4]
    end(worker, 2, 6)
    worker.give_back()


@pytest.mark.parametrize("seed", [1, 2])
def test_in_a_storm_nothing_is_evicted_before_what_follows_it(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the rule said plainly: the front is the least recently used of those that no cached block follows."""
    evicted = []
    evict = BlockPool.evict

    def checked(self: BlockPool) -> int:
        cached = list(self.cached)
        followed = {self.parent[block] for block in cached}
        leaves = [block for block in cached if self.link(block) not in followed]
        assert cached[0] == min(leaves, key=lambda block: (self.last_use[block], cached.index(block)))
        evicted.append(cached[0])
        return evict(self)

    monkeypatch.setattr(BlockPool, "evict", checked)
    storm = Storm(seed=seed)
    storm.run(8000)
    assert len(evicted) > 500
    storm.stop()
