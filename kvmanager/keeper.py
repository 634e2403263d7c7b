"""The keeper: holds the service's file descriptors and keeps a daemon running. Standard library only.

What it holds lives as long as it does: the memory of pools and metadata, and the listening sockets of the run
directory. It parses no request of the service and knows nothing of what the memory means. One packet a request on
keeper.sock, one packet an answer, to its child and to a stranger of the same user alike:

    PUT name + fd → OK      GET name → OK + fd      DROP name → OK      LIST → OK name name …
    BEAT [serving] → OK
    anything that cannot be done → NO reason

The first connection that beats is the daemon; a second one is refused while the first is open. A daemon that stops
beating is killed; a child that ends is started again, unless it says (EXIT_USAGE) that this is vain. A spare, if there
is to be one, is started once the daemon is steady, so that no start takes time from another.
"""

import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from holdfast.rundir import RunDir
from kvmanager import fds
from kvmanager.keeper_child import BEAT_BOUND_S, Child, Ends
from kvmanager.keeper_log import Log
from kvmanager.keeper_spare import Spare
from kvmanager.keeper_vault import Refused, Vault, lock

GAP_S: Final = 0.5  # between two looks while somebody is judged; twice that counts at most
MAX_CONNECTIONS: Final = 64
EXIT_USAGE: Final = 2
EXIT_CONFLICT: Final = 7
SPARE: Final = "--spare"
SERVING: Final = "serving"


@dataclass(slots=True, eq=False)
class Connection:
    sock: socket.socket
    pid: int
    pidfd: int
    beat: float | None = None  # when it last said BEAT


class Keeper:
    """One loop over the keeper's socket, its connections, its child and the spare."""

    def __init__(self, sockets: RunDir, argv: Sequence[str] | None, log: Log, *, spare: bool = False) -> None:
        self.argv, self.log = argv, log
        self.vault = Vault(sockets)
        self.listener = fds.listen(sockets.keeper, socket.SOCK_SEQPACKET)
        self.listener.setblocking(False)
        self.selector = selectors.DefaultSelector()
        self.connections: dict[Connection, None] = {}  # oldest first
        self.child: Child | None = None
        self.spare = Spare(argv, self.selector, log) if argv and spare else None
        self.ends = Ends()
        self.looked = time.monotonic()  # when the loop last knew all that had arrived
        self.start_at: float | None = time.monotonic() if argv else None
        self.stopping = False
        self.exit_code: int | None = None

    # ------------------------------------------------------------------------------------- loop

    def run(self) -> int:
        self._watch_signals()
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        while self.exit_code is None:
            for key, _ in self._select(self._patience()):
                if self.selector.get_map().get(key.fd) is key:  # not closed by an earlier one of this round
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
                self.child.forgive(lost)
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
        elif self.spare and self.child and self.child.steady:
            self.spare.want(now)
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
        spare = self.spare.take() if self.spare else None
        self.child = spare or Child(self.argv, now)
        self.selector.register(self.child.pidfd, selectors.EVENT_READ, self._reap)
        self.child.release(self.ends.fast_crashes, now)
        crashes = {"fast_crashes": self.ends.fast_crashes} if self.ends.fast_crashes else {}
        self.log.info("daemon started", pid=self.child.pid, spare=spare is not None, **crashes)

    def _reap(self) -> None:
        assert self.child is not None
        child, self.child = self.child, None
        self.selector.unregister(child.pidfd)
        code = child.reap()
        for connection in [c for c in self.connections if c.pid == child.pid]:
            self._close(connection)  # the next one's first beat may come before the end of this one's
        if self.stopping or code == EXIT_USAGE:
            self.log.info("daemon ended", pid=child.pid, code=code)
            self.exit_code = None if self.stopping else code
            return
        pause = self.ends.pause_after(child, code)
        if self.spare and self.spare.there and child.steady:
            pause = 0.0
        self.start_at = time.monotonic() + pause
        self.log.warning("daemon died; starting it again", pid=child.pid, code=code, after_s=round(pause, 2))

    def _stop(self, _number: int, _frame: object) -> None:
        """Runs between two bytecodes of the loop, which does the rest in its next round."""
        self.stopping = True

    def _pass_on(self, now: float) -> None:
        """SIGTERM, to the child, once: it is waited for, and no new one starts. The spare ends too."""
        self.start_at = None
        if self.spare:
            self.spare.end()
        if self.child is not None:
            if self.child.told is None:
                self.child.terminate(now)
        elif self.spare is None or not self.spare.there:
            self.exit_code = 0

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
            if received and verb != "PUT":
                raise Refused("unexpected descriptor")
            beat = verb == "BEAT"
            text, out = self._beat(connection, name) if beat else self.vault.answer(verb, name, received)
        except Refused as error:
            text, out = f"NO {error}", ()
        fds.send(connection.sock, text.encode(), out)

    def _beat(self, connection: Connection, state: str) -> tuple[str, tuple[int, ...]]:
        other = next((c for c in self.connections if c.beat is not None and c is not connection), None)
        if other is not None:
            raise Refused(f"another daemon is running, pid {other.pid}")
        connection.beat = time.monotonic()
        if self.child and self._is_child(connection):
            self.child.heard(connection.beat, serving=state == SERVING)
        return "OK", ()

    def _close(self, connection: Connection) -> None:
        if connection in self.connections:
            del self.connections[connection]
            self.selector.unregister(connection.sock)
            connection.sock.close()
            os.close(connection.pidfd)


def run(
    sockets: RunDir,
    child_argv: Sequence[str] | None,
    log_format: str = "auto",
    log_level: str = "info",
    *,
    spare: bool = False,
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
    keeper = Keeper(sockets, child_argv, log, spare=spare)
    log.info("keeper ready", run_dir=str(sockets.path), pid=os.getpid())
    try:
        return keeper.run()
    finally:
        for path in names:
            path.unlink(missing_ok=True)


def main(argv: Sequence[str]) -> int:
    """`python -m kvmanager.keeper [--spare] RUN_DIR LOG_FORMAT LOG_LEVEL [CHILD ARG…]`: nothing else is imported."""
    spare = argv[0] == SPARE
    run_dir, log_format, log_level, *child = argv[spare:]
    return run(RunDir(Path(run_dir)), child or None, log_format, log_level, spare=spare)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
