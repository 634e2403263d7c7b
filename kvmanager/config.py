"""Settings of the KV manager: what `kvmanager serve` and `kvmanager keeper` read."""

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field

from holdfast.settings import Common

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(B|[KMGT]i?B|[KMGT])?", re.IGNORECASE)
_POWERS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def size_bytes(value: Any) -> Any:
    """`256MiB`, `1.5GB`, `4G` (binary, as for torch and docker) or plain bytes, as a whole number of bytes."""
    if not isinstance(value, str):
        return value
    found = _SIZE.fullmatch(value.strip())
    if not found:
        raise ValueError("expected a size such as 256MiB, 1.5GB or a number of bytes")
    unit = (found[2] or "").upper()
    base = 1000 if unit.endswith("B") and not unit.endswith("IB") else 1024
    return int(float(found[1]) * base ** _POWERS[unit.rstrip("B").rstrip("I")])


ByteSize = Annotated[int, BeforeValidator(size_bytes)]


class KvManagerSettings(Common):
    """One daemon and its keeper."""

    kv_memory: ByteSize | None = Field(
        None,
        ge=2**20,
        le=2**50,
        description="memory of a pool, such as 4GiB; unset: 1GiB on the CPU, a share of the GPU",
    )
    num_blocks_override: int | None = Field(
        None, ge=2, le=2**28, description="blocks of a pool, whatever the memory"
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="share of a GPU that weights and pools may take together"
    )
    gpu_ipc: Literal["auto", "vmm", "legacy"] = Field(
        "auto", description="how a GPU pool is shared; auto: vmm where it works; legacy promises less"
    )
    max_workers: int | None = Field(
        None,
        ge=1,
        le=64,
        description="workers of one pool; unset: 8 on the CPU, 2 on a GPU, whose peak need is set aside",
    )
    record_ttl: float = Field(
        300, ge=1, le=86_400, description="seconds that a finished sequence can be read"
    )
    kill_hung: bool = Field(
        True,
        description="SIGKILL a worker that is fenced for its silence; else its blocks wait until it ends",
    )
    orphan_ttl: float = Field(
        60, ge=1, le=86_400, description="seconds that a sequence without a worker waits for another"
    )
    spare_daemon: bool = Field(
        True, description="a second daemon process that waits to take over at once, at the cost of its memory"
    )
    keeper: Path | None = Field(
        None, description="socket of a keeper that runs elsewhere: start the daemon only"
    )

    @property
    def cpu_budget(self) -> int:
        """Bytes of a pool on the CPU."""
        return 2**30 if self.kv_memory is None else self.kv_memory

    @property
    def workers_on_gpu(self) -> int:
        """Workers that one GPU pool may have."""
        return self.max_workers or 2

    def workers_on(self, device: str) -> int:
        """Workers that one pool on this device may have."""
        return (self.max_workers or 8) if device == "cpu" else self.workers_on_gpu
