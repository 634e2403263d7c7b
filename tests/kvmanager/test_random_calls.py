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
    assert storm.evictions > calls // 1000, "the pool was never full"
    assert storm.ledger.late_writes > calls // 100, "nobody wrote late"
    seen = storm.happened
    often = "forks", "held forks", "hits", "copies", "retries", "adopted", "tails copied"
    assert min(seen[what] for what in often) > calls // 1000, seen
    seldom = "tails kept", "copied again", "handed over", "abandoned", "revokes", "restarts", "poisoned"
    assert min(seen[what] for what in seldom) > calls // 10_000, seen
    assert seen["waits"] + seen["waits alone"] > calls // 100_000, "no adoption ever waited"
    storm.stop()
