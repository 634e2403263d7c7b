"""The daemon's pools: their memory, made or found again through the keeper, and the state over it.

A pool is two descriptors that the keeper holds as `pool.NAME` and `meta.NAME`, and with legacy IPC a third,
`hold.NAME`: the allocator's process lives until it is closed. What the metadata says is the state's business; which
worker may share a pool is `attach`'s.
"""

import mmap
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Final

import structlog

from kvmanager import fds
from kvmanager.errors import KvError, Mismatch, NoMemory
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
from kvmanager.renewal import GivenUp, doubt, end_workers, give_up
from kvmanager.salvage import Carried
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

    def recover(self, fast_crashes: int = 0) -> None:
        """Takes over what a former daemon left with the keeper. Of what cannot be trusted the requests are kept, the KV
        is not, and the log says so (rule 14); `fast_crashes` daemons before this one are reason enough."""
        names = set(self._keeper.names())
        for name in sorted(n.removeprefix(META) for n in names if n.startswith(META)):
            self._recover_one(
                name, {prefix for prefix in (POOL, HOLD) if prefix + name in names}, fast_crashes
            )
            self._beat()
        for half in names - {prefix + name for name in self.by_name for prefix in (POOL, META, HOLD)}:
            if half in self._keeper.names():
                log.warning("dropping memory that belongs to no whole pool", name=half)
                self._keeper.drop(half)

    def _recover_one(self, name: str, there: set[str], fast_crashes: int) -> None:
        metadata_fd = self._keeper.get(META + name)
        held = {prefix: self._keeper.get(prefix + name) for prefix in there}
        buffer = mmap.mmap(metadata_fd, os.fstat(metadata_fd).st_size)
        try:
            doubt(fast_crashes)
            if POOL not in held:
                raise CorruptMetadata("its memory is gone")
            memory = Memory(held[POOL], held.get(HOLD))
            self._trust(name, buffer, memory, metadata_fd)
        except CorruptMetadata as error:
            os.close(metadata_fd)
            with self._beating():
                given_up = give_up(buffer, name)
            self._let_go(name, held)
            self._renew(name, given_up, str(error))

    def _trust(self, name: str, buffer: mmap.mmap, memory: Memory, metadata_fd: int) -> None:
        """Goes on with the pool as it is. CorruptMetadata if that cannot be."""
        with self._beating():
            state = KvState.recover(buffer, time.monotonic_ns())
        if state.spec.name != name or not belongs(memory, state.spec):
            raise CorruptMetadata(
                f"metadata of pool {state.spec.name} beside other memory, or memory that is gone"
            )
        self.by_name[name] = Pool(
            state.spec, state, memory.pool_fd, metadata_fd, read_only(metadata_fd), memory.hold_fd
        )
        log.info("pool recovered", pool=name, boot_epoch=state.boot_epoch, blocks=state.spec.num_blocks)

    def _let_go(self, name: str, held: dict[str, int]) -> None:
        """Neither the keeper nor this process has the memory any more."""
        for prefix in held:
            self._keeper.drop(prefix + name)
        if HOLD in held:
            self._gpus.let_go(held.pop(HOLD))
        fds.close_all(tuple(held.values()))

    def _renew(self, name: str, given_up: GivenUp | None, reason: str) -> None:
        """The requests of a pool that was given up, in a new one."""
        dropped = 0 if given_up is None else given_up.salvage.dropped
        if given_up is None or not given_up.salvage.carried:
            log.error(
                "the pool is dropped: its metadata cannot be trusted", pool=name, reason=reason, bad=dropped
            )
            return
        spec, found = replace(given_up.spec, nonce=os.urandom(16)), given_up.salvage
        try:
            self._create_again(spec, given_up)
        except KvError as error:
            log.error("the pool is dropped: there is no memory for a new one", pool=name, error=error.message)
            return
        log.error(
            "the pool's KV is dropped: its metadata cannot be trusted; its requests are kept",
            pool=name,
            reason=reason,
            live=found.live,
            finished=len(found.carried) - found.live,
            records_dropped=found.dropped,
            slots_lost=found.lost_slots,
        )

    def _create_again(self, spec: PoolSpec, given_up: GivenUp) -> None:
        try:
            self.create(spec, given_up.salvage.carried)
        except NoMemory as error:
            log.warning("former workers are killed for their memory", pool=spec.name, error=error.message)
            with self._beating():
                end_workers(given_up.workers)
            self.create(spec, given_up.salvage.carried)

    # ------------------------------------------------------------------------------------- make and drop

    def create(self, spec: PoolSpec, carried: Iterable[Carried] = ()) -> Pool:
        """A new pool, with another's requests; idle ones make room for it. NoMemory if host or device cannot hold it
        even so."""
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
        state.carry(carried)
        if memory.hold_fd is not None:
            self._keeper.put(HOLD + spec.name, memory.hold_fd)
        self._keeper.put(POOL + spec.name, memory.pool_fd)
        self._keeper.put(META + spec.name, metadata_fd)  # last: it says that there is a pool
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
        self._keeper.drop(META + pool.spec.name)  # first: without it the rest is no pool
        self._keeper.drop(POOL + pool.spec.name)
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
