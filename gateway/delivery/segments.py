"""The spool's files: what a segment and its frames look like, byte by byte, and how they are read.

A slot's directory holds segments, ``ORDINAL-ID.seg`` in 10 and 16 hex digits. The id is a number that
was never given before (``frames.py``), and also in the header; a segment whose header is damaged is read
by its name. Ordinals only say which is older.

    segment   header, then frames without gaps, each beginning at a multiple of 8, then zeros
    header    0 magic "WEIRSPL\\n" | 8 version u32 | 12 zero u32 | 16 id u64 | 24 milliseconds since 1970 u64
              | 32 bytes it was made with u64 | 40 zeros | 60 CRC32C of the 60 before    (64 bytes)
    frame     0 magic | 4 CRC of the head | 8 CRC of the payload | 12 payload bytes u32
              | 16 type u8 | 17 table bytes u8 | 18 project bytes u8 | 19 flags u8 | 20 rows u32
              | 24 number u64 | 32 milliseconds since 1970 u64 | 40 origin u64            (48 bytes)
              | table | project | where flags have 1: how many keys u32 | payload | keys
              | zeros up to a multiple of 8
    DATA      one block of one table, compressed: the very bytes an insert sends. ``number`` is the
              block's frame number. With an ``origin`` it is a copy and takes the place of the frame of
              that number in the segment of that id. Where its flags have 2, some of its rows may be stored
              already: it is counted before it is inserted. Its keys are 32 bytes each: whose rows they are, of the
              requests that said so (``idempotency.py``).
    SEAL      a batch: token bytes u8 | token | (segment id u64, frame number u64) of each of its blocks
    DONE      the same without token (0): ClickHouse has these frames since then. ``number`` is a time too, in
              milliseconds since 1970: what was done before that needs no audit any more (``audit.py``). It may
              name no frame, to say that alone
    SKIP      the same: these frames are not to be inserted (dead-lettered or damaged). Of the one of them that
              is dead letters in part ClickHouse has ``rows``. With the token "void" they
              were never promised: their senders were told so, and their keys stand for nothing.

Version 1 is the same without keys, version 2 without the flag 2. Before the header said how large a file was made, it
said 0, and so did the times of SEAL, DONE and SKIP, which then nobody audits after a start.

A file that is smaller than it was made was cut behind its last frame when it was left, or ``ROOM_BYTES`` behind
that at a start after a crash: more zeros at its end are damage. In one that is as large, they are room.

All numbers are little-endian. Both CRCs are CRC32C, seeded with (segment id, offset of the
frame): a frame that is left over from another file, or was written to another place, does not
pass. The head's covers all of the head behind it, both names and the number of keys, so that a chain of
heads can be walked without reading payloads. The payload's covers the keys too.

Invariants, which the spool keeps and the reader may rely on:
  * A segment is written from front to back, by one process, and never again after it was left.
  * A frame that was acknowledged is followed by whole frames or by zeros, unless the disk lied.
  * Of one frame number there are several frames only where all but the first name an origin; never two
    of them in one segment.
  * A SEAL, DONE or SKIP stands behind what it names; it is removed no earlier than that.

Nothing here trusts a length whose CRC does not pass. What is no frame is *damage*, zeros in front of a
frame too, and reading goes on at the next head that passes. Where only a payload is damaged the head
still says where the next frame begins. So reading costs time in proportion to the bytes, whatever
they are.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path

from gateway._native import crc32c

VERSION = 3
VERSIONS_READ = (1, 2, 3)
MAGIC = b"WEIRSPL\n"
FRAME_MAGIC = b"\xf5WF\n"
HEADER_BYTES = 64
HEAD_BYTES = 48
ALIGNMENT = 8
NAME_BYTES_MAX = 255
KEY_BYTES = 32
VOID = "void"
_HAS_KEYS, _IS_SUSPECT = 1, 2

_HEADER = struct.Struct("<8sI4xQQQ20x")
_HEAD = struct.Struct("<4sIIIBBBBIQQQ")
_BEHIND_HEAD_CRC = struct.Struct("<IIBBBBIQQQ")
_SEED = struct.Struct("<QQ")
_CRC = _KEYS = struct.Struct("<I")
ROOM_BYTES = 64
"""So many zeros at the end of a file are room behind what is written; the writer never uses them."""
_NAME = re.compile(r"([0-9a-f]{10})-([0-9a-f]{16})\.seg")
_WINDOW_BYTES_MIN, _WINDOW_BYTES = 512, 1 << 20
_ZEROS = bytes(_WINDOW_BYTES)
_MAYBE_HEAD = re.compile(re.escape(FRAME_MAGIC) + rb"(?=.{12}[\x01-\x04])", re.DOTALL)


class Kind(IntEnum):
    """The type of a frame."""

    DATA = 1
    SEAL = 2
    DONE = 3
    SKIP = 4


@dataclass(frozen=True, slots=True, order=True)
class SegmentName:
    """What tells one segment from every other there ever was, and which of its directory is older."""

    ordinal: int
    id: int

    @property
    def file(self) -> str:
        return f"{self.ordinal:010x}-{self.id:016x}.seg"

    def seed(self, offset: int) -> int:
        """What the CRCs of a frame at ``offset`` begin with."""
        return crc32c(_SEED.pack(self.id, offset))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a frame is: its segment's id, and its first byte and its size there."""

    segment: int
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame without its payload, as found at ``place``. Its keys stand behind the payload."""

    place: Place
    kind: Kind
    number: int
    table: str
    project_id: str
    rows: int
    at_ms: int
    origin: int
    suspect: bool
    payload_crc: int
    payload_at: int
    payload_bytes: int
    keys_bytes: int


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a segment that are no frame."""

    place: Place


Member = tuple[int, int]
"""A frame in a SEAL, DONE or SKIP: (segment id, frame number)."""


def segment_name(path: Path) -> SegmentName | None:
    """What a file's name says; None when it is not a segment's."""
    found = _NAME.fullmatch(path.name)
    return SegmentName(*(int(group, 16) for group in found.groups())) if found else None


def found_segments(directory: Path) -> list[tuple[SegmentName, Path]]:
    """The segments of a slot's directory, oldest first."""
    named = [(segment_name(path), path) for path in directory.iterdir()]
    return sorted((name, path) for name, path in named if name is not None)


def header(name: SegmentName, at_ms: int, size: int = 0) -> bytes:
    """The first bytes of a segment that is made at ``at_ms`` with ``size`` bytes, 0: nobody says."""
    start = _HEADER.pack(MAGIC, VERSION, name.id, at_ms, size)
    return start + _CRC.pack(crc32c(start))


class ForeignSegment(OSError):
    """A whole segment that this version cannot read: it is left alone."""


def header_fault(name: SegmentName, start: bytes) -> str:
    """What is wrong with a segment's first bytes, in words; empty when nothing is. Raises ForeignSegment."""
    if len(start) < HEADER_BYTES or crc32c(start[:60]) != _CRC.unpack_from(start, 60)[0]:
        return "its header is damaged"
    magic, version, id_, _, _ = _HEADER.unpack_from(start)
    if magic != MAGIC:
        return "it is not a segment of a spool"
    if version not in VERSIONS_READ:
        raise ForeignSegment(errno.EPROTO, f"format version {version}, and this version of Weir reads up to {VERSION}")
    return "" if id_ == name.id else "it is another segment under this name"


def framed(
    name: SegmentName,
    offset: int,
    kind: Kind,
    number: int,
    payload: bytes,
    *,
    table: str = "",
    project_id: str = "",
    rows: int = 0,
    at_ms: int = 0,
    origin: int = 0,
    suspect: bool = False,
    keys: bytes = b"",
) -> tuple[bytes, bytes]:
    """What stands before ``payload`` in a frame at ``offset``, and what behind it."""
    table_bytes, project_bytes = table.encode(), project_id.encode()
    seed = name.seed(offset)
    behind = _BEHIND_HEAD_CRC.pack(
        crc32c(keys, crc32c(payload, seed)),
        len(payload),
        kind,
        len(table_bytes),
        len(project_bytes),
        (_HAS_KEYS if keys else 0) | (_IS_SUSPECT if suspect else 0),
        rows,
        number,
        at_ms,
        origin,
    )
    rest = behind + table_bytes + project_bytes
    if keys:
        rest += _KEYS.pack(len(keys) // KEY_BYTES)
    head = FRAME_MAGIC + _CRC.pack(crc32c(rest, seed)) + rest
    return head, keys + bytes(-(len(head) + len(payload) + len(keys)) % ALIGNMENT)


def framed_bytes(payload_bytes: int, table: str = "", project_id: str = "", keys_bytes: int = 0) -> int:
    """The size of a frame on disk."""
    unpadded = HEAD_BYTES + len(table.encode()) + len(project_id.encode()) + payload_bytes
    if keys_bytes:
        unpadded += _KEYS.size + keys_bytes
    return unpadded + -unpadded % ALIGNMENT


def listed(members: Sequence[Member], token: str = "") -> bytes:
    """The payload of a SEAL (with its token), DONE or SKIP."""
    text = token.encode("ascii")
    flat = [part for member in members for part in member]
    return bytes((len(text),)) + text + struct.pack(f"<{len(flat)}Q", *flat)


def members_of(payload: bytes) -> tuple[str, list[Member]]:
    """(token, members) of such a payload. Raises ValueError when it is none."""
    start = 1 + payload[0] if payload else 0
    if not start or len(payload) < start or (len(payload) - start) % 16:
        raise ValueError("not a list of frames")
    flat = struct.unpack_from(f"<{(len(payload) - start) // 8}Q", payload, start)
    return payload[1:start].decode("ascii"), list(zip(flat[::2], flat[1::2], strict=True))


class SegmentReader:
    """Reads one segment file. A context manager; raises OSError where the disk does.

    ``end`` is where to stop, the file's size unless less of it is known to be written.
    """

    def __init__(self, path: Path, name: SegmentName, end: int | None = None) -> None:
        self.name = name
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = os.fstat(self._descriptor).st_size
        self.end = self._size if end is None else min(end, self._size)

    def __enter__(self) -> SegmentReader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    @cached_property
    def written(self) -> int:
        """Behind the last byte that is not zero: a crash leaves much room behind a few frames."""
        end = self.end
        while end > 0:
            length = min(_WINDOW_BYTES, end)
            window = self._read(end - length, length)
            if window != _ZEROS[: len(window)]:  # rstrip alone would take a tenth of a second for each 16 MiB of room
                return end - length + len(window.rstrip(b"\0"))
            end -= length
        return 0

    def header_fault(self) -> str:
        """What is wrong with the header; empty when nothing is."""
        return header_fault(self.name, self._read(0, HEADER_BYTES))

    def frames(self, offset: int = HEADER_BYTES, *, whole: bool = False) -> Iterator[Frame | Damage]:
        """All frames from ``offset`` on, and what is between them. ``whole``: check the payloads too."""
        while offset < self.end:
            frame = self.frame(offset)
            if frame is None:
                found = self._next(offset + ALIGNMENT)
                dirty = self._dirty(offset) if found is None else found
                if dirty > offset:
                    yield Damage(Place(self.name.id, offset, dirty - offset))
                offset = self.end if found is None else found
                continue
            yield frame if not whole or self.payload(frame) is not None else Damage(frame.place)
            offset += frame.place.bytes

    def _dirty(self, offset: int) -> int:
        """Where what is no frame ends, from ``offset`` on, behind which there is none: where the room begins."""
        start = self._read(0, HEADER_BYTES)
        if self.end == self._size and not header_fault(self.name, start):
            *_, made_with = _HEADER.unpack_from(start)
            if self._size < made_with and self._size - max(offset, self.written) > ROOM_BYTES:
                return self._size
        return self.written

    def frame(self, offset: int) -> Frame | None:
        """The frame at ``offset`` if its head passes; its payload is not read."""
        start = self._read(offset, HEAD_BYTES + 2 * NAME_BYTES_MAX + _KEYS.size)
        if len(start) < HEAD_BYTES or not start.startswith(FRAME_MAGIC):
            return None
        _, crc, payload_crc, payload_bytes, kind, table_bytes, project_bytes, flags, rows, number, at_ms, origin = (
            _HEAD.unpack_from(start)
        )
        has_keys = flags & _HAS_KEYS
        names_end = HEAD_BYTES + table_bytes + project_bytes
        head_bytes = names_end + (_KEYS.size if has_keys else 0)
        if len(start) < head_bytes or crc32c(start[8:head_bytes], self.name.seed(offset)) != crc:
            return None
        keys_bytes = KEY_BYTES * _KEYS.unpack_from(start, names_end)[0] if has_keys else 0
        whole_bytes = head_bytes + payload_bytes + keys_bytes
        whole_bytes += -whole_bytes % ALIGNMENT
        if offset + whole_bytes > self.end or kind not in Kind.__members__.values():
            return None
        try:
            table = start[HEAD_BYTES : HEAD_BYTES + table_bytes].decode()
            project_id = start[HEAD_BYTES + table_bytes : names_end].decode()
        except UnicodeDecodeError:
            return None
        return Frame(
            Place(self.name.id, offset, whole_bytes),
            Kind(kind),
            number,
            table,
            project_id,
            rows,
            at_ms,
            origin,
            bool(flags & _IS_SUSPECT),
            payload_crc,
            offset + head_bytes,
            payload_bytes,
            keys_bytes,
        )

    def payload(self, frame: Frame) -> bytes | None:
        """The payload of a frame, None when it or its keys are damaged."""
        whole_bytes = frame.payload_bytes + frame.keys_bytes
        whole = self._read(frame.payload_at, whole_bytes)
        if len(whole) < whole_bytes or crc32c(whole, self.name.seed(frame.place.offset)) != frame.payload_crc:
            return None
        return whole[: frame.payload_bytes] if frame.keys_bytes else whole

    def keys(self, frame: Frame) -> bytes:
        """The keys of a frame, unchecked."""
        return self._read(frame.payload_at + frame.payload_bytes, frame.keys_bytes)

    def members(self, frame: Frame) -> tuple[str, list[Member]] | None:
        """(token, members) of a SEAL, DONE or SKIP, None when it is damaged."""
        payload = self.payload(frame)
        try:
            return None if payload is None else members_of(payload)
        except ValueError:
            return None

    def raw(self, place: Place) -> Iterator[bytes]:
        """The bytes at a place, in pieces."""
        for start in range(place.offset, place.offset + place.bytes, _WINDOW_BYTES):
            yield self._read(start, min(_WINDOW_BYTES, place.offset + place.bytes - start))

    def _next(self, start: int) -> int | None:
        """Where the first frame at or behind ``start`` is whose head passes."""
        window_bytes = _WINDOW_BYTES_MIN
        while start < self.written:
            window = self._read(start, window_bytes + HEAD_BYTES)
            for maybe in _MAYBE_HEAD.finditer(window):
                at = maybe.start()
                if at < window_bytes and (start + at) % ALIGNMENT == 0 and self.frame(start + at) is not None:
                    return start + at
            start += window_bytes
            window_bytes = min(2 * window_bytes, _WINDOW_BYTES)
        return None

    def _read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes, fewer at the end."""
        wanted = min(length, self.end - offset)
        pieces = b""
        while len(pieces) < wanted:
            piece = os.pread(self._descriptor, wanted - len(pieces), offset + len(pieces))
            if not piece:
                break
            pieces = pieces + piece if pieces else piece
        return pieces
