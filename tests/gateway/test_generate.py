"""Generate over real sockets: streams, text, stops, and every field on its way to the worker."""

import asyncio

import grpc
import pytest
import structlog
from peers import collect, ids_of, silent, tell, text_of, unpack

from gateway.client import DeadlineExpired, InvalidRequest, SyncClient
from gateway.client_calls import build_request
from holdfast.mix import mix
from holdfast.v1 import generate_pb2 as pb


async def test_streams_text_and_ids_as_deltas(service, tokenizer):
    ids = tokenizer.encode("Once upon a time 🙂 there was 日本語", add_special_tokens=False).ids
    async with service.client(tell(*([i] for i in ids))) as client:
        chunks = await collect(client.generate("The fox", max_tokens=100))
    assert ids_of(chunks) == ids
    assert text_of(chunks) == "Once upon a time 🙂 there was 日本語"
    assert any(not c.text for c in chunks)  # within 🙂 and 日 nothing can be shown
    assert [c.next_offset for c in chunks] == list(range(1, len(ids) + 1))
    assert [bool(c.finish) for c in chunks] == [False] * (len(ids) - 1) + [True]
    assert chunks[-1].finish.reason == pb.FINISH_REASON_LENGTH
    assert chunks[-1].finish.usage.completion_tokens == len(ids)


async def test_incomplete_utf8_at_the_end_is_flushed(service, tokenizer):
    ids = tokenizer.encode("fox 🙂", add_special_tokens=False).ids[:-1]
    async with service.client(tell(*([i] for i in ids))) as client:
        chunks = await collect(client.generate("x", max_tokens=100))
    assert text_of(chunks) == tokenizer.decode(ids)
    assert text_of(chunks).endswith("\ufffd")


async def test_the_worker_gets_a_complete_submit(service, tokenizer):
    """Every field arrives as given, defaults filled in."""
    async with service.client(tell([5])) as client:
        await collect(
            client.generate(
                [1, 2, 3], max_tokens=7, min_tokens=2, temperature=0.5, top_k=9, min_p=0.25, seed=11,
                frequency_penalty=-1.5, presence_penalty=1.5, repetition_penalty=1.25, logit_bias={4: -2.5},
                stop_token_ids=[9], ignore_eos=True, logprobs=3, prompt_logprobs=2, priority=-4, request_id="me",
            )
        )  # fmt: skip
    submit = service.workers[0].jobs[0].submit
    assert unpack(submit.token_ids) == [1, 2, 3]
    assert submit.sampling == pb.SamplingParams(
        temperature=0.5, top_p=1.0, top_k=9, min_p=0.25, repetition_penalty=1.25, frequency_penalty=-1.5,
        presence_penalty=1.5, logit_bias={4: -2.5}, seed=11, n=1, beam_width=1, length_penalty=1.0,
    )  # fmt: skip
    assert submit.stopping == pb.StoppingCriteria(
        max_tokens=7, min_tokens=2, stop_token_ids=[9], ignore_eos=True
    )
    assert (submit.logprobs, submit.prompt_logprobs, submit.priority) == (3, 2, -4)
    assert (submit.request_id, submit.index, submit.n, submit.tenant) == ("me", 0, 1, bytes(32))
    assert (len(submit.sequence), len(submit.group)) == (16, 16)
    assert submit.arrival_ns > 0


async def test_unset_max_tokens_is_the_rest_of_the_context_or_of_the_pool(service):
    async with service.client(tell([5])) as client:
        await collect(client.generate([1, 2, 3]))
        service.daemon.pool.num_blocks = 11
        await asyncio.sleep(0.6)
        await collect(client.generate([1, 2, 3]))
    jobs = service.workers[0].jobs
    assert [job.submit.stopping.max_tokens for job in jobs] == [8192 - 3, 160 - 3]


async def test_a_drawn_seed_is_echoed_and_was_used(service):
    async with service.client(tell([5])) as client:
        first = await collect(client.generate([1]))
        second = await collect(client.generate([1]))
    seeds = [chunks[-1].finish.seed for chunks in (first, second)]
    assert seeds == [job.submit.sampling.seed for job in service.workers[0].jobs]
    assert seeds[0] != seeds[1]


async def test_n_continuations_are_one_group_with_seeds_of_their_own(service):
    async def script(worker, job):
        for step in range(3):
            await worker.emit(
                job, [100 + 10 * job.submit.index + step], 3 if step == 2 else 0, cached_tokens=1
            )

    async with service.client(script) as client:
        chunks = await collect(client.generate([1, 2], n=3, seed=5, max_tokens=3))
    submits = [job.submit for job in service.workers[0].jobs]
    assert [s.index for s in submits] == [0, 1, 2]
    assert [s.sampling.seed for s in submits] == [mix(5, i) for i in range(3)]
    assert len({s.group for s in submits}) == 1
    assert len({s.sequence for s in submits}) == 3
    for index in range(3):
        assert ids_of(chunks, index) == [100 + 10 * index + step for step in range(3)]
        finish = [c.finish for c in chunks if c.index == index and c.finish]
        assert len(finish) == 1
        assert finish[0].usage == pb.Usage(prompt_tokens=2, completion_tokens=3, cached_tokens=1)
        assert finish[0].seed == 5


async def test_logprobs_align_with_ids_and_prompt_logprobs_come_first(service):
    def logprob(i):
        return pb.TokenLogprob(
            token_id=i, logprob=-i / 4, rank=1, top=[pb.TopLogprob(token_id=i, logprob=-i / 4)]
        )

    async def script(worker, job):
        await worker.emit(job, [], prompt_logprobs=[logprob(1)])  # a chunk of the prompt
        await worker.emit(job, [7, 8], prompt_logprobs=[logprob(2)], logprobs=[logprob(7), logprob(8)])
        await worker.emit(job, [9], 3, logprobs=[logprob(9)])

    async with service.client(script) as client:
        chunks = await collect(client.generate([1, 1, 2], logprobs=1, prompt_logprobs=1))
    assert [p.token_id for p in chunks[0].message.prompt_logprobs] == [1, 2]
    assert not any(c.message.prompt_logprobs for c in chunks[1:])
    assert [[p.token_id for p in c.message.logprobs] for c in chunks] == [[7], [8], [9]]


async def test_stream_interval_bounds_the_tokens_of_a_message(service):
    async with service.client(tell(*([i] for i in range(10, 31)))) as client:
        chunks = await collect(client.generate([1], stream_interval=8))
    assert ids_of(chunks) == list(range(10, 31))
    assert [len(c.token_ids) for c in chunks] == [1, 8, 8, 4]


@pytest.mark.parametrize("include", [False, True])
async def test_a_stop_string_across_tokens_ends_the_index_and_its_worker(service, tokenizer, include):
    ids = tokenizer.encode("the small fox lived by the sea", add_special_tokens=False).ids

    async def script(worker, job):
        for i in ids:
            await worker.emit(job, [i])
        await job.cancelled.wait()

    async with service.client(script) as client:
        chunks = await collect(
            client.generate([1], stop=["zebra", "x lived"], include_stop_in_output=include)
        )
        worker = service.workers[0]
        await worker.until(lambda: worker.cancels)
    assert text_of(chunks) == ("the small fox lived" if include else "the small fo")
    got = ids_of(chunks)
    assert got == ids[: len(got)]
    assert "x lived" in tokenizer.decode(got)
    assert chunks[-1].finish.reason == pb.FINISH_REASON_STOP
    assert chunks[-1].finish.stop == "x lived"
    assert chunks[-1].finish.usage.completion_tokens == len(got)
    assert worker.cancels[0].reason == pb.FINISH_REASON_STOP


async def test_text_held_back_for_a_stop_string_comes_at_the_end(service, tokenizer):
    ids = tokenizer.encode("upon a", add_special_tokens=False).ids
    async with service.client(tell(*([i] for i in ids))) as client:
        chunks = await collect(client.generate([1], stop=["a time"]))
    assert text_of(chunks) == "upon a"
    assert chunks[-1].finish.reason == pb.FINISH_REASON_LENGTH


async def test_a_stop_string_does_not_match_before_min_tokens(service, tokenizer):
    ids = tokenizer.encode("fox fox fox fox", add_special_tokens=False).ids
    async with service.client(tell(*([i] for i in ids))) as client:
        chunks = await collect(client.generate([1], stop=["fox"], min_tokens=len(ids)))
    assert ids_of(chunks) == ids
    assert chunks[-1].finish.stop == "fox"


async def test_a_stop_token_gives_its_id_and_no_text(service, tokenizer):
    fox = tokenizer.encode("fox", add_special_tokens=False).ids
    script = tell([100], fox, finish=0)

    async def stopped(worker, job):
        await script(worker, job)
        await worker.emit(job, fox[-1:], pb.FINISH_REASON_STOP, stop_token_id=fox[-1], stopped_by_token=True)

    async with service.client(stopped) as client:
        chunks = await collect(client.generate([1], stop_token_ids=fox[-1:]))
    assert ids_of(chunks)[-1] == fox[-1]
    assert text_of(chunks) == tokenizer.decode([100, *fox])
    assert chunks[-1].finish.WhichOneof("matched") == "stop_token_id"
    assert chunks[-1].finish.stop_token_id == fox[-1]


async def test_special_tokens_give_text_only_when_asked(service, tokenizer):
    fox = tokenizer.encode("fox", add_special_tokens=False).ids
    async with service.client(tell(fox, [1], finish=pb.FINISH_REASON_EOS)) as client:
        hidden = await collect(client.generate([3]))
        shown = await collect(client.generate([3], skip_special_tokens=False))
    assert (text_of(hidden), text_of(shown)) == ("fox", "fox</s>")
    assert ids_of(hidden)[-1] == 1
    assert hidden[-1].finish.reason == pb.FINISH_REASON_EOS


async def test_chat_is_rendered_and_encoded_without_extra_special_tokens(service, tokenizer):
    async with service.client(tell([5])) as client:
        messages = [{"role": "user", "content": " hi "}]
        await collect(client.generate(messages))
        ids = await client.tokenize(messages)
        assert (
            await client.detokenize(ids, skip_special_tokens=False) == "<s><|user|>\nhi</s>\n<|assistant|>\n"
        )
        with pytest.raises(InvalidRequest) as caught:
            await collect(client.generate([{"role": "wizard", "content": ""}]))
    assert unpack(service.workers[0].jobs[0].submit.token_ids) == ids
    assert caught.value.reason == "CHAT_TEMPLATE_FAILED"
    assert "unknown role" in str(caught.value)


async def test_a_text_prompt_has_the_special_tokens_of_the_tokenizer(service, tokenizer):
    async with service.client(tell([5])) as client:
        await collect(client.generate("the fox"))
        assert await client.tokenize("the fox") == tokenizer.encode("the fox").ids
        bare = await client.tokenize("the fox", add_special_tokens=False)
        await collect(client.generate(""))
    assert unpack(service.workers[0].jobs[0].submit.token_ids) == [0, *bare]
    assert unpack(service.workers[0].jobs[1].submit.token_ids) == [0]


async def test_without_a_tokenizer_ids_go_in_and_out(serve, tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    async with serve(folder) as service:
        async with service.client(tell([7], [8])) as client:
            chunks = await collect(client.generate([1, 2]))
            for call in (client.tokenize("x"), client.detokenize([1]), collect(client.generate("text"))):
                with pytest.raises(InvalidRequest) as caught:
                    await call
                assert (caught.value.code, caught.value.reason) == (
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "NO_TOKENIZER",
                )
    assert (ids_of(chunks), text_of(chunks)) == ([7, 8], "")


async def test_one_index_may_stop_while_another_goes_on(service, tokenizer):
    fox = tokenizer.encode("fox", add_special_tokens=False).ids
    sea = tokenizer.encode("the sea the sea the sea", add_special_tokens=False).ids

    async def script(worker, job):
        for i in fox if job.submit.index == 0 else sea:
            await worker.emit(job, [i])
            await asyncio.sleep(0.01)
        if job.submit.index == 1:
            await worker.emit(job, [], pb.FINISH_REASON_LENGTH)

    async with service.client(script) as client:
        chunks = await collect(client.generate([1], n=2, stop=["ox"]))
        worker = service.workers[0]
        await worker.until(lambda: worker.cancels)
    assert (text_of(chunks, 0), text_of(chunks, 1)) == ("f", "the sea the sea the sea")
    assert {c.index: c.finish.reason for c in chunks if c.finish} == {0: 1, 1: 3}
    [cancel] = worker.cancels
    assert cancel.sequence == next(j.submit.sequence for j in worker.jobs if j.submit.index == 0)


async def test_the_client_without_async(service, tokenizer):
    fox = tokenizer.encode("the fox", add_special_tokens=False).ids

    def use(target):
        with SyncClient(target) as client:
            text = "".join(chunk.text for chunk in client.generate("x", max_tokens=9))
            for _ in client.generate("x"):
                break
            return text, client.detokenize(client.tokenize("the sea")), [m.name for m in client.models()]

    async with service.client(tell(*([i] for i in fox))):
        assert await asyncio.to_thread(use, service.target) == ("the fox", "the sea", ["tiny"])


async def test_the_client_retries_what_was_never_begun(serve):
    async with serve(worker_wait=0.1) as service, service.client() as client:
        task = asyncio.create_task(collect(client.generate([1], retries=20)))
        await asyncio.sleep(0.5)
        service.worker(tell([5]))
        assert ids_of(await task) == [5]


async def test_every_request_ends_in_one_log_line(service, tokenizer):
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        async with service.client(tell([5], [6])) as client:
            await collect(client.generate("fox", request_id="mine"))
            with pytest.raises(InvalidRequest):
                await collect(client.generate([1], top_p=2.0))
            service.workers[0].script = silent
            with pytest.raises(DeadlineExpired):
                await collect(client.generate([1], timeout=0.2))
            while len(ends := [line for line in logs if line["event"] == "request ended"]) < 3:
                await asyncio.sleep(0.01)
    assert [line["status"] for line in ends] == ["OK", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED"]
    assert (ends[0]["request_id"], ends[0]["finish"], ends[0]["completion_tokens"]) == ("mine", ["LENGTH"], 2)
    assert ends[0]["prompt_tokens"] == len(tokenizer.encode("fox").ids)


def test_an_unknown_option_of_the_client_is_a_type_error():
    with pytest.raises(TypeError, match="temprature"):
        build_request("x", {"temprature": 1.0})
