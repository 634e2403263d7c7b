"""The protocol's rules, one by one: with all of them no promise is broken; without any one of them some promise is."""

import pytest

from tests.model.rules import NAMES, Rules
from tests.model.search import Result, Search
from tests.model.state import Bounds
from tests.model.world import World

ZOMBIE = Bounds(stops=1, wakes=1)
RESTART = Bounds(restarts=1)
HAND_OVER = Bounds(hands=1)
TWO = ((1, 2), (1, 2))

CONTENT = "committed slot 0 of s0 does not hold its own content"
KEPT = "block {}, which is sealed or kept for a copy"

# A small world in which a rule is missed, and the promise that breaks without it.
MISSED = {
    "stored_grants": (RESTART._replace(lengths=TWO), "block 0 can be written by w0 for two purposes"),
    "by_value": (ZOMBIE, "w0 writes a committed slot of s0"),
    "show_after_record": (Bounds(), "2 tokens of s0 are shown, 1 are recorded"),
    "commit_after_done": (Bounds(), CONTENT),
    "fresh_tail": (ZOMBIE, "block 0 can be written by w0 and w1"),
    "adopt_at_first_sign": (Bounds(stops=1), "cannot be finished without the stopped worker"),
    "reserve": (Bounds(stops=1, blocks=2), "s0 cannot be adopted: nothing is kept back for its tail"),
    "orders_stay": (Bounds(stops=1, restarts=1), CONTENT),
    "source_stays": (Bounds(stops=1, lengths=((1, 3), (1, 2))), CONTENT),
    "orders_from_source": (Bounds(workers=3, stops=2, blocks=5), CONTENT),
    "release_by_owner": (Bounds(depth=2, surplus=True, lengths=TWO), "block 0 can be written by w0 and w1"),
    "quarantine_until_proof": (ZOMBIE, "block 0 can be written by w0 and w1"),
    "fenced_after_sync": (HAND_OVER, "w0 writes " + KEPT.format(0)),
    "only_above_kv_len": (Bounds(stops=1, lengths=((1, 4),)), "w1 writes a committed slot of s0"),
    "numbered": (RESTART, "has leaked"),
    "verdicts": (RESTART._replace(refusals=1), "2 tokens of s0 are shown, 1 are recorded"),
    "holdings_in_stream": (RESTART, "block 0 can be written by w0 for two purposes"),
    "fenced": (ZOMBIE, "w1 writes " + KEPT.format(2)),
    "redo": (RESTART, "slot 0 of s0 is committed and has no block"),
    "generations": (RESTART._replace(gives=1), "has leaked"),
}  # fmt: skip


def search(rules: Rules, bounds: Bounds, most: int = 100_000) -> Result:
    return Search(World(rules, bounds), most).run()


@pytest.mark.parametrize("name", NAMES)
def test_without_the_rule_a_promise_is_broken(name: str) -> None:
    bounds, promise = MISSED[name]
    result = search(Rules().without(name), bounds)
    print(f"without {name}: {result}")
    assert promise in result.violation
    assert 5 < len(result.trace) < 40 or name == "adopt_at_first_sign"


@pytest.mark.parametrize(
    "bounds",
    [
        ZOMBIE,
        RESTART,
        HAND_OVER,
        Bounds(stops=1, hands=1),
        Bounds(stops=1, blocks=5, lengths=((1, 4),)),
        pytest.param(Bounds(depth=2, surplus=True, lengths=TWO), marks=pytest.mark.full),
        pytest.param(RESTART._replace(gives=1), marks=pytest.mark.full),
    ],
    ids=str,
)
def test_with_all_rules_everything_that_can_happen_keeps_all_promises(bounds: Bounds) -> None:
    result = search(Rules(), bounds)
    print(result)
    assert result.violation == "", str(result)
    assert result.states > 1000


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "bounds",
    [
        ZOMBIE._replace(eager=False),
        ZOMBIE._replace(restarts=1, lengths=((1, 2),)),
        HAND_OVER._replace(restarts=1),
        RESTART._replace(refusals=1, lengths=((1, 4),)),
        RESTART._replace(lengths=TWO),
        Bounds(stops=1, restarts=1),
        Bounds(stops=1, blocks=5, lengths=((1, 3), (1, 2))),
    ],
    ids=str,
)
def test_larger_worlds_keep_all_promises_too(bounds: Bounds) -> None:
    result = search(Rules(), bounds, 1_500_000)
    assert result.violation == "", str(result)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "bounds",
    [
        Bounds(workers=3, stops=2, wakes=1, blocks=5),
        Bounds(
            stops=1, wakes=1, restarts=1, refusals=1, gives=1, depth=2, surplus=True, lengths=((1, 4), (1, 3))
        ),
    ],
    ids=str,
)
def test_worlds_that_are_too_large_keep_all_promises_as_far_as_one_looks(bounds: Bounds) -> None:
    """Only what must be true in every state: the ends are not in sight."""
    result = Search(World(Rules(), bounds), 400_000, whole=False).run()
    assert result.violation == "", str(result)
