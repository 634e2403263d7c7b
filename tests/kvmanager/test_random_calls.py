"""Allocator and tables under a storm of random calls: nothing is granted twice, nothing leaks."""

import pytest

from tests.support.storm import Storm


@pytest.mark.parametrize(
    "calls", [60_000, pytest.param(1_000_000, marks=[pytest.mark.full, pytest.mark.timeout(900)])]
)
def test_a_storm_of_calls_neither_grants_twice_nor_leaks(calls: int) -> None:
    storm = Storm(seed=7)
    storm.run(calls)
    assert storm.state.evictions > calls // 1000, "the pool was never full"
    assert storm.revokes > 0
    assert storm.hits > calls // 1000, "no prefix was ever shared"
    assert storm.copies > calls // 1000, "no block was begun with a copy"
    assert storm.retries > calls // 1000, "nobody waited for another's prefix"
    assert storm.forks > calls // 1000, "nothing was forked"
    storm.stop()
