"""What the spools of a data directory hold, for a person: counted, checked, and taken out.

Only reads, and takes no lock, so a gateway may run on the same directory: what it is writing at this
moment is looked at again until it is whole, and what it removes meanwhile is not missed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gateway.delivery.quarantine import FOLDER as QUARANTINE
from gateway.delivery.seals import Sealed, disjoint
from gateway.delivery.segments import (
    HEADER_BYTES,
    Damage,
    Frame,
    Kind,
    Place,
    SegmentName,
    SegmentReader,
    segment_name,
)

AGAIN_S = 0.05
"""Until what may be half written is looked at again,"""
AGAIN_MAX = 100
"""so many times while nothing more is written: a busy disk may hold up a write for seconds."""


@dataclass(slots=True)
class Segment:
    """One file: its frames by kind and their rows, and what of them is live (not settled) and damaged."""

    slot: str
    name: SegmentName
    path: Path
    bytes: int
    header_fault: str = ""
    frames: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    rows: int = 0
    live: dict[int, Frame] = field(default_factory=dict)
    seals: list[Sealed] = field(default_factory=list)
    damage: list[Place] = field(default_factory=list)

    @property
    def live_rows(self) -> int:
        return sum(frame.rows for frame in self.live.values())

    @property
    def live_bytes(self) -> int:
        return sum(frame.place.bytes for frame in self.live.values())

    @property
    def damaged_bytes(self) -> int:
        return sum(place.bytes for place in self.damage)

    @property
    def oldest_ms(self) -> int | None:
        """When the oldest live block came, in milliseconds since 1970."""
        return min((frame.at_ms for frame in self.live.values()), default=None)

    @property
    def faults(self) -> list[str]:
        """What is damaged and where, in words."""
        of = f"{self.slot}/{self.path.name}"
        places = [f"{of}: {place.bytes} bytes at {place.offset} are damaged" for place in self.damage]
        return [f"{of}: {self.header_fault}", *places] if self.header_fault else places


class Inspection:
    """The spools of all slots below ``directory``, as they were during ``read``.

    ``whole``: check the payloads too. ``pause`` waits so many seconds.
    """

    def __init__(self, directory: Path, *, whole: bool, pause: Callable[[float], None] = time.sleep) -> None:
        self._directory = directory
        self._whole = whole
        self._pause = pause
        self._segments: dict[int, Segment] = {}

    @property
    def segments(self) -> list[Segment]:
        """Those that were read, by slot and age."""
        return sorted(self._segments.values(), key=lambda segment: (segment.slot, segment.name))

    def described(self) -> dict[str, list[dict[str, object]]]:
        """What is where, as rows for a person: of each segment, of each table's live blocks, and in quarantine."""
        sealed = self.sealed()
        return {
            "segments": [_segment_row(segment, sealed) for segment in self.segments],
            "tables": [row for _, row in sorted(self._tables(set().union(*sealed.values())).items())],
            "quarantine": [{"slot": slot, "bytes": size} for slot, size in self.quarantined().items()],
        }

    def quarantined(self) -> dict[str, int]:
        """Bytes that were put aside as damaged, per slot that has any."""
        found: dict[str, int] = {}
        for path in sorted(self._directory.glob(f"slot-*/{QUARANTINE}/*")):
            slot = path.parts[-3]
            found[slot] = found.get(slot, 0) + path.stat().st_size
        return found

    def read(self) -> Iterator[tuple[int, int]]:
        """Read everything; gives (bytes read, bytes in all) after each segment.

        Raises OSError where the disk does.
        """
        read_bytes = 0
        # A running gateway may have gone on into a new file meanwhile.
        while new := [segment for segment in self._there() if segment.name.id not in self._segments]:
            all_bytes = read_bytes + sum(segment.bytes for segment in new)
            newest = {segment.slot: segment for segment in new}
            for segment in new:
                self._segments[segment.name.id] = segment
                try:
                    self._read(segment, AGAIN_MAX if newest[segment.slot] is segment else 0)
                except FileNotFoundError:
                    del self._segments[segment.name.id]  # Nothing in it was needed any more.
                read_bytes += segment.bytes
                yield read_bytes, all_bytes

    def sealed(self) -> dict[str, set[int]]:
        """The live frames of batches whose insert may have been sent already: numbers by token."""
        live = {number for segment in self._segments.values() for number in segment.live}
        seals = disjoint(sealed for segment in self._segments.values() for sealed in segment.seals)
        members = {sealed.token: {number for _, number in sealed.members} & live for sealed in seals}
        return {token: numbers for token, numbers in members.items() if numbers}

    def export(self, to: Path) -> Iterator[tuple[int, int]]:
        """Write the live blocks to ``to/TABLE.native``, after ``read``; gives (bytes done, bytes in all).

        The files are what an insert with ``decompress=1`` takes, 0600. Damaged blocks are left out, and
        are in ``damage``. Raises FileExistsError where a file is there already.
        """
        done_bytes, all_bytes = 0, sum(segment.live_bytes for segment in self._segments.values())
        files: dict[str, int] = {}
        try:
            for segment in self.segments:
                for table, payload in self._live(segment):
                    if table not in files:
                        path = to / f"{quote(table, safe='')}.native"
                        files[table] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                    _write(files[table], payload)
                done_bytes += segment.live_bytes
                yield done_bytes, all_bytes
            for descriptor in files.values():
                os.fsync(descriptor)
        finally:
            for descriptor in files.values():
                os.close(descriptor)

    def _tables(self, sealed: set[int]) -> dict[str, dict[str, Any]]:
        tables: dict[str, dict[str, Any]] = {}
        oldest: dict[str, int] = {}
        for frame in (frame for segment in self._segments.values() for frame in segment.live.values()):
            row = tables.setdefault(
                frame.table, {"table": frame.table, "blocks": 0, "rows": 0, "bytes": 0, "sealed_rows": 0}
            )
            row["blocks"] += 1
            row["rows"] += frame.rows
            row["bytes"] += frame.payload_bytes
            row["sealed_rows"] += frame.rows if frame.number in sealed else 0
            oldest[frame.table] = min(frame.at_ms, oldest.get(frame.table, frame.at_ms))
        return {table: row | {"oldest": _moment(oldest[table])} for table, row in tables.items()}

    def _there(self) -> list[Segment]:
        """The segments there are, oldest first: what became of a frame stands behind it."""
        found = []
        for path in self._directory.glob("slot-*/*.seg"):
            name = segment_name(path)
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                continue
            if name is not None:
                found.append(Segment(path.parent.name, name, path, size))
        return sorted(found, key=lambda segment: segment.name)

    def _read(self, segment: Segment, again_max: int) -> None:
        offset, again = HEADER_BYTES, 0
        while True:
            seen = offset
            torn: list[Place] = []
            with SegmentReader(segment.path, segment.name) as reader:
                segment.header_fault = reader.header_fault()
                for found in reader.frames(offset, whole=self._whole):
                    if isinstance(found, Damage):
                        torn.append(found.place)
                        continue
                    if torn:
                        # What is in front of a whole frame is written by now; when it was read it may not have been.
                        self._read_between(segment, torn[0].offset, found.place.offset)
                        torn, offset = [], found.place.offset
                    if not self._take(segment, reader, found):
                        torn.append(found.place)
                        continue
                    offset = found.place.offset + found.place.bytes
            again = again + 1 if offset == seen else 1
            if not (torn or segment.header_fault) or again > again_max:
                segment.damage += torn
                return
            self._pause(AGAIN_S)

    def _read_between(self, segment: Segment, start: int, end: int) -> None:
        with SegmentReader(segment.path, segment.name, end) as reader:
            for found in reader.frames(start, whole=self._whole):
                if isinstance(found, Damage) or not self._take(segment, reader, found):
                    segment.damage.append(found.place)

    def _take(self, segment: Segment, reader: SegmentReader, frame: Frame) -> bool:
        """Whether it is whole, as far as it is read; else nothing is taken of it."""
        if frame.kind == Kind.DATA:
            segment.rows += frame.rows
            self._settle(frame.origin, frame.number)
            segment.live[frame.number] = frame
        elif (said := reader.members(frame)) is None:
            return False
        elif frame.kind == Kind.SEAL:
            segment.seals.append(Sealed(frame.table, said[0], tuple(said[1])))
        else:
            for in_, number in said[1]:
                self._settle(in_, number)
        segment.frames[frame.kind] += 1
        return True

    def _settle(self, segment_id: int, number: int) -> None:
        if segment_id in self._segments:
            self._segments[segment_id].live.pop(number, None)

    def _live(self, segment: Segment) -> Iterator[tuple[str, bytes]]:
        """(table, block) of what is live; what is damaged is noted."""
        try:
            reader = SegmentReader(segment.path, segment.name)
        except FileNotFoundError:
            return
        with reader:
            for frame in segment.live.values():
                payload = reader.payload(frame)
                if payload is not None:
                    yield frame.table, payload
                elif frame.place not in segment.damage:
                    segment.damage.append(frame.place)


def _segment_row(segment: Segment, sealed: Mapping[str, set[int]]) -> dict[str, object]:
    return {
        "slot": segment.slot,
        "segment": segment.path.name,
        "bytes": segment.bytes,
        **{kind.name.lower(): count for kind, count in segment.frames.items()},
        "rows": segment.rows,
        "live": len(segment.live),
        "live_rows": segment.live_rows,
        "live_bytes": segment.live_bytes,
        "open_seals": sum(1 for seal in segment.seals if seal.token in sealed),
        "damaged_bytes": segment.damaged_bytes + (HEADER_BYTES if segment.header_fault else 0),
        "oldest": _moment(segment.oldest_ms),
    }


def _moment(at_ms: int | None) -> str:
    """Milliseconds since 1970 as people write them; a damaged clock's too."""
    try:
        return "" if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return f"{at_ms} ms"


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
