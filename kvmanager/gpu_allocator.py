"""The process that makes a pool in GPU memory, so that the daemon never has a CUDA context.

    python -m kvmanager.gpu_allocator query  DEVICE             FD    → OK and the numbers of DeviceFacts
    python -m kvmanager.gpu_allocator vmm    DEVICE BYTES NONCE FD    → OK + the allocation's descriptor, and exits
    python -m kvmanager.gpu_allocator legacy DEVICE BYTES NONCE FD    → OK + a memfd with the handle + a lifeline

FD is an inherited SEQPACKET socket, on which one packet answers; `NO code` and a message when it cannot be done.
BYTES are those of the whole allocation. A legacy allocation ends with its process, so that one stays until the other
end of its lifeline has been closed by all who hold it: it outlives the daemon, and needs no signal to end.
"""

import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from kvmanager import fds
from kvmanager.errors import KvError, NoMemory, Unavailable, Unimplemented
from kvmanager.gpu_driver import OUT_OF_MEMORY, CudaDriver, Driver, DriverError, find, unavailable
from kvmanager.gpu_memory import (
    GRANULE,
    DeviceFacts,
    encode_facts,
    encode_handle,
    encode_refusal,
    nonce_at,
)
from kvmanager.memory import sealed_file


@dataclass(frozen=True, slots=True)
class Job:
    """One request: the device's driver, its context entered, and the socket that wants the answer."""

    driver: Driver
    index: int
    device: str
    link: socket.socket


def main(argv: Sequence[str], make_driver: Callable[[], Driver] = CudaDriver) -> int:
    verb, device, *rest, fd = argv
    with socket.socket(fileno=int(fd)) as link:
        try:
            VERBS[verb](begin(make_driver(), device, link), *rest)
        except DriverError as error:
            return refuse(link, unavailable(device, error))
        except KvError as error:
            return refuse(link, error)
    return 0


def begin(driver: Driver, device: str, link: socket.socket) -> Job:
    index = find(driver, device)
    if driver.traits(index).mps:
        raise Unavailable(
            f"{device}: a CUDA multi-process server (MPS) runs there, with which one worker's fault would end "
            "them all; stop it"
        )
    driver.enter(index)
    return Job(driver, index, device, link)


def refuse(link: socket.socket, error: KvError) -> int:
    fds.send(link, encode_refusal(error))
    return 1


# ---------------------------------------------------------------------------------------------- query


def query(job: Job) -> None:
    free, total = job.driver.memory()
    traits = job.driver.traits(job.index)
    facts = DeviceFacts(
        total=total,
        free=free,
        major=traits.major,
        minor=traits.minor,
        vmm=int(traits.posix_fd and works(try_vmm, job.driver)),
        legacy=int(works(try_legacy, job.driver)),
    )
    fds.send(job.link, encode_facts(facts))


def works(attempt: Callable[[Driver], None], driver: Driver) -> bool:
    try:
        attempt(driver)
    except DriverError as error:
        return error.name == OUT_OF_MEMORY  # a full device can share; the pool's size is judged later
    except Unimplemented:
        return False
    return True


def try_vmm(driver: Driver) -> None:
    """Makes and exports one granule."""
    check_granularity(driver)
    handle = driver.create(GRANULE)
    try:
        os.close(driver.export(handle))
    finally:
        driver.release(handle)


def try_legacy(driver: Driver) -> None:
    address = driver.allocate(GRANULE)
    try:
        driver.share(address)
    finally:
        driver.deallocate(address)


def check_granularity(driver: Driver) -> None:
    if GRANULE % (least := driver.granularity()):
        raise Unimplemented(f"allocations of this GPU are multiples of {least} bytes, expected {GRANULE}")


# ---------------------------------------------------------------------------------------------- vmm


def vmm(job: Job, size: str, nonce: str) -> None:
    check_granularity(job.driver)
    with enough(job, int(size)):
        handle = job.driver.create(int(size))
    with mapped(job.driver, handle, int(size)) as address:
        prepare(job.driver, address, int(size), bytes.fromhex(nonce))
    fd = job.driver.export(handle)
    fds.send(job.link, b"OK", [fd])
    os.close(fd)


@contextmanager
def mapped(driver: Driver, handle: Any, size: int) -> Iterator[int]:
    """The allocation's address, for a while."""
    address = driver.reserve(size)
    driver.map(address, size, handle)
    yield address
    driver.unmap(address, size)
    driver.unreserve(address, size)


def prepare(driver: Driver, address: int, size: int, nonce: bytes) -> None:
    """Zeroes a new allocation and puts the nonce at its end."""
    driver.zero(address, size)
    driver.write(address + nonce_at(size), nonce)
    driver.synchronize()


@contextmanager
def enough(job: Job, size: int) -> Iterator[None]:
    """NoMemory with both numbers where the driver has not got that much."""
    try:
        yield
    except DriverError as error:
        if error.name != OUT_OF_MEMORY:
            raise
        free, total = job.driver.memory()
        raise NoMemory(
            f"{job.device}: {size} bytes asked for ({size / 2**30:.2f} GiB), {free} of {total} free "
            f"({free / 2**30:.2f} GiB); lower --gpu-memory-utilization or --kv-memory",
            asked=size,
            available=free,
            total=total,
        ) from None


# ---------------------------------------------------------------------------------------------- legacy


def legacy(job: Job, size: str, nonce: str) -> None:
    """Answers, then holds the memory until the lifeline's other end is gone."""
    with enough(job, int(size)):
        address = job.driver.allocate(int(size))
    prepare(job.driver, address, int(size), bytes.fromhex(nonce))
    handle = sealed_file("pool-handle", encode_handle(job.driver.share(address), int(size)))
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine:
        fds.send(job.link, b"OK", [handle, theirs.fileno()])
        os.close(handle)
        theirs.close()
        job.link.close()
        leave_the_terminal()
        while mine.recv(1):
            pass  # nobody has anything to say here
        job.driver.deallocate(address)  # before `mine` closes: its end says that the memory is free


def leave_the_terminal() -> None:
    """Whoever reads the daemon's output must not wait for this process, which outlives it."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)


VERBS: Final[dict[str, Callable[..., None]]] = {"query": query, "vmm": vmm, "legacy": legacy}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
