"""The KV manager's state in the worker's own process, behind the link's interface: the peer that the daemon is timed
against. The same allocator, tables and prefix index; no process, no socket, no protobuf between."""

import os
import time
from collections import deque
from typing import Any

import zmq

from kvmanager.layout import Geometry, MetaLayout, PoolSpec
from kvmanager.messages import Heartbeat, Numbered, Reply, SessionId
from kvmanager.state import KvState

SESSION = SessionId(bytes(16))


class LocalLink:
    """See `kvmanager.client.DaemonLink`. An answer is there when `send` returns; `socket` says so to a poller."""

    events = zmq.POLLIN

    def __init__(self, spec: PoolSpec) -> None:
        self.socket = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.metadata = bytearray(MetaLayout(spec).total_bytes)
        self.state = KvState.create(self.metadata, spec, time.monotonic_ns())
        self.state.attach(
            SESSION, worker_id="l", endpoint="e", pid=1, start_time=1, now_ns=time.monotonic_ns()
        )
        self.sent = 0
        self.replies: deque[tuple[int, Reply]] = deque()

    def send(self, message: Numbered) -> int:
        self.sent += 1
        for outgoing in self.state.apply(SESSION, self.sent, message, time.monotonic_ns()):
            self.replies.append((outgoing.number, outgoing.reply))
        os.eventfd_write(self.socket, 1)
        return self.sent

    def receive(self) -> list[tuple[int, Reply]]:
        try:
            os.eventfd_read(self.socket)
        except BlockingIOError:
            return []
        replies = list(self.replies)
        self.replies.clear()
        return replies

    def heartbeat(self, message: Heartbeat) -> None:
        """Nobody watches."""

    def close(self, linger_ms: int = 0) -> None:
        os.close(self.socket)


class NoAttachment:
    """What the link watches for the daemon's end: it never comes."""

    def __init__(self) -> None:
        self.silent = os.eventfd(0, os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self.silent


def pool_spec(geometry: Geometry, num_blocks: int, **sizes: Any) -> PoolSpec:
    return PoolSpec(
        name="local", geometry=geometry, num_blocks=num_blocks, model="m", model_fingerprint=bytes(32),
        device="cpu", dtype=geometry.dtype, nonce=bytes(16), **sizes,
    )  # fmt: skip
