"""Group commit: one thread writes what many requests wait for, with one write and one sync.

While one group is being synced the next one gathers, so a slow disk makes groups larger, not the
queue longer. An entry's ``kept`` is called on the event loop once it is as safe as it asked for, or its
``failed`` with the OSError that kept it from it.

After a failed sync nobody knows what the file holds, and the next sync of it would succeed without the
data. So that file is left for ever, everything in the group fails, and the next group goes into a new
one, after a pause that grows while it goes on failing.

Only entries that keep the service going (SEAL, DONE, SKIP) may use the reserve, a file that is there
to be removed when the disk is full: without them nothing could be drained, and no room come back. So
blocks (DATA) fail for as long as it is gone, or they would take what was freed for the others.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.delivery.disk import Disk
from gateway.delivery.segments import (
    ALIGNMENT,
    HEADER_BYTES,
    ROOM_BYTES,
    Kind,
    Place,
    SegmentName,
    framed,
    framed_bytes,
    header,
)

log = logging.getLogger(__name__)

RESERVE = "reserve"
GROUP_BYTES_MAX = 8 << 20
"""Of one write; more waits for the next."""
SEGMENT_BYTES_MIN = 64 << 10
"""A disk that has no room for a whole segment may have some for this much."""
PAUSE_FIRST_S, PAUSE_MAX_S = 0.05, 1.0


@dataclass(slots=True, eq=False)
class Entry:
    """A frame to be written. ``synced``: on the medium, rather than with the system.

    ``failed`` is told the segment that may hold the frame all the same, None when none does.
    ``written``, where given, is called on the loop as soon as the system has the frame.
    """

    kind: Kind
    payload: bytes
    kept: Callable[[Place], None]
    failed: Callable[[OSError, int | None], None]
    number: int = 0
    table: str = ""
    project_id: str = ""
    rows: int = 0
    at_ms: int = 0
    origin: int = 0
    suspect: bool = False
    keys: bytes = b""
    synced: bool = True
    written: Callable[[], None] | None = None

    @property
    def framed_bytes(self) -> int:
        return framed_bytes(len(self.payload), self.table, self.project_id, len(self.keys))


@dataclass(slots=True, eq=False)
class Removal:
    """A file to be removed, and what is to be done before; ``is_ready``: that was done."""

    path: Path
    before: Callable[[], None]
    is_ready: bool = False


@dataclass(frozen=True, slots=True)
class Opened:
    """A new segment, ``bytes`` large on disk."""

    name: SegmentName
    bytes: int


@dataclass(frozen=True, slots=True)
class Left:
    """A segment that is not written any more, ``bytes`` large from now on."""

    segment: int
    bytes: int


class _Active:
    """The segment that is written into, up to ``end``: the room behind it tells that it was not left in order."""

    __slots__ = ("descriptor", "dirty", "end", "name", "offset", "path", "size")

    def __init__(self, name: SegmentName, path: Path, descriptor: int, size: int) -> None:
        self.name, self.path, self.descriptor, self.size = name, path, descriptor, size
        self.offset, self.end = HEADER_BYTES, size - ROOM_BYTES
        self.dirty = False


class Writer:
    """The thread that writes a slot's segments, with ordinals from ``ordinal`` on and ids by ``segment_id``.

    ``tell`` is called on the loop for each segment opened and left, before the entries in it end.
    ``wall``: seconds since 1970.
    """

    def __init__(
        self,
        directory: Path,
        *,
        slot: int,
        ordinal: int,
        segment_id: Callable[[], int],
        segment_bytes: int,
        reserve_bytes: int,
        tell: Callable[[Opened | Left], None],
        wall: Callable[[], float],
        disk: Disk,
    ) -> None:
        self._wall = wall
        self._directory = directory
        self._slot = slot
        self._ordinal = ordinal
        self._segment_id = segment_id
        self._segment_bytes = segment_bytes
        self._reserve_bytes = reserve_bytes
        self._tell = tell
        self._disk = disk
        self._queue: queue.SimpleQueue[Entry | Removal | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._active: _Active | None = None
        self._removals: deque[Removal] = deque()
        self._pause_s = 0.0
        self._next_try = 0.0
        self._reserved: bool | None = None
        """Whether the reserve is there, False when it could not be made, None when nobody has tried."""
        self.failures = 0
        """Groups that failed since the last one that did not."""

    def start(self) -> None:
        """Begin to write; entries may have come before. On the loop that is to be told."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=f"spool-{self._slot:02d}", daemon=True)
        self._thread.start()

    def append(self, entry: Entry) -> None:
        """Line up an entry. Entries are written in the order they come."""
        self._queue.put(entry)

    def remove(self, path: Path, before: Callable[[], None]) -> None:
        """Remove a file once everything that was lined up before is written, and ``before`` raises no OSError."""
        self._queue.put(Removal(path, before))

    async def stop(self) -> None:
        """Return when everything that was lined up is written, or has failed."""
        self._queue.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        try:
            self._keep_reserve()
            while True:
                entries, removed, last = self._gathered()
                if entries:
                    self._write(entries)
                for removal in removed:
                    self._remove(removal)
                if last:
                    break
        finally:
            self._leave()

    def _gathered(self) -> tuple[list[Entry], list[Removal], bool]:
        """What has come up to now, at least one thing."""
        entries: list[Entry] = []
        removed: list[Removal] = []
        gathered_bytes = 0
        item = self._queue.get()
        while True:
            if item is None:
                return entries, removed, True
            if isinstance(item, Entry):
                entries.append(item)
                gathered_bytes += len(item.payload)
            else:
                removed.append(item)
            if gathered_bytes >= GROUP_BYTES_MAX:
                return entries, removed, False
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return entries, removed, False

    def _write(self, entries: Sequence[Entry]) -> None:
        """Write entries, or fail them."""
        rest, failures = list(entries), self.failures
        while rest:
            if not self._keep_reserve():
                rest = self._without_data(rest, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
                if not rest:
                    break
            time.sleep(max(0.0, self._next_try - time.monotonic()))
            try:
                rest = self._write_some(rest)
            except OSError as error:
                rest = self._abandon(rest, error)
            except Exception as error:  # Without this thread everyone would wait for ever.
                log.exception("spool: the writer stumbled and goes on")
                rest = self._abandon(rest, OSError(errno.EIO, f"a fault in the gateway, {type(error).__name__}"))
        if self.failures == failures:
            self.failures, self._pause_s = 0, 0.0

    def _write_some(self, entries: list[Entry]) -> list[Entry]:
        """Write what fits into one segment; returns the rest."""
        active = self._room(entries)
        buffers: list[bytes] = []
        places: list[Place] = []
        offset = active.offset
        for entry in entries:
            size = entry.framed_bytes
            if offset + size > active.end or entry.origin == active.name.id:
                break
            head, tail = framed(
                active.name,
                offset,
                entry.kind,
                entry.number,
                entry.payload,
                table=entry.table,
                project_id=entry.project_id,
                rows=entry.rows,
                at_ms=entry.at_ms,
                origin=entry.origin,
                suspect=entry.suspect,
                keys=entry.keys,
            )
            buffers += (head, entry.payload + tail if tail else entry.payload)
            places.append(Place(active.name.id, offset, size))
            offset += size
        written = entries[: len(places)]
        self._disk.write(active.descriptor, buffers, active.offset)
        active.offset, active.dirty = offset, True
        early = [entry.written for entry in written if entry.written is not None]
        if early:
            self._call(_all, early)
        if any(entry.synced for entry in written):
            self._disk.sync(active.descriptor)
            active.dirty = False
        self._call(_kept, written, places)
        return entries[len(places) :]

    def _room(self, entries: Sequence[Entry]) -> _Active:
        """The active segment with room for the first of ``entries``.

        A copy goes to another segment than its original: what is said of a frame is said by segment and number.
        """
        wanted, active = entries[0].framed_bytes, self._active
        least = HEADER_BYTES + wanted + ROOM_BYTES
        if active is not None and active.offset + wanted <= active.end and entries[0].origin != active.name.id:
            return active
        self._leave()
        vital = entries[0].kind != Kind.DATA
        for size in self._sizes(least):
            try:
                return self._open(size)
            except OSError as error:
                failure = error
        if vital and self._release_reserve():
            return self._open(max(SEGMENT_BYTES_MIN, least + -least % ALIGNMENT))
        raise failure

    def _sizes(self, least: int) -> Iterator[int]:
        size = max(self._segment_bytes, least)
        while size > max(SEGMENT_BYTES_MIN, least):
            yield size
            size //= 4
        yield max(SEGMENT_BYTES_MIN, least)

    def _open(self, size: int) -> _Active:
        name = SegmentName(self._ordinal, self._segment_id())
        path = self._directory / name.file
        descriptor = self._disk.create(path, size)
        try:
            self._disk.write(descriptor, [header(name, int(self._wall() * 1000), size)], 0)
            self._disk.sync_file(descriptor)
            self._disk.sync_directory(self._directory)
        except OSError:
            self._disk.close(descriptor)
            self._gone(path)  # It holds nothing, so it waits for no other.
            raise
        self._ordinal += 1
        self._active = _Active(name, path, descriptor, size)
        self._call(self._tell, Opened(name, size))
        return self._active

    def _leave(self) -> None:
        """Be done with the active segment, if there is one; what it holds is synced first."""
        active, self._active = self._active, None
        if active is None:
            return
        try:
            if active.dirty:
                self._disk.sync(active.descriptor)
        except OSError as error:
            log.error("spool: %s could not be synced when it was left: %s", active.name.file, error.strerror)  # noqa: TRY400
            self._close(active)
            return
        try:
            self._disk.leave(active.descriptor, active.offset)
        except OSError as error:
            log.warning("spool: %s keeps its room: %s", active.name.file, error.strerror)
            active.offset = active.size
        self._call(self._tell, Left(active.name.id, active.offset))

    def _close(self, active: _Active) -> None:
        """Be done with a file of which nobody knows what the medium has; by its room it is known later."""
        try:
            self._disk.close(active.descriptor)
        except OSError:
            log.warning("spool: %s could not be closed", active.name.file)
        self._call(self._tell, Left(active.name.id, active.size))

    def _abandon(self, entries: list[Entry], error: OSError) -> list[Entry]:
        """Fail entries and never touch the file they were meant for again; returns those to be tried once more."""
        active, self._active = self._active, None
        self._pause_s = min(PAUSE_MAX_S, max(PAUSE_FIRST_S, 2 * self._pause_s))
        self._next_try = time.monotonic() + self._pause_s
        if active is None:
            # Data may have no room where what keeps the service going still has.
            rest = self._without_data(entries, error)
            if len(rest) < len(entries):
                return rest
        else:
            self._close(active)
        self.failures += 1
        self._call(_failed, entries, error, active.name.id if active is not None else None)
        return []

    def _without_data(self, entries: list[Entry], error: OSError) -> list[Entry]:
        """Fail the blocks among entries, for which no segment could be had; returns the others."""
        data = [entry for entry in entries if entry.kind == Kind.DATA]
        if data:
            self.failures += 1
            self._call(_failed, data, error, None)
        return [entry for entry in entries if entry.kind != Kind.DATA]

    def _remove(self, removal: Removal) -> None:
        """Remove a file, and those before it that could not be: what is said of a file goes after it, never before."""
        self._removals.append(removal)
        while self._removals and self._is_ready(self._removals[0]) and self._gone(self._removals[0].path):
            self._removals.popleft()
        self._keep_reserve()

    def _is_ready(self, removal: Removal) -> bool:
        """Whether what is to be done before a removal is done. It may use the reserve, for it gives back more."""
        try:
            if not removal.is_ready:
                removal.before()
        except OSError as error:
            if error.errno == errno.ENOSPC and self._release_reserve():
                return self._is_ready(removal)
            log.warning("spool: %s cannot be removed yet: %s", removal.path.name, error.strerror)
            return False
        removal.is_ready = True
        return True

    def _gone(self, path: Path) -> bool:
        """Remove a file's name, and see that it stays removed; whether that worked."""
        try:
            self._disk.remove(path)
            self._disk.sync_directory(self._directory)
        except OSError as error:
            log.warning("spool: %s could not be removed: %s", path.name, error.strerror)
            return False
        return True

    def _keep_reserve(self) -> bool:
        """See that the reserve is there; without room it is made when some comes back."""
        if self._reserved:
            return True
        path = self._directory / RESERVE
        try:
            if not path.exists():
                self._disk.close(self._disk.create(path, self._reserve_bytes))
        except OSError as error:
            if self._reserved is None:
                log.warning("spool: no room for a reserve, so none for blocks: %s", error.strerror)
            self._reserved = False
        else:
            self._reserved = True
        return self._reserved

    def _release_reserve(self) -> bool:
        path = self._directory / RESERVE
        there = path.exists()
        self._disk.remove(path)
        if self._reserved:
            self._reserved = None
        return there

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            log.debug("spool: the loop is closed; nobody is left to be told")


def _all(functions: Sequence[Callable[[], None]]) -> None:
    for function in functions:
        function()


def _kept(entries: Sequence[Entry], places: Sequence[Place]) -> None:
    for entry, place in zip(entries, places, strict=True):
        _tell(entry.kept, place)


def _failed(entries: Sequence[Entry], error: OSError, segment: int | None) -> None:
    for entry in entries:
        _tell(entry.failed, error, segment)


def _tell(told: Callable[..., object], *arguments: object) -> None:
    """One entry's stumbling must not keep the others of its group waiting."""
    try:
        told(*arguments)
    except Exception:
        log.exception("spool: what became of an entry could not be told")
