"""The daemon's connection to its keeper. Standard library only.

Requests wait for their answer; beats do not: their answers are read when the next request, or `drain`, comes by.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kvmanager import fds

TIMEOUT_S: Final = 5.0


class KeeperError(Exception):
    """The keeper refused, or is gone. Without a keeper there is nothing for a daemon to do."""


class KeeperRefusedError(KeeperError):
    """The keeper said no, and why."""


class KeeperBusyError(KeeperError):
    """Another daemon uses this keeper."""


class KeeperLink:
    def __init__(self, path: Path) -> None:
        try:
            self._sock = fds.connect(path, TIMEOUT_S)
        except OSError as error:
            raise KeeperError(f"no keeper at {path}: {error}") from None
        self._beats = 0

    def fileno(self) -> int:
        return self._sock.fileno()

    def put(self, name: str, fd: int) -> None:
        self._request(f"PUT {name}", (fd,))

    def get(self, name: str) -> int:
        _, received = self._request(f"GET {name}")
        return received[0]

    def drop(self, name: str) -> None:
        self._request(f"DROP {name}")

    def names(self) -> list[str]:
        text, _ = self._request("LIST")
        return text.split()[1:]

    def claim(self) -> None:
        """The first beat: KeeperBusyError if another daemon runs already."""
        try:
            self._request("BEAT")
        except KeeperRefusedError as error:
            raise KeeperBusyError(str(error)) from None

    def beat(self, *, serving: bool = False) -> None:
        """Does not wait. A keeper that takes no beat is as good as gone."""
        try:
            self._sock.setblocking(False)
            fds.send(self._sock, b"BEAT serving" if serving else b"BEAT")
        except OSError as error:
            raise KeeperError(f"the keeper is gone: {error}") from None
        finally:
            self._sock.settimeout(TIMEOUT_S)
        self._beats += 1

    def settle(self) -> None:
        """Reads the answers of beats that are there. The kernel holds some 280, a minute's: then a keeper drops us."""
        while self._beats and fds.readable(self._sock.fileno()):
            self.drain()

    def drain(self) -> None:
        """Reads the answer that made the link readable; KeeperError if the keeper is gone."""
        self._check(*self._receive())
        self._beats -= 1

    def _request(self, text: str, out: Sequence[int] = ()) -> tuple[str, list[int]]:
        try:
            fds.send(self._sock, text.encode(), out)
        except OSError as error:
            raise KeeperError(f"the keeper is gone: {error}") from None
        while self._beats:
            self.drain()
        return self._check(*self._receive())

    def _receive(self) -> tuple[bytes, list[int]]:
        try:
            data, received = fds.receive(self._sock)
        except (OSError, fds.PacketError) as error:
            raise KeeperError(f"the keeper does not answer: {error}") from None
        if not data:
            raise KeeperError("the keeper is gone")
        return data, received

    @staticmethod
    def _check(data: bytes, received: list[int]) -> tuple[str, list[int]]:
        text = data.decode("ascii", "replace")
        if not text.startswith("OK"):
            fds.close_all(received)
            raise KeeperRefusedError(f"the keeper refused: {text.removeprefix('NO ')}")
        return text, received

    def close(self) -> None:
        self._sock.close()
