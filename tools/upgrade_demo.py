"""`make upgrade-demo`: replaces the only running worker by a new process while it serves, with `kvmanager drain`.

Eight streams are in the middle of their text. A second worker starts and warms up; the first one is drained: it stops
at a step boundary and gives its sequences back, the second goes on with them. Says how long the readers waited, and
that every stream has the tokens that it has without an upgrade.
"""

import asyncio
import shutil
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path

from gateway.client import Client
from holdfast.rundir import RunDir
from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.client import AdminClient
from tools.demo import OPENING, free_port, say, show
from tools.service import Part, Service
from tools.up import demo_model, short_run_dir

STREAMS, MAX_TOKENS, DRAIN_AFTER_S = 8, 400, 1.0
ARGS = ("--threads", "1", "--dtype", "float32")


def main() -> int:
    run_dir = short_run_dir()
    service = Service(demo_model(), run_dir, free_port(), logs=run_dir / "logs", compute_args=ARGS)
    with service:
        service.wait_ready()
        say("one worker serves; eight streams, undisturbed:")
        before, _ = asyncio.run(streams(service, None))
        say("the same eight, and the worker is replaced while they run:")
        after, pause = asyncio.run(streams(service, run_dir))
        show(run_dir, "get", "workers,pools")
        same = before == after
        say(f"longest pause {1000 * pause:.0f} ms; tokens: {'the same' if same else 'OTHERS'}")
        recomputed = pools(run_dir)[0].reprefilled
        say(f"slots computed again: {recomputed}")
    shutil.rmtree(run_dir)
    return int(not same or recomputed > 0)


async def streams(service: Service, run_dir: Path | None) -> tuple[list[list[int]], float]:
    """The tokens of all, and the longest time between two of one. With a run directory: and an upgrade."""
    async with Client(service.target) as client:
        tasks = [asyncio.create_task(stream(client, seed)) for seed in range(STREAMS)]
        if run_dir is not None:
            await asyncio.to_thread(upgrade, service, run_dir)
        done = await asyncio.gather(*tasks)
    return [ids for ids, _ in done], max(pause for _, pause in done)


async def stream(client: Client, seed: int) -> tuple[list[int], float]:
    ids: list[int] = []
    times: list[float] = []
    async for chunk in client.generate(OPENING, max_tokens=MAX_TOKENS, seed=seed, ignore_eos=True):
        ids += chunk.token_ids
        times.append(time.monotonic())
    return ids, max(b - a for a, b in pairwise(times))


def upgrade(service: Service, run_dir: Path) -> None:
    """A new worker, ready; the old one drained, then ended."""
    [old] = workers(run_dir)
    part = Part(
        "compute-new", ["compute", "serve", "--run-dir", str(run_dir), "--model", str(service.model), *ARGS]
    )
    service.parts.append(part)
    service.start(part)
    while len([w for w in workers(run_dir) if w.state == pb.WORKER_STATE_READY]) < 2:
        time.sleep(0.05)
    say(f"a new worker is ready; kvmanager drain {old.id} ({old.running} sequences run there)")
    show(run_dir, "drain", old.id, "--wait")
    former = service.part("compute-0")
    former.restart = False
    assert former.process is not None
    former.process.send_signal(signal.SIGTERM)
    former.process.wait()
    service.parts.remove(former)


def workers(run_dir: Path) -> list[pb.WorkerInfo]:
    return list(status(run_dir).workers)


def pools(run_dir: Path) -> list[pb.PoolInfo]:
    return list(status(run_dir).pools)


def status(run_dir: Path) -> pb.Status:
    with AdminClient(RunDir(run_dir)) as client:
        found = client.request(pb.StatusRequest())
    assert isinstance(found, pb.Status)
    return found


if __name__ == "__main__":
    sys.exit(main())
