"""A request that kills whoever runs it fails alone (protocol rule 12)."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from gateway.client import CallError, Client
from tests.chaos.cluster import Cluster
from tests.support.poison_worker import POISON

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]
INNOCENTS = 10


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(Path(tempfile.mkdtemp(prefix="hfp")), module="tests.support.poison_worker") as one:
        yield one


async def innocent(client: Client, number: int) -> list[int]:
    ids: list[int] = []
    prompt = [200 + number, *range(300, 340)]
    options = {"max_tokens": 300, "seed": number, "ignore_eos": True, "logit_bias": {POISON: -100.0}}
    async for chunk in client.generate(prompt, retries=60, **options):
        ids += chunk.token_ids
    return ids


async def poison(client: Client) -> CallError:
    with pytest.raises(CallError) as failed:
        async for _ in client.generate([300, POISON, 301], retries=0, max_tokens=5):
            pass
    return failed.value


async def together(cluster: Cluster) -> tuple[list[list[int]], CallError]:
    """All at once; whoever dies is started again."""
    async with Client(cluster.service.target) as client:
        tasks = [asyncio.create_task(innocent(client, number)) for number in range(INNOCENTS)]
        await asyncio.sleep(1.0)
        # These share its first step.
        late = [asyncio.create_task(innocent(client, number)) for number in range(INNOCENTS)]
        bad = asyncio.create_task(poison(client))
        while not bad.done():
            await asyncio.to_thread(cluster.until_ready, cluster.workers)
            await asyncio.sleep(0.1)
        return await asyncio.gather(*tasks, *late), await bad


async def alone(cluster: Cluster) -> list[list[int]]:
    async with Client(cluster.service.target) as client:
        return await asyncio.gather(*(innocent(client, number) for number in range(INNOCENTS)))


def test_it_ends_with_internal_and_everybody_else_gets_all_tokens(cluster: Cluster) -> None:
    expected = asyncio.run(alone(cluster))
    got, error = asyncio.run(together(cluster))
    assert got == expected * 2
    assert error.code == grpc.StatusCode.INTERNAL
    assert cluster.unexpected >= 2, (
        "its first death may have been another's fault: it is tried alone after that"
    )
    assert cluster.pool.reprefilled == 0
    assert cluster.settled() == []
