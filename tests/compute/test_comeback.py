"""Real processes: a KV manager or a worker is killed under load, and a gateway sees nothing of it but a pause."""

import mmap
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from holdfast.rundir import RunDir
from holdfast.v1 import generate_pb2
from kvmanager.errors import Unavailable
from kvmanager.keeper_link import KeeperLink
from tests.support.worker_process import DEADLINE_S, Gateway, Service, Stream, service

LENGTH = generate_pb2.FINISH_REASON_LENGTH
PROMPTS = [[3 + i] * (5 + 9 * i) for i in range(4)]


@pytest.fixture
def own() -> Iterator[Service]:
    """A service for a test that breaks it."""
    with service() as one:
        one.kvmanager("--max-workers", "2")
        yield one


def start(one: Service, tokens: int, prompts: list[list[int]] = PROMPTS) -> tuple[Gateway, list[Stream]]:
    """Streams that are all mid-decode."""
    gateway = one.gateway()
    streams = [gateway.submit(prompt, stopping={"max_tokens": tokens}) for prompt in prompts]
    gateway.until(lambda: all(len(stream.tokens) >= 10 for stream in streams))
    return gateway, streams


def undisturbed(gateway: Gateway, tokens: int) -> list[list[int]]:
    streams = [gateway.submit(prompt, stopping={"max_tokens": tokens}) for prompt in PROMPTS]
    gateway.until_ended(*streams)
    assert [one.finish for one in streams] == [LENGTH] * len(streams)
    return [one.tokens for one in streams]


def kill_daemon(one: Service) -> int:
    """SIGKILL; the next one's process id, once it is there."""
    before = one.daemon_pid()
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + DEADLINE_S
    while (now := one.daemon_pid()) == before:
        assert time.monotonic() < deadline, "no other daemon"
        time.sleep(0.02)
    return now


def went_on(streams: list[Stream], shown: list[int]) -> bool:
    return all(len(one.tokens) > count + 5 for one, count in zip(streams, shown, strict=True))


@pytest.mark.chaos
def test_killed_daemons_cost_no_token_and_no_worker(own: Service) -> None:
    """Twice under load: every stream goes on without a gap or a doubled token, and ends as without it."""
    worker = own.worker()
    own.until_logged("w", "ready")
    gateway, streams = start(own, 1500)
    for _ in range(2):
        shown = [len(one.tokens) for one in streams]
        assert not any(one.ended for one in streams)
        kill_daemon(own)
        gateway.until(
            lambda shown=shown: all(
                len(s.tokens) > n + 5 or s.ended for s, n in zip(streams, shown, strict=True)
            )
        )
    gateway.until_ended(*streams)
    assert [(len(one.tokens), one.finish) for one in streams] == [(1500, LENGTH)] * 4
    assert [line["boot_epoch"] for line in own.log("w") if line["message"] == "the KV manager is back"] == [
        2,
        3,
    ]
    assert [one.tokens for one in streams] == undisturbed(gateway, 1500)
    assert worker.poll() is None
    assert not [line for line in own.log("w") if line["level"] == "error"]
    (seen,) = own.ask("get", "workers")["items"]
    assert seen["state"] == "ready"
    own.until_unused()
    own.ask("fsck")


def test_a_daemon_that_dies_while_nothing_runs_is_not_missed(own: Service) -> None:
    """What was cached is found by the next one."""
    own.worker()
    own.until_logged("w", "ready")
    gateway = own.gateway()
    before = undisturbed(gateway, 8)
    kill_daemon(own)
    own.until_logged("w", "the KV manager is back")
    again = gateway.submit(PROMPTS[3], stopping={"max_tokens": 8})
    gateway.until_ended(again)
    assert again.tokens == before[3]
    assert again.last is not None
    assert again.last.cached_tokens == 31  # a block, and fifteen slots of the next by a copy


@pytest.mark.chaos
def test_what_is_submitted_while_the_daemon_is_away_is_served(own: Service) -> None:
    """A row that was asked for and not answered is asked for again."""
    own.worker()
    own.until_logged("w", "ready")
    gateway, streams = start(own, 300)
    os.kill(own.daemon_pid(), signal.SIGKILL)
    streams += [gateway.submit(prompt, stopping={"max_tokens": 20}) for prompt in PROMPTS]
    gateway.until_ended(*streams)
    assert [len(one.tokens) for one in streams] == [300] * 4 + [20] * 4
    for long, short in zip(streams[:4], streams[4:], strict=True):
        assert short.tokens == long.tokens[:20]


def ended_with(one: Service, break_it: Callable[[Service], None], *arguments: str) -> str:
    """The worker ends by itself with code 1 and says why; every request hears UNAVAILABLE."""
    worker = one.worker("w", *arguments)
    one.until_logged("w", "ready")
    gateway, streams = start(one, 1900)
    break_it(one)
    gateway.until_ended(*streams)
    assert [stream.error for stream in streams] == [Unavailable.code] * 4
    assert worker.wait(DEADLINE_S) == 1
    line = one.until_logged("w", "worker ends")
    assert line["reason"] == "the KV manager is gone"
    return str(line["error"])


def kill_keeper(one: Service) -> None:
    """The memory of the daemons goes with it; the daemon ends by itself."""
    one.processes[0].kill()


@pytest.mark.chaos
def test_a_worker_waits_for_another_daemon_only_so_long(own: Service) -> None:
    assert "does not answer" in ended_with(own, kill_keeper, "--reattach-timeout", "1")


def spoil(one: Service) -> None:
    """The next daemon cannot trust the metadata, and so knows no session."""
    keeper = KeeperLink(RunDir(one.folder).keeper)
    os.kill(one.daemon_pid(), signal.SIGSTOP)
    (pool,) = [line["pool"] for line in one.log("kvmanager") if line["message"] == "worker attached"]
    fd = keeper.get(f"meta.{pool}")
    with mmap.mmap(fd, 0) as memory:
        memory[4096:8192] = os.urandom(4096)
    os.close(fd)
    keeper.close()
    kill_daemon(one)


def test_a_worker_whose_session_is_unknown_to_the_new_daemon_ends(own: Service) -> None:
    assert "resume_session" in ended_with(own, spoil)


@pytest.mark.chaos
def test_a_killed_workers_streams_go_on_at_another_with_the_same_tokens(own: Service) -> None:
    """Its KV is the pool's: the other copies the begun tails and computes no committed slot again."""
    killed = own.worker()
    own.worker("x")
    for name in ("w", "x"):
        own.until_logged(name, "ready")
    _, streams = start(own, 200)
    killed.kill()
    killed.wait(DEADLINE_S)
    other = own.gateway("x")
    resumed = [
        other.submit(
            prompt,
            sequence=next(key for key, value in own.gateways[0].streams.items() if value is stream),
            stopping={"max_tokens": 200},
            adopt=True,
            output_ids=struct.pack(f"<{len(stream.tokens)}I", *stream.tokens),
        )
        for prompt, stream in zip(PROMPTS, streams, strict=True)
    ]
    other.until_ended(*resumed)
    reference = undisturbed(other, 200)
    for prompt, stream, rest, whole in zip(PROMPTS, streams, resumed, reference, strict=True):
        assert rest.last is not None
        assert (rest.finish, rest.last.epoch) == (LENGTH, 2)
        first = rest.last.first_position + 1 - len(rest.tokens) - len(prompt)
        assert len(stream.tokens) - 1 <= first, (
            "it says the last recorded token, which may be ahead of what was shown"
        )
        assert [*whole[:first], *rest.tokens] == whole
    own.until_unused()
    (seen,) = own.ask("get", "workers")["items"]
    assert seen["id"] == "x"
    own.ask("fsck")
