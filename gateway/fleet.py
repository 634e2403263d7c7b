"""The live workers and who runs which sequence: snapshots, links, dispatch. Which worker is `routing`'s choice.

Membership is reconciled with a snapshot that the daemon answers when membership changes, or after 200 ms; so a death is
known here as soon as there, and loads are fresh. A daemon that does not answer changes nothing here: workers stay as
last seen, and `serving` turns false.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterable
from functools import partial
from typing import Final, Protocol

import structlog
import zmq.asyncio

from gateway import membership
from gateway.membership import Daemon, Found, Recorded
from gateway.routing import ANSWER_SECONDS, Members, Pool, Worker, WorkerKey, choose
from gateway.workers import Rejection, Submission, TokensEntry, WorkerLink
from kvmanager.errors import KvError
from kvmanager.messages import FinishReason

PAUSE_SECONDS: Final = (
    0.005  # between an answer and the next question: a bound, should every answer come at once
)
AWAY_SECONDS: Final = 0.25  # between questions to a daemon that does not answer
SNAPSHOT_TIMEOUT: Final = 0.8  # three times the daemon's beat, and some
RECORD_TIMEOUT: Final = 1.0


class Sink(Protocol):
    """Who listens to one sequence. Called from the event loop; must not block."""

    def heard(self, entry: TokensEntry) -> None: ...

    def rejected(self, rejection: Rejection) -> None: ...

    def lost(self) -> None:
        """The worker is gone; nothing more will be heard of this sequence."""

    def tick(self, now: float) -> None:
        """Every snapshot, or in its place when there is none."""


class Fleet:
    """Start with `run` in a task of its own; `close` at the end."""

    def __init__(self, context: zmq.asyncio.Context, daemon: Daemon, model: str) -> None:
        self._context = context
        self._daemon = daemon
        self._model = model
        self._links: dict[WorkerKey, WorkerLink] = {}
        self._sinks: dict[bytes, tuple[WorkerKey, Sink]] = {}
        self._own: Counter[WorkerKey] = Counter()
        self._changed = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()
        self._answered = float("-inf")
        self._version = 0
        self._said = ""
        self._log = structlog.get_logger()
        self.members = Members()

    # ------------------------------------------------------------------------------------ membership

    async def run(self) -> None:
        """Reconciles for ever."""
        while True:
            await asyncio.sleep(PAUSE_SECONDS if await self.refresh() else AWAY_SECONDS)

    async def refresh(self) -> bool:
        """One snapshot, once it says something new or the daemon's beat passed; or a word in the log, and False."""
        try:
            snapshot = await self._daemon.snapshot(self._version, SNAPSHOT_TIMEOUT, wait=True)
        except KvError as error:
            self._say("waiting for the KV manager", reason=error.message)
            answered = False
        else:
            answered, self._answered, self._version = True, time.monotonic(), snapshot.version
            self._reconcile(membership.from_snapshot(snapshot))
        for _, sink in list(self._sinks.values()):
            sink.tick(time.monotonic())
        return answered

    def _reconcile(self, members: Members) -> None:
        self.members = members
        self._drop([key for key in self._links if members.gone(key)])
        for worker in members.workers.values():
            if worker.alive and worker.key not in self._links:
                self._links[worker.key] = WorkerLink(
                    self._context, worker.endpoint, partial(self._receive, worker.key)
                )
        ready = len(members.ready(self._model))
        self._say("a worker is ready" if ready else "waiting for a worker", model=self._model)
        self._changed.set()
        self._changed = asyncio.Event()

    def _drop(self, gone: Iterable[WorkerKey]) -> None:
        for key in gone:
            task = asyncio.create_task(self._links.pop(key).close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
            for sequence, (worker, sink) in list(self._sinks.items()):
                if worker == key:
                    self.forget(sequence)
                    sink.lost()

    def _say(self, event: str, **fields: str) -> None:
        """Once per change, not once per snapshot."""
        if event != self._said:
            self._said = event
            self._log.info(event, **fields)

    @property
    def daemon_answers(self) -> bool:
        return time.monotonic() - self._answered < ANSWER_SECONDS

    @property
    def serving(self) -> bool:
        """The daemon answered lately and a worker makes progress."""
        return self.daemon_answers and self.members.serving(self._model)

    async def pick(self, avoid: Collection[WorkerKey], timeout: float) -> tuple[Worker, Pool] | None:
        """A READY worker and its pool, waiting up to `timeout` seconds for one to appear."""
        deadline = time.monotonic() + timeout
        while (worker := choose(self.members, self._model, self._own, avoid)) is None:
            left = deadline - time.monotonic()
            if left <= 0 or not await self.change_within(left):
                return None
        return worker, self.members.pools[worker.pool]

    async def change_within(self, seconds: float) -> bool:
        """Waits for the next snapshot; False if none came in time."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    # ------------------------------------------------------------------------------------ sequences

    @property
    def sequences(self) -> int:
        return len(self._sinks)

    def submit(self, worker: WorkerKey, submission: Submission, sink: Sink) -> bool:
        """False if the worker is gone or does not take messages; then `sink` hears nothing."""
        link = self._links.get(worker)
        if link is None or not link.submit(submission):
            return False
        self.forget(submission.sequence)
        self._sinks[submission.sequence] = worker, sink
        self._own[worker] += 1
        return True

    def forget(self, sequence: bytes, sink: Sink | None = None) -> WorkerKey | None:
        """Nobody listens to `sequence` any more; the worker that had it, if it was known.

        With `sink`: only if it is the one that listens.
        """
        if sink is not None and self._sinks.get(sequence, (None, None))[1] is not sink:
            return None
        worker, _ = self._sinks.pop(sequence, (None, None))
        if worker is not None:
            self._own[worker] -= 1
            if not self._own[worker]:
                del self._own[worker]
        return worker

    def cancel(self, sequence: bytes, sink: Sink, reason: FinishReason) -> None:
        """Forgets the sequence and tells its worker, at once; unless another than `sink` listens to it now."""
        worker = self.forget(sequence, sink)
        if worker is not None and worker in self._links:
            self._links[worker].cancel(sequence, reason)

    async def record(self, sequence: bytes, first: int) -> Recorded:
        """The daemon's record of `sequence` from position `first` on; KvError if it cannot be read."""
        return await membership.read_record(self._daemon, sequence, first, RECORD_TIMEOUT)

    async def find(self, request_id: str, tenant: bytes) -> list[Found]:
        """The daemon's records of a request; KvError if it cannot be asked."""
        return await membership.find_request(self._daemon, request_id, tenant, RECORD_TIMEOUT)

    def _receive(self, worker: WorkerKey, message: TokensEntry | Rejection) -> None:
        found = self._sinks.get(message.sequence)
        if found is None:
            return  # cancelled a moment ago
        if isinstance(message, Rejection):
            if found[0] != worker:
                return  # it was asked for, and has gone elsewhere since
            self.forget(message.sequence)
            found[1].rejected(message)
        else:
            found[1].heard(message)

    async def close(self) -> None:
        self._drop(list(self._links))
        await asyncio.gather(*self._closing)
