"""After a daemon's restart: what the lost answers were, and that no block of the float is had twice or lost."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.reconcile import answer, by_sequence, given_up
from compute.scheduler.floats import Float
from kvmanager.errors import Fenced as FencedError
from kvmanager.errors import ResourceExhausted
from kvmanager.messages import (
    Acked,
    BlockRef,
    Commit,
    CommitEntry,
    Fenced,
    FinishReason,
    Fork,
    Grant,
    Holding,
    Holdings,
    Release,
    SequenceId,
    SequenceRef,
)
from tests.support.scheduling import Pair, expected_output, make_group, make_request

ONE = SequenceId(bytes(15) + b"\1")
ENTRY = CommitEntry(sequence=ONE, epoch=2, base_recorded=7, base_kv=6, token_ids=[9], kv_len=7)
FORK = Fork(
    parent=ONE,
    parent_epoch=1,
    group=bytes(16),
    index=1,
    request=b"",
    max_tokens=8,
    priority=0,
    arrival_ns=0,
    tenant=bytes(32),
)


def lost_answer(entry: CommitEntry, *holdings: Holding) -> Acked:
    held = by_sequence(Holdings(sequences=holdings, blocks=()))
    return answer(Commit(step=1, entries=[entry]), held)


@pytest.mark.parametrize("recorded", [8, 9])
def test_an_entry_was_applied_if_its_tokens_are_recorded(recorded: int) -> None:
    """Entries after it may have been applied too."""
    assert lost_answer(ENTRY, Holding(ONE, 2, recorded, FinishReason.NONE)) == Acked(refusals=[])


@pytest.mark.parametrize(
    "holding", [Holding(ONE, 2, 7, FinishReason.NONE), Holding(ONE, 1, 8, FinishReason.NONE)]
)
def test_an_entry_whose_tokens_are_not_recorded_was_refused(holding: Holding) -> None:
    [refusal] = lost_answer(ENTRY, holding).refusals
    assert (refusal.sequence, refusal.epoch, refusal.code) == (ONE, 2, FencedError.code)


def test_a_record_that_is_gone_was_finished_by_the_entry_or_never_this_workers() -> None:
    assert not lost_answer(replace(ENTRY, finish=FinishReason.EOS)).refusals
    assert len(lost_answer(ENTRY).refusals) == 1
    assert len(lost_answer(replace(ENTRY, fork=FORK)).refusals) == 1
    assert len(lost_answer(replace(ENTRY, fork=FORK, finish=FinishReason.EOS)).refusals) == 1


def test_a_sequence_that_was_given_up_since_is_anothers_and_its_entry_stood() -> None:
    commit, fenced = Commit(step=1, entries=[ENTRY]), Fenced(sequence=ONE, epoch=2)
    assert not answer(commit, {}, given_up([commit, fenced])).refusals
    assert len(answer(commit, {}, given_up([commit])).refusals) == 1


def test_an_entry_whose_block_is_still_in_the_float_was_refused_also_if_its_sequence_was_given_up() -> None:
    """As a fork for which there was no room, handed over before its refusal was heard."""
    block = BlockRef(5, 3)
    commit = Commit(step=1, entries=[replace(ENTRY, fork=FORK, blocks=[block])])
    given = given_up([commit, Fenced(sequence=ONE, epoch=2)])
    assert len(answer(commit, {}, given, {block}).refusals) == 1
    assert not answer(commit, {}, given, {BlockRef(5, 4)}).refusals, (
        "it came back since, and was granted anew"
    )


@pytest.mark.parametrize("message", [Grant(count=1), Release(rows=[SequenceRef(ONE, 1)])])
def test_other_messages_were_applied(message: Grant | Release) -> None:
    assert answer(message, {}) == Acked()


# ------------------------------------------------------------------------------------------------ the float


def test_the_float_takes_what_it_was_never_told_of() -> None:
    """A block of an older generation is another grant of it."""
    one = Float(800, block_size=16)
    one.topped_up([BlockRef(1, 1), BlockRef(2, 1), BlockRef(3, 1)])
    [taken] = one.take(1)
    one.left([BlockRef(2, 1)])
    one.take(1)
    one.reconcile([taken, BlockRef(2, 2), BlockRef(3, 1), BlockRef(4, 1)])
    assert sorted(one.block_ids()) == [2, 3, 4]


@st.composite
def moves(draw: st.DrawFn) -> list[tuple[int, int, bool]]:
    """At each boundary: messages delivered up and down, and whether the daemon dies after that."""
    number = st.integers(0, 3)
    return draw(st.lists(st.tuples(number, number, st.sampled_from([False] * 5 + [True])), max_size=60))


@settings(max_examples=60, deadline=None)
@given(
    moves=moves(),
    depth=st.sampled_from([1, 2]),
    num_blocks=st.sampled_from([12, 24]),
    max_num_seqs=st.sampled_from([1, 4]),
    count=st.integers(1, 4),
    n=st.integers(1, 3),
)
def test_daemons_that_die_at_any_moment_change_no_token_and_lose_no_block(
    moves: list[tuple[int, int, bool]],
    depth: int,
    num_blocks: int,
    max_num_seqs: int,
    count: int,
    n: int,
) -> None:
    """With grants, commits, releases, forks, preemptions and steps on their way, as they come. With few records forks
    are refused for want of one, and begin again."""
    pair = Pair(num_blocks=num_blocks, depth=depth, max_num_seqs=max_num_seqs)
    requests = [
        make_request(i + 1, [i + 2] * (3 * i + 2), max_tokens=9, ignore_eos=True) for i in range(count)
    ]
    requests += make_group(20, n, max_tokens=6, ignore_eos=True) if n > 1 else []
    pair.submit(*requests)
    for up, down, dies in moves:
        pair.turn()
        pair.deliver(up, down)
        if dies:
            pair.restart_daemon()
    pair.run()
    for request in requests:
        assert pair.output(request) == expected_output(request)[0]
        assert len(pair.ends(request)) == 1
    assert all(refusal.code == ResourceExhausted.code for refusal in pair.refusals)
    assert pair.state.check_integrity() == []
    counts = pair.state.counts()
    assert (counts.granted, pair.used_blocks(), len(pair.scheduler._float)) == (0, 0, 0)
    assert not pair.scheduler._float._granted, "every block that was granted has left, once"
