"""The workers the daemon knows, and the two signs by which one ends: its attachment closed, its process gone.

    attached --(attachment closed | silent | does not read)--> lost --(closed AND process gone)--> forgotten

A lost worker is fenced at once; what it might still write stays in quarantine until both signs are there. A timeout
frees nothing. One that drained says so in its last heartbeat: if nothing was open, the log calls it left, not lost.
Owns the attachments' sockets and the pidfds.
"""

import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog

from kvmanager.liveness import Watch
from kvmanager.loop import Loop
from kvmanager.messages import SessionId, WorkerState
from kvmanager.pools import Pool

log = structlog.get_logger()


@dataclass(slots=True, eq=False, kw_only=True)
class Worker:
    """One session."""

    session: SessionId
    worker_id: str
    endpoint: str
    pool: Pool
    pid: int
    pidfd: int
    connection: socket.socket | None  # None: closed
    boot_epoch: int
    identity: bytes | None = None  # of its ZeroMQ connection, once it said Hello
    lost: bool = False
    exited: bool = False
    expected_by: float | None = None  # of a former daemon's worker: when it is lost unless it re-attaches


class Workers:
    """All sessions that are not proven dead. `send` delivers what a pool's state wants said to others."""

    def __init__(
        self, loop: Loop, watch: Watch, send: Callable[[Pool], None], *, kill_hung: bool = True
    ) -> None:
        self._loop, self._watch, self._send, self._kill_hung = loop, watch, send, kill_hung
        self.by_session: dict[SessionId, Worker] = {}
        self.version = time.time_ns()  # of membership: differs from any former daemon's

    def of_pool(self, pool: Pool) -> list[Worker]:
        return [worker for worker in self.by_session.values() if worker.pool is pool]

    def changed(self) -> None:
        """Membership is another now: a worker came, went, or changed its state; a pool went."""
        self.version += 1

    def add(self, worker: Worker) -> None:
        self.by_session[worker.session] = worker
        self._loop.watch(worker.pidfd, partial(self._exited, worker))
        if worker.connection is not None:
            self._loop.watch(worker.connection.fileno(), partial(self._closing, worker))
        if not worker.lost:
            self._watch.add(worker.session)
        self.changed()

    def back(self, worker: Worker, connection: socket.socket) -> None:
        """A former daemon's worker attached again."""
        worker.connection, worker.expected_by = connection, None
        self._loop.watch(connection.fileno(), partial(self._closing, worker))
        self.changed()

    # ------------------------------------------------------------------------------------- the two signs

    def _closing(self, worker: Worker) -> None:
        """The attachment is readable: its end, as workers say nothing on it."""
        assert worker.connection is not None
        try:
            said = worker.connection.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if said:
            self.fence(worker, "it spoke on its attachment")
            return
        self._loop.forget(worker.connection.fileno())
        worker.connection.close()
        worker.connection = None
        self.fence(worker, "its attachment closed", ended=True)
        self._bury(worker)

    def _exited(self, worker: Worker) -> None:
        worker.exited = True
        self._loop.forget(worker.pidfd)
        self.fence(worker, "its process ended", ended=True)
        self._bury(worker)

    def fence(self, worker: Worker, reason: str, *, ended: bool = False) -> None:
        """From here on nothing it says counts. It sees its attachment end. `ended`: it did that by itself."""
        if worker.lost:
            return
        drained = ended and self.state_of(worker) is WorkerState.DRAINING
        worker.lost, worker.identity = True, None
        self._watch.remove(worker.session)
        if worker.connection is not None:
            shut(worker.connection)
        open_sequences = len(worker.pool.state.lose(worker.session, time.monotonic_ns()))
        say(worker, reason, open_sequences, left=drained and not open_sequences)
        self._send(worker.pool)
        self.changed()

    def kill(self, worker: Worker) -> None:
        """SIGKILL, for a worker that hangs. Fenced first: nothing depends on the kill."""
        if not self._kill_hung:
            return
        try:
            signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)
        except OSError as error:  # gone already, or in a PID namespace that this one cannot reach
            log.warning("cannot kill the worker", worker=worker.worker_id, pid=worker.pid, error=str(error))

    def _bury(self, worker: Worker) -> None:
        """Frees its quarantine once both signs are there."""
        if not worker.exited or worker.connection is not None:
            return
        os.close(worker.pidfd)
        del self.by_session[worker.session]
        freed = worker.pool.state.dead(worker.session)
        log.info("worker gone", worker=worker.worker_id, pid=worker.pid, blocks_freed=freed)
        self._send(worker.pool)
        self.changed()

    # ------------------------------------------------------------------------------------- silence

    def judge(self) -> None:
        """Fences and kills who has been silent beyond its bound. Call with all sockets drained."""
        for session, silence_ns in self._watch.silent():
            worker = self.by_session[session]
            self.fence(worker, f"silent for {silence_ns / 1e9:.1f} s")
            self.kill(worker)
        now = time.monotonic()
        for worker in [w for w in self.by_session.values() if w.expected_by and w.expected_by <= now]:
            worker.expected_by = None
            self.fence(worker, "it did not attach again")
            self.kill(worker)

    def state_of(self, worker: Worker) -> WorkerState:
        pulse = self._watch.pulses.get(worker.session)
        return WorkerState.LOST if worker.lost or pulse is None else pulse.last.state


def say(worker: Worker, reason: str, open_sequences: int, *, left: bool) -> None:
    if left:
        log.info("worker left", worker=worker.worker_id, pid=worker.pid)
    else:
        who = {"worker": worker.worker_id, "pid": worker.pid}
        log.warning("worker lost", **who, reason=reason, open_sequences=open_sequences)


def shut(connection: socket.socket) -> None:
    """Ends our half: the peer reads an end of file, and its own close is still to be seen."""
    try:
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the peer was faster
