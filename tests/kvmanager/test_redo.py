"""The redo area: whatever store was the last one, the next daemon finds the state before or after the operation."""

import mmap
import os
import random
import subprocess
import sys
from collections.abc import Callable

import pytest

from kvmanager.integrity import check_buffer
from kvmanager.layout import HEADER_BYTES, MetaLayout
from kvmanager.messages import Acked, Fenced, FinishReason
from kvmanager.records import REDO_CHECKSUM_AT, REDO_LENGTH_AT, SEQLOCK_AT
from kvmanager.state import KvState
from kvmanager.store import Store
from tests.support import kill_at_store
from tests.support.kv import Worker, buffer_for, pool_spec, sequence_id
from tests.support.storm import SPEC as STORM_SPEC
from tests.support.storm import Storm

SPEC = pool_spec(10, 2, max_model_len=16, max_num_seqs=2)
LAYOUT = MetaLayout(SPEC)


def operations(state: KvState) -> list[Callable[[], object]]:
    """One of each kind, on a pool that gets full; each call is one operation."""
    a, b = Worker(state, "a"), Worker(state, "b")
    return [
        lambda: a.grant(1),
        lambda: a.grant(4, starving=True),
        lambda: a.start(1, [1, 2, 3, 4, 5], 6),
        lambda: a.step(1, 6),
        lambda: a.step(1, 7),
        lambda: a.start(2, [1, 2, 3, 4, 9], 4),
        lambda: b.start(3, [1, 2, 3, 4, 9], 4),
        lambda: b.grant(4, starving=True),
        lambda: a.step(2, 8, 8),
        lambda: b.step(3, 8),
        lambda: b.step(3, 8, 8, 8),
        lambda: a.preempt(1, release=False),
        lambda: a.grant(1, starving=True),
        lambda: accepted(a.commit(a.fork(4, 1, 5, [7, 7], 4))),
        lambda: a.release(1),
        lambda: a.finish(4, release=False),
        lambda: a.release(4),
        lambda: a.start(1, [1, 2, 3, 4, 5, 6, 7], 4),
        lambda: a.finish(2, release=False),
        lambda: a.release(2),
        lambda: state.evict(1),
        lambda: b.grant(9, starving=True),
        b.give_back,
        lambda: a.commit(a.entry(1, finish=FinishReason.CANCELLED), b.entry(3)),
        lambda: state.lose(a.session, 5),
        lambda: state.dead(a.session),
        lambda: b.finish(3, release=False),
        lambda: b.release(3),
        state.flush,
        lambda: state.expire(100, ttl_ns=1),
    ]


def adoptions(state: KvState) -> list[Callable[[], object]]:
    """A sequence that outlives two workers, one that three die of, and one that nobody asks for."""
    a, b, c = (Worker(state, name) for name in "abc")
    return [
        lambda: a.grant(2, starving=True),
        lambda: a.start(1, [1, 2, 3], 6),
        lambda: a.step(1, 4),
        lambda: a.start(2, [5], 4),
        lambda: a.start(3, [1, 2, 9], 4),
        lambda: a.preempt(3, release=False),
        lambda: state.lose(a.session, 5),
        lambda: b.start(1, [1, 2, 3], 6),
        lambda: b.start(2, [5], 4),
        lambda: state.lose(b.session, 6),
        lambda: c.start(1, [1, 2, 3], 6),
        lambda: state.dead(a.session),
        lambda: c.step(1, 7),
        lambda: c.start(2, [5], 4),
        lambda: state.dead(b.session),
        lambda: c.send(Fenced(sequence=sequence_id(1), epoch=3)),
        lambda: c.start(1, [1, 2, 3, 4, 7], 6),
        lambda: state.lose(c.session, 7),
        lambda: state.expire(100, orphan_ttl_ns=1),
        lambda: state.dead(c.session),
        lambda: state.expire(200, ttl_ns=1),
    ]


def accepted(reply: Acked) -> None:
    assert not reply.refusals


def truth(image: bytearray) -> bytes:
    """Everything but the redo area and the words that guard it."""
    copy = bytearray(image)
    for at in (SEQLOCK_AT, REDO_LENGTH_AT, REDO_CHECKSUM_AT):
        copy[at : at + 8] = bytes(8)
    return bytes(copy[: LAYOUT.redo_at])


@pytest.mark.parametrize("life", [operations, adoptions])
def test_every_prefix_of_the_store_log_recovers_to_before_or_after(
    life: Callable[[KvState], list[Callable[[], object]]],
) -> None:
    log: list[tuple[int, bytes]] = []
    buffer = buffer_for(SPEC)
    state = KvState.create(buffer, SPEC, 0, hook=lambda at, data: log.append((at, data)))
    seen = set()
    for operation in life(state):
        before = bytearray(buffer)
        log.clear()
        operation()
        assert log, f"{operation} stored nothing: {state.counts()}"
        image, after = bytearray(before), truth(buffer)
        for at, data in log:
            seen.add(recovered(bytearray(image), truth(before), after))
            image[at : at + len(data)] = data
        assert recovered(bytearray(image), truth(before), after) == "after"
    assert seen == {"before", "after"}


def recovered(image: bytearray, before: bytes, after: bytes) -> str:
    """Which of both the next daemon finds. It is clean, and so is what the daemon makes of it."""
    copy = bytearray(image)
    Store(copy, LAYOUT).replay()
    assert check_buffer(copy) == []
    assert KvState.recover(image, 0).check_integrity() == []
    found = truth(copy)
    assert found in (before, after), "half an operation"
    return "after" if found == after else "before"


def test_a_torn_redo_log_is_not_replayed() -> None:
    """Half of the log's bytes, without its publish word: nothing has happened."""
    log: list[tuple[int, bytes]] = []
    buffer = buffer_for(SPEC)
    state = KvState.create(buffer, SPEC, 0, hook=lambda at, data: log.append((at, data)))
    worker = Worker(state, "a")
    before = bytearray(buffer)
    log.clear()
    worker.grant(1)
    at, data = log[0]
    assert at == LAYOUT.redo_at
    torn = bytearray(before)
    torn[at : at + len(data) // 2] = data[: len(data) // 2]
    assert recovered(torn, truth(before), truth(buffer)) == "before"


def test_a_real_sigkill_at_any_store_leaves_metadata_that_the_next_daemon_accepts() -> None:
    """60 processes on memfds, each killed at another store; the parent recovers what they leave."""
    made = 0

    def count(_at: int, _data: bytes) -> None:
        nonlocal made
        made += 1

    Storm(kill_at_store.SEED, hook=count).run(kill_at_store.CALLS)
    stores = sorted(random.Random(1).sample(range(8, made), 60))
    fds = [os.memfd_create("metadata") for _ in stores]
    for fd in fds:
        os.ftruncate(fd, MetaLayout(STORM_SPEC).total_bytes)
    words = [f"{fd}:{store}" for fd, store in zip(fds, stores, strict=True)]
    child = subprocess.run(
        [sys.executable, "-m", "tests.support.kill_at_store", *words],
        pass_fds=fds,
        capture_output=True,
        text=True,
        check=True,
        timeout=150,
    )
    assert child.stdout.splitlines() == [f"{word} killed" for word in words]
    replayed = sum(accepts(fd) for fd in fds)
    assert 0 < replayed < len(fds), (
        "both kinds of kills were sampled: within an operation's apply, and before it"
    )


def accepts(fd: int) -> bool:
    """The metadata recovers, is clean, and nothing leaked. Whether an operation was replayed."""
    with mmap.mmap(fd, 0) as buffer:
        os.close(fd)
        pending = bool(int.from_bytes(buffer[REDO_LENGTH_AT : REDO_LENGTH_AT + 8], "little"))
        assert len(buffer) > HEADER_BYTES
        state = KvState.recover(buffer, 0)
        assert state.check_integrity() == []
        for session in state.sessions():
            state.dead(session.id)
        assert state.check_integrity() == []
        state.expire(2**62, orphan_ttl_ns=0)
        state.flush()
        assert state.counts().free == STORM_SPEC.num_blocks
        assert state.check_integrity() == []
        state.close()
    return pending
