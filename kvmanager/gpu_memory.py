"""What daemon, allocator and worker agree on about a pool in GPU memory. Pure; imports nothing of CUDA.

    one allocation    | blocks … | rest of a granule | trailer: one granule, the pool's nonce in its last bytes |

The descriptor of a pool is, by exporter,

    memfd         the memory itself
    cuda-vmm      the allocation, as the driver exports it: the memory lives while one such descriptor or mapping does
    cuda-legacy   a sealed memfd with the driver's handle: good for as long as the process that allocated lives
"""

import re
import struct
import uuid
from dataclasses import astuple, dataclass
from typing import Final

from kvmanager.errors import KvError, Mismatch, from_code

MEMFD: Final = "memfd"
VMM: Final = "cuda-vmm"
LEGACY: Final = "cuda-legacy"
DEVICE: Final = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
GRANULE: Final = 2 * 2**20  # what allocations are whole multiples of, and the size of each guard
NONCE_BYTES: Final = 16
_HANDLE: Final = struct.Struct("<16s64sQ")
_MAGIC: Final = b"holdfast ipc 1\0\0"
HANDLE_FILE_BYTES: Final = _HANDLE.size


def device_name(raw: bytes) -> str:
    """A GPU's 16 bytes as its tools write them."""
    return f"GPU-{uuid.UUID(bytes=raw)}"


def allocation_bytes(pool_bytes: int) -> int:
    """Bytes to allocate for a pool of this size, trailer included."""
    return -(-pool_bytes // GRANULE) * GRANULE + GRANULE


def pool_bytes_within(allocation: int) -> int:
    """The largest pool whose allocation is at most this; 0 if there is none."""
    return max(allocation // GRANULE - 1, 0) * GRANULE


def nonce_at(allocation: int) -> int:
    """Offset of the nonce in the allocation."""
    return allocation - NONCE_BYTES


def encode_handle(handle: bytes, allocation: int) -> bytes:
    """What the memfd of a legacy pool holds."""
    return _HANDLE.pack(_MAGIC, handle, allocation)


def decode_handle(data: bytes) -> tuple[bytes, int]:
    """(the driver's 64 bytes, allocation's size); Mismatch for anything else."""
    if len(data) != _HANDLE.size:
        raise Mismatch(f"pool handle of {len(data)} bytes, expected {_HANDLE.size}")
    magic, handle, allocation = _HANDLE.unpack(data)
    if magic != _MAGIC:
        raise Mismatch("the pool's descriptor holds no handle of GPU memory")
    return handle, allocation


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What one GPU has and can do, just now."""

    total: int  # bytes
    free: int  # bytes; what other processes hold is not free
    major: int  # compute capability
    minor: int
    vmm: int  # whether an allocation can be exported as a descriptor: tried, not believed. 0 or 1
    legacy: int  # the same for a legacy handle


# ---------------------------------------------------------------------------------------------- allocator's answers


def encode_facts(facts: DeviceFacts) -> bytes:
    return " ".join(["OK", *map(str, astuple(facts))]).encode()


def decode_facts(data: bytes) -> DeviceFacts:
    return DeviceFacts(*map(int, data.split()[1:]))


def encode_refusal(error: KvError) -> bytes:
    details = (f"{key}={value}" for key, value in error.details.items())
    return "\n".join([f"NO {error.code}", error.message.replace("\n", " "), *details]).encode()[:4096]


def decode_refusal(data: bytes) -> KvError | None:
    """The error of an answer that is one."""
    head, *lines = data.decode("utf8", "replace").split("\n")
    if not head.startswith("NO "):
        return None
    details = dict(line.split("=", 1) for line in lines[1:] if "=" in line)
    return from_code(int(head[3:]), lines[0], details)
