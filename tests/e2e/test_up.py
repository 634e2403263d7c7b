"""`make up`'s supervisor: ordered stops, restarts, nothing left behind however it ends."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.client import Client
from tests.e2e.conftest import until
from tests.e2e.test_service import OPENING, collect
from tools.demo import free_port
from tools.service import ROOT, environment, serving


class Up:
    """`python -m tools.up` in a process group of its own, as a terminal would start it."""

    def __init__(self) -> None:
        self.port, run_dir = free_port(), tempfile.mkdtemp(prefix="hfu")
        argv = [sys.executable, "-m", "tools.up", "--run-dir", run_dir, "--port", str(self.port)]
        self.process = subprocess.Popen(
            argv, cwd=ROOT, env=environment(), process_group=0, stderr=subprocess.DEVNULL
        )
        self.target = f"127.0.0.1:{self.port}"
        until(lambda: serving(self.target))
        self.parts = children(self.process.pid)

    def named(self, name: str) -> int:
        (pid,) = [pid for pid in children(self.process.pid) if f"-m\0{name}" in command(pid)]
        return pid


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


@pytest.fixture
def up() -> Iterator[Up]:
    one = Up()
    yield one
    if one.process.poll() is None:
        one.process.terminate()
    one.process.wait(60)


async def test_ctrl_c_lets_running_streams_finish(up: Up) -> None:
    """A terminal sends SIGINT to the whole foreground group."""
    async with Client(up.target) as client:
        stream = client.generate(OPENING, max_tokens=400, ignore_eos=True)
        first = await anext(stream)
        os.killpg(up.process.pid, signal.SIGINT)
        rest = [chunk async for chunk in stream]
    assert sum(len(chunk.token_ids) for chunk in [first, *rest]) == 400
    assert up.process.wait(60) == 0
    assert not [pid for pid in up.parts if Path(f"/proc/{pid}").exists()]


async def test_a_dead_gateway_is_started_again_and_the_cache_is_still_there(up: Up) -> None:
    async with Client(up.target) as client:
        await collect(client, OPENING, max_tokens=4)
    os.kill(up.named("gateway"), signal.SIGKILL)
    until(lambda: not serving(up.target))
    until(lambda: serving(up.target))
    async with Client(up.target) as client:
        _, _, finish = await collect(client, OPENING, max_tokens=4)
    assert finish.usage.cached_tokens >= 16


def test_a_killed_supervisor_leaves_no_part_behind(up: Up) -> None:
    up.process.kill()
    up.process.wait()
    deadline = time.monotonic() + 60
    while [pid for pid in up.parts if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
