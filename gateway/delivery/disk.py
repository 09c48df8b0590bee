"""What the spool asks of a disk. A test puts another one here: one that fails, fills up, or forgets.

All methods block and raise OSError. An open file is the writer's thread's alone; paths are anybody's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from gateway.delivery.segments import ROOM_BYTES

_BUFFERS_MAX = 512
"""Of one pwritev; the system takes 1,024."""


class Disk:
    """The real one."""

    def create(self, path: Path, size: int) -> int:
        """A new file of ``size`` zeros that are really there, open for writing; nothing is left of it on failure."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
        except BaseException:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        return descriptor

    def write(self, descriptor: int, buffers: Sequence[bytes], offset: int) -> None:
        """Write all of ``buffers`` at ``offset``, however the system cuts it up."""
        for start in range(0, len(buffers), _BUFFERS_MAX):
            some = list(buffers[start : start + _BUFFERS_MAX])
            while some:
                written = os.pwritev(descriptor, some, offset)
                offset += written
                ends = list(accumulate(map(len, some)))
                whole = sum(1 for end in ends if end <= written)
                rest = written - (ends[whole - 1] if whole else 0)
                some = some[whole:]
                if rest:
                    some[0] = some[0][rest:]

    def sync(self, descriptor: int) -> None:
        """Return when what was written is on the medium."""
        os.fdatasync(descriptor)

    def sync_file(self, descriptor: int) -> None:
        """The same with all the file's metadata: for a new one."""
        os.fsync(descriptor)

    def sync_path(self, path: Path) -> None:
        """Return when what is read from a file is on the medium: who wrote it may have ended before he synced it.

        What a sync failed for is never synced any more, and yet read, for as long as it is in the cache. So that goes,
        but for a file without room at its end: that was left in order.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
            end = os.pread(descriptor, ROOM_BYTES, max(0, os.fstat(descriptor).st_size - ROOM_BYTES))
            if not end.strip(b"\0") and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

    def sync_directory(self, path: Path) -> None:
        """Return when the names in a directory are on the medium."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def leave(self, descriptor: int, size: int) -> None:
        """Close a file for ever and give back what lies behind its first ``size`` bytes."""
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)

    def trim(self, path: Path, size: int) -> None:
        """Give back what lies behind the first ``size`` bytes of a file that nobody writes any more."""
        os.truncate(path, size)

    def close(self, descriptor: int) -> None:
        """Close a file as it is."""
        os.close(descriptor)

    def remove(self, path: Path) -> None:
        """Remove a file's name, if it is there."""
        path.unlink(missing_ok=True)

    def free_bytes(self, path: Path) -> int:
        """What this process may still write on the disk of ``path``."""
        there = os.statvfs(path)
        return there.f_bavail * there.f_frsize
