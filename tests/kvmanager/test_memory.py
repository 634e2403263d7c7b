"""Pool memory: all of it reserved, sealed in size, and an honest error when the host has not got it."""

import errno
import mmap
import os

import pytest

from kvmanager import memory
from kvmanager.errors import NoMemory
from kvmanager.memory import SLICE_BYTES, MemfdExporter, available_bytes, check_available, read_only


@pytest.fixture
def exporter():
    return MemfdExporter()


def test_memory_is_reserved_zeroed_and_beats_once_a_slice(exporter):
    beats = []
    fd = exporter.create("t", SLICE_BYTES + 4096, lambda: beats.append(1))
    found = os.fstat(fd)
    assert found.st_size == SLICE_BYTES + 4096
    assert found.st_blocks * 512 >= found.st_size
    assert os.pread(fd, 16, SLICE_BYTES) == bytes(16)
    assert len(beats) == 2
    os.close(fd)


def test_nobody_can_change_its_size(exporter):
    fd = exporter.create("t", 8192, lambda: None)
    for size in (4096, 16384):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    os.close(fd)


def test_the_read_only_descriptor_shows_the_same_bytes_and_takes_none(exporter):
    fd = exporter.create("t", 4096, lambda: None)
    reader = read_only(fd)
    os.pwrite(fd, b"seen", 0)
    assert os.pread(reader, 4, 0) == b"seen"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(reader, b"x", 0)
    with pytest.raises(PermissionError):
        mmap.mmap(reader, 4096, mmap.MAP_SHARED, mmap.PROT_WRITE)
    os.close(fd)
    os.close(reader)


def test_an_absurd_size_is_refused_before_anything_is_allocated(exporter):
    with pytest.raises(NoMemory, match=r"--kv-memory") as caught:
        exporter.create("t", 2**50, lambda: None)
    assert int(caught.value.details["asked"]) == 2**50
    assert 0 < int(caught.value.details["available"]) < 2**50


def test_some_of_what_is_available_stays_for_others():
    with pytest.raises(NoMemory):
        check_available(available_bytes())
    check_available(available_bytes() // 2)


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOSPC])
def test_a_host_that_runs_out_on_the_way_is_no_memory_and_leaks_nothing(exporter, monkeypatch, number):
    def full(*_):
        raise OSError(number, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(NoMemory, match="available"):
        exporter.create("t", 8192, lambda: None)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_the_nearest_limit_of_the_control_groups_counts(tmp_path):
    group = tmp_path / "a" / "b"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("500\n")
    (tmp_path / "a" / "memory.max").write_text("2000\n")
    (tmp_path / "a" / "memory.current").write_text("1500\n")
    (tmp_path / "a" / "memory.stat").write_text("anon 900\ninactive_file 300\n")
    rooms = memory._walk(tmp_path, "/a/b", "memory.max", "memory.current", "inactive_file")
    assert rooms == [800]
