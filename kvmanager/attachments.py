"""The attachment socket: strangers connect, say who they are, and become workers or are sent away.

One packet in (AttachRequest), one packet out (AttachReply, with two descriptors on success). A connection that says
nothing in time, or anything else, is closed. Which pool a worker gets is `attach`'s to decide.
"""

import os
import socket
import time
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from holdfast import wire
from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager import fds
from kvmanager.attach import differences, place
from kvmanager.attachment import Attached, AttachSpec
from kvmanager.codec import encode_error
from kvmanager.codec_attach import decode_attach, encode_attached
from kvmanager.config import KvManagerSettings
from kvmanager.errors import Conflict, Fenced, KvError, Mismatch, ResourceExhausted, Unavailable
from kvmanager.loop import Loop
from kvmanager.messages import SessionId
from kvmanager.pools import Pools
from kvmanager.workers import Worker, Workers

SPEAK_BOUND_S: Final = 15.0  # a worker looks up its GPU between connecting and speaking
MAX_PENDING: Final = 256

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Pending:
    """A connection that has not said who it is."""

    connection: socket.socket
    deadline: float


class Attachments:
    def __init__(
        self, listener_fd: int, loop: Loop, pools: Pools, workers: Workers, settings: KvManagerSettings
    ) -> None:
        self._listener = socket.socket(fileno=listener_fd)
        self._listener.setblocking(False)
        self._loop, self._pools, self._workers, self._settings = loop, pools, workers, settings
        self._pending: dict[Pending, None] = {}  # oldest first
        self.refused = 0
        loop.watch(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # the peer is gone already, or we have no descriptor left: it will find out by its timeout
        connection.setblocking(False)
        if not fds.peer_is_ours(connection):
            connection.close()
            return
        if len(self._pending) >= MAX_PENDING:
            self._drop(next(iter(self._pending)), "too many connections that say nothing")
        pending = Pending(connection, time.monotonic() + SPEAK_BOUND_S)
        self._pending[pending] = None
        self._loop.watch(connection.fileno(), partial(self._speaks, pending))

    def expire(self, now: float) -> None:
        """Closes connections that have said nothing in time."""
        for pending in [p for p in self._pending if p.deadline <= now]:
            self._drop(pending, "said nothing")

    def _drop(self, pending: Pending, reason: str) -> None:
        self._forget(pending)
        pending.connection.close()
        self.refused += 1
        log.debug("attachment refused", reason=reason)

    def _forget(self, pending: Pending) -> None:
        del self._pending[pending]
        self._loop.forget(pending.connection.fileno())

    def _speaks(self, pending: Pending) -> None:
        try:
            data, received = fds.receive(pending.connection)
            fds.close_all(received)
            if not data or received:
                raise fds.PacketError("closed, or sent descriptors")
            request = wire.decode(pb.AttachRequest, data)
        except BlockingIOError:
            return
        except (OSError, fds.PacketError, wire.FrameError) as error:
            self._drop(pending, str(error))
            return
        self._forget(pending)
        self._answer(pending.connection, request)

    def _answer(self, connection: socket.socket, request: pb.AttachRequest) -> None:
        try:
            worker = self._admit(connection, decode_attach(request))
        except KvError as error:
            log.warning("worker refused", worker=request.worker_id[:32], error=error.message)
            self._refuse(connection, error)
            return
        try:
            self._welcome(worker, connection)
        except OSError:  # gone, or does not read: its attachment ends at once, by the common path
            self._workers.fence(worker, "it did not take the answer")

    def _refuse(self, connection: socket.socket, error: KvError) -> None:
        self.refused += 1
        try:
            fds.send(connection, wire.encode(pb.AttachReply(error=encode_error(error))))
        except OSError:
            log.debug("a refused worker did not take the answer")
        connection.close()

    def _admit(self, connection: socket.socket, spec: AttachSpec) -> Worker:
        """The worker's pool and session; KvError if it cannot have them."""
        if spec.resume_session:
            return self._readmit(connection, spec)
        pool = place(spec, self._pools, self._settings)
        for other in self._workers.by_session.values():
            if other.worker_id == spec.worker_id and not other.lost:
                raise Conflict(
                    f"worker_id: {spec.worker_id} is attached already, pid {other.pid}", pid=other.pid
                )
        most = self._settings.workers_on(spec.device)
        if sum(not other.lost for other in self._workers.of_pool(pool)) >= most:
            raise ResourceExhausted(f"--max-workers {most} are attached to {pool.spec.name}")
        pid, pidfd, started = identify(connection)
        try:
            session = pool.state.attach(
                SessionId(os.urandom(16)),
                worker_id=spec.worker_id,
                endpoint=spec.endpoint,
                pid=pid,
                start_time=started,
                now_ns=time.monotonic_ns(),
            )
        except BaseException:
            os.close(pidfd)
            raise
        worker = Worker(
            session=session,
            worker_id=spec.worker_id,
            endpoint=spec.endpoint,
            pool=pool,
            pid=pid,
            pidfd=pidfd,
            connection=connection,
            boot_epoch=pool.state.boot_epoch,
        )
        self._workers.add(worker)
        log.info("worker attached", worker=spec.worker_id, pid=pid, pool=pool.spec.name)
        return worker

    def _readmit(self, connection: socket.socket, spec: AttachSpec) -> Worker:
        """A worker that outlived the daemon before this one goes on as what it was."""
        worker = self._workers.by_session.get(spec.resume_session)
        if worker is None or worker.lost or worker.connection is not None:
            raise Fenced("resume_session: the session is unknown, lost or attached; start a new one")
        if fds.peer(connection).pid != worker.pid:
            raise Fenced("resume_session: the session belongs to another process")
        different = next(differences(spec, worker.pool.spec), None)
        if different is not None:
            raise Mismatch(f"{different.field}: {different.worker}, the pool has {different.pool}")
        self._workers.back(worker, connection)
        log.info("worker attached again", worker=worker.worker_id, pid=worker.pid, pool=worker.pool.spec.name)
        return worker

    @staticmethod
    def _welcome(worker: Worker, connection: socket.socket) -> None:
        pool = worker.pool
        answer = Attached(
            session=worker.session,
            boot_epoch=worker.boot_epoch,
            pool=pool.spec.name,
            num_blocks=pool.spec.num_blocks,
            pool_bytes=pool.pool_bytes,
            metadata_bytes=pool.metadata_bytes,
            nonce=pool.spec.nonce,
            exporter=pool.spec.exporter,
            allocation_bytes=pool.allocation_bytes,
            number=pool.state.number_of(worker.session),
        )
        fds.send(connection, wire.encode(encode_attached(answer)), (pool.pool_fd, pool.readers_fd))

    def close(self) -> None:
        self._listener.close()


def identify(connection: socket.socket) -> tuple[int, int, int]:
    """(pid, pidfd, start time) of the process that connected. Unavailable if it cannot be watched."""
    pid = fds.peer(connection).pid
    try:
        pidfd = fds.peer_pidfd(connection)
    except OSError as error:
        raise Unavailable(f"the worker's process cannot be watched: {error}") from None
    started = fds.start_time(pid)
    if fds.readable(pidfd) or not started:
        os.close(pidfd)
        raise Unavailable("the worker's process is gone, or in a PID namespace that the daemon does not see")
    return pid, pidfd, started
