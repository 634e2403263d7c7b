"""The I/O thread: every socket of the worker, asleep in poll. Moves messages, decides nothing about steps.

    gateways ──Submit, Cancel──> inbox ──> step thread ──outcomes──> outbox ──Commit, Release, Grant, Open──> daemon
    gateways <──Tokens, Rejected── ledger <──────────────────── Acked ────────────────────────────────────── daemon

Shown after recorded: Tokens of a step leave when its commit was acknowledged. Every accepted sequence stands in
`_owners` until its one terminal message left, so whatever ends this process can tell each of them why.
"""

import time
from dataclasses import replace
from enum import Enum
from typing import Final

import structlog
import zmq

from compute.audience import Audience
from compute.comeback import Comeback
from compute.front import Front
from compute.ledger import Shown
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
from compute.scheduler import Outcome, Rejection
from compute.uplink import Uplink
from compute.worker import Worker
from kvmanager.client import Attachment, DaemonLink
from kvmanager.errors import KvError, Unavailable
from kvmanager.messages import (
    Acked,
    Commit,
    Fenced,
    FinishReason,
    Heartbeat,
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
        *,
        comeback: Comeback | None = None,
        gateway_ttl_s: float = 60.0,
    ) -> None:
        """Without `comeback` the daemon's end is this worker's. A gateway that is gone has `gateway_ttl_s` to be
        replaced before its sequences end."""
        self._front = front
        self._worker = worker
        self._inbox, self._outbox = mail
        self._poller = zmq.Poller()
        self._poller.register(front.socket, zmq.POLLIN)
        self._poller.register(self._outbox.fileno(), zmq.POLLIN)
        self._daemon = Uplink(daemon, attachment, self._poller, comeback)
        self._audience = Audience(front, gateway_ttl_s)
        self._drain_until: float | None = None
        self._end: End | None = None
        self.error: BaseException | None = None  # with DAEMON_GONE and CRASHED: what happened
        self._state = WorkerState.WARMING
        self._asked = 0  # times `stop` was called
        self._next_beat = 0.0

    def stop(self) -> None:
        """Drain and end; called again: end at once. For signal handlers."""
        self._asked += 1
        self._outbox.wake()

    def close(self, linger_ms: int = 0) -> None:
        """The connection to the daemon; what was sent and is not out yet has this much time."""
        self._daemon.close(linger_ms)

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
        self._daemon.poll()
        due = min(self._next_beat, self._drain_until or self._next_beat)
        ready = dict(self._poller.poll(max(0, int((due - time.monotonic()) * 1000) + 1)))
        if self._daemon.ended(ready):
            try:
                self._daemon.lose(self._outbox.wake)
            except KvError as error:
                self._fail(End.DAEMON_GONE, error)

    # ------------------------------------------------------------------------------------------- gateways

    def _from_gateways(self) -> None:
        for message in self._front.receive():
            if isinstance(message, Request):
                if self._audience.joins(message):
                    self._inbox.put(Submitted(message))
            elif message.sequence in self._audience:
                self._inbox.put(message)

    # -------------------------------------------------------------------------------------------- daemon

    def _from_daemon(self) -> None:
        try:
            for number, reply in self._daemon.receive():
                self._heard(number, reply)
        except KvError as error:
            self._fail(End.DAEMON_GONE, error)

    def _heard(self, number: int, reply: Reply) -> None:
        acked = reply if isinstance(reply, Acked) else Acked()
        for shown in self._daemon.ledger.answered(number, acked.refusals):
            self._recorded(shown, acked if shown.held.number == number else Acked())
        if reply is not acked:
            self._inbox.put(reply if number else Unasked(reply))

    def _recorded(self, shown: Shown, acked: Acked) -> None:
        self._audience.show(shown.held.step, shown.events)
        for rejection in shown.rejections:
            self._audience.reject(rejection)
        message = shown.held.message
        if isinstance(message, Commit | Release | Fenced):
            self._inbox.put(Applied(message, acked))
        for refusal in acked.refusals:
            log.error("the KV manager refused", what=type(message).__name__, reason=refusal.message)

    # --------------------------------------------------------------------------------------- step thread

    def _from_step(self) -> None:
        try:
            for item in self._outbox.take():
                match item:
                    case Orders(messages):
                        for message in messages:
                            self._daemon.send(message)
                    case Outcome():
                        self._say(item)
                    case Crashed(error):
                        self._fail(End.CRASHED, error)
        except KvError as error:  # the daemon's queue is full: it has not listened for a long time
            self._fail(End.DAEMON_GONE, error)

    def _say(self, outcome: Outcome) -> None:
        if outcome.commit is not None:
            self._daemon.send(outcome.commit, outcome.commit.step, outcome.events)
        elif not self._daemon.ledger.follow(outcome.events):  # what they say again may not be recorded yet
            self._audience.show(self._worker.scheduler.progress.step, outcome.events)
        if outcome.release is not None:
            self._daemon.send(outcome.release)
        for ref, rejection in ((one.ref, one.rejection) for one in outcome.handed_over):
            if ref.epoch:
                self._daemon.send(Fenced(sequence=ref.sequence, epoch=ref.epoch), rejections=(rejection,))
            else:
                self._audience.reject(rejection)  # the daemon has no record of it
        for rejection in outcome.rejections:
            self._audience.reject(rejection)
        for ended in outcome.ended:
            log_end(ended)

    # ----------------------------------------------------------------------------------------------- time

    def _beat(self) -> None:
        now = time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + HEARTBEAT_S
            self._audience.expire(now, self._abandon)
            self._note_state()
            self._daemon.heartbeat(heartbeat(self._worker))

    def _abandon(self, sequence: SequenceId) -> None:
        self._inbox.put(Canceled(sequence, FinishReason.CANCELLED))

    def _note_state(self) -> None:
        if self._state is WorkerState.WARMING and self._worker.state is WorkerState.READY:
            log.info("ready")
        self._state = self._worker.state

    def _heed_stop(self, grace_s: float) -> None:
        if self._asked and self._drain_until is None:
            log.info("draining", open_requests=len(self._audience), grace_s=grace_s)
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
        if len(self._audience):
            return False
        state = self._worker.state
        return state is WorkerState.WARMING or (
            state is WorkerState.DRAINING and not len(self._daemon.ledger)
        )

    def _fail(self, end: End, error: BaseException) -> None:
        """The first reason counts. A drained worker misses nothing when its daemon goes at the same time."""
        if self._end is None and self._asked and end is End.DAEMON_GONE and not len(self._audience):
            self._end = End.DRAINED
        if self._end is None:
            self._end, self.error = end, error

    def _tell_all(self, end: End) -> None:
        """Nobody is left without an answer."""
        failed = Unavailable(end.value)  # another worker may adopt them
        for sequence, client in self._audience.items():
            self._audience.reject(
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
        replayed=progress.replayed,
        reprefilled=progress.reprefilled,
        prompt_tokens=progress.prompt_tokens,
        generation_tokens=progress.generation_tokens,
    )
