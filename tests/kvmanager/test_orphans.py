"""A lost worker's sequences: kept with their KV, adopted by the next worker that is asked, or ended.

Every state in between is clean by its records, and a daemon that starts anew there finds the same.
"""

import pytest

from kvmanager import errors
from kvmanager.messages import (
    Acked,
    CommitEntry,
    Fenced,
    FinishReason,
    Grant,
    Opened,
    OpenKind,
    Refused,
    Release,
    Retry,
    SequenceRef,
    Wait,
)
from kvmanager.state import KvState
from tests.support.kv import (
    Worker,
    clean,  # noqa: F401 - used by every test
    pool,
    sequence_id,
)

PROMPT = [1, 2, 3, 4, 5]  # of 4 slots a block
ONE = sequence_id(1)


def sound(state: KvState) -> None:
    """The records contradict neither themselves nor the daemon's memory, nor what the next daemon makes of them."""
    assert state.check_integrity() == []
    assert KvState.recover(bytearray(state._parts.store.raw), 99).check_integrity() == []


def decoding(kv_len: int = 6, blocks: int = 24) -> tuple[KvState, Worker, list[int]]:
    """Worker a runs sequence 1 up to `kv_len` valid slots; its tokens come last. Two blocks are its float."""
    state, a = pool(blocks)
    a.grant(4, starving=True)
    a.start(1, PROMPT, 12)
    a.step(1, *range(10, 10 + kv_len - 4))
    return state, a, [*PROMPT, *range(10, 10 + kv_len - 4)]


def opened(worker: Worker, number: int = 1, ids: list[int] = PROMPT) -> Opened:
    reply = worker.start(number, ids, 12)
    assert isinstance(reply, Opened), reply
    sound(worker.state)
    return reply


def row(state: KvState, number: int = 1) -> list[int]:
    return list(state.describe_sequence(sequence_id(number).hex()).blocks)


def lose(worker: Worker) -> None:
    worker.state.lose(worker.session, 5)
    sound(worker.state)


def bury(worker: Worker) -> int:
    freed = worker.state.dead(worker.session)
    sound(worker.state)
    return freed


def block(state: KvState, number: int) -> tuple[str, int]:
    info = state.describe_block(number)
    return info.state, info.refcount


# ------------------------------------------------------------------------------------------------ the tail


@pytest.mark.parametrize("kv_len", [5, 6, 7, 8])
def test_another_worker_goes_on_at_kv_len_in_a_tail_of_its_own(kv_len: int) -> None:
    """The sealed blocks are the row's as before; the committed slots of a begun tail are copied, if there are any."""
    state, a, tokens = decoding(kv_len)
    old = [state._parts.blocks.ref(block) for block in row(state)]
    lose(a)
    b = Worker(state, "b")
    reply = opened(b)
    assert (reply.kind, reply.epoch, reply.recorded_len, reply.kv_len) == (
        OpenKind.ADOPTED,
        2,
        kv_len + 1,
        kv_len,
    )
    assert (list(reply.token_ids), reply.alone, state.adoptions) == (tokens, False, 1)
    sealed = kv_len // 4
    assert list(reply.blocks[:sealed]) == old[:sealed]
    if kv_len % 4:
        [copy] = reply.copies
        assert (copy.source, copy.destination, copy.slots) == (old[-1], reply.blocks[-1], kv_len % 4)
        assert copy.destination.id not in {ref.id for ref in old}
    else:
        assert (reply.copies, len(reply.blocks)) == ((), sealed)
    b.grant(1)
    b.step(1, 50)
    sound(state)
    assert state.read_record(ONE).token_ids == [*tokens, 50]
    bury(a)
    b.finish(1)
    b.give_back()
    counts = state.counts()
    assert counts.free + counts.cached == state.spec.num_blocks


def test_after_the_proof_of_death_the_tail_is_taken_over_and_nothing_is_copied() -> None:
    state, a, _ = decoding()
    before = row(state)
    lose(a)
    assert bury(a) == 2, "its float"
    b = Worker(state, "b")
    reply = opened(b)
    assert ([ref.id for ref in reply.blocks], reply.copies) == (before, ())
    assert state.describe_block(before[-1]).holder == "b"
    b.step(1, 50)
    b.finish(1)


def test_an_order_that_no_commit_covered_is_given_again_to_a_new_tail() -> None:
    """The second adopter died before its commit: the third copies from where the second was to copy from."""
    state, a, _ = decoding()
    lose(a)
    b, c = Worker(state, "b"), Worker(state, "c")
    [first] = opened(b).copies
    lose(b)
    reply = opened(c)
    [second] = reply.copies
    assert (second.source, second.slots, reply.epoch) == (first.source, first.slots, 3)
    assert second.destination not in (first.source, first.destination)
    assert block(state, first.destination.id) == ("quarantined", 0)
    assert bury(b) == 1
    assert bury(a) == 2
    assert block(state, first.source.id) == ("quarantined", 1), "it is still to be read"
    c.step(1, 50)
    sound(state)
    assert block(state, first.source.id) == ("free", 0)


def test_an_order_goes_on_in_the_same_tail_once_its_first_executor_is_proven_gone() -> None:
    state, a, _ = decoding()
    lose(a)
    b, c = Worker(state, "b"), Worker(state, "c")
    [first] = opened(b).copies
    lose(b)
    assert bury(b) == 0
    reply = opened(c)
    assert (list(reply.copies), reply.blocks[-1]) == ([first], first.destination)
    c.step(1, 50)
    sound(state)
    assert block(state, first.source.id) == ("quarantined", 0), "its writer is not proven gone"
    assert bury(a) == 3


def test_what_was_taken_beyond_the_tail_and_never_filled_goes_into_quarantine() -> None:
    """A chunk may take blocks for the next one."""
    state, a = pool(24)
    a.grant(4, starving=True)
    a.start(1, [*range(1, 14)], 4)
    taken = [a.float.pop(0) for _ in range(4)]
    chunk = CommitEntry(sequence=ONE, epoch=1, base_recorded=13, base_kv=0, kv_len=6, blocks=taken)
    assert not a.commit(chunk).refusals
    lose(a)
    b = Worker(state, "b")
    reply = opened(b, 1, [*range(1, 14)])
    assert (reply.kv_len, reply.recorded_len, len(reply.blocks)) == (6, 13, 2)
    assert [copy.slots for copy in reply.copies] == [2]
    assert state.counts().quarantined == 3, "the old tail, and two that nobody filled"
    b.grant(2)
    b.step(1, 50)
    assert bury(a) == 3


def test_a_prefill_that_was_cut_off_goes_on_at_its_last_committed_chunk() -> None:
    state, a = pool(24)
    a.grant(4, starving=True)
    a.start(1, [*range(1, 14)], 4)
    chunk = CommitEntry(sequence=ONE, epoch=1, base_recorded=13, base_kv=0, kv_len=8, blocks=a.float[:2])
    assert not a.commit(chunk).refusals
    lose(a)
    b = Worker(state, "b")
    reply = opened(b, 1, [*range(1, 14)])
    assert (reply.kind, reply.kv_len, reply.copies, len(reply.token_ids)) == (OpenKind.ADOPTED, 8, (), 13)
    b.grant(2)
    b.step(1, 50)
    assert state.read_record(ONE).token_ids == [*range(1, 14), 50]


# ------------------------------------------------------------------------------------------------ without a row


@pytest.mark.parametrize("release", [True, False])
def test_a_preempted_sequence_of_a_dead_worker_is_resumed_from_the_cache(release: bool) -> None:
    state, a, tokens = decoding()
    a.preempt(1, release)
    lose(a)
    assert state.orphans == 1
    b = Worker(state, "b")
    reply = opened(b)
    assert (reply.kind, reply.epoch, reply.kv_len, reply.copies) == (OpenKind.ADOPTED, 2, 4, ())
    assert list(reply.token_ids) == tokens
    bury(a)
    b.grant(1)
    b.step(1, 50)


def test_a_sequence_that_is_alone_in_the_smallest_pool_for_it_is_resumed() -> None:
    """It keeps no block back for itself."""
    state, a = pool(6)
    a.grant(5, starving=True)
    a.start(1, PROMPT, 15)
    a.step(1, *[7] * 12)
    a.preempt(1)
    lose(a)
    bury(a)
    reply = opened(Worker(state, "b"))
    assert (reply.kind, reply.kv_len) == (OpenKind.ADOPTED, 16)


def test_other_tokens_than_the_recorded_ones_adopt_nothing() -> None:
    """Fewer than the prompt neither; more than recorded count for nothing."""
    state, a, tokens = decoding()
    lose(a)
    b = Worker(state, "b")
    for ids in ([1, 2, 3, 4, 6], PROMPT[:4], [*PROMPT, 99]):
        refused = b.start(1, ids, 12)
        assert isinstance(refused, Refused)
        assert refused.code == errors.Invalid.code
    assert list(opened(b, 1, [*tokens, 98, 99]).token_ids) == tokens


# ------------------------------------------------------------------------------------------------ room


def test_an_adoption_waits_for_a_block_and_gets_the_old_tail_when_the_proof_comes() -> None:
    """A fork has no block kept back for it: of two begun tails only one can be copied."""
    state, a = pool(7)
    b = Worker(state, "b")
    b.grant(3, starving=True)
    a.start(1, PROMPT, 7)
    a.grant(3, starving=True)
    a.step(1, 6)
    assert not a.commit(a.fork(2, 1, 5, [8, 9])).refusals
    lose(a)
    opened(b)
    assert state.counts().free == 0
    assert b.start(2, [*PROMPT, 8], 7) == Wait(sequence=sequence_id(2), needed_blocks=1, available_blocks=0)
    assert bury(a) == 0
    reply = opened(b, 2)
    assert (reply.kind, reply.copies, reply.kv_len) == (OpenKind.ADOPTED, (), 6)


def test_a_pool_full_of_decodes_has_a_block_for_whoever_adopts() -> None:
    """Floats stop before the blocks that are kept back, however they starve."""
    state, a = pool(9)
    b = Worker(state, "b")
    for worker, number in ((a, 1), (b, 2)):
        worker.start(number, [number] * 9, 11)
        worker.grant(3, starving=True)
        worker.step(number, 1)
    a.grant(9, starving=True)
    assert b.grant(1, starving=True) == []
    lose(a)
    assert b.grant(1, starving=True) == []
    reply = opened(b, 1, [1] * 9)
    assert [copy.slots for copy in reply.copies] == [1]


# ------------------------------------------------------------------------------------------------ the old owner


def test_nothing_that_the_lost_owner_says_counts() -> None:
    state, a, _ = decoding()
    late = a.entry(1, [7])
    lose(a)
    b = Worker(state, "b")
    opened(b)
    for message in (Grant(count=1), Release(rows=[SequenceRef(ONE, 1)]), Fenced(sequence=ONE, epoch=1)):
        with pytest.raises(errors.Fenced):
            state.apply(a.session, a.number + 1, message, 6)
    with pytest.raises(errors.Fenced):
        a.commit(late)
    assert state.read_record(ONE).recorded_len == 7
    b.step(1, 50)
    assert state.read_record(ONE).token_ids[-1] == 50


def test_a_living_owner_that_gave_the_sequence_up_is_refused_by_epoch_and_by_owner() -> None:
    state, a, _ = decoding()
    late, b = a.entry(1, [7]), Worker(state, "b")
    assert a.send(Fenced(sequence=ONE, epoch=1)) == Acked()
    sound(state)
    opened(b)
    assert [r.code for r in a.commit(late).refusals] == [errors.Fenced.code]
    released = a.send(Release(rows=[SequenceRef(ONE, 1)]))
    assert isinstance(released, Acked)
    assert [r.code for r in released.refusals] == [errors.NotFound.code]
    assert b.send(Fenced(sequence=ONE, epoch=2)) == Acked()
    assert opened(a).epoch == 3
    refusals = a.commit(late).refusals
    assert [r.message for r in refusals] == ["epoch 1, the sequence is in epoch 3"]


def test_a_fence_of_a_former_epoch_gives_up_nothing() -> None:
    state, a, _ = decoding()
    a.preempt(1, release=False)
    opened(a, 1, [*PROMPT, 10, 11])
    assert a.send(Fenced(sequence=ONE, epoch=1)) == Acked(refusals=[]), "the old row is let go"
    sound(state)
    assert (state.orphans, state.counts().quarantined) == (0, 0)
    a.step(1, 50)


def test_rows_that_ended_and_were_not_released_stay_in_quarantine_until_the_proof() -> None:
    state, a, tokens = decoding()
    a.finish(1, release=False)
    assert state.lose(a.session, 5) == []
    sound(state)
    assert (state.orphans, state.counts().quarantined) == (0, 3)
    record = state.read_record(ONE)
    assert (record.finish, record.token_ids) == (FinishReason.LENGTH, tokens)
    assert bury(a) == 3
    refused = Worker(state, "b").start(1, PROMPT, 12)
    assert isinstance(refused, Refused)
    assert refused.details == {"finish": "LENGTH"}


# ------------------------------------------------------------------------------------------------ forks


def test_an_adopted_sequence_forks_as_any_other() -> None:
    state, a, tokens = decoding(7)
    lose(a)
    b = Worker(state, "b")
    opened(b)
    b.grant(2)
    b.step(1, 50)
    assert not b.commit(b.fork(2, 1, 7, [8, 9])).refusals
    sound(state)
    assert state.read_record(sequence_id(2)).token_ids == [*tokens[:7], 8, 9]
    bury(a)
    assert state.counts().shared == 1
    lose(b)
    c = Worker(state, "c")
    opened(c, 2)
    assert opened(c).kv_len == 8


def test_forks_of_a_dead_worker_are_adopted_one_by_one_and_share_as_before() -> None:
    state, a, _ = decoding(7)
    assert not a.commit(a.fork(2, 1, 6, [8, 9])).refusals
    lose(a)
    b, c = Worker(state, "b"), Worker(state, "c")
    first, second = opened(b), opened(c, 2)
    assert (first.blocks[0], second.kv_len) == (second.blocks[0], 7)
    assert {copy.source.id for reply in (first, second) for copy in reply.copies} == {1, 2}
    b.step(1, 50)
    c.step(2, 51)
    bury(a)
    assert state.counts().shared == 1


# ------------------------------------------------------------------------------------------------ poison


def reopened(state: KvState, name: str, number: int = 1) -> Worker:
    worker = Worker(state, name)
    opened(worker, number)
    return worker


def test_the_third_death_in_a_row_without_a_commit_ends_the_sequence() -> None:
    state, a = pool(24)
    opened(a)
    lose(a)
    for name in "bc":
        worker = Worker(state, name)
        assert opened(worker).alone
        lose(worker)
    assert (state.orphans, state.read_record(ONE).finish) == (0, FinishReason.ERROR)
    refused = Worker(state, "d").start(1, PROMPT, 12)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.details) == (errors.Conflict.code, {"finish": "ERROR"})


def test_a_commit_clears_the_count() -> None:
    """Deaths before it were another's fault, and those after it begin from none."""
    state, a = pool(24)
    opened(a)
    lose(a)
    for name in "bcd":
        worker = reopened(state, name)
        worker.grant(2, starving=True)
        worker.step(1, *[7][: name == "b"])
        lose(worker)
    assert state.orphans == 1
    assert state.read_record(ONE).finish == FinishReason.NONE


def test_a_death_before_any_step_of_an_adopted_sequence_makes_it_a_suspect() -> None:
    state, a, _ = decoding()
    lose(a)
    b = Worker(state, "b")
    assert not opened(b).alone, "its first worker had committed steps of it"
    lose(b)
    assert opened(Worker(state, "c")).alone


def test_a_worker_has_one_suspect_at_a_time() -> None:
    state, a = pool(24)
    own = {number: [number] * len(PROMPT) for number in (1, 2, 3)}
    for number, ids in own.items():
        opened(a, number, ids)
    lose(a)
    b, c = Worker(state, "b"), Worker(state, "c")
    assert opened(b, 1, own[1]).alone
    wait = Wait(sequence=sequence_id(2), needed_blocks=0, available_blocks=0, for_prefix=True)
    assert b.start(2, own[2], 12) == wait
    assert opened(c, 3, own[3]).alone, "another worker has its own"
    b.grant(2, starving=True)
    b.step(1, 7)
    assert opened(b, 2, own[2]).alone


def test_a_suspect_that_is_preempted_before_its_first_step_stays_one() -> None:
    state, a = pool(24)
    opened(a)
    lose(a)
    b = reopened(state, "b")
    b.preempt(1)
    reply = b.start(1, PROMPT, 12)
    assert isinstance(reply, Opened)
    assert (reply.kind, reply.alone) == (OpenKind.RESUMED, True)


def test_a_preempted_suspect_waits_behind_the_one_that_was_opened_meanwhile() -> None:
    """Else one death would count against both."""
    state, a = pool(24)
    for number in (1, 2):
        opened(a, number, [number] * 5)
    lose(a)
    b = Worker(state, "b")
    opened(b, 1, [1] * 5)
    b.preempt(1)
    opened(b, 2, [2] * 5)
    assert b.start(1, [1] * 5, 12) == Wait(sequence=ONE, needed_blocks=0, available_blocks=0, for_prefix=True)
    b.grant(2, starving=True)
    b.step(2, 7)
    assert b.unasked == [(b.session, Retry(sequence=ONE))]
    assert opened(b, 1, [1] * 5).alone


def test_a_new_daemon_knows_a_suspect_and_clears_it_by_its_step() -> None:
    state, a = pool(24)
    opened(a)
    lose(a)
    b = reopened(state, "b")
    again = KvState.recover(bytearray(state._parts.store.raw), 9)
    b.state = again
    assert b.start(2, [9], 12) is not None
    assert opened(b).alone, "asked again, after the answer was lost"
    b.grant(2, starving=True)
    b.step(1, 7)
    lose(b)
    assert not opened(Worker(again, "c")).alone
    assert again.check_integrity() == []


# ------------------------------------------------------------------------------------------------ the end


def test_nobody_asks_for_an_orphan_and_it_ends_cancelled() -> None:
    """What its worker may still write stays in quarantine until the proof, all the same."""
    state, a, tokens = decoding()
    state.lose(a.session, 5_000)
    state.expire(5_500, orphan_ttl_ns=1_000)
    assert state.orphans == 1
    state.expire(6_001, orphan_ttl_ns=1_000)
    sound(state)
    record = state.read_record(ONE)
    assert (state.orphans, record.finish, record.token_ids) == (0, FinishReason.CANCELLED, tokens)
    assert (state.counts().quarantined, state.counts().cached) == (3, 1)
    assert bury(a) == 3
    refused = Worker(state, "b").start(1, PROMPT, 12)
    assert isinstance(refused, Refused)
    assert refused.details == {"finish": "CANCELLED"}
    assert state.expire(10**12, ttl_ns=1) == 1


def test_an_orphan_with_an_order_or_without_a_row_ends_too() -> None:
    state, a, _ = decoding()
    a.start(2, [*PROMPT, 6], 12)
    a.preempt(2)
    lose(a)
    b = Worker(state, "b")
    [copy] = opened(b).copies
    lose(b)
    bury(a)
    assert state.orphans == 2
    state.expire(10**12, orphan_ttl_ns=1)
    sound(state)
    assert (state.orphans, state.live_sequences) == (0, 0)
    assert block(state, copy.source.id) == ("free", 0)
    assert bury(b) == 1


def test_an_adopted_sequence_is_no_orphan_and_its_time_does_not_run() -> None:
    state, a, _ = decoding()
    lose(a)
    b = Worker(state, "b")
    opened(b)
    state.expire(10**12, orphan_ttl_ns=1)
    b.step(1, 50)
    lose(b)
    assert state.orphans == 1
    state.expire(10**12 + 1, orphan_ttl_ns=10**6)
    assert state.orphans == 1, "it begins anew with each loss"
