"""The live workers and who runs which sequence: snapshots, links, dispatch. Which worker is `routing`'s choice.

Membership is reconciled with a snapshot every 250 ms; there are no events. A daemon that does not answer changes
nothing here: workers stay as last seen, and `serving` turns false.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Final, Protocol

import structlog
import zmq.asyncio

from gateway import membership
from gateway.membership import Daemon, Recorded
from gateway.routing import ANSWER_SECONDS, Members, Pool, Worker, WorkerKey, choose
from gateway.workers import Rejection, Submission, TokensEntry, WorkerLink
from kvmanager.errors import KvError
from kvmanager.messages import FinishReason

SNAPSHOT_SECONDS: Final = 0.25
SNAPSHOT_TIMEOUT: Final = 0.8
RECORD_TIMEOUT: Final = 1.0
EVERYTHING: Final = 0  # the snapshot's version that gives workers and pools whatever their version is


class Sink(Protocol):
    """Who listens to one sequence. Called from the event loop; must not block."""

    def heard(self, entry: TokensEntry) -> None: ...

    def rejected(self, rejection: Rejection) -> None: ...

    def lost(self) -> None:
        """The worker is gone; nothing more will be heard of this sequence."""

    def tick(self, now: float) -> None:
        """Every snapshot."""


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
        self._said = ""
        self._log = structlog.get_logger()
        self.members = Members()

    # ------------------------------------------------------------------------------------ membership

    async def run(self) -> None:
        """Reconciles for ever."""
        while True:
            began = time.monotonic()
            await self.refresh()
            await asyncio.sleep(max(0.0, SNAPSHOT_SECONDS - (time.monotonic() - began)))

    async def refresh(self) -> None:
        """One snapshot, or a word in the log that the daemon is away."""
        try:
            snapshot = await self._daemon.snapshot(EVERYTHING, SNAPSHOT_TIMEOUT)
        except KvError as error:
            self._say("waiting for the KV manager", reason=error.message)
        else:
            self._answered = time.monotonic()
            self._reconcile(membership.from_snapshot(snapshot))
        for _, sink in list(self._sinks.values()):
            sink.tick(time.monotonic())

    def _reconcile(self, members: Members) -> None:
        self.members = members
        self._drop([key for key in self._links if members.gone(key)])
        for worker in members.workers.values():
            if worker.alive and worker.key not in self._links:
                self._links[worker.key] = WorkerLink(self._context, worker.endpoint, self._receive)
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
            if left <= 0 or not await self._change_within(left):
                return None
        return worker, self.members.pools[worker.pool]

    async def _change_within(self, seconds: float) -> bool:
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

    def submit(self, worker: WorkerKey, submission: Submission, sinks: Mapping[bytes, Sink]) -> bool:
        """`sinks`: who listens to each sequence that the submission gives. False if the worker is gone or does not take
        messages; then nobody hears anything."""
        link = self._links.get(worker)
        if link is None or not link.submit(submission):
            return False
        for sequence, sink in sinks.items():
            self._sinks[sequence] = worker, sink
            self._own[worker] += 1
        return True

    def forget(self, sequence: bytes) -> WorkerKey | None:
        """Nobody listens to `sequence` any more; the worker that had it, if it was known."""
        worker, _ = self._sinks.pop(sequence, (None, None))
        if worker is not None:
            self._own[worker] -= 1
            if not self._own[worker]:
                del self._own[worker]
        return worker

    def cancel(self, sequence: bytes, reason: FinishReason) -> None:
        """Forgets the sequence and tells its worker, at once."""
        worker = self.forget(sequence)
        if worker is not None and worker in self._links:
            self._links[worker].cancel(sequence, reason)

    async def record(self, sequence: bytes, first: int) -> Recorded:
        """The daemon's record of `sequence` from position `first` on; KvError if it cannot be read."""
        return await membership.read_record(self._daemon, sequence, first, RECORD_TIMEOUT)

    def _receive(self, message: TokensEntry | Rejection) -> None:
        found = self._sinks.get(message.sequence)
        if found is None:
            return  # cancelled a moment ago
        if isinstance(message, Rejection):
            self.forget(message.sequence)
            found[1].rejected(message)
        else:
            found[1].heard(message)

    async def close(self) -> None:
        self._drop(list(self._links))
        await asyncio.gather(*self._closing)
