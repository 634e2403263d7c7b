"""Three fast crashes of the daemon: the KV is dropped and computed again, and no client sees another token by it.

The positive control of `reprefilled`: it counts what a fault costs, and here it must move.
"""

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.client import Client
from tests.e2e.conftest import Running, until
from tests.e2e.test_service import OPENING, collect
from tools.demo import free_port
from tools.service import Service
from tools.up import demo_model

STREAMS, TOKENS = 8, 500


@pytest.fixture
def crashing() -> Iterator[Running]:
    """A service whose daemons fail as often as the file `budget` says."""
    folder = Path(tempfile.mkdtemp(prefix="hf"))
    (folder / "budget").write_text("0")
    compute = ["--threads", "1", "--dtype", "float32"]
    service = Service(
        demo_model(),
        folder,
        free_port(),
        logs=folder / "logs",
        compute_args=compute,
        gateway_args=["--worker-wait", "120"],
    )
    keeper = ["kvmanager.keeper", "--spare", str(folder), "json", "info"]
    daemon = [sys.executable, "-m", "tests.support.crashing_daemon", str(folder / "budget")]
    own = [f"--run-dir={folder}", "--log-format=json", f"--keeper={folder / 'keeper.sock'}"]
    service.part("kvmanager").argv = [*keeper, *daemon, *own]
    try:
        with service:
            service.wait_ready()
            yield Running(service)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def request(number: int) -> dict[str, Any]:
    """Greedy and seeded ones in turn."""
    drawn = {"temperature": 0.9, "seed": number} if number % 2 else {"temperature": 0}
    return {"max_tokens": TOKENS, "ignore_eos": True, **drawn}


async def streams(one: Running) -> list[list[int]]:
    """The tokens of every stream."""
    async with Client(one.target) as client:
        found = await asyncio.gather(
            *(collect(client, f"{n}. {OPENING}", **request(n)) for n in range(STREAMS))
        )
    return [ids for _, ids, _ in found]


def log(one: Running, message: str) -> list[dict[str, Any]]:
    assert one.service.logs is not None
    lines = (one.service.logs / "kvmanager.log").read_text().splitlines()
    parsed = [json.loads(line) for line in lines if line.startswith("{")]
    return [line for line in parsed if message in line["message"]]


@pytest.mark.chaos
async def test_what_was_computed_is_computed_again_and_every_stream_is_as_if_nothing_had_been(
    crashing: Running,
) -> None:
    undisturbed = await streams(crashing)
    assert int(crashing.pool().get("reprefilled", 0)) == 0
    await asyncio.to_thread(until, lambda: bool(log(crashing, "spare daemon started")))
    disturbed = asyncio.create_task(streams(crashing))
    await asyncio.to_thread(until, lambda: int(crashing.worker().get("running", 0)) == STREAMS)
    await asyncio.sleep(0.5)
    (crashing.service.run_dir / "budget").write_text("3")
    os.kill(int(crashing.kv("status")["pid"]), signal.SIGKILL)
    while not disturbed.done():
        assert crashing.service.supervise() is None  # the refused worker ends and is started again
        await asyncio.sleep(0.1)
    assert await disturbed == undisturbed
    [line] = log(crashing, "its requests are kept")
    assert (line["live"], line["records_dropped"]) == (STREAMS, 0)
    pool = crashing.pool()
    assert 0 < int(pool["reprefilled"]) <= line["slots_lost"]
    assert int(pool["adoptions"]) == STREAMS
    crashing.assert_clean()
