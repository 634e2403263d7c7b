"""fsck names what was damaged: one field of the metadata is changed at a time, behind the state's back."""

import random
from collections.abc import Callable

import numpy as np
import pytest

from kvmanager.integrity import check_buffer
from kvmanager.layout import CorruptMetadata, MetaLayout, MetaView
from kvmanager.records import BLOCK, ROW, SEQLOCK_AT, SEQUENCE, SESSION
from kvmanager.state import KvState
from tests.support.kv import Worker, buffer_for, pool_spec

SPEC = pool_spec(16, 4)


class Busy:
    """A pool with something in every state: two sequences that share a prefix, a float, a cache, a quarantine."""

    def __init__(self) -> None:
        self.buffer = buffer_for(SPEC)
        self.state = KvState.create(self.buffer, SPEC, 0)
        a, gone = Worker(self.state, "a"), Worker(self.state, "gone")
        gone.grant(1)
        a.grant(9, starving=True)
        prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
        a.start(1, prompt)
        a.step(1, 11)
        a.start(2, prompt)
        a.step(2, 12)
        a.start(3, [9] * 9)
        a.step(3, 1)
        a.finish(3)
        self.state.lose(gone.session, 1)
        self.view = MetaLayout(SPEC).view(self.buffer)
        self.rows = {n: list(self.state.describe_sequence(f"{n:032x}").blocks) for n in (1, 2)}
        assert self.rows[1][:2] == self.rows[2][:2]
        counts = self.state.counts()
        assert (
            min(counts.free, counts.granted, counts.tail, counts.quarantined, counts.cached, counts.shared)
            > 0
        )
        assert check_buffer(self.buffer) == self.state.check_integrity() == []

    def block(self, state: str) -> int:
        return next(self.state.blocks(state)).id

    def cached(self) -> int:
        return next(b.id for b in self.state.blocks("sealed") if not b.refcount)

    def record(self, number: int) -> int:
        return [int.from_bytes(r["id"].tobytes(), "big") for r in self.view.sequences].index(number)


Damage = Callable[[Busy, MetaView], str]  # does it, and gives the subject that must be named


def field(name: str, state: str, value: int) -> Damage:
    def damage(busy: Busy, view: MetaView) -> str:
        block = busy.block(state)
        view.blocks[block][name] = value
        return f"block {block}"

    return damage


def row_entry(busy: Busy, view: MetaView, entry: int, block: int) -> int:
    row = int(view.sequences[busy.record(1)]["row"]) - 1
    view.entries[row, entry] = block
    return row


def tail_in_two_rows(busy: Busy, view: MetaView) -> str:
    row_entry(busy, view, 2, busy.rows[2][2])
    return f"block {busy.rows[2][2]}"


def row_names_free(busy: Busy, view: MetaView) -> str:
    free = busy.block("free")
    row_entry(busy, view, 2, free)
    return f"block {free}"


def row_names_nothing(busy: Busy, view: MetaView) -> str:
    return f"row {row_entry(busy, view, 0, 999)}"


def row_twice(busy: Busy, view: MetaView) -> str:
    return f"row {row_entry(busy, view, 0, busy.rows[1][1])}"


def row_swapped(busy: Busy, view: MetaView) -> str:
    row_entry(busy, view, 0, busy.rows[1][1])
    row_entry(busy, view, 1, busy.rows[1][0])
    return f"block {busy.rows[1][1]}"


def row_dropped(busy: Busy, view: MetaView) -> str:
    view.rows[int(view.sequences[busy.record(1)]["row"]) - 1]["sequence"] = 0
    return f"sequence {1:032x}"


def row_shorter(busy: Busy, view: MetaView) -> str:
    view.rows[int(view.sequences[busy.record(1)]["row"]) - 1]["length"] = 2
    return f"block {busy.rows[1][2]}"


def row_too_long(busy: Busy, view: MetaView) -> str:
    row = int(view.sequences[busy.record(1)]["row"]) - 1
    view.rows[row]["length"] = 10_000
    return f"row {row}"


def cached_tokens(busy: Busy, view: MetaView) -> str:
    block = busy.cached()
    view.block_tokens[block, 1] += 1
    return f"block {block}"


def cached_unindexed(busy: Busy, view: MetaView) -> str:
    block = busy.cached()
    view.blocks[block]["indexed"] = 0
    return f"block {block}"


def key(busy: Busy, view: MetaView) -> str:
    block = busy.cached()
    view.blocks[block]["hash"] = np.void(b"x" * 32)
    return f"block {block}"


def sequence(name: str, value: int) -> Damage:
    def damage(busy: Busy, view: MetaView) -> str:
        view.sequences[busy.record(1)][name] = value
        return f"sequence {1:032x}"

    return damage


def kv_len(busy: Busy, view: MetaView) -> str:
    view.sequences[busy.record(1)]["kv_len"] = 7
    return f"row {int(view.sequences[busy.record(1)]['row']) - 1}"


def recorded_token(busy: Busy, view: MetaView) -> str:
    """A token of a sealed block."""
    view.token_arena[int(view.sequences[busy.record(1)]["token_offset"]) + 1] = 77
    return f"block {busy.rows[1][0]}"


def extents(busy: Busy, view: MetaView) -> str:
    view.sequences[busy.record(2)]["token_offset"] = view.sequences[busy.record(1)]["token_offset"]
    return f"sequence {2:032x}"


def same_id(busy: Busy, view: MetaView) -> str:
    view.sequences[busy.record(2)]["id"] = view.sequences[busy.record(1)]["id"]
    return f"sequence {1:032x}"


def session_state(busy: Busy, view: MetaView) -> str:
    view.sessions[0]["state"] = 9
    return "session 0"


def odd_seqlock(busy: Busy, view: MetaView) -> str:
    busy.buffer[SEQLOCK_AT] ^= 1
    return "header"


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        pytest.param(field("state", "tail", 0), "refcount", id="tail → free"),
        pytest.param(field("state", "tail", 3), "hash", id="tail → sealed"),
        pytest.param(field("state", "sealed", 0), "refcount", id="sealed → free"),
        pytest.param(field("state", "sealed", 2), "refcount", id="shared → tail"),
        pytest.param(field("state", "free", 2), "leak", id="free → tail"),
        pytest.param(field("state", "free", 3), "leak", id="free → sealed"),
        pytest.param(field("state", "free", 1), "state", id="free → granted to nobody"),
        pytest.param(field("state", "granted", 9), "state", id="unknown state"),
        pytest.param(field("state", "quarantined", 1), "state", id="quarantined → granted"),
        pytest.param(field("holder", "quarantined", 0), "state", id="quarantined for nobody"),
        pytest.param(field("holder", "granted", 2), "state", id="granted to a lost session"),
        pytest.param(field("holder", "free", 1), "state", id="free, but held"),
        pytest.param(field("indexed", "tail", 1), "index", id="a tail found by look-up"),
        pytest.param(field("indexed", "sealed", 7), "index", id="index flag"),
        pytest.param(field("depth", "sealed", 3), "row", id="depth"),
        pytest.param(tail_in_two_rows, "refcount", id="tail in two rows"),
        pytest.param(row_names_free, "refcount", id="row names a free block"),
        pytest.param(row_names_nothing, "row", id="row names no block"),
        pytest.param(row_twice, "row", id="row names a block twice"),
        pytest.param(row_swapped, "row", id="row out of order"),
        pytest.param(row_dropped, "sequence", id="row dropped"),
        pytest.param(row_shorter, "leak", id="row shorter"),
        pytest.param(row_too_long, "row", id="row too long"),
        pytest.param(cached_tokens, "hash", id="tokens of a cached block"),
        pytest.param(cached_unindexed, "leak", id="cached, but not found"),
        pytest.param(key, "hash", id="key"),
        pytest.param(sequence("state", 7), "sequence", id="unknown sequence state"),
        pytest.param(sequence("owner", 2), "sequence", id="owned by a lost session"),
        pytest.param(sequence("owner", 0), "sequence", id="owned by nobody"),
        pytest.param(sequence("epoch", 5), "sequence", id="epoch"),
        pytest.param(sequence("row", 0), "sequence", id="no row"),
        pytest.param(sequence("row", 9999), "sequence", id="row out of range"),
        pytest.param(sequence("recorded_len", 5), "sequence", id="recorded_len"),
        pytest.param(sequence("finish", 3), "sequence", id="finish reason of an open sequence"),
        pytest.param(sequence("request_id_bytes", 9999), "sequence", id="request id"),
        pytest.param(sequence("token_capacity", 2**40), "sequence", id="extent over the arena's end"),
        pytest.param(kv_len, "state", id="kv_len"),
        pytest.param(recorded_token, "hash", id="recorded token"),
        pytest.param(extents, "sequence", id="overlapping extents"),
        pytest.param(same_id, "sequence", id="two records of one id"),
        pytest.param(session_state, "session", id="session state"),
        pytest.param(odd_seqlock, "state", id="odd seqlock"),
    ],
)
def test_damage_is_named_and_no_daemon_starts_on_it(damage: Damage, kind: str) -> None:
    busy = Busy()
    subject = damage(busy, busy.view)
    found = check_buffer(busy.buffer)
    assert (kind, subject) in {(finding.kind, finding.subject) for finding in found}, found
    assert busy.state.check_integrity() == found, "the living daemon sees it too"
    with pytest.raises(CorruptMetadata):
        KvState.recover(busy.buffer, 0)


def refs(parts: object) -> None:
    parts.blocks.refs[0] += 1  # type: ignore[attr-defined]


def free_list(parts: object) -> None:
    parts.blocks.free.pop()  # type: ignore[attr-defined]


def index(parts: object) -> None:
    parts.blocks.by_key.popitem()  # type: ignore[attr-defined]


def row(parts: object) -> None:
    parts.rows.blocks[parts.rows.unused[-1]].append(3)  # type: ignore[attr-defined]


def lengths(parts: object) -> None:
    next(iter(parts.sequences.open.values())).kv_len += 1  # type: ignore[attr-defined]


def arena(parts: object) -> None:
    parts.sequences.token_arena.take(1)  # type: ignore[attr-defined]


def counters(parts: object) -> None:
    parts.blocks.counts[0] -= 1  # type: ignore[attr-defined]


def number(parts: object) -> None:
    next(iter(parts.sessions.by_id.values())).number += 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (refs, "refcount"),
        (free_list, "free_list"),
        (index, "index"),
        (row, "row"),
        (lengths, "sequence"),
        (arena, "sequence"),
        (counters, "refcount"),
        (number, "session"),
    ],
)
def test_a_daemon_whose_memory_differs_from_its_records_is_found_out(
    damage: Callable[[object], None], kind: str
) -> None:
    busy = Busy()
    damage(busy.state._parts)
    assert kind in {finding.kind for finding in busy.state.check_integrity()}
    assert check_buffer(busy.buffer) == [], "the records are still good"


@pytest.mark.parametrize("seed", range(4))
def test_any_changed_byte_of_the_records_is_judged_without_a_crash(seed: int) -> None:
    """Either it is named, or it meant nothing and a daemon that starts on it is sound."""
    busy, dice = Busy(), random.Random(seed)
    good, layout = bytes(busy.buffer), MetaLayout(SPEC)
    named = 0
    for _ in range(150):
        image = bytearray(good)
        for _ in range(dice.choice((1, 1, 8))):
            at = dice.choice(sections(layout, image))
            image[at + dice.randrange(24)] ^= dice.randrange(1, 256)
        if check_buffer(image):
            named += 1
            with pytest.raises(CorruptMetadata):
                KvState.recover(image, 0)
        else:
            assert KvState.recover(image, 0).check_integrity() == []
    assert named > 30


def sections(layout: MetaLayout, image: bytearray) -> list[int]:
    """The records in use."""
    view = layout.view(image)
    found = [layout.blocks_at + i * BLOCK.itemsize for i in range(layout.num_blocks)]
    for at, records in (
        (layout.rows_at, view.rows["sequence"]),
        (layout.sequences_at, view.sequences["state"]),
        (layout.sessions_at, view.sessions["state"]),
    ):
        size = {layout.rows_at: ROW, layout.sequences_at: SEQUENCE, layout.sessions_at: SESSION}[at].itemsize
        found += [at + i * size for i in records.nonzero()[0].tolist()]
    return found
