"""Copy orders: in the record until a commit covers them or their row ends; what they read keeps what it holds."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from kvmanager import errors
from kvmanager.integrity import check_buffer
from kvmanager.layout import MetaLayout
from kvmanager.messages import CopyOrder, Fenced, Opened, OpenKind
from kvmanager.recover import load
from kvmanager.state import KvState
from tests.support.kv import (
    Worker,
    buffer_for,
    clean,  # noqa: F401 - used by every test
    open_message,
    pool,
    pool_spec,
    sequence_id,
)

PROMPT = [1, 2, 3, 4, 5, 6, 7]  # of 4 slots a block


def order(state: KvState, worker: Worker, number: int, source: int, slots: int = 3) -> CopyOrder:
    """Has the sequence's open row go on in a copy of `source`, as an operation of its own; what Opened says of it."""
    parts = state._parts
    sequence, session = parts.sequences.by_id[sequence_id(number)], parts.sessions.by_id[worker.session]
    parts.order_copy(sequence, session, source, slots)
    sequence.kv_len = sequence.cached_len = 4 * (len(parts.rows.blocks[sequence.row]) - 1) + slots
    parts.sequences.put(sequence)
    parts.store.commit()
    reply = worker.start(number, sequence.tokens)
    assert isinstance(reply, Opened)
    assert reply.kind is OpenKind.YOURS
    [copy] = reply.copies
    return copy


def cached(blocks: int = 12) -> tuple[KvState, Worker, int]:
    """A pool whose worker has a float, and a cached block."""
    state, worker = pool(blocks)
    worker.grant(4, starving=True)
    worker.start(1, [9, 9, 9, 9, 9])
    worker.step(1, 1)
    worker.finish(1)
    [block] = [b.id for b in state.blocks("sealed")]
    return state, worker, block


def ordered() -> tuple[KvState, Worker, CopyOrder]:
    """Sequence 2 is open, and begins with 3 slots of a cached block."""
    state, worker, block = cached()
    worker.start(2, PROMPT)
    return state, worker, order(state, worker, 2, block)


def refs(state: KvState, block: int) -> tuple[str, int]:
    info = state.describe_block(block)
    return info.state, info.refcount


def test_opening_again_repeats_the_order_until_a_commit_covers_it() -> None:
    state, worker, copy = ordered()
    assert refs(state, copy.source.id) == ("sealed", 1)
    assert refs(state, copy.destination.id) == ("tail", 1)
    assert state.counts().cached == 0
    again = worker.send(open_message(2, PROMPT))
    assert isinstance(again, Opened)
    assert (again.copies, again.blocks, again.kv_len) == ((copy,), [copy.destination], 3)
    worker.step(2, 8)
    assert refs(state, copy.source.id) == ("sealed", 0)
    assert state.counts().cached == 1
    again = worker.send(open_message(2, PROMPT))
    assert isinstance(again, Opened)
    assert not again.copies


def test_nothing_is_computed_on_a_tail_that_is_not_copied() -> None:
    state, worker, copy = ordered()
    entry = worker.entry(2, [8])
    [refusal] = worker.commit(replace(entry, copies_done=0)).refusals
    assert "copy order" in refusal.message
    [refusal] = worker.commit(replace(entry, copies_done=2)).refusals
    assert refusal.code == errors.Invalid.code
    assert not worker.commit(entry).refusals
    [refusal] = worker.commit(replace(worker.entry(2, [9]), copies_done=1)).refusals
    assert "copies_done 1" in refusal.message
    assert refs(state, copy.source.id) == ("sealed", 0)


@pytest.mark.parametrize("end", [Worker.finish, Worker.preempt])
def test_a_row_that_ends_keeps_what_its_copy_reads_until_its_release(
    end: Callable[[Worker, int, bool], None],
) -> None:
    """A launched step may still read the source: it is not evicted before (rule 7)."""
    state, worker, copy = ordered()
    end(worker, 2, False)
    assert refs(state, copy.source.id) == ("sealed", 1)
    assert state.flush() == 0
    worker.release(2)
    assert refs(state, copy.source.id) == ("sealed", 0)
    assert refs(state, copy.destination.id) == ("free", 0)


def test_a_sequence_resumed_before_the_release_runs_without_the_former_rows_order() -> None:
    state, worker, copy = ordered()
    worker.preempt(2, release=False)
    reply = worker.start(2, PROMPT)
    assert isinstance(reply, Opened)
    assert (reply.kind, reply.copies) == (OpenKind.RESUMED, ())
    worker.step(2, 8)
    assert refs(state, copy.source.id) == ("sealed", 1)
    worker.send(Fenced(sequence=sequence_id(2), epoch=1))
    assert refs(state, copy.source.id) == ("sealed", 0)


def test_a_lost_workers_order_is_the_orphans() -> None:
    """It may have been executed or not: whoever adopts the sequence copies again, so the source stays."""
    state, worker, copy = ordered()
    state.lose(worker.session, 5)
    assert refs(state, copy.source.id) == ("sealed", 1)
    assert refs(state, copy.destination.id) == ("quarantined", 1)
    assert state.check_integrity() == []
    state.dead(worker.session)
    state.expire(10, orphan_ttl_ns=1)
    assert refs(state, copy.source.id) == ("sealed", 0)
    assert refs(state, copy.destination.id) == ("free", 0)


def begun() -> tuple[KvState, Worker, Worker, int]:
    """Worker a runs sequence 1 on a tail; worker b has opened other tokens as sequence 2."""
    state, a = pool(12)
    a.grant(4, starving=True)
    a.start(1, PROMPT[:3])
    a.step(1, 4)
    b = Worker(state, "b")
    b.grant(2)
    b.start(2, [9] * 5)
    [tail] = [block.id for block in state.blocks("tail")]
    return state, a, b, tail


def test_what_a_dead_worker_wrote_can_be_copied_after_its_quarantine() -> None:
    """As an adoption does: the proof of death frees everything but the block that is still read."""
    state, a, b, tail = begun()
    state.lose(a.session, 5)
    copy = order(state, b, 2, tail)
    state.expire(10, orphan_ttl_ns=1)
    assert refs(state, copy.source.id) == ("quarantined", 1)
    assert state.check_integrity() == []
    assert state.dead(a.session) == 3
    assert refs(state, copy.source.id) == ("quarantined", 1)
    assert state.check_integrity() == []
    b.step(2, 7)
    assert refs(state, copy.source.id) == ("free", 0)


def test_a_copy_that_is_done_first_leaves_the_quarantine_to_the_proof() -> None:
    state, a, b, tail = begun()
    state.lose(a.session, 5)
    order(state, b, 2, tail)
    state.expire(10, orphan_ttl_ns=1)
    b.step(2, 7)
    assert refs(state, tail) == ("quarantined", 0)
    assert state.dead(a.session) == 4


def test_a_tail_that_its_living_owner_released_is_kept_for_the_copy() -> None:
    """As a hand-over does: nobody is granted the block before the other worker has read it."""
    state, a, b, tail = begun()
    a.finish(1, release=False)
    order(state, b, 2, tail)
    assert refs(state, tail) == ("tail", 2)
    a.release(1)
    assert (refs(state, tail), state.describe_block(tail).holder) == (("quarantined", 1), "")
    assert state.check_integrity() == []
    state.lose(b.session, 6)
    assert refs(state, tail) == ("quarantined", 1), "whoever adopts sequence 2 copies it again"
    state.expire(10, orphan_ttl_ns=1)
    assert refs(state, tail) == ("free", 0)


def test_a_new_daemon_finds_the_order_in_the_record() -> None:
    spec = pool_spec(12)
    buffer = buffer_for(spec)
    state = KvState.create(buffer, spec, 0)
    worker = Worker(state, "a")
    worker.grant(4, starving=True)
    worker.start(1, [9, 9, 9, 9, 9])
    worker.step(1, 1)
    worker.finish(1)
    worker.start(2, PROMPT)
    copy = order(state, worker, 2, next(state.blocks("sealed")).id)
    parts = state._parts
    found = load(buffer, parts.layout, parts.store, parts.prefix.keys.digest)
    sequence = found.sequences.by_id[sequence_id(2)]
    assert found.pending_copy(sequence) == (copy.source.id, copy.destination.id, 3)
    assert found.blocks.refs[copy.source.id] == 1
    again = KvState.recover(buffer, 1)
    assert refs(again, copy.source.id) == ("sealed", 1)
    assert again.check_integrity() == []
    worker.state = again
    worker.step(2, 8)
    assert refs(again, copy.source.id) == ("sealed", 0)
    assert again.check_integrity() == []


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("copy_slots", 4, "4 slots"),
        ("copy_source", 12, "from block 12"),
        ("copy_source", 11, "holds nothing"),
        ("copy_destination", 11, "no tail of its rows"),
    ],
)
def test_fsck_names_an_order_that_cannot_be(field: str, value: int, message: str) -> None:
    state, worker, _ = ordered()
    view = MetaLayout(state.spec).view(state._parts.store.raw)
    slot = state._parts.sequences.by_id[sequence_id(2)].slot
    whole = int(view.sequences[field][slot])
    view.sequences[field][slot] = value
    findings = check_buffer(state._parts.store.raw)
    assert any(sequence_id(2).hex() in f.subject and message in f.message for f in findings), findings
    view.sequences[field][slot] = whole
    worker.finish(2)
