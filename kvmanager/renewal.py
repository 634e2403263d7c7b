"""A pool whose KV is given up, and what is done to its memory and its workers. Protocol rule 14.

    condemned   boot_epoch 0 in the old metadata: whoever finds it later gives it up too, whatever happened in between
    let go      the old memory leaves the keeper: it is whose who still maps it, and nobody is told of it again
    renewed     new memory with a new nonce, new metadata with the requests (`salvage`)

A living worker of the old pool is refused when it attaches again, and ends. Where its memory is needed it is killed.
"""

import mmap
import os
import select
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, NamedTuple

from kvmanager import fds
from kvmanager.layout import CorruptMetadata, MetaLayout, MetaView, PoolSpec
from kvmanager.salvage import Salvage, salvage
from kvmanager.store import Store, condemn

FAST_CRASHES: Final = 3  # in a row, and no metadata is trusted
END_BOUND_S: Final = 10.0  # for killed workers


class GivenUp(NamedTuple):
    """What the old metadata still says."""

    spec: PoolSpec
    salvage: Salvage
    workers: list[tuple[int, int]]  # (pid, start time) of its sessions


def doubt(fast_crashes: int) -> None:
    """CorruptMetadata after too many daemons that ended soon after they began: it may be the metadata's fault."""
    if fast_crashes >= FAST_CRASHES:
        raise CorruptMetadata(f"{fast_crashes} daemons in a row crashed soon after they began")


def give_up(buffer: mmap.mmap, name: str) -> GivenUp | None:
    """Reads what holds of the pool, and condemns it. None if not even the header holds."""
    try:
        layout = MetaLayout.from_header(buffer)
    except CorruptMetadata:
        return None
    if layout.spec.name != name:
        return None
    with suppress(CorruptMetadata):  # of an operation that happened, what can be had
        Store(buffer, layout).replay()
    found = salvage(buffer, layout, time.monotonic_ns())
    condemn(buffer)
    return GivenUp(layout.spec, found, former_workers(layout.view(buffer)))


def former_workers(view: MetaView) -> list[tuple[int, int]]:
    records = view.sessions[view.sessions["state"] != 0]
    return [(int(record["pid"]), int(record["start_time"])) for record in records]


def end_workers(workers: Iterable[tuple[int, int]]) -> None:
    """SIGKILL, to the processes that are still the same, and waits for their end."""
    pidfds = [pidfd for pid, started in workers if (pidfd := living(pid, started)) is not None]
    deadline = time.monotonic() + END_BOUND_S
    for pidfd in pidfds:
        with suppress(OSError):  # gone meanwhile
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    for pidfd in pidfds:
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        ended.poll(max(0.0, deadline - time.monotonic()) * 1000)
        os.close(pidfd)


def living(pid: int, started: int) -> int | None:
    """A pidfd, if a record that cannot be trusted names a process that there is."""
    return fds.watch_process(pid, started) if 1 < pid < 2**22 and pid != os.getpid() else None
