"""Waiting for blocks that another sequence is just computing: who waits for whom, and what ends it."""

from collections.abc import Callable
from typing import Any

import pytest

from kvmanager.following import PATIENCE_NS
from kvmanager.messages import CommitEntry, Opened, Retry, Wait
from kvmanager.state import KvState
from tests.support.kv import (
    Worker,
    clean,  # noqa: F401 - used by every test
    pool,
    sequence_id,
)

PROMPT = list(range(1, 17))  # four blocks of 4


def computing(prompt: list[int] = PROMPT, **terms: Any) -> tuple[KvState, Worker, Worker]:
    """Worker a has opened the prompt as sequence 1 and computed nothing of it; b is there."""
    state, a = pool(32)
    a.grant(8, starving=True)
    assert isinstance(a.start(1, prompt, **terms), Opened)
    return state, a, Worker(state, "b")


def waits(worker: Worker, number: int, ids: list[int], **terms: Any) -> bool:
    """Whether the sequence is told to wait for a prefix; it is opened otherwise."""
    reply = worker.start(number, ids, **terms)
    assert isinstance(reply, Opened) or (isinstance(reply, Wait) and reply.for_prefix)
    return isinstance(reply, Wait)


def chunk(worker: Worker, number: int, kv_len: int) -> None:
    """Computes the prompt up to there, without a token."""
    epoch, recorded, base, blocks = worker.open[number]
    need = -(-kv_len // 4) - blocks
    taken, worker.float = worker.float[:need], worker.float[need:]
    worker.open[number] = [epoch, recorded, kv_len, blocks + need]
    entry = CommitEntry(
        sequence=sequence_id(number),
        epoch=epoch,
        base_recorded=recorded,
        base_kv=base,
        kv_len=kv_len,
        blocks=taken,
    )
    assert not worker.commit(entry).refusals


def woken(said: Any) -> list[int]:
    """The sequences of the Retry messages in what the daemon said."""
    return [int.from_bytes(reply.sequence, "big") for _, reply in said if isinstance(reply, Retry)]


def test_the_second_of_two_equal_prompts_waits_and_then_shares() -> None:
    state, a, b = computing()
    assert waits(b, 2, PROMPT)
    assert [s.id for s in state.sequences()] == [sequence_id(1).hex()], "who waits has no record"
    chunk(a, 1, 8)
    assert woken(a.unasked) == []
    chunk(a, 1, 12)
    assert [session for session, _ in a.unasked] == [b.session]
    assert woken(a.unasked) == [2], "three blocks are all that a hit may have of this prompt"
    a.step(1, 1)
    reply = b.start(2, PROMPT)
    assert isinstance(reply, Opened)
    assert reply.cached_len == 15
    assert state.prefix.waits == 1


def test_the_common_begin_is_enough() -> None:
    """Nobody waits for the leader's private rest, or for less than a block."""
    _, a, b = computing([*PROMPT, *range(50, 70)])
    assert waits(b, 2, [*PROMPT[:9], 99, 99, 99, 99])
    assert waits(b, 3, [*PROMPT[:4], 98])
    assert not waits(b, 4, [*PROMPT[:3], 97, 97])
    assert not waits(b, 5, PROMPT[:4]), "its last token is never a hit"
    chunk(a, 1, 4)
    assert woken(a.unasked) == [3]
    chunk(a, 1, 8)
    assert woken(a.unasked) == [2]


def test_only_the_same_tenants_tokens_are_waited_for() -> None:
    _, _, b = computing()
    assert not waits(b, 2, PROMPT, tenant=b"t" * 32)
    assert not waits(b, 3, [2, *PROMPT[1:]])


def test_who_computes_its_whole_prompt_waits_for_nobody_but_leads() -> None:
    """As prompt_logprobs ask."""
    _, _, b = computing(bypass_prefix=True)
    assert not waits(b, 2, PROMPT, bypass_prefix=True)
    assert waits(b, 3, PROMPT)


def test_nobody_waits_for_a_lower_priority() -> None:
    """It might be kept from computing by the very one that waits."""
    _, _, b = computing(priority=1)
    assert waits(b, 2, PROMPT, priority=1)
    assert not waits(b, 3, PROMPT, priority=2)


def test_what_is_cached_is_not_waited_for_and_what_follows_it_is() -> None:
    _, a, b = computing(PROMPT[:8])
    a.step(1, 1)
    assert not waits(a, 2, PROMPT)
    assert a.open[2][2] == 8
    assert waits(b, 3, PROMPT)
    chunk(a, 2, 12)
    assert woken(a.unasked) == [3]


Ending = Callable[[KvState, Worker], list[int]]


def by_finish(_state: KvState, a: Worker) -> list[int]:
    a.commit(a.entry(1, finish=4))  # type: ignore[arg-type]
    return woken(a.unasked)


def by_preemption(_state: KvState, a: Worker) -> list[int]:
    a.commit(a.entry(1, preempted=True))
    return woken(a.unasked)


def by_loss(state: KvState, a: Worker) -> list[int]:
    state.lose(a.session, 1)
    return woken([(o.session, o.reply) for o in state.outbox()])


def by_silence(state: KvState, _a: Worker) -> list[int]:
    state.expire(PATIENCE_NS - 1)
    assert state.outbox() == []
    state.expire(PATIENCE_NS)
    return woken([(o.session, o.reply) for o in state.outbox()])


@pytest.mark.parametrize("ending", [by_finish, by_preemption, by_loss, by_silence])
def test_the_wait_ends_with_the_leader(ending: Ending) -> None:
    """The first to ask again leads the others; what was sealed so far is shared."""
    state, a, b = computing()
    chunk(a, 1, 4)
    assert waits(b, 2, PROMPT)
    assert waits(b, 3, PROMPT)
    assert ending(state, a) == [2, 3]
    b.now_ns = PATIENCE_NS
    assert not waits(b, 2, PROMPT)
    assert b.open[2][2] == 4
    assert waits(b, 3, PROMPT)


def test_a_preempted_leader_may_follow_who_followed_it() -> None:
    """Who leads has a row, who waits has none: there is no circle."""
    _, a, b = computing()
    assert waits(b, 2, PROMPT)
    a.preempt(1)
    assert not waits(b, 2, PROMPT)
    assert waits(a, 1, PROMPT)
    b.grant(4, starving=True)
    b.step(2, 1)
    assert woken(b.unasked) == [1]
    assert not waits(a, 1, PROMPT)
    assert a.open[1][2] == 15


def test_who_is_asked_back_leads_nobody() -> None:
    state, a = pool(8)
    a.grant(8, starving=True)
    assert isinstance(a.start(1, PROMPT[:9], priority=1), Opened)
    a.step(1, 1)
    b = Worker(state, "b")
    assert isinstance(b.start(2, [9] * 9), Wait)
    a.give_back()
    assert isinstance(a.start(3, [8] * 9), Opened)
    c = Worker(state, "c")
    assert waits(c, 4, [8] * 9)
    b.grant(8, starving=True)
    assert woken(b.unasked) == []
    b.grant(1, starving=True)
    assert woken(b.unasked) == [4]


def test_a_lost_follower_is_forgotten() -> None:
    state, a, b = computing()
    assert waits(b, 2, PROMPT)
    state.lose(b.session, 1)
    a.step(1, 1)
    assert a.unasked == []
    assert state._parts.followers.of == {}
