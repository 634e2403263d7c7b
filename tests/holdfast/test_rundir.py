"""holdfast.rundir: names of the sockets, and who may enter."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from holdfast.rundir import MAX_SOCKET_PATH_BYTES, RunDir, RunDirError, default_path


@pytest.fixture
def short():
    """A path short enough for sockets, which tmp_path may not be."""
    with tempfile.TemporaryDirectory(prefix="hf") as folder:
        yield Path(folder)


def test_names_are_the_documented_ones():
    run = RunDir(Path("/run/holdfast"))
    assert [str(path) for path in (run.keeper, run.attach, run.daemon, run.worker("a1"), run.lock)] == [
        "/run/holdfast/keeper.sock",
        "/run/holdfast/attach.sock",
        "/run/holdfast/daemon.sock",
        "/run/holdfast/worker-a1.sock",
        "/run/holdfast/keeper.lock",
    ]


def test_making_the_object_touches_nothing(short):
    RunDir(short / "run")
    assert list(short.iterdir()) == []


def test_prepare_creates_a_private_directory_whatever_the_umask(short):
    before = os.umask(0)
    try:
        run = RunDir(short / "a" / "run").prepare()
    finally:
        os.umask(before)
    assert run.path.stat().st_mode & 0o777 == 0o700
    assert run.prepare() == run


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o701, 0o777])
def test_a_directory_that_others_could_enter_is_refused_with_the_remedy(short, mode):
    path = short / "run"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(RunDirError, match=f"open to others; run: chmod 700 {path}"):
        RunDir(path).prepare()


def test_a_link_and_a_file_are_refused(short):
    (short / "real").mkdir(mode=0o700)
    (short / "link").symlink_to(short / "real")
    with pytest.raises(RunDirError, match="not a directory of this user"):
        RunDir(short / "link").prepare()
    (short / "file").touch()
    for name in ("file", "file/below"):
        with pytest.raises(RunDirError, match="cannot create run directory"):
            RunDir(short / name).prepare()


def test_the_longest_path_that_passes_is_the_longest_that_binds(short):
    """107 bytes, by the kernel's own word."""
    folder = short / ("d" * (MAX_SOCKET_PATH_BYTES - len(str(short)) - len("/") - len("/daemon.sock")))
    folder.mkdir()
    path = RunDir(folder).daemon
    assert len(os.fsencode(path)) == MAX_SOCKET_PATH_BYTES
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    longer = folder.with_name(folder.name + "d")
    longer.mkdir()
    with pytest.raises(RunDirError, match="longer than 107 bytes; choose a shorter run directory"):
        _ = RunDir(longer).daemon
    with socket.socket(socket.AF_UNIX) as listener, pytest.raises(OSError, match="too long"):
        listener.bind(str(longer / "daemon.sock"))


def test_bytes_are_counted_not_characters():
    path = Path("/" + "é" * 50)
    assert len(str(path / "daemon.sock")) < MAX_SOCKET_PATH_BYTES
    with pytest.raises(RunDirError, match="longer than"):
        _ = RunDir(path).daemon


def test_prepare_refuses_a_path_too_long_for_any_worker_before_it_creates_it(short):
    folder = short / ("d" * (MAX_SOCKET_PATH_BYTES - len(str(short)) - 25))
    assert RunDir(folder).daemon
    with pytest.raises(RunDirError, match="longer than"):
        RunDir(folder).prepare()
    assert not folder.exists()


def test_the_default_follows_the_session(monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert default_path() == Path("/run/user/7/holdfast")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    assert default_path() == Path(tempfile.gettempdir()) / f"holdfast-{os.getuid()}"
