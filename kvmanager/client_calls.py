"""Questions to the daemon that need no session: the gateway's, on asyncio, and the CLI's, blocking.

Replies are protobuf messages: views of the daemon's state that nobody decides upon by field arithmetic.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final

import zmq
import zmq.asyncio
from google.protobuf.message import Message

from holdfast import wire
from holdfast.rundir import RunDir
from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.codec import decode_error
from kvmanager.errors import DeadlineExceeded, KvError, Unavailable
from kvmanager.messages import SequenceId
from kvmanager.probe import somebody_listens

MAX_CALLS: Final = 256

_FIELDS: Final = {
    field.message_type.full_name: field.name
    for field in pb.DaemonRequest.DESCRIPTOR.oneofs_by_name["body"].fields
    if field.message_type is not None
}


def _envelope(number: int, body: Message) -> pb.DaemonRequest:
    envelope = pb.DaemonRequest(number=number)
    getattr(envelope, _FIELDS[body.DESCRIPTOR.full_name]).CopyFrom(body)
    return envelope


def _body(reply: pb.DaemonReply) -> Message:
    """What the envelope holds; the daemon's error is raised."""
    case = reply.WhichOneof("body")
    if case == "error":
        raise decode_error(reply.error)
    if case is None:
        raise Unavailable("the KV manager sent an empty reply")
    body: Message = getattr(reply, case)
    return body


class AsyncDaemonClient:
    """The gateway's link. One task receives for as long as the client lives; calls may overlap.

    Use it inside one event loop, and `close` it (or `async with`) before the loop ends.
    """

    def __init__(self, context: zmq.asyncio.Context, sockets: RunDir) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, MAX_CALLS)
        self._socket.setsockopt(zmq.RCVHWM, MAX_CALLS)
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_FRAME_BYTES)
        self._socket.connect(f"ipc://{sockets.daemon}")
        self._calls: dict[int, asyncio.Future[pb.DaemonReply]] = {}
        self._number = 0
        self._receiver: asyncio.Task[None] | None = None

    async def snapshot(self, version: int = 0, timeout_s: float = 1.0, wait: bool = False) -> pb.Snapshot:
        """Workers, pools and their loads; without workers and pools if membership is still at `version`.

        With `wait` always in full: at once if membership is another than `version`, else as soon as it is, or at the
        daemon's next beat. Choose `timeout_s` longer than a beat.
        """
        body = await self._call(pb.SnapshotRequest(version=version, wait=wait), timeout_s)
        assert isinstance(body, pb.Snapshot)
        return body

    async def read_record(self, sequence: SequenceId, from_: int, timeout_s: float = 1.0) -> pb.Record:
        """Recorded tokens from position `from_` (the prompt starts at 0). NotFound for an unknown sequence."""
        body = await self._call(pb.ReadRecord(sequence=sequence, **{"from": from_}), timeout_s)
        assert isinstance(body, pb.Record)
        return body

    async def find_request(
        self, request_id: str, tenant: bytes, timeout_s: float = 1.0
    ) -> Sequence[pb.FoundSequence]:
        """The live and finished records of a tenant's request; none if it is not known (any more)."""
        body = await self._call(pb.FindRequest(request_id=request_id, tenant=tenant), timeout_s)
        assert isinstance(body, pb.FoundRequest)
        return body.sequences

    async def _call(self, body: Message, timeout_s: float) -> Message:
        """Unavailable when no answer came in time; otherwise the answer, or the daemon's error raised."""
        if self._receiver is None:
            self._receiver = asyncio.create_task(self._receive(), name="kvmanager replies")
        self._number += 1
        number = self._number
        answer: asyncio.Future[pb.DaemonReply] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        try:
            async with asyncio.timeout(timeout_s):
                await self._socket.send(wire.encode(_envelope(number, body)), zmq.NOBLOCK)
                return _body(await answer)
        except TimeoutError:
            raise Unavailable(f"the KV manager did not answer within {timeout_s:g} s") from None
        except zmq.ZMQError as error:
            raise Unavailable(f"the KV manager takes no more questions: {error}") from None
        finally:
            del self._calls[number]

    async def _receive(self) -> None:
        while True:
            frames = await self._socket.recv_multipart()
            with contextlib.suppress(wire.FrameError):  # not ours to judge: the call runs into its timeout
                reply = wire.decode(pb.DaemonReply, frames[-1])
                call = self._calls.get(reply.number)
                if call is not None and not call.done():
                    call.set_result(reply)

    async def close(self) -> None:
        if self._receiver is not None:
            self._receiver.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._receiver
            self._receiver = None
        self._socket.close(0)

    async def __aenter__(self) -> "AsyncDaemonClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AdminClient:
    """The CLI's link: one question at a time, each with its own deadline."""

    def __init__(self, sockets: RunDir, timeout_s: float = 5.0) -> None:
        self._path = sockets.daemon
        self._timeout_s = timeout_s
        self._number = 0
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_FRAME_BYTES)
        self._socket.connect(f"ipc://{self._path}")

    def request(self, body: Message) -> Message:
        """The reply's body. Unavailable: nobody listens there; DeadlineExceeded: somebody does, and is silent."""
        if not somebody_listens(self._path):
            raise Unavailable(f"no KV manager at {self._path}")
        self._number += 1
        self._socket.send(wire.encode(_envelope(self._number, body)))
        deadline = time.monotonic() + self._timeout_s
        while (left := deadline - time.monotonic()) > 0 and self._socket.poll(int(left * 1000) + 1):
            reply = self._decode(self._socket.recv_multipart()[-1])
            if reply.number == self._number:  # not the late answer to an earlier question
                return _body(reply)
        raise DeadlineExceeded(f"the KV manager at {self._path} did not answer within {self._timeout_s:g} s")

    @staticmethod
    def _decode(frame: bytes) -> pb.DaemonReply:
        try:
            return wire.decode(pb.DaemonReply, frame)
        except wire.FrameError as error:
            raise KvError(f"unreadable reply of the KV manager: {error}") from None

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()

    def __enter__(self) -> "AdminClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
