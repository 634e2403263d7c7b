"""The names of workers' sockets: one process holds each, and what killed ones left is removed."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import rmtree

import pytest

from compute.socket_name import give_back, take
from kvmanager.errors import Conflict

HOLD = """
import sys
from pathlib import Path
from compute.socket_name import take
take(Path(sys.argv[1]))
Path(sys.argv[1]).touch()
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hf"))
    yield path
    rmtree(path)


def killed_holder(socket: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(socket)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_name_is_held_by_one_at_a_time(folder: Path) -> None:
    fd = take(folder / "worker-a.sock")
    with pytest.raises(Conflict, match="worker-a"):
        take(folder / "worker-a.sock")
    give_back(folder / "worker-a.sock", fd)
    give_back(folder / "worker-a.sock", take(folder / "worker-a.sock"))
    assert names(folder) == []


def test_what_a_killed_holder_left_is_removed_and_what_others_hold_is_not(folder: Path) -> None:
    other = take(folder / "worker-other.sock")
    (folder / "worker-other.sock").touch()
    (folder / "keeper.lock").touch()
    killed_holder(folder / "worker-killed.sock")
    assert names(folder)[1:3] == ["worker-killed.lock", "worker-killed.sock"]
    own = take(folder / "worker-own.sock")
    assert names(folder) == ["keeper.lock", "worker-other.lock", "worker-other.sock", "worker-own.lock"]
    give_back(folder / "worker-own.sock", own)
    give_back(folder / "worker-other.sock", other)


def test_a_killed_holders_name_can_be_taken_again(folder: Path) -> None:
    killed_holder(folder / "worker-a.sock")
    give_back(folder / "worker-a.sock", take(folder / "worker-a.sock"))


def test_nobody_finds_its_name_taken_by_one_that_cleans_up(folder: Path) -> None:
    """Eight take and give back names of their own while each removes what it takes for the others' leftovers."""

    def come_and_go(number: int) -> None:
        socket = folder / f"worker-{number}.sock"
        for _ in range(100):
            fd = take(socket)
            assert socket.with_suffix(".lock").exists()
            give_back(socket, fd)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(come_and_go, range(8)))
    assert names(folder) == []
