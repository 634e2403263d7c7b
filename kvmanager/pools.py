"""The daemon's pools: their memory, made or found again through the keeper, and the state over it.

A pool is two descriptors that the keeper holds as `pool.NAME` and `meta.NAME`. What the metadata says is the state's
business; which worker may share a pool is `attach`'s.
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

from kvmanager.errors import NoMemory
from kvmanager.keeper_link import KeeperLink
from kvmanager.layout import CorruptMetadata, MetaLayout, PoolLayout, PoolSpec
from kvmanager.memory import Beat, Exporter, check_available, read_only
from kvmanager.state import KvState

POOL: Final = "pool."
META: Final = "meta."

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Pool:
    """One pool and its memory. Descriptors are this process's own copies."""

    spec: PoolSpec
    state: KvState
    pool_fd: int
    metadata_fd: int
    readers_fd: int  # the metadata again, read-only, for workers

    @property
    def pool_bytes(self) -> int:
        return self.spec.num_blocks * PoolLayout(self.spec.geometry).block_bytes

    @property
    def metadata_bytes(self) -> int:
        return MetaLayout(self.spec).total_bytes

    def idle(self) -> bool:
        """Whether nobody would miss it: no session that may still write, no sequence to be finished."""
        return not self.state.sessions() and not self.state.live_sequences


class Pools:
    """All pools of the daemon, by name."""

    def __init__(
        self,
        keeper: KeeperLink,
        exporters: dict[str, Exporter],
        beat: Beat,
        beating: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """`beat` is called between slices of long work; within `beating()` nobody needs to."""
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
                self._recover_one(name)
                self._beat()
        for half in names - {prefix + name for name in self.by_name for prefix in (POOL, META)}:
            if half in self._keeper.names():
                log.warning("dropping memory that belongs to no whole pool", name=half)
                self._keeper.drop(half)

    def _recover_one(self, name: str) -> None:
        pool_fd, metadata_fd = self._keeper.get(POOL + name), self._keeper.get(META + name)
        try:
            buffer = mmap.mmap(metadata_fd, os.fstat(metadata_fd).st_size)
            with self._beating():
                state = KvState.recover(buffer, time.monotonic_ns())
            spec = MetaLayout.from_header(buffer).spec
            expected = spec.num_blocks * PoolLayout(spec.geometry).block_bytes
            if spec.name != name or os.fstat(pool_fd).st_size != expected:
                raise CorruptMetadata(
                    f"metadata of pool {spec.name} with {expected} bytes beside other memory"
                )
        except CorruptMetadata as error:
            log.error("the pool's metadata cannot be trusted; its KV is dropped", pool=name, error=str(error))
            os.close(pool_fd)
            os.close(metadata_fd)
            return
        self.by_name[name] = Pool(spec, state, pool_fd, metadata_fd, read_only(metadata_fd))
        log.info("pool recovered", pool=name, boot_epoch=state.boot_epoch, blocks=spec.num_blocks)

    # ------------------------------------------------------------------------------------- make and drop

    def create(self, spec: PoolSpec) -> Pool:
        """A new pool; idle ones make room for it. NoMemory if the host cannot hold it even so."""
        exporter = self._exporters[spec.exporter]
        pool_bytes = spec.num_blocks * PoolLayout(spec.geometry).block_bytes
        metadata_bytes = MetaLayout(spec).total_bytes
        self._make_room(pool_bytes + metadata_bytes)
        started = time.monotonic()
        metadata_fd = self._exporters["memfd"].create(META + spec.name, metadata_bytes, self._beat)
        try:
            pool_fd = exporter.create(POOL + spec.name, pool_bytes, self._beat)
        except BaseException:
            os.close(metadata_fd)
            raise
        state = KvState.create(mmap.mmap(metadata_fd, metadata_bytes), spec, time.monotonic_ns())
        self._keeper.put(META + spec.name, metadata_fd)
        self._keeper.put(POOL + spec.name, pool_fd)
        pool = Pool(spec, state, pool_fd, metadata_fd, read_only(metadata_fd))
        self.by_name[spec.name] = pool
        log.info(
            "pool created",
            pool=spec.name,
            blocks=spec.num_blocks,
            pool_bytes=pool_bytes,
            metadata_bytes=metadata_bytes,
            seconds=round(time.monotonic() - started, 3),
        )
        return pool

    def _make_room(self, size_bytes: int) -> None:
        """Drops idle pools, the first made first, until `size_bytes` are available."""
        idle = [pool for pool in self if pool.idle()]
        while True:
            try:
                check_available(size_bytes)
                return
            except NoMemory:
                if not idle:
                    raise
            self.drop(idle.pop(0), "another pool needs its memory")

    def drop(self, pool: Pool, reason: str) -> None:
        """Forgets the pool and frees its memory."""
        log.warning("pool dropped", pool=pool.spec.name, reason=reason, bytes=pool.pool_bytes)
        del self.by_name[pool.spec.name]
        self._keeper.drop(POOL + pool.spec.name)
        self._keeper.drop(META + pool.spec.name)
        for fd in (pool.pool_fd, pool.metadata_fd, pool.readers_fd):
            os.close(fd)

    def free_name(self, model: str, fingerprint: bytes) -> str:
        """A name for a pool of this model that no pool has: readable, and fit for the keeper."""
        base = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:32] or "model"
        name = stem = f"{base}-{fingerprint.hex()[:8]}"
        number = 1
        while name in self.by_name:
            number += 1
            name = f"{stem}-{number}"
        return name
