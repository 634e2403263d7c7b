"""Memory of pools and metadata as file descriptors, and whether the host has it.

`create` reserves every byte before it returns, in slices, so that a pool never fails later at a first touch and
the daemon keeps beating meanwhile. The host is asked first: a pool that would not fit is NoMemory, never an OOM kill.
"""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from kvmanager.errors import NoMemory

SLICE_BYTES: Final = 64 * 2**20
HEADROOM: Final = 16  # a sixteenth of what is available stays for everybody else
SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

Beat = Callable[[], None]


class Exporter(Protocol):
    """Makes memory that other processes map by its descriptor."""

    name: str

    def create(self, label: str, size_bytes: int, beat: Beat) -> int:
        """A descriptor of `size_bytes` zero bytes, all reserved. NoMemory if they cannot be had."""
        ...


class MemfdExporter:
    """Host memory."""

    name = "memfd"

    def create(self, label: str, size_bytes: int, beat: Beat) -> int:
        check_available(size_bytes)
        fd = os.memfd_create(f"holdfast-{label}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size_bytes)
            for offset in range(0, size_bytes, SLICE_BYTES):
                os.posix_fallocate(fd, offset, min(SLICE_BYTES, size_bytes - offset))
                beat()
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.ENOMEM, errno.ENOSPC, errno.EFBIG):
                raise no_memory(size_bytes, available_bytes()) from None
            raise
        except BaseException:
            os.close(fd)
            raise
        return fd


def sealed_file(label: str, data: bytes) -> int:
    """A memfd that holds these bytes, and never others."""
    fd = os.memfd_create(f"holdfast-{label}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.pwrite(fd, data, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS | fcntl.F_SEAL_WRITE)
    return fd


def read_only(fd: int) -> int:
    """The same memory, opened again without the right to write: a guard against accidents, not against the user."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def check_available(size_bytes: int) -> None:
    """NoMemory unless the host could give this much and keep some for everybody else."""
    available = available_bytes()
    if size_bytes > available - available // HEADROOM:
        raise no_memory(size_bytes, available)


def no_memory(asked: int, available: int) -> NoMemory:
    return NoMemory(
        f"{asked} bytes of memory asked for ({asked / 2**30:.2f} GiB), {available} available "
        f"({available / 2**30:.2f} GiB); lower --kv-memory",
        asked=asked,
        available=available,
    )


def host_bytes() -> int:
    """All the memory of this host, whoever uses it."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int:
    """What can be allocated without swapping or meeting a limit: of the host, or of a control group if that is less."""
    return max(min([_host_available(), *_group_rooms()]), 0)


def _host_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("no MemAvailable in /proc/meminfo")


def _group_rooms() -> list[int]:
    """Room left under each limit of this process's control groups, versions 1 and 2."""
    rooms = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            rooms += _walk(Path("/sys/fs/cgroup"), path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = Path("/sys/fs/cgroup/memory")
            rooms += _walk(
                root, path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            )
    return rooms


def _walk(root: Path, path: str, limit: str, usage: str, cache: str) -> list[int]:
    rooms = []
    folder = root / path.lstrip("/")
    for group in (folder, *folder.parents):
        if not group.is_relative_to(root):
            break
        bound, used = _number(group / limit), _number(group / usage)
        if bound is not None and used is not None:
            rooms.append(bound - used + _statistic(group / "memory.stat", cache))
    return rooms


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max": no limit


def _statistic(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name + " ")), 0)
