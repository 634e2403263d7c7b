"""`python -m tests.chaos.run --worker 60 --daemon 20 …`: a service under load, faults, and a verdict.

Prints the seed first: the same seed gives the same requests, and the same order of faults. Exit code 1 if a token was
lost, doubled or changed, if anything was computed again that was committed, or if the service is not as at its start.
"""

import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from gateway.client import Client
from tests.chaos import checker, workload
from tests.chaos.cluster import Cluster
from tests.chaos.nemesis import Nemesis
from tests.chaos.watch import Watch
from tests.chaos.workload import Stream, Work

KINDS: Final = ("worker", "daemon", "double", "gateway", "zombie", "upgrade")
SMALL: Final = ("--num-blocks-override", "2048")
LEAST: Final = 8  # streams in decode that make a fault count


async def baseline(cluster: Cluster, works: Sequence[Work]) -> dict[Work, Stream]:
    """Each request once, undisturbed."""
    into: list[Stream] = []
    async with Client(cluster.service.target) as client:
        done = await asyncio.gather(*(workload.run(client, work, into) for work in works))
    assert not any(stream.error for stream in done), [stream.error for stream in done if stream.error]
    return {stream.work: stream for stream in done}


def undisturbed(cluster: Cluster, works: Sequence[Work]) -> tuple[dict[Work, Stream], list[str]]:
    """What each request gives: computed whole, and with its prompt in the cache. Where the two differ its draw falls
    on the border between two tokens, within float32's rounding of sums taken in another order: about one draw in a
    million. Such a request shows nothing, and is left out by name."""
    cold, cached = (asyncio.run(baseline(cluster, works)) for _ in range(2))
    same = {work: stream for work, stream in cold.items() if stream.tokens == cached[work].tokens}
    return same, [work.name for work in works if work not in same]


async def load(cluster: Cluster, works: Sequence[Work], seed: int, at_once: int, into: list[Stream]) -> None:
    """Keeps `at_once` requests going until it is cancelled; each that began is finished."""
    stop = asyncio.Event()
    source = workload.endless(works, seed)

    async def one(client: Client) -> None:
        while not stop.is_set():
            await workload.run(client, next(source), into)

    async with Client(cluster.service.target) as client:
        tasks = [asyncio.create_task(one(client)) for _ in range(at_once)]
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stop.set()
            await asyncio.gather(*tasks)


async def disturb(
    cluster: Cluster, watch: Watch, works: Sequence[Work], seed: int, at_once: int, counts: Mapping[str, int]
) -> tuple[list[Stream], Nemesis]:
    streams: list[Stream] = []
    nemesis = Nemesis(cluster, streams, watch, seed, LEAST)
    running = asyncio.create_task(load(cluster, works, seed, at_once, streams))
    try:
        for kind, count in counts.items():
            await nemesis.run(kind, count, say)
    finally:
        running.cancel()
        await running
    return streams, nemesis


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def chaos(
    seed: int, counts: Mapping[str, int], *, at_once: int = 20, tokens: int = 240, options: Sequence[str] = ()
) -> dict[str, Any]:
    """One run; what it found stands under "wrong"."""
    folder = Path(tempfile.mkdtemp(prefix="hfc"))
    works = workload.works(seed, 30, tokens)
    try:
        with Cluster(folder, kvmanager=(*SMALL, *options)) as cluster:
            expected, on_a_border = undisturbed(cluster, works)
            works = list(expected)
            watch = Watch(cluster.service.run_dir, cluster.pool.name)
            streams, nemesis = asyncio.run(disturb(cluster, watch, works, seed, at_once, counts))
            pool = cluster.pool
            watch.stop()
            changed = [f"changed after its commit: {what}" for what in watch.changed]
            wrong = [*checker.differences(streams, expected), *changed, *cluster.settled()]
            found = checker.summary(nemesis.faults, streams, LEAST)
            found |= {
                "seed": seed,
                "adoptions": pool.adoptions,
                "reprefilled": pool.reprefilled,
                "on_a_border": on_a_border,
                "died_unasked": cluster.unexpected,
                "late_writes": watch.late,
                "samples": watch.samples,
                "wrong": wrong,
            }
            if pool.reprefilled:
                wrong.append(f"{pool.reprefilled} committed slots were computed again")
            if wrong:
                say(f"logs are kept in {folder}")
    except BaseException:
        say(f"logs are kept in {folder}")
        raise
    if not wrong:
        shutil.rmtree(folder, ignore_errors=True)
    return found


@click.command()
@click.option("--seed", type=int, default=None, help="Drawn unless given.")
@click.option("--at-once", default=20, show_default=True)
@click.option("--tokens", default=240, show_default=True)
@click.option("--no-kill", is_flag=True, help="A worker that hangs is fenced and not killed: it may wake.")
@click.option("--out", type=click.Path(path_type=Path))
def main(seed: int | None, at_once: int, tokens: int, no_kill: bool, out: Path | None, **counts: int) -> None:
    seed = random.SystemRandom().getrandbits(32) if seed is None else seed
    say(f"seed {seed}")
    found = chaos(
        seed, {kind: counts[kind] for kind in KINDS if counts[kind]}, at_once=at_once, tokens=tokens
    )
    text = json.dumps(found, indent=2)
    print(text)
    if out is not None:
        out.write_text(text + "\n")
    sys.exit(bool(found["wrong"]))


for kind in KINDS:
    main = click.option(f"--{kind}", default=0, show_default=True, help=f"Faults of kind {kind}.")(main)

if __name__ == "__main__":
    main()
