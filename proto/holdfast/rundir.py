"""The run directory: where the processes of one holdfast service find each other's unix sockets.

Holds sockets and a lock file only; the memory behind the service has no name. The directory is private to one
user (0700): whoever can open a socket in it is trusted with the cache.
"""

import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_SOCKET_PATH_BYTES: Final = 107  # sockaddr_un.sun_path, less its NUL


class RunDirError(ValueError):
    """The run directory cannot be used; the message says what to change."""


@dataclass(frozen=True, slots=True)
class RunDir:
    """Names inside one run directory. Creating the object touches nothing; `prepare` does."""

    path: Path

    @property
    def keeper(self) -> Path:
        return self._socket("keeper.sock")

    @property
    def attach(self) -> Path:
        return self._socket("attach.sock")

    @property
    def daemon(self) -> Path:
        return self._socket("daemon.sock")

    @property
    def lock(self) -> Path:
        return self.path / "keeper.lock"

    def worker(self, worker_id: str) -> Path:
        return self._socket(f"worker-{worker_id}.sock")

    def _socket(self, name: str) -> Path:
        path = self.path / name
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise RunDirError(
                f"socket path {path} is longer than {MAX_SOCKET_PATH_BYTES} bytes; "
                "choose a shorter run directory with --run-dir or HOLDFAST_RUN_DIR"
            )
        return path

    def prepare(self) -> "RunDir":
        """Creates the directory 0700 if it is missing; refuses one that others could enter."""
        self.worker("x" * 32)  # the longest name must fit, now rather than at the first worker
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirError(f"cannot create run directory {self.path}: {error.strerror}") from None
        found = self.path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise RunDirError(f"run directory {self.path} is not a directory of this user")
        if found.st_mode & 0o077:
            raise RunDirError(f"run directory {self.path} is open to others; run: chmod 700 {self.path}")
        return self


def default_path() -> Path:
    """$XDG_RUNTIME_DIR/holdfast, else a folder of this user under the temporary directory."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "holdfast"
    return Path(tempfile.gettempdir()) / f"holdfast-{os.getuid()}"
