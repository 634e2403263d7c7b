"""Which pool a worker gets, and what must agree before it gets one. Decides; the server does the sockets.

The served model name picks the pool. Whoever shares it must state the same geometry, weights, device and
vocabulary, and may not ask for longer or more sequences than it was made for. A pool that nobody uses any more is
replaced instead.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kvmanager.attachment import AttachSpec
from kvmanager.config import KvManagerSettings
from kvmanager.errors import Invalid, Mismatch, PoolTooSmall, Unimplemented
from kvmanager.layout import MAX_POOL_BLOCKS, Geometry, PoolLayout, PoolSpec
from kvmanager.pools import Pool, Pools


@dataclass(frozen=True, slots=True)
class Difference:
    """A field in which a worker and a pool do not fit."""

    field: str
    worker: Any
    pool: Any


def geometry_of(spec: AttachSpec) -> Geometry:
    return Geometry(
        num_layers=spec.num_layers,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        block_size=spec.block_size,
        dtype=spec.kv_dtype,
        layout_version=spec.layout_version,
    )


def place(spec: AttachSpec, pools: Pools, settings: KvManagerSettings) -> Pool:
    """The worker's pool, found or made. Mismatch, NoMemory, PoolTooSmall or Unimplemented if there can be none."""
    pool = pools.of_model(spec.model)
    if pool is not None:
        different = next(differences(spec, pool.spec), None)
        if different is None:
            return pool
        if not pool.idle():
            raise Mismatch(
                f"{different.field}: this worker has {different.worker}, "
                f"pool {pool.spec.name} has {different.pool} and is in use",
                field=different.field,
                worker=different.worker,
                pool=different.pool,
            )
        pools.drop(pool, f"unused, and a worker with another {different.field} attaches")
    return pools.create(pool_spec(spec, pools, settings))


def differences(spec: AttachSpec, pool: PoolSpec) -> Iterator[Difference]:
    """All of them, the model's first."""
    if spec.model_fingerprint != pool.model_fingerprint:
        yield Difference(
            "model_fingerprint", spec.model_fingerprint.hex()[:16], pool.model_fingerprint.hex()[:16]
        )
    wanted = geometry_of(spec)
    for name in Geometry.__dataclass_fields__:
        if (mine := getattr(wanted, name)) != (theirs := getattr(pool.geometry, name)):
            yield Difference(f"geometry.{name}", mine, theirs)
    for name in ("device", "vocab_size", "dtype"):
        if (mine := getattr(spec, name)) != (theirs := getattr(pool, name)):
            yield Difference(name, mine, theirs)
    for name in ("max_model_len", "max_num_seqs"):
        if (mine := getattr(spec, name)) > (theirs := getattr(pool, name)):
            yield Difference(name, mine, theirs)


def pool_spec(spec: AttachSpec, pools: Pools, settings: KvManagerSettings) -> PoolSpec:
    """A pool as large as the memory budget allows."""
    if spec.device != "cpu":
        raise Unimplemented(f"device {spec.device}: pools on a GPU are not built yet", field="device")
    geometry = geometry_of(spec)
    layout = PoolLayout(geometry)
    num_blocks = settings.num_blocks_override or layout.blocks_in(settings.cpu_budget)
    if num_blocks < 2:
        raise PoolTooSmall(
            f"--kv-memory {settings.cpu_budget} holds {num_blocks} blocks of {layout.block_bytes} bytes, "
            "a pool needs at least 2",
            blocks=num_blocks,
            block_bytes=layout.block_bytes,
        )
    if num_blocks > MAX_POOL_BLOCKS:
        raise Invalid(
            f"--kv-memory {settings.cpu_budget} gives {num_blocks} blocks of {layout.block_bytes} bytes, "
            f"a pool has at most {MAX_POOL_BLOCKS}; lower it to {MAX_POOL_BLOCKS * layout.block_bytes} or less",
            field="kv_memory",
            most=MAX_POOL_BLOCKS * layout.block_bytes,
        )
    return PoolSpec(
        name=pools.free_name(spec.model, spec.model_fingerprint),
        geometry=geometry,
        num_blocks=num_blocks,
        model=spec.model,
        model_fingerprint=spec.model_fingerprint,
        device=spec.device,
        dtype=spec.dtype,
        max_model_len=spec.max_model_len,
        max_num_seqs=spec.max_num_seqs,
        vocab_size=spec.vocab_size,
        nonce=os.urandom(16),
    )
