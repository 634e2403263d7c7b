"""A daemon and workers that do what a test tells them, speaking the real protocol over real sockets."""

import asyncio
import contextlib
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc
import zmq
import zmq.asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from holdfast import wire
from holdfast.rundir import RunDir
from holdfast.v1 import compute_pb2, kvmanager_pb2
from holdfast.v1 import generate_pb2 as pb

MODEL = "tiny"
SERVICE = "holdfast.v1.GenerateService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
Script = Callable[["ScriptedWorker", "Job"], Awaitable[None]]


def pack(ids):
    return struct.pack(f"<{len(ids)}I", *ids)


def unpack(packed):
    return list(struct.unpack(f"<{len(packed) // 4}I", packed))


@dataclass
class Job:
    """A Submit, who sent it, and how far the worker is."""

    client: bytes
    submit: compute_pb2.Submit
    position: int = 0
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    cancel: compute_pb2.Cancel | None = None

    def __post_init__(self):
        self.position = len(self.submit.token_ids) // 4


class Peer:
    """A ROUTER with one task that answers."""

    def __init__(self, context, path):
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(f"ipc://{path}")
        self.paused = False
        self.task = asyncio.create_task(self.serve())

    async def serve(self):
        while True:
            client, frame = await self.socket.recv_multipart()
            await self.answer(client, frame)

    async def close(self):
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        self.socket.close(0)


class ScriptedDaemon(Peer):
    """Snapshots of `workers` and `pools`, and records."""

    def __init__(self, context, sockets: RunDir):
        self.workers: dict[str, kvmanager_pb2.WorkerInfo] = {}
        self.pool = kvmanager_pb2.PoolInfo(
            name="pool",
            model=MODEL,
            fingerprint="ab" * 32,
            num_blocks=1001,
            max_model_len=8192,
            vocab_size=600,
            dtype="float32",
            geometry=kvmanager_pb2.Geometry(block_size=16),
        )
        self.records: dict[bytes, kvmanager_pb2.Record] = {}
        self.reads = 0
        self.read_gate = asyncio.Event()
        self.read_gate.set()
        super().__init__(context, sockets.daemon)

    async def answer(self, client, frame):
        request = wire.decode(kvmanager_pb2.DaemonRequest, frame)
        if self.paused:
            return
        reply = kvmanager_pb2.DaemonReply(number=request.number, boot_epoch=1)
        if request.WhichOneof("body") == "snapshot":
            reply.snapshot.version = 1
            reply.snapshot.workers.extend(self.workers.values())
            if self.workers:
                reply.snapshot.pools.append(self.pool)
        else:
            self.reads += 1
            self.read(request.read_record, reply)
        await self.socket.send_multipart([client, wire.encode(reply)])

    def read(self, wanted, reply):
        record = self.records.get(wanted.sequence)
        if record is None:
            reply.error.code = kvmanager_pb2.ERROR_CODE_NOT_FOUND
            return
        reply.record.CopyFrom(record)
        first = getattr(wanted, "from")
        setattr(reply.record, "from", first)
        reply.record.token_ids = record.token_ids[4 * first :]

    def record(self, job, ids, finish=0, stop_token_id=0):
        """As the daemon does before a token may be shown."""
        found = self.records.setdefault(
            job.submit.sequence,
            kvmanager_pb2.Record(
                sequence=job.submit.sequence,
                token_ids=job.submit.token_ids,
                prompt_len=len(job.submit.token_ids) // 4,
            ),
        )
        found.token_ids += pack(ids)
        found.recorded_len = len(found.token_ids) // 4
        found.finish = finish
        found.stop_token_id = stop_token_id


class ScriptedWorker(Peer):
    """Runs `script` for each Submit; remembers what it was told."""

    def __init__(
        self, context, sockets: RunDir, daemon: ScriptedDaemon, name="w1", script: Script | None = None
    ):
        self.daemon, self.name, self.script = daemon, name, script
        self.jobs: list[Job] = []
        self.cancels: list[compute_pb2.Cancel] = []
        self.running: set[asyncio.Task] = set()
        self.heard = asyncio.Event()
        path = sockets.worker(name)
        self.info = kvmanager_pb2.WorkerInfo(
            id=name,
            endpoint=str(path),
            pool="pool",
            model=MODEL,
            state=kvmanager_pb2.WORKER_STATE_READY,
            session=f"{name}-1",
        )
        daemon.workers[name] = self.info
        super().__init__(context, path)

    async def answer(self, client, frame):
        request = wire.decode(compute_pb2.WorkerRequest, frame)
        if request.WhichOneof("body") == "cancel":
            self.cancels.append(request.cancel)
            for job in self.jobs:
                if job.submit.sequence == request.cancel.sequence:
                    job.cancel = request.cancel
                    job.cancelled.set()
        else:
            job = Job(client, request.submit)
            self.jobs.append(job)
            if self.script:
                task = asyncio.create_task(self.script(self, job))
                self.running.add(task)
                task.add_done_callback(self.ended)
        self.stir()

    def ended(self, task):
        self.running.discard(task)
        self.stir()

    def stir(self):
        self.heard.set()
        self.heard = asyncio.Event()

    async def emit(self, job, ids, finish=0, first=None, epoch=1, record=True, send=True, **fields):
        """Records and shows `ids` at the job's position (or shows them at `first`)."""
        if record:
            self.daemon.record(job, ids, finish, fields.get("stop_token_id", 0))
        entry = compute_pb2.TokensEntry(
            sequence=job.submit.sequence,
            epoch=epoch,
            first_position=job.position if first is None else first,
            token_ids=pack(ids),
            finish=finish,
            **fields,
        )
        if first is None:
            job.position += len(ids)
        if send:
            await self.say(job, compute_pb2.WorkerReply(tokens=compute_pb2.Tokens(entries=[entry])))

    async def reject(self, job, code, **details):
        rejected = compute_pb2.Rejected(sequence=job.submit.sequence)
        rejected.error.code = code
        rejected.error.message = "secret: /run/worker-1.sock"
        rejected.error.details.update(details)
        await self.say(job, compute_pb2.WorkerReply(rejected=rejected))

    async def say(self, job, reply):
        await self.socket.send_multipart([job.client, wire.encode(reply)])

    async def until(self, condition, seconds=20):
        async with asyncio.timeout(seconds):
            while not condition():
                await self.heard.wait()

    async def die(self):
        """As SIGKILL: the socket closes, and the daemon sees the attachment end."""
        for task in list(self.running):
            task.cancel()
        await self.close()
        self.daemon.workers.pop(self.name, None)


def tell(*steps, finish=pb.FINISH_REASON_LENGTH, pause=0.0):
    """A script: one entry per step (a list of ids), the last with `finish`."""

    async def script(worker, job):
        for number, ids in enumerate(steps, 1):
            await worker.emit(job, ids, finish if number == len(steps) else 0)
            await asyncio.sleep(pause)

    return script


async def one_by_one(worker, job):
    """A script: ids 100, 101, … up to max_tokens, one per step, until cancelled."""
    most = job.submit.stopping.max_tokens
    for count in range(1, most + 1):
        if job.cancelled.is_set():
            await worker.emit(job, [], pb.FINISH_REASON_CANCELLED)
            return
        await worker.emit(job, [100 + count % 100], pb.FINISH_REASON_LENGTH if count == most else 0)
        await asyncio.sleep(0)


async def silent(worker, job):
    """A script: says nothing."""


async def collect(stream):
    return [chunk async for chunk in stream]


def ids_of(chunks, index=0):
    return [i for c in chunks if c.index == index for i in c.token_ids]


def text_of(chunks, index=0):
    return "".join(c.text for c in chunks if c.index == index)


async def health(target, name=SERVICE):
    async with grpc.aio.insecure_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status


async def becomes(target, status, seconds=10):
    async with asyncio.timeout(seconds):
        while await health(target) != status or await health(target, "") != status:
            await asyncio.sleep(0.05)
