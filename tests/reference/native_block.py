"""A reader of ClickHouse's Native format and of its compressed framing, slow and obvious.

A block is ``columns rows`` as varints, then for each column its name, its type and its values. The
framing (one frame or more, each up to 1 MiB of it as ClickHouse writes them) is CityHash128 of what
follows, method, compressed size with these nine bytes, plain size, data.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

import lz4.block
from clickhouse_cityhash.cityhash import CityHash128

from tests.reference.otlp import Value

_FIXED: dict[str, str] = {
    "UInt8": "B", "UInt16": "H", "UInt32": "I", "UInt64": "Q", "Int8": "b", "Int16": "h", "Int32": "i", "Int64": "q",
    "Float32": "f", "Float64": "d", "Bool": "?", "Date": "H", "DateTime": "I",
}  # fmt: skip
_METHOD_NONE, _METHOD_LZ4 = 0x02, 0x82
_DICTIONARY_VERSION = 1
_DICTIONARY_KEYS = 0x200
"""LowCardinality, flag: the keys are in the block itself."""
_DICTIONARY_GLOBAL = 0x100


@dataclass(frozen=True)
class Block:
    """Columns in order as (name, type, values). Dates and times are integer ticks of their type."""

    columns: tuple[tuple[str, str, list[Value]], ...]
    rows: int

    def table(self) -> list[dict[str, Value]]:
        """The block by rows."""
        return [{name: values[row] for name, _, values in self.columns} for row in range(self.rows)]


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, length: int) -> bytes:
        assert 0 <= length <= len(self.data) - self.at, f"{length} bytes wanted at {self.at} of {len(self.data)}"
        self.at += length
        return self.data[self.at - length : self.at]

    def numbers(self, code: str, count: int) -> list[int]:
        return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize("<" + code))))

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def text(self) -> str:
        # Strict: what we store is UTF-8.
        return self.take(self.varint()).decode()


def read_blocks(data: bytes) -> list[Block]:
    """Every block of an uncompressed Native stream."""
    cursor = _Cursor(data)
    blocks = []
    while cursor.at < len(data):
        count, rows = cursor.varint(), cursor.varint()
        columns: list[tuple[str, str, list[Value]]] = []
        for _ in range(count):
            name, type_ = cursor.text(), cursor.text()
            # Nothing at all is written for no rows, prefixes included.
            columns.append((name, type_, _column(cursor, type_, rows) if rows else []))
        blocks.append(Block(tuple(columns), rows))
    return blocks


def read_block(data: bytes) -> Block:
    """The one block of an uncompressed Native stream."""
    (block,) = read_blocks(data)
    return block


def _column(cursor: _Cursor, type_: str, rows: int) -> list[Value]:
    # The prefix of a column comes before its values, and of a map's keys before the map's offsets.
    if "LowCardinality(" in type_:
        assert cursor.numbers("Q", 1) == [_DICTIONARY_VERSION]
    return _values(type_)(cursor, rows)


def _values(type_: str) -> Callable[[_Cursor, int], list[Value]]:
    if type_ in _FIXED:
        return lambda cursor, rows: list(cursor.numbers(_FIXED[type_], rows))
    if type_.startswith("DateTime64("):
        return lambda cursor, rows: list(cursor.numbers("q", rows))
    if type_.startswith("DateTime("):
        return lambda cursor, rows: list(cursor.numbers("I", rows))
    if type_ == "String":
        return lambda cursor, rows: [cursor.text() for _ in range(rows)]
    if type_ == "LowCardinality(String)":
        return _low_cardinality
    if type_ == "Map(LowCardinality(String), String)":
        return _map
    match = re.fullmatch(r"Nullable\((.+)\)", type_)
    assert match, f"a type this reader does not know: {type_}"
    plain = _values(match[1])

    def nullable(cursor: _Cursor, rows: int) -> list[Value]:
        nulls = cursor.numbers("B", rows)
        assert set(nulls) <= {0, 1}
        return [None if null else value for null, value in zip(nulls, plain(cursor, rows), strict=True)]

    return nullable


def _low_cardinality(cursor: _Cursor, rows: int) -> list[Value]:
    if rows == 0:
        return []
    (flags,) = cursor.numbers("Q", 1)
    assert flags & _DICTIONARY_KEYS, "a dictionary without keys"
    assert not flags & _DICTIONARY_GLOBAL, "a dictionary beside the block"
    (count,) = cursor.numbers("Q", 1)
    keys = [cursor.text() for _ in range(count)]
    assert cursor.numbers("Q", 1) == [rows]
    return [keys[index] for index in cursor.numbers("BHIQ"[flags & 0xFF], rows)]


def _map(cursor: _Cursor, rows: int) -> list[Value]:
    ends = cursor.numbers("Q", rows)
    assert ends == sorted(ends)
    keys = _low_cardinality(cursor, ends[-1])
    values = [cursor.text() for _ in range(ends[-1])]
    maps: list[Value] = []
    for start, end in zip([0, *ends], ends, strict=False):
        entries = {str(key): value for key, value in zip(keys[start:end], values[start:end], strict=True)}
        assert len(entries) == end - start, "a key twice in one map"
        maps.append(entries)
    return maps


def uncompress(data: bytes) -> bytes:
    """The plain bytes of a stream of compressed frames. Fails where a checksum does not hold."""
    cursor = _Cursor(data)
    plain = b""
    while cursor.at < len(data):
        checksum = cursor.take(16)
        header = cursor.take(9)
        method, compressed_bytes, plain_bytes = struct.unpack("<BII", header)
        frame = cursor.take(compressed_bytes - 9)
        assert checksum == frame_checksum(header + frame), "the checksum does not hold"
        if method == _METHOD_LZ4:
            frame = lz4.block.decompress(frame, uncompressed_size=plain_bytes)
        else:
            assert method == _METHOD_NONE, f"an unknown method {method:#x}"
        assert len(frame) == plain_bytes
        plain += frame
    return plain


def frame_checksum(content: bytes) -> bytes:
    """CityHash128 in version 1.0.2 as ClickHouse lays it out: the low word first, each little-endian."""
    digest: int = CityHash128(content)
    return struct.pack("<QQ", digest >> 64, digest & (1 << 64) - 1)
