"""What is kept of a pool whose KV is given up: each record by itself, and only what a new daemon accepts."""

import random
from array import array
from collections.abc import Callable

import pytest

from kvmanager.layout import HEADER_BYTES, MetaLayout
from kvmanager.messages import Opened, OpenKind, Refused
from kvmanager.records import SEQUENCE
from kvmanager.salvage import Salvage, salvage
from kvmanager.state import KvState
from tests.support.kv import Worker, buffer_for, pool_spec, sequence_id

SPEC = pool_spec(24, 4)
LAYOUT = MetaLayout(SPEC)
PROMPT = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


class Old:
    """A pool with an open sequence, a preempted one, a finished one and an orphan."""

    def __init__(self) -> None:
        self.buffer = buffer_for(SPEC)
        self.state = KvState.create(self.buffer, SPEC, 0)
        dead, a = Worker(self.state, "dead"), Worker(self.state, "a")
        dead.grant(4, starving=True)
        dead.start(4, [9] * 5)
        dead.step(4, 8)
        self.state.lose(dead.session, 1)
        a.grant(9, starving=True)
        a.start(1, PROMPT)
        a.step(1, 11)
        a.step(1, 12)
        a.start(2, [8] * 6)
        a.step(2, 7)
        a.preempt(2)
        a.start(3, PROMPT[:5])
        a.step(3, 13)
        a.finish(3)
        self.view = LAYOUT.view(self.buffer)

    def record(self, number: int) -> int:
        ids = [int.from_bytes(record["id"].tobytes(), "big") for record in self.view.sequences]
        return ids.index(number)

    def salvage(self, now_ns: int = 99) -> Salvage:
        return salvage(self.buffer, LAYOUT, now_ns)


def renewed(found: Salvage) -> KvState:
    """A new pool with what was found; it is clean, for the next daemon too."""
    buffer = buffer_for(SPEC)
    state = KvState.create(buffer, SPEC, 100)
    state.carry(found.carried)
    assert state.check_integrity() == []
    assert KvState.recover(bytearray(buffer), 100).check_integrity() == []
    return state


def numbers(found: Salvage) -> list[int]:
    return sorted(int.from_bytes(one.sequence.id, "big") for one in found.carried)


def test_requests_tokens_and_ends_are_kept_and_the_kv_is_not() -> None:
    old = Old()
    before = {info.id: info for info in old.state.sequences()}
    found = old.salvage()
    assert (found.dropped, found.live) == (0, 3)
    state = renewed(found)
    after = {info.id: info for info in state.sequences()}
    assert after.keys() == before.keys()
    for name, info in after.items():
        was = before[name]
        same = ("request_id", "index", "prompt_len", "recorded_len", "priority", "tenant", "finish")
        assert [getattr(info, field) for field in same] == [getattr(was, field) for field in same]
        ended = was.state == "finished"
        assert info.state == ("finished" if ended else "orphaned")
        assert info.epoch == was.epoch + (not ended)
        assert (info.blocks, info.worker) == ([], "")
    for number in (1, 2, 3, 4):
        was, now = (pool.read_record(sequence_id(number)) for pool in (old.state, state))
        assert (now.token_ids, now.finish) == (was.token_ids, was.finish)
    assert [one.request for one in found.carried] == [b"request"] * 4
    assert state.counts().free == SPEC.num_blocks


@pytest.mark.parametrize(("number", "lost"), [(1, 11), (2, 0), (4, 5)], ids=["open", "preempted", "orphan"])
def test_who_adopts_one_computes_it_again_and_is_told_how_much_of_it_was_valid(
    number: int, lost: int
) -> None:
    old = Old()
    state = renewed(old.salvage())
    worker = Worker(state, "new")
    tokens = old.state.read_record(sequence_id(number)).token_ids
    epoch = state.describe_sequence(f"{number:032x}").epoch
    opened = worker.start(number, list(tokens))
    assert isinstance(opened, Opened)
    assert (opened.kind, opened.kv_len, opened.lost_len) == (OpenKind.ADOPTED, 0, lost)
    assert opened.epoch == epoch + 1
    assert list(opened.token_ids) == list(tokens)
    assert state.reprefilled == lost
    assert state.check_integrity() == []


def test_what_is_lost_twice_counts_once_and_what_is_cached_again_is_not_lost() -> None:
    old = Old()
    other = Worker(old.state, "b")
    other.grant(4, starving=True)
    other.start(5, PROMPT)
    other.step(5, 3)
    state = renewed(old.salvage())
    worker = Worker(state, "new")
    worker.grant(9, starving=True)
    first = worker.start(1, list(old.state.read_record(sequence_id(1)).token_ids))
    assert isinstance(first, Opened)
    worker.step(1, 14)
    second = worker.start(5, [*PROMPT, 3])
    assert isinstance(second, Opened)
    assert (second.kv_len, second.lost_len) == (10, 0)
    state.lose(worker.session, 101)
    again = Worker(state, "again").start(1, list(state.read_record(sequence_id(1)).token_ids))
    assert isinstance(again, Opened)
    assert again.lost_len == 0
    assert state.reprefilled == 11


def test_a_finished_one_is_refused_to_whoever_would_go_on_with_it() -> None:
    state = renewed(Old().salvage())
    assert isinstance(Worker(state, "new").start(3, PROMPT[:5]), Refused)
    assert state.expire(10**12) == 1


def set_field(number: int, **values: object) -> Callable[[Old], None]:
    def damage(old: Old) -> None:
        for name, value in values.items():
            old.view.sequences[old.record(number)][name] = value

    return damage


def out_of_vocabulary(old: Old) -> None:
    record = old.view.sequences[old.record(1)]
    old.view.token_arena[int(record["token_offset"]) + 3] = SPEC.vocab_size


BAD = {
    "state": set_field(1, state=9),
    "finish": set_field(1, finish=3),
    "prompt": set_field(1, prompt_len=40),
    "recorded": set_field(1, recorded_len=2**31),
    "capacity": set_field(1, token_capacity=2**40),
    "tokens beyond": set_field(1, token_offset=2**64 - 1),
    "request beyond": set_field(1, request_offset=2**63),
    "request bytes": set_field(1, request_bytes=2**20),
    "request id": set_field(1, request_id_bytes=300),
    "max_tokens": set_field(1, max_tokens=2**31),
    "no max_tokens": set_field(1, max_tokens=0),
    "epoch": set_field(1, epoch=2**64 - 1),
    "deaths": set_field(1, deaths=200),
    "vocabulary": out_of_vocabulary,
}


@pytest.mark.parametrize("damage", BAD.values(), ids=BAD)
def test_a_record_that_does_not_hold_is_dropped_and_counted_and_the_others_stay(
    damage: Callable[[Old], None],
) -> None:
    old = Old()
    damage(old)
    found = old.salvage()
    assert (numbers(found), found.dropped) == ([2, 3, 4], 1)
    renewed(found)


@pytest.mark.parametrize(
    ("field", "both"), [("id", {1, 4}), ("token_offset", {1, 4}), ("request_offset", {1, 4})]
)
def test_of_two_that_contradict_each_other_neither_is_kept(field: str, both: set[int]) -> None:
    old = Old()
    old.view.sequences[old.record(4)][field] = old.view.sequences[old.record(1)][field]
    found = old.salvage()
    assert set(numbers(found)) == {1, 2, 3, 4} - both
    assert found.dropped == 2


def test_tokens_of_a_record_are_its_own_bytes_whatever_became_of_its_blocks_and_row() -> None:
    old = Old()
    old.buffer[LAYOUT.blocks_at : LAYOUT.sequences_at] = random.Random(1).randbytes(
        LAYOUT.sequences_at - LAYOUT.blocks_at
    )
    found = old.salvage()
    kept = {int.from_bytes(one.sequence.id, "big"): one for one in found.carried}
    assert kept[1].sequence.tokens == array("I", [*PROMPT, 11, 12])
    assert kept[1].request == b"request"
    assert numbers(found) == [1, 2, 3, 4]


def test_times_of_the_future_do_not_keep_a_record_for_ever() -> None:
    old = Old()
    set_field(3, finished_ns=2**63)(old)
    state = renewed(old.salvage())
    assert state.expire(10**12) == 1


def test_whatever_the_bytes_are_what_is_kept_is_a_pool_that_the_next_daemon_accepts() -> None:
    """Random damage, from single bytes to whole sections; the header is what is trusted."""
    rng, kept = random.Random(7), 0
    clean = bytes(Old().buffer)
    records = LAYOUT.sequences_at, LAYOUT.sequences_at + 8 * SEQUENCE.itemsize
    for _ in range(300):
        damaged = bytearray(clean)
        for _ in range(rng.randint(1, 12)):
            start, end = rng.choice([records, (HEADER_BYTES, len(clean))])
            at = rng.randrange(start, end)
            length = min(rng.choice([1, 1, 4, 64]), end - at)
            damaged[at : at + length] = rng.randbytes(length)
        found = salvage(damaged, LAYOUT, 99)
        kept += len(found.carried)
        renewed(found)
    assert 300 < kept < 1200, "both happened: records that hold, and some that do not"


def test_finished_ones_come_in_the_order_in_which_they_finished() -> None:
    buffer = buffer_for(SPEC)
    state = KvState.create(buffer, SPEC, 0)
    worker = Worker(state, "a")
    worker.grant(9, starving=True)
    for worker.now_ns, number in enumerate((7, 5, 6)):
        worker.start(number, [number] * 3)
        worker.step(number, 1)
        worker.finish(number)
    carried = salvage(buffer, LAYOUT, 99).carried
    assert [int.from_bytes(one.sequence.id, "big") for one in carried] == [7, 5, 6]
