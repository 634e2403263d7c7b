"""The kinds of things `get` lists: their names, table columns and JSON fields, one row of KINDS each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click
from google.protobuf.message import Message

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.commands.jsonform import to_json, word
from kvmanager.render import Column, age, mib, percent

SHORT_ID: Final = 12  # hexadecimal digits of a sequence that a table shows; `describe` takes a unique prefix


@dataclass(frozen=True, slots=True)
class Kind:
    """One listable resource."""

    name: str  # singular, as typed and as `kind` in JSON
    number: pb.ResourceKind
    field: str  # of ListReply and, singular, of DescribeReply
    columns: Sequence[Column[Any]]
    details: frozenset[str] = frozenset()  # fields that only describe fills
    order: Callable[[Any], Any] = lambda _item: 0  # of the items, where the daemon's is not one for people

    def as_json(self, item: Message, *, detailed: bool = False) -> dict[str, Any]:
        return {"kind": self.name} | to_json(item, frozenset() if detailed else self.details)


def right(title: str, cell: Callable[[Any], str]) -> Column[Any]:
    return Column(title, cell, right=True)


def left(title: str, cell: Callable[[Any], str]) -> Column[Any]:
    return Column(title, lambda item: cell(item) or "-")


def worker_state(worker: pb.WorkerInfo) -> str:
    return word(pb.WorkerState.DESCRIPTOR, worker.state)


def idle(block: pb.BlockInfo) -> str:
    """How long a cached block has been without a user; the others are not idle."""
    return age(block.idle_seconds) if block.state == "sealed" and not block.refcount else "-"


def marks(block: pb.BlockInfo) -> str:
    """What holds beside the state, as words."""
    held = (
        ("cached", block.state == "sealed" and not block.refcount),
        ("shared", block.refcount > 1),
        ("pinned", block.pinned),
        ("indexed", block.indexed),
    )
    return ",".join(name for name, true in held if true)


def in_use(pool: pb.PoolInfo) -> int:
    """Blocks that hold something: all but the free ones."""
    return pool.num_blocks - pool.blocks.free


BLOCKS: Final = Kind(
    "block",
    pb.RESOURCE_KIND_BLOCK,
    "blocks",
    (
        left("POOL", lambda b: b.pool),
        right("ID", lambda b: str(b.id)),
        left("STATE", lambda b: b.state),
        right("REFS", lambda b: str(b.refcount)),
        right("GEN", lambda b: str(b.generation)),
        left("HOLDER", lambda b: b.holder),
        left("HASH", lambda b: b.hash[:SHORT_ID]),
        right("DEPTH", lambda b: str(b.depth) if b.hash else "-"),
        right("IDLE", idle),
        left("MARKS", marks),
    ),
    frozenset({"token_ids"}),
)

SEQUENCES: Final = Kind(
    "sequence",
    pb.RESOURCE_KIND_SEQUENCE,
    "sequences",
    (
        left("POOL", lambda s: s.pool),
        left("ID", lambda s: s.id[:SHORT_ID]),
        left("REQUEST", lambda s: s.request_id),
        right("INDEX", lambda s: str(s.index)),
        left("WORKER", lambda s: s.worker),
        left("STATE", lambda s: s.finish if s.state == "finished" else s.state),
        right("PROMPT", lambda s: str(s.prompt_len)),
        right("CACHED", lambda s: str(s.cached_len)),
        right("TOKENS", lambda s: str(s.recorded_len)),
        right("KV", lambda s: str(s.kv_len)),
        right("BLOCKS", lambda s: str(s.num_blocks)),
        right("AGE", lambda s: age(s.age_seconds)),
    ),
    frozenset({"blocks", "row"}),
    order=lambda s: -s.age_seconds,
)

WORKERS: Final = Kind(
    "worker",
    pb.RESOURCE_KIND_WORKER,
    "workers",
    (
        left("ID", lambda w: w.id),
        left("POOL", lambda w: w.pool),
        left("MODEL", lambda w: w.model),
        left("STATE", worker_state),
        right("PID", lambda w: str(w.pid)),
        right("RUNNING", lambda w: str(w.running)),
        right("WAITING", lambda w: str(w.waiting)),
        right("FLOAT", lambda w: str(w.float_blocks)),
        right("TOK/S", lambda w: f"{w.tokens_per_second:.1f}"),
        right("STEP", lambda w: str(w.step)),
        right("SEEN", lambda w: age(w.age_ms / 1000)),
    ),
)

POOLS: Final = Kind(
    "pool",
    pb.RESOURCE_KIND_POOL,
    "pools",
    (
        left("NAME", lambda p: p.name),
        left("MODEL", lambda p: p.model),
        left("DEVICE", lambda p: p.device),
        left("MEMORY", lambda p: p.exporter),
        right("BLOCKS", lambda p: str(p.num_blocks)),
        right("USED", lambda p: percent(in_use(p), p.num_blocks)),
        right("FREE", lambda p: str(p.blocks.free)),
        right("FLOAT", lambda p: str(p.blocks.granted)),
        right("TAIL", lambda p: str(p.blocks.tail)),
        right("SEALED", lambda p: str(p.blocks.sealed)),
        right("CACHED", lambda p: str(p.blocks.cached)),
        right("QUAR", lambda p: str(p.blocks.quarantined)),
        right("SEQS", lambda p: str(p.sequences)),
        right("HITS", lambda p: percent(p.prefix_hits, p.prefix_queries)),
        right("SIZE", lambda p: mib(p.pool_bytes)),
    ),
)

TIERS: Final = Kind(
    "tier",
    pb.RESOURCE_KIND_TIER,
    "tiers",
    (
        left("NAME", lambda t: t.name),
        left("POOL", lambda t: t.pool),
        right("CAPACITY", lambda t: mib(t.capacity_bytes)),
        right("USED", lambda t: mib(t.used_bytes)),
        right("USED%", lambda t: percent(t.used_bytes, t.capacity_bytes)),
        right("BLOCKS", lambda t: str(t.blocks)),
    ),
)

KINDS: Final = (BLOCKS, SEQUENCES, WORKERS, POOLS, TIERS)
DESCRIBED: Final = (BLOCKS, SEQUENCES, WORKERS, POOLS)
NAMES: Final = {name: kind for kind in KINDS for name in (kind.name, kind.field)}


class KindParam(click.ParamType[Kind]):
    """One kind by its name, singular or plural."""

    name = "kind"

    def __init__(self, allowed: Sequence[Kind]) -> None:
        self._allowed = allowed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Kind:
        if isinstance(value, Kind):
            return value
        kind = NAMES.get(value)
        if kind is None or kind not in self._allowed:
            self.fail(
                f"unknown kind {value!r}, expected {', '.join(k.field for k in self._allowed)}", param, ctx
            )
        return kind


class KindsParam(click.ParamType[tuple[Kind, ...]]):
    """Several kinds with commas between them, each once."""

    name = "kinds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Kind, ...]:
        if isinstance(value, tuple):
            return value
        one = KindParam(KINDS)
        return tuple(dict.fromkeys(one.convert(name, param, ctx) for name in value.split(",")))
