"""Packets with file descriptors over SOCK_SEQPACKET unix sockets, and who is at the other end.

Standard library only: the keeper uses it. Every descriptor received is close-on-exec; a packet that was truncated,
in bytes or in descriptors, is refused whole and leaks nothing.
"""

import array
import os
import select
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

MAX_PACKET_BYTES: Final = 64 * 1024
MAX_FDS: Final = 4
SO_PEERPIDFD: Final = 77  # Linux 6.5; the socket module does not name it yet


class PacketError(ValueError):
    """The peer sent a packet that this side does not accept; drop the peer."""


class Peer(NamedTuple):
    """Who connected, by the kernel's word, at the time of the connect."""

    pid: int
    uid: int
    gid: int


def send(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """One packet. OSError as from sendmsg; nothing is ever sent in part."""
    assert 0 < len(data) <= MAX_PACKET_BYTES, f"packet of {len(data)} bytes"
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket, max_fds: int = MAX_FDS) -> tuple[bytes, list[int]]:
    """The next packet and its descriptors, now the caller's to close. Empty bytes: the peer closed its end."""
    room = socket.CMSG_SPACE(max(max_fds, 1) * array.array("i").itemsize)
    data, rights, flags, _ = sock.recvmsg(MAX_PACKET_BYTES + 1, room, socket.MSG_CMSG_CLOEXEC)
    fds = _descriptors(rights)
    truncated = flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
    if truncated or len(fds) > max_fds or len(data) > MAX_PACKET_BYTES or (fds and not data):
        close_all(fds)
        raise PacketError(f"packet of {len(data)} bytes, {len(fds)} descriptors, flags {flags:#x}")
    return data, fds


def _descriptors(rights: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def listen(path: Path, kind: socket.SocketKind, backlog: int = 256) -> socket.socket:
    """A listening socket at `path`, which must not exist; reachable by this user alone."""
    sock = socket.socket(socket.AF_UNIX, kind)
    old = os.umask(0o077)
    try:
        sock.bind(os.fspath(path))
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(old)
    return sock


def connect(path: Path, timeout_s: float | None) -> socket.socket:
    """A connected SOCK_SEQPACKET socket. OSError if nobody listens there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(timeout_s)
    try:
        sock.connect(os.fspath(path))
    except OSError:
        sock.close()
        raise
    return sock


def peer(sock: socket.socket) -> Peer:
    credentials = array.array("i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(*credentials)


def peer_is_ours(sock: socket.socket) -> bool:
    """Whether the other end runs as this user."""
    return peer(sock).uid == os.getuid()


def peer_pidfd(sock: socket.socket) -> int:
    """A pidfd of the process that connected: readable once it is gone. ProcessLookupError if it is gone already."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError:
        return os.pidfd_open(peer(sock).pid)  # before Linux 6.5; the caller compares start times


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 if there is no such process (or only its zombie)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    fields = stat[stat.rindex(b")") + 2 :].split()
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def readable(fd: int) -> bool:
    """Whether a read would not wait: a pidfd whose process is gone, a socket whose other end is."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def watch_process(pid: int, started: int) -> int | None:
    """A pidfd of the process with this pid and start time; None if it is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    if start_time(pid) == started and not readable(pidfd):
        return pidfd
    os.close(pidfd)
    return None
