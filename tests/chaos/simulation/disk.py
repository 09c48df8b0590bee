"""A disk that forgets: what was not synced may be lost, torn or kept when the power is cut.

Files are real ones, on a RAM disk, and always hold what a living system sees. Beside them stands what a power
cut may take away: bytes written since the file's last sync, names changed since the directory's.

After a sync that failed the bytes it was for are never synced any more, as on Linux; the system may forget them
even without a power cut, and shows what the medium has when the next process looks. Names are lost from the last
change on backwards, as a journal does it; bytes in any order, by sectors.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from gateway.delivery.disk import Disk


class Cut(BaseException):
    """The process, or the machine, ends in the middle of this call."""


@dataclass
class Faults:
    """How often each call fails."""

    create: float = 0.0
    write: float = 0.0
    sync: float = 0.0
    sync_directory: float = 0.0
    leave: float = 0.0
    remove: float = 0.0
    read: float = 0.0


@dataclass(eq=False)
class _File:
    """``unsynced``: (offset, length) written since the last sync; ``doubtful``: the same of syncs that failed.

    ``untruncated``: its size before it was cut, when that is not synced.
    """

    path: Path
    size: int
    unsynced: list[tuple[int, int]] = field(default_factory=list)
    doubtful: list[tuple[int, int]] = field(default_factory=list)
    untruncated: int | None = None


class Medium:
    """The machine's disk. ``capacity`` and ``taken_by_others`` are bytes.

    ``directory_syncs``: the control without them is a disk that lets them be.
    """

    def __init__(self, root: Path, random: Random, note: Callable[[str], None]) -> None:
        self.capacity = 1 << 40
        self.taken_by_others = 0
        self.faults = Faults()
        self.note = note
        self._random = random
        self.files: dict[Path, _File] = {}
        self._changes: dict[Path, list[tuple[_File, Path | None, Path | None]]] = {}
        """Of each directory since its last sync: the file, its path before and after."""
        self._graveyard = root / "removed"
        self._graveyard.mkdir()
        self._buried = 0
        self.cut_at_rename: int | None = None
        self.forgetful = False

    @property
    def used(self) -> int:
        return self.taken_by_others + sum(file.size for file in self.files.values())

    def fails(self, chance: float) -> bool:
        return chance > 0 and self._random.random() < chance

    def uniform(self, most: float) -> float:
        return self._random.random() * most

    def create(self, path: Path, size: int) -> int:
        if self.used + size > self.capacity:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.fails(self.faults.create):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(descriptor, size)
        file = self.files[path] = _File(path, size)
        self._change(path.parent, file, None, path)
        return descriptor

    def file(self, path: Path) -> _File:
        return self.files[path]

    def written(self, file: _File, offset: int, length: int) -> None:
        if length:
            file.unsynced.append((offset, length))

    def synced(self, file: _File) -> None:
        file.unsynced.clear()
        file.untruncated = None

    def not_synced(self, file: _File) -> None:
        """A sync has failed."""
        if self.fails(0.3):
            self.forgetful = True
            self._forget(file, file.unsynced, "torn")
            file.unsynced = []
        file.doubtful += file.unsynced
        file.unsynced = []

    def drop_cache(self, file: _File) -> None:
        """What failed syncs were for is read from the medium from now on."""
        if file.doubtful:
            self.forgetful = True
            self._forget(file, file.doubtful, self._random.choice(("lost", "kept", "torn", "short")))
            file.doubtful = []

    def sync_directory(self, directory: Path) -> None:
        self._changes.pop(directory, None)

    def remove(self, path: Path) -> None:
        file = self.files.pop(path, None)
        if file is None:
            path.unlink(missing_ok=True)
            return
        self._buried += 1
        grave = self._graveyard / str(self._buried)
        os.rename(path, grave)  # noqa: PTH104 - Path's own is simulated
        file.path = grave
        self._change(path.parent, file, path, None)

    def rename(self, path: Path, target: Path) -> None:
        if self.cut_at_rename is not None:
            self.cut_at_rename -= 1
            if self.cut_at_rename < 0:
                raise Cut
        os.rename(path, target)  # noqa: PTH104
        file = self.files.pop(path)
        file.path = target
        self.files[target] = file
        self._change(target.parent, file, path, target)

    def _change(self, directory: Path, file: _File, before: Path | None, after: Path | None) -> None:
        self._changes.setdefault(directory, []).append((file, before, after))

    def cut_power(self) -> None:
        """What was not synced is lost, torn or kept."""
        for directory in sorted(self._changes):
            changes = self._changes[directory]
            kept = self._random.choice((0, len(changes), self._random.randint(0, len(changes))))
            for file, before, after in reversed(changes[kept:]):
                self._undo(file, before, after)
        self._changes.clear()
        for path in sorted(self.files):
            file = self.files[path]
            way = self._random.choice(("lost", "kept", "torn", "torn", "short"))
            if file.untruncated is not None and self.fails(0.5):
                os.truncate(path, file.untruncated)
                file.size = file.untruncated
            if file.unsynced or file.doubtful:
                self.note(f"disk: {path.name}: {len(file.unsynced)} writes are {way}")
            self._forget(file, [*file.doubtful, *file.unsynced], way)
            file.unsynced, file.doubtful, file.untruncated = [], [], None

    def _undo(self, file: _File, before: Path | None, after: Path | None) -> None:
        self.note(f"disk: {(after or before or file.path).name}: its name is as it was")
        if after is not None:
            if self.files.pop(after, None) is not file:
                return
            if before is None:
                after.unlink()
                return
        assert before is not None
        os.rename(file.path, before)  # noqa: PTH104
        file.path = before
        self.files[before] = file

    def _forget(self, file: _File, ranges: Sequence[tuple[int, int]], way: str) -> None:
        """Put zeros, which is what was there before, where writes are lost."""
        if way == "kept" or not ranges:
            return
        sector = self._random.choice((512, 4096))
        ends = [offset + length for offset, length in ranges]
        cut = self._random.randint(min(offset for offset, _ in ranges), max(ends)) // sector * sector
        with file.path.open("r+b") as opened:
            for offset, length in ranges:
                at = offset
                while at < offset + length:
                    end = min((at // sector + 1) * sector, offset + length)
                    if way == "lost" or (way == "torn" and self.fails(0.5)) or (way == "short" and at >= cut):
                        os.pwrite(opened.fileno(), bytes(end - at), at)
                    at = end


class FakeDisk(Disk):
    """The disk as one process sees it. Its calls take time, which ``elapsed`` adds up: nobody waits here.

    ``ends_in``: seconds until the process ends; the call that goes beyond is cut. ``skipped``: is told the frames
    whose SKIP is synced.
    """

    def __init__(self, medium: Medium, ends_in: Callable[[], float], skipped: set[int]) -> None:
        self._medium = medium
        self._ends_in = ends_in
        self.skipped = skipped
        self._open: dict[int, _File] = {}
        self.elapsed = 0.0
        self.latency_s = 0.002
        self.ignores: frozenset[str] = frozenset()

    def lapse(self, seconds: float) -> None:
        """So much time goes by. Raises Cut when the process does not live that long."""
        self.elapsed += seconds
        if self.elapsed >= self._ends_in():
            raise Cut

    def note(self, what: str) -> None:
        """Write down what happens."""
        self._medium.note(what)

    def uniform(self, most: float) -> float:
        """A random number below ``most``."""
        return self._medium.uniform(most)

    def create(self, path: Path, size: int) -> int:
        self._spend()
        descriptor = self._medium.create(path, size)
        self._open[descriptor] = self._medium.file(path)
        return descriptor

    def write(self, descriptor: int, buffers: Sequence[bytes], offset: int) -> None:
        data = b"".join(buffers)
        try:
            self._spend()
        except Cut:
            self._put(descriptor, data[: int(self._medium.uniform(len(data)))], offset)
            raise
        if self._medium.fails(self._medium.faults.write):
            self._put(descriptor, data[: int(self._medium.uniform(len(data)))], offset)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._put(descriptor, data, offset)

    def sync(self, descriptor: int) -> None:
        self._spend()
        file = self._open[descriptor]
        if self._medium.fails(self._medium.faults.sync):
            self._medium.not_synced(file)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if "sync" not in self.ignores:
            self._medium.synced(file)

    def sync_file(self, descriptor: int) -> None:
        self.sync(descriptor)

    def sync_path(self, path: Path) -> None:
        if self._medium.fails(self._medium.faults.sync / 10):
            self._medium.not_synced(self._medium.file(path))
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._medium.drop_cache(self._medium.file(path))
        if "sync" not in self.ignores:
            self._medium.synced(self._medium.file(path))

    def sync_directory(self, path: Path) -> None:
        self._spend()
        if self._medium.fails(self._medium.faults.sync_directory):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if "sync_directory" not in self.ignores:
            self._medium.sync_directory(path)

    def leave(self, descriptor: int, size: int) -> None:
        file = self._open[descriptor]
        try:
            self._spend()
            if self._medium.fails(self._medium.faults.leave):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            os.ftruncate(descriptor, size)
            if file.untruncated is None:
                file.untruncated = file.size
            file.size = size
        finally:
            self.close(descriptor)

    def trim(self, path: Path, size: int) -> None:
        if self._medium.fails(self._medium.faults.leave):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        file = self._medium.file(path)
        os.truncate(path, size)
        if file.untruncated is None:
            file.untruncated = file.size
        file.size = size

    def close(self, descriptor: int) -> None:
        del self._open[descriptor]
        os.close(descriptor)

    def remove(self, path: Path) -> None:
        self._spend()
        if self._medium.fails(self._medium.faults.remove):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._medium.remove(path)

    def free_bytes(self, path: Path) -> int:
        return self._medium.capacity - self._medium.used

    def abandon(self) -> None:
        """The process is dead: the system closes what it had open."""
        for descriptor in list(self._open):
            self.close(descriptor)

    def _spend(self) -> None:
        self.lapse(self._medium.uniform(self.latency_s))

    def _put(self, descriptor: int, data: bytes, offset: int) -> None:
        if data:
            os.pwrite(descriptor, data, offset)
        self._medium.written(self._open[descriptor], offset, len(data))
