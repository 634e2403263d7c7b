"""Decode does not wait for the daemon: neither stopped for 1.9 s nor killed is it missed."""

import asyncio
import os
import signal

from gateway.client import Client
from tests.e2e.conftest import Running, until
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


async def test_a_killed_daemon_is_replaced_by_its_spare_and_no_token_is_lost(service: Running) -> None:
    async with Client(service.target) as client:
        options = {"max_tokens": 400, "ignore_eos": True, "temperature": 0}
        streams = [asyncio.create_task(collect(client, f"{n}. {OPENING}", **options)) for n in range(STREAMS)]
        await asyncio.to_thread(until, lambda: int(service.worker().get("running", 0)) == STREAMS)
        before, first = service.worker(), daemon_pid(service)
        os.kill(first, signal.SIGKILL)
        results = await asyncio.gather(*streams)
        alone = await collect(client, f"3. {OPENING}", **options)
    assert [len(ids) for _, ids, _ in results] == [400] * STREAMS
    assert results[3][1] == alone[1]
    assert daemon_pid(service) != first
    assert service.worker()["id"] == before["id"], "the worker attached again"
    assert int(service.pool().get("reprefilled", 0)) == 0
    service.assert_clean()
