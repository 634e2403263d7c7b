"""The daemon process: wires the parts together, takes over what a former daemon left, and runs the loop.

It owns no memory that would be lost with it: everything is a descriptor at the keeper, and without a keeper it ends.
"""

import contextlib
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
import zmq

from holdfast import logs
from holdfast.rundir import RunDirError
from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager import fds
from kvmanager.admin import HANDLERS
from kvmanager.attachments import Attachments
from kvmanager.config import KvManagerSettings
from kvmanager.draining import Draining
from kvmanager.errors import Conflict, NotFound
from kvmanager.gpu_pools import MODULE, GpuAllocators
from kvmanager.keeper_link import KeeperBusyError, KeeperError, KeeperLink
from kvmanager.liveness import Watch
from kvmanager.loop import Loop
from kvmanager.memory import MemfdExporter
from kvmanager.messages import SessionId
from kvmanager.pools import Pool, Pools
from kvmanager.router import Router
from kvmanager.server import Server
from kvmanager.sessions import SessionState
from kvmanager.view import View
from kvmanager.workers import Worker, Workers

BEAT_S: Final = 0.2
EXPIRE_S: Final = 1.0
KEEPER_WAIT_S: Final = 10.0
REATTACH_S: Final = 10.0  # from our start; a starved worker may take seconds to notice
EXIT_ERROR: Final = 1
START_CODES: Final = {RunDirError: 2, KeeperError: EXIT_ERROR, KeeperBusyError: 7}

log = structlog.get_logger()


class Stopped(Exception):  # noqa: N818 - reads as `raise Stopped`
    """SIGTERM, in the middle of work that may take seconds. The metadata is whole at every moment."""


class Daemon:
    """Everything of one daemon, wired. `run` is its life."""

    def __init__(
        self,
        settings: KvManagerSettings,
        keeper: KeeperLink,
        allocator: str = MODULE,
        fast_crashes: int = 0,
    ) -> None:
        self.settings, self.keeper, self._fast_crashes = settings, keeper, fast_crashes
        self.stopping = self._busy = self._behind = False
        self._beat_at = self._expire_at = time.monotonic()
        self._ttl_ns, self._orphan_ttl_ns = int(settings.record_ttl * 1e9), int(settings.orphan_ttl * 1e9)
        self.loop = Loop()
        self.watch = Watch(time.monotonic_ns())
        gpus = GpuAllocators(self._beating, allocator)
        self.pools = Pools(keeper, {"memfd": MemfdExporter()}, self._beat, self._beating, gpus)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        router = Router(self.context, settings.sockets.daemon, keeper.get("daemon.sock"))
        self.server = Server(router, self.watch)
        send, kill = self.server.deliver_outbox, settings.kill_hung
        self.workers = Workers(self.loop, self.watch, send, kill_hung=kill)
        self.view = View(
            run_dir=settings.run_dir,
            memory_budget_bytes=settings.cpu_budget,
            started=time.monotonic(),
            store=self.pools,
            workers=self.workers,
            watch=self.watch,
        )
        self.server.serve(self.workers, self._questions())
        self.attachments = Attachments(
            keeper.get("attach.sock"), self.loop, self.pools, self.workers, settings
        )

    def _questions(self) -> dict[str, Callable[[Any], Any]]:
        admin = {name: partial(self._ask_admin, handler) for name, handler in HANDLERS.items()}
        own: dict[str, Callable[[Any], Any]] = {
            "snapshot": self.view.snapshot,
            "read_record": self.view.read_record,
            "find_request": self.view.find_request,
        }
        moves = Draining(self.workers, self.server)
        own |= {"drain": moves.drain, "undrain": moves.undrain, "delete_pool": self._delete_pool}
        return {**admin, **own}

    def _ask_admin(self, handler: Callable[[Any, Any], Any], request: Any) -> Any:
        with self._beating():
            return handler(self.view, request)

    def _delete_pool(self, request: pb.DeletePoolRequest) -> pb.DeletePoolReply:
        pool = self.view.pools.get(request.pool)
        if pool is None:
            raise NotFound(f"no pool {request.pool!r}", pool=request.pool)
        if not pool.idle():
            raise Conflict(f"pool {request.pool} is in use: it has workers, or sequences to be finished")
        self.pools.drop(pool, "deleted by request")
        self.workers.changed()
        return pb.DeletePoolReply(freed_bytes=pool.pool_bytes + pool.metadata_bytes)

    # ------------------------------------------------------------------------------------- life

    def run(self) -> None:
        """Until SIGTERM. KeeperError when the keeper is gone."""
        self._watch_signals()
        self.loop.watch(self.server.router.socket, lambda: None)  # drained in every round
        self.loop.watch(self.keeper.fileno(), self.keeper.drain)
        self.pools.recover(self._fast_crashes)
        for pool in self.pools:
            self._expect_back(pool)
        self.view.ready = True
        gc.freeze()  # modules and tables stay: no collection needs to walk them again
        log.info(
            "daemon ready", pid=os.getpid(), run_dir=str(self.settings.run_dir), pools=len(self.view.pools)
        )
        while not self.stopping:
            self._round()

    def _round(self) -> None:
        """Messages first: what a worker said before it died still counts, and nobody is judged by old silence."""
        ready = self.loop.wait(0.0 if self._behind else self._beat_at - time.monotonic())
        self.watch.polled(time.monotonic_ns())
        drained = self.server.drain()
        self._behind = not drained
        for callback in ready:
            callback()
        if drained:
            self.workers.judge()
        self._timers(time.monotonic())

    def _timers(self, now: float) -> None:
        beat = now >= self._beat_at
        if beat:
            self._beat()
            self.attachments.expire(now)
        self.server.answer_parked(beat)
        if now >= self._expire_at:
            self._expire_at = now + EXPIRE_S
            for pool in self.pools:
                pool.state.expire(time.monotonic_ns(), self._ttl_ns, self._orphan_ttl_ns)
                self.server.deliver_outbox(pool)

    def _beat(self) -> None:
        """To the keeper; also between the slices of a long allocation, which SIGTERM ends."""
        if self.stopping:
            raise Stopped
        now = time.monotonic()
        if now >= self._beat_at:
            self._beat_at = now + BEAT_S
            self.keeper.beat(serving=self.view.ready)

    @contextlib.contextmanager
    def _beating(self) -> Iterator[None]:
        """Beats from a timer through work that may take seconds and says nothing to the keeper; SIGTERM ends it."""
        self._busy = True
        signal.setitimer(signal.ITIMER_REAL, BEAT_S, BEAT_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._busy = False

    def _watch_signals(self) -> None:
        wake, poked = socket.socketpair()
        for sock in (wake, poked):
            sock.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGALRM, self._alarm)
        self._wake = (wake, poked)
        self.loop.watch(poked.fileno(), lambda: void(poked.recv(64)))

    def _alarm(self, _number: int, _frame: object) -> None:
        if self._busy:  # no request to the keeper is under way, whose answer this could take
            self.keeper.settle()
            self.keeper.beat(serving=self.view.ready)

    def _stop(self, _number: int, _frame: object) -> None:
        self.stopping = True
        if self._busy:
            raise Stopped

    def _expect_back(self, pool: Pool) -> None:
        """Former sessions of a recovered pool: dead ones are buried now; living ones attach again, or are lost."""
        for session in pool.state.sessions():
            pidfd = fds.watch_process(session.pid, session.start_time)
            if pidfd is None:
                pool.state.dead(session.id)
                log.info("former worker is gone", worker=session.worker_id, pid=session.pid)
            else:
                self.workers.add(former_worker(pool, session, pidfd))

    def close(self) -> None:
        self.attachments.close()
        self.server.router.close()
        self.context.destroy(linger=0)
        self.keeper.close()


def void(_: object) -> None:
    """For a callback whose result means nothing."""


def former_worker(pool: Pool, session: Any, pidfd: int) -> Worker:
    """A worker of a daemon before this one; its attachment closed with that daemon."""
    alive = session.state == SessionState.ALIVE
    return Worker(
        session=SessionId(session.id),
        worker_id=session.worker_id,
        endpoint=session.endpoint,
        pool=pool,
        pid=session.pid,
        pidfd=pidfd,
        connection=None,
        boot_epoch=pool.state.boot_epoch,
        lost=not alive,
        expected_by=time.monotonic() + REATTACH_S if alive else None,
    )


def find_keeper(path: Path) -> KeeperLink:
    """A link to the keeper, which may be starting too. KeeperError after KEEPER_WAIT_S without one."""
    deadline, told = time.monotonic() + KEEPER_WAIT_S, False
    while True:
        try:
            return KeeperLink(path)
        except KeeperError as error:
            if time.monotonic() >= deadline:
                raise
            if not told:
                log.info("waiting for the keeper", reason=str(error))
                told = True
        time.sleep(0.1)


def run(settings: KvManagerSettings, allocator: str = MODULE, fast_crashes: int = 0) -> int:
    """The daemon, until SIGTERM. Exit codes: 0, 1 without a keeper, 2 for a bad run directory, 7 beside another.

    `allocator` is the module that is run to make memory on a GPU; `fast_crashes` daemons before this one, in a row,
    failed soon after they began.
    """
    logs.configure("kvmanager", settings.log_format, settings.log_level)
    os.umask(0o077)
    try:
        keeper = find_keeper(settings.keeper or settings.sockets.keeper)
        keeper.claim()
    except (RunDirError, KeeperError) as error:
        log.error("cannot start", error=str(error))
        return START_CODES[type(error)]
    daemon = Daemon(settings, keeper, allocator, fast_crashes)
    try:
        with contextlib.suppress(Stopped):
            daemon.run()
    except KeeperError as error:
        log.error("ending: the memory is the keeper's", error=str(error))
        return EXIT_ERROR
    except Exception as error:
        log.error("the daemon failed; its keeper starts another", exc_info=error)
        return EXIT_ERROR
    finally:
        daemon.close()
    log.info("daemon ended")
    return 0
