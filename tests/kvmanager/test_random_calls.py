"""Allocator, tables and forks under a storm of random calls: no slot changes, no block has two users, nothing leaks."""

import pytest

from tests.support.storm import Storm


@pytest.mark.parametrize(
    "calls", [60_000, pytest.param(1_000_000, marks=[pytest.mark.full, pytest.mark.timeout(900)])]
)
def test_a_storm_of_calls_changes_no_committed_slot_grants_nothing_twice_and_leaks_nothing(
    calls: int,
) -> None:
    storm = Storm(seed=7)
    storm.run(calls)
    assert storm.state.evictions > calls // 1000, "the pool was never full"
    assert storm.revokes > 0
    assert storm.hits > calls // 1000, "no prefix was ever shared"
    assert storm.forks > calls // 100, "nothing was forked"
    assert storm.held_forks > calls // 1000, "no parent had ended before"
    assert storm.ledger.late_writes > calls // 100, "nobody wrote late"
    storm.stop()
