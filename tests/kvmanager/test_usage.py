"""The accounting of token slots, against a count of the metadata's bytes by other means."""

from collections import Counter

from kvmanager.blocks import BlockState
from kvmanager.state import KvState
from kvmanager.usage import MemoryUse
from tests.support.kv import (
    Worker,
    clean,  # noqa: F401 - used by every test
    pool,
)
from tests.support.storm import Storm


def counted(state: KvState) -> MemoryUse:
    """Everything afresh from the records: rows, blocks, lengths."""
    view, size = state.layout.view(state._parts.store.raw), state.layout.block_size
    rows = view.rows["sequence"].nonzero()[0].tolist()
    states = [BlockState(int(block)).name for block in view.blocks["state"]]
    entries = [b for row in rows for b in view.entries[row, : int(view.rows[row]["length"])].tolist()]
    named = Counter(b for b in entries if states[b] != "QUARANTINED")
    running = [record for record in view.sequences if record["state"] == 1]
    slots = sum(int(view.rows[int(record["row"]) - 1]["length"]) * size for record in running)
    tokens = sum(int(record["kv_len"]) for record in running)
    return MemoryUse(
        slots=len(states) * size,
        allocated=len(named) * size,
        reserved=states.count("GRANTED") * size,
        cached=sum(state == "SEALED" and not named[block] for block, state in enumerate(states)) * size,
        quarantined=states.count("QUARANTINED") * size,
        shared=(sum(named.values()) - len(named)) * size,
        fragmented=slots - tokens,
        tokens=tokens,
    )


def test_a_pool_with_something_of_everything() -> None:
    state, worker = pool(24)
    worker.grant(8, starving=True)
    worker.start(1, [1] * 9)
    worker.step(1, 1)
    worker.start(2, [1] * 8 + [2] * 6)
    worker.step(2, 1)
    lost = Worker(state, "lost")
    lost.grant(3)
    state.lose(lost.session, 1)
    assert state.memory() == MemoryUse(
        slots=96,
        allocated=20,  # two sealed for both, a tail, a sealed and a tail
        reserved=12,
        cached=0,
        quarantined=12,
        shared=8,
        fragmented=5,
        tokens=23,
    )
    worker.finish(1, release=False)
    assert state.memory().allocated == 20, "on its way back"
    worker.release(1)
    use = state.memory()
    assert (use.allocated, use.shared, use.tokens, use.fragmented) == (16, 0, 14, 2)
    worker.finish(2)
    assert state.memory().cached == 12
    assert state.memory() == counted(state)


def test_in_a_storm_the_counters_are_those_of_the_records() -> None:
    """Forks, copies, preemptions, deaths: at every moment all slots are accounted for."""
    storm = Storm(seed=5)
    seen = Counter[str]()
    for calls in range(200, 6001, 40):
        storm.run(calls)
        use = storm.state.memory()
        assert use == counted(storm.state)
        seen.update(name for name in ("shared", "fragmented", "cached") if getattr(use, name))
    assert min(seen.values()) > 10
    storm.stop()
