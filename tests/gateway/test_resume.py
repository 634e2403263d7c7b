"""A request whose stream broke is taken up again: by this gateway or another one, and every token comes once."""

import asyncio
from dataclasses import dataclass, field

import grpc
import pytest
from conftest import serving
from peers import collect, faithful, ids_of, pack, silent, tell, token_of

from gateway.client import Broken, Client
from gateway.client_calls import build_request
from holdfast.v1 import generate_pb2 as pb
from holdfast.v1 import generate_pb2_grpc as pb_grpc

SLOW = 0.01


async def slowly(worker, job):
    await faithful(worker, job, pause=SLOW)


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


def expected(job, tokens):
    prompt = len(job.submit.token_ids) // 4
    return [token_of(job.submit, prompt + place) for place in range(tokens)]


@dataclass
class Call:
    """One Generate call as a client that knows nothing of resuming makes it."""

    service: object
    prompt: object
    options: dict
    resume: dict = field(default_factory=dict)
    messages: list = field(default_factory=list)

    async def __aenter__(self):
        self.channel = grpc.aio.insecure_channel(self.service.target)
        request = build_request(self.prompt, self.options)
        for index, offset in self.resume.items():
            request.resume.add(index=index, offset=offset)
        self.call = pb_grpc.GenerateServiceStub(self.channel).Generate(request)
        return self

    async def __aexit__(self, *_):
        self.call.cancel()
        await self.channel.close()

    async def read(self, count):
        for _ in range(count):
            self.messages.append(await self.call.read())

    async def rest(self):
        while (message := await self.call.read()) is not grpc.aio.EOF:
            self.messages.append(message)

    def ids(self, index=0):
        return [i for message in self.messages if message.index == index for i in message.token_ids]

    @property
    def text(self):
        return "".join(message.text for message in self.messages)

    def offset(self, index=0):
        return max((m.next_offset for m in self.messages if m.index == index), default=0)


def crash(service):
    """As SIGKILL: nothing is told to anybody, and nothing is heard any more."""
    fleet = service.gateway.fleet
    fleet.cancel = lambda *_: None
    fleet.submit = lambda *_: True


async def refused(call):
    """The status of a call that brings nothing."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.rest()
    assert not call.messages
    return caught.value


async def test_another_gateway_gives_the_rest_exactly(service, model_folder):
    options = {"request_id": "r", "max_tokens": 60, "seed": 3, "n": 3}
    service.worker(slowly)
    await service.ready()
    async with Call(service, "The fox", options) as before:
        await before.read(30)
        crash(service)
        worker = service.workers[0]
        async with serving_again(service, model_folder) as again:
            offsets = {index: before.offset(index) for index in range(3)}
            async with Call(again, "The fox", options, offsets) as after:
                await after.rest()
    for job in worker.jobs[:3]:
        index = job.submit.index
        assert before.ids(index) + after.ids(index) == expected(job, 60)
    finishes = [message.finish for message in after.messages if message.HasField("finish")]
    assert [(f.reason, f.seed) for f in finishes] == [(pb.FINISH_REASON_LENGTH, 3)] * 3
    assert [job.submit.sequence for job in worker.jobs[3:]] == [
        job.submit.sequence for job in worker.jobs[:3]
    ]
    assert all(job.submit.adopt for job in worker.jobs[3:])


def serving_again(service, model_folder):
    """A second gateway of the same service: the peers stay."""
    return serving(model_folder, service.sockets, peers_of=service)


@pytest.mark.parametrize("offset", range(13))
async def test_text_behind_any_offset_is_what_the_stream_would_have_brought(service, tokenizer, offset):
    """Within a character and within the begin of a stop string too."""
    ids = tokenizer.encode("a 🙂 日本 Once upon a tim", add_special_tokens=False).ids
    options = {"request_id": "r", "max_tokens": 50, "stop": ["a time", "Onces"]}
    async with service.client(tell(*([i] for i in ids))):
        async with Call(service, "x", options) as whole:
            await whole.rest()
        async with Call(service, "x", options, {0: min(offset, len(ids))}) as after:
            await after.rest()
    before = [
        message for message in whole.messages if message.next_offset <= offset and not message.finish.reason
    ]
    assert "".join(message.text for message in before) + after.text == whole.text
    assert [i for message in before for i in message.token_ids] + after.ids() == ids
    assert after.messages[-1].finish.reason == pb.FINISH_REASON_LENGTH


async def test_stop_strings_of_the_resumed_request_match_across_the_break(service, tokenizer):
    ids = tokenizer.encode("the small fox lived", add_special_tokens=False).ids
    half = len(ids) // 2
    stop = tokenizer.decode(ids[half - 1 : half + 1])

    async def script(worker, job):
        await worker.emit(job, ids[:half])
        if len(worker.jobs) > 1:
            await worker.emit(job, ids[half:], epoch=2, first=len(job.submit.token_ids) // 4 + half)

    async with service.client(script):
        async with Call(service, [1], {"request_id": "r", "stop": [stop]}) as before:
            await before.read(half)
            crash_and_forget(service)
            async with Call(service, [1], {"request_id": "r", "stop": [stop]}, {0: half}) as after:
                await after.rest()
    assert before.text + after.text == tokenizer.decode(ids).partition(stop)[0]
    assert after.messages[-1].finish.stop == stop
    assert after.ids() == ids[half : half + 1]


def crash_and_forget(service):
    """The stream that is open hears nothing more; a newer one does."""
    service.gateway.fleet._sinks.clear()


async def test_the_newest_wins_and_what_runs_runs_on(service):
    options = {"request_id": "r", "max_tokens": 80}
    service.worker(slowly)
    await service.ready()
    async with Call(service, [1, 2], options) as first:
        await first.read(10)
        async with Call(service, [1, 2], options, {0: 10}) as second:
            await second.rest()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await first.rest()
    worker = service.workers[0]
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert first.ids()[:10] + second.ids() == expected(worker.jobs[0], 80)
    assert not worker.cancels
    assert not service.gateway.fleet.sequences


async def test_a_finished_request_gives_its_rest_and_its_finish_again(service):
    options = {"request_id": "r", "max_tokens": 400}
    async with service.client(faithful):
        async with Call(service, [1], options) as whole:
            await whole.rest()
        for offset in (0, 17, 399, 400):
            async with Call(service, [1], options, {0: offset}) as after:
                await after.rest()
            assert after.ids() == whole.ids()[offset:]
            assert after.messages[-1].finish.reason == pb.FINISH_REASON_LENGTH
            assert after.messages[-1].next_offset == 400
    assert len(service.workers[0].jobs) == 1


async def test_what_a_broken_connection_ended_is_gone_on_with(service):
    options = {"request_id": "r", "max_tokens": 60, "n": 2}
    service.worker(slowly)
    await service.ready()
    worker = service.workers[0]
    async with Call(service, [1], options) as before:
        await before.read(20)
    await until(lambda: len(worker.cancels) == 2 and not worker.live)
    offsets = {index: before.offset(index) for index in range(2)}
    async with Call(service, [1], options, offsets) as after:
        await after.rest()
    for job in worker.jobs[:2]:
        index = job.submit.index
        assert before.ids(index) + after.ids(index) == expected(job, 60)
    first, again = worker.jobs[0].submit, worker.jobs[2].submit
    assert again.sequence != first.sequence
    assert again.output_ids == pack(expected(worker.jobs[0], len(again.output_ids) // 4))
    async with Call(service, [1], options, offsets) as once_more:  # finds the newer of both records
        await once_more.rest()
    assert once_more.ids() == after.ids()


async def test_an_orphan_is_gone_on_with_by_whoever_is_ready(service, model_folder):
    options = {"request_id": "r", "max_tokens": 60}
    service.worker(slowly)
    await service.ready()
    async with Call(service, [1], options) as before:
        await before.read(10)
        crash(service)
        dead = service.workers.pop()
        await dead.die()
        async with serving_again(service, model_folder) as again:
            async with Call(again, [1], options, {0: before.offset()}) as after:
                await asyncio.sleep(0.3)
                service.worker(slowly, name="w2")
                await after.rest()
    assert before.ids() + after.ids() == expected(dead.jobs[0], 60)


async def test_an_index_that_was_never_begun_is_begun_under_its_own_id(service, model_folder):
    """The daemon knows of the first index only; its worker may know of the others, or not."""

    async def first_only(worker, job):
        if job.submit.index == 0 or job.submit.adopt:
            await slowly(worker, job)

    options = {"request_id": "r", "max_tokens": 40, "n": 3}
    service.worker(first_only)
    await service.ready()
    async with Call(service, [1], options) as before:
        await before.read(10)
        crash(service)
        async with serving_again(service, model_folder) as again:
            async with Call(again, [1], options, {0: before.offset()}) as after:
                await after.rest()
    jobs = service.workers[0].jobs
    assert [job.submit.sequence for job in jobs[3:]] == [job.submit.sequence for job in jobs[:3]]
    assert before.ids() + after.ids() == expected(jobs[0], 40)
    assert [after.ids(1), after.ids(2)] == [expected(jobs[1], 40), expected(jobs[2], 40)]


async def test_what_cannot_be_resumed_is_told(service):
    options = {"request_id": "r", "max_tokens": 9}
    async with service.client(faithful) as client:
        await collect(client.generate([1, 2], **options))
        cases = [
            ({"request_id": "other"}, [1, 2], {0: 1}, "NOT_FOUND", "no such request"),
            (options, [1, 3], {0: 1}, "INVALID_ARGUMENT", "prompt: "),
            (options, [1, 2, 3], {0: 1}, "INVALID_ARGUMENT", "prompt: "),
            (options | {"n": 2}, [1, 2], {0: 1}, "INVALID_ARGUMENT", "sampling.n: "),
            (options, [1, 2], {0: 10}, "INVALID_ARGUMENT", "resume[0].offset: 10 is more than the 9"),
        ]
        for given, prompt, offsets, code, words in cases:
            async with Call(service, prompt, given, offsets) as call:
                status = await refused(call)
            assert (status.code().name, words in status.details()) == (code, True), status.details()


async def test_a_refused_resume_leaves_the_stream_that_runs_alone(service):
    options = {"request_id": "r", "max_tokens": 60}
    service.worker(slowly)
    await service.ready()
    async with Call(service, [1], options) as running:
        await running.read(5)
        async with Call(service, [2], options, {0: 5}) as wrong:
            assert (await refused(wrong)).code() is grpc.StatusCode.INVALID_ARGUMENT
        await running.rest()
    assert running.ids() == expected(service.workers[0].jobs[0], 60)


async def test_the_daemon_away_is_waited_for_and_then_unavailable(serve):
    async with serve(worker_wait=0.5) as service, service.client(faithful) as client:
        await collect(client.generate([1], request_id="r", max_tokens=9))
        service.daemon.paused = True
        async with Call(service, [1], {"request_id": "r"}, {0: 3}) as call:
            status = await refused(call)
    assert status.code() is grpc.StatusCode.UNAVAILABLE


# ------------------------------------------------------------------------------------ the Python client


async def test_the_client_resumes_by_itself_and_hands_every_token_out_once(serve, model_folder):
    """Its gateway stops in mid-stream; another one takes the port."""
    heard = []
    async with serve(shutdown_grace=0.0) as service:
        service.worker(slowly)
        await service.ready()
        async with Client(service.target) as client:
            given = {"max_tokens": 80, "n": 2, "on_resume": lambda error, _: heard.append(error.reason)}
            task = asyncio.create_task(collect(client.generate("The fox", **given)))
            worker = service.workers[0]
            await until(lambda: worker.live and worker.live[0].position > 20)
            await service.gateway.stop()
            async with serving(model_folder, service.sockets, peers_of=service, port=service.gateway.port):
                chunks = await task
    for job in worker.jobs[:2]:
        assert ids_of(chunks, job.submit.index) == expected(job, 80)
    assert [chunk.finish.reason for chunk in chunks if chunk.finish] == [pb.FINISH_REASON_LENGTH] * 2
    assert heard == ["SHUTTING_DOWN"]
    assert not worker.cancels


async def test_resuming_is_bounded_and_can_be_switched_off(serve):
    for timeout, tries in ((0, 0), (0.5, 1)):
        heard = []
        async with serve(shutdown_grace=0.0) as service, service.client(slowly) as client:
            stream = client.generate(
                [1], max_tokens=80, resume_timeout=timeout, on_resume=lambda *_, heard=heard: heard.append(1)
            )
            await anext(stream)
            await service.gateway.stop()
            async with asyncio.timeout(10):
                with pytest.raises(Broken):
                    await collect(stream)
        assert len(heard) == tries


async def test_a_request_that_nobody_knows_any_more_is_broken(serve, model_folder):
    async with serve(shutdown_grace=0.0) as service, service.client(slowly) as client:
        stream = client.generate([1], max_tokens=400)
        await anext(stream)
        service.daemon.submits.clear()
        await service.gateway.stop()
        async with serving(model_folder, service.sockets, peers_of=service, port=service.gateway.port):
            with pytest.raises(Broken) as caught:
                await collect(stream)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.NOT_FOUND, "REQUEST_UNKNOWN")


async def test_resume_without_a_request_id_is_invalid(service):
    async with service.client(silent), Call(service, [1], {}, {0: 1}) as call:
        assert (await refused(call)).code() is grpc.StatusCode.INVALID_ARGUMENT
