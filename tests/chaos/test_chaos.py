"""Faults under load: not a token is lost, doubled or changed, and nothing that was committed is computed again.

Each run prints its seed; `python -m tests.chaos.run --seed N …` repeats it. Figures of the last run go to stdout.
"""

import json
import random
from typing import Any

import pytest

from tests.chaos.run import chaos

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


def run(counts: dict[str, int], *options: str) -> dict[str, Any]:
    found = chaos(random.SystemRandom().getrandbits(32), counts, options=options)
    print(json.dumps(found, indent=2))
    assert found["wrong"] == []
    assert found["reprefilled"] == 0
    for kind, count in counts.items():
        assert found["counted"][kind] >= 0.8 * count, "too few faults met streams in decode"
    return found


def test_sixty_workers_are_killed() -> None:
    found = run({"worker": 60})
    assert found["adoptions"] > 60
    assert found["cold_replacements"] >= 3


def test_twenty_daemons_are_killed_and_some_with_a_worker() -> None:
    run({"daemon": 20, "double": 5})


def test_workers_that_wake_after_they_were_given_up_write_where_nobody_reads() -> None:
    found = run({"zombie": 8}, "--no-kill-hung")
    assert found["late_writes"] > 0, "nobody wrote late: the test has shown nothing"


def test_gateways_are_killed_and_workers_replaced() -> None:
    run({"gateway": 5, "upgrade": 5})
