"""What the keeper holds: named descriptors, the listening sockets, and the lock that makes it the only keeper.

Standard library only. No loop, no sockets but those it holds.
"""

import errno
import fcntl
import os
import re
import socket
from pathlib import Path
from typing import Final

from holdfast.rundir import RunDir
from kvmanager import fds

MAX_HELD: Final = 256
NAME: Final = re.compile(r"[a-z0-9._-]{1,80}")


class Refused(Exception):  # noqa: N818 - reads as `raise Refused(...)`
    """The request cannot be done; the peer is told why."""


class Vault:
    """The named descriptors. The listening sockets are in it too, and stay."""

    def __init__(self, sockets: RunDir) -> None:
        self.fixed = {
            path.name: fds.listen(path, kind)
            for path, kind in (
                (sockets.attach, socket.SOCK_SEQPACKET),
                (sockets.daemon, socket.SOCK_STREAM),
            )
        }
        self.held: dict[str, int] = {}

    def answer(self, verb: str, name: str, received: list[int]) -> tuple[str, tuple[int, ...]]:
        """Text and descriptors for one request. Refused if it cannot be done."""
        match verb:
            case "PUT":
                self.put(name, received)
            case "GET":
                return "OK", (self.get(name),)
            case "DROP":
                self.drop(name)
            case "LIST":
                return " ".join(["OK", *sorted(self.held)]), ()
            case _:
                raise Refused("unknown request")
        return "OK", ()

    def put(self, name: str, received: list[int]) -> None:
        if len(received) != 1:
            raise Refused("PUT needs one descriptor")
        if not NAME.fullmatch(name) or name in self.fixed:
            raise Refused("not a name that can be put")
        if len(self.held) >= MAX_HELD and name not in self.held:
            raise Refused(f"{MAX_HELD} descriptors are held already")
        self._close(name)
        self.held[name] = received.pop()

    def get(self, name: str) -> int:
        if name in self.fixed:
            return self.fixed[name].fileno()
        if name not in self.held:
            raise Refused("nothing of that name")
        return self.held[name]

    def drop(self, name: str) -> None:
        if name not in self.held:
            raise Refused("nothing of that name")
        self._close(name)

    def _close(self, name: str) -> None:
        if name in self.held:
            os.close(self.held.pop(name))


def lock(path: Path) -> int:
    """The run directory's lock, held until this process ends. BlockingIOError with the holder's pid if it is taken."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise BlockingIOError(errno.EAGAIN, f"another keeper runs in {path.parent}, pid {holder}") from None
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    return fd
