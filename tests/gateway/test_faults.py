"""What goes wrong between gateway, worker and daemon, and what the client sees of it."""

import asyncio

import grpc
import pytest
from peers import collect, ids_of, silent, tell

from gateway.client import Broken, Unreachable
from gateway.index import Index
from holdfast.v1 import compute_pb2
from holdfast.v1 import generate_pb2 as pb
from holdfast.v1 import kvmanager_pb2 as kv


async def test_duplicates_gaps_and_older_epochs_give_every_token_once(service):
    async def script(worker, job):
        await worker.emit(job, [10, 11])
        await worker.emit(job, [10, 11], first=job.position - 2, record=False)  # twice
        await worker.emit(job, [12, 13], send=False)  # lost on the way
        await worker.emit(job, [14], epoch=2)
        await worker.emit(job, [99], epoch=1, record=False, first=job.position)  # a former owner
        await worker.emit(job, [14, 15], epoch=2, first=job.position - 1, record=False)  # overlaps
        worker.daemon.record(job, [15])
        job.position += 1
        await worker.emit(job, [16], 3, epoch=2)

    async with service.client(script) as client:
        chunks = await collect(client.generate([1, 2]))
    assert ids_of(chunks) == [10, 11, 12, 13, 14, 15, 16]
    assert service.daemon.reads >= 1


async def test_garbage_from_a_worker_harms_nobody(service):
    async def script(worker, job):
        for frame in (b"", b"HF", b"HF\x01\x06\xff\xff", b"XX\x01\x06", b"HF\x02\x06", b"HF\x01\x06"):
            await worker.socket.send_multipart([job.client, frame])
        bad = compute_pb2.TokensEntry(
            sequence=job.submit.sequence, token_ids=b"123", first_position=job.position
        )
        await worker.say(job, compute_pb2.WorkerReply(tokens=compute_pb2.Tokens(entries=[bad])))
        stranger = compute_pb2.TokensEntry(sequence=bytes(16), token_ids=b"1234")
        await worker.say(job, compute_pb2.WorkerReply(tokens=compute_pb2.Tokens(entries=[stranger])))
        await worker.emit(job, [5], 3)

    async with service.client(script) as client:
        assert ids_of(await collect(client.generate([1]))) == [5]


async def test_a_worker_lost_before_the_first_token_costs_time_only(service):
    """The request goes to another worker, which may find that the first has begun it."""
    async with service.client(silent) as client:
        task = asyncio.create_task(collect(client.generate([1], n=2, seed=3)))
        first = service.workers[0]
        await first.until(lambda: len(first.jobs) == 2)
        second = service.worker(tell([5]), name="w2")
        service.workers.remove(first)
        await first.die()
        chunks = await task
    assert (ids_of(chunks, 0), ids_of(chunks, 1)) == ([5], [5])
    for before, after in zip(first.jobs, second.jobs, strict=True):
        assert not before.submit.adopt
        before.submit.adopt = True
        assert after.submit == before.submit


async def test_a_worker_marked_lost_and_a_restarted_one_are_told_apart(service):
    async with service.client(silent) as client:
        task = asyncio.create_task(collect(client.generate([1])))
        worker = service.workers[0]
        await worker.until(lambda: worker.jobs)
        worker.script = tell([5])
        worker.info.session = "w1-2"  # same name and endpoint, another process
        assert ids_of(await task) == [5]
    assert len(worker.jobs) == 2


async def test_a_worker_frozen_with_a_request_it_never_saw_is_not_waited_for(service):
    """Its process is not gone and has nothing to do, as far as the daemon knows: only its heartbeats stopped."""
    async with service.client(silent) as client:
        task = asyncio.create_task(collect(client.generate([1])))
        first = service.workers[0]
        await first.until(lambda: first.jobs)
        service.worker(tell([5]), name="w2")
        first.info.age_ms = 20_000
        assert ids_of(await asyncio.wait_for(task, 20)) == [5]


async def test_a_frozen_worker_alone_is_no_worker(serve):
    async with serve(worker_wait=0.5) as service, service.client(silent) as client:
        task = asyncio.create_task(collect(client.generate([1], retries=0)))
        worker = service.workers[0]
        await worker.until(lambda: worker.jobs)
        worker.info.age_ms = 20_000
        with pytest.raises(Unreachable):
            await asyncio.wait_for(task, 20)


async def test_unavailable_before_the_first_token_is_tried_again(service):
    async def script(worker, job):
        if len(worker.jobs) == 1:
            await worker.reject(job, kv.ERROR_CODE_UNAVAILABLE)
        else:
            await worker.emit(job, [5], 3)

    async with service.client(script) as client:
        assert ids_of(await collect(client.generate([1]))) == [5]


async def test_a_worker_that_stays_unavailable_is_given_up_within_the_bound(serve):
    async def script(worker, job):
        await worker.reject(job, kv.ERROR_CODE_UNAVAILABLE)

    async with serve(worker_wait=0.5) as service, service.client(script) as client:
        with pytest.raises(Unreachable):
            await collect(client.generate([1], retries=0))


async def test_without_another_worker_the_stream_aborts_with_what_was_recorded(serve):
    async def script(worker, job):
        await worker.emit(job, [5])
        await worker.emit(job, [6], send=False)  # recorded, not shown yet

    got = []
    async with serve(worker_wait=0.5) as service, service.client(script) as client:
        worker = service.workers.pop()

        async def read():
            async for chunk in client.generate([1], resume_timeout=0):
                got.extend(chunk.token_ids)

        task = asyncio.create_task(read())
        while not got:
            await asyncio.sleep(0.01)
        await worker.die()
        while got == [5]:
            await asyncio.sleep(0.01)
        assert not task.done()  # shown at once: nothing waits for a worker but what must be computed
        with pytest.raises(Broken) as caught:
            await task
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.ABORTED, "WORKER_LOST")
    assert got == [5, 6]


async def test_a_worker_lost_after_the_recorded_end_loses_nothing(service):
    async def script(worker, job):
        await worker.emit(job, [5])
        await asyncio.sleep(0.2)
        await worker.emit(job, [6, 7], 2, send=False)
        service.workers.remove(worker)
        asyncio.get_running_loop().call_soon(lambda: tasks.append(asyncio.create_task(worker.die())))

    tasks = []
    async with service.client(script) as client:
        chunks = await collect(client.generate([1]))
    await asyncio.gather(*tasks)
    assert ids_of(chunks) == [5, 6, 7]
    assert chunks[-1].finish.reason == pb.FINISH_REASON_EOS


async def test_a_lost_last_message_is_found_in_the_record(service, monkeypatch):
    monkeypatch.setattr("gateway.index.STALE_SECONDS", 0.3)

    async def script(worker, job):
        await worker.emit(job, [5])
        await worker.emit(job, [6], 2, send=False)

    async with service.client(script) as client:
        chunks = await collect(client.generate([1]))
    assert ids_of(chunks) == [5, 6]


async def test_the_daemon_away_pauses_a_gap_and_fails_nothing(service):
    async def script(worker, job):
        worker.daemon.paused = True
        await worker.emit(job, [5])
        await worker.emit(job, [6], send=False)
        await worker.emit(job, [7], 3)
        await asyncio.sleep(1.5)
        worker.daemon.paused = False

    async with service.client(script) as client:
        chunks = await collect(client.generate([1]))
    assert ids_of(chunks) == [5, 6, 7]


async def test_a_bug_in_one_message_does_not_silence_the_others(service, monkeypatch):
    real = Index.heard

    def heard(self, entry):
        if 66 in entry.token_ids:
            raise RuntimeError("our bug")
        real(self, entry)

    monkeypatch.setattr(Index, "heard", heard)
    async with service.client(tell([5], [66], [7])) as client:
        assert ids_of(await collect(client.generate([1]))) == [5, 66, 7]
