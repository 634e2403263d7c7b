"""The indexes of a beam search go together: one Submit, again one to the next worker, and one way to end."""

import asyncio

import pytest
from peers import Job, collect, ids_of, silent

from gateway.client import CallError
from holdfast.v1 import compute_pb2
from holdfast.v1 import generate_pb2 as pb
from holdfast.v1 import kvmanager_pb2 as kv

ASKED = {"beam_width": 3, "n": 2, "max_tokens": 4}
OUTPUTS = ([7, 8, 9, 5], [7, 8, 6, 4])


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


def indexes(job):
    """The job as one of each index's own."""
    for name in job.submit.hypotheses:
        submit = compute_pb2.Submit()
        submit.CopyFrom(job.submit)
        submit.sequence = name
        yield Job(job.client, submit)


async def answer(worker, job, only=(0, 1), send=True):
    """A script: the answers, recorded; and shown, if `send`."""
    for number, one in enumerate(indexes(job)):
        if number in only:
            ids, score = OUTPUTS[number], -1.0 - number
            await worker.emit(one, ids, pb.FINISH_REASON_LENGTH, send=send, score=score)
            worker.daemon.records[one.submit.sequence].score = score


async def give_back(worker, job, code, **details):
    for one in indexes(job):
        await worker.reject(one, code, **details)


def scores(chunks):
    return {chunk.index: chunk.finish.score for chunk in chunks if chunk.finish}


def right(chunks):
    assert [ids_of(chunks, number) for number in (0, 1)] == list(OUTPUTS)
    assert scores(chunks) == {0: -1.0, 1: -2.0}


@pytest.mark.parametrize("how", ["it dies", "it hands over"])
async def test_the_whole_search_goes_to_the_next_worker_in_one_submit(service, how):
    async with service.client(silent) as client:
        first = service.workers[0]
        task = asyncio.create_task(collect(client.generate([1, 2], **ASKED)))
        await until(lambda: first.jobs)
        second = service.worker(answer, name="w2")
        await service.gateway.fleet.change_within(1)
        if how == "it dies":
            service.workers.remove(first)
            await first.die()
        else:
            await give_back(first, first.jobs[0], kv.ERROR_CODE_UNAVAILABLE)
        right(await task)
    (before,), (after,) = first.jobs, second.jobs
    assert len(before.submit.hypotheses) == 2
    assert before.submit.hypotheses[0] == before.submit.sequence
    assert (after.submit.adopt, after.submit.output_ids) == (True, b"")
    assert list(after.submit.hypotheses) == list(before.submit.hypotheses)
    assert (after.submit.sequence, after.submit.group) == (before.submit.sequence, before.submit.group)


@pytest.mark.parametrize("said", [(), (0,), (1,)], ids=str)
async def test_what_was_recorded_and_not_said_is_read(service, said):
    """The worker died between its commit and its word, or in the middle of it: the next one finds the search over."""

    async def over(worker, job):
        await give_back(worker, job, kv.ERROR_CODE_CONFLICT, finish="LENGTH")

    async with service.client(silent) as client:
        first = service.workers[0]
        task = asyncio.create_task(collect(client.generate([1, 2], **ASKED)))
        await until(lambda: first.jobs)
        await answer(first, first.jobs[0], {0, 1} - {*said}, send=False)
        await answer(first, first.jobs[0], said)
        service.worker(over, name="w2")
        await service.gateway.fleet.change_within(1)
        service.workers.remove(first)
        await first.die()
        right(await task)


async def test_a_search_that_failed_fails_for_every_index(service):
    """Its own record says so; the others have none."""

    async def over(worker, job):
        await give_back(worker, job, kv.ERROR_CODE_CONFLICT, finish="ERROR")

    async with service.client(silent) as client:
        first = service.workers[0]
        task = asyncio.create_task(collect(client.generate([1, 2], **ASKED)))
        await until(lambda: first.jobs)
        service.daemon.record(first.jobs[0], [], pb.FINISH_REASON_ERROR)
        service.worker(over, name="w2")
        await service.gateway.fleet.change_within(1)
        service.workers.remove(first)
        await first.die()
        chunks = await task
    assert {chunk.index: chunk.finish.reason for chunk in chunks} == dict.fromkeys(
        (0, 1), pb.FINISH_REASON_ERROR
    )


async def test_a_search_that_somebody_cancelled_begins_anew_for_all_indexes(service):
    """Under new names, as nobody who listens has asked for that."""
    async with service.client(silent) as client:
        first = service.workers[0]
        task = asyncio.create_task(collect(client.generate([1, 2], **ASKED)))
        await until(lambda: first.jobs)
        first.script = answer
        (job,) = first.jobs
        service.daemon.record(job, [], pb.FINISH_REASON_CANCELLED)
        for one in indexes(job):
            await first.emit(one, [], pb.FINISH_REASON_CANCELLED, record=False)
        right(await task)
    again = first.jobs[1].submit
    assert again.hypotheses[0] == again.sequence != job.submit.sequence
    assert not {*again.hypotheses} & {*job.submit.hypotheses}
    assert again.group == job.submit.group


async def test_a_client_that_goes_ends_the_search_by_any_of_its_names(service):
    async with service.client(silent) as client:
        first = service.workers[0]
        task = asyncio.create_task(collect(client.generate([1, 2], **ASKED)))
        await until(lambda: first.jobs)
        task.cancel()
        await until(lambda: len(first.cancels) == 2)
    assert {one.sequence for one in first.cancels} == {*first.jobs[0].submit.hypotheses}


async def test_no_worker_for_a_search_is_said_once(service):
    async with service.client(silent) as client:
        first = service.workers[0]
        task = asyncio.create_task(collect(client.generate([1, 2], **ASKED)))
        await until(lambda: first.jobs)
        await give_back(first, first.jobs[0], kv.ERROR_CODE_POOL_TOO_SMALL)
        with pytest.raises(CallError):
            await task
