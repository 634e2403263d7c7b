"""Sizes as people write them, and the bounds of the KV manager's settings."""

import pytest

from holdfast.settings import SettingsError, load
from kvmanager.config import KvManagerSettings


def settings(tmp_path, environ=None, **flags):
    return load(KvManagerSettings, "kvmanager", {"run_dir": tmp_path} | flags, environ or {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("256MiB", 256 * 2**20),
        ("1.5GiB", 3 * 2**29),
        ("4G", 4 * 2**30),
        ("2gb", 2 * 10**9),
        ("3 TiB", 3 * 2**40),
        ("10000000", 10_000_000),
        ("1048576B", 2**20),
    ],
)
def test_sizes(tmp_path, text, expected):
    assert settings(tmp_path, kv_memory=text).kv_memory == expected
    assert settings(tmp_path, {"HOLDFAST_KVMANAGER__KV_MEMORY": text}).cpu_budget == expected


@pytest.mark.parametrize("text", ["", "much", "-1GiB", "1PiBs", "1e9", "0", "1023KiB", "2PiB", "nan"])
def test_other_sizes_are_refused_by_the_flags_name(tmp_path, text):
    with pytest.raises(SettingsError, match="kv-memory"):
        settings(tmp_path, kv_memory=text)


def test_the_default_on_the_cpu_is_one_gibibyte(tmp_path):
    assert settings(tmp_path).cpu_budget == 2**30


@pytest.mark.parametrize(
    ("name", "bad"),
    [("num_blocks_override", 1), ("max_workers", 0), ("record_ttl", 0), ("gpu_memory_utilization", 1.1)],
)
def test_bounds(tmp_path, name, bad):
    with pytest.raises(SettingsError, match=name):
        settings(tmp_path, **{name: bad})
