"""The daemon's pools: their memory, made or found again through the keeper, and the state over it.

A pool is two descriptors that the keeper holds as `pool.NAME` and `meta.NAME`, and with legacy IPC a third,
`hold.NAME`: the allocator's process lives until it is closed. What the metadata says is the state's business; which
worker may share a pool is `attach`'s.
"""

import mmap
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

import structlog

from kvmanager import fds
from kvmanager.errors import Mismatch, NoMemory
from kvmanager.gpu_memory import (
    HANDLE_FILE_BYTES,
    LEGACY,
    MEMFD,
    DeviceFacts,
    allocation_bytes,
    decode_handle,
)
from kvmanager.gpu_pools import GpuAllocators, Memory
from kvmanager.keeper_link import KeeperLink
from kvmanager.layout import CorruptMetadata, MetaLayout, PoolLayout, PoolSpec
from kvmanager.memory import Beat, Exporter, check_available, read_only
from kvmanager.state import KvState

POOL: Final = "pool."
META: Final = "meta."
HOLD: Final = "hold."

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Pool:
    """One pool and its memory. Descriptors are this process's own copies."""

    spec: PoolSpec
    state: KvState
    pool_fd: int
    metadata_fd: int
    readers_fd: int  # the metadata again, read-only, for workers
    hold_fd: int | None = None  # the lifeline of a legacy pool's allocator

    @property
    def pool_bytes(self) -> int:
        return self.spec.num_blocks * PoolLayout(self.spec.geometry).block_bytes

    @property
    def allocation_bytes(self) -> int:
        """What the pool takes of its device."""
        return self.pool_bytes if self.spec.exporter == MEMFD else allocation_bytes(self.pool_bytes)

    @property
    def metadata_bytes(self) -> int:
        return MetaLayout(self.spec).total_bytes

    def idle(self) -> bool:
        """Whether nobody would miss it: no session that may still write, no sequence to be finished."""
        return not self.state.sessions() and not self.state.live_sequences

    def can_be_shared(self) -> bool:
        """Whether one more worker could map it: not once the allocator of a legacy pool is gone."""
        return self.hold_fd is None or not fds.readable(self.hold_fd)


class Pools:
    """All pools of the daemon, by name."""

    def __init__(
        self,
        keeper: KeeperLink,
        exporters: dict[str, Exporter],
        beat: Beat,
        beating: Callable[[], AbstractContextManager[None]],
        gpus: GpuAllocators | None = None,
    ) -> None:
        """`beat` is called between slices of long work; within `beating()` nobody needs to."""
        self._gpus = gpus or GpuAllocators(beating)
        self._keeper, self._exporters, self._beat, self._beating = keeper, exporters, beat, beating
        self.by_name: dict[str, Pool] = {}

    def __iter__(self) -> Iterator[Pool]:
        return iter(self.by_name.values())

    def of_model(self, model: str) -> Pool | None:
        return next((pool for pool in self if pool.spec.model == model), None)

    # ------------------------------------------------------------------------------------- find again

    def recover(self) -> None:
        """Takes over what a former daemon left with the keeper. What cannot be trusted is dropped, loudly."""
        names = set(self._keeper.names())
        for name in sorted(n.removeprefix(META) for n in names if n.startswith(META)):
            if POOL + name in names:
                self._recover_one(name, held=HOLD + name in names)
                self._beat()
        for half in names - {prefix + name for name in self.by_name for prefix in (POOL, META, HOLD)}:
            if half in self._keeper.names():
                log.warning("dropping memory that belongs to no whole pool", name=half)
                self._keeper.drop(half)

    def _recover_one(self, name: str, *, held: bool) -> None:
        pool_fd, metadata_fd = self._keeper.get(POOL + name), self._keeper.get(META + name)
        memory = Memory(pool_fd, self._keeper.get(HOLD + name) if held else None)
        try:
            buffer = mmap.mmap(metadata_fd, os.fstat(metadata_fd).st_size)
            with self._beating():
                state = KvState.recover(buffer, time.monotonic_ns())
            spec = MetaLayout.from_header(buffer).spec
            if spec.name != name or not belongs(memory, spec):
                raise CorruptMetadata(
                    f"metadata of pool {spec.name} beside other memory, or memory that is gone"
                )
        except CorruptMetadata as error:
            log.error("the pool's metadata cannot be trusted; its KV is dropped", pool=name, error=str(error))
            fds.close_all((*memory.fds, metadata_fd))
            return
        self.by_name[name] = Pool(spec, state, pool_fd, metadata_fd, read_only(metadata_fd), memory.hold_fd)
        log.info("pool recovered", pool=name, boot_epoch=state.boot_epoch, blocks=spec.num_blocks)

    # ------------------------------------------------------------------------------------- make and drop

    def create(self, spec: PoolSpec) -> Pool:
        """A new pool; idle ones make room for it. NoMemory if host or device cannot hold it even so."""
        pool_bytes = spec.num_blocks * PoolLayout(spec.geometry).block_bytes
        metadata_bytes = MetaLayout(spec).total_bytes
        self._make_room(metadata_bytes + (pool_bytes if spec.exporter in self._exporters else 0))
        started = time.monotonic()
        metadata_fd = self._exporters["memfd"].create(META + spec.name, metadata_bytes, self._beat)
        try:
            memory = self._allocate(spec, pool_bytes)
        except BaseException:
            os.close(metadata_fd)
            raise
        state = KvState.create(mmap.mmap(metadata_fd, metadata_bytes), spec, time.monotonic_ns())
        if memory.hold_fd is not None:
            self._keeper.put(HOLD + spec.name, memory.hold_fd)
        self._keeper.put(META + spec.name, metadata_fd)
        self._keeper.put(POOL + spec.name, memory.pool_fd)
        pool = Pool(spec, state, memory.pool_fd, metadata_fd, read_only(metadata_fd), memory.hold_fd)
        self.by_name[spec.name] = pool
        log.info(
            "pool created",
            pool=spec.name,
            device=spec.device,
            exporter=spec.exporter,
            blocks=spec.num_blocks,
            pool_bytes=pool_bytes,
            metadata_bytes=metadata_bytes,
            seconds=round(time.monotonic() - started, 3),
        )
        return pool

    def _allocate(self, spec: PoolSpec, pool_bytes: int) -> Memory:
        exporter = self._exporters.get(spec.exporter)
        if exporter is not None:
            return Memory(exporter.create(POOL + spec.name, pool_bytes, self._beat))
        return self._gpus.create(spec.exporter, spec.device, allocation_bytes(pool_bytes), spec.nonce)

    def _idle_on(self, device: str) -> list[Pool]:
        return [pool for pool in self if pool.spec.device == device and pool.idle()]

    def _make_room(self, size_bytes: int) -> None:
        """Drops idle pools of the host's memory, the first made first, until `size_bytes` are available."""
        idle = self._idle_on("cpu")
        while True:
            try:
                check_available(size_bytes)
                return
            except NoMemory:
                if not idle:
                    raise
            self.drop(idle.pop(0), "another pool needs its memory")

    def bytes_on(self, device: str) -> int:
        """What all pools take of this device."""
        return sum(pool.allocation_bytes for pool in self if pool.spec.device == device)

    def make_gpu_room(self, device: str, wanted: int | None) -> DeviceFacts:
        """Drops idle pools of a GPU, the first made first, until `wanted` bytes are free; None: all of them.

        The facts are those afterwards. Unavailable if there is no such GPU.
        """
        facts = self._gpus.facts(device)
        idle, free = self._idle_on(device), facts.free
        if not idle or (wanted is not None and free >= wanted):
            return facts
        while idle and (wanted is None or free < wanted):
            free += idle[0].allocation_bytes
            self.drop(idle.pop(0), "another pool needs its memory")
        return self._gpus.facts(device)

    def drop(self, pool: Pool, reason: str) -> None:
        """Forgets the pool and frees its memory."""
        log.warning("pool dropped", pool=pool.spec.name, reason=reason, bytes=pool.pool_bytes)
        del self.by_name[pool.spec.name]
        self._keeper.drop(POOL + pool.spec.name)
        self._keeper.drop(META + pool.spec.name)
        if pool.hold_fd is not None:
            self._gpus.let_go(pool.hold_fd)
            self._keeper.drop(HOLD + pool.spec.name)
        fds.close_all((pool.pool_fd, pool.metadata_fd, pool.readers_fd))

    def free_name(self, model: str, fingerprint: bytes) -> str:
        """A name for a pool of this model that no pool has: readable, and fit for the keeper."""
        base = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:32] or "model"
        name = stem = f"{base}-{fingerprint.hex()[:8]}"
        number = 1
        while name in self.by_name:
            number += 1
            name = f"{stem}-{number}"
        return name


def belongs(memory: Memory, spec: PoolSpec) -> bool:
    """Whether this memory is still there and may be the spec's, as far as its descriptors tell."""
    pool_bytes = spec.num_blocks * PoolLayout(spec.geometry).block_bytes
    if spec.exporter == MEMFD:
        return os.fstat(memory.pool_fd).st_size == pool_bytes
    if spec.exporter != LEGACY:
        return (
            memory.hold_fd is None
        )  # the driver's descriptors have no size; the nonce says whose memory it is
    if memory.hold_fd is None or fds.readable(memory.hold_fd):
        return False
    try:
        _, allocation = decode_handle(os.pread(memory.pool_fd, HANDLE_FILE_BYTES, 0))
    except (OSError, Mismatch):
        return False
    return allocation == allocation_bytes(pool_bytes)
