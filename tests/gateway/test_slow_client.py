"""A client that reads slowly gets every token, and nobody else notices."""

import asyncio

import grpc
import pytest
from peers import collect, ids_of

from gateway.tracks import BUFFER_TOKENS
from holdfast.v1 import generate_pb2 as pb
from holdfast.v1 import generate_pb2_grpc as pb_grpc

TOKENS = 4000
# A small window that does not grow: the server's writes stop soon after this client's reads.
NARROW = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 16384),
    ("grpc.http2.max_frame_size", 16384),
)


async def flood(worker, job, tokens=TOKENS):
    """All tokens as fast as the socket takes them, with log-probabilities that fill the client's window."""
    begun = len(worker.daemon.open(job.submit, worker.info.session).token_ids) // 4 - job.position
    job.position += begun
    epoch = worker.daemon.records[job.submit.sequence].epoch
    most = job.submit.stopping.max_tokens
    top = [pb.TopLogprob(token_id=i, logprob=-1.5) for i in range(20)]
    for start in range(begun, min(most, tokens), 4):
        ids = [10 + (start + i) % 500 for i in range(4)]
        logprobs = [pb.TokenLogprob(token_id=i, logprob=-1.0, rank=1, top=top) for i in ids]
        finish = pb.FINISH_REASON_LENGTH if start + 4 >= most else 0
        await worker.emit(job, ids, finish, epoch=epoch, logprobs=logprobs)
        await asyncio.sleep(0)


async def half_a_flood(worker, job):
    await flood(worker, job, TOKENS // 2)


async def stuck(service):
    """(channel, call, first message) of a client that has read one message; the worker is done with it."""
    channel = grpc.aio.insecure_channel(service.target, options=NARROW)
    request = pb.GenerateRequest(
        token_ids={"ids": [1]}, stopping={"max_tokens": TOKENS}, response={"logprobs": 20}
    )
    call = pb_grpc.GenerateServiceStub(channel).Generate(request)
    first = await call.read()
    worker = service.workers[0]
    await worker.until(lambda: not worker.running)  # it never waited for this client
    return channel, call, first


async def to_the_end(call):
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_slow_client_gets_every_token_and_disturbs_no_other(service):
    expected = [10 + i % 500 for i in range(TOKENS)]
    async with service.client(flood) as client:
        channel, call, first = await stuck(service)
        quick = await collect(client.generate([1], max_tokens=200, logprobs=20))
        assert ids_of(quick) == expected[:200]
        assert all(len(c.message.logprobs) == len(c.token_ids) for c in quick)
        reads = service.daemon.reads
        messages = [first]
        while (message := await call.read()) is not grpc.aio.EOF:
            messages.append(message)
        await channel.close()
    assert [i for message in messages for i in message.token_ids] == expected
    assert messages[-1].finish.reason == pb.FINISH_REASON_LENGTH
    assert service.daemon.reads > reads
    assert messages[0].logprobs
    assert not messages[-1].logprobs  # read again from the record, which has none


async def test_the_buffer_of_a_stuck_client_is_bounded(service):
    async with service.client(flood):
        channel, call, _ = await stuck(service)
        [(_, binding)] = service.gateway.fleet._sinks.values()
        index = binding.index
        async with asyncio.timeout(20):
            while index.track.final is None:
                await asyncio.sleep(0.01)
        assert index.track.ready <= BUFFER_TOKENS
        assert index.track.known - index.track.end > 1000
        call.cancel()
        worker = service.workers[0]
        await worker.until(lambda: worker.cancels)
        await channel.close()


async def test_a_stuck_client_does_not_hold_up_an_adoption(service):
    expected = [10 + i % 500 for i in range(TOKENS)]
    async with service.client(half_a_flood):
        channel, call, first = await stuck(service)
        second = service.worker(flood, name="w2")
        dead = service.workers.pop(0)
        await dead.die()
        await second.until(lambda: second.jobs and not second.running)  # to the end, and nobody has read
        messages = [first]
        while (message := await call.read()) is not grpc.aio.EOF:
            messages.append(message)
        await channel.close()
    assert [i for message in messages for i in message.token_ids] == expected
    assert len(second.jobs[0].submit.output_ids) // 4 < TOKENS // 2  # it knew less than was recorded


async def test_what_has_ended_is_not_submitted_again_though_nobody_has_read_it(service):
    async with service.client(flood):
        channel, call, first = await stuck(service)
        [(_, binding)] = service.gateway.fleet._sinks.values()
        async with asyncio.timeout(20):
            while not binding.index.track.ended:
                await asyncio.sleep(0.01)
        second = service.worker(flood, name="w2")
        await service.workers.pop(0).die()
        messages = [first]
        while (message := await call.read()) is not grpc.aio.EOF:
            messages.append(message)
        await channel.close()
    assert sum(len(message.token_ids) for message in messages) == TOKENS
    assert not second.jobs


async def test_a_stuck_client_does_not_hold_up_the_end(serve, caplog):
    """Its write cannot finish and its status cannot be sent: the gateway leaves without it, and says nothing wrong."""
    async with serve(shutdown_grace=0.1) as service, service.client(flood):
        channel, call, _ = await stuck(service)
        async with asyncio.timeout(20):
            await service.gateway.stop()
        with pytest.raises(grpc.aio.AioRpcError):
            await to_the_end(call)
        await channel.close()
    assert not caplog.records
