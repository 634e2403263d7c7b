"""A worker's side of the attachment: connect, state the model, receive the memory.

The open connection is the attachment. When it ends (`fileno` becomes readable) the daemon is gone or has dropped
this worker. A worker attaches again with `resume_session`: a daemon that started anew knows it from the metadata, and
goes on with it; one that fenced it refuses, and whatever the worker still writes counts for nothing.

A worker on a GPU connects before its process makes any CUDA call. The kernel closes a dead process's descriptors in
the order of their numbers, and the driver takes tens of milliseconds over its own: a connection that is older than
them tells of the death before that, and others take over sooner. So the spec, which names the GPU and needs the
driver for that, may be a function that is called once there is a connection.
"""

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import TracebackType
from typing import Final

import structlog

from holdfast import wire
from holdfast.rundir import RunDir
from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager import fds
from kvmanager.attachment import Attached, AttachSpec
from kvmanager.codec_attach import decode_attached, encode_attach
from kvmanager.errors import Unavailable
from kvmanager.gpu_memory import MEMFD

RETRY_S: Final = 0.2
REMIND_S: Final = 10.0

log = structlog.get_logger()


@dataclass(slots=True)
class Attachment:
    """An attached worker: its session, and the memory it may map. Closing it ends the session."""

    answer: Attached
    pool_fd: int
    metadata_fd: int  # read-only
    spec: AttachSpec  # what was stated
    connection: socket.socket = field(repr=False)

    @property
    def session(self) -> bytes:
        return self.answer.session

    @property
    def device(self) -> str:
        """ "cpu" or the GPU's UUID."""
        return self.spec.device

    @property
    def boot_epoch(self) -> int:
        return self.answer.boot_epoch

    @property
    def pool(self) -> str:
        return self.answer.pool

    @property
    def num_blocks(self) -> int:
        return self.answer.num_blocks

    @property
    def pool_bytes(self) -> int:
        return self.answer.pool_bytes

    @property
    def metadata_bytes(self) -> int:
        return self.answer.metadata_bytes

    @property
    def nonce(self) -> bytes:
        return self.answer.nonce

    @property
    def exporter(self) -> str:
        return self.answer.exporter

    @property
    def allocation_bytes(self) -> int:
        return self.answer.allocation_bytes

    def fileno(self) -> int:
        """Readable once the attachment has ended; poll it."""
        return self.connection.fileno()

    def close(self) -> None:
        """Ends the session. Mappings made from the descriptors stay valid. May be called twice."""
        self.connection.close()
        if self.pool_fd >= 0:
            fds.close_all((self.pool_fd, self.metadata_fd))
            self.pool_fd = self.metadata_fd = -1

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def attach(
    sockets: RunDir,
    spec: AttachSpec | Callable[[], AttachSpec],
    timeout_s: float,
    on_wait: Callable[[str], None] | None = None,
) -> Attachment:
    """Attaches to the daemon of this run directory, waiting for it to appear.

    A `spec` that is a function is called once, right after the first connect, and has 15 s; what it raises ends this.

    `on_wait` is told why nothing happens yet, at once and every ten seconds; without it a log line says so.
    Raises Unavailable at the timeout, and the daemon's own refusal (Mismatch, NoMemory, Conflict, Invalid).
    """
    waiting = Waiting(time.monotonic() + timeout_s, on_wait or _log_wait)
    statement = cache(spec) if callable(spec) else lambda: spec
    while True:
        try:
            return _attach_once(sockets, statement, waiting.left())
        except (OSError, EOFError) as error:
            waiting.pause(f"the KV manager does not answer at {sockets.attach} ({error or 'closed'})")


@dataclass(slots=True)
class Waiting:
    """One deadline, and a reminder of what is waited for."""

    deadline: float
    tell: Callable[[str], None]
    told: float = float("-inf")

    def left(self) -> float:
        return max(self.deadline - time.monotonic(), 0.01)

    def pause(self, reason: str) -> None:
        """Sleeps a little; Unavailable with the reason once the deadline has passed."""
        now = time.monotonic()
        if now >= self.deadline:
            raise Unavailable(reason)
        if now - self.told >= REMIND_S:
            self.told = now
            self.tell(reason)
        time.sleep(min(RETRY_S, self.deadline - now))


def _log_wait(reason: str) -> None:
    log.info("waiting for the KV manager", reason=reason)


def _attach_once(sockets: RunDir, statement: Callable[[], AttachSpec], timeout_s: float) -> Attachment:
    """One try. OSError or EOFError: nobody there, or gone before it answered."""
    connection = fds.connect(sockets.attach, timeout_s)
    received: list[int] = []
    try:
        spec = statement()
        fds.send(connection, wire.encode(encode_attach(spec)))
        data, received = fds.receive(connection)
        if not data:
            raise EOFError
        answer = decode_attached(wire.decode(pb.AttachReply, data))
        if len(received) != 2:
            raise Unavailable(f"the KV manager sent {len(received)} descriptors with its answer, expected 2")
        if answer.exporter == MEMFD:  # a GPU's descriptor has no size
            _check_size("pool", received[0], answer.pool_bytes)
        _check_size("metadata", received[1], answer.metadata_bytes)
    except BaseException:
        connection.close()
        fds.close_all(received)
        raise
    connection.settimeout(None)
    return Attachment(
        answer=answer,
        pool_fd=received[0],
        metadata_fd=received[1],
        spec=spec,
        connection=connection,
    )


def _check_size(what: str, fd: int, expected: int) -> None:
    if (found := os.fstat(fd).st_size) != expected:
        raise Unavailable(f"the {what} descriptor holds {found} bytes, the KV manager said {expected}")
