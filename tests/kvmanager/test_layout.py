"""Where bytes stand: bounds of the geometry, the metadata's sections, and a header that is not believed blindly."""

import itertools
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kvmanager import blocks, records, sequences, sessions, tables
from kvmanager.errors import Invalid
from kvmanager.layout import CorruptMetadata, Geometry, MetaLayout, PoolLayout
from kvmanager.state import KvState
from tests.support.kv import buffer_for, pool_spec

GEOMETRY = Geometry(num_layers=30, num_kv_heads=3, head_dim=64, block_size=16, dtype="bfloat16")


@pytest.mark.parametrize("field", ["num_layers", "num_kv_heads", "head_dim", "block_size"])
@pytest.mark.parametrize("value", [0, 1025, -1])
def test_a_geometry_out_of_bounds_names_the_field_and_the_bound(field: str, value: int) -> None:
    with pytest.raises(Invalid, match=rf"{field} {value} is not within 1\.\.1024") as error:
        replace(GEOMETRY, **{field: value})
    assert error.value.details["field"] == field


@pytest.mark.parametrize(("field", "value"), [("block_size", 12), ("dtype", "int8"), ("layout_version", 2)])
def test_a_geometry_of_another_kind_is_invalid(field: str, value: Any) -> None:
    with pytest.raises(Invalid, match=field):
        replace(GEOMETRY, **{field: value})


def test_a_block_is_one_contiguous_extent_of_all_layers() -> None:
    layout = PoolLayout(GEOMETRY)
    assert layout.shape(7) == (7, 30, 2, 3, 16, 64)
    assert layout.token_bytes == 30 * 2 * 3 * 64 * 2
    assert layout.block_bytes * 7 == int(np.prod(layout.shape(7))) * layout.itemsize
    assert layout.blocks_in(layout.block_bytes * 3 - 1) == 2
    assert layout.blocks_in(-1) == 0


def test_a_row_of_e4m3_has_four_bytes_of_scale_behind() -> None:
    layout = PoolLayout(replace(GEOMETRY, dtype="float8_e4m3"))
    assert layout.shape(7) == (7, 30, 2, 3, 16, 64)
    assert layout.token_bytes == 30 * 2 * 3 * (64 + 4)
    assert layout.block_bytes == 16 * layout.token_bytes
    assert layout.blocks_in(layout.block_bytes * 3 - 1) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_blocks", 1), ("max_model_len", 0), ("vocab_size", 0), ("name", ""), ("model", "x" * 513)],
)
def test_a_spec_out_of_bounds_names_the_field(field: str, value: Any) -> None:
    with pytest.raises(Invalid, match=field):
        pool_spec(**{field: value})


@pytest.mark.parametrize(
    ("packed", "dtype"),
    [
        (blocks.FULL, records.BLOCK),
        (tables.RECORD, records.ROW),
        (sequences.RECORD, records.SEQUENCE),
        (sessions.RECORD, records.SESSION),
    ],
)
def test_what_is_packed_is_what_readers_unpack(packed: struct.Struct, dtype: np.dtype[Any]) -> None:
    """Field by field: the writer packs with struct, readers use numpy."""
    assert packed.size == dtype.itemsize
    kinds = {1: "B", 2: "H", 4: "I", 8: "Q"}
    codes = [
        f"{field.itemsize}s"
        if field.kind in "VS"
        else "d"
        if field.kind == "f"
        else kinds[field.itemsize].lower() * (field.kind == "i") or kinds[field.itemsize]
        for field in (dtype[name] for name in dtype.names or ())
    ]
    assert packed.format == "<" + "".join(codes)


def test_offsets_used_for_single_fields_are_the_fields_offsets() -> None:
    def at(dtype: np.dtype[Any], name: str) -> int:
        return int((dtype.fields or {})[name][1])

    assert at(records.BLOCK, "last_use") == blocks.USE_AT
    assert at(records.ROW, "length") == tables.LENGTH_AT
    assert at(records.SEQUENCE, "recorded_len") == sequences.LENGTHS_AT
    assert at(records.SEQUENCE, "kv_len") == sequences.LENGTHS_AT + 4
    assert at(records.SESSION, "number") == sessions.NUMBER_AT
    for name in ("seqlock", "redo_length", "redo_checksum", "boot_epoch", "event"):
        assert at(records.HEADER, name) == getattr(records, f"{name.upper()}_AT")
        assert at(records.HEADER, name) % 8 == 0, "a word that is stored in one piece"


def test_sections_follow_each_other_without_overlap() -> None:
    layout = MetaLayout(pool_spec(100, 16))
    sizes = [
        (0, records.HEADER_BYTES),
        (layout.blocks_at, 100 * records.BLOCK.itemsize),
        (layout.block_tokens_at, 100 * 16 * 4),
        (layout.rows_at, layout.num_rows * records.ROW.itemsize),
        (layout.entries_at, layout.num_rows * layout.row_capacity * 4),
        (layout.sequences_at, layout.num_records * records.SEQUENCE.itemsize),
        (layout.sessions_at, records.MAX_SESSIONS * records.SESSION.itemsize),
        (layout.token_arena_at, 4 * 100 * 16 * 4),
        (layout.request_arena_at, layout.request_bytes),
        (layout.redo_at, layout.redo_bytes),
        (layout.total_bytes, 0),
    ]
    for (start, size), (after, _) in itertools.pairwise(sizes):
        assert start + size <= after
        assert after % 4096 == 0


def test_a_reader_finds_everything_by_the_header_alone() -> None:
    spec = pool_spec(100, 16, model="größer", exporter="vmm")
    buffer = buffer_for(spec)
    KvState.create(buffer, spec, 0)
    layout = MetaLayout.from_header(bytes(buffer))
    assert layout.spec == spec
    assert layout.total_bytes == len(buffer)
    view = layout.view(bytes(buffer))
    assert view.block_tokens.shape == (100, 16)
    assert int(view.header["boot_epoch"]) == 1
    assert not view.blocks.flags.writeable


@pytest.mark.parametrize(
    ("at", "reason"), [(0, "magic"), (8, "version"), (16, "checksum"), (48, "checksum"), (700, "checksum")]
)
def test_a_changed_header_is_corrupt(at: int, reason: str) -> None:
    spec = pool_spec()
    buffer = buffer_for(spec)
    KvState.create(buffer, spec, 0)
    buffer[at] ^= 1
    with pytest.raises(CorruptMetadata, match=reason):
        MetaLayout.from_header(buffer)


@pytest.mark.parametrize("length", [0, 100, 4096, 100_000])
def test_a_buffer_that_is_too_short_is_corrupt(length: int) -> None:
    spec = pool_spec()
    buffer = buffer_for(spec)
    KvState.create(buffer, spec, 0)
    with pytest.raises(CorruptMetadata):
        MetaLayout.from_header(buffer[:length])


def test_an_empty_buffer_is_corrupt() -> None:
    with pytest.raises(CorruptMetadata, match="magic"):
        KvState.recover(buffer_for(pool_spec()), 0)
