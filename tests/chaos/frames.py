"""Where the frames of an undamaged segment are: read from its layout alone, and not with the gateway's reader.

The layout is told in ``gateway/delivery/segments.py``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"\xf5WF\n"
_HEADER_BYTES = 64
_HEAD = struct.Struct("<4s8xIBBBBI")
_HEAD_BYTES = 48


@dataclass(frozen=True, slots=True)
class FrameAt:
    """A frame's first byte and the first one behind it, its kind, and its rows."""

    start: int
    end: int
    kind: int
    rows: int


def frames_of(path: Path) -> list[FrameAt]:
    """All frames up to the first place where there is none."""
    found = []
    data = path.read_bytes()
    at = _HEADER_BYTES
    while at + _HEAD_BYTES <= len(data):
        magic, payload, kind, table, project, flag, rows = _HEAD.unpack_from(data, at)
        if magic != _MAGIC:
            break
        size = _HEAD_BYTES + table + project + payload
        if flag:
            size += 4 + 32 * int.from_bytes(data[at + _HEAD_BYTES + table + project :][:4], "little")
        end = at + size + -size % 8
        found.append(FrameAt(at, end, kind, rows))
        at = end
    return found
