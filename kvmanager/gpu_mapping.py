"""A pool in GPU memory as torch sees it, in a worker; and the one function that maps a pool wherever it is.

    guard | blocks … nonce | guard        guards are address space without memory: whoever runs over an end faults

The memory is imported, not copied, and stays mapped until the last tensor made from it is gone. With legacy IPC the
driver picks the address and there are no guards. Owns the mapping, not the descriptor.
"""

import os
import weakref
from collections.abc import Callable
from typing import Any, Final, Protocol

import torch

from kvmanager.client_attach import Attachment
from kvmanager.errors import KvError, Mismatch
from kvmanager.gpu_driver import CudaDriver, Driver, DriverError, find, unavailable
from kvmanager.gpu_memory import (
    GRANULE,
    HANDLE_FILE_BYTES,
    LEGACY,
    MEMFD,
    NONCE_BYTES,
    VMM,
    allocation_bytes,
    decode_handle,
    nonce_at,
)
from kvmanager.layout import PoolLayout
from kvmanager.mapping import Mapping, PoolMapping, as_pool

GUARD: Final = GRANULE  # bytes of address space at each end


def map_pool(attachment: Attachment, layout: PoolLayout) -> "PoolMapping | GpuPoolMapping":
    """The pool of this attachment. Mismatch or Unavailable if it is not what the KV manager said."""
    if attachment.exporter == MEMFD:
        return PoolMapping(attachment.pool_fd, layout, attachment.num_blocks)
    return GpuPoolMapping(
        attachment.pool_fd,
        layout,
        attachment.num_blocks,
        device=attachment.device,
        exporter=attachment.exporter,
        nonce=attachment.nonce,
        allocation=attachment.allocation_bytes,
    )


class Memory(Protocol):
    """Device memory at an address of this process, unmapped when nobody refers to it any more."""

    address: int
    index: int  # of the device


class VmmMemory:
    """An exported allocation between two guards."""

    def __init__(self, driver: Driver, index: int, fd: int, size: int) -> None:
        self.index = index
        handle = driver.import_fd(fd)
        try:
            base = driver.reserve(size + 2 * GUARD)
            self.address = base + GUARD
            try:
                driver.map(self.address, size, handle)
            except DriverError:
                driver.unreserve(base, size + 2 * GUARD)
                raise
        finally:
            driver.release(handle)  # the mapping holds the memory by itself
        release_with(self, _unmap, driver, base, size)


def _unmap(driver: Driver, base: int, size: int) -> None:
    driver.synchronize()
    driver.unmap(base + GUARD, size)
    driver.unreserve(base, size + 2 * GUARD)


class LegacyMemory:
    """Memory of an allocator that is alive. Stays mapped even if that one ends."""

    def __init__(self, driver: Driver, index: int, fd: int, size: int) -> None:
        self.index = index
        handle, allocation = decode_handle(os.pread(fd, HANDLE_FILE_BYTES, 0))
        if allocation != size:
            raise Mismatch(f"pool's handle is for {allocation} bytes, the KV manager said {size}")
        self.address = driver.open_shared(handle)
        release_with(self, _close, driver, self.address)


def _close(driver: Driver, address: int) -> None:
    driver.synchronize()
    driver.close_shared(address)


def release_with(owner: object, function: Callable[..., None], *arguments: Any) -> None:
    """Calls it when `owner` is gone; not at the end of the process, when the driver may be gone before."""
    weakref.finalize(owner, function, *arguments).atexit = False


KINDS: Final[dict[str, Callable[[Driver, int, int, int], Memory]]] = {VMM: VmmMemory, LEGACY: LegacyMemory}


class Span:
    """`size` bytes of device memory, as torch asks for them. A tensor made from it keeps it, so the memory."""

    def __init__(self, memory: Memory, size: int) -> None:
        self.memory = memory
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (memory.address, False),
            "version": 2,
        }


def cuda_bytes(memory: Memory, size: int) -> torch.Tensor:
    """The memory's first bytes: uint8 [size] on its GPU, no copy."""
    torch.cuda.init()  # type: ignore[no-untyped-call]
    data = torch.as_tensor(Span(memory, size), device=f"cuda:{memory.index}")
    assert data.data_ptr() == memory.address, "torch made a copy of the pool"
    return data


class GpuPoolMapping(Mapping):
    """Maps a pool of `num_blocks` blocks on the GPU with UUID `device`, readable and writable.

    Mismatch if size or nonce are not those of the attachment, Unavailable where the driver refuses.
    """

    def __init__(
        self,
        fd: int,
        layout: PoolLayout,
        num_blocks: int,
        *,
        device: str,
        exporter: str,
        nonce: bytes,
        allocation: int,
        driver: Driver | None = None,
        as_bytes: Callable[[Memory, int], torch.Tensor] = cuda_bytes,
    ) -> None:
        pool_bytes = num_blocks * layout.block_bytes
        if exporter not in KINDS:
            raise Mismatch(f"exporter: {exporter!r}, this worker maps {', '.join([MEMFD, *KINDS])}")
        if allocation != (expected := allocation_bytes(pool_bytes)):
            raise Mismatch(f"pool of {allocation} bytes of GPU memory, expected {expected}")
        try:
            memory = open_memory(driver or CudaDriver(), fd, allocation, (device, exporter, nonce))
        except DriverError as error:
            raise refused(device, exporter, error) from None
        self._pool = as_pool(as_bytes(memory, pool_bytes), layout, num_blocks)


def open_memory(driver: Driver, fd: int, allocation: int, wanted: tuple[str, str, bytes]) -> Memory:
    """The memory behind the descriptor, on this device, shared this way, with this nonce at its end."""
    device, exporter, nonce = wanted
    index = find(driver, device)
    driver.enter(index)
    memory = KINDS[exporter](driver, index, fd, allocation)
    if driver.read(memory.address + nonce_at(allocation), NONCE_BYTES) != nonce:
        raise Mismatch("nonce: the GPU memory behind the pool's descriptor is another pool's", field="nonce")
    return memory


def refused(device: str, exporter: str, error: DriverError) -> KvError:
    return unavailable(
        device, error, f"; the pool is shared as {exporter}, and must be of this GPU and this driver"
    )
