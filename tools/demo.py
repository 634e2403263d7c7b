"""`make demo`: starts the whole service, streams a story through gRPC, shows what the KV daemon holds, stops.

Four real processes on this machine: keeper, daemon, worker and gateway, with the model that the repository ships. What
the demo prints of blocks and sequences comes from the `kvmanager` command line, as an operator would see it.
"""

import asyncio
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from gateway.client import Client
from tools.service import Service, environment
from tools.up import demo_model, short_run_dir

OPENING = (
    "Once upon a time there was a small fox named Pip who lived at the edge of a quiet wood. "
    "Every evening Pip carried a lantern down to the river to look at the boats."
)
TURN = " One night the lantern was gone."
MAX_TOKENS, SEED = 220, 7


def main() -> int:
    begun = time.monotonic()
    run_dir = short_run_dir()
    service = Service(demo_model(), run_dir, free_port(), logs=run_dir / "logs")
    say(f"starting keeper, kvmanager, compute worker and gateway in {run_dir} ...")
    with service:
        service.wait_ready()
        say(f"ready after {time.monotonic() - begun:.1f} s; the story comes token by token over gRPC:")
        first = asyncio.run(story(service.target, OPENING, begun))
        say("what the daemon holds (kvmanager get sequences,pools; kvmanager get blocks --state sealed):")
        show(run_dir, "get", "sequences,pools")
        show(run_dir, "get", "blocks", "--state", "sealed")
        say("a second request that shares the first one's opening; its blocks are found, not computed:")
        second = asyncio.run(story(service.target, OPENING + TURN, None))
        show(run_dir, "get", "sequences")
        say(f"usage: first {first}, second {second}")
        show(run_dir, "fsck")
    shutil.rmtree(run_dir)
    say("stopped; nothing is left running")
    return 0


async def story(target: str, prompt: str, begun: float | None) -> str:
    """Streams one story to stdout; its usage in words."""
    print(prompt, end="", flush=True)
    usage = ""
    async with Client(target) as client:
        async for part in client.generate(
            prompt, max_tokens=MAX_TOKENS, temperature=0.7, top_p=0.95, seed=SEED
        ):
            if begun is not None and part.token_ids:
                say(f"[first token {time.monotonic() - begun:.1f} s after the start]", end="")
                begun = None
            print(part.text, end="", flush=True)
            if part.finish is not None:
                got = part.finish.usage
                usage = (
                    f"prompt {got.prompt_tokens} (cached {got.cached_tokens}), output {got.completion_tokens}"
                )
    print(flush=True)
    return usage


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
