"""Which gateway listens to which sequence. The newest that submits one is told of it (protocol rule 15).

A gateway that is gone is told nothing, and its sequences run on for a while: they are recorded, and another gateway may
ask for them. Every accepted sequence stands here until its one terminal message left.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable

import structlog

from compute.codec import encode_rejected, encode_tokens
from compute.front import Front
from compute.request import Request
from compute.scheduler import Rejection, TokenEvent
from kvmanager.messages import SequenceId

log = structlog.get_logger()


class Audience:
    def __init__(self, front: Front, ttl_s: float) -> None:
        """`ttl_s`: how long sequences run on without a gateway."""
        self._front, self._ttl_s = front, ttl_s
        self._listeners: dict[SequenceId, bytes] = {}
        self._gone: dict[bytes, float] = {}  # gateways → until when their sequences run

    def __len__(self) -> int:
        return len(self._listeners)

    def __contains__(self, sequence: SequenceId) -> bool:
        return sequence in self._listeners

    def items(self) -> list[tuple[SequenceId, bytes]]:
        return list(self._listeners.items())

    def joins(self, request: Request) -> bool:
        """Its gateway listens from now on; False if it does already, and the message is the same again."""
        known = self._listeners.get(request.sequence)
        self._listeners[request.sequence] = request.client
        self._gone.pop(request.client, None)
        return known != request.client

    def show(self, step: int, events: Iterable[TokenEvent]) -> None:
        """One Tokens message for each gateway."""
        by_client = defaultdict(list)
        for event in events:
            listener = self._listeners.get(event.sequence)
            if listener is not None:
                by_client[listener].append(event)
            if event.finish:
                self._listeners.pop(event.sequence, None)
        for client, own in by_client.items():
            self._tell(client, encode_tokens(step, own))

    def reject(self, rejection: Rejection) -> None:
        client = self._listeners.pop(rejection.sequence, None)
        if client is not None:
            self._tell(client, (encode_rejected(rejection),))

    def _tell(self, client: bytes, frames: Iterable[bytes]) -> None:
        if client not in self._gone and not all(self._front.send(client, frame) for frame in frames):
            log.warning("a gateway is gone", gateway=client.hex()[:8], its_sequences=len(self._of(client)))
            self._gone[client] = time.monotonic() + self._ttl_s

    def _of(self, client: bytes) -> list[SequenceId]:
        return [sequence for sequence, listener in self._listeners.items() if listener == client]

    def expire(self, now: float, end: Callable[[SequenceId], None]) -> None:
        """Calls `end` for sequences that nobody has asked for in time."""
        for client in [client for client, until in self._gone.items() if until <= now]:
            del self._gone[client]
            for sequence in self._of(client):
                del self._listeners[sequence]
                end(sequence)
