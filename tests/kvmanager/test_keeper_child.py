"""How the keeper's children end, and what the next one is told: fast crashes in a row, steady ones forgotten."""

import sys
from contextlib import contextmanager

import pytest

from tests.kvmanager.processes import Keeper, eventually

CHILD = """
import json, os, pathlib, sys, time
from kvmanager.keeper_link import KeeperLink
told = list(sys.stdin.buffer.read(1))
print(json.dumps({"message": "child", "told": told, "rest": len(sys.stdin.buffer.read())}), file=sys.stderr, flush=True)
lives, code = float(sys.argv[2]), int(sys.argv[3])
if lives:
    link, until = KeeperLink(pathlib.Path(sys.argv[1])), time.monotonic() + lives
    link.claim()
    while time.monotonic() < until:
        link.beat(serving="serving" in sys.argv)
        time.sleep(0.1)
    link.names()
    link.close()
os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)
"""


@contextmanager
def children(lives, code, *how):
    """A keeper whose children beat for some time and end."""
    keeper = ChildKeeper(str(lives), str(code), *how)
    try:
        yield keeper
    finally:
        keeper.close()


class ChildKeeper(Keeper):
    def command(self, *child):
        return super().command(sys.executable, "-c", CHILD, str(self.path / "keeper.sock"), *child)


def told(keeper, count):
    """What the first children read from their input: one byte, and its end."""
    lines = eventually(lambda: keeper.log("child"), lambda lines: len(lines) >= count)[:count]
    assert [line["rest"] for line in lines] == [0] * count
    return [number for line in lines for number in line["told"]]


def pauses(keeper):
    return [line["after_s"] for line in keeper.log("daemon died")]


def test_a_child_is_told_how_many_before_it_crashed_fast_and_waits_longer_each_time():
    with children(0.01, 1) as keeper:
        assert told(keeper, 5) == [0, 1, 2, 3, 4]
        assert pauses(keeper)[:4] == [0.1, 0.2, 0.4, 0.8]


@pytest.mark.parametrize(
    ("lives", "code"), [(0, 1), (0.01, 0), (0.01, -9)], ids=["never beat", "ended well", "killed by another"]
)
def test_what_is_no_crash_is_not_counted_and_waited_for_all_the_same(lives, code):
    with children(lives, code) as keeper:
        assert told(keeper, 4) == [0, 0, 0, 0]
        assert pauses(keeper)[:3] == [0.1, 0.2, 0.4]


def test_a_daemon_that_served_for_a_second_is_steady_and_replaced_at_once():
    with children(1.3, 1, "serving") as keeper:
        assert told(keeper, 3) == [0, 0, 0]
        assert pauses(keeper)[:2] == [0.05, 0.05]


def test_one_that_only_recovers_for_as_long_is_not():
    """Long recoveries beat too; the crash may still be one of the metadata."""
    with children(1.3, 1) as keeper:
        assert told(keeper, 3) == [0, 1, 2]
