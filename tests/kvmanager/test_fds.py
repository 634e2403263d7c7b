"""Packets with descriptors: whole or refused, never leaked; and who is at the other end."""

import array
import fcntl
import os
import socket
import subprocess
import sys

import pytest

from kvmanager import fds


@pytest.fixture
def pair():
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        yield left, right


@pytest.fixture
def memory():
    fd = os.memfd_create("test")
    os.write(fd, b"hello")
    yield fd
    os.close(fd)


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counting, not walking


def test_bytes_and_descriptors_arrive_together_and_close_on_exec(pair, memory):
    left, right = pair
    fds.send(left, b"take", (memory, memory))
    data, received = fds.receive(right)
    assert data == b"take"
    assert len(received) == 2
    for fd in received:
        assert os.pread(fd, 5, 0) == b"hello"
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    fds.close_all(received)


def test_an_end_of_file_is_empty(pair):
    left, right = pair
    left.close()
    assert fds.receive(right) == (b"", [])


@pytest.mark.parametrize("count", [2, 5, 100])
def test_more_descriptors_than_asked_for_are_refused_and_closed(pair, memory, count):
    left, right = pair
    before = open_descriptors()
    left.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memory] * count))])
    with pytest.raises(fds.PacketError):
        fds.receive(right, max_fds=1)
    assert open_descriptors() == before


def test_a_packet_over_the_limit_is_refused_not_cut(pair):
    left, right = pair
    left.sendmsg([bytes(fds.MAX_PACKET_BYTES + 1)])
    left.sendmsg([b"next"])
    with pytest.raises(fds.PacketError):
        fds.receive(right)
    assert fds.receive(right) == (b"next", [])


def test_the_largest_packet_arrives(pair):
    left, right = pair
    fds.send(left, b"x" * fds.MAX_PACKET_BYTES)
    assert len(fds.receive(right)[0]) == fds.MAX_PACKET_BYTES


def test_the_peer_is_known_by_the_kernels_word(pair):
    left, _ = pair
    assert fds.peer(left) == (os.getpid(), os.getuid(), os.getgid())
    assert fds.peer_is_ours(left)
    pidfd = fds.peer_pidfd(left)
    assert f"Pid:\t{os.getpid()}" in open(f"/proc/self/fdinfo/{pidfd}").read()  # noqa: PTH123, SIM115
    os.close(pidfd)


def test_an_older_kernel_names_the_peer_by_its_pid(pair, monkeypatch):
    monkeypatch.setattr(fds, "SO_PEERPIDFD", 9999)
    pidfd = fds.peer_pidfd(pair[0])
    assert f"Pid:\t{os.getpid()}" in open(f"/proc/self/fdinfo/{pidfd}").read()  # noqa: PTH123, SIM115
    os.close(pidfd)


def test_start_times_tell_a_process_from_its_successor():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        started = fds.start_time(process.pid)
        assert started >= fds.start_time(os.getpid()) > 0
    finally:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert fds.start_time(process.pid) == 0, "a zombie is gone"
        process.stdin.close()
        process.wait()
    assert fds.start_time(process.pid) == 0


def test_a_listening_socket_is_for_its_owner_alone_and_never_steals_a_path(tmp_path):
    path = tmp_path / "s"
    with fds.listen(path, socket.SOCK_SEQPACKET):
        assert path.stat().st_mode & 0o077 == 0
        with pytest.raises(OSError, match="in use"):
            fds.listen(path, socket.SOCK_SEQPACKET)
        with fds.connect(path, 1.0):
            pass
    with pytest.raises(ConnectionRefusedError):
        fds.connect(path, 1.0)
