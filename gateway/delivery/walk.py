"""What earlier lives left in a spool: its segments walked by their heads, the newest first.

What became of a frame stands behind it, so walking back it is known before the frame is met, and nothing
has to be remembered of the frames themselves.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gateway.delivery.disk import Disk
from gateway.delivery.frames import EPOCH_BITS, SEQUENCE_BITS
from gateway.delivery.quarantine import Quarantine
from gateway.delivery.seals import Sealed
from gateway.delivery.segments import (
    HEADER_BYTES,
    ROOM_BYTES,
    VOID,
    Damage,
    Frame,
    Kind,
    Member,
    Place,
    SegmentName,
    SegmentReader,
)

log = logging.getLogger(__name__)

TRIES, PAUSE_S = 5, 0.2
"""What a segment that is not read would say of others is not known, and so they would be inserted again."""
DONE_MAX = 500_000
"""Of the frames that were done last, so many are remembered, for the audit."""
DoneOf = tuple[str, int, bool]
"""A table, a second since 1970, and whether dead letters were made of some rows."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What earlier lives left: rows per (project, table), and in how many frames.

    ``done``: what ClickHouse acknowledged and may lose yet, by table, clock, and whether dead letters were made of
    some rows: the segment, number and rows there of each frame, one behind the other.
    """

    rows: dict[tuple[str, str], int]
    frames: int
    done: dict[tuple[str, float, bool], array[int]]


def walk_segments(
    segments: Sequence[tuple[SegmentName, Path]], quarantine: Quarantine, sync: Callable[[Path], None], number: int
) -> Walk:
    """Walk segments, given oldest first. Those that cannot be read are named in ``unreadable``.

    ``number``: one of our slot's.

    Each is synced first: who wrote it may have been killed before, and what is believed here must not be lost
    with the power later, when it has been acted upon.
    """
    walk = Walk(number >> SEQUENCE_BITS + EPOCH_BITS)
    for name, path in reversed(segments):
        for again in reversed(range(TRIES)):
            try:
                sync(path)
                with SegmentReader(path, name) as reader:
                    _walk_one(reader, walk, quarantine)
                break
            except OSError as error:
                log.error("spool: %s cannot be read: %s", name.file, error.strerror)  # noqa: TRY400
                if again:
                    time.sleep(PAUSE_S)
                else:
                    walk.unreadable.add(name.id)
    walk.follow()
    if walk.done_count > DONE_MAX:
        log.warning("spool: of %d frames that were done last only %d are looked after", walk.done_count, DONE_MAX)
    return walk


def trim(segments: Sequence[tuple[SegmentName, Path]], written: Mapping[int, int], disk: Disk) -> dict[int, int]:
    """Give back the room that crashes have left behind what was written: each leaves a whole segment's.

    A little stays, by which it is seen later too that the segment was not left in order. Returns the sizes of those
    that were cut.
    """
    paths, sizes = {name.id: path for name, path in segments}, {}
    for segment, written_bytes in written.items():
        path, size = paths[segment], written_bytes + ROOM_BYTES
        try:
            if path.stat().st_size > size:
                disk.trim(path, size)
                sizes[segment] = size
        except OSError as error:
            log.warning("spool: %s keeps its room: %s", path.name, error.strerror)
    return sizes


def _walk_one(reader: SegmentReader, walk: Walk, quarantine: Quarantine) -> None:
    segment = reader.name.id
    walk.enter(segment)
    if fault := reader.header_fault():
        log.error("spool: %s: %s; going by its name", reader.name.file, fault)
        quarantine.take(reader, Place(segment, 0, HEADER_BYTES))
    frames: list[Frame] = []
    damage_end = 0
    for found in reader.frames():
        if isinstance(found, Damage):
            damage_end = found.place.offset + found.place.bytes
            quarantine.take(reader, found.place)
        elif found.origin and reader.payload(found) is None:
            quarantine.take(reader, found.place)  # It takes the place of nothing, and is no block to be lost.
            walk.settle(segment, [(segment, found.number)])
        else:
            frames.append(found)
    # A batch may have been sealed, copied by the compaction and sealed again in one and the same segment.
    for frame in reversed(frames):
        if frame.kind == Kind.DATA:
            walk.copied(frame)
        elif (said := reader.members(frame)) is None:
            quarantine.take(reader, frame.place)
        else:
            walk.records(frame, *said)
    data = [frame for frame in frames if frame.kind == Kind.DATA]
    end = frames[-1].place.offset + frames[-1].place.bytes if frames else HEADER_BYTES
    # Damage stays to be seen: the next start has to know as well that something may have been said there.
    written = max(end, reader.written, damage_end)
    in_order = bool(frames) and end == reader.end
    keys = _keys(reader, walk, [frame for frame in data if frame.keys_bytes], in_order=in_order)
    # What counts comes last: a segment that cannot be read to its end is walked again from its beginning.
    walk.written[segment] = written
    walk.lives.add(segment >> SEQUENCE_BITS)
    walk.keys += keys
    walk.live(segment, data)


def _keys(reader: SegmentReader, walk: Walk, frames: Sequence[Frame], *, in_order: bool) -> list[bytes]:
    """The keys of frames that were not refused, and are there.

    A segment that was left ``in_order`` ends with its last frame. In one that was not, or was the last of its life,
    the power may have torn what nobody was promised: a key of that must not stand for rows that are lost.
    """
    segment = reader.name.id
    void = walk.void.get(segment, ())
    is_doubtful = not in_order or segment >> SEQUENCE_BITS not in walk.lives
    return [
        reader.keys(frame)
        for frame in frames
        if frame.number not in void and not (is_doubtful and reader.payload(frame) is None)
    ]


class Walk:
    """What the heads of old segments say, of each segment after those behind it."""

    def __init__(self, slot: int) -> None:
        self._slot = slot
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
        self.lives: set[int] = set()
        self.void: dict[int, set[int]] = {}
        self.keys: list[bytes] = []
        self.written: dict[int, int] = {}
        """How much of each segment there is: behind that is the room that a crash has left."""
        self.done: dict[DoneOf, array[int]] = {}
        """What ClickHouse may lose yet: the segment, number and rows of each frame, one behind the other."""
        self._done_at: dict[int, tuple[int, int]] = {}
        self.done_count = 0
        self._safe_ms: dict[int, int] = {}

    def enter(self, segment: int) -> None:
        """What comes now is of this segment. What another slot said is not of it: it was in this one's care then."""
        slot = segment >> SEQUENCE_BITS + EPOCH_BITS
        self._safe_ms = {each: self._safe_ms.get(each, 0) for each in (slot, self._slot)}

    def copied(self, frame: Frame) -> None:
        """A DATA frame. Where there is a newer copy of it, that takes its place, and what speaks of it means that."""
        segment = frame.place.segment
        if self.copies.get(frame.number, segment) != segment:
            self.settle(self.copies[frame.number], [(segment, frame.number)])
        if frame.origin:
            self.settle(segment, [(frame.origin, frame.number)])
            self.copies.setdefault(frame.number, segment)

    def records(self, frame: Frame, token: str, members: Iterable[Member]) -> None:
        """A SEAL, DONE or SKIP."""
        members = tuple(members)
        if frame.kind == Kind.SEAL:
            if token not in self.seals:
                self.seals[token] = Sealed(frame.table, token, members)
                self.homes[token] = frame.place.segment
            self.names.setdefault(frame.place.segment, set()).update(segment for segment, _ in members)
        else:
            self.settle(frame.place.segment, members)
            self._remember(frame, members)
            if token == VOID:
                for segment, number in members:
                    self.void.setdefault(segment, set()).add(number)

    def follow(self) -> None:
        """All is read: a SEAL means the newest copies of what it names, which may be newer or older than it."""
        for token, sealed in self.seals.items():
            members = tuple((self.copies.get(number, segment), number) for segment, number in sealed.members)
            self.seals[token] = replace(sealed, members=members)

    def settle(self, by: int, members: Iterable[Member]) -> None:
        """Segment ``by`` says that these frames are settled."""
        for segment, number in members:
            self.settled.setdefault(segment, set()).add(number)
            self.names.setdefault(by, set()).add(segment)

    def _remember(self, frame: Frame, members: Sequence[Member]) -> None:
        """A DONE, or a SKIP of rows beside dead letters: unless somebody said since that it is safe there.

        A life says so of all that its slot did before, or had taken over. Of frames that were written again since it
        says nothing.
        """
        slot = frame.place.segment >> SEQUENCE_BITS + EPOCH_BITS
        self._safe_ms[slot] = max(frame.number, self._safe_ms.get(slot, 0))
        safe_ms = max(self._safe_ms[slot], self._safe_ms.get(self._slot, 0))
        if frame.at_ms < max(1, safe_ms) or (frame.kind == Kind.SKIP and not frame.rows):
            return
        self.done_count += len(members)
        if self.done_count > DONE_MAX:
            return
        done = frame.at_ms, frame.rows
        for _, number in members:
            if number not in self.copies:
                self._done_at.setdefault(number, done)

    def live(self, segment: int, data: Iterable[Frame]) -> None:
        """The DATA frames of a segment, all that is behind them being known."""
        settled = self.settled.get(segment, set())
        for frame in data:
            done = self._done_at.pop(frame.number, None)
            if frame.number in settled:
                if done is not None:
                    at_ms, rows = done
                    of = frame.table, at_ms // 1000, rows > 0
                    self.done.setdefault(of, array("Q")).extend((segment, frame.number, rows or frame.rows))
                continue
            self.frames[segment] = self.frames.get(segment, 0) + 1
            self.live_bytes[segment] = self.live_bytes.get(segment, 0) + frame.place.bytes
            self.unread.setdefault(segment, {}).setdefault(frame.table, frame.place.offset)
            key = (frame.project_id, frame.table)
            self.rows[key] = self.rows.get(key, 0) + frame.rows
            self.project_bytes[frame.project_id] = self.project_bytes.get(frame.project_id, 0) + frame.place.bytes
            self.oldest_ms = frame.at_ms if self.oldest_ms is None else min(self.oldest_ms, frame.at_ms)
