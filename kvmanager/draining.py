"""Drain and undrain: a worker hands its sequences to others, or finishes them; and takes requests again.

another worker of the pool is ready    Handover: it stops at the next step boundary, others adopt
none, and the caller waits             Drain: it finishes what it has
none                                   Conflict: its requests would have nowhere to go
"""

import structlog

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.errors import Conflict, NotFound
from kvmanager.messages import Drain, Handover, Resume, WorkerState
from kvmanager.parts import Outgoing
from kvmanager.server import Server
from kvmanager.workers import Worker, Workers

log = structlog.get_logger()


class Draining:
    """Handlers of the two messages."""

    def __init__(self, workers: Workers, server: Server) -> None:
        self._workers, self._server = workers, server

    def drain(self, request: pb.DrainRequest) -> pb.DrainReply:
        worker = self._find(request.worker)
        others = [
            other.worker_id
            for other in self._workers.of_pool(worker.pool)
            if other is not worker and self._workers.state_of(other) is WorkerState.READY
        ]
        if not others and not request.wait:
            raise Conflict(f"no other worker of pool {worker.pool.spec.name} is ready: wait, or start one")
        self._tell(worker, Handover() if others else Drain())
        return pb.DrainReply(state="handing over" if others else "finishing")

    def undrain(self, request: pb.UndrainRequest) -> pb.UndrainReply:
        worker = self._find(request.worker)
        self._tell(worker, Resume())
        return pb.UndrainReply(state="ready")

    def _find(self, worker_id: str) -> Worker:
        for worker in self._workers.by_session.values():
            if worker.worker_id == worker_id and not worker.lost:
                return worker
        raise NotFound(f"no worker {worker_id!r}", id=worker_id)

    def _tell(self, worker: Worker, order: Drain | Handover | Resume) -> None:
        if worker.identity is None:
            raise Conflict(f"worker {worker.worker_id} is not connected yet; try again")
        log.info("worker told", worker=worker.worker_id, order=type(order).__name__.lower())
        self._server.deliver(worker.pool, [Outgoing(worker.session, 0, order)])
