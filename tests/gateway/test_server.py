"""The server around the service: health, reflection, hostile bytes, the port, and the way down."""

import asyncio
import contextlib

import grpc
import pytest
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from peers import (
    NOT_SERVING,
    SERVICE,
    SERVING,
    becomes,
    collect,
    health,
    ids_of,
    silent,
)

from gateway.client import Broken, Client, InvalidRequest, Unreachable
from gateway.config import GatewaySettings
from gateway.server import Gateway, StartError
from holdfast.v1 import generate_pb2 as pb
from holdfast.v1 import kvmanager_pb2 as kv


async def test_health_means_progress(service):
    """It flips with the worker, the worker's progress, and the daemon."""
    assert await health(service.target) == NOT_SERVING
    worker = service.worker(silent)
    await becomes(service.target, SERVING)
    for field, bad, good in (
        ("state", kv.WORKER_STATE_DRAINING, kv.WORKER_STATE_READY),
        ("age_ms", 5000, 10),
    ):
        setattr(worker.info, field, bad)
        await becomes(service.target, NOT_SERVING)
        setattr(worker.info, field, good)
        await becomes(service.target, SERVING)
    worker.info.busy, worker.info.silent_ms = True, 60_000
    await becomes(service.target, NOT_SERVING)
    worker.info.silent_ms = 5
    await becomes(service.target, SERVING)
    service.daemon.paused = True
    await becomes(service.target, NOT_SERVING)
    service.daemon.paused = False
    await becomes(service.target, SERVING)


async def test_watching_health_sees_the_flip(service):
    async with grpc.aio.insecure_channel(service.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await watch.read()).status == NOT_SERVING
        service.worker(silent)
        assert (await watch.read()).status == SERVING
        watch.cancel()


async def test_reflection_lists_the_services(service):
    async with grpc.aio.insecure_channel(service.target) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services=""),
                  reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)])
        )  # fmt: skip
        listed, described = [reply async for reply in call]
    names = {item.name for item in listed.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names
    assert described.file_descriptor_response.file_descriptor_proto


async def raw(target, method, body):
    """The status of a call whose request is `body` as it is."""
    async with grpc.aio.insecure_channel(target) as channel:
        call = channel.unary_stream(f"/{SERVICE}/{method}")(body, timeout=20)
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in call:
                pass
        return await call.code()


BODIES = [b"\xff" * 9, b"\x0a\xff", b"\x1a\x04ab", b"\x1a\x02\xff\xfe", b"\x2a" * 1000]


@pytest.mark.parametrize("method", ["Generate", "Tokenize", "Detokenize", "ListModels"])
async def test_malformed_bytes_are_refused_and_harm_nobody(service, method):
    for body in BODIES:
        code = await raw(service.target, method, body)
        try:
            getattr(pb, f"{method}Request").FromString(body)
        except DecodeError:
            assert code in {
                grpc.StatusCode.INTERNAL,
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.UNKNOWN,
            }
        else:  # unknown fields are no error
            assert code in {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}
    assert await health(service.target) == NOT_SERVING


async def test_a_message_over_the_limit_is_refused(service):
    code = await raw(service.target, "Generate", b"\x1a" + b"\x80\x80\x80\x03" + b"x" * (6 * 2**20))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_list_models_pages(service):
    async with Client(service.target) as client:
        for page in (pb.ListModelsRequest(page_size=-1), pb.ListModelsRequest(page_token="x")):
            with pytest.raises(InvalidRequest):
                await client._unary(client._stub.ListModels, page)
        service.worker(silent)
        await service.ready()
        reply = await client._unary(client._stub.ListModels, pb.ListModelsRequest(page_size=5000))
        assert len(reply.models) == 1
        assert reply.next_page_token == ""
        past = await client._unary(client._stub.ListModels, pb.ListModelsRequest(page_token="7"))
        assert not past.models


@pytest.mark.parametrize(
    "request_",
    [
        pb.DetokenizeRequest(token_ids=[2**31]),
        pb.DetokenizeRequest(token_ids=[1] * (2**20 + 1)),
        pb.DetokenizeRequest(model="m" * 129),
        pb.TokenizeRequest(),
        pb.TokenizeRequest(text="x" * (2**20 + 1)),
        pb.TokenizeRequest(model="other", text="x"),
        pb.TokenizeRequest(chat=pb.ChatPrompt()),
    ],
    ids=range(7),
)
async def test_small_calls_are_bounded_too(service, request_):
    method = "Tokenize" if isinstance(request_, pb.TokenizeRequest) else "Detokenize"
    async with Client(service.target) as client:
        with pytest.raises(InvalidRequest) as caught:
            await client._unary(getattr(client._stub, method), request_)
    assert caught.value.details["field"]


async def test_a_port_in_use_is_a_clear_error(service, model_folder, run_dir):
    second = Gateway(GatewaySettings(model=model_folder, run_dir=run_dir.path, port=service.gateway.port))
    with pytest.raises(StartError, match="in use"):
        await second.start()
    await second.stop()


async def test_stopping_lets_streams_finish_and_refuses_new_calls_as_safe_to_retry(serve):
    async with serve(shutdown_grace=20) as service, service.client(silent) as client:
        worker = service.workers[0]
        running = asyncio.create_task(collect(client.generate([1])))
        await worker.until(lambda: worker.jobs)
        stopping = asyncio.create_task(service.gateway.stop())
        await becomes(service.target, NOT_SERVING)
        for late in (collect(client.generate([1], retries=0)), client.tokenize("x")):
            with pytest.raises(Unreachable) as caught:
                await late
            found = caught.value
            assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
            assert found.retry_seconds == 1.0
        await worker.emit(worker.jobs[0], [5], 3)
        assert ids_of(await running) == [5]
        await stopping


async def test_streams_that_the_grace_ends_hear_whether_they_may_be_sent_again(serve):
    """What was shown runs on at the worker, for another gateway; what was not is ended."""
    async with serve(shutdown_grace=0.3) as service, service.client(silent) as client:
        worker = service.workers[0]
        streams = [client.generate([n], retries=0, resume_timeout=0) for n in (1, 2)]
        running = [asyncio.create_task(collect(streams[0])), asyncio.create_task(anext(streams[1]))]
        await worker.until(lambda: len(worker.jobs) == 2)
        shown = next(job for job in worker.jobs if job.submit.token_ids[0] == 2)
        await worker.emit(shown, [5])
        await running[1]
        await service.gateway.stop()
        with pytest.raises(Unreachable) as unheard:
            await running[0]
        with pytest.raises(Broken) as heard:
            await anext(streams[1])
        await worker.until(lambda: worker.cancels)
        await asyncio.sleep(0.1)
        assert shown.submit.sequence not in {cancel.sequence for cancel in worker.cancels}
        assert len(worker.cancels) == 1
    assert (unheard.value.code, unheard.value.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    assert (heard.value.code, heard.value.reason) == (grpc.StatusCode.ABORTED, "SHUTTING_DOWN")


async def test_a_call_that_waits_for_a_worker_is_shown_out_too(serve):
    async with serve(shutdown_grace=0.3, worker_wait=60) as service, service.client() as client:
        waiting = asyncio.create_task(collect(client.generate([1], retries=0)))
        async with asyncio.timeout(20):
            while not service.gateway._doors._inside:
                await asyncio.sleep(0.01)
        await service.gateway.stop()
        with pytest.raises(Unreachable) as caught:
            await waiting
    assert caught.value.reason == "SHUTTING_DOWN"


async def test_a_call_that_a_dying_server_cuts_off_is_tried_again():
    """gRPC's last word to a request that meets a server's end is a bare CANCELLED."""

    async def cut_off(_, context):
        await context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")

    server = grpc.aio.server()
    methods = {"Generate": grpc.unary_stream_rpc_method_handler(cut_off)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    heard = []
    async with Client(f"127.0.0.1:{port}") as client:
        with pytest.raises(Unreachable):
            await collect(client.generate([1], retries=1, on_retry=lambda *told: heard.append(told[1:])))
    assert heard == [(2, 2)]
    await server.stop(None)


async def test_a_broken_task_of_the_gateway_is_told_not_hidden(service, monkeypatch):
    def fail(members):
        raise RuntimeError("our bug")

    monkeypatch.setattr(service.gateway.fleet, "_reconcile", fail)
    async with asyncio.timeout(20):
        with pytest.raises(RuntimeError, match="our bug"):
            await service.gateway.broken()
