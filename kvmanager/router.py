"""The daemon's ROUTER socket: bounded in, bounded out, never blocking. Knows frames, not what is in them."""

import os
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

import zmq

from holdfast import wire

SEND_QUEUE: Final = 2000  # messages for one peer that does not read
RECEIVE_QUEUE: Final = 1000


class Sent(Enum):
    YES = "sent"
    GONE = "the peer is gone"
    FULL = "the peer does not read"


class Packet(NamedTuple):
    """One message. `frame` is None unless it had exactly one."""

    identity: bytes
    frame: zmq.Frame | None
    num_frames: int

    @property
    def pid(self) -> int | None:
        """The process that connected, by the kernel's word."""
        assert self.frame is not None
        try:
            address = str(self.frame.get("Peer-Address"))  # localhost:uid:gid:pid
        except zmq.ZMQError:
            return None
        return int(address.rsplit(":", 1)[1])


class Router:
    """Bound to a listening socket that the keeper made, so that peers stay connected to the path over restarts."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", path: Path, listener_fd: int) -> None:
        self.socket = context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.SNDHWM, SEND_QUEUE),
            (zmq.RCVHWM, RECEIVE_QUEUE),
            (zmq.MAXMSGSIZE, wire.MAX_FRAME_BYTES),
            (zmq.USE_FD, listener_fd),  # ZeroMQ closes it
        ):
            self.socket.setsockopt(option, value)
        self.socket.bind(f"ipc://{os.fspath(path)}")

    def receive(self) -> Packet | None:
        """The next message, None if there is none. Surplus frames are read and forgotten one by one."""
        try:
            identity = self.socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None
        frame, count = None, 0
        while self.socket.getsockopt(zmq.RCVMORE):
            part = self.socket.recv(zmq.NOBLOCK, copy=False)
            frame, count = (part, 1) if count == 0 else (None, count + 1)
        return Packet(identity, frame, count)

    def send(self, identity: bytes, frame: bytes) -> Sent:
        try:
            self.socket.send_multipart([identity, frame], zmq.NOBLOCK)
        except zmq.Again:
            return Sent.FULL
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return Sent.GONE
        return Sent.YES

    def close(self) -> None:
        self.socket.close(0)
