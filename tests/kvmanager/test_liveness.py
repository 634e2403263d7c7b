"""Who is silent for too long: by state, by its own bound, and never by time in which nobody listened."""

import pytest

from kvmanager.liveness import BUSY_NS, GAP_NS, MS, Watch
from kvmanager.messages import Heartbeat, WorkerState

SESSION = bytes(16)
READY = WorkerState.READY
LONG_NS = 60_000 * MS


class Clock:
    """Polls the watch every 100 ms."""

    def __init__(self):
        self.now = 10**12
        self.watch = Watch(self.now)
        self.watch.add(SESSION)

    def hear(self, **fields):
        return self.watch.hear(SESSION, Heartbeat(**{"state": READY, **fields}))

    def listen(self, ns):
        end = self.now + ns
        while self.now < end:
            self.now = min(self.now + 100 * MS, end)
            self.watch.polled(self.now)

    def sleep(self, ns):
        """The daemon does not run."""
        self.now += ns
        self.watch.polled(self.now)

    @property
    def silent(self):
        return [session for session, _ in self.watch.silent()]


@pytest.fixture
def clock():
    return Clock()


@pytest.mark.parametrize("state", [WorkerState.WARMING, WorkerState.COMPILING, WorkerState.CAPTURING])
def test_nothing_is_expected_while_a_worker_prepares(clock, state):
    clock.hear(state=state, busy=True)
    clock.listen(LONG_NS)
    assert clock.silent == []


def test_a_new_session_is_warming(clock):
    clock.listen(LONG_NS)
    assert clock.silent == []


def test_a_busy_worker_that_says_nothing_is_silent_after_its_bound(clock):
    clock.hear(busy=True, step=1)
    clock.listen(BUSY_NS)
    assert clock.silent == []
    clock.listen(1 * MS)
    assert clock.silent == [SESSION]


def test_heartbeats_without_progress_do_not_count_for_a_busy_worker(clock):
    clock.hear(busy=True, step=7)
    for _ in range(15):
        clock.listen(100 * MS)
        clock.hear(busy=True, step=7)
    assert clock.silent == []
    clock.listen(100 * MS)
    clock.hear(busy=True, step=7)
    assert clock.silent == [SESSION]


def test_progress_counts(clock):
    for step in range(100):
        clock.hear(busy=True, step=step)
        clock.listen(1000 * MS)
    assert clock.silent == []


def test_a_worker_may_ask_for_more_time_but_not_for_less(clock):
    clock.hear(busy=True, bound_ms=5000)
    clock.listen(5000 * MS)
    assert clock.silent == []
    clock.hear(busy=True, step=1, bound_ms=10)
    clock.listen(BUSY_NS)
    assert clock.silent == []


def test_becoming_busy_starts_the_count(clock):
    clock.hear(busy=False, step=3)
    clock.listen(LONG_NS)
    clock.hear(busy=True, step=3)
    clock.listen(BUSY_NS)
    assert clock.silent == []


@pytest.mark.parametrize("held", ["running", "waiting"])
def test_a_worker_frozen_between_two_steps_is_silent_after_its_bound(clock, held):
    clock.hear(busy=False, step=3, **{held: 1})
    clock.listen(BUSY_NS)
    assert clock.silent == []
    clock.listen(1 * MS)
    assert clock.silent == [SESSION]


def test_a_worker_whose_sequences_wait_for_blocks_need_not_step(clock):
    for _ in range(100):
        clock.hear(busy=False, step=3, running=1)
        clock.listen(100 * MS)
        assert clock.silent == []


def test_an_idle_worker_is_not_judged(clock):
    clock.hear(busy=False)
    clock.listen(LONG_NS)
    assert clock.silent == []


def test_time_in_which_nobody_listened_does_not_count(clock):
    clock.hear(busy=True, step=1)
    clock.sleep(3600 * 1000 * MS)
    assert clock.silent == []
    clock.listen(BUSY_NS - GAP_NS)
    assert clock.silent == []
    clock.listen(100 * MS)
    assert clock.silent == [SESSION]


def test_a_clock_that_steps_back_does_no_harm(clock):
    clock.hear(busy=True)
    clock.sleep(-(10**15))
    assert clock.watch.watched == 0


def test_hearing_says_whether_the_state_changed(clock):
    assert clock.hear(state=READY)
    assert not clock.hear(state=READY, step=5, busy=True)
    assert clock.hear(state=WorkerState.DRAINING)


def test_a_removed_session_is_never_silent(clock):
    clock.hear(busy=True)
    clock.watch.remove(SESSION)
    clock.watch.remove(SESSION)
    clock.listen(LONG_NS)
    assert clock.silent == []
