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
    epoch: int = 1
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
    """Snapshots of `workers` and `pools`, and records. `owners` has the session of each record that is not finished."""

    BEAT = 0.2

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
            device="cpu",
            geometry=kvmanager_pb2.Geometry(block_size=16),
        )
        self.records: dict[bytes, kvmanager_pb2.Record] = {}
        self.submits: dict[bytes, compute_pb2.Submit] = {}
        self.owners: dict[bytes, str] = {}
        self.version = 1
        self.membership = asyncio.Event()
        self.parked: set[asyncio.Task] = set()
        self.reads = 0
        self.read_gate = asyncio.Event()
        self.read_gate.set()
        super().__init__(context, sockets.daemon)

    async def answer(self, client, frame):
        request = wire.decode(kvmanager_pb2.DaemonRequest, frame)
        if self.paused:
            return
        reply = kvmanager_pb2.DaemonReply(number=request.number, boot_epoch=1)
        match request.WhichOneof("body"):
            case "snapshot":
                task = asyncio.create_task(self.snapshot(client, request.snapshot, reply))
                self.parked.add(task)
                task.add_done_callback(self.parked.discard)
                return
            case "find_request":
                self.find(request.find_request, reply)
            case _:
                self.reads += 1
                self.read(request.read_record, reply)
        await self.socket.send_multipart([client, wire.encode(reply)])

    async def snapshot(self, client, asked, reply):
        """In full: at once if membership is another, else once it is or at the next beat."""
        if asked.wait and asked.version == self.version:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.membership.wait(), self.BEAT)
        if self.paused:
            return
        reply.snapshot.version = self.version
        reply.snapshot.workers.extend(self.workers.values())
        if self.workers:
            reply.snapshot.pools.append(self.pool)
        await self.socket.send_multipart([client, wire.encode(reply)])

    def changed(self):
        """Membership is another."""
        self.version += 1
        self.membership.set()
        self.membership = asyncio.Event()

    def lose(self, name):
        """The attachment of a worker ended: its sequences are orphans."""
        session = self.workers.pop(name).session
        self.owners = {sequence: own for sequence, own in self.owners.items() if own != session}
        self.changed()

    def open(self, submit, session):
        """As OpenOrAdopt: the record, or None while another worker has it."""
        found = self.records.get(submit.sequence)
        if found is None:
            known = submit.token_ids + submit.output_ids
            found = self.records[submit.sequence] = kvmanager_pb2.Record(
                sequence=submit.sequence,
                epoch=1,
                token_ids=known,
                recorded_len=len(known) // 4,
                prompt_len=len(submit.token_ids) // 4,
            )
            self.submits[submit.sequence] = submit
        elif not found.finish:
            owner = self.owners.get(submit.sequence, session)
            if owner != session:
                return None
            found.epoch += 1
        self.owners[submit.sequence] = session
        return found

    def find(self, wanted, reply):
        reply.found_request.SetInParent()
        for sequence, submit in self.submits.items():
            record = self.records.get(sequence)
            if record and (submit.request_id, submit.tenant) == (wanted.request_id, wanted.tenant):
                bare = compute_pb2.Submit()
                bare.CopyFrom(submit)
                bare.ClearField("token_ids")
                bare.ClearField("output_ids")
                reply.found_request.sequences.add(
                    sequence=sequence,
                    index=submit.index,
                    epoch=record.epoch,
                    group=submit.group,
                    request=bare.SerializeToString(),
                    prompt_len=record.prompt_len,
                    prompt=b"" if submit.index else record.token_ids[: 4 * record.prompt_len],
                    session="" if record.finish else self.owners.get(sequence, ""),
                    finished=bool(record.finish),
                )

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
        if job.submit.sequence not in self.records:
            self.submits[job.submit.sequence] = job.submit
        found = self.records.setdefault(
            job.submit.sequence,
            kvmanager_pb2.Record(
                sequence=job.submit.sequence,
                epoch=1,
                token_ids=job.submit.token_ids,
                prompt_len=len(job.submit.token_ids) // 4,
            ),
        )
        found.token_ids += pack(ids)
        found.recorded_len = len(found.token_ids) // 4
        found.finish = finish
        found.stop_token_id = stop_token_id

    async def close(self):
        for task in list(self.parked):
            task.cancel()
        await super().close()


class ScriptedWorker(Peer):
    """Runs `script` for each Submit; remembers what it was told."""

    def __init__(
        self, context, sockets: RunDir, daemon: ScriptedDaemon, name="w1", script: Script | None = None
    ):
        self.daemon, self.name, self.script = daemon, name, script
        self.jobs: list[Job] = []
        self.cancels: list[compute_pb2.Cancel] = []
        self.live: list[Job] = []
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
        daemon.changed()
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

    async def again(self, job):
        """The last recorded token once more: whoever listens learns how far the record is."""
        record = self.daemon.records[job.submit.sequence]
        last = unpack(record.token_ids[-4:])
        await self.emit(job, last, first=record.recorded_len - 1, epoch=record.epoch, record=False)

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
        self.daemon.lose(self.name)


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


def token_of(submit, position):
    """What a faithful worker draws: by seed and position alone."""
    return 100 + (submit.sampling.seed * 31 + position * position) % 400


async def faithful(worker, job, pause=0.002):
    """A script: opens or adopts, and generates as a worker does, one recorded token a step, until cancelled."""
    submit, daemon = job.submit, worker.daemon
    if any(other.submit.sequence == submit.sequence and other is not job for other in worker.live):
        for other in worker.live:
            if other.submit.sequence == submit.sequence:
                other.client = job.client
                await worker.again(other)
        return
    record = daemon.open(submit, worker.info.session)
    if record is None or record.finish:
        details = {"finish": str(record.finish)} if record else {}
        await worker.reject(job, kvmanager_pb2.ERROR_CODE_CONFLICT, **details)
        return
    worker.live.append(job)
    try:
        job.epoch, job.position = record.epoch, record.recorded_len
        if job.position > record.prompt_len:
            await worker.again(job)
        last = record.prompt_len + submit.stopping.max_tokens
        while job.position < last and not job.cancelled.is_set():
            await asyncio.sleep(pause)
            finish = pb.FINISH_REASON_LENGTH if job.position + 1 == last else 0
            await worker.emit(job, [token_of(submit, job.position)], finish, epoch=job.epoch)
        if job.cancelled.is_set():
            await worker.emit(job, [], job.cancel.reason, epoch=job.epoch)
    finally:
        worker.live.remove(job)


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
