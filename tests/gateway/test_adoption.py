"""A worker dies, or gives its sequences back: the client sees a pause, and the stream it would have seen anyway."""

import asyncio
import time

import pytest
from peers import collect, faithful, ids_of, silent, tell, token_of, unpack

from gateway.client import CallError, Unreachable
from holdfast.v1 import compute_pb2
from holdfast.v1 import generate_pb2 as pb
from holdfast.v1 import kvmanager_pb2 as kv


def undisturbed(job, tokens):
    prompt = len(job.submit.token_ids) // 4
    return [token_of(job.submit, prompt + place) for place in range(tokens)]


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


async def die(service, worker):
    service.workers.remove(worker)
    await worker.die()


async def test_another_worker_goes_on_in_mid_stream_and_no_token_is_lost_or_doubled(service):
    async with service.client(faithful) as client:
        first = service.workers[0]
        task = asyncio.create_task(collect(client.generate([1, 2], max_tokens=120, n=3, seed=9)))
        await until(lambda: len(first.live) == 3 and min(job.position for job in first.live) > 20)
        second = service.worker(faithful, name="w2")
        await die(service, first)
        chunks = await task
    for before, after in zip(first.jobs, second.jobs, strict=True):
        assert ids_of(chunks, before.submit.index) == undisturbed(before, 120)
        known = unpack(after.submit.output_ids)
        assert known == undisturbed(before, 120)[: len(known)]
        assert len(known) >= 10
        assert (after.submit.sequence, after.submit.group) == (before.submit.sequence, before.submit.group)
        assert (after.submit.adopt, after.submit.sampling) == (True, before.submit.sampling)
    finishes = [chunk.finish.reason for chunk in chunks if chunk.finish]
    assert finishes == [pb.FINISH_REASON_LENGTH] * 3


async def test_the_death_is_known_and_acted_upon_before_the_next_beat(service):
    """Not by the clock: the daemon says it, and the gateway submits at once."""
    service.daemon.BEAT = 0.7  # beats alone would be too late
    async with service.client(silent) as client:
        task = asyncio.create_task(collect(client.generate([1])))
        first = service.workers[0]
        await first.until(lambda: first.jobs)
        second = service.worker(tell([5]), name="w2")
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await die(service, first)
        await second.until(lambda: second.jobs)
        assert time.monotonic() - began < 0.3
        assert ids_of(await task) == [5]


async def test_the_gap_counts_as_stalled(service):
    async with service.client(faithful) as client:
        task = asyncio.create_task(collect(client.generate([1], max_tokens=60)))
        first = service.workers[0]
        await until(lambda: first.live and first.live[0].position > 20)
        await die(service, first)
        await asyncio.sleep(0.4)  # nobody is there
        service.worker(faithful, name="w2")
        times = (await task)[-1].finish.timings
    assert 0.4 <= times.stalled <= times.decode


async def test_a_worker_that_gives_its_sequences_back_is_followed_by_another(service):
    """As a hand-over does, with either of its codes."""
    codes = iter([kv.ERROR_CODE_UNAVAILABLE, kv.ERROR_CODE_FENCED])

    async with service.client(faithful) as client:
        first = service.workers[0]
        task = asyncio.create_task(collect(client.generate([1], max_tokens=100, n=2)))
        await until(lambda: len(first.live) == 2 and min(job.position for job in first.live) > 20)
        second = service.worker(faithful, name="w2")
        await service.gateway.fleet.change_within(1)
        for running in list(first.running):
            running.cancel()
        service.daemon.owners.clear()
        for job in first.jobs:
            await first.reject(job, next(codes))
        chunks = await task
    assert len(second.jobs) == 2
    for job in first.jobs:
        assert ids_of(chunks, job.submit.index) == undisturbed(job, 100)


async def test_a_conflict_is_tried_again_until_the_daemon_gave_the_sequence_up(service):
    async with service.client(faithful) as client:
        first = service.workers[0]
        task = asyncio.create_task(collect(client.generate([1], max_tokens=80)))
        await until(lambda: first.live and first.live[0].position > 20)
        job = first.jobs[0]
        second = service.worker(faithful, name="w2")
        await service.gateway.fleet.change_within(1)
        for running in list(first.running):
            running.cancel()
        await first.reject(job, kv.ERROR_CODE_UNAVAILABLE)  # the daemon has not heard of it yet
        await second.until(lambda: len(second.jobs) >= 3)
        service.daemon.owners.clear()
        assert ids_of(await task) == undisturbed(job, 80)


async def test_a_sequence_that_ended_meanwhile_is_read_from_its_record(service):
    async with service.client(faithful) as client:
        first = service.workers[0]
        task = asyncio.create_task(collect(client.generate([1], max_tokens=100)))
        await until(lambda: first.live and first.live[0].position > 20)
        job = first.jobs[0]
        second = service.worker(faithful, name="w2")
        for running in list(first.running):
            running.cancel()
        await first.emit(job, [7, 8], pb.FINISH_REASON_EOS, send=False)
        shown = job.position - 1 - 2
        await die(service, first)
        chunks = await task
    assert ids_of(chunks) == [*undisturbed(job, shown), 7, 8]
    assert chunks[-1].finish.reason == pb.FINISH_REASON_EOS
    assert len(second.jobs) == 1


async def test_a_daemon_that_lost_the_record_opens_it_anew_and_the_stream_goes_on(service):
    async with service.client(faithful) as client:
        first = service.workers[0]
        task = asyncio.create_task(collect(client.generate([1], max_tokens=90)))
        await until(lambda: first.live and first.live[0].position > 20)
        job = first.jobs[0]
        service.daemon.records[job.submit.sequence].epoch = job.epoch = 5
        await until(lambda: job.position > 40)
        second = service.worker(faithful, name="w2")
        for running in list(first.running):
            running.cancel()
        service.daemon.records.clear()
        await die(service, first)
        chunks = await task
    assert ids_of(chunks) == undisturbed(job, 90)
    assert service.daemon.records[job.submit.sequence].epoch == 1
    assert len(unpack(second.jobs[0].submit.output_ids)) >= 39


async def test_a_cancel_that_nobody_here_asked_for_ends_nothing(service):
    """Another gateway's, for one: the sequence is gone on with by a new one that begins with its tokens."""
    async with service.client(faithful) as client:
        worker = service.workers[0]
        task = asyncio.create_task(collect(client.generate([1], max_tokens=60)))
        await until(lambda: worker.live and worker.live[0].position > 20)
        job = worker.jobs[0]
        job.cancel = compute_pb2.Cancel(reason=pb.FINISH_REASON_CANCELLED)
        job.cancelled.set()
        chunks = await task
    assert ids_of(chunks) == undisturbed(job, 60)
    again = worker.jobs[1].submit
    assert again.adopt
    assert again.sequence != job.submit.sequence
    assert unpack(again.output_ids) == undisturbed(job, len(again.output_ids) // 4)
    assert chunks[-1].finish.reason == pb.FINISH_REASON_LENGTH


async def test_nothing_shown_and_no_worker_in_time_is_unavailable(serve):
    async with serve(worker_wait=0.4) as service, service.client(silent) as client:
        task = asyncio.create_task(collect(client.generate([1], retries=0)))
        worker = service.workers[0]
        await worker.until(lambda: worker.jobs)
        await die(service, worker)
        with pytest.raises(Unreachable) as caught:
            await task
    assert caught.value.reason == "NO_WORKER"


async def test_too_many_there_is_a_reason_for_a_new_request_only(service):
    """A running one waits for its place."""

    async def busy_at_first(worker, job):
        if len(worker.jobs) < 3:
            await worker.reject(job, kv.ERROR_CODE_RESOURCE_EXHAUSTED)
        else:
            await faithful(worker, job)

    async with service.client(faithful) as client:
        first = service.workers[0]
        task = asyncio.create_task(collect(client.generate([1], max_tokens=60)))
        await until(lambda: first.live and first.live[0].position > 20)
        service.worker(busy_at_first, name="w2")
        await die(service, first)
        assert ids_of(await task) == undisturbed(first.jobs[0], 60)
        service.workers[-1].jobs.clear()
        with pytest.raises(CallError) as caught:
            await collect(client.generate([1]))
    assert caught.value.reason == "KV_CACHE_EXHAUSTED"


async def test_the_end_of_a_call_ends_the_adopted_sequence(service):
    async with service.client(faithful) as client:
        stream = client.generate([1], max_tokens=8000)
        await anext(stream)
        first = service.workers[0]
        second = service.worker(faithful, name="w2")
        await die(service, first)
        await second.until(lambda: second.jobs)
        await stream.aclose()
        await second.until(lambda: second.cancels)
    assert second.cancels[0].sequence == first.jobs[0].submit.sequence
