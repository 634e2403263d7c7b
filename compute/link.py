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
from compute.comeback import Comeback
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
from compute.reconcile import answer, by_sequence, given_up
from compute.report import log_end
from compute.request import Request
from compute.scheduler import Outcome, Rejection, TokenEvent
from compute.worker import Worker
from kvmanager.client import Attachment, DaemonLink
from kvmanager.errors import KvError, Unavailable
from kvmanager.messages import (
    Acked,
    Commit,
    Fenced,
    FinishReason,
    Grant,
    Granted,
    Heartbeat,
    Holdings,
    Numbered,
    OpenOrAdopt,
    Release,
    Reply,
    SequenceId,
    WorkerState,
)

HEARTBEAT_S: Final = 0.2

log = structlog.get_logger()


class Away(Enum):
    """Whether there is a daemon to talk to."""

    NO = "it is there"
    GONE = "it is gone; another is waited for"
    ASKING = "another is there; what it knows is asked"


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
        self._daemon = daemon
        self._attachment = attachment
        self._comeback = comeback
        self._away = Away.NO
        self._worker = worker
        self._inbox, self._outbox = mail
        self._ledger = Ledger()
        self._owners: dict[SequenceId, bytes] = {}
        self._unheard: dict[bytes, float] = {}  # gateways that are gone → until when their sequences run
        self._gateway_ttl_s = gateway_ttl_s
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

    def close(self, linger_ms: int = 0) -> None:
        """The connection to the daemon; what was sent and is not out yet has this much time."""
        self._daemon.close(linger_ms)
        self._attachment.close()

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
        if self._away is not Away.GONE:
            self._poller.register(self._daemon.socket, self._daemon.events)
        due = min(self._next_beat, self._drain_until or self._next_beat)
        ready = dict(self._poller.poll(max(0, int((due - time.monotonic()) * 1000) + 1)))
        if self._away is not Away.GONE and self._attachment.fileno() in ready:
            self._lose_daemon()

    # ------------------------------------------------------------------------------------------- gateways

    def _from_gateways(self) -> None:
        for message in self._front.receive():
            if isinstance(message, Request):
                self._submit(message)
            elif message.sequence in self._owners:
                self._inbox.put(message)

    def _submit(self, request: Request) -> None:
        """The newest gateway that submits a sequence is told of it (rule 15)."""
        known = self._owners.get(request.sequence)
        self._owners[request.sequence] = request.client
        self._unheard.pop(request.client, None)
        if known is None or known != request.client:
            self._inbox.put(Submitted(request))

    def _show(self, step: int, events: Iterable[TokenEvent]) -> None:
        """One Tokens message for each gateway."""
        by_client = defaultdict(list)
        for event in events:
            owner = self._owners.get(event.sequence)
            if owner is not None:
                by_client[owner].append(event)
            if event.finish:
                self._owners.pop(event.sequence, None)
        for client, own in by_client.items():
            if client not in self._unheard and not all(
                self._front.send(client, frame) for frame in encode_tokens(step, own)
            ):
                self._lost(client)

    def _reject(self, rejection: Rejection) -> None:
        client = self._owners.pop(rejection.sequence, None)
        if (
            client is not None
            and client not in self._unheard
            and not self._front.send(client, encode_rejected(rejection))
        ):
            self._lost(client)

    def _lost(self, client: bytes) -> None:
        """Nobody reads what its sequences give. It is recorded all the same, for another gateway (rule 15)."""
        log.warning("a gateway is gone", gateway=client.hex()[:8], its_sequences=len(self._of(client)))
        self._unheard[client] = time.monotonic() + self._gateway_ttl_s

    def _of(self, client: bytes) -> list[SequenceId]:
        return [sequence for sequence, owner in self._owners.items() if owner == client]

    def _end_unheard(self, now: float) -> None:
        """Sequences that nobody has asked for in time."""
        for client in [client for client, until in self._unheard.items() if until <= now]:
            del self._unheard[client]
            for sequence in self._of(client):
                del self._owners[sequence]
                self._inbox.put(Canceled(sequence, FinishReason.CANCELLED))

    # -------------------------------------------------------------------------------------------- daemon

    def _lose_daemon(self) -> None:
        """Its end of the attachment closed: it died, and another comes; or it fenced us, and will say so."""
        if self._comeback is None:
            self._fail(End.DAEMON_GONE, Unavailable("the KV manager closed the attachment"))
            return
        log.warning("the KV manager is away", unacknowledged=len(self._ledger))
        for source in (self._daemon.socket, self._attachment.fileno()):
            self._poller.unregister(source)
        self._daemon.close()
        self._attachment.connection.close()  # its descriptors may be needed yet, to map the pool
        self._away = Away.GONE
        self._comeback.begin(self._attachment.session, self._outbox.wake)

    def _come_back(self) -> None:
        """What the thread that attaches again found."""
        assert self._comeback is not None
        found = self._comeback.take()
        if isinstance(found, KvError):
            self._fail(End.DAEMON_GONE, found)
        elif found is not None:
            self._attachment.close()
            self._attachment, self._daemon = found, self._comeback.connect(found)
            self._poller.register(found.fileno(), zmq.POLLIN)
            self._away = Away.ASKING
            self._daemon.ask_holdings()

    def _from_daemon(self) -> None:
        if self._away is Away.GONE:
            self._come_back()
            return
        try:
            for number, reply in self._daemon.receive():
                if isinstance(reply, Holdings):
                    self._reconcile(reply)
                else:
                    self._heard(number, reply)
        except KvError as error:
            self._fail(End.DAEMON_GONE, error)

    def _reconcile(self, holdings: Holdings) -> None:
        """The answers that the former daemon could not give, then everything that it never got, in the old order."""
        held, applied = by_sequence(holdings), self._attachment.answer.number
        settled, again = [one for one in self._ledger if one.number <= applied], []
        given = given_up(one.message for one in settled)
        for one in settled:
            if isinstance(one.message, OpenOrAdopt):
                again.append(one.message)
            lost = answer(one.message, held, given)
            self._heard(one.number, Granted(blocks=()) if isinstance(one.message, Grant) else lost)
        self._inbox.put(Unasked(holdings))
        self._away = Away.NO
        for one in self._ledger:
            number = self._daemon.send(one.message)
            assert number == one.number, "a session's numbers have no gap"
        for message in again:
            self._send(message)
        log.info(
            "the KV manager is back", boot_epoch=self._attachment.boot_epoch, sent_again=len(self._ledger)
        )

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
        if isinstance(message, Commit | Release | Fenced):
            self._inbox.put(Applied(message, acked))
        for refusal in acked.refusals:
            log.error("the KV manager refused", what=type(message).__name__, reason=refusal.message)

    def _send(
        self,
        message: Numbered,
        step: int = 0,
        events: Iterable[TokenEvent] = (),
        rejections: Iterable[Rejection] = (),
    ) -> None:
        """Numbered and kept until it is acknowledged; while the daemon is away it goes out later."""
        self._ledger.sent(Held(self._ledger.number + 1, message, step, tuple(events), tuple(rejections)))
        if self._away is Away.NO:
            self._daemon.send(message)

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
        elif not self._ledger.follow(outcome.events):  # what they say again may not be recorded yet
            self._show(self._worker.scheduler.progress.step, outcome.events)
        if outcome.release is not None:
            self._send(outcome.release)
        for ref, rejection in ((one.ref, one.rejection) for one in outcome.handed_over):
            if ref.epoch:
                self._send(Fenced(sequence=ref.sequence, epoch=ref.epoch), rejections=(rejection,))
            else:
                self._reject(rejection)  # the daemon has no record of it
        for rejection in outcome.rejections:
            self._reject(rejection)
        for ended in outcome.ended:
            log_end(ended)

    # ----------------------------------------------------------------------------------------------- time

    def _beat(self) -> None:
        now = time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + HEARTBEAT_S
            self._end_unheard(now)
            self._note_state()
            if self._away is not Away.GONE:
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
            if self._away is not Away.GONE:
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
        failed = Unavailable(end.value)  # another worker may adopt them
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
        replayed=progress.replayed,
        reprefilled=progress.reprefilled,
        prompt_tokens=progress.prompt_tokens,
        generation_tokens=progress.generation_tokens,
    )
