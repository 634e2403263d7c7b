"""A search whose worker, daemon or gateway goes: the answers, with their scores, are those of an undisturbed one."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from gateway.client import Client
from gateway.client_calls import build_request
from holdfast.rundir import RunDir
from holdfast.v1 import generate_pb2 as pb
from holdfast.v1 import generate_pb2_grpc as pb_grpc
from holdfast.v1 import kvmanager_pb2 as kv
from kvmanager.client import AdminClient
from tests.e2e.conftest import Running, running, until
from tests.e2e.test_gateway_restart import kill_gateway, starts_again

PROMPT = "Once upon a time there was a fox who lived beside the river with a boat and a small bird"
ASKED: dict[str, Any] = {
    "beam_width": 3,
    "n": 2,
    "max_tokens": 500,
    "ignore_eos": True,
    "length_penalty": 0.7,
}
Answers = dict[int, tuple[list[int], float]]


@pytest.fixture(scope="module")
def two() -> Iterator[Running]:
    """Two workers; a part that dies is started again by whoever waits for that."""
    with running(workers=2) as one:
        until(lambda: len(ready(one)) == 2)
        yield one


@pytest.fixture(scope="module")
def undisturbed(two: Running) -> Answers:
    return asyncio.run(search(two))


def ready(service: Running) -> dict[str, dict[str, Any]]:
    """Workers that take requests, by name."""
    items = service.kv("get", "workers")["items"]
    return {one["id"]: one for one in items if one["state"] == "ready"}


def revive(service: Running, count: int = 2) -> None:
    """What died is started again, by this thread, whose end is its end; what was drained takes requests again."""
    for one in service.kv("get", "workers")["items"]:
        if one["state"] == "draining":
            service.kv("undrain", one["id"])

    def there() -> bool:
        assert service.service.supervise() is None
        living = all(
            part.process is not None and part.process.poll() is None for part in service.service.parts
        )
        return living and len(ready(service)) >= count

    until(there)


async def search(service: Running) -> Answers:
    """What a search gives, by index."""
    found: Answers = {}
    async with Client(service.target) as client:
        async for chunk in client.generate(PROMPT, **ASKED):
            ids, _ = found.get(chunk.index, ([], 0.0))
            found[chunk.index] = [*ids, *chunk.token_ids], chunk.finish.score if chunk.finish else 0.0
    return found


def equal(found: Answers, wanted: Answers) -> None:
    assert {index: ids for index, (ids, _) in found.items()} == {
        index: ids for index, (ids, _) in wanted.items()
    }
    for index, (_, score) in found.items():
        assert score == pytest.approx(wanted[index][1], abs=1e-4)


@contextmanager
def daemon_of(service: Running) -> Iterator[AdminClient]:
    admin = AdminClient(RunDir(service.service.run_dir))
    try:
        yield admin
    finally:
        admin.close()


def runs(admin: AdminClient) -> str:
    """The worker that runs the beams, once they are some way."""
    reply = admin.request(kv.ListRequest(kind=kv.RESOURCE_KIND_SEQUENCE))
    assert isinstance(reply, kv.ListReply)
    beams = [one for one in reply.sequences if one.state == "open" and one.recorded_len > one.prompt_len + 30]
    return beams[0].worker if len(beams) >= 2 else ""


def beams_run(service: Running) -> kv.WorkerInfo:
    """Waits until a search is in the middle; who runs it."""
    with daemon_of(service) as admin:
        deadline = time.monotonic() + 60
        while not (name := runs(admin)):
            assert time.monotonic() < deadline, "no beams"
            time.sleep(0.01)
        status = admin.request(kv.StatusRequest())
        assert isinstance(status, kv.Status)
        return next(one for one in status.workers if one.id == name)


def kill_worker(service: Running) -> None:
    os.kill(beams_run(service).pid, signal.SIGKILL)


def kill_daemon(service: Running) -> None:
    pid = int(service.kv("status")["pid"])
    beams_run(service)
    os.kill(pid, signal.SIGKILL)


def drain(service: Running) -> None:
    name = beams_run(service).id
    with daemon_of(service) as admin:
        admin.request(kv.DrainRequest(worker=name))


@pytest.mark.chaos
async def test_a_search_is_resumed_at_the_next_gateway(two: Running, undisturbed: Answers) -> None:
    """Nothing of it was shown: the client asks from the beginning, by the request's id; and again, once it is over."""
    request = build_request(PROMPT, ASKED | {"request_id": "resumed"})
    async with grpc.aio.insecure_channel(two.target) as channel:
        generate: Any = pb_grpc.GenerateServiceStub(channel).Generate
        call = generate(request)
        reading = asyncio.create_task(call.read())
        await asyncio.to_thread(beams_run, two)
        await asyncio.to_thread(kill_gateway, two)
        await starts_again(two)
        await asyncio.gather(reading, return_exceptions=True)
    request.resume.add(index=0)
    for _ in range(2):
        async with grpc.aio.insecure_channel(two.target) as channel:
            equal(await whole(channel, request), undisturbed)
    two.assert_clean()


async def whole(channel: grpc.aio.Channel, request: pb.GenerateRequest) -> Answers:
    found: Answers = {}
    generate: Any = pb_grpc.GenerateServiceStub(channel).Generate
    async for message in generate(request):
        ids, _ = found.get(message.index, ([], 0.0))
        found[message.index] = [*ids, *message.token_ids], message.finish.score
    return found


@pytest.mark.parametrize("fault", [drain, pytest.param(kill_daemon, marks=pytest.mark.full), kill_worker])
@pytest.mark.chaos
async def test_a_fault_in_mid_search_changes_nothing(
    two: Running, undisturbed: Answers, fault: Callable[[Running], None]
) -> None:
    revive(two)
    before = int(two.pool().get("adoptions", 0))
    task = asyncio.create_task(search(two))
    await asyncio.to_thread(fault, two)
    equal(await task, undisturbed)
    if fault is not kill_daemon:
        assert int(two.pool()["adoptions"]) >= before + 2, "its beams went on at another worker"
    assert int(two.pool().get("reprefilled", 0)) == 0
    two.assert_clean()
    items = two.kv("get", "sequences")["items"]
    assert all(one["state"] == "finished" for one in items)
