"""The dead letters of one slot: files of rows that no table would take, kept until they are replayed.

``deadletters/TABLE.FRAME.jsonl`` in the slot's directory, FRAME in 16 hex digits: the rows of one frame,
one letter a line (``letter.py``). A file is there whole or not at all, whatever crashes: it is written
aside, synced, renamed, and its directory synced, before the spool is told that the frame is settled. A
frame that is searched again after a crash has its file taken back first, so no row is in two letters.

The budget counts each file as at least one page of the disk. When it is spent nothing is thrown away:
``write`` refuses, and the rows stay in the spool. Whoever changes files holds ``deadletters/lock``.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from gateway.delivery.disk import Disk
from gateway.delivery.letter import Letter, line

FOLDER = "deadletters"
PAGE_BYTES = 4096
_NAME = re.compile(r"(\w+)\.([0-9a-f]{16})\.jsonl")


class DeadLettersFull(Exception):
    """The budget is spent."""


class DeadLettersBusy(Exception):
    """Somebody else changes the files at this moment."""


@dataclass(frozen=True, slots=True, order=True)
class LetterFile:
    """The dead letters of one frame."""

    path: Path
    table: str
    frame: int

    def letters(self) -> list[Letter]:
        """What is in it; nothing when it is gone. Raises ValueError for a file that somebody has damaged."""
        try:
            return [orjson.loads(each) for each in self.path.read_bytes().splitlines() if each]
        except FileNotFoundError:
            return []


class DeadLetters:
    """The dead letters in one slot's directory. All methods block; OSError is the disk's."""

    def __init__(self, slot_directory: Path, *, bytes_max: int, disk: Disk | None = None) -> None:
        self._folder = slot_directory / FOLDER
        self._bytes_max = bytes_max
        self._disk = disk or Disk()

    @property
    def used_bytes(self) -> int:
        """Of the budget."""
        return sum(max(PAGE_BYTES, file.path.stat().st_size) for file in self.files())

    def files(self) -> list[LetterFile]:
        """All there are, oldest frame first in each table."""
        if not self._folder.is_dir():
            return []
        named = [(path, _NAME.fullmatch(path.name)) for path in self._folder.iterdir()]
        return sorted(LetterFile(path, found[1], int(found[2], 16)) for path, found in named if found)

    def write(self, table: str, frame: int, letters: Sequence[Letter]) -> None:
        """Keep the letters of one frame; they are on disk when this returns. Raises DeadLettersFull."""
        data = b"".join(map(line, letters))
        with self.locked():
            used = self.used_bytes
            if used + max(PAGE_BYTES, len(data)) > self._bytes_max:
                raise DeadLettersFull(f"{used} of {self._bytes_max} bytes are used and {len(data)} more are needed")
            self._put(self._path(table, frame), data)

    def withdraw(self, table: str, frame: int) -> None:
        """Take back what was written of a frame that is searched again."""
        path = self._path(table, frame)
        if path.exists():
            with self.locked():
                self._remove(path)

    def take_over(self, other: DeadLetters) -> None:
        """Move another slot's letters here, ahead of its frames: one that is searched again takes back its own."""
        files = other.files()
        if not files:
            return
        with other.locked(), self.locked():
            for file in files:
                file.path.rename(self._folder / file.path.name)
            for folder in (self._folder, other._folder):
                self._disk.sync_directory(folder)

    def keep(self, file: LetterFile, letters: Sequence[Letter]) -> None:
        """Keep only these of a file's letters. Inside ``locked``."""
        if letters:
            self._put(file.path, b"".join(map(line, letters)))
        else:
            self._remove(file.path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock. Raises DeadLettersBusy when somebody else does."""
        if not self._folder.is_dir():
            self._folder.mkdir(mode=0o700)
            self._disk.sync_directory(self._folder.parent)
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise DeadLettersBusy("dead letters are being replayed") from error
        finally:
            os.close(descriptor)

    def _path(self, table: str, frame: int) -> Path:
        return self._folder / f"{table}.{frame:016x}.jsonl"

    def _put(self, path: Path, data: bytes) -> None:
        draft = path.with_suffix(".new")
        draft.unlink(missing_ok=True)  # of a crash
        descriptor = self._disk.create(draft, len(data))
        try:
            try:
                self._disk.write(descriptor, [data], 0)
                self._disk.sync_file(descriptor)
            finally:
                self._disk.close(descriptor)
            draft.rename(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        self._disk.sync_directory(self._folder)

    def _remove(self, path: Path) -> None:
        self._disk.remove(path)
        self._disk.sync_directory(self._folder)
