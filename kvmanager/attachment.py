"""What a worker and the daemon tell each other on the attachment socket, as plain records.

Docs of each field stand in proto/holdfast/v1/kvmanager.proto (AttachRequest, Attached). Nothing here imports numpy,
torch or protobuf.
"""

from dataclasses import dataclass
from typing import Final

from kvmanager.messages import SessionId

PROTOCOL_VERSION: Final = 1
NO_SESSION: Final = SessionId(b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachSpec:
    """A worker's model and wishes. All workers of one pool state the same, but for the last lines."""

    model: str  # served name
    model_fingerprint: bytes  # 32 bytes: architecture and weights
    dtype: str  # of the weights
    vocab_size: int
    device: str  # "cpu" or a GPU's UUID
    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int  # token slots
    kv_dtype: str
    layout_version: int = 1
    max_model_len: int  # tokens; later workers may ask for less than the pool's
    max_num_seqs: int  # the same
    worker_id: str
    endpoint: str  # path of the worker's own socket
    peak_bytes: int = 0  # device memory the worker needs beside the pool
    resume_session: SessionId = NO_SESSION  # go on with this session, under a daemon that started since


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """The daemon's answer; two descriptors travel beside it, the pool (read-write) and the metadata (read-only)."""

    session: SessionId
    boot_epoch: int
    pool: str
    num_blocks: int
    pool_bytes: int
    metadata_bytes: int
    nonce: bytes  # 16 bytes, also in the metadata's header, and behind the blocks of a GPU pool
    exporter: str = "memfd"  # or cuda-vmm, cuda-legacy: what the pool's descriptor is
    allocation_bytes: int = 0  # of the GPU's memory behind it, trailer included; on the CPU those of the pool
    number: int = 0  # of the session's last message that was applied
