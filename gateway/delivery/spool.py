"""The spool: what was accepted is on disk here until ClickHouse has it.

    append(block) --group commit--> DATA kept --seal--> SEAL kept --insert--> done --> DONE kept
                                      |                                         |
                                      '--too much for memory: left on disk      '--all of a segment's frames
                                          '--load(table)--> block again             are done: file removed

One spool is one slot's directory: segments as ``segments.py`` lays them out, a ``lock`` and an ``epoch``
(``frames.py``), a ``reserve`` (``writer.py``), and ``quarantine/`` with what damage left. Each opening
starts a new segment in a new epoch; old segments are only read.

Invariants:
  1. A block's receipt wakes only after its DATA frame is as safe as the receipt's durability says.
  2. A frame is *held* (a block in memory stands for it), *settled* (nothing is left to do), or else
     found again by ``load``; never two of these, so a frame is in at most one batch.
  3. An insert is sent only after the SEAL with its token is synced. After a restart a sealed batch has
     the same token and the same frames, and its outcome counts as unknown.
  4. A segment is removed when all its frames are settled, for ``audit_s`` at least, and when none of
     its SEAL, DONE and SKIP frames is needed: they name no frame in a segment that is still there.
  5. What is refused to a sender is not delivered: a failed group's frames are SKIPped.

Opening reads names alone. Old segments are walked by their heads in the background (``recovered``);
payloads are checked as they are loaded, so a long backlog delays nobody. Damage is copied to
``quarantine/``, counted, said, and stepped over; only what it hit is lost.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from gateway.delivery.block import Block, Durability
from gateway.delivery.disk import Disk
from gateway.delivery.frames import FrameNumbers, SlotTaken, lock_slot, slot_place
from gateway.delivery.seals import Sealed, disjoint
from gateway.delivery.segments import (
    HEADER_BYTES,
    Damage,
    Frame,
    Kind,
    Member,
    Place,
    SegmentName,
    SegmentReader,
    listed,
    segment_name,
)
from gateway.delivery.writer import Entry, Left, Opened, Writer

log = logging.getLogger(__name__)

QUARANTINE = "quarantine"
QUARANTINE_BYTES_MAX = 256 << 20
SPARSE_SEGMENTS_MIN = 4
"""So many segments' worth of disk is lost to what is settled before any is compacted,"""
SPARSE_PART = 0.25
"""and only those of which less than this part is left."""
AGAIN_S = 1.0
"""Until what is only for our own use, and could not be written, is tried again."""


@dataclass(slots=True, eq=False)
class Segment:
    """What is known of one segment file. ``bytes``: its size on disk, ``end``: how far it may be read.

    ``live``: frames that are not settled; ``settled``: the numbers of those that are, while others are
    not. ``unread``: per table, from where on frames may be neither held nor settled. ``names``: the
    segments that its SEAL, DONE and SKIP frames and its copies speak of.
    """

    name: SegmentName
    path: Path
    bytes: int
    end: int
    closed: bool = False
    live: int = 0
    live_bytes: int = 0
    settled: set[int] = field(default_factory=set)
    unread: dict[str, int] = field(default_factory=dict)
    names: set[int] = field(default_factory=set)
    finished: float | None = None
    stuck: bool = False
    """It could not be compacted."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What earlier lives left: rows per (project, table), and in how many frames."""

    rows: dict[tuple[str, str], int]
    frames: int


class Spool:
    """The spool of one slot. Belongs to one event loop; ``recover`` and ``load`` read in threads of their own.

    ``numbers`` says which slot, and must stay open as long as this is. ``clock`` gives seconds that
    never go back, ``wall`` seconds since 1970.
    """

    def __init__(
        self,
        directory: Path,
        numbers: FrameNumbers,
        *,
        segment_bytes: int,
        reserve_bytes: int,
        audit_s: float,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        disk: Disk | None = None,
    ) -> None:
        self.directory = directory
        self.project_bytes: dict[str, int] = {}
        self.damaged_bytes = 0
        self.on_damaged: Callable[[Block], None] = lambda block: None
        self.recovered = asyncio.Event()
        self.live_bytes = 0
        """Of frames that are not settled."""
        self.settled_bytes = 0
        """Of all frames that were, so far."""
        self._oldest: float | None = None
        self._slot = numbers.slot
        self._disk = disk or Disk()
        self._audit_s = audit_s
        self._segment_bytes = segment_bytes
        self._clock = clock
        self._wall = wall
        self._segments: dict[int, Segment] = {}
        self._held: dict[int, Block] = {}
        self._sealed: dict[str, Sealed] = {}
        self._sealed_frames: set[int] = set()
        self._damaged: set[Place] = set()
        self._quarantined_bytes = 0
        self._homes: dict[str, int] = {}
        found = _found(directory)
        for name, path in found:
            size = path.stat().st_size
            self._segments[name.id] = Segment(name, path, size, size, closed=True)
        self._old = tuple(self._segments)
        self._writer = Writer(
            directory,
            slot=numbers.slot,
            ordinal=found[-1][0].ordinal + 1 if found else 1,
            segment_id=numbers.next,
            segment_bytes=segment_bytes,
            reserve_bytes=reserve_bytes,
            tell=self._told,
            wall=wall,
            disk=self._disk,
        )

    @property
    def disk_bytes(self) -> int:
        """What all segments take on disk."""
        return sum(segment.bytes for segment in self._segments.values())

    @property
    def pinned_bytes(self) -> int:
        """What the segments with frames that are not settled take on disk."""
        return sum(
            segment.bytes if segment.closed else segment.end for segment in self._segments.values() if segment.live
        )

    @property
    def segments(self) -> int:
        """How many files."""
        return len(self._segments)

    def described(self) -> dict[str, object]:
        """What is where, for a person."""
        return {
            "segments": len(self._segments),
            "disk_bytes": self.disk_bytes,
            "frames": sum(segment.live for segment in self._segments.values()),
            "frames_held": len(self._held),
            "recovering": not self.recovered.is_set(),
            "damaged_bytes": self.damaged_bytes,
            "failures": self.failures,
        }

    def free_bytes(self) -> int | None:
        """What the disk has left; None when it does not say."""
        try:
            return self._disk.free_bytes(self.directory)
        except OSError:
            return None

    def oldest(self) -> float | None:
        """The clock when the oldest row came that was here at the start and is not stored."""
        return (
            self._oldest
            if any(self._segments[number].live for number in self._old if number in self._segments)
            else None
        )

    @property
    def failures(self) -> int:
        """Groups in a row that could not be written."""
        return self._writer.failures

    def start(self) -> None:
        """Begin to write."""
        self._writer.start()

    async def stop(self) -> None:
        """Write what is lined up, and stop. What is on disk stays for the next opening."""
        await self._writer.stop()

    # Writing -------------------------------------------------------------------------------------

    def append(self, block: Block, kept: Callable[[Block], None], failed: Callable[[Block, OSError], None]) -> None:
        """Write a block; ``kept`` is called once it is as safe as it is to be, or ``failed`` when it never will be."""

        def entered(place: Place) -> None:
            self._enter(block, place)
            kept(block)

        def refused(error: OSError, segment: int | None) -> None:
            if segment is not None:
                # The file may hold it all the same, and its sender is told otherwise.
                self._segments[segment].settled.add(block.frame)
                self._say(Kind.SKIP, block.table, [(segment, block.frame)])
            failed(block, error)

        entry = self._data(block.table, block.project_id, block.frame, block.rows, block.data, entered, refused)
        entry.at_ms = int(self._wall() * 1000)
        entry.synced = block.durability >= Durability.DISK
        entry.written = partial(block.promise.reach, Durability.OS)
        self._writer.append(entry)

    def revive(self, block: Block, kept: Callable[[Block], None], failed: Callable[[Block, OSError], None]) -> None:
        """Write a block again that was done and has to be inserted once more after all."""
        origin, block.place = block.on_disk.segment, None

        def entered(place: Place) -> None:
            self._enter(block, place)
            self._segments[place.segment].names.add(origin)
            kept(block)

        entry = self._data(
            block.table,
            block.project_id,
            block.frame,
            block.rows,
            block.data,
            entered,
            lambda error, _: failed(block, error),
        )
        entry.origin = origin
        self._writer.append(entry)

    async def seal(self, table: str, token: str, blocks: Sequence[Block]) -> None:
        """Return when the batch is sealed on disk. Raises OSError when it could not be."""
        await self._seal(Sealed(table, token, tuple(_member(block) for block in blocks)))

    def unseal(self, token: str) -> None:
        """Nothing is under way under this token any more; of its frames, some may be in other batches now."""
        self._forget_seal(token)

    def done(self, table: str, token: str, blocks: Sequence[Block]) -> None:
        """ClickHouse has these blocks; they are not held any more."""
        self._settle(Kind.DONE, table, token, blocks)

    def skip(self, table: str, token: str, blocks: Sequence[Block]) -> None:
        """These blocks need not be inserted: they are kept elsewhere now, or refused."""
        self._settle(Kind.SKIP, table, token, blocks)

    def drop(self, block: Block) -> None:
        """Let go of a block that is on disk and in no batch; ``load`` will find it."""
        del self._held[block.frame]
        self._leave_unread(block.table, block.on_disk)

    # Reading -------------------------------------------------------------------------------------

    async def recover(self) -> tuple[Backlog, list[Sealed]]:
        """Walk the segments of earlier lives. Returns what they hold, and the batches that were sealed."""
        walk = await asyncio.to_thread(self._walk)
        return self._take_over(walk)

    def has_unread(self, table: str) -> bool:
        """Whether ``load`` would look for frames of this table."""
        return self.recovered.is_set() and any(table in segment.unread for segment in self._segments.values())

    async def load(self, table: str, bytes_max: int) -> list[Block]:
        """The oldest blocks of a table that are neither held nor settled, from now on held.

        At least one where there is any, and no more than ``bytes_max`` of payloads beyond the first.
        One call at a time per table.
        """
        blocks: list[Block] = []
        for number in list(self._segments):
            segment = self._segments.get(number)
            if segment is None or table not in segment.unread or bytes_max <= 0:
                continue
            start, end = segment.unread.pop(table), segment.end
            try:
                loaded, goes_on = await asyncio.to_thread(self._load, segment, table, start, end, bytes_max)
            except OSError as error:
                log.error("spool: %s cannot be read: %s", segment.name.file, error.strerror)  # noqa: TRY400
                segment.unread[table] = start
                break
            if goes_on is not None:
                segment.unread[table] = min(goes_on, segment.unread.get(table, goes_on))
            for block, damage in loaded:
                self._held[block.frame] = block
                if damage:
                    self._give_up(block)
                else:
                    blocks.append(block)
                    bytes_max -= len(block.data)
        return blocks

    async def load_sealed(self, token: str) -> list[Block]:
        """The blocks of a sealed batch, from now on held; those that are damaged or gone are left out."""
        sealed = self._sealed[token]
        by_segment: dict[int, set[int]] = {}
        for segment_number, frame in sealed.members:
            segment = self._segments.get(segment_number)
            if segment is not None and frame not in segment.settled:
                by_segment.setdefault(segment_number, set()).add(frame)
        blocks = []
        for segment_id, wanted in by_segment.items():
            loaded = await asyncio.to_thread(self._load_these, self._segments[segment_id], wanted)
            for block, damage in loaded:
                self._held[block.frame] = block
                self._sealed_frames.discard(block.frame)
                if damage:
                    self._give_up(block)
                else:
                    blocks.append(block)
        if not blocks:
            self._forget_seal(token)
        return blocks

    async def read(self, members: Iterable[Member]) -> list[Block]:
        """Blocks as they are on disk, whatever became of them; those that are damaged or gone are left out."""
        by_segment: dict[int, set[int]] = {}
        for segment_id, frame in members:
            if segment_id in self._segments:
                by_segment.setdefault(segment_id, set()).add(frame)
        blocks: list[Block] = []
        for segment_id, wanted in by_segment.items():
            try:
                loaded = await asyncio.to_thread(self._load_these, self._segments[segment_id], wanted)
            except OSError as error:
                log.error("spool: a segment cannot be read: %s", error.strerror)  # noqa: TRY400
                continue
            blocks += [block for block, damage in loaded if not damage]
        return blocks

    def sweep(self, *, hurry: bool = False) -> None:
        """Remove the segments that nobody needs any more. To be called every second or so.

        ``hurry``: the disk is full; nothing waits for ``audit_s``.
        """
        now = self._clock()
        homes = set(self._homes.values())
        for segment_id, segment in list(self._segments.items()):
            if segment.live or not segment.closed or not self.recovered.is_set() or segment_id in homes:
                continue
            if segment.finished is None:
                segment.finished = now
            needed = any(other != segment_id and other in self._segments for other in segment.names)
            if needed or (now - segment.finished < self._audit_s and not hurry):
                continue
            del self._segments[segment_id]
            self._writer.remove(segment.path)

    async def compact(self) -> None:
        """Copy what is left in one segment to the newest, where little is left in it and much room is lost.

        Else a few rows that have to wait for long would hold a file each, and all that came after them.
        """
        segment = self._sparse()
        if segment is None:
            return
        unread, segment.unread = segment.unread, {}
        moved: dict[int, int] = {}
        try:
            frames = await asyncio.to_thread(self._read_live, segment)
            await self._copy(segment, frames, moved)
        except OSError as error:
            log.warning("spool: %s could not be copied: %s", segment.name.file, error.strerror)
            segment.unread, segment.stuck = unread, True
            return
        for token, home in list(self._homes.items()):
            sealed = self._sealed.get(token)
            if sealed is None:
                continue  # done meanwhile
            members = tuple((moved.get(frame, in_), frame) for in_, frame in sealed.members)
            if members != sealed.members or home == segment.name.id:
                await self._seal(Sealed(sealed.table, token, members), again=True)

    # -------------------------------------------------------------------------------------------

    def _sparse(self) -> Segment | None:
        lost_bytes = self.disk_bytes - self.live_bytes
        if not self.recovered.is_set() or lost_bytes < SPARSE_SEGMENTS_MIN * self._segment_bytes:
            return None
        for segment in self._segments.values():
            home = segment.live == 0 and segment.name.id in self._homes.values()
            if segment.stuck or not segment.closed or not (home or segment.live):
                continue
            if segment.live_bytes < SPARSE_PART * segment.bytes:
                return segment
        return None

    async def _copy(self, segment: Segment, frames: Sequence[tuple[Frame, bytes]], moved: dict[int, int]) -> None:
        """Append the frames again; ``moved`` is told where each is now. Raises OSError when any could not be."""
        waiting: list[asyncio.Future[None]] = []
        for frame, payload in frames:
            copied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiting.append(copied)
            entry = self._data(
                frame.table,
                frame.project_id,
                frame.number,
                frame.rows,
                payload,
                partial(self._moved, segment, frame, moved, copied),
                partial(_not_copied, copied),
            )
            entry.origin, entry.at_ms = segment.name.id, frame.at_ms
            self._writer.append(entry)
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    def _moved(
        self, segment: Segment, frame: Frame, moved: dict[int, int], copied: asyncio.Future[None], place: Place
    ) -> None:
        """A copy is kept; it stands for the frame from now on, unless that was settled meanwhile."""
        self._add(frame.project_id, place)
        self._segments[place.segment].names.add(segment.name.id)
        moved[frame.number] = place.segment
        if frame.number in segment.settled:
            self._settled(place, frame.number, frame.project_id)
            self._say(Kind.SKIP, frame.table, [(place.segment, frame.number)])
        else:
            self._settled(frame.place, frame.number, frame.project_id)
            block = self._held.get(frame.number)
            if block is not None and block.place == frame.place:
                block.place = place
            else:
                self._leave_unread(frame.table, place)
        if not copied.cancelled():
            copied.set_result(None)

    def _read_live(self, segment: Segment) -> list[tuple[Frame, bytes]]:
        """What is not settled in a segment. Raises OSError where some of it cannot be read."""
        live = []
        with SegmentReader(segment.path, segment.name, segment.end) as reader:
            for found in reader.frames():
                if isinstance(found, Frame) and found.kind == Kind.DATA and found.number not in segment.settled:
                    payload = reader.payload(found)
                    if payload is None:
                        raise OSError(errno.EIO, "damaged")
                    live.append((found, payload))
        return live

    async def _seal(self, sealed: Sealed, *, again: bool = False) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def kept(place: Place) -> None:
            self._segments[place.segment].names.update(segment for segment, _ in sealed.members)
            if not again or sealed.token in self._sealed:
                self._sealed[sealed.token] = sealed
                self._homes[sealed.token] = place.segment
            if not done.cancelled():
                done.set_result(None)

        def failed(error: OSError, _: int | None) -> None:
            if not done.cancelled():
                done.set_exception(error)

        self._writer.append(Entry(Kind.SEAL, listed(sealed.members, sealed.token), kept, failed, table=sealed.table))
        await done

    def _forget_seal(self, token: str) -> None:
        self._sealed.pop(token, None)
        self._homes.pop(token, None)

    def _data(
        self,
        table: str,
        project_id: str,
        number: int,
        rows: int,
        payload: bytes,
        kept: Callable[[Place], None],
        failed: Callable[[OSError, int | None], None],
    ) -> Entry:
        return Entry(
            Kind.DATA,
            payload,
            kept,
            failed,
            number=number,
            table=table,
            project_id=project_id,
            rows=rows,
            at_ms=int(self._wall() * 1000),
        )

    def _told(self, what: Opened | Left) -> None:
        if isinstance(what, Opened):
            path = self.directory / what.name.file
            self._segments[what.name.id] = Segment(what.name, path, what.bytes, HEADER_BYTES)
        else:
            segment = self._segments[what.segment]
            segment.closed, segment.bytes = True, what.bytes

    def _enter(self, block: Block, place: Place) -> None:
        block.place = place
        self._held[block.frame] = block
        self._add(block.project_id, place)

    def _add(self, project_id: str, place: Place) -> None:
        segment = self._segments[place.segment]
        segment.end = max(segment.end, place.offset + place.bytes)
        segment.live += 1
        segment.live_bytes += place.bytes
        self.live_bytes += place.bytes
        self.project_bytes[project_id] = self.project_bytes.get(project_id, 0) + place.bytes

    def _settle(self, kind: Kind, table: str, token: str, blocks: Sequence[Block]) -> None:
        on_disk = [block for block in blocks if block.place is not None]
        for block in on_disk:
            self._held.pop(block.frame, None)
            self._settled(block.on_disk, block.frame, block.project_id)
        self._forget_seal(token)
        if on_disk:
            self._say(kind, table, [_member(block) for block in on_disk])

    def _settled(self, place: Place, frame: int, project_id: str) -> None:
        segment = self._segments[place.segment]
        segment.live -= 1
        segment.live_bytes -= place.bytes
        segment.settled.add(frame)
        self.live_bytes -= place.bytes
        self.settled_bytes += place.bytes
        left = self.project_bytes[project_id] - place.bytes
        if left > 0:
            self.project_bytes[project_id] = left
        else:
            del self.project_bytes[project_id]

    def _say(self, kind: Kind, table: str, members: list[Member]) -> None:
        """Write down what became of frames, at some time: until then a restart would only ask again."""

        def kept(place: Place) -> None:
            self._segments[place.segment].names.update(segment for segment, _ in members)

        def failed(error: OSError, _: int | None) -> None:
            asyncio.get_running_loop().call_later(AGAIN_S, self._say, kind, table, members)

        self._writer.append(Entry(kind, listed(members), kept, failed, table=table, synced=kind == Kind.SKIP))

    def _give_up(self, block: Block) -> None:
        """The disk has lost this block."""
        self.skip(block.table, "", [block])
        self.on_damaged(block)

    def _leave_unread(self, table: str, place: Place) -> None:
        unread = self._segments[place.segment].unread
        unread[table] = min(place.offset, unread.get(table, place.offset))

    # In threads ------------------------------------------------------------------------------------

    def _walk(self) -> _Walk:
        """From the newest segment back: what became of a frame stands behind it, and is known when it is met."""
        walk = _Walk()
        for number in reversed(self._old):
            segment = self._segments[number]
            try:
                with SegmentReader(segment.path, segment.name) as reader:
                    self._walk_segment(reader, walk)
            except OSError as error:
                log.error("spool: %s cannot be read: %s", segment.name.file, error.strerror)  # noqa: TRY400
                walk.unreadable.add(number)
        return walk

    def _walk_segment(self, reader: SegmentReader, walk: _Walk) -> None:
        number = reader.name.id
        if fault := reader.header_fault():
            log.error("spool: %s: %s; going by its name", reader.name.file, fault)
            self._quarantine(reader, Place(number, 0, HEADER_BYTES))
        data: list[Frame] = []
        for found in reader.frames():
            if isinstance(found, Damage):
                self._quarantine(reader, found.place)
            elif found.kind == Kind.DATA:
                data.append(found)
                if found.origin:
                    walk.settle(number, [(found.origin, found.number)])
            elif (said := reader.members(found)) is None:
                self._quarantine(reader, found.place)
            else:
                walk.records(found, *said)
        walk.live(number, data)

    def _load(
        self, segment: Segment, table: str, start: int, end: int, bytes_max: int
    ) -> tuple[list[tuple[Block, bool]], int | None]:
        """((block, whether it is damaged) of a table, where to go on), read from ``start``."""
        loaded: list[tuple[Block, bool]] = []
        loaded_bytes = 0
        with SegmentReader(segment.path, segment.name, end) as reader:
            for found in reader.frames(start):
                if isinstance(found, Damage):
                    self._quarantine(reader, found.place)
                    continue
                if found.kind != Kind.DATA or found.table != table:
                    continue
                if self._is_known(segment, found.number):
                    continue
                if loaded and loaded_bytes + found.payload_bytes > bytes_max:
                    return loaded, found.place.offset
                loaded.append(self._block(reader, found))
                loaded_bytes += found.payload_bytes
        return loaded, None

    def _load_these(self, segment: Segment, wanted: set[int]) -> list[tuple[Block, bool]]:
        with SegmentReader(segment.path, segment.name, segment.end) as reader:
            return [
                self._block(reader, found)
                for found in reader.frames()
                if isinstance(found, Frame) and found.kind == Kind.DATA and found.number in wanted
            ]

    def _is_known(self, segment: Segment, frame: int) -> bool:
        return frame in segment.settled or frame in self._held or frame in self._sealed_frames

    def _block(self, reader: SegmentReader, frame: Frame) -> tuple[Block, bool]:
        payload = reader.payload(frame)
        if payload is None:
            self._quarantine(reader, frame.place)
        age_s = max(0.0, self._wall() - frame.at_ms / 1000)
        block = Block(
            frame.table,
            frame.project_id,
            frame.number,
            frame.rows,
            payload or b"",
            self._clock() - age_s,
            place=frame.place,
        )
        return block, payload is None

    def _quarantine(self, reader: SegmentReader, place: Place) -> None:
        """Put damaged bytes aside, as far as there is room for them."""
        if place in self._damaged:
            return
        self._damaged.add(place)
        self.damaged_bytes += place.bytes
        log.error(
            "spool: %s: %d bytes from %d on are damaged; going on behind them",
            reader.name.file,
            place.bytes,
            place.offset,
        )
        self._quarantined_bytes += place.bytes
        if self._quarantined_bytes > QUARANTINE_BYTES_MAX:
            return
        aside = self.directory / QUARANTINE / f"{reader.name.file}-{place.offset:08x}"
        try:
            aside.parent.mkdir(mode=0o700, exist_ok=True)
            with open(aside, "wb", opener=_private) as file:
                file.writelines(reader.raw(place))
        except OSError as error:
            log.error("spool: they could not be put aside: %s", error.strerror)  # noqa: TRY400

    def _take_over(self, walk: _Walk) -> tuple[Backlog, list[Sealed]]:
        for number in self._old:
            segment = self._segments[number]
            segment.names = walk.names.get(number, set())
            segment.settled = walk.settled.get(number, set())
            segment.unread = walk.unread.get(number, {})
            segment.live = walk.frames.get(number, 0)
            segment.live_bytes = walk.live_bytes.get(number, 0)
            if number in walk.unreadable:
                segment.live += 1  # Nobody knows what it holds: it stays.
        for project_id, project_bytes in walk.project_bytes.items():
            self.project_bytes[project_id] = self.project_bytes.get(project_id, 0) + project_bytes
            self.live_bytes += project_bytes
        if walk.oldest_ms is not None:
            self._oldest = self._clock() - max(0.0, self._wall() - walk.oldest_ms / 1000)
        open_seals = [sealed for sealed in disjoint(walk.seals.values()) if self._is_open(sealed)]
        for sealed in open_seals:
            self._sealed[sealed.token] = sealed
            self._homes[sealed.token] = walk.homes[sealed.token]
            self._sealed_frames.update(frame for _, frame in sealed.members)
        self.recovered.set()
        return Backlog(walk.rows, sum(walk.frames.values())), open_seals

    def _is_open(self, sealed: Sealed) -> bool:
        return any(
            segment in self._segments and frame not in self._segments[segment].settled
            for segment, frame in sealed.members
        )


class _Walk:
    """What the heads of old segments say, of each segment after those behind it."""

    def __init__(self) -> None:
        self.frames: dict[int, int] = {}
        self.live_bytes: dict[int, int] = {}
        self.copies: dict[int, int] = {}
        self.homes: dict[str, int] = {}
        self.unread: dict[int, dict[str, int]] = {}
        self.settled: dict[int, set[int]] = {}
        self.names: dict[int, set[int]] = {}
        self.seals: dict[str, Sealed] = {}
        self.rows: dict[tuple[str, str], int] = {}
        self.project_bytes: dict[str, int] = {}
        self.oldest_ms: int | None = None
        self.unreadable: set[int] = set()

    def records(self, frame: Frame, token: str, members: Iterable[Member]) -> None:
        """A SEAL, DONE or SKIP."""
        members = tuple(members)
        if frame.kind == Kind.SEAL:
            if token not in self.seals:
                now = tuple((self.copies.get(number, segment), number) for segment, number in members)
                self.seals[token] = Sealed(frame.table, token, now)
                self.homes[token] = frame.place.segment
            self.names.setdefault(frame.place.segment, set()).update(segment for segment, _ in members)
        else:
            self.settle(frame.place.segment, members)

    def settle(self, by: int, members: Iterable[Member]) -> None:
        """Segment ``by`` says that these frames are settled."""
        for segment, number in members:
            self.settled.setdefault(segment, set()).add(number)
            self.names.setdefault(by, set()).add(segment)

    def live(self, segment: int, data: Iterable[Frame]) -> None:
        """The DATA frames of a segment, all that is behind them being known."""
        settled = self.settled.get(segment, set())
        for frame in data:
            if frame.number in settled:
                continue
            self.frames[segment] = self.frames.get(segment, 0) + 1
            self.live_bytes[segment] = self.live_bytes.get(segment, 0) + frame.place.bytes
            if frame.origin:
                self.copies.setdefault(frame.number, segment)
            self.unread.setdefault(segment, {}).setdefault(frame.table, frame.place.offset)
            key = (frame.project_id, frame.table)
            self.rows[key] = self.rows.get(key, 0) + frame.rows
            self.project_bytes[frame.project_id] = self.project_bytes.get(frame.project_id, 0) + frame.place.bytes
            self.oldest_ms = frame.at_ms if self.oldest_ms is None else min(self.oldest_ms, frame.at_ms)


def adopt(numbers: FrameNumbers, slot: int, disk: Disk | None = None) -> int:
    """Move what another slot's spool holds into this slot's, before that is opened. Returns how many segments.

    A slot that a process has open keeps its own. Nothing is copied, and a crash leaves each segment in one
    of the two places, in an order that holds: what speaks of a segment has a higher ordinal than it.
    """
    place = slot_place(numbers.place.parent, slot)
    if not place.is_dir():
        return 0
    try:
        lock = lock_slot(place)
    except SlotTaken:
        return 0
    try:
        orphans = _found(place)
        ours = _found(numbers.place)
        ordinal = ours[-1][0].ordinal + 1 if ours else 1
        for shift, (name, path) in enumerate(orphans):
            path.rename(numbers.place / SegmentName(ordinal + shift, name.id).file)
        for directory in (numbers.place, place):
            (disk or Disk()).sync_directory(directory)
    finally:
        os.close(lock)
    if orphans:
        log.info("spool: slot %d takes over %d segments of slot %d", numbers.slot, len(orphans), slot)
    return len(orphans)


def _found(directory: Path) -> list[tuple[SegmentName, Path]]:
    """The segments of a directory, oldest first."""
    named = [(segment_name(path), path) for path in directory.iterdir()]
    return sorted((name, path) for name, path in named if name is not None)


def _member(block: Block) -> Member:
    return block.on_disk.segment, block.frame


def _not_copied(copied: asyncio.Future[None], error: OSError, _: int | None) -> None:
    if not copied.cancelled():
        copied.set_exception(error)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
