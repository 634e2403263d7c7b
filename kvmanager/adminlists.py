"""The lists that the command line can ask for: one generator of (key, protobuf message) for each kind of thing.

Each goes on after a given key, in the key's order, and makes a message only when it is asked for the next one.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Protocol, TypeVar

from google.protobuf.message import Message

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.errors import Invalid
from kvmanager.layout import PoolSpec
from kvmanager.paging import Key
from kvmanager.state import KvState

M = TypeVar("M", bound=Message)
BLOCK_STATES: Final = ("free", "granted", "tail", "sealed", "quarantined")


class PoolView(Protocol):
    """What is needed of one of the daemon's pools."""

    @property
    def spec(self) -> PoolSpec: ...
    @property
    def state(self) -> KvState: ...
    @property
    def pool_bytes(self) -> int: ...
    @property
    def metadata_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Query:
    """One list request: of which pools and workers, from where on."""

    pools: Mapping[str, PoolView]  # by name; chosen by the request
    workers: Sequence[pb.WorkerInfo]  # of these pools
    state: str
    after: Key | None

    def pools_left(self) -> Iterator[tuple[str, PoolView, Any]]:
        """Pools by name from the one of the last key on, each with the rest of that key if it is in it."""
        first, *rest = self.after or ("",)
        for name in sorted(self.pools):
            if name >= str(first):
                yield name, self.pools[name], rest[0] if rest and name == first else None


Items = Iterable[tuple[Key, Message]]


def copied(kind: type[M], record: Any) -> M:
    """A plain record whose fields are named as the message's."""
    return kind(**{field.name: getattr(record, field.name) for field in fields(record)})


# ---------------------------------------------------------------------------------------------- kinds


def blocks(query: Query) -> Items:
    state = query.state or None
    for name, pool, last in query.pools_left():
        start = 0 if last is None else last + 1
        for block in pool.state.blocks(state, start=start, now_ns=time.monotonic_ns()):
            yield (name, block.id), copied(pb.BlockInfo, block)


def sequences(query: Query) -> Items:
    for name, pool, last in query.pools_left():
        known = sorted(pool.state.sequences(time.monotonic_ns()), key=lambda sequence: sequence.id)
        for sequence in known:
            if last is None or sequence.id > last:
                yield (name, sequence.id), copied(pb.SequenceInfo, sequence)


def workers(query: Query) -> Items:
    ordered = sorted((worker.id, worker.session) for worker in query.workers)
    known = {(worker.id, worker.session): worker for worker in query.workers}
    for key in ordered:
        if query.after is None or key > query.after:
            yield key, known[key]


def pools(query: Query) -> Items:
    for name in sorted(query.pools):
        if query.after is None or (name,) > query.after:
            yield (name,), pool_info(query.pools[name])


def tiers(query: Query) -> Items:
    """Sealed blocks live where the pool is: there is one tier as yet."""
    for name in sorted(query.pools):
        if query.after is None or (name,) > query.after:
            yield (name,), tier_info(query.pools[name])


def pool_info(pool: PoolView) -> pb.PoolInfo:
    spec, state = pool.spec, pool.state
    return pb.PoolInfo(
        name=spec.name,
        model=spec.model,
        fingerprint=spec.model_fingerprint.hex(),
        geometry=copied(pb.Geometry, spec.geometry),
        num_blocks=spec.num_blocks,
        max_model_len=spec.max_model_len,
        vocab_size=spec.vocab_size,
        dtype=spec.dtype,
        device=spec.device,
        pool_bytes=pool.pool_bytes,
        metadata_bytes=pool.metadata_bytes,
        blocks=copied(pb.BlockCounts, state.counts()),
        prefix_queries=state.prefix.queries,
        prefix_hits=state.prefix.hits,
        evictions=state.evictions,
        preemptions=state.preemptions,
        sequences=state.live_sequences,
        tokens_held=state.tokens_held,
        exporter=spec.exporter,
        partial_hits=state.prefix.partial,
        prefix_waits=state.prefix.waits,
        memory=copied(pb.MemoryUse, state.memory()),
        orphans=pool.state.orphans,
        adoptions=pool.state.adoptions,
        reprefilled=pool.state.reprefilled,
    )


def tier_info(pool: PoolView) -> pb.TierInfo:
    used = pool.spec.num_blocks - pool.state.counts().free
    return pb.TierInfo(
        name="host" if pool.spec.device == "cpu" else "device",
        pool=pool.spec.name,
        capacity_bytes=pool.pool_bytes,
        used_bytes=pool.pool_bytes // pool.spec.num_blocks * used,
        blocks=used,
    )


# ---------------------------------------------------------------------------------------------- sizes


def num_blocks(query: Query) -> int:
    counts = [pool.state.counts() for pool in query.pools.values()]
    if not query.state:
        return sum(c.granted + c.tail + c.sealed + c.quarantined for c in counts)
    if query.state not in BLOCK_STATES:
        raise Invalid(f"state: {query.state!r}, expected one of {', '.join(BLOCK_STATES)}", field="state")
    return sum(getattr(c, query.state) for c in counts)


def num_sequences(query: Query) -> int:
    return sum(len(pool.state.sequences()) for pool in query.pools.values())


@dataclass(frozen=True, slots=True)
class Listing:
    """One kind: its field of ListReply, the types of its keys, its items and how many there are."""

    field: str
    key: tuple[type, ...]
    items: Callable[[Query], Items]
    size: Callable[[Query], int]


LISTINGS: Final[Mapping[int, Listing]] = {
    pb.RESOURCE_KIND_BLOCK: Listing("blocks", (str, int), blocks, num_blocks),
    pb.RESOURCE_KIND_SEQUENCE: Listing("sequences", (str, str), sequences, num_sequences),
    pb.RESOURCE_KIND_WORKER: Listing("workers", (str, str), workers, lambda query: len(query.workers)),
    pb.RESOURCE_KIND_POOL: Listing("pools", (str,), pools, lambda query: len(query.pools)),
    pb.RESOURCE_KIND_TIER: Listing("tiers", (str,), tiers, lambda query: len(query.pools)),
}
