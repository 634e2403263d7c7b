"""The I/O thread: every socket of the worker, asleep in poll. Moves messages, decides nothing about steps.

    gateways ──Submit, Cancel──> inbox ──> step thread ──outcomes──> outbox ──Commit, Release, Grant, Open──> daemon
    gateways <──Tokens, Rejected── ledger <──────────────────── Acked ────────────────────────────────────── daemon

Shown after recorded: Tokens of a step leave when its commit was acknowledged. Every accepted sequence stands in
`_owners` until its one terminal message left, so whatever ends this process can tell each of them why.
"""

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from enum import Enum
from typing import Final

import structlog
import zmq

from compute.codec import encode_rejected, encode_tokens
from compute.front import Front
from compute.ledger import Held, Ledger, Shown
from compute.mailbox import (
    Applied,
    Canceled,
    Crashed,
    Draining,
    Inbox,
    Orders,
    Outbox,
    Stop,
    Submitted,
    ToLink,
    ToStep,
    Unasked,
)
from compute.report import log_end
from compute.request import Request
from compute.scheduler import Outcome, Rejection, TokenEvent
from compute.worker import Worker
from kvmanager.client import Attachment, DaemonLink
from kvmanager.errors import KvError, Unavailable
from kvmanager.messages import (
    Acked,
    Commit,
    FinishReason,
    Heartbeat,
    Numbered,
    Release,
    Reply,
    SequenceId,
    WorkerState,
)

HEARTBEAT_S: Final = 0.2

log = structlog.get_logger()


class End(Enum):
    """Why the link's loop is over."""

    DRAINED = "drained"
    GRACE_OVER = "the shutdown grace is over"
    AT_ONCE = "told to stop at once"
    DAEMON_GONE = "the KV manager is gone"
    CRASHED = "the step thread failed"


class Link:
    """Runs in the thread that made its sockets. `run` returns when the worker's life is over."""

    def __init__(
        self,
        front: Front,
        daemon: DaemonLink,
        attachment: Attachment,
        worker: Worker,
        mail: tuple[Inbox[ToStep], Outbox[ToLink]],
    ) -> None:
        self._front = front
        self._daemon = daemon
        self._attachment = attachment
        self._worker = worker
        self._inbox, self._outbox = mail
        self._ledger = Ledger()
        self._owners: dict[SequenceId, bytes] = {}
        self._drain_until: float | None = None
        self._end: End | None = None
        self.error: BaseException | None = None  # with DAEMON_GONE and CRASHED: what happened
        self._state = WorkerState.WARMING
        self._asked = 0  # times `stop` was called
        self._next_beat = 0.0
        self._poller = zmq.Poller()
        self._poller.register(front.socket, zmq.POLLIN)
        self._poller.register(attachment.fileno(), zmq.POLLIN)
        self._poller.register(self._outbox.fileno(), zmq.POLLIN)

    def stop(self) -> None:
        """Drain and end; called again: end at once. For signal handlers."""
        self._asked += 1
        self._outbox.wake()

    def run(self, grace_s: float) -> End:
        """Until the end, and tells every open request about it."""
        try:
            self._loop(grace_s)
        except BaseException:
            self._end = End.CRASHED
            raise
        finally:
            self._inbox.put(Stop())
            self._tell_all(self._end or End.CRASHED)
        assert self._end is not None
        return self._end

    def _loop(self, grace_s: float) -> None:
        while self._end is None:
            self._wait()
            self._heed_stop(grace_s)
            self._from_step()
            self._from_daemon()
            self._from_gateways()
            self._beat()

    def _wait(self) -> None:
        """Sleeps until something arrives or the next heartbeat is due."""
        self._poller.register(self._daemon.socket, self._daemon.events)
        due = min(self._next_beat, self._drain_until or self._next_beat)
        ready = dict(self._poller.poll(max(0, int((due - time.monotonic()) * 1000) + 1)))
        if self._attachment.fileno() in ready:
            self._fail(End.DAEMON_GONE, Unavailable("the KV manager closed the attachment"))

    # ------------------------------------------------------------------------------------------- gateways

    def _from_gateways(self) -> None:
        for message in self._front.receive():
            if isinstance(message, Request):
                self._submit(message)
            elif message.sequence in self._owners:
                self._inbox.put(message)

    def _submit(self, request: Request) -> None:
        """A sequence that is live already is the same message again: ignored."""
        if request.sequence not in self._owners:
            self._owners.update(dict.fromkeys(request.indexes, request.client))
            self._inbox.put(Submitted(request))

    def _show(self, step: int, events: Iterable[TokenEvent]) -> None:
        """One Tokens message for each gateway."""
        by_client = defaultdict(list)
        for event in events:
            if event.sequence in self._owners:
                by_client[event.client].append(event)
            if event.finish:
                self._owners.pop(event.sequence, None)
        for client, own in by_client.items():
            if not all(self._front.send(client, frame) for frame in encode_tokens(step, own)):
                self._lost(client)

    def _reject(self, rejection: Rejection) -> None:
        client = self._owners.pop(rejection.sequence, None)
        if client is not None and not self._front.send(client, encode_rejected(rejection)):
            self._lost(client)

    def _lost(self, client: bytes) -> None:
        """Nobody reads what its sequences would give."""
        orphans = [sequence for sequence, owner in self._owners.items() if owner == client]
        log.warning("a gateway is gone", gateway=client.hex()[:8], canceled=len(orphans))
        for sequence in orphans:
            del self._owners[sequence]
            self._inbox.put(Canceled(sequence, FinishReason.CANCELLED))

    # -------------------------------------------------------------------------------------------- daemon

    def _from_daemon(self) -> None:
        try:
            for number, reply in self._daemon.receive():
                self._heard(number, reply)
        except KvError as error:
            self._fail(End.DAEMON_GONE, error)

    def _heard(self, number: int, reply: Reply) -> None:
        acked = reply if isinstance(reply, Acked) else Acked()
        for shown in self._ledger.answered(number, acked.refusals):
            self._recorded(shown, acked if shown.held.number == number else Acked())
        if reply is not acked:
            self._inbox.put(reply if number else Unasked(reply))

    def _recorded(self, shown: Shown, acked: Acked) -> None:
        self._show(shown.held.step, shown.events)
        for rejection in shown.rejections:
            self._reject(rejection)
        message = shown.held.message
        if isinstance(message, Commit | Release):
            self._inbox.put(Applied(message, acked))
        for refusal in acked.refusals:
            log.error("the KV manager refused", what=type(message).__name__, reason=refusal.message)

    def _send(self, message: Numbered, step: int = 0, events: Iterable[TokenEvent] = ()) -> None:
        self._ledger.sent(Held(self._daemon.send(message), message, step, tuple(events)))

    # --------------------------------------------------------------------------------------- step thread

    def _from_step(self) -> None:
        try:
            for item in self._outbox.take():
                match item:
                    case Orders(messages):
                        for message in messages:
                            self._send(message)
                    case Outcome():
                        self._say(item)
                    case Crashed(error):
                        self._fail(End.CRASHED, error)
        except KvError as error:  # the daemon's queue is full: it has not listened for a long time
            self._fail(End.DAEMON_GONE, error)

    def _say(self, outcome: Outcome) -> None:
        if outcome.commit is not None:
            self._send(outcome.commit, outcome.commit.step, outcome.events)
        else:
            self._show(self._worker.scheduler.progress.step, outcome.events)
        if outcome.release is not None:
            self._send(outcome.release)
        for rejection in outcome.rejections:
            self._reject(rejection)
        for ended in outcome.ended:
            log_end(ended)

    # ----------------------------------------------------------------------------------------------- time

    def _beat(self) -> None:
        now = time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + HEARTBEAT_S
            self._note_state()
            self._daemon.heartbeat(heartbeat(self._worker))

    def _note_state(self) -> None:
        if self._state is WorkerState.WARMING and self._worker.state is WorkerState.READY:
            log.info("ready")
        self._state = self._worker.state

    def _heed_stop(self, grace_s: float) -> None:
        if self._asked and self._drain_until is None:
            log.info("draining", open_requests=len(self._owners), grace_s=grace_s)
            self._drain_until = time.monotonic() + grace_s
            self._inbox.put(Draining())
            self._next_beat = 0.0
        if self._drain_until is None or self._end is not None:
            return
        if self._asked > 1:
            self._end = End.AT_ONCE
        elif self._drained():
            self._end = End.DRAINED
            self._daemon.heartbeat(replace(heartbeat(self._worker), state=WorkerState.DRAINING))
        elif time.monotonic() >= self._drain_until:
            self._end = End.GRACE_OVER

    def _drained(self) -> bool:
        """Nothing is open and everything is recorded. A worker that still loads has nothing to finish."""
        if self._owners:
            return False
        state = self._worker.state
        return state is WorkerState.WARMING or (state is WorkerState.DRAINING and not len(self._ledger))

    def _fail(self, end: End, error: BaseException) -> None:
        """The first reason counts. A drained worker misses nothing when its daemon goes at the same time."""
        if self._end is None and self._asked and end is End.DAEMON_GONE and not self._owners:
            self._end = End.DRAINED
        if self._end is None:
            self._end, self.error = end, error

    def _tell_all(self, end: End) -> None:
        """Nobody is left without an answer."""
        failed: KvError = KvError(end.value) if end is End.CRASHED else Unavailable(end.value)
        for sequence, client in list(self._owners.items()):
            self._reject(
                Rejection(sequence=sequence, client=client, code=failed.code, message=failed.message)
            )


def heartbeat(worker: Worker) -> Heartbeat:
    progress = worker.scheduler.progress
    return Heartbeat(
        state=worker.state,
        step=progress.step,
        bound_ms=worker.bound_ms,
        busy=worker.stepping > 0,
        running=progress.running,
        waiting=progress.waiting,
        float_blocks=progress.float_blocks,
        tokens_per_second=progress.tokens_per_second,
        steps_waited=progress.steps_waited,
        wait_p99_ms=progress.wait_p99_ms,
        preemptions=progress.preemptions,
        prompt_tokens=progress.prompt_tokens,
        generation_tokens=progress.generation_tokens,
    )
