"""Two real workers on one GPU, one pool: B attends over blocks that A wrote, and A may be killed."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.worker_process import Gateway, Service, Stream, service

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
STORIES = Path(__file__).resolve().parents[2] / "models/stories-6m"
PROMPT = list(range(20, 120))  # six whole blocks of 16 and a rest
START_S = 120.0  # kernels are compiled


@pytest.fixture
def one() -> Iterator[Service]:
    with service() as running:
        running.model = STORIES
        running.start(
            "kvmanager", "kvmanager", "serve", "--kv-memory", "256MiB", "--max-workers", "2",
            "--gpu-memory-utilization", "0.9",
        )  # fmt: skip
        yield running


def worker(one: Service, name: str, *flags: str) -> Gateway:
    one.worker(name, "--device", "cuda", "--load-format", "auto", "--max-num-seqs", "8", *flags)
    one.until_logged(name, "ready", START_S)
    return one.gateway(name)


def ask(gateway: Gateway, new_tokens: int = 24, prompt: list[int] = PROMPT) -> Stream:
    stream = gateway.submit(prompt, stopping={"max_tokens": new_tokens})
    gateway.until_ended(stream)
    assert not stream.error, stream.message
    assert stream.last is not None
    return stream


def cached(stream: Stream) -> int:
    assert stream.last is not None
    return int(stream.last.cached_tokens)


def test_b_attends_over_what_a_wrote(one: Service) -> None:
    """A prefix hit across processes: no copy, and the tokens that A itself gives from its cache."""
    a = worker(one, "a")
    b = worker(one, "b")
    cold = ask(a)
    own, other = ask(a), ask(b)
    assert cached(cold) == 0
    assert cached(own) == cached(other) == 96
    assert own.tokens == other.tokens
    assert len(set(other.tokens)) > 4
    assert len(one.ask("get", "workers")["items"]) == 2
    one.until_unused()
    one.ask("fsck")


@pytest.mark.parametrize("flags", [(), ("--kv-cache-dtype", "fp8")])
def test_b_goes_on_within_a_block_that_a_wrote(one: Service, flags: tuple[str, ...]) -> None:
    """The begin of a block is copied on B's stream before the step that attends over it."""
    a, b = worker(one, "a", *flags), worker(one, "b", *flags)
    prompt = [*PROMPT, *range(150, 160)]
    ask(a, 24, prompt)
    own, other = ask(a, 24, prompt), ask(b, 24, prompt)
    assert cached(own) == cached(other) == 109
    assert own.tokens == other.tokens
    one.until_unused()
    one.ask("fsck")


def test_a_is_killed_in_the_middle_of_a_step_and_b_goes_on_from_its_blocks(one: Service) -> None:
    a = worker(one, "a")
    b = worker(one, "b")
    first = ask(a)
    second = ask(a)
    running = [a.submit(PROMPT, stopping={"max_tokens": 2000}) for _ in range(6)]
    a.until(lambda: all(len(stream.tokens) > 20 for stream in running))
    victim = one.processes[1]
    victim.send_signal(signal.SIGKILL)
    began = time.monotonic()
    after = ask(b)
    assert cached(after) == 96
    assert after.tokens == second.tokens
    assert len(first.tokens) == len(after.tokens)
    victim.wait(10)
    one.until_unused()  # what A might still have written came back when it was proven gone
    print(f"B answered {time.monotonic() - began:.2f} s after A's death")
    one.ask("fsck")


def test_an_e4m3_pool_is_shared_too(one: Service) -> None:
    a = worker(one, "a", "--kv-cache-dtype", "fp8")
    b = worker(one, "b", "--kv-cache-dtype", "fp8")
    ask(a)
    own, other = ask(a), ask(b)
    assert cached(own) == cached(other) == 96
    assert own.tokens == other.tokens
    assert len(set(other.tokens)) > 4
