"""The idempotency keys of frames that are gone: files in the slot's directory, until the keys are forgotten.

    NEWEST-ID.keys      the newest key's seconds since 1970, and a number never given before; 8 and 16 hex digits
                        magic "WEIRKEY\\n" | entries of 32 bytes, as frames carry them | CRC32C of all before, u32

A segment's keys that are still to be known are written, synced, before the segment is removed. A file goes when
its newest key is forgotten; many small ones are made one. Of a damaged file the keys are forgotten, which is logged.
"""

from __future__ import annotations

import logging
import re
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from gateway._native import crc32c
from gateway.delivery.disk import Disk
from gateway.delivery.idempotency import Idempotency
from gateway.delivery.ledger import Segment
from gateway.delivery.segments import KEY_BYTES, Frame, SegmentReader

log = logging.getLogger(__name__)

FILES_MAX = 16
"""More are made one."""
TRIES = 10
"""Of reading the keys of a segment that could go; then they are forgotten."""
_MAGIC = b"WEIRKEY\n"
_CRC = struct.Struct("<I")
_AT = struct.Struct("<I")
_AT_OFFSET = 16
_NAME = re.compile(r"([0-9a-f]{8})-([0-9a-f]{16})\.keys")


class KeyFiles:
    """Those of one slot. Everything here blocks, and raises OSError; ``number`` gives one never given before."""

    def __init__(self, directory: Path, disk: Disk, keys: Idempotency, number: Callable[[], int]) -> None:
        self._directory = directory
        self._disk = disk
        self._keys = keys
        self._number = number
        self._unread: Counter[int] = Counter()
        self._merged: set[Path] = set()

    def load(self) -> None:
        """Make known what the files hold."""
        for _, path in found_files(self._directory):
            self._keys.found(_entries(path))

    def keep_of(self, segment: Segment) -> None:
        """See that the keys of a segment outlive it."""
        try:
            with SegmentReader(segment.path, segment.name, segment.end) as reader:
                frames = (found for found in reader.frames() if isinstance(found, Frame) and found.keys_bytes)
                entries = b"".join(map(reader.keys, frames))
        except FileNotFoundError:
            return  # It is a removal that has to be synced once more.
        except OSError as error:
            self._unread[segment.name.id] += 1
            if self._unread[segment.name.id] < TRIES:
                raise
            log.error("spool: the keys in %s are forgotten: %s", segment.name.file, error.strerror)  # noqa: TRY400
            return
        if entries:
            self.keep(entries)

    def keep(self, entries: bytes) -> None:
        """Write those of a segment's keys that are to outlive it, and tidy up."""
        entries = self._keys.still_kept(entries)
        files = [(newest_s, path) for newest_s, path in found_files(self._directory) if path not in self._merged]
        over = [path for newest_s, path in files if self._keys.is_over(newest_s)]
        rest = [path for newest_s, path in files if not self._keys.is_over(newest_s)]
        # Where files cannot be removed nothing is won by making them one again.
        is_merging = len(rest) >= FILES_MAX and not self._merged
        if is_merging:
            entries = _distinct(entries + b"".join(self._keys.still_kept(_entries(path)) for path in rest))
        if entries:
            self._write(entries)
        if is_merging:
            self._merged.update(rest)
        for path in (*over, *self._merged):
            try:
                self._disk.remove(path)
            except OSError as error:  # It is tried again with the next ones.
                log.warning("spool: %s could not be removed: %s", path.name, error.strerror)
            else:
                self._merged.discard(path)

    def _write(self, entries: bytes) -> None:
        newest_s = max(_AT.unpack_from(entries, start + _AT_OFFSET)[0] for start in range(0, len(entries), KEY_BYTES))
        path = self._directory / f"{newest_s:08x}-{self._number():016x}.keys"
        whole = _MAGIC + entries
        whole += _CRC.pack(crc32c(whole))
        descriptor = self._disk.create(path, len(whole))
        try:
            self._disk.write(descriptor, [whole], 0)
            self._disk.sync_file(descriptor)
            self._disk.sync_directory(self._directory)
        except OSError:
            self._disk.remove(path)
            raise
        finally:
            self._disk.close(descriptor)


def found_files(directory: Path) -> list[tuple[int, Path]]:
    """(the newest key's seconds since 1970, path) of each, oldest first."""
    named = [(_NAME.fullmatch(path.name), path) for path in directory.iterdir()]
    return sorted((int(name[1], 16), path) for name, path in named if name)


def _distinct(entries: bytes) -> bytes:
    return b"".join(dict.fromkeys(entries[at : at + KEY_BYTES] for at in range(0, len(entries), KEY_BYTES)))


def _entries(path: Path) -> bytes:
    whole = path.read_bytes()
    entries = whole[len(_MAGIC) : -_CRC.size]
    damaged = len(whole) < len(_MAGIC) + _CRC.size or not whole.startswith(_MAGIC) or len(entries) % KEY_BYTES
    if damaged or _CRC.unpack_from(whole, len(whole) - _CRC.size)[0] != crc32c(whole[: -_CRC.size]):
        log.error("spool: %s is damaged: its idempotency keys are forgotten", path.name)
        return b""
    return entries
