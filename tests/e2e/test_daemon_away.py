"""Decode does not wait for the daemon: stopped for 1.9 s it is not missed, killed it ends requests honestly."""

import asyncio
import os
import signal

import pytest

from gateway.client import CallError, Client
from tests.e2e.conftest import Running, running, until
from tests.e2e.test_service import OPENING, collect

STREAMS = 8


def daemon_pid(one: Running) -> int:
    """The keeper has another child: the spare."""
    return int(one.kv("status")["pid"])


async def test_steps_go_on_and_no_token_is_lost_while_the_daemon_is_stopped_for_1_9_s(
    service: Running,
) -> None:
    async with Client(service.target) as client:
        options = {"max_tokens": 1500, "ignore_eos": True, "temperature": 0}
        streams = [asyncio.create_task(collect(client, f"{n}. {OPENING}", **options)) for n in range(STREAMS)]
        await asyncio.to_thread(until, lambda: int(service.worker().get("running", 0)) == STREAMS)
        await asyncio.sleep(2.5)  # the float grows to two seconds of decode
        before, pid = service.worker(), daemon_pid(service)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(1.9)
        os.kill(pid, signal.SIGCONT)
        after = service.worker()
        results = await asyncio.gather(*streams)
        alone = await collect(client, f"3. {OPENING}", **options)
    assert int(after["step"]) - int(before["step"]) >= 20, "steps computed without the daemon"
    assert [len(ids) for _, ids, _ in results] == [1500] * STREAMS
    assert results[3][1] == alone[1]
    assert service.worker()["id"] == before["id"], "nobody was fenced"
    service.assert_clean()


async def test_a_killed_daemon_ends_requests_and_the_service_comes_back_with_its_cache() -> None:
    with running() as one:
        async with Client(one.target) as client:
            await collect(client, OPENING, max_tokens=40)
            stream = asyncio.create_task(collect(client, OPENING, max_tokens=4000, ignore_eos=True))
            await asyncio.to_thread(until, lambda: int(one.worker().get("running", 0)) == 1)
            os.kill(daemon_pid(one), signal.SIGKILL)
            with pytest.raises(CallError):
                await asyncio.wait_for(stream, 30)
            await asyncio.to_thread(one.service.wait_ready)
            await asyncio.to_thread(until, lambda: comes_back(one))
            _, _, finish = await collect(client, OPENING, max_tokens=4)
        assert finish.usage.cached_tokens >= 16, "sealed blocks outlive the daemon and the worker"
        one.assert_clean()


def comes_back(one: Running) -> bool:
    """A new worker is ready."""
    assert one.service.supervise() is None
    workers = one.kv("get", "workers")["items"]
    return [worker["state"] for worker in workers] == ["ready"]
