"""A daemon's derived state beside the one that its own metadata gives: invariant 2, counters are a cache."""

from collections.abc import Iterator
from typing import Any

from kvmanager.blocks import BlockPool
from kvmanager.integrity import Finding
from kvmanager.parts import Parts


def compare(live: Parts, rebuilt: Parts) -> list[Finding]:
    """Where a daemon's derived state differs from the one its own metadata gives."""
    return [*compare_blocks(live, rebuilt), *compare_tables(live, rebuilt)]


def compare_blocks(live: Parts, rebuilt: Parts) -> Iterator[Finding]:
    mine, true = live.blocks, rebuilt.blocks
    for name, kind in (
        ("state", "state"),
        ("generation", "state"),
        ("holder", "state"),
        ("refs", "refcount"),
        ("indexed", "index"),
        ("key", "hash"),
        ("tokens", "hash"),
        ("parent", "hash"),
    ):
        for block, (a, b) in enumerate(zip(getattr(mine, name), getattr(true, name), strict=True)):
            if a != b:
                yield Finding(kind, f"block {block}", f"{name} is {a} in memory, {b} by the records")
    if mine.reads != true.reads:
        yield Finding("refcount", "copy orders", f"read {mine.reads}, by the records {true.reads}")
    for name, kind in (("free", "free_list"), ("cached", "free_list")):
        a, b = list(getattr(mine, name)), list(getattr(true, name))
        if len(a) != getattr(mine, name).length or sorted(a) != sorted(b):
            yield Finding(kind, f"{name} list", f"{len(a)} blocks in memory, {len(b)} by the records")
    uses = [mine.last_use[block] for block in mine.cached]
    if uses != sorted(uses):
        yield Finding("free_list", "cached list", "not in the order of last use")
    if orphans := left_behind(mine):
        yield Finding("free_list", "cached list", f"{orphans} blocks stand behind the one they follow")
    if mine.by_key != true.by_key:
        yield Finding(
            "index", "index", f"{len(mine.by_key)} keys in memory, {len(true.by_key)} by the records"
        )
    if (mine.counts, mine.shared) != (true.counts, true.shared):
        yield Finding(
            "refcount",
            "counters",
            f"{mine.counts} and {mine.shared} shared, by the records {true.counts} and {true.shared}",
        )


def left_behind(blocks: BlockPool) -> int:
    """Cached blocks that would be evicted after the cached block before them in their chain: then nobody finds them."""
    seen: set[int] = set()
    count = 0
    for block in blocks.cached:
        count += blocks.parent[block] in seen
        seen.add(blocks.link(block))
    return count


def compare_tables(live: Parts, rebuilt: Parts) -> Iterator[Finding]:
    if (live.rows.sequence, live.rows.epoch, live.rows.blocks) != (
        rebuilt.rows.sequence,
        rebuilt.rows.epoch,
        rebuilt.rows.blocks,
    ) or sorted(live.rows.unused) != sorted(rebuilt.rows.unused):
        yield Finding("row", "rows", "in memory they differ from the records")
    mine, true = live.sequences, rebuilt.sequences
    for slot, (a, b) in enumerate(zip(mine.slots, true.slots, strict=True)):
        if sequence_facts(a) != sequence_facts(b):
            yield Finding(
                "sequence", f"record {slot}", f"{sequence_facts(a)} in memory, {sequence_facts(b)} stored"
            )
    found = [(t.open.keys(), t.orphans.keys(), len(t.finished)) for t in (mine, true)]
    if found[0] != found[1]:
        yield Finding("sequence", "look-ups", "open, orphaned or finished ones differ from the records")
    for name in ("token_arena", "request_arena"):
        if getattr(mine, name).holes != getattr(true, name).holes:
            yield Finding("sequence", name, "its free extents are not those that the records leave")
    mine_rows, true_rows = ((one.held_rows, one.rows.entries) for one in (live, rebuilt))
    if mine_rows != true_rows:
        yield Finding("row", "rows", f"(held, entries) {mine_rows} in memory, {true_rows} by the records")
    if [*map(session_facts, live.sessions.slots)] != [*map(session_facts, rebuilt.sessions.slots)]:
        yield Finding("session", "sessions", "in memory they differ from the records")


def sequence_facts(s: Any) -> Any:
    """What must be equal; a tip's link is not stored."""
    return s and (
        s.id,
        s.state,
        s.epoch,
        s.deaths,
        s.owner,
        s.row,
        s.kv_len,
        s.tokens.tobytes(),
        s.finish,
        s.held_rows,
        s.copy,
        s.tip[:2] if s.row >= 0 else None,
    )


def session_facts(s: Any) -> Any:
    return s and (s.id, s.state, s.number, s.float_blocks, s.worker_id, s.pid, s.start_time)
