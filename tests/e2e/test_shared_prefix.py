"""Two requests with the same new prompt at once, on real workers: it is computed once, whatever the first one does."""

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from holdfast.rundir import RunDir
from holdfast.v1 import generate_pb2
from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.client import AdminClient
from tests.support.worker_process import DEADLINE_S, Gateway, Service, Stream, service

LENGTH = 1024
WHOLE = (LENGTH - 1) // 16 * 16  # of the prompt, in blocks that a hit may have


@pytest.fixture(scope="module")
def two() -> Iterator[Service]:
    """A KV manager and workers a and b that compute a prompt in many small steps."""
    with service() as one:
        one.kvmanager()
        for name in ("a", "b"):
            one.worker(name, "--max-num-batched-tokens", "32")
        for name in ("a", "b"):
            one.until_logged(name, "ready")
        yield one


class Watch:
    """The daemon's own words, asked for every few milliseconds."""

    def __init__(self, service: Service) -> None:
        self.admin = AdminClient(RunDir(service.folder))

    def waits(self) -> int:
        reply = self.admin.request(pb.StatusRequest())
        assert isinstance(reply, pb.Status)
        return reply.pools[0].prefix_waits

    def until_computing(self, waits: int) -> None:
        """Until somebody waits, and whoever computes has committed something."""
        deadline = time.monotonic() + DEADLINE_S
        while self.waits() <= waits or not self.begun():
            assert time.monotonic() < deadline, "nobody waits for another's prompt"

    def begun(self) -> bool:
        reply = self.admin.request(pb.ListRequest(kind=pb.RESOURCE_KIND_SEQUENCE))
        assert isinstance(reply, pb.ListReply)
        return any(one.state == "open" and 0 < one.kv_len < WHOLE for one in reply.sequences)


@pytest.fixture
def watch(two: Service) -> Iterator[Watch]:
    found = Watch(two)
    yield found
    found.admin.close()


def prompt(seed: int) -> list[int]:
    """Tokens that no other test has used."""
    return [2 + (seed + i * (seed + 1)) % 250 for i in range(LENGTH)]


def cached(stream: Stream) -> int:
    assert stream.finish == generate_pb2.FINISH_REASON_LENGTH
    assert stream.last is not None
    return int(stream.last.cached_tokens)


@pytest.mark.parametrize("names", ["aa", "ab"])
def test_of_two_at_once_the_second_computes_what_the_first_does_not(
    two: Service, watch: Watch, names: str
) -> None:
    """The same tokens, with all but the last block of the prompt from the first, or all but the last token."""
    gateways = [two.gateway(name) for name in names]
    before, ids = watch.waits(), prompt(len(set(names)))
    first, second = (gateway.submit(ids) for gateway in gateways)
    for gateway, stream in zip(gateways, (first, second), strict=True):
        gateway.until_ended(stream)
    assert sorted((cached(first) >= WHOLE, cached(second) >= WHOLE)) == [False, True]
    assert min(cached(first), cached(second)) == 0
    assert first.tokens == second.tokens
    assert watch.waits() == before + 1


End = Callable[[Gateway, Stream, int], None]  # the leader's gateway, the leader, its worker's pid


def by_cancel(gateway: Gateway, leader: Stream, _pid: int) -> None:
    gateway.cancel(leader)


def by_kill(_gateway: Gateway, _leader: Stream, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def by_stop(_gateway: Gateway, _leader: Stream, pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


@pytest.mark.parametrize(("end", "seed"), [(by_cancel, 11), (by_kill, 12), (by_stop, 13)])
@pytest.mark.chaos
def test_the_second_goes_on_when_the_first_ends_within_its_prompt(
    two: Service, watch: Watch, end: End, seed: int
) -> None:
    """It takes what was committed, computes the rest itself and gives what it gives alone."""
    process = two.worker(f"c{seed}", "--max-num-batched-tokens", "16")
    two.until_logged(f"c{seed}", "ready")
    leading, following = two.gateway(f"c{seed}"), two.gateway("b")
    before, ids = watch.waits(), prompt(seed)
    leader = leading.submit(ids)
    deadline = time.monotonic() + DEADLINE_S
    while not watch.begun():
        assert time.monotonic() < deadline
    follower = following.submit(ids)
    watch.until_computing(before)
    end(leading, leader, process.pid)
    following.until_ended(follower)
    assert 0 < cached(follower) < WHOLE
    alone = following.submit(ids, stopping={"max_tokens": 8})
    following.until_ended(alone)
    assert alone.tokens == follower.tokens
