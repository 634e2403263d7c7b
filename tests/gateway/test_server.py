"""The server around the service: health, reflection, hostile bytes, the port, and the way down."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys

import grpc
import pytest
import zmq.asyncio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from peers import ScriptedDaemon, ScriptedWorker, collect, ids_of, silent, tell

from gateway.client import CallError, Client, InvalidRequest
from gateway.config import GatewaySettings
from gateway.server import SERVICE, Gateway, StartError
from holdfast import settings
from holdfast.v1 import generate_pb2 as pb
from holdfast.v1 import kvmanager_pb2 as kv

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(target, name=SERVICE):
    async with grpc.aio.insecure_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status


async def becomes(target, status, seconds=10):
    async with asyncio.timeout(seconds):
        while await health(target) != status or await health(target, "") != status:
            await asyncio.sleep(0.05)


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


async def test_stopping_lets_streams_finish_and_takes_no_new_ones(serve):
    async with serve(shutdown_grace=20) as service, service.client(silent) as client:
        worker = service.workers[0]
        running = asyncio.create_task(collect(client.generate([1])))
        await worker.until(lambda: worker.jobs)
        stopping = asyncio.create_task(service.gateway._server.stop(20))
        await asyncio.sleep(0.2)
        with pytest.raises(CallError):
            await collect(client.generate([1], retries=0))
        await worker.emit(worker.jobs[0], [5], 3)
        assert ids_of(await running) == [5]
        await stopping


# ------------------------------------------------------------------------------------------- as a process


def command(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "gateway", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


async def finished(process, seconds=60):
    out, err = await asyncio.to_thread(process.communicate, None, seconds)
    return process.returncode, out, err


def free_port():
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
async def process(model_folder, run_dir):
    """A gateway process, its port, and a scripted worker that answers `[5, 6]` when told."""
    port = free_port()
    found = command(
        "serve", "--model", model_folder, "--run-dir", run_dir.path, "--port", port, "--shutdown-grace", 2
    )
    context = zmq.asyncio.Context()
    daemon = ScriptedDaemon(context, run_dir)
    worker = ScriptedWorker(context, run_dir, daemon)
    target = f"127.0.0.1:{port}"
    async with asyncio.timeout(60):
        while True:
            try:
                await becomes(target, SERVING)
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.1)
    yield found, target, worker
    if found.poll() is None:
        found.kill()
    found.communicate()
    for peer in (worker, daemon):
        await peer.close()
    context.term()


async def test_sigterm_ends_the_process_after_its_streams(process):
    found, target, worker = process
    async with Client(target) as client:
        running = asyncio.create_task(collect(client.generate([1])))
        await worker.until(lambda: worker.jobs)
        found.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert found.poll() is None
        await worker.emit(worker.jobs[0], [5], 3)
        assert ids_of(await running) == [5]
    code, out, err = await finished(found)
    assert (code, out) == (0, "")
    assert '"message": "request ended"' in err


async def test_streams_longer_than_the_grace_are_cancelled_and_their_worker_is_told(process):
    found, target, worker = process
    async with Client(target) as client:
        running = asyncio.create_task(collect(client.generate([1], retries=0)))
        await worker.until(lambda: worker.jobs)
        found.send_signal(signal.SIGTERM)
        with pytest.raises(CallError):
            await running
        await worker.until(lambda: worker.cancels)
    assert (await finished(found))[0] == 0


async def test_the_smallest_client_streams_text_to_stdout(process, tokenizer):
    _, target, worker = process
    ids = tokenizer.encode("the small fox", add_special_tokens=False).ids
    worker.script = tell(*([i] for i in ids))
    code, out, err = await finished(command("generate", "Once", "--target", target, "--max-tokens", "9"))
    assert (code, out) == (0, "the small fox\n")
    assert f"{len(ids)} generated" in err
    code, out, _ = await finished(command("generate", "Once", "--target", target, "--json", "--chat"))
    assert code == 0
    assert len(out.splitlines()) == len(ids)
    worker.script = silent
    code, out, err = await finished(command("generate", "Once", "--target", target, "--timeout", "0.5"))
    assert (code, out) == (5, "")
    code, _, err = await finished(command("generate", "Once", "--target", target, "--temperature", "-1"))
    assert code == 1
    assert "sampling.temperature" in err


async def test_exit_codes_of_the_smallest_client():
    async def code_of(*arguments):
        return (await finished(command(*arguments)))[0]

    nobody = f"127.0.0.1:{free_port()}"
    codes = await asyncio.gather(
        code_of("generate", "x", "--target", nobody, "--timeout", "20"),
        code_of("generate"),
        code_of("generate", "x", "--max-tokens", "0"),
        code_of("version"),
    )
    assert codes == [4, 2, 2, 0]


async def test_serving_others_without_keys_is_a_usage_error(model_folder, run_dir):
    process = command("serve", "--model", model_folder, "--run-dir", run_dir.path, "--host", "0.0.0.0")
    code, _, err = await finished(process)
    assert code == 2
    assert "--api-keys" in err


async def test_a_port_in_use_exits_1(service, model_folder, run_dir):
    port = service.gateway.port
    code, _, err = await finished(
        command("serve", "--model", model_folder, "--run-dir", run_dir.path, "--port", port)
    )
    assert code == 1
    assert "in use" in err


def test_settings_come_from_the_environment_too(model_folder):
    environ = {"HOLDFAST_GATEWAY__MODEL": str(model_folder), "HOLDFAST_GATEWAY__PORT": "7"}
    found = settings.load(GatewaySettings, "gateway", {}, environ)
    assert (found.port, found.model_name, found.address) == (7, "tiny", "127.0.0.1:7")
    with pytest.raises(settings.SettingsError, match="not a folder"):
        settings.load(GatewaySettings, "gateway", {"model": "/nowhere"}, {})
