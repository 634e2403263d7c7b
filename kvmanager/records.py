"""The records of a pool's metadata as numpy types: what a reader of the mapped buffer needs. Fields and bytes only.

Ids and hashes are raw bytes (`V`): numpy's `S` would drop trailing zeros.
"""

from typing import Final

import numpy as np

METADATA_VERSION: Final = 1
MAGIC: Final = b"HFKVMETA"
HEADER_BYTES: Final = 4096
MAX_SESSIONS: Final = 64
MAX_REQUEST_BYTES: Final = 64 * 1024
MAX_REQUEST_ID_BYTES: Final = 256
NONE: Final = 2**64 - 1  # a block reference that names none

_STATIC: Final[list[tuple[str, str]]] = [
    ("magic", "S8"),
    ("version", "<u4"),
    ("header_bytes", "<u4"),
    ("total_bytes", "<u8"),
    ("num_layers", "<u4"),
    ("num_kv_heads", "<u4"),
    ("head_dim", "<u4"),
    ("block_size", "<u4"),
    ("layout_version", "<u4"),
    ("num_blocks", "<u4"),
    ("max_model_len", "<u4"),
    ("max_num_seqs", "<u4"),
    ("vocab_size", "<u4"),
    ("reserved", "<u4"),
    ("kv_dtype", "S16"),
    ("dtype", "S16"),
    ("exporter", "S16"),
    ("nonce", "V16"),
    ("fingerprint", "V32"),
    ("name", "S64"),
    ("device", "S64"),
    ("model", "S512"),
]
STATIC: Final = np.dtype(_STATIC)
CHECKSUM_AT: Final = 2040  # CRC-32 of the static fields, as u64
SEQLOCK_AT: Final = 2048  # odd while an operation is being applied
REDO_LENGTH_AT: Final = 2056  # the publish word: bytes of a complete redo log, 0 when none
REDO_CHECKSUM_AT: Final = 2064
BOOT_EPOCH_AT: Final = 2072
EVENT_AT: Final = 2080

HEADER: Final = np.dtype(
    [
        *_STATIC,
        ("padding", f"V{CHECKSUM_AT - STATIC.itemsize}"),
        ("checksum", "<u8"),
        ("seqlock", "<u8"),
        ("redo_length", "<u8"),
        ("redo_checksum", "<u8"),
        ("boot_epoch", "<u8"),
        ("event", "<u8"),
        ("rest", f"V{HEADER_BYTES - EVENT_AT - 8}"),
    ]
)

BLOCK: Final = np.dtype(
    [
        ("state", "u1"),  # blocks.BlockState
        ("indexed", "u1"),  # found by prefix look-up
        ("pins", "<u2"),
        ("generation", "<u4"),
        ("holder", "<u4"),  # session slot + 1; 0: none
        ("depth", "<u4"),  # sealed: place in the chain
        ("last_use", "<u8"),  # ns; the LRU order of cached blocks
        ("parent", "<u8"),  # sealed: generation << 32 | id of the indexed block before it; NONE at a root
        ("hash", "V32"),
        ("parent_hash", "V32"),
    ]
)

ROW: Final = np.dtype(
    [("sequence", "<u4"), ("length", "<u4"), ("epoch", "<u8")]  # sequence: record + 1; 0: the row is free
)

SEQUENCE: Final = np.dtype(
    [
        ("state", "u1"),  # sequences.SequenceState
        ("finish", "u1"),
        ("bypass_prefix", "u1"),
        ("deaths", "u1"),
        ("index", "<u4"),
        ("recorded_len", "<u4"),
        ("kv_len", "<u4"),
        ("epoch", "<u8"),
        ("owner", "<u4"),  # session slot + 1; 0: none
        ("row", "<u4"),  # row + 1; 0: none
        ("cached_len", "<u4"),
        ("prompt_len", "<u4"),
        ("max_tokens", "<u4"),
        ("priority", "<i4"),
        ("stop_token_id", "<u4"),
        ("request_bytes", "<u4"),
        ("token_offset", "<u8"),  # in the token arena, in tokens
        ("token_capacity", "<u8"),
        ("request_offset", "<u8"),  # in the request arena, in bytes
        ("arrival_ns", "<u8"),
        ("opened_ns", "<u8"),
        ("finished_ns", "<u8"),  # or orphaned
        ("copy_source", "<u4"),  # a pending copy order; 0 slots: none
        ("copy_destination", "<u4"),
        ("copy_slots", "<u4"),
        ("request_id_bytes", "<u4"),
        ("id", "V16"),
        ("group", "V16"),
        ("tenant", "V32"),
        ("request_id", f"V{MAX_REQUEST_ID_BYTES}"),
    ]
)

SESSION: Final = np.dtype(
    [
        ("state", "<u4"),  # sessions.SessionState
        ("reserved", "<u4"),
        ("number", "<u8"),  # of the last message applied
        ("pid", "<u8"),
        ("start_time", "<u8"),
        ("attached_ns", "<u8"),
        ("id", "V16"),
        ("worker_id", "S32"),
        ("endpoint", "S128"),
    ]
)
