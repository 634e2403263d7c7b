"""A real service a module: keeper, daemon, worker and gateway as processes, with the model of the repository.

In float32, where a sequence's tokens do not depend on who shares its batch; in bfloat16 rounding may.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tools.demo import free_port
from tools.service import Service, environment
from tools.up import demo_model


@dataclass
class Running:
    """A service under test and its `kvmanager` command line."""

    service: Service

    @property
    def target(self) -> str:
        return self.service.target

    def kv(self, *verb: str) -> Any:
        """Parsed JSON of one kvmanager command."""
        run_dir = ["--run-dir", str(self.service.run_dir)]
        argv = [sys.executable, "-m", "kvmanager", *run_dir, "-o", "json", "--timeout", "30", *verb]
        out = subprocess.run(argv, capture_output=True, check=False, text=True, env=environment(), timeout=60)
        assert out.returncode == 0, out.stderr
        return json.loads(out.stdout)

    def pool(self) -> dict[str, Any]:
        (pool,) = self.kv("get", "pools")["items"]
        return pool

    def blocks(self) -> dict[str, int]:
        """Blocks of the pool by state."""
        counts = self.pool()["blocks"]
        names = ("free", "granted", "tail", "sealed", "quarantined", "cached")
        return {name: int(counts.get(name, 0)) for name in names}

    def worker(self) -> dict[str, Any]:
        (worker,) = self.kv("get", "workers")["items"]
        return worker

    def assert_clean(self) -> None:
        """Within a bound: every block is free, cached or float, and fsck has nothing to say."""
        until(lambda: held(self.blocks()) == 0)
        assert self.kv("fsck").get("findings", []) == []


def held(blocks: dict[str, int]) -> int:
    """Blocks that are neither free, cached nor float."""
    return blocks["tail"] + blocks["quarantined"] + blocks["sealed"] - blocks["cached"]


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "never came true"
        time.sleep(0.1)


@contextmanager
def running(**options: Any) -> Iterator[Running]:
    """A service of its own; everything it started is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="hf"))
    options.setdefault("compute_args", ["--threads", "1", "--dtype", "float32"])
    service = Service(demo_model(), folder, free_port(), logs=folder / "logs", **options)
    try:
        with service:
            service.wait_ready()
            yield Running(service)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running() as one:
        yield one


@pytest.fixture
def small_service() -> Iterator[Running]:
    """A pool of 64 blocks of 16 slots: 1,024 tokens in all."""
    with running(kvmanager_args=["--num-blocks-override", "64"]) as one:
        yield one
