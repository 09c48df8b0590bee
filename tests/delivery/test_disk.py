"""What is read at a start is what the medium has."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from gateway.delivery.disk import Disk
from gateway.delivery.segments import ROOM_BYTES

PAGES = 64


def cached_pages(path: Path) -> int:
    """How many pages of a file the system has in memory."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        pages = (ctypes.c_ubyte * PAGES)()
        first = ctypes.c_char.from_buffer(mapped)
        try:
            failed = ctypes.CDLL(None).mincore(ctypes.byref(first), ctypes.c_size_t(len(mapped)), pages)
        finally:
            del first
    assert not failed
    return sum(page & 1 for page in pages)


def is_memory(path: Path) -> bool:
    """Whether there is no medium behind a file."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    _, kind = max((len(place), kind) for place, kind in mounts if path.is_relative_to(place))
    return kind in ("tmpfs", "ramfs")


@pytest.mark.skipif(not Path("/proc/mounts").exists(), reason="this system cannot be asked to forget")
def test_nothing_is_read_from_memory_that_a_failed_sync_may_have_left_there(tmp_path: Path) -> None:
    """After a sync that failed the next one succeeds, and only the memory has what was written."""
    if is_memory(tmp_path):
        pytest.skip("a disk that is nothing but memory")
    path, data = tmp_path / "segment", os.urandom(PAGES * mmap.PAGESIZE - ROOM_BYTES) + bytes(ROOM_BYTES)
    path.write_bytes(data)
    assert cached_pages(path) == PAGES, "the positive control"
    Disk().sync_path(path)
    assert cached_pages(path) == 0
    assert path.read_bytes() == data


def test_what_was_left_in_order_need_not_be_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    path.write_bytes(os.urandom(PAGES * mmap.PAGESIZE))
    Disk().sync_path(path)
    assert cached_pages(path) == PAGES
