"""`make demo`: streams a story, kills the worker that tells it in the middle of a sentence, and the story goes on.

Five real processes on this machine: keeper, daemon, two workers and gateway, with the model that the repository ships.
What the demo prints of blocks and sequences comes from the `kvmanager` command line, as an operator would see it. The
same request, told again without a kill, gives the same words.
"""

import asyncio
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

from gateway.client import Client
from holdfast.rundir import RunDir
from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.client import AdminClient
from tools.service import Service, environment
from tools.up import demo_model, short_run_dir

OPENING = (
    "Once upon a time there was a small fox named Pip who lived at the edge of a quiet wood. "
    "Every evening Pip carried a lantern down to the river to look at the boats."
)
TURN = " One night the lantern was gone."
MAX_TOKENS, SEED = 220, 7
KILL_AFTER = 90  # tokens


def main() -> int:
    begun = time.monotonic()
    run_dir = short_run_dir()
    args = ("--threads", "1", "--dtype", "float32")  # so that both tellings are equal to the last bit
    service = Service(demo_model(), run_dir, free_port(), workers=2, logs=run_dir / "logs", compute_args=args)
    say(f"starting keeper, kvmanager, two compute workers and gateway in {run_dir} ...")
    with service:
        service.wait_ready()
        say(f"ready after {time.monotonic() - begun:.1f} s; the story comes token by token over gRPC:")
        first, told = asyncio.run(story(service.target, OPENING, begun, partial(kill_teller, run_dir)))
        _, again = asyncio.run(story(service.target, OPENING, None, quiet=True))
        same = "the same words" if told == again else "OTHER WORDS"
        say(f"the same request without a kill: {same}")
        say("what the daemon holds (kvmanager get sequences,pools; kvmanager get blocks --state sealed):")
        show(run_dir, "get", "sequences,pools")
        show(run_dir, "get", "blocks", "--state", "sealed")
        say("a second request that shares the first one's opening; its blocks are found, not computed:")
        second, _ = asyncio.run(story(service.target, OPENING + TURN, None))
        show(run_dir, "get", "sequences")
        say(f"usage: first {first}, second {second}")
        show(run_dir, "fsck")
    shutil.rmtree(run_dir)
    say("stopped; nothing is left running")
    return int(told != again)


async def story(
    target: str,
    prompt: str,
    begun: float | None,
    strike: Callable[[], None] | None = None,
    *,
    quiet: bool = False,
) -> tuple[str, list[int]]:
    """Streams one story to stdout; its usage in words, and its tokens. `strike` is called in the middle of it."""
    out = io.StringIO() if quiet else sys.stdout
    print(prompt, end="", flush=True, file=out)
    usage, ids, times = "", list[int](), list[float]()
    async with Client(target) as client:
        async for part in client.generate(
            prompt, max_tokens=MAX_TOKENS, temperature=0.7, top_p=0.95, seed=SEED
        ):
            if begun is not None and part.token_ids:
                say(f"[first token {time.monotonic() - begun:.1f} s after the start]", end="")
                begun = None
            times.append(time.monotonic())
            ids += part.token_ids
            print(part.text, end="", flush=True, file=out)
            if strike is not None and len(ids) >= KILL_AFTER:
                strike()
                strike, times = None, [time.monotonic()]
            if part.finish is not None:
                got = part.finish.usage
                usage = (
                    f"prompt {got.prompt_tokens} (cached {got.cached_tokens}), output {got.completion_tokens}"
                )
    print(flush=True, file=out)
    if not quiet:
        say(f"[longest pause between two tokens: {1000 * max(b - a for a, b in pairwise(times)):.0f} ms]")
    return usage, ids


def kill_teller(run_dir: Path) -> None:
    """SIGKILL for the worker that has a sequence."""
    with AdminClient(RunDir(run_dir)) as client:
        status = client.request(pb.StatusRequest())
    assert isinstance(status, pb.Status)
    victim = max(status.workers, key=lambda worker: worker.running)
    os.kill(victim.pid, signal.SIGKILL)
    say(f"[kill -9 {victim.pid}, the worker that tells it]", end="")


def show(run_dir: Path, *verb: str) -> None:
    """One kvmanager command, its output as it is."""
    sys.stdout.flush()
    argv = [sys.executable, "-m", "kvmanager", "--run-dir", str(run_dir), *verb]
    subprocess.run(argv, check=True, env=environment())


def say(text: str, end: str = "\n") -> None:
    print(f"\033[2m{text}\033[0m" if sys.stderr.isatty() else text, file=sys.stderr, end=end, flush=True)


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
