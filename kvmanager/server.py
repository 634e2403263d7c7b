"""The daemon's transport: one thread, one poller, and who may say what. Decides nothing about the KV.

Three kinds of failure, one reaction each: a frame that cannot be read is dropped and counted; a request that cannot
be granted is answered with an Error; a broken invariant ends the process, and the keeper starts another.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Final

import structlog
from google.protobuf.message import Message

from holdfast import wire
from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.codec import REQUESTS, decode_request, encode_error, encode_reply
from kvmanager.errors import Fenced, Invalid, KvError, Unimplemented
from kvmanager.liveness import Watch
from kvmanager.messages import Heartbeat
from kvmanager.parts import Outgoing
from kvmanager.pools import Pool
from kvmanager.router import Packet, Router, Sent
from kvmanager.workers import Worker, Workers

ROUND: Final = 256  # messages handled before the other sockets get their turn
MAX_PARKED: Final = 256

log = structlog.get_logger()


class Sender(Enum):
    """Who may send a message."""

    WORKER = "a session, on the connection that said Hello"
    ANYBODY = "gateways, the CLI, workers"


LEGAL: Final[Mapping[str, Sender]] = {
    "hello": Sender.WORKER,
    **dict.fromkeys(REQUESTS, Sender.WORKER),
    "holdings": Sender.WORKER,
    **dict.fromkeys(
        (
            "snapshot",
            "read_record",
            "find_request",
            "status",
            "list",
            "describe",
            "fsck",
            "flush",
            "evict",
            "pin",
            "unpin",
            "drain",
            "undrain",
            "delete_pool",
        ),
        Sender.ANYBODY,
    ),
}

Question = Callable[[Any], Message]  # body of a request -> body of its reply

# Oneof case of a question -> that of its reply, where they differ.
REPLY_FIELDS: Final[Mapping[str, str]] = {
    "read_record": "record",
    "find_request": "found_request",
    "drain": "drained",
    "undrain": "undrained",
    "delete_pool": "deleted_pool",
}


class Server:
    """Reads the ROUTER, dispatches, answers. `serve` completes it: workers and server know each other."""

    def __init__(self, router: Router, watch: Watch) -> None:
        self.router, self.watch = router, watch
        self.workers: Workers
        self.questions: Mapping[str, Question] = {}
        self._parked: list[tuple[bytes, pb.DaemonRequest]] = []  # snapshots asked for with `wait`
        self.bad_frames = 0
        self.unsent = 0

    def serve(self, workers: Workers, questions: Mapping[str, Question]) -> None:
        """Before the first message: the sessions, and the handlers of what ANYBODY may ask."""
        self.workers, self.questions = workers, questions

    def drain(self) -> bool:
        """Handles what has arrived, up to ROUND messages. True if nothing is left."""
        for _ in range(ROUND):
            packet = self.router.receive()
            if packet is None:
                return True
            self._handle(packet)
        return False

    def _handle(self, packet: Packet) -> None:
        try:
            if packet.frame is None:
                raise wire.FrameError(f"message of {packet.num_frames} frames, expected 1")
            envelope = wire.decode(pb.DaemonRequest, packet.frame.bytes)
        except wire.FrameError as error:
            self.bad_frames += 1
            log.debug("bad frame dropped", error=str(error), total=self.bad_frames)
            return
        try:
            self._dispatch(packet, envelope)
        except KvError as error:
            reply = pb.DaemonReply(number=envelope.number, error=encode_error(error))
            self._put(packet.identity, reply)

    def _dispatch(self, packet: Packet, envelope: pb.DaemonRequest) -> None:
        case = envelope.WhichOneof("body")
        if case not in LEGAL:
            raise Invalid("body: empty or unknown", field="body")
        if case == "snapshot" and self._can_wait(envelope.snapshot):
            self._parked.append((packet.identity, envelope))
        elif LEGAL[case] is Sender.ANYBODY:
            self._ask(packet.identity, envelope, case)
        elif case == "hello":
            self._hello(packet, self._session(envelope))
        else:
            self._work(self._bound(packet, envelope), envelope, case)

    # ------------------------------------------------------------------------------------- workers

    def _session(self, envelope: pb.DaemonRequest) -> Worker:
        worker = self.workers.by_session.get(envelope.session)  # type: ignore[call-overload]
        if worker is None or worker.lost or worker.boot_epoch != envelope.boot_epoch:
            raise Fenced("no such session: it was lost, or belongs to a daemon before this one")
        return worker  # type: ignore[no-any-return]

    def _hello(self, packet: Packet, worker: Worker) -> None:
        """Binds the session to this connection, which must be of the process that attached."""
        if packet.pid != worker.pid:
            raise Fenced("the session belongs to another process")
        worker.identity = packet.identity

    def _bound(self, packet: Packet, envelope: pb.DaemonRequest) -> Worker:
        worker = self._session(envelope)
        if worker.identity != packet.identity:
            raise Fenced("the session is not bound to this connection; say Hello first")
        return worker

    def _work(self, worker: Worker, envelope: pb.DaemonRequest, case: str) -> None:
        state = worker.pool.state
        if case == "holdings":
            found = state.holdings(worker.session)
            self.deliver(worker.pool, [Outgoing(worker.session, envelope.number, found)])
            return
        message = decode_request(envelope)
        if isinstance(message, Heartbeat):
            if self.watch.hear(worker.session, message):
                self.workers.changed()
            return
        self.deliver(worker.pool, state.apply(worker.session, envelope.number, message, time.monotonic_ns()))

    def deliver_outbox(self, pool: Pool) -> None:
        """After a worker was lost or buried: what that means for others."""
        self.deliver(pool, pool.state.outbox())

    def deliver(self, pool: Pool, outgoing: Sequence[Outgoing]) -> None:
        """Sends what the state wants said. A worker that does not take it is lost, never the data."""
        for session, number, reply in outgoing:
            worker = self.workers.by_session.get(session)
            if worker is None or worker.identity is None:
                log.debug(
                    "nobody to tell", reply=type(reply).__name__
                )  # lost meanwhile, or has never said Hello
                continue
            sent = self._put(worker.identity, encode_reply(reply, pool.state.boot_epoch, number))
            if sent is not Sent.YES:
                self.workers.fence(worker, sent.value)

    # ------------------------------------------------------------------------------------- questions

    def _can_wait(self, request: pb.SnapshotRequest) -> bool:
        """Whoever asks too often waits for nothing."""
        news = request.version != self.workers.version
        return request.wait and not news and len(self._parked) < MAX_PARKED

    def answer_parked(self, beat: bool) -> None:
        """At the end of each round: membership is another, or it is time for fresh loads."""
        if self._parked and (beat or self._parked[0][1].snapshot.version != self.workers.version):
            parked, self._parked = self._parked, []
            for identity, envelope in parked:
                envelope.snapshot.version = 0  # in full
                self._ask(identity, envelope, "snapshot")

    def _ask(self, identity: bytes, envelope: pb.DaemonRequest, case: str) -> None:
        if case not in self.questions:
            raise Unimplemented(f"{case}: not built yet")
        answer = self.questions[case](getattr(envelope, case))
        reply = pb.DaemonReply(number=envelope.number)
        getattr(reply, REPLY_FIELDS.get(case, case)).CopyFrom(answer)
        if reply.ByteSize() > wire.MAX_FRAME_BYTES - wire.HEADER_BYTES:
            raise Invalid(
                f"page_size: the answer is larger than {wire.MAX_FRAME_BYTES} bytes", field="page_size"
            )
        self._put(identity, reply)

    def _put(self, identity: bytes, reply: pb.DaemonReply) -> Sent:
        sent = self.router.send(identity, wire.encode(reply))
        if sent is not Sent.YES:
            self.unsent += 1
            log.debug("reply not sent", reason=sent.value, total=self.unsent)
        return sent
