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
from kvmanager.errors import Invalid, KvError, Mismatch, Unavailable
from kvmanager.gpu_memory import DEVICE
from kvmanager.layout import Geometry, PoolLayout, PoolSpec
from kvmanager.memory import host_bytes
from kvmanager.pools import Pool, Pools
from kvmanager.sizing import Plan, cpu_plan, gpu_plan, wanted_bytes


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
    """The worker's pool, found or made. Mismatch, NoMemory, PoolTooSmall or Unavailable if there can be none."""
    pool = pools.of_model(spec.model)
    if pool is not None:
        different = next(differences(spec, pool.spec), None)
        if different is None and pool.can_be_shared():
            return pool
        if not pool.idle():
            raise in_use(pool, different)
        reason = f"a worker with another {different.field} attaches" if different else "its allocator is gone"
        pools.drop(pool, f"unused, and {reason}")
    return pools.create(pool_spec(spec, pools, settings))


def in_use(pool: Pool, different: Difference | None) -> KvError:
    """Why a worker cannot have a pool that others use."""
    if different is None:
        return Unavailable(
            f"pool {pool.spec.name}: its GPU memory was shared by legacy IPC, and the process that allocated it "
            "is gone; a new pool can be made once the workers that still have it are gone"
        )
    return Mismatch(
        f"{different.field}: this worker has {different.worker}, "
        f"pool {pool.spec.name} has {different.pool} and is in use",
        field=different.field,
        worker=different.worker,
        pool=different.pool,
    )


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
    """A pool as large as the memory budget allows. May drop idle pools of its GPU, to count what they leave."""
    geometry = geometry_of(spec)
    plan = plan_of(spec, PoolLayout(geometry), pools, settings)
    return PoolSpec(
        name=pools.free_name(spec.model, spec.model_fingerprint),
        geometry=geometry,
        num_blocks=plan.num_blocks,
        model=spec.model,
        model_fingerprint=spec.model_fingerprint,
        device=spec.device,
        dtype=spec.dtype,
        max_model_len=spec.max_model_len,
        max_num_seqs=spec.max_num_seqs,
        vocab_size=spec.vocab_size,
        nonce=os.urandom(16),
        exporter=plan.exporter,
    )


def plan_of(spec: AttachSpec, layout: PoolLayout, pools: Pools, settings: KvManagerSettings) -> Plan:
    if spec.device == "cpu":
        return cpu_plan(layout, settings, host_bytes())
    if not DEVICE.fullmatch(spec.device):
        raise Invalid(
            f"device: {spec.device!r}, expected cpu or a GPU's UUID such as GPU-0a1b…", field="device"
        )
    facts = pools.make_gpu_room(spec.device, wanted_bytes(layout, settings, spec.peak_bytes))
    return gpu_plan(layout, settings, facts, spec.peak_bytes, pools.bytes_on(spec.device))
