"""A worker's numbered messages to the daemon, and the replies. One thread owns a link and polls its socket.

Nothing here blocks. What ZeroMQ cannot take now waits in a bounded queue of the link's own, in order; a full one is
an error for the caller to count, never a silent drop. Numbers start at 1 and follow the order of `send`.
"""

from collections import deque
from typing import Final

import zmq

from holdfast import wire
from holdfast.rundir import RunDir
from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.client_attach import Attachment
from kvmanager.codec import decode_reply, encode_request
from kvmanager.errors import KvError, ResourceExhausted, Unavailable
from kvmanager.messages import Heartbeat, Numbered, Reply

MAX_QUEUED: Final = 4096


def dealer(context: "zmq.Context[zmq.Socket[bytes]]", sockets: RunDir) -> "zmq.Socket[bytes]":
    """A DEALER connected to the daemon: bounded both ways, and nothing lingers."""
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDTIMEO, 0)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.SNDHWM, 1000)
    socket.setsockopt(zmq.RCVHWM, 10_000)
    socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_FRAME_BYTES)
    socket.connect(f"ipc://{sockets.daemon}")
    return socket


class DaemonLink:
    """Owned by ONE thread. Poll `socket` for `events`, then call `receive`."""

    def __init__(
        self, context: "zmq.Context[zmq.Socket[bytes]]", sockets: RunDir, attachment: Attachment
    ) -> None:
        self.socket = dealer(context, sockets)
        self._session = attachment.session
        self._boot_epoch = attachment.boot_epoch
        self._sent = self._acked = attachment.answer.number
        self._failed: KvError | None = None
        self._queue: deque[bytes] = deque([wire.encode(self._hello())])
        self.flush()

    def _hello(self) -> pb.DaemonRequest:
        return pb.DaemonRequest(session=self._session, boot_epoch=self._boot_epoch, hello=pb.Hello())

    @property
    def unacked(self) -> int:
        """Numbered messages sent and not answered yet."""
        return self._sent - self._acked

    @property
    def queued(self) -> int:
        """Messages that ZeroMQ has not taken yet."""
        return len(self._queue)

    @property
    def events(self) -> int:
        """What to poll `socket` for: POLLIN, and POLLOUT while something is queued."""
        return zmq.POLLIN | (zmq.POLLOUT if self._queue else 0)

    def send(self, message: Numbered) -> int:
        """Sends or queues the message and returns its number. ResourceExhausted if the queue is full."""
        if len(self._queue) >= MAX_QUEUED:
            raise ResourceExhausted(f"{MAX_QUEUED} messages wait for the KV manager", queued=MAX_QUEUED)
        self._sent += 1
        self._put(message, self._sent)
        return self._sent

    def ask_holdings(self) -> None:
        """After a re-attach, before anything else is sent: the answer is a Holdings."""
        body = pb.DaemonRequest(
            session=self._session, boot_epoch=self._boot_epoch, holdings=pb.HoldingsRequest()
        )
        self._queue.append(wire.encode(body))
        self.flush()

    def heartbeat(self, message: Heartbeat) -> None:
        """Sends the heartbeat now or not at all: an old one is worth nothing."""
        self.flush()
        if not self._queue:
            self._put(message, 0)

    def _put(self, message: Numbered | Heartbeat, number: int) -> None:
        envelope = encode_request(message, self._session, self._boot_epoch, number)
        self._queue.append(wire.encode(envelope))
        self.flush()

    def flush(self) -> None:
        """Hands queued messages to ZeroMQ as far as it takes them."""
        try:
            while self._queue:
                self.socket.send(self._queue[0], zmq.NOBLOCK)
                self._queue.popleft()
        except zmq.Again:
            return

    def receive(self) -> list[tuple[int, Reply]]:
        """All replies that are here, with the number each answers (0: unasked).

        Raises the daemon's error (Fenced, Invalid, …) after the replies before it were returned: the link is over.
        """
        self.flush()
        replies: list[tuple[int, Reply]] = []
        while not self._failed and (frames := self._next()) is not None:
            try:
                replies.append(self._decode(frames))
            except KvError as error:
                self._failed = error
            except wire.FrameError as error:
                self._failed = Unavailable(f"unreadable reply: {error}")
        if self._failed and not replies:
            raise self._failed
        return replies

    def _next(self) -> list[bytes] | None:
        try:
            return self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def _decode(self, frames: list[bytes]) -> tuple[int, Reply]:
        envelope = wire.decode(pb.DaemonReply, frames[-1])
        reply = decode_reply(envelope)
        self._acked = max(self._acked, envelope.number)
        return envelope.number, reply

    def close(self, linger_ms: int = 0) -> None:
        """What was sent and is not out yet has this much time; it passes while the context is terminated."""
        self.socket.close(linger_ms)
