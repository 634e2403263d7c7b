"""The worker's own socket: gateways send Submit and Cancel, and get Tokens and Rejected. Bytes and peers, no policy.

A ROUTER on worker-ID.sock, for one process only (`socket_name` decides which). Nothing blocks. A gateway
that cannot be reached (gone, or not reading) is told to the caller, who ends its sequences.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog
import zmq

from compute import socket_name
from compute.codec import BadSubmit, Bounds, decode_request, encode_rejected
from compute.mailbox import Canceled
from compute.request import Request
from compute.scheduler import Rejection
from holdfast import wire

MAX_MESSAGES: Final = 256  # taken in one go, so that the daemon's answers get their turn
QUEUE: Final = 10_000  # messages to a gateway that does not read; then it counts as gone
LAST_WORDS_MS: Final = 1000

log = structlog.get_logger()


class Front:
    """Owned by one thread; poll `socket`."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", path: Path, bounds: Bounds) -> None:
        self._path = path
        self._bounds = bounds
        self._lock = socket_name.take(path)
        self.dropped = 0
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDTIMEO, 0)
        self.socket.setsockopt(zmq.SNDHWM, QUEUE)
        self.socket.setsockopt(zmq.RCVHWM, QUEUE)
        self.socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_FRAME_BYTES)
        self.socket.bind(f"ipc://{path}")

    def receive(self) -> Iterator[Request | Canceled]:
        """What gateways sent. A bad Submit is answered here; what is no message is dropped and counted.

        `client` of a Request is the peer that sent it.
        """
        for _ in range(MAX_MESSAGES):
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                yield self._decode(frames)
            except wire.FrameError as error:
                self._drop(str(error))
            except BadSubmit as error:
                self._refuse(error, frames[0])

    def _decode(self, frames: list[bytes]) -> Request | Canceled:
        if len(frames) != 2:
            raise wire.FrameError(f"{len(frames)} frames, expected 2")
        return decode_request(frames[1], self._bounds, client=frames[0])

    def _drop(self, reason: str) -> None:
        """Logged at the powers of two, so that a noisy peer fills no disk."""
        self.dropped += 1
        if self.dropped & (self.dropped - 1) == 0:
            log.warning("dropped a message on the worker's socket", reason=reason, dropped=self.dropped)

    def _refuse(self, bad: BadSubmit, client: bytes) -> None:
        log.info("rejected a request", sequence=bad.sequence.hex()[:8], reason=bad.error.message)
        error = bad.error
        rejection = Rejection(
            sequence=bad.sequence,
            client=client,
            code=error.code,
            message=error.message,
            details=error.details,
        )
        self.send(client, encode_rejected(rejection))

    def send(self, client: bytes, frame: bytes) -> bool:
        """False if this gateway is gone, or reads nothing any more."""
        try:
            self.socket.send_multipart((client, frame), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno in {zmq.EHOSTUNREACH, zmq.EAGAIN}:
                return False
            raise
        return True

    def close(self) -> None:
        """Gives last words a moment to leave, and the name back."""
        self.socket.close(LAST_WORDS_MS)
        socket_name.give_back(self._path, self._lock)
