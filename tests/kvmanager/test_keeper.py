"""The keeper: what it holds outlives who gave it, and one run directory has one keeper."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvmanager import fds
from kvmanager.keeper_link import KeeperBusyError, KeeperError, KeeperLink
from tests.kvmanager.processes import ENVIRON, PATIENCE_S, ROOT, Keeper, eventually, listens


@pytest.fixture
def keeper():
    keeper = Keeper()
    yield keeper
    keeper.close()


@pytest.fixture
def link(keeper):
    link = KeeperLink(keeper.socket)
    yield link
    link.close()


def memory(data):
    fd = os.memfd_create("test")
    os.write(fd, data)
    return fd


def test_what_was_put_can_be_got_listed_and_dropped_by_a_stranger(keeper, link):
    fd = memory(b"first")
    link.put("meta.a", fd)
    link.put("pool.a", fd)
    os.close(fd)
    link.close()
    other = KeeperLink(keeper.socket)
    assert other.names() == ["meta.a", "pool.a"]
    got = other.get("meta.a")
    assert os.pread(got, 5, 0) == b"first"
    os.close(got)
    other.drop("meta.a")
    assert other.names() == ["pool.a"]
    with pytest.raises(KeeperError, match="nothing of that name"):
        other.get("meta.a")
    other.close()


def test_putting_again_replaces_and_leaks_nothing(keeper, link):
    fd = memory(b"x")
    link.put("a", fd)
    before = len(list(Path(f"/proc/{keeper.process.pid}/fd").iterdir()))
    for _ in range(20):
        link.put("a", fd)
    assert len(list(Path(f"/proc/{keeper.process.pid}/fd").iterdir())) == before
    os.close(fd)


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", "x" * 81, "attach.sock", "daemon.sock"])
def test_names_are_bounded_and_the_listening_sockets_stay(link, name):
    fd = memory(b"x")
    with pytest.raises(KeeperError, match="not a name"):
        link.put(name, fd)
    os.close(fd)
    with pytest.raises(KeeperError):
        link.drop("attach.sock")
    os.close(link.get("attach.sock"))


def test_it_holds_a_bounded_number(link):
    fd = memory(b"x")
    for number in range(256):
        link.put(f"n{number}", fd)
    with pytest.raises(KeeperError, match="256"):
        link.put("one-more", fd)
    assert len(link.names()) == 256
    os.close(fd)


def test_beats_need_no_waiting_and_only_one_may_beat(keeper, link):
    link.claim()
    for _ in range(50):
        link.beat()
    assert link.names() == []
    second = KeeperLink(keeper.socket)
    with pytest.raises(KeeperBusyError, match="another daemon"):
        second.claim()
    link.close()
    eventually(lambda: claims(second))
    second.close()


def claims(link):
    try:
        link.claim()
    except KeeperBusyError:
        return False
    return True


@pytest.mark.chaos
def test_who_beats_is_not_judged_by_time_in_which_the_keeper_was_stopped_too(keeper):
    """A paused container, a suspended host: after it, the daemon has its time again."""
    command = [sys.executable, "-c", CLAIMS, str(keeper.socket)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as daemon:
        assert daemon.stdout.readline() == b"claimed\n"
        for process in (daemon, keeper.process):
            process.send_signal(signal.SIGSTOP)
        time.sleep(6.0)  # beyond the bound
        keeper.process.send_signal(signal.SIGCONT)
        stranger = KeeperLink(keeper.socket)
        assert stranger.names() == []  # it looked around
        stranger.close()
        assert daemon.poll() is None
        daemon.send_signal(signal.SIGCONT)
        daemon.stdin.close()
        assert daemon.wait(PATIENCE_S) == 0


CLAIMS = """
import pathlib, sys
from kvmanager.keeper_link import KeeperLink
link = KeeperLink(pathlib.Path(sys.argv[1]))
link.claim()
print("claimed", flush=True)
sys.stdin.read()
"""


def test_a_second_keeper_is_refused_and_harms_nothing(keeper, link):
    second = subprocess.run(
        keeper.command(),
        check=False,
        env=ENVIRON,
        cwd=ROOT,
        timeout=PATIENCE_S,
        capture_output=True,
        text=True,
    )
    assert second.returncode == 7
    assert f"another keeper runs in {keeper.path}, pid {keeper.process.pid}" in second.stderr
    assert link.names() == []
    with fds.connect(keeper.path / "attach.sock", PATIENCE_S):
        pass


def test_sockets_of_a_keeper_that_was_killed_are_replaced(keeper):
    keeper.process.kill()
    keeper.process.wait()
    assert keeper.socket.exists()
    again = subprocess.Popen(keeper.command(), stderr=subprocess.DEVNULL, env=ENVIRON, cwd=ROOT)
    try:
        eventually(lambda: listens(keeper.socket))
    finally:
        again.terminate()
        assert again.wait(PATIENCE_S) == 0


def test_a_child_that_dies_is_started_again_with_growing_pauses():
    keeper = Keeper(sys.executable, "-c", "raise SystemExit(1)")
    starts = eventually(lambda: keeper.log("daemon died"), lambda lines: len(lines) >= 4)
    pauses = [line["after_s"] for line in starts[:4]]
    assert pauses == sorted(pauses)
    assert pauses[3] > pauses[0]
    keeper.close()


def test_a_child_whose_settings_are_wrong_is_not_started_again():
    keeper = Keeper(sys.executable, "-c", "raise SystemExit(2)")
    assert keeper.process.wait(PATIENCE_S) == 2
    assert len(keeper.log("daemon started")) == 1
    keeper.close()


def test_sigterm_is_passed_on_and_waited_for():
    child = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(0)); print(flush=True); time.sleep(99)"
    keeper = Keeper(sys.executable, "-c", child)
    pid = eventually(lambda: keeper.log("daemon started"))[0]["pid"]
    keeper.process.send_signal(signal.SIGTERM)
    assert keeper.process.wait(PATIENCE_S) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not keeper.socket.exists()
    keeper.close()


CHILD = """
import pathlib, signal, sys, time
from kvmanager.keeper_link import KeeperLink
ended, lived, lingers = False, float(sys.argv[2]), float(sys.argv[3])
def end(*_):
    global ended
    ended = True
signal.signal(signal.SIGTERM, end)
link, until = KeeperLink(pathlib.Path(sys.argv[1])), time.monotonic() + lived
while not ended and time.monotonic() < until:
    link.claim()
    time.sleep(0.05)
link.close()
time.sleep(lingers)
"""
QUICK = """
import sys
from kvmanager import keeper, keeper_child
keeper_child.START_BOUND_S, keeper_child.BEAT_BOUND_S, keeper_child.STOP_BOUND_S = (float(s) for s in sys.argv[1:4])
keeper.BEAT_BOUND_S = keeper_child.BEAT_BOUND_S
sys.exit(keeper.main(sys.argv[4:]))
"""


class QuickKeeper(Keeper):
    """With other bounds, and a daemon that beats for some time, closes its connection, and lingers."""

    def __init__(self, *, bounds, lives, lingers):
        self.bounds, self.child = bounds, (lives, lingers)
        super().__init__()
        eventually(lambda: self.log("daemon started"))

    def command(self):
        place, (lives, lingers) = str(self.path), self.child
        child = [sys.executable, "-c", CHILD, place + "/keeper.sock", str(lives), str(lingers)]
        return [sys.executable, "-c", QUICK, *map(str, self.bounds), place, "json", "debug", *child]


def test_a_daemon_that_ends_when_told_is_not_killed_however_long_it_lived():
    """It closes its connection before it exits; that is no daemon that never started."""
    keeper = QuickKeeper(bounds=(3.0, 2.0, 30.0), lives=99, lingers=2.5)
    eventually(lambda: claimed_by_another(keeper))
    time.sleep(3.1)  # beyond the bound for a first beat
    keeper.process.terminate()
    assert keeper.process.wait(PATIENCE_S) == 0
    assert [line["code"] for line in keeper.log("daemon ended")] == [0]
    assert not [line for line in keeper.log("") if line["level"] == "error"]
    keeper.close()


def claimed_by_another(keeper):
    link = KeeperLink(keeper.socket)
    try:
        return not claims(link)
    finally:
        link.close()


def test_a_daemon_that_leaves_its_keeper_and_goes_on_is_killed_for_its_silence():
    keeper = QuickKeeper(bounds=(60.0, 2.0, 5.0), lives=0.3, lingers=99)
    assert eventually(lambda: keeper.log("the daemon is silent"))
    assert eventually(lambda: keeper.log("daemon died"))[0]["code"] == -signal.SIGKILL
    assert not keeper.log("did not start")
    keeper.close()


def test_a_daemon_that_never_beats_is_killed_after_the_bound_for_its_start():
    keeper = QuickKeeper(bounds=(0.5, 60.0, 5.0), lives=0, lingers=99)
    assert eventually(lambda: keeper.log("the daemon did not start"))
    assert eventually(lambda: keeper.log("daemon died"))[0]["code"] == -signal.SIGKILL
    keeper.close()


def test_a_daemon_that_does_not_end_when_told_is_killed_after_the_bound_for_that():
    keeper = QuickKeeper(bounds=(60.0, 60.0, 0.5), lives=99, lingers=99)
    eventually(lambda: claimed_by_another(keeper))
    keeper.process.terminate()
    assert keeper.process.wait(PATIENCE_S) == 0
    assert keeper.log("the daemon does not end")
    assert [line["code"] for line in keeper.log("daemon ended")] == [-signal.SIGKILL]
    keeper.close()


def test_it_imports_the_standard_library_only():
    code = "import sys, kvmanager.keeper; print(*({n.split('.')[0] for n in sys.modules} - sys.stdlib_module_names))"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert set(done.stdout.split()) <= {"__main__", "_distutils_hack", "holdfast", "kvmanager"} | editable(
        done.stdout
    )


def editable(names):
    """What the installer of the development tree leaves in site-packages' start-up files."""
    return {name for name in names.split() if name.startswith("_") and "editable" in name}
