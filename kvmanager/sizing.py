"""How many blocks a pool gets, and how its memory is shared. Pure: numbers in, numbers or a clear refusal out."""

from dataclasses import dataclass
from typing import Final

from kvmanager.config import KvManagerSettings
from kvmanager.errors import Invalid, NoMemory, PoolTooSmall, Unavailable
from kvmanager.gpu_memory import (
    LEGACY,
    MEMFD,
    VMM,
    DeviceFacts,
    allocation_bytes,
    pool_bytes_within,
)
from kvmanager.layout import MAX_POOL_BLOCKS, PoolLayout

LEAST_BLOCKS: Final = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """A pool's size and its exporter."""

    num_blocks: int
    exporter: str = MEMFD


def cpu_plan(layout: PoolLayout, settings: KvManagerSettings, host_bytes: int) -> Plan:
    """As many blocks as --kv-memory holds. Whether that much is free is asked when the pool is made."""
    if settings.num_blocks_override is not None:
        return Plan(settings.num_blocks_override)
    budget = settings.cpu_budget
    num_blocks = bounded(layout, layout.blocks_in(budget), f"--kv-memory {budget}")
    if budget > host_bytes:
        raise Invalid(
            f"--kv-memory {budget} is more than the {host_bytes} bytes ({host_bytes / 2**30:.2f} GiB) of this "
            "host's memory; lower it",
            field="kv_memory",
            most=host_bytes,
        )
    return Plan(num_blocks)


def set_aside(settings: KvManagerSettings, peak_bytes: int) -> int:
    """Device memory that the workers of one pool need beside it."""
    return settings.workers_on_gpu * peak_bytes


def fixed_blocks(layout: PoolLayout, settings: KvManagerSettings) -> int | None:
    """Blocks of a GPU pool whose size the user gave; None: it takes its share of the device."""
    if settings.num_blocks_override is not None:
        return settings.num_blocks_override
    if settings.kv_memory is None:
        return None
    return bounded(layout, layout.blocks_in(settings.kv_memory), f"--kv-memory {settings.kv_memory}")


def wanted_bytes(layout: PoolLayout, settings: KvManagerSettings, peak_bytes: int) -> int | None:
    """Device memory that must be free for such a pool and its workers; None: as much as can be."""
    blocks = fixed_blocks(layout, settings)
    if blocks is None:
        return None
    return allocation_bytes(blocks * layout.block_bytes) + set_aside(settings, peak_bytes)


def gpu_plan(
    layout: PoolLayout, settings: KvManagerSettings, facts: DeviceFacts, peak_bytes: int, others: int
) -> Plan:
    """A pool on a GPU of which `others` bytes belong to other pools. NoMemory or PoolTooSmall with the numbers."""
    exporter = exporter_of(facts, settings.gpu_ipc)
    aside = set_aside(settings, peak_bytes)
    blocks = fixed_blocks(layout, settings)
    if blocks is None:
        return Plan(share(layout, settings, facts, aside, others), exporter)
    asked = allocation_bytes(blocks * layout.block_bytes)
    if asked + aside > facts.free:
        raise NoMemory(
            f"{asked} bytes of GPU memory asked for ({asked / 2**30:.2f} GiB) beside {aside} set aside for "
            f"{settings.workers_on_gpu} workers, {facts.free} of {facts.total} free "
            f"({facts.free / 2**30:.2f} GiB); lower --kv-memory or --max-workers",
            asked=asked,
            available=max(facts.free - aside, 0),
            total=facts.total,
        )
    return Plan(blocks, exporter)


def share(
    layout: PoolLayout, settings: KvManagerSettings, facts: DeviceFacts, aside: int, others: int
) -> int:
    """Blocks of what --gpu-memory-utilization leaves, and of no more than what is free."""
    part = settings.gpu_memory_utilization
    budget = min(int(part * facts.total) - others, facts.free) - aside
    what = (
        f"--gpu-memory-utilization {part:g} of {facts.total} bytes, less {aside} for {settings.workers_on_gpu} "
        f"workers (--max-workers) and {others} of other pools, with {facts.free} free, leaves {max(budget, 0)} and"
    )
    return bounded(layout, layout.blocks_in(pool_bytes_within(budget)), what)


def exporter_of(facts: DeviceFacts, wish: str) -> str:
    """The best way to share memory that this GPU has, or the one that --gpu-ipc forces."""
    works = {"vmm": facts.vmm, "legacy": facts.legacy}
    chosen = [name for name in works if works[name] and wish in ("auto", name)]
    if not chosen:
        able = ", ".join(name for name in works if works[name]) or "none"
        raise Unavailable(
            f"--gpu-ipc {wish}: this GPU's memory cannot be shared so; what works here: {able}",
            field="gpu_ipc",
        )
    return {"vmm": VMM, "legacy": LEGACY}[chosen[0]]


def bounded(layout: PoolLayout, blocks: int, what: str) -> int:
    """`blocks`, if a pool may have so many. `what` says where the number comes from."""
    if blocks < LEAST_BLOCKS:
        raise PoolTooSmall(
            f"{what} holds {blocks} blocks of {layout.block_bytes} bytes, "
            f"a pool needs at least {LEAST_BLOCKS}",
            blocks=blocks,
            block_bytes=layout.block_bytes,
        )
    if blocks > MAX_POOL_BLOCKS:
        most = MAX_POOL_BLOCKS * layout.block_bytes
        raise Invalid(
            f"{what} gives {blocks} blocks of {layout.block_bytes} bytes, "
            f"a pool has at most {MAX_POOL_BLOCKS}; lower it to {most} or less",
            field="kv_memory",
            most=most,
        )
    return blocks
