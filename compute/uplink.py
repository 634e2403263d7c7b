"""A worker's side of its daemon, over as many daemons as come: what is numbered, unanswered, and said again.

    there ──attachment ends──> gone ──attached again──> asking what it knows ──Holdings──> there

While there is none, messages are numbered and kept; steps go on. A new daemon knows the session from the metadata: what
it had applied is answered from its Holdings, the rest goes out in the old order.
"""

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

import structlog
import zmq

from compute.comeback import Comeback
from compute.ledger import Held, Ledger
from compute.reconcile import answer, by_sequence, given_up
from compute.scheduler import Rejection, TokenEvent
from kvmanager.client import Attachment, DaemonLink
from kvmanager.errors import KvError, Unavailable
from kvmanager.messages import Grant, Granted, Heartbeat, Holdings, Numbered, OpenOrAdopt, Reply

log = structlog.get_logger()


class Daemon(Enum):
    """Whether there is one to talk to."""

    THERE = "it is there"
    GONE = "it is gone; another is waited for"
    ASKED = "another is there; what it knows is asked"


class Uplink:
    """Owned by the I/O thread. Errors of the daemon, and its end without `comeback`, are raised: the link is over."""

    def __init__(
        self, link: DaemonLink, attachment: Attachment, poller: zmq.Poller, comeback: Comeback | None
    ) -> None:
        self._link, self._attachment = link, attachment
        self._poller, self._comeback = poller, comeback
        self._daemon = Daemon.THERE
        self.ledger = Ledger()
        poller.register(attachment.fileno(), zmq.POLLIN)

    def poll(self) -> None:
        """Before each poll: what to wake up for."""
        if self._daemon is not Daemon.GONE:
            self._poller.register(self._link.socket, self._link.events)

    def ended(self, ready: Mapping[Any, int]) -> bool:
        """Whether the poll found that the daemon closed its end: it died, and another comes; or it fenced us, and will
        say so."""
        return self._daemon is not Daemon.GONE and self._attachment.fileno() in ready

    def lose(self, wake: Any) -> None:
        """Attaches again; `wake` is called when there is something to receive. Unavailable if that is not wanted."""
        if self._comeback is None:
            raise Unavailable("the KV manager closed the attachment")
        log.warning("the KV manager is away", unacknowledged=len(self.ledger))
        for source in (self._link.socket, self._attachment.fileno()):
            self._poller.unregister(source)
        self._link.close()
        self._attachment.connection.close()  # its descriptors may be needed yet, to map the pool
        self._daemon = Daemon.GONE
        self._comeback.begin(self._attachment.session, wake)

    def send(
        self,
        message: Numbered,
        step: int = 0,
        events: Iterable[TokenEvent] = (),
        rejections: Iterable[Rejection] = (),
    ) -> None:
        """Numbered and kept until it is acknowledged; while the daemon is away it goes out later."""
        self.ledger.sent(Held(self.ledger.number + 1, message, step, tuple(events), tuple(rejections)))
        if self._daemon is Daemon.THERE:
            self._link.send(message)

    def heartbeat(self, message: Heartbeat) -> None:
        if self._daemon is not Daemon.GONE:
            self._link.heartbeat(message)

    def receive(self) -> Iterator[tuple[int, Reply]]:
        """Replies, with the number each answers (0: unasked). Handle each before taking the next."""
        if self._daemon is Daemon.GONE:
            self._come_back()
            return
        for number, reply in self._link.receive():
            if isinstance(reply, Holdings):
                yield from self._reconcile(reply)
            else:
                yield number, reply

    def _come_back(self) -> None:
        """What the thread that attaches again found, if it is done."""
        assert self._comeback is not None
        found = self._comeback.take()
        if isinstance(found, KvError):
            raise found
        if found is not None:
            self._attachment.close()
            self._attachment, self._link = found, self._comeback.connect(found)
            self._poller.register(found.fileno(), zmq.POLLIN)
            self._daemon = Daemon.ASKED
            self._link.ask_holdings()

    def _reconcile(self, holdings: Holdings) -> Iterator[tuple[int, Reply]]:
        """The answers that the former daemon could not give; then what it never got goes out, in the old order."""
        held, applied = by_sequence(holdings), self._attachment.answer.number
        settled = [one for one in self.ledger if one.number <= applied]
        given = given_up((one.message for one in settled), held)
        granted = frozenset(holdings.blocks)
        for one in settled:
            lost = answer(one.message, held, given, granted)
            yield one.number, Granted(blocks=()) if isinstance(one.message, Grant) else lost
        yield 0, holdings
        self._daemon = Daemon.THERE
        for one in self.ledger:
            number = self._link.send(one.message)
            assert number == one.number, "a session's numbers have no gap"
        for message in [one.message for one in settled if isinstance(one.message, OpenOrAdopt)]:
            self.send(message)
        epoch = self._attachment.boot_epoch
        log.info("the KV manager is back", boot_epoch=epoch, sent_again=len(self.ledger))

    def close(self, linger_ms: int = 0) -> None:
        """What was sent and is not out yet has this much time."""
        self._link.close(linger_ms)
        self._attachment.close()
