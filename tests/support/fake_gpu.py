"""A GPU made of host memory behind `kvmanager.gpu_driver.Driver`: allocations are memfds, addresses this process's own.

What it keeps of the real one: an exported descriptor alone keeps an allocation, a legacy handle is good only while the
process that allocated lives, memory is used for as long as anybody holds it, reserved addresses fault. FAKE_GPU
describes it, such as `id=5,total=67108864,vmm=1,legacy=1,mps=0`; only the tests' modules read that. Memory is counted
by `id`.
"""

import ctypes
import os
import struct
import time
from pathlib import Path

import torch

from kvmanager.gpu_driver import OUT_OF_MEMORY, DriverError, Traits

UUID = "GPU-00000000-1111-2222-3333-444444444444"
GRANULARITY = 2 * 2**20
NAME = "fake-gpu-"
PROT_NONE, PROT_READ_WRITE = 0, 3
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_NORESERVE = 1, 2, 0x10, 0x20, 0x4000

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def mmap(address, size, prot, flags, fd=-1):
    found = libc.mmap(address, size, prot, flags, fd, 0)
    assert found not in (None, 2**64 - 1), os.strerror(ctypes.get_errno())
    return found


def used_bytes(number=0):
    """Bytes of all allocations of a fake GPU that some process has a descriptor of."""
    sizes = {}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if f"{NAME}{number} " in str(link.readlink()):
                status = link.stat()
                sizes[status.st_ino] = status.st_size
        except OSError:
            continue
    return sum(sizes.values())


class FakeGpu:
    def __init__(self, **changes):
        words = filter(None, os.environ.get("FAKE_GPU", "").split(","))
        given = {key: int(value) for key, value in (word.split("=") for word in words)}
        values = {"id": 0, "total": 2**30, "vmm": 1, "legacy": 1, "mps": 0, "slow": 0, "granule": GRANULARITY}
        values |= given | changes
        self.number, self.total, self.vmm, self.legacy, self.mps, self.slow, self.granule = values.values()
        self.allocated = {}  # address: (fd, size)
        self.opened = {}  # address: size

    def devices(self):
        return [UUID]

    def traits(self, index):
        return Traits(9, 0, bool(self.vmm), bool(self.mps))

    def enter(self, index):
        assert index == 0
        time.sleep(self.slow)

    def memory(self):
        return self.total - used_bytes(self.number), self.total

    def synchronize(self):
        pass

    # ------------------------------------------------------------------------------------- by descriptor

    def granularity(self):
        return self.granule

    def create(self, size):
        if size > self.total - used_bytes(self.number):
            raise DriverError("cuMemCreate", OUT_OF_MEMORY)
        assert size % self.granule == 0
        fd = os.memfd_create(f"{NAME}{self.number}")
        os.ftruncate(fd, size)
        return fd

    def release(self, handle):
        os.close(handle)

    def export(self, handle):
        return os.dup(handle)

    def import_fd(self, fd):
        if NAME not in str(Path(f"/proc/self/fd/{fd}").readlink()):
            raise DriverError("cuMemImportFromShareableHandle", "CUDA_ERROR_INVALID_VALUE")
        return os.dup(fd)

    def reserve(self, size):
        return mmap(None, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)

    def unreserve(self, address, size):
        assert libc.munmap(address, size) == 0

    def map(self, address, size, handle):
        if os.fstat(handle).st_size != size:
            raise DriverError("cuMemMap", "CUDA_ERROR_INVALID_VALUE")
        mmap(address, size, PROT_READ_WRITE, MAP_SHARED | MAP_FIXED, handle)

    def unmap(self, address, size):
        mmap(address, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED)

    # ------------------------------------------------------------------------------------- legacy

    def allocate(self, size):
        if not self.legacy:
            raise DriverError("cuMemAlloc", "CUDA_ERROR_NOT_SUPPORTED")
        fd = self.create(size)
        address = mmap(None, size, PROT_READ_WRITE, MAP_SHARED, fd)
        self.allocated[address] = (fd, size)
        return address

    def deallocate(self, address):
        fd, size = self.allocated.pop(address)
        libc.munmap(address, size)
        os.close(fd)

    def share(self, address):
        fd, size = self.allocated[address]
        return struct.pack("<qqq", os.getpid(), fd, size).ljust(64, b"\0")

    def open_shared(self, handle):
        pid, number, size = struct.unpack_from("<qqq", handle)
        try:
            fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR)
        except OSError:
            raise DriverError("cuIpcOpenMemHandle", "CUDA_ERROR_INVALID_HANDLE") from None
        address = mmap(None, size, PROT_READ_WRITE, MAP_SHARED, fd)
        os.close(fd)
        self.opened[address] = size
        return address

    def close_shared(self, address):
        libc.munmap(address, self.opened.pop(address))

    # ------------------------------------------------------------------------------------- bytes

    def zero(self, address, size):
        ctypes.memset(address, 0, size)

    def write(self, address, data):
        ctypes.memmove(address, data, len(data))

    def read(self, address, size):
        return ctypes.string_at(address, size)


def host_bytes(memory, size):
    """In the place of kvmanager.gpu_mapping.cuda_bytes: the fake's memory is the host's."""
    data = (ctypes.c_uint8 * size).from_address(memory.address)
    data.memory = memory
    return torch.frombuffer(data, dtype=torch.uint8)
