"""The few calls of CUDA's driver that sharing a pool takes. The only module of the KV manager that imports CUDA.

`Driver` is the seam: the allocator process and the workers' mapping speak to it. Addresses are the device's,
handles name allocations, sizes are bytes. Every call raises DriverError with the driver's own word.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from kvmanager.errors import KvError, Unavailable
from kvmanager.gpu_memory import device_name

IPC_HANDLE_BYTES: Final = 64
OUT_OF_MEMORY: Final = "CUDA_ERROR_OUT_OF_MEMORY"


class DriverError(Exception):
    """`call` failed; `name` is CUDA's, such as CUDA_ERROR_OUT_OF_MEMORY."""

    def __init__(self, call: str, name: str) -> None:
        super().__init__(f"{call}: {name}")
        self.call, self.name = call, name


@dataclass(frozen=True, slots=True)
class Traits:
    """What a device says of itself; no context is made to ask."""

    major: int
    minor: int
    posix_fd: bool
    mps: bool


class Driver(Protocol):
    def devices(self) -> Sequence[str]:
        """UUIDs of the visible devices, in the order of their numbers. Makes no context."""
        ...

    def traits(self, index: int) -> Traits: ...

    def enter(self, index: int) -> None:
        """Makes the device's primary context this thread's. All calls below are about that device."""
        ...

    def memory(self) -> tuple[int, int]:
        """(free, total)."""
        ...

    def synchronize(self) -> None: ...

    # an allocation that leaves as a descriptor

    def granularity(self) -> int: ...
    def create(self, size: int) -> Any: ...
    def release(self, handle: Any) -> None: ...
    def export(self, handle: Any) -> int: ...
    def import_fd(self, fd: int) -> Any: ...
    def reserve(self, size: int) -> int: ...
    def unreserve(self, address: int, size: int) -> None: ...
    def map(self, address: int, size: int, handle: Any) -> None: ...
    def unmap(self, address: int, size: int) -> None: ...

    # a legacy allocation

    def allocate(self, size: int) -> int: ...
    def deallocate(self, address: int) -> None: ...
    def share(self, address: int) -> bytes: ...
    def open_shared(self, handle: bytes) -> int: ...
    def close_shared(self, address: int) -> None: ...

    # bytes

    def zero(self, address: int, size: int) -> None: ...
    def write(self, address: int, data: bytes) -> None: ...
    def read(self, address: int, size: int) -> bytes: ...


def find(driver: Driver, device: str) -> int:
    """The number of the device with this UUID; Unavailable if it is not among the visible ones."""
    devices = list(driver.devices())
    if device not in devices:
        raise Unavailable(
            f"device: no {device} here; visible: {', '.join(devices) or 'none'}", field="device"
        )
    return devices.index(device)


def unavailable(device: str, error: DriverError, more: str = "") -> KvError:
    """What a user is told about a call that should not have failed."""
    return Unavailable(f"{device}: {error.call} failed with {error.name}{more}", cuda=error.name)


class CudaDriver:
    """The machine's own, through cuda-bindings. Unavailable where there is no driver or no such package."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import driver  # noqa: PLC0415 - only where a GPU is used
        except ImportError:
            raise Unavailable("cuda-bindings is not installed: pip install 'holdfast[cuda]'") from None
        self._cuda: Any = driver
        self._index = 0
        self._context: Any = None
        try:
            self._call("cuInit", 0)
        except RuntimeError as error:  # the library of the driver is not on this machine
            raise Unavailable(f"no NVIDIA driver here: {error}") from None

    def _call(self, call: str, *arguments: Any) -> Any:
        code, *results = getattr(self._cuda, call)(*arguments)
        if code != self._cuda.CUresult.CUDA_SUCCESS:
            raise DriverError(call, code.name)
        return results[0] if len(results) == 1 else results

    def devices(self) -> Sequence[str]:
        ask = "cuDeviceGetUuid_v2" if hasattr(self._cuda, "cuDeviceGetUuid_v2") else "cuDeviceGetUuid"
        numbers = range(self._call("cuDeviceGetCount"))
        return [device_name(bytes(self._call(ask, self._call("cuDeviceGet", n)).bytes)) for n in numbers]

    def traits(self, index: int) -> Traits:
        kinds = self._cuda.CUdevice_attribute
        device = self._call("cuDeviceGet", index)

        def ask(name: str) -> int:
            kind = getattr(kinds, f"CU_DEVICE_ATTRIBUTE_{name}", None)
            return 0 if kind is None else int(self._call("cuDeviceGetAttribute", kind, device))

        return Traits(
            major=ask("COMPUTE_CAPABILITY_MAJOR"),
            minor=ask("COMPUTE_CAPABILITY_MINOR"),
            posix_fd=bool(ask("HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED")),
            mps=bool(ask("MPS_ENABLED")),
        )

    def enter(self, index: int) -> None:
        self._index = index
        self._context = self._call("cuDevicePrimaryCtxRetain", self._call("cuDeviceGet", index))
        self._call("cuCtxSetCurrent", self._context)

    def memory(self) -> tuple[int, int]:
        free, total = self._call("cuMemGetInfo")
        return int(free), int(total)

    def synchronize(self) -> None:
        self._call("cuCtxSetCurrent", self._context)  # the caller may be any thread
        self._call("cuCtxSynchronize")

    # ------------------------------------------------------------------------------------- by descriptor

    def _kind(self) -> Any:
        return self._cuda.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR

    def _locate(self, location: Any) -> None:
        location.type = self._cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        location.id = self._index

    def _properties(self) -> Any:
        properties = self._cuda.CUmemAllocationProp()
        properties.type = self._cuda.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.requestedHandleTypes = self._kind()
        self._locate(properties.location)
        return properties

    def granularity(self) -> int:
        flags = self._cuda.CUmemAllocationGranularity_flags
        least = flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        return int(self._call("cuMemGetAllocationGranularity", self._properties(), least))

    def create(self, size: int) -> Any:
        return self._call("cuMemCreate", size, self._properties(), 0)

    def release(self, handle: Any) -> None:
        self._call("cuMemRelease", handle)

    def export(self, handle: Any) -> int:
        return int(self._call("cuMemExportToShareableHandle", handle, self._kind(), 0))

    def import_fd(self, fd: int) -> Any:
        return self._call("cuMemImportFromShareableHandle", fd, self._kind())

    def reserve(self, size: int) -> int:
        return int(self._call("cuMemAddressReserve", size, 0, 0, 0))

    def unreserve(self, address: int, size: int) -> None:
        self._call("cuMemAddressFree", address, size)

    def map(self, address: int, size: int, handle: Any) -> None:
        self._call("cuMemMap", address, size, 0, handle, 0)
        access = self._cuda.CUmemAccessDesc()
        access.flags = self._cuda.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        self._locate(access.location)
        try:
            self._call("cuMemSetAccess", address, size, [access], 1)
        except DriverError:
            self._call("cuMemUnmap", address, size)
            raise

    def unmap(self, address: int, size: int) -> None:
        self._call("cuMemUnmap", address, size)

    # ------------------------------------------------------------------------------------- legacy

    def allocate(self, size: int) -> int:
        return int(self._call("cuMemAlloc", size))

    def deallocate(self, address: int) -> None:
        self._call("cuMemFree", address)

    def share(self, address: int) -> bytes:
        handle = self._call("cuIpcGetMemHandle", address)
        return ctypes.string_at(handle.getPtr(), IPC_HANDLE_BYTES)

    def open_shared(self, handle: bytes) -> int:
        theirs = self._cuda.CUipcMemHandle()
        ctypes.memmove(theirs.getPtr(), handle, IPC_HANDLE_BYTES)
        lazily = self._cuda.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
        return int(self._call("cuIpcOpenMemHandle", theirs, int(lazily)))

    def close_shared(self, address: int) -> None:
        self._call("cuIpcCloseMemHandle", address)

    # ------------------------------------------------------------------------------------- bytes

    def zero(self, address: int, size: int) -> None:
        self._call("cuMemsetD8", address, 0, size)

    def write(self, address: int, data: bytes) -> None:
        source = ctypes.create_string_buffer(data, len(data))
        self._call("cuMemcpyHtoD", address, ctypes.addressof(source), len(data))

    def read(self, address: int, size: int) -> bytes:
        target = ctypes.create_string_buffer(size)
        self._call("cuMemcpyDtoH", ctypes.addressof(target), address, size)
        return target.raw
