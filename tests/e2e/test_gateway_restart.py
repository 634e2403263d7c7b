"""A gateway is killed in mid-stream: its clients resume at the one that takes its port, and no token is lost."""

import asyncio
import os
import signal
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from gateway.client import CallError, Client
from gateway.client_calls import build_request
from holdfast.v1 import generate_pb2_grpc as pb_grpc
from tests.e2e.conftest import Running, until
from tests.e2e.test_service import OPENING
from tools.service import serving

STREAMS = 8
OPTIONS: dict[str, Any] = {"max_tokens": 160, "ignore_eos": True, "temperature": 0.8, "stop": ["\n\n\n\n"]}


class Stream:
    """One request, and what came of it so far."""

    def __init__(self, client: Client, number: int, n: int = 1) -> None:
        self.ids: list[list[int]] = [[] for _ in range(n)]
        self.text = [""] * n
        self.finishes: list[int] = []
        self.breaks: list[CallError] = []
        self._chunks = client.generate(
            f"{number}. {OPENING}",
            seed=number,
            n=n,
            on_resume=lambda error, _: self.breaks.append(error),
            **OPTIONS,
        )

    async def read(self) -> "Stream":
        async for chunk in self._chunks:
            self.ids[chunk.index] += chunk.token_ids
            self.text[chunk.index] += chunk.text
            self.finishes += [chunk.index] if chunk.finish else []
        return self


def streams(client: Client) -> Sequence[Stream]:
    """The last one has two indexes."""
    return [Stream(client, number, 2 if number == STREAMS - 1 else 1) for number in range(STREAMS)]


def kill_gateway(service: Running) -> None:
    process = service.service.part("gateway").process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


async def starts_again(service: Running) -> None:
    """Started by this thread, whose end is the end of what it started."""
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(serving, service.target):
            assert service.service.supervise() is None
            await asyncio.sleep(0.1)


@pytest.mark.chaos
async def test_a_killed_gateway_costs_time_and_no_token(service: Running) -> None:
    async with Client(service.target) as client:
        undisturbed = await asyncio.gather(*(one.read() for one in streams(client)))
        running = streams(client)
        tasks = [asyncio.create_task(one.read()) for one in running]
        await asyncio.to_thread(until, lambda: min(len(ids) for one in running for ids in one.ids) > 20)
        cut = [len(ids) for one in running for ids in one.ids]
        await asyncio.to_thread(kill_gateway, service)
        await starts_again(service)
        await asyncio.gather(*tasks)
    assert max(cut) < 160, "every stream was in mid-decode"
    for before, after in zip(undisturbed, running, strict=True):
        assert (after.ids, after.text) == (before.ids, before.text)
        assert sorted(after.finishes) == list(range(len(after.ids)))
        assert len(after.breaks) == 1
    assert int(service.worker().get("running", 0)) == 0
    service.assert_clean()


@pytest.mark.chaos
async def test_what_a_disconnect_ended_goes_on_behind_its_tokens(service: Running) -> None:
    """The gateway lives and ended the request on the worker; resumed, it says what it would have said."""
    options = {"seed": 5, "n": 2, "request_id": "cut", "logprobs": 1} | OPTIONS
    request = build_request(OPENING, options)
    whole: dict[int, list[int]] = {0: [], 1: []}
    got: dict[int, list[int]] = {0: [], 1: []}
    async with Client(service.target) as client, grpc.aio.insecure_channel(service.target) as channel:
        async for chunk in client.generate(OPENING, **(options | {"request_id": "whole"})):
            whole[chunk.index] += chunk.token_ids
        generate: Any = pb_grpc.GenerateServiceStub(channel).Generate
        for most in (40, 60, 10_000):  # cut twice
            call = generate(request)
            while (message := await call.read()) is not grpc.aio.EOF:
                got[message.index] += message.token_ids
                if len(got[0]) >= most:
                    break
            call.cancel()
            del request.resume[:]
            for index, ids in got.items():
                request.resume.add(index=index, offset=len(ids))
    assert got == whole
    service.assert_clean()


@pytest.mark.full
async def test_a_restart_of_the_gateway_hands_its_streams_to_the_next(service: Running) -> None:
    """SIGTERM, and a grace that is shorter than the streams."""
    part = service.service.part("gateway")
    async with Client(service.target) as client:
        undisturbed = await asyncio.gather(*(one.read() for one in streams(client)))
        part.argv = [*part.argv, "--shutdown-grace", "0"]
        await asyncio.to_thread(kill_gateway, service)
        await starts_again(service)
        running = streams(client)
        tasks = [asyncio.create_task(one.read()) for one in running]
        await asyncio.to_thread(until, lambda: min(len(ids) for one in running for ids in one.ids) > 20)
        assert part.process is not None
        part.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(part.process.wait)
        await starts_again(service)
        await asyncio.gather(*tasks)
    for before, after in zip(undisturbed, running, strict=True):
        assert (after.ids, after.text) == (before.ids, before.text)
    service.assert_clean()
