"""Where the indexes of one request run: at one worker, and at another once that one goes.

    submitted ──> its worker speaks ──> finished
        ^              │ the worker is lost, or gives the index back
        └── adrift <───┘

Whatever goes adrift is submitted again at once, under the same sequence id: the daemon's record decides how it goes
on, so the client sees a pause. One task a request does that, alive only while an index is adrift; it does not depend
on a client that reads.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import structlog

from gateway.errors import Refusal, from_wire, internal, unavailable, worker_lost
from gateway.fleet import Fleet
from gateway.index import Index
from gateway.routing import Worker, WorkerKey
from gateway.workers import Rejection, Submission, TokensEntry
from kvmanager.errors import Conflict, Fenced, ResourceExhausted, Unavailable
from kvmanager.messages import FinishReason, WorkerState

WORKER_GONE: Final = frozenset({Unavailable.code, Fenced.code})  # another will take it
NOT_YET: Final = frozenset({Conflict.code, ResourceExhausted.code})  # of what runs already: try again
PAUSES: Final = (0.0, 0.02, 0.05, 0.1, 0.2)  # seconds before the next try, by refusals so far


def sequence_id(group: bytes, index: int, arrival_ns: int) -> bytes:
    """16 bytes. Whoever knows one sequence of a group (16 random bytes) can name the others."""
    name = group + index.to_bytes(4, "little") + arrival_ns.to_bytes(8, "little")
    return hashlib.sha256(name).digest()[:16]


class Binding:
    """One index and the sequence that it is to workers and daemon. A fleet.Sink."""

    def __init__(self, index: Index, submission: Submission, tries: int = 0) -> None:
        self.index = index
        self.submission = submission
        self.tries = tries  # how often it was submitted, by anybody
        self.worker: WorkerKey | None = None  # to whom, the last time
        self.adrift = False  # no worker speaks for it
        self.since = 0.0  # when it went adrift, or did so first since it last brought something new
        self.refusals = 0
        self.strays: Callable[[], None] = lambda: None  # called when it goes adrift
        self.refused: Callable[[Binding, Rejection], None] = lambda *_: None

    @property
    def sequence(self) -> bytes:
        return self.submission.sequence

    def next_submission(self) -> Submission:
        """As at first, or, when it may have begun somewhere, with what is known of its output."""
        if not self.tries:
            return self.submission
        given = self.submission
        known = max(given.output_ids, self.index.track.output_ids, key=len)
        most = 4 * (given.stopping.max_tokens - 1)  # one is left to generate, or it would have ended
        return replace(given, adopt=True, output_ids=known[:most])

    def renew(self) -> None:
        """Another sequence, which begins with the output known so far: the record of this one has ended."""
        given, known = self.submission, self.next_submission().output_ids
        arrival_ns = given.arrival_ns + 1  # what is looked for later is the newest
        self.submission = replace(
            given,
            sequence=sequence_id(given.group, given.index, arrival_ns),
            arrival_ns=arrival_ns,
            output_ids=known,
        )
        self.tries = max(1, self.tries)
        self.index.track.begin_again(0, len(given.token_ids + known) // 4)

    # ------------------------------------------------------------------------------------ fleet.Sink

    def heard(self, entry: TokensEntry) -> None:
        # By whoever had it before: what is cancelled here is not heard any more.
        ended = entry.finish is FinishReason.CANCELLED
        if self.index.heard(replace(entry, finish=FinishReason.NONE) if ended else entry):
            self.since = self.refusals = 0
        if ended:
            self.index.look()

    def rejected(self, rejection: Rejection) -> None:
        self.refused(self, rejection)

    def lost(self) -> None:
        self.since = 0.0
        self.stray()

    def tick(self, now: float) -> None:
        self.index.tick(now)

    def stray(self) -> None:
        """No worker speaks for it. If it has ended, that does not matter."""
        self.adrift, self.since = True, self.since or time.monotonic()
        self.index.moves()
        self.strays()


class Placement:
    """Of one request's bindings. `failure` is set when it cannot go on; `wake` is set with it."""

    def __init__(
        self, fleet: Fleet, bindings: Sequence[Binding], worker_wait: float, wake: asyncio.Event
    ) -> None:
        self._fleet = fleet
        self._worker_wait = worker_wait
        self._wake = wake
        self._home: WorkerKey | None = None  # all indexes of a request run together
        self._avoid: set[WorkerKey] = set()
        self._task: asyncio.Task[None] | None = None
        self.failure: Refusal | None = None
        self.open = list(bindings)
        for binding in bindings:
            binding.strays, binding.refused = self._stir, self._refused

    def submit(self, worker: WorkerKey) -> None:
        """Every open index to `worker`; those that it does not take are adrift."""
        self._home = worker
        for binding in self.open:
            if not binding.index.track.ended:
                self._submit(binding, worker)

    def _submit(self, binding: Binding, worker: WorkerKey) -> None:
        binding.adrift = not self._fleet.submit(worker, binding.next_submission(), binding)
        binding.tries, binding.worker = binding.tries + 1, worker
        if binding.adrift:
            self._avoid.add(worker)
            binding.stray()

    def scatter(self) -> None:
        """No worker has any of them: whichever is ready will do."""
        for binding in self.open:
            binding.stray()

    # ------------------------------------------------------------------------------------ trouble

    def _refused(self, binding: Binding, rejection: Rejection) -> None:
        code = rejection.code
        if code == Conflict.code and "finish" in rejection.details:
            binding.index.look()  # it has ended: the record says how
        elif code in WORKER_GONE:
            if binding.worker is not None:
                self._avoid.add(binding.worker)
            binding.stray()
        elif code in NOT_YET and (code == Conflict.code or binding.tries > 1):
            binding.refusals += 1
            binding.stray()
        else:
            self._fail(from_wire(code, rejection.details))

    def reopen(self, binding: Binding) -> None:
        """Its record ended by somebody's cancel, not by ours: it goes on as a sequence of its own."""
        self._fleet.forget(binding.sequence, binding)
        binding.renew()
        binding.stray()

    def _fail(self, refusal: Refusal) -> None:
        self.failure = self.failure or refusal
        self._wake.set()

    def _stir(self) -> None:
        if self.failure is None and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._place(), name="placement")

    async def _place(self) -> None:
        try:
            while adrift := self._adrift():
                worker = await self._pick(adrift)
                for binding in self._adrift():
                    self._submit(binding, worker)
        except Refusal as refusal:
            self._fail(refusal)
        except Exception:  # noqa: BLE001 - nobody awaits this task: told through `failure`, with a traceback here
            structlog.get_logger().exception("internal error")
            self._fail(internal())

    def _adrift(self) -> list[Binding]:
        return [binding for binding in self.open if binding.adrift and not binding.index.track.ended]

    async def _pick(self, adrift: Sequence[Binding]) -> WorkerKey:
        """Where they go next, after the pause that is due; Refusal when `worker_wait` is over."""
        give_up = min(binding.since for binding in adrift) + self._worker_wait
        pause = PAUSES[min(max(binding.refusals for binding in adrift), len(PAUSES) - 1)]
        await asyncio.sleep(pause)
        worker = self._at_home() or await self._another(time.monotonic())
        if worker is None:
            for binding in adrift:
                binding.index.look()  # what is recorded can be shown meanwhile, perhaps the end
            worker = await self._another(give_up)
        if worker is None or time.monotonic() > give_up:
            raise self._no_worker()
        if worker.key in self._avoid:  # the only one there is
            for binding in adrift:
                binding.refusals += 1
            await asyncio.sleep(0 if pause else PAUSES[1])
        self._home = worker.key
        return worker.key

    def _at_home(self) -> Worker | None:
        """The worker that has the others, if it still takes requests."""
        if self._home is None or self._home in self._avoid:
            return None
        worker = self._fleet.members.workers.get(self._home)
        return worker if worker and worker.alive and worker.state is WorkerState.READY else None

    async def _another(self, give_up: float) -> Worker | None:
        picked = await self._fleet.pick(self._avoid, give_up - time.monotonic())
        return picked and picked[0]

    def _no_worker(self) -> Refusal:
        if any(binding.index.output.count for binding in self.open):
            return worker_lost()
        return unavailable("NO_WORKER", "no worker took the request in time")

    # ------------------------------------------------------------------------------------ ends

    def settle(self, binding: Binding) -> None:
        """Its last message was made; a worker whose index ended by a stop string is told."""
        self.open.remove(binding)
        if binding.index.track.final is None:
            self._fleet.cancel(binding.sequence, binding, FinishReason.STOP)
        else:
            self._fleet.forget(binding.sequence, binding)

    def close(self) -> None:
        """Ends what still runs, at once."""
        for binding in self.open:
            self._fleet.cancel(binding.sequence, binding, FinishReason.CANCELLED)
        self._end()

    def leave(self) -> None:
        """What still runs runs on, for whoever resumes it."""
        for binding in self.open:
            self._fleet.forget(binding.sequence, binding)
        self._end()

    def _end(self) -> None:
        self.open = []
        if self._task is not None:
            self._task.cancel()
