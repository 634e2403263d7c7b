"""The keeper: holds the service's file descriptors and keeps a daemon running. Standard library only.

What it holds lives as long as it does: the memory of pools and metadata, and the listening sockets of the run
directory. It parses no request of the service and knows nothing of what the memory means. One packet a request on
keeper.sock, one packet an answer, to its child and to a stranger of the same user alike:

    PUT name + fd → OK      GET name → OK + fd      DROP name → OK      LIST → OK name name …      BEAT → OK
    anything that cannot be done → NO reason

The first connection that beats is the daemon; a second one is refused while the first is open. A daemon that stops
beating is killed; a child that ends is started again, unless it says (EXIT_USAGE) that this is vain.
"""

import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from holdfast.rundir import RunDir
from kvmanager import fds
from kvmanager.keeper_child import BEAT_BOUND_S, Child
from kvmanager.keeper_log import Log
from kvmanager.keeper_vault import Refused, Vault, lock

GAP_S: Final = 0.5  # between two looks while somebody is judged; twice that counts at most
BACKOFF_S: Final = (0.05, 5.0)  # doubles from the first to the second
STEADY_S: Final = 10.0  # a child that lived this long starts the back-off again
MAX_CONNECTIONS: Final = 64
EXIT_USAGE: Final = 2
EXIT_CONFLICT: Final = 7


@dataclass(slots=True, eq=False)
class Connection:
    sock: socket.socket
    pid: int
    pidfd: int
    beat: float | None = None  # when it last said BEAT


class Keeper:
    """One loop over the keeper's socket, its connections and its child."""

    def __init__(self, sockets: RunDir, argv: Sequence[str] | None, log: Log) -> None:
        self.argv, self.log = argv, log
        self.vault = Vault(sockets)
        self.listener = fds.listen(sockets.keeper, socket.SOCK_SEQPACKET)
        self.listener.setblocking(False)
        self.selector = selectors.DefaultSelector()
        self.connections: dict[Connection, None] = {}  # oldest first
        self.child: Child | None = None
        self.looked = time.monotonic()  # when the loop last knew all that had arrived
        self.backoff = BACKOFF_S[0]
        self.start_at: float | None = time.monotonic() if argv else None
        self.stopping = False
        self.exit_code: int | None = None

    # ------------------------------------------------------------------------------------- loop

    def run(self) -> int:
        self._watch_signals()
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        while self.exit_code is None:
            for key, _ in self._select(self._patience()):
                if key.fileobj in self.selector.get_map():  # not closed by an earlier one of this round
                    key.data()
            if self.exit_code is None:
                self._tick(self.looked)
        return self.exit_code

    def _select(self, patience: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready. Nobody is judged by time in which this process did not run: a paused container's, say."""
        ready = self.selector.select(None if patience is None else min(patience, GAP_S))
        before, self.looked = self.looked, time.monotonic()
        lost = 0.0 if patience is None else self.looked - before - 2 * GAP_S
        if lost > 0:
            if self.child:
                self.child.spare(lost)
            for connection in self.connections:
                connection.beat = connection.beat and connection.beat + lost
        return ready

    def _watch_signals(self) -> None:
        wake, poked = socket.socketpair()
        for sock in (wake, poked):
            sock.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        self._wake = (wake, poked)
        self.selector.register(poked, selectors.EVENT_READ, lambda: poked.recv(64))

    def _patience(self) -> float | None:
        """Seconds until something must be done without being told; None: nothing."""
        moments = [self.start_at, self.child.due() if self.child else None]
        moments += [due for _, due in self._daemons()]
        known = [moment for moment in moments if moment is not None]
        return max(min(known) - time.monotonic(), 0.0) if known else None

    def _tick(self, now: float) -> None:
        if self.stopping:
            self._pass_on(now)
        elif self.start_at is not None and now >= self.start_at:
            self._start(now)
        if self.child:
            self._judge(self.child, now)
        for connection, due in self._daemons():
            if now >= due:
                self.log.error("the daemon is silent; killing it", pid=connection.pid)
                self._kill(connection.pidfd)
                self._close(connection)

    def _judge(self, child: Child, now: float) -> None:
        due = child.due()
        if due is not None and now >= due:
            self.log.error(f"{child.fault()}; killing it", pid=child.pid)
            child.killed = True
            self._kill(child.pidfd)

    def _daemons(self) -> list[tuple[Connection, float]]:
        """Who beats and is not the child, which is judged by itself; and when its silence is too long."""
        others = (c for c in self.connections if not self._is_child(c))
        return [(c, c.beat + BEAT_BOUND_S) for c in others if c.beat is not None]

    def _is_child(self, connection: Connection) -> bool:
        return self.child is not None and self.child.pid == connection.pid

    # ------------------------------------------------------------------------------------- child

    def _start(self, now: float) -> None:
        assert self.argv is not None
        self.start_at = None
        self.child = Child(self.argv, now)
        self.selector.register(self.child.pidfd, selectors.EVENT_READ, self._reap)
        self.log.info("daemon started", pid=self.child.pid)

    def _reap(self) -> None:
        assert self.child is not None
        child, self.child = self.child, None
        self.selector.unregister(child.pidfd)
        code, lived = child.reap(), time.monotonic() - child.started
        if self.stopping or code == EXIT_USAGE:
            self.log.info("daemon ended", pid=child.pid, code=code)
            self.exit_code = 0 if self.stopping else code
            return
        self.backoff = BACKOFF_S[0] if lived >= STEADY_S else min(self.backoff * 2, BACKOFF_S[1])
        self.start_at = time.monotonic() + self.backoff
        pause = round(self.backoff, 2)
        self.log.warning("daemon died; starting it again", pid=child.pid, code=code, after_s=pause)

    def _stop(self, _number: int, _frame: object) -> None:
        """Runs between two bytecodes of the loop, which does the rest in its next round."""
        self.stopping = True

    def _pass_on(self, now: float) -> None:
        """SIGTERM, to the child, once: it is waited for, and no new one starts."""
        self.start_at = None
        if self.child is None:
            self.exit_code = 0
        elif self.child.told is None:
            self.child.terminate(now)

    def _kill(self, pidfd: int) -> None:
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except OSError as error:  # gone already, or in a PID namespace that this one cannot reach
            self.log.warning("cannot kill the daemon", error=str(error))

    # ------------------------------------------------------------------------------------- requests

    def _accept(self) -> None:
        try:
            sock, _ = self.listener.accept()
        except OSError:
            return  # gone between the wake-up and the accept
        try:
            if not fds.peer_is_ours(sock):
                raise fds.PacketError("another user's")
            connection = Connection(sock, fds.peer(sock).pid, fds.peer_pidfd(sock))
        except (OSError, fds.PacketError):
            sock.close()
            return
        sock.setblocking(False)
        if len(self.connections) >= MAX_CONNECTIONS:  # the oldest that is not the daemon makes room
            self._close(next(c for c in self.connections if c.beat is None))
        self.connections[connection] = None
        self.selector.register(sock, selectors.EVENT_READ, partial(self._serve, connection))

    def _serve(self, connection: Connection) -> None:
        """One request. A peer that breaks the packet rules, or does not take its answers, is dropped."""
        try:
            data, received = fds.receive(connection.sock)
            if not data:
                self._close(connection)
                return
            try:
                self._answer(connection, data, received)
            finally:
                fds.close_all(received)
        except BlockingIOError:
            return  # woken for nothing
        except (OSError, fds.PacketError) as error:
            self.log.warning("dropping a peer of the keeper", pid=connection.pid, error=str(error))
            self._close(connection)

    def _answer(self, connection: Connection, data: bytes, received: list[int]) -> None:
        verb, _, name = data.decode("ascii", "replace").partition(" ")
        try:
            if verb not in _VERBS:
                raise Refused("unknown request")
            if received and verb != "PUT":
                raise Refused("unexpected descriptor")
            text, out = _VERBS[verb](self, connection, name, received)
        except Refused as error:
            text, out = f"NO {error}", ()
        fds.send(connection.sock, text.encode(), out)

    def _put(self, _connection: Connection, name: str, received: list[int]) -> tuple[str, tuple[int, ...]]:
        self.vault.put(name, received)
        return "OK", ()

    def _get(self, _connection: Connection, name: str, _received: list[int]) -> tuple[str, tuple[int, ...]]:
        return "OK", (self.vault.get(name),)

    def _drop(self, _connection: Connection, name: str, _received: list[int]) -> tuple[str, tuple[int, ...]]:
        self.vault.drop(name)
        return "OK", ()

    def _list(self, _connection: Connection, _name: str, _received: list[int]) -> tuple[str, tuple[int, ...]]:
        return " ".join(["OK", *sorted(self.vault.held)]), ()

    def _beat(self, connection: Connection, _name: str, _received: list[int]) -> tuple[str, tuple[int, ...]]:
        other = next((c for c in self.connections if c.beat is not None and c is not connection), None)
        if other is not None:
            raise Refused(f"another daemon is running, pid {other.pid}")
        connection.beat = time.monotonic()
        if self.child and self._is_child(connection):
            self.child.beat = connection.beat
        return "OK", ()

    def _close(self, connection: Connection) -> None:
        if connection in self.connections:
            del self.connections[connection]
            self.selector.unregister(connection.sock)
            connection.sock.close()
            os.close(connection.pidfd)


_Verb = Callable[[Keeper, Connection, str, list[int]], tuple[str, tuple[int, ...]]]
_VERBS: Final[dict[str, _Verb]] = {
    "PUT": Keeper._put,
    "GET": Keeper._get,
    "DROP": Keeper._drop,
    "LIST": Keeper._list,
    "BEAT": Keeper._beat,
}


def run(
    sockets: RunDir, child_argv: Sequence[str] | None, log_format: str = "auto", log_level: str = "info"
) -> int:
    """Keeps descriptors in this run directory until SIGTERM, and `child_argv` running if given. The exit code.

    0 after SIGTERM, EXIT_CONFLICT if another keeper runs here, else the code with which the child gave up.
    """
    log = Log("keeper", log_format, log_level)
    sockets.prepare()
    try:
        lock(sockets.lock)
    except BlockingIOError as error:
        log.error(error.strerror or str(error))
        return EXIT_CONFLICT
    names = (sockets.keeper, sockets.attach, sockets.daemon)
    for path in names:  # of a keeper that is gone: its lock was free
        path.unlink(missing_ok=True)
    keeper = Keeper(sockets, child_argv, log)
    log.info("keeper ready", run_dir=str(sockets.path), pid=os.getpid())
    try:
        return keeper.run()
    finally:
        for path in names:
            path.unlink(missing_ok=True)


def main(argv: Sequence[str]) -> int:
    """`python -m kvmanager.keeper RUN_DIR LOG_FORMAT LOG_LEVEL [CHILD ARG…]`: a keeper with nothing else imported."""
    run_dir, log_format, log_level, *child = argv
    return run(RunDir(Path(run_dir)), child or None, log_format, log_level)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
