"""Where every byte stands: the geometry of a pool's blocks and the arrays of its metadata. Pure arithmetic.

A pool is `num_blocks` blocks of `[layer][K,V][kv head][slot][dim]`; those of float8_e4m3 have
`[layer][K,V][kv head][slot]` float32 scales behind. Its metadata is one buffer of plain arrays:

    header | block records | block tokens | row records | row entries | sequence records | session records
           | token arena (u32) | request arena (bytes) | redo area

Everything is little-endian, and anybody who maps the buffer read-only can read it with `MetaLayout.view`. Only
`kvmanager.store` writes to it. No memory is allocated or mapped here.
"""

import zlib
from dataclasses import dataclass
from functools import cached_property
from mmap import mmap
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from kvmanager.errors import Invalid
from kvmanager.records import (
    BLOCK,
    CHECKSUM_AT,
    HEADER,
    HEADER_BYTES,
    MAGIC,
    MAX_SESSIONS,
    METADATA_VERSION,
    ROW,
    SEQUENCE,
    SESSION,
    STATIC,
)

LAYOUT_VERSION: Final = 1
STORES_OF_A_RECORD: Final = 3  # in one operation: a search of all places begins, ends and keeps beams at once
MAX_POOL_BLOCKS: Final = 2**28  # of a pool
Buffer = bytes | bytearray | memoryview | mmap
ITEMSIZE: Final = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3": 1}
SCALE_BYTES: Final = {"float8_e4m3": 4}  # of a slot's row of one head


class CorruptMetadata(Exception):  # noqa: N818 - reads as `raise CorruptMetadata(...)`
    """The buffer is not metadata of a pool, or contradicts itself. Never goes over a wire."""


# ---------------------------------------------------------------------------------------------- geometry


@dataclass(frozen=True, slots=True)
class Geometry:
    """What decides the bytes of a block. All workers of one pool agree on all of it."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int  # token slots
    dtype: str
    layout_version: int = LAYOUT_VERSION

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_kv_heads", "head_dim", "block_size"):
            within(name, getattr(self, name), 1, 1024)
        if self.block_size & (self.block_size - 1):
            raise Invalid(f"block_size {self.block_size} is not a power of two", field="block_size")
        if self.dtype not in ITEMSIZE:
            raise Invalid(f"dtype {self.dtype!r}, expected one of {', '.join(ITEMSIZE)}", field="dtype")
        if self.layout_version != LAYOUT_VERSION:
            raise Invalid(
                f"layout_version {self.layout_version}, expected {LAYOUT_VERSION}", field="layout_version"
            )


def within(name: str, value: int, least: int, most: int) -> None:
    """Invalid, naming the field and its bounds, unless least <= value <= most."""
    if not least <= value <= most:
        raise Invalid(f"{name} {value} is not within {least}..{most}", field=name, least=least, most=most)


@dataclass(frozen=True, slots=True)
class PoolLayout:
    """The bytes of a pool's KV."""

    geometry: Geometry

    @property
    def dtype(self) -> str:
        return self.geometry.dtype

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.geometry.dtype]

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token, all layers, and their scales."""
        g = self.geometry
        row = g.head_dim * self.itemsize + SCALE_BYTES.get(g.dtype, 0)
        return g.num_layers * 2 * g.num_kv_heads * row

    @property
    def block_bytes(self) -> int:
        return self.token_bytes * self.geometry.block_size

    def shape(self, num_blocks: int) -> tuple[int, int, int, int, int, int]:
        """(num_blocks, layers, K and V, kv heads, slots, dim), C order."""
        g = self.geometry
        return num_blocks, g.num_layers, 2, g.num_kv_heads, g.block_size, g.head_dim

    def blocks_in(self, budget_bytes: int) -> int:
        """Whole blocks that fit in a memory budget."""
        return max(0, budget_bytes) // self.block_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """What a pool is made for; fixed when it is created."""

    name: str
    geometry: Geometry
    num_blocks: int
    model: str
    model_fingerprint: bytes
    device: str
    dtype: str  # of the weights
    max_model_len: int
    max_num_seqs: int
    vocab_size: int
    nonce: bytes
    exporter: str = "memfd"

    def __post_init__(self) -> None:
        within("num_blocks", self.num_blocks, 2, MAX_POOL_BLOCKS)
        within("max_model_len", self.max_model_len, 1, 2**24)
        within("max_num_seqs", self.max_num_seqs, 1, 2**16)
        within("vocab_size", self.vocab_size, 1, 2**31)
        within("model_fingerprint bytes", len(self.model_fingerprint), 32, 32)
        within("nonce bytes", len(self.nonce), 16, 16)
        for name, most in (("name", 64), ("model", 512), ("device", 64), ("dtype", 16), ("exporter", 16)):
            within(f"{name} bytes", len(getattr(self, name).encode()), 1, most)


# ---------------------------------------------------------------------------------------------- metadata


class MetaView(NamedTuple):
    """The arrays of a metadata buffer, not copied. Writable only if the buffer is; nobody but the store writes."""

    header: NDArray[np.void]  # 0-d, HEADER
    blocks: NDArray[np.void]  # [num_blocks] BLOCK
    block_tokens: NDArray[np.uint32]  # [num_blocks, block_size]
    rows: NDArray[np.void]  # [num_rows] ROW
    entries: NDArray[np.uint32]  # [num_rows, row_capacity] block ids
    sequences: NDArray[np.void]  # [num_records] SEQUENCE
    sessions: NDArray[np.void]  # [MAX_SESSIONS] SESSION
    token_arena: NDArray[np.uint32]
    request_arena: NDArray[np.uint8]


class MetaLayout:
    """Byte offsets of everything in one pool's metadata, derived from its spec alone."""

    def __init__(self, spec: PoolSpec) -> None:
        self.spec = spec
        self.block_size = spec.geometry.block_size
        self.num_blocks = spec.num_blocks
        self.num_records = 4 * spec.max_num_seqs
        self.num_rows = self.num_records
        self.row_capacity = min(-(-spec.max_model_len // self.block_size), spec.num_blocks)
        self.arena_tokens = 4 * spec.num_blocks * self.block_size
        self.request_bytes = max(256 * 1024, 4096 * self.num_records)
        end = HEADER_BYTES
        self.blocks_at, end = end, aligned(end + self.num_blocks * BLOCK.itemsize)
        self.block_tokens_at, end = end, aligned(end + self.num_blocks * self.block_size * 4)
        self.rows_at, end = end, aligned(end + self.num_rows * ROW.itemsize)
        self.entries_at, end = end, aligned(end + self.num_rows * self.row_capacity * 4)
        self.sequences_at, end = end, aligned(end + self.num_records * SEQUENCE.itemsize)
        self.sessions_at, end = end, aligned(end + MAX_SESSIONS * SESSION.itemsize)
        self.token_arena_at, end = end, aligned(end + self.arena_tokens * 4)
        self.request_arena_at, end = end, aligned(end + self.request_bytes)
        self.redo_at, end = end, aligned(end + self.redo_bytes)
        self.total_bytes = end

    @cached_property
    def redo_bytes(self) -> int:
        """Room for any one operation: each block sealed, granted and put in a row, each token and record written."""
        per_block = 2 * (BLOCK.itemsize + 12) + 20 * self.block_size + 64
        per_record = STORES_OF_A_RECORD * (SEQUENCE.itemsize + ROW.itemsize + 128)
        return 2**18 + self.num_blocks * per_block + self.num_records * per_record

    def header(self) -> bytes:
        """The first bytes of a new buffer: the static fields and their checksum, no operation done."""
        spec, g = self.spec, self.spec.geometry
        static = np.zeros((), STATIC)
        values = {
            "magic": MAGIC,
            "version": METADATA_VERSION,
            "header_bytes": HEADER_BYTES,
            "total_bytes": self.total_bytes,
            "kv_dtype": g.dtype.encode(),
            "nonce": np.void(spec.nonce),
            "fingerprint": np.void(spec.model_fingerprint),
        }
        values |= {
            n: getattr(g, n)
            for n in ("num_layers", "num_kv_heads", "head_dim", "block_size", "layout_version")
        }
        values |= {n: getattr(spec, n) for n in ("num_blocks", "max_model_len", "max_num_seqs", "vocab_size")}
        values |= {n: getattr(spec, n).encode() for n in ("dtype", "exporter", "name", "device", "model")}
        for name, value in values.items():
            static[name] = value
        body = static.tobytes()
        return body.ljust(CHECKSUM_AT, b"\0") + zlib.crc32(body).to_bytes(8, "little")

    @classmethod
    def from_header(cls, buffer: Buffer) -> Self:
        """The layout of existing metadata; CorruptMetadata unless the header is whole and fits the buffer."""
        raw = memoryview(buffer).cast("B")
        if len(raw) < HEADER_BYTES:
            raise CorruptMetadata(f"{len(raw)} bytes are shorter than a header ({HEADER_BYTES})")
        head = np.frombuffer(raw, HEADER, 1)[0]
        if bytes(head["magic"]) != MAGIC:
            raise CorruptMetadata("no holdfast metadata: wrong magic")
        if int(head["version"]) != METADATA_VERSION:
            raise CorruptMetadata(
                f"metadata version {head['version']}, this program reads {METADATA_VERSION}"
            )
        if zlib.crc32(raw[: STATIC.itemsize]) != int(head["checksum"]):
            raise CorruptMetadata("the header's checksum does not match its fields")
        layout = cls(spec_of(head))
        if layout.total_bytes != int(head["total_bytes"]) or layout.total_bytes > len(raw):
            raise CorruptMetadata(
                f"layout of {layout.total_bytes} bytes, header says {head['total_bytes']}, buffer has {len(raw)}"
            )
        return layout

    def view(self, buffer: Buffer) -> MetaView:
        """The arrays of `buffer`."""

        def array(dtype: Any, at: int, count: int) -> Any:
            return np.frombuffer(buffer, dtype, count, at)

        n, rows = self.num_blocks, self.num_rows
        return MetaView(
            header=array(HEADER, 0, 1).reshape(()),
            blocks=array(BLOCK, self.blocks_at, n),
            block_tokens=array("<u4", self.block_tokens_at, n * self.block_size).reshape(n, -1),
            rows=array(ROW, self.rows_at, rows),
            entries=array("<u4", self.entries_at, rows * self.row_capacity).reshape(rows, -1),
            sequences=array(SEQUENCE, self.sequences_at, self.num_records),
            sessions=array(SESSION, self.sessions_at, MAX_SESSIONS),
            token_arena=array("<u4", self.token_arena_at, self.arena_tokens),
            request_arena=array("u1", self.request_arena_at, self.request_bytes),
        )


def aligned(offset: int) -> int:
    """The next page border: sections never share one."""
    return (offset + 4095) & ~4095


def spec_of(head: Any) -> PoolSpec:
    """The spec that a header's static fields name; CorruptMetadata if a field is out of bounds."""
    try:
        texts: dict[str, Any] = {
            n: head[n].decode() for n in ("name", "model", "device", "dtype", "exporter")
        }
        numbers: dict[str, Any] = {
            n: int(head[n]) for n in ("num_blocks", "max_model_len", "max_num_seqs", "vocab_size")
        }
        return PoolSpec(
            geometry=Geometry(
                num_layers=int(head["num_layers"]),
                num_kv_heads=int(head["num_kv_heads"]),
                head_dim=int(head["head_dim"]),
                block_size=int(head["block_size"]),
                dtype=head["kv_dtype"].decode(),
                layout_version=int(head["layout_version"]),
            ),
            model_fingerprint=head["fingerprint"].tobytes(),
            nonce=head["nonce"].tobytes(),
            **texts,
            **numbers,
        )
    except (Invalid, UnicodeDecodeError) as error:
        raise CorruptMetadata(f"header: {error}") from None
