"""Who may bind worker-ID.sock: the process that holds the lock on worker-ID.lock. A killed worker leaves both files.

Every worker that starts removes what killed ones left: it knows the lock that says who lives, and it also finds those
that died before the KV manager heard of them. All that takes or removes a name at a start holds the run directory's
own lock, so that a worker never finds its name taken by one that only cleans up.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import structlog

from kvmanager.errors import Conflict

log = structlog.get_logger()


def take(socket: Path) -> int:
    """The name's lock, which ends with this process; no file is at the name. Conflict if another process holds it."""
    with alone_in(socket.parent):
        fd = lock(socket.with_suffix(".lock"))
        socket.unlink(missing_ok=True)  # of a process that is gone: we hold the lock
        sweep(socket.parent)
    return fd


def give_back(socket: Path, fd: int) -> None:
    """Removes the name, and then the lock: while it is ours."""
    for path in (socket, socket.with_suffix(".lock")):
        path.unlink(missing_ok=True)
    os.close(fd)


def sweep(folder: Path) -> None:
    """Removes the names of workers that are gone: nobody holds their lock."""
    for path in folder.glob("worker-*.lock"):
        try:
            fd = lock(path)
        except Conflict:
            continue
        give_back(path.with_suffix(".sock"), fd)
        log.info("removed the socket of a worker that is gone", socket=path.with_suffix(".sock").name)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Waits while another process takes a name in this folder."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def lock(path: Path) -> int:
    """An exclusive lock that ends with this process. Conflict if another process holds it."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise Conflict(f"another process is {path.stem}; choose another --worker-id") from None
        if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
            return fd
        os.close(fd)  # its former holder removed the name just before we got the lock
