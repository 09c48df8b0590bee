"""Segment files written frame by frame, and the golden one.

python -m tests.delivery.segment_files FILE     writes the golden segment as this version would
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.delivery.segments import HEADER_BYTES, Kind, Place, SegmentName, framed, header, listed

NAME = SegmentName(7, 0x00C0_FFEE_1234_5678)
AT_MS = 1_790_000_000_789


@dataclass(frozen=True)
class Spec:
    """What a frame is to say."""

    kind: Kind
    payload: bytes
    number: int = 0
    table: str = ""
    project_id: str = ""
    rows: int = 0
    at_ms: int = 0
    origin: int = 0
    keys: bytes = b""
    suspect: bool = False


GOLDEN_1 = (
    Spec(Kind.DATA, b"a block", (1 << 64) - 1, "otel_logs", "7b0c3f1e-8c9c-4a87-9f0e-0c6a4ab4f0d1", 3, 1790000000123),
    Spec(Kind.DATA, bytes(range(256)), 1 << 63, "täble", "p", (1 << 32) - 1, (1 << 64) - 1),
    Spec(Kind.DATA, b"", 2, "t" * 255, "p" * 255),
    Spec(Kind.SEAL, listed([(NAME.id, 2), (NAME.id, (1 << 64) - 1)], "00c0ffee12345678-3-5-1"), table="otel_logs"),
    Spec(Kind.DONE, listed([(NAME.id, 2), (NAME.id, (1 << 64) - 1)]), table="otel_logs"),
    Spec(Kind.SKIP, listed([(6, 1 << 63)]), table="täble"),
    Spec(Kind.DATA, b"a copy of an older one", 9, "otel_logs", "p", 1, 1_790_000_000_456, origin=(1 << 64) - 6),
)
"""Every kind, and the smallest and largest of what is in a head, as of version 1."""
GOLDEN_2 = (
    *GOLDEN_1,
    Spec(Kind.DATA, b"of one request", 10, "otel_logs", "p", 1, 1_790_000_000_789, keys=bytes(range(32))),
    Spec(Kind.DATA, b"of many", 11, "otel_logs", "p", 300, 1_790_000_000_790, keys=bytes(range(240)) * 40),
    Spec(Kind.SKIP, listed([(NAME.id, 10)], "void"), table="otel_logs"),
)
"""The same with what version 2 adds: keys, and frames that were never promised."""
GOLDEN = (
    *GOLDEN_2,
    Spec(Kind.DATA, b"stored once, perhaps", 12, "otel_logs", "p", 1, 1_790_000_000_791, origin=6, suspect=True),
    Spec(Kind.DATA, b"the same", 13, "otel_logs", "p", 1, 1_790_000_000_791, 6, keys=bytes(32), suspect=True),
)
"""The same with what version 3 adds: frames that are counted before they are inserted."""
GOLDEN_ROOM_BYTES = 64
"""Zeros behind the last frame."""


def frame_bytes(spec: Spec, offset: int, name: SegmentName = NAME) -> bytes:
    """One frame as it stands at ``offset``."""
    head, tail = framed(
        name,
        offset,
        spec.kind,
        spec.number,
        spec.payload,
        table=spec.table,
        project_id=spec.project_id,
        rows=spec.rows,
        at_ms=spec.at_ms,
        origin=spec.origin,
        keys=spec.keys,
        suspect=spec.suspect,
    )
    return head + spec.payload + tail


def segment(specs: Sequence[Spec], name: SegmentName = NAME, room_bytes: int = 0) -> tuple[bytes, list[Place]]:
    """A whole segment file, and where its frames are."""
    image = bytearray(header(name, AT_MS))
    places = []
    assert len(image) == HEADER_BYTES
    for spec in specs:
        frame = frame_bytes(spec, len(image), name)
        places.append(Place(name.id, len(image), len(frame)))
        image += frame
    return bytes(image) + bytes(room_bytes), places


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(segment(GOLDEN, room_bytes=GOLDEN_ROOM_BYTES)[0])
