"""Disks for tests: the real one, watched, held and failing; one that power is cut from; one that is full."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from gateway.delivery.disk import Disk
from gateway.delivery.segments import Frame, SegmentReader, found_segments
from gateway.delivery.writer import RESERVE


def frames(directory: Path) -> dict[int, Frame]:
    """The whole frames of a directory by number; what is no frame fails."""
    found: dict[int, Frame] = {}
    for name, path in found_segments(directory):
        with SegmentReader(path, name) as reader:
            for frame in reader.frames(whole=True):
                assert isinstance(frame, Frame)
                found[frame.number] = frame
    return found


class Recording(Disk):
    """The real disk. Says what it did to which file, can be held at a sync, and fails where it is told to."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self.fails: Callable[[str, str], OSError | None] = lambda what, name: None
        self.go = threading.Event()
        self.go.set()
        self.held = threading.Event()
        self._names: dict[int, str] = {}

    def _note(self, what: str, name: str) -> None:
        self.done.append((what, name))
        error = self.fails(what, name)
        if error is not None:
            raise error

    def create(self, path: Path, size: int) -> int:
        self._note("create", path.name)
        descriptor = super().create(path, size)
        self._names[descriptor] = path.name
        return descriptor

    def write(self, descriptor: int, buffers: Sequence[bytes], offset: int) -> None:
        self._note("write", self._names[descriptor])
        super().write(descriptor, buffers, offset)

    def sync(self, descriptor: int) -> None:
        self.held.set()
        self.go.wait()
        self._note("sync", self._names[descriptor])
        super().sync(descriptor)

    def sync_file(self, descriptor: int) -> None:
        self._note("sync file", self._names[descriptor])
        super().sync_file(descriptor)

    def sync_directory(self, path: Path) -> None:
        self._note("sync directory", "")
        super().sync_directory(path)

    def leave(self, descriptor: int, size: int) -> None:
        self._note("leave", self._names[descriptor])
        super().leave(descriptor, size)

    def close(self, descriptor: int) -> None:
        self._note("close", self._names[descriptor])
        super().close(descriptor)

    def remove(self, path: Path) -> None:
        self._note("remove", path.name)
        super().remove(path)

    def count(self, what: str) -> int:
        return sum(1 for done, name in self.done if done == what and name != RESERVE)


def failing(what: str, code: int, *, after: int = 0, times: int = 1) -> Callable[[str, str], OSError | None]:
    """Fail some calls of one sort, after some that do not fail."""
    left = [after, times]

    def fails(called: str, name: str) -> OSError | None:
        if called != what or name == RESERVE:
            return None
        if left[0]:
            left[0] -= 1
            return None
        if not left[1]:
            return None
        left[1] -= 1
        return OSError(code, os.strerror(code))

    return fails


class Medium(Recording):
    """What a power cut would leave: files whose name was synced, with the bytes that were synced.

    After a failed sync the next one succeeds without the data, as Linux does.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pending: dict[str, list[tuple[int, bytes]]] = {}
        self._bytes: dict[str, bytearray] = {}
        self._named: set[str] = set()

    def create(self, path: Path, size: int) -> int:
        descriptor = super().create(path, size)
        self._bytes[path.name] = bytearray(size)
        self._pending[path.name] = []
        return descriptor

    def write(self, descriptor: int, buffers: Sequence[bytes], offset: int) -> None:
        super().write(descriptor, buffers, offset)
        self._pending[self._names[descriptor]].append((offset, b"".join(buffers)))

    def sync(self, descriptor: int) -> None:
        try:
            super().sync(descriptor)
            self._apply(self._names[descriptor])
        finally:
            self._pending[self._names[descriptor]].clear()

    def sync_file(self, descriptor: int) -> None:
        super().sync_file(descriptor)
        self._apply(self._names[descriptor])

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        self._named = set(self._bytes)

    def _apply(self, name: str) -> None:
        for offset, data in self._pending[name]:
            self._bytes[name][offset : offset + len(data)] = data
        self._pending[name].clear()

    def after_a_power_cut(self, directory: Path) -> dict[int, Frame]:
        directory.mkdir()
        for name in self._named:
            (directory / name).write_bytes(self._bytes[name])
        return frames(directory)


class Small(Recording):
    """A disk of so many bytes, its files' sizes taken together; others may take some of them."""

    def __init__(self, directory: Path, size: int) -> None:
        super().__init__()
        self.size = size
        self._directory = directory

    def create(self, path: Path, size: int) -> int:
        used = sum(other.stat().st_size for other in self._directory.iterdir())
        if used + size > self.size:
            self.done.append(("no room", path.name))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().create(path, size)
