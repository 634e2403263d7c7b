"""Every way in which a request ends, over real sockets: limits, refusals, cancels, deadlines, rejections."""

import asyncio

import grpc
import pytest
from peers import collect, ids_of, one_by_one, silent, tell

from gateway.client import Busy, CallError, DeadlineExpired, InvalidRequest, Unreachable
from holdfast.v1 import generate_pb2 as pb
from holdfast.v1 import kvmanager_pb2 as kv


async def test_prompt_too_long_and_pool_too_small_are_told_apart_with_both_numbers(service):
    service.daemon.pool.num_blocks = 11
    async with service.client(silent) as client:
        with pytest.raises(InvalidRequest) as long:
            await collect(client.generate([1] * 8000, max_tokens=193))
        with pytest.raises(InvalidRequest) as small:
            await collect(client.generate([1] * 100, max_tokens=61))
    assert (long.value.code.name, long.value.reason) == ("INVALID_ARGUMENT", "PROMPT_TOO_LONG")
    assert (long.value.details["prompt_tokens"], long.value.details["max_model_len"]) == ("8000", "8192")
    assert (small.value.code.name, small.value.reason) == ("FAILED_PRECONDITION", "KV_POOL_TOO_SMALL")
    assert (small.value.details["needed_tokens"], small.value.details["pool_tokens"]) == ("161", "160")
    assert not service.workers[0].jobs


async def test_a_duplicate_in_flight_is_refused_and_free_again_at_the_end(service):
    async with service.client(silent) as client:
        first = asyncio.create_task(collect(client.generate([1], request_id="twin")))
        worker = service.workers[0]
        await worker.until(lambda: worker.jobs)
        with pytest.raises(CallError) as caught:
            await collect(client.generate([1], request_id="twin"))
        assert caught.value.code is grpc.StatusCode.ALREADY_EXISTS
        await worker.emit(worker.jobs[0], [5], 3)
        await first
        worker.script = tell([6])
        assert ids_of(await collect(client.generate([1], request_id="twin"))) == [6]


@pytest.mark.parametrize("limit", [{"max_concurrent": 2}, {"max_queue": 2}])
async def test_a_full_queue_refuses_with_a_retry_delay(serve, limit):
    async with serve(**limit) as service, service.client(silent) as client:
        tasks = [asyncio.create_task(collect(client.generate([1]))) for _ in range(2)]
        worker = service.workers[0]
        await worker.until(lambda: len(worker.jobs) == 2)
        with pytest.raises(Busy) as caught:
            await collect(client.generate([1]))
        assert caught.value.reason == "QUEUE_FULL"
        assert caught.value.retry_seconds == 1.0
        for job in worker.jobs:
            await worker.emit(job, [5], 3)
        await asyncio.gather(*tasks)


async def test_a_client_that_stops_reading_ends_the_sequence_at_the_worker(service):
    async with service.client(one_by_one) as client:
        stream = client.generate([1], max_tokens=8000)
        await anext(stream)
        await stream.aclose()
        worker = service.workers[0]
        await worker.until(lambda: worker.cancels)
    assert worker.cancels[0].sequence == worker.jobs[0].submit.sequence
    assert worker.cancels[0].reason == pb.FINISH_REASON_CANCELLED


async def test_a_disconnect_ends_every_index(service):
    async with service.client(silent) as client:
        task = asyncio.create_task(collect(client.generate([1], n=2)))
        worker = service.workers[0]
        await worker.until(lambda: len(worker.jobs) == 2)
        await client.close()  # the connection goes
        await worker.until(lambda: len(worker.cancels) == 2)
        with pytest.raises((CallError, asyncio.CancelledError)):
            await task


async def test_the_deadline_ends_the_sequence_at_the_worker(service):
    async with service.client(silent) as client:
        with pytest.raises(DeadlineExpired):
            await collect(client.generate([1], timeout=0.3))
        worker = service.workers[0]
        await worker.until(lambda: worker.cancels)


async def test_an_error_finish_is_a_status_alone_and_a_reason_among_several(service):
    async def script(worker, job):
        await worker.emit(job, [5], pb.FINISH_REASON_ERROR if job.submit.index == 0 else 3)

    async with service.client(script) as client:
        with pytest.raises(CallError) as caught:
            await collect(client.generate([1]))
        chunks = await collect(client.generate([1], n=2))
    assert caught.value.code is grpc.StatusCode.INTERNAL
    assert {c.index: c.finish.reason for c in chunks if c.finish} == {0: 5, 1: 3}


async def test_a_rejection_becomes_a_status_without_its_message(service):
    async def script(worker, job):
        details = {"needed_blocks": "7", "path": "/run/x.sock", "usable_blocks": "3"}
        await worker.reject(job, kv.ERROR_CODE_POOL_TOO_SMALL, **details)

    async with service.client(script) as client:
        with pytest.raises(InvalidRequest) as caught:
            await collect(client.generate([1]))
    assert caught.value.reason == "KV_POOL_TOO_SMALL"
    assert caught.value.details == {"needed_blocks": "7", "usable_blocks": "3"}
    assert "secret" not in str(caught.value)


async def test_no_worker_is_unavailable_and_says_when_to_retry(serve):
    async with serve(worker_wait=0.2) as service, service.client() as client:
        with pytest.raises(Unreachable) as caught:
            await collect(client.generate([1], retries=0))
    assert (caught.value.reason, caught.value.retry_seconds) == ("NO_WORKER", 1.0)


async def test_a_request_waits_for_the_first_worker(service):
    async with service.client() as client:
        task = asyncio.create_task(collect(client.generate([1])))
        await asyncio.sleep(0.4)
        service.worker(tell([5]))
        assert ids_of(await task) == [5]


async def test_an_unknown_model_is_not_found(service):
    async with service.client(tell([5])) as client:
        assert ids_of(await collect(client.generate([1], model="tiny"))) == [5]
        with pytest.raises(InvalidRequest) as caught:
            await collect(client.generate([1], model="huge"))
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_list_models_names_what_a_worker_serves_now(service):
    async with service.client() as client:
        assert await client.models() == []
        service.worker(silent)
        await service.ready()
        [model] = await client.models()
    assert (model.name, model.max_model_len, model.vocab_size) == ("tiny", 8192, 600)
    assert (model.dtype, model.fingerprint) == ("float32", "ab" * 32)
