"""Decode does not wait for the daemon: stopped for 1.9 s it is not missed, killed it costs a pause."""

import asyncio
import os
import signal

import pytest

from gateway.client import Client
from tests.e2e.conftest import Running, running, until
from tests.e2e.test_service import OPENING, collect

STREAMS = 8


def daemon_pid(one: Running) -> int:
    """The keeper has another child: the spare."""
    return int(one.kv("status")["pid"])


@pytest.mark.chaos
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


@pytest.mark.chaos
async def test_a_killed_daemon_costs_a_pause_and_the_next_one_has_its_cache() -> None:
    """The worker attaches again; the stream goes on with the tokens that it would have had."""
    with running() as one:
        async with Client(one.target) as client:
            await collect(client, OPENING, max_tokens=40)
            options = {"max_tokens": 1500, "ignore_eos": True, "temperature": 0}
            stream = asyncio.create_task(collect(client, OPENING, **options))
            await asyncio.to_thread(until, lambda: int(one.worker().get("running", 0)) == 1)
            before, pid = one.worker(), daemon_pid(one)
            os.kill(pid, signal.SIGKILL)
            _, ids, finish = await asyncio.wait_for(stream, 60)
            assert daemon_pid(one) != pid
            _, alone, again = await collect(client, OPENING, **options)
        assert ids == alone
        assert len(ids) == 1500
        assert again.usage.cached_tokens >= finish.usage.cached_tokens >= 16, (
            "sealed blocks outlive the daemon"
        )
        assert one.worker()["id"] == before["id"]
        one.assert_clean()
