"""The ZeroMQ links to compute workers: Submit and Cancel out, Tokens and Rejected in. Policy is elsewhere.

The only module that knows compute.proto. Each link has one long-lived task in recv; it ends when the link closes and
is never cancelled in the middle, because a cancelled recv can lose a message. Sends never wait.
"""

import asyncio
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog
import zmq
import zmq.asyncio
from google.protobuf.message import Message

from gateway.tracks import Entry
from holdfast import wire
from holdfast.v1 import compute_pb2
from holdfast.v1 import generate_pb2 as pb
from kvmanager.messages import FinishReason

SEND_QUEUE: Final = 10_000  # messages to a worker that does not read; then it counts as gone
RECEIVE_QUEUE: Final = 10_000
LINGER_MS: Final = 200  # so that a Cancel sent just before the end still leaves
SEQUENCE_BYTES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One sequence to generate; every field is filled.

    `adopt`: it was submitted before, and the daemon's record decides how it goes on. `output_ids` are what is known
    of its output, packed, for a daemon that has no such record.
    """

    sequence: bytes
    group: bytes
    index: int
    n: int
    request_id: str
    token_ids: bytes  # packed little-endian u32
    sampling: pb.SamplingParams
    stopping: pb.StoppingCriteria
    logprobs: int
    prompt_logprobs: int
    priority: int
    arrival_ns: int
    tenant: bytes
    adopt: bool = False
    output_ids: bytes = b""


@dataclass(frozen=True, slots=True)
class Rejection:
    """The worker will not generate the sequence (any more)."""

    sequence: bytes
    code: int
    details: dict[str, str]


TokensEntry = Entry[pb.TokenLogprob]
Receiver = Callable[[TokensEntry | Rejection], None]


class WorkerLink:
    """A DEALER to one worker's endpoint. Use within a running event loop."""

    def __init__(self, context: zmq.asyncio.Context, endpoint: str, receive: Receiver) -> None:
        self._log = structlog.get_logger(endpoint=endpoint)
        self._receive = receive
        self._socket: zmq.asyncio.Socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.setsockopt(zmq.SNDHWM, SEND_QUEUE)
        self._socket.setsockopt(zmq.RCVHWM, RECEIVE_QUEUE)
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_FRAME_BYTES)
        self._socket.connect(endpoint if "://" in endpoint else f"ipc://{endpoint}")
        self._task = asyncio.create_task(self._pump(), name=f"worker link {endpoint}")

    def submit(self, submission: Submission) -> bool:
        """False if the worker does not take messages."""
        return self._send(compute_pb2.WorkerRequest(submit=to_submit(submission)))

    def cancel(self, sequence: bytes, reason: FinishReason) -> bool:
        cancel = compute_pb2.Cancel(sequence=sequence, reason=int(reason))  # type: ignore[arg-type]
        return self._send(compute_pb2.WorkerRequest(cancel=cancel))

    def _send(self, message: Message) -> bool:
        future = asyncio.ensure_future(self._socket.send(wire.encode(message), zmq.DONTWAIT))
        return not (future.done() and future.exception())

    async def _pump(self) -> None:
        while not self._socket.closed:
            frames = await self._socket.recv_multipart()
            try:
                self._hand_on(frames)
            except wire.FrameError as error:
                self._log.warning("dropped a worker's message", reason=str(error))
            except Exception:  # noqa: BLE001 - our bug in one message must not silence every stream of this worker
                self._log.exception("a worker's message could not be handled")

    def _hand_on(self, frames: list[bytes]) -> None:
        if len(frames) != 1:
            raise wire.FrameError(f"{len(frames)} frames, expected 1")
        reply = wire.decode(compute_pb2.WorkerReply, frames[0])
        match reply.WhichOneof("body"):
            case "tokens":
                for entry in reply.tokens.entries:
                    self._receive(from_entry(entry))
            case "rejected":
                self._receive(from_rejected(reply.rejected))
            case _:
                raise wire.FrameError("a reply without a body")

    async def close(self) -> None:
        """Sends what is queued for a moment, then ends the link's task."""
        self._socket.close(LINGER_MS)  # ends the pending recv
        with suppress(asyncio.CancelledError, zmq.ZMQError):
            await self._task


def to_submit(given: Submission) -> compute_pb2.Submit:
    return compute_pb2.Submit(
        sequence=given.sequence,
        group=given.group,
        index=given.index,
        n=given.n,
        request_id=given.request_id,
        token_ids=given.token_ids,
        sampling=given.sampling,
        stopping=given.stopping,
        logprobs=given.logprobs,
        prompt_logprobs=given.prompt_logprobs,
        priority=given.priority,
        arrival_ns=given.arrival_ns,
        tenant=given.tenant,
        adopt=given.adopt,
        output_ids=given.output_ids,
    )


def from_record(request: bytes, prompt: bytes) -> Submission:
    """What a sequence was submitted with: `request` is the Submit that the daemon keeps, which has no prompt."""
    given = wire.parse(compute_pb2.Submit, request)
    return Submission(
        sequence=given.sequence,
        group=given.group,
        index=given.index,
        n=given.n,
        request_id=given.request_id,
        token_ids=prompt,
        sampling=given.sampling,
        stopping=given.stopping,
        logprobs=given.logprobs,
        prompt_logprobs=given.prompt_logprobs,
        priority=given.priority,
        arrival_ns=given.arrival_ns,
        tenant=given.tenant,
    )


def from_entry(entry: compute_pb2.TokensEntry) -> TokensEntry:
    """FrameError if the entry contradicts itself."""
    ids = unpack_ids(entry.token_ids)
    if len(entry.sequence) != SEQUENCE_BYTES or (entry.logprobs and len(entry.logprobs) != len(ids)):
        raise wire.FrameError(f"malformed TokensEntry: {len(ids)} ids, {len(entry.logprobs)} logprobs")
    try:
        finish = FinishReason(entry.finish)
    except ValueError:
        raise wire.FrameError(f"unknown finish reason {entry.finish}") from None
    return Entry(
        sequence=entry.sequence,
        epoch=entry.epoch,
        first_position=entry.first_position,
        token_ids=ids,
        logprobs=list(entry.logprobs) if entry.logprobs else (),
        prompt_logprobs=list(entry.prompt_logprobs) if entry.prompt_logprobs else (),
        finish=finish,
        stop_token_id=entry.stop_token_id if entry.stopped_by_token else None,
        cached_tokens=entry.cached_tokens,
        queue_seconds=entry.queue_seconds,
        stalled_seconds=entry.stalled_seconds,
    )


def from_rejected(rejected: compute_pb2.Rejected) -> Rejection:
    return Rejection(rejected.sequence, rejected.error.code, dict(rejected.error.details))


def pack_ids(ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(ids)}I", *ids)


def unpack_ids(packed: bytes) -> tuple[int, ...]:
    """FrameError unless `packed` is whole u32s."""
    if len(packed) % 4:
        raise wire.FrameError(f"packed ids of {len(packed)} bytes")
    return struct.unpack(f"<{len(packed) // 4}I", packed)
