"""The Native format as clients of a newer protocol revision expect it.

A client that sends ``client_protocol_version`` (clickhouse-go, so Grafana over HTTP) reads two things
more than the library writes: before each block its BlockInfo, and behind each column's type a byte that
says whether the column is serialised in a special way (never, here). To put them in, the blocks have
to be walked; nothing in them is changed.

    block:  varint columns · varint rows · for each column: name · type · data     (texts: varint length, bytes)
    data of a column: first the prefixes of all its parts, then their values, by type

Source: ClickHouse, src/Formats/NativeWriter.cpp, src/Core/BlockInfo.cpp, src/DataTypes/Serializations/.
"""

from __future__ import annotations

import re
from collections.abc import Callable

BLOCK_INFO_AND_CUSTOM_SERIALIZATION = 54454
"""Clients of an older revision are served revision 0, which they all read."""
# is_overflows (field 1) = 0, bucket_num (field 2) = -1, end of fields.
BLOCK_INFO = b"\x01\x00\x02\xff\xff\xff\xff\x00"
NO_CUSTOM_SERIALIZATION = b"\x00"

FIXED_BYTES = {
    **{f"{sign}Int{bits}": bits // 8 for sign in ("", "U") for bits in (8, 16, 32, 64, 128, 256)},
    **{"Float32": 4, "Float64": 8, "BFloat16": 2, "Bool": 1, "Nothing": 1, "UUID": 16, "IPv4": 4, "IPv6": 16},
    **{"Date": 2, "Date32": 4, "DateTime": 4, "DateTime64": 8, "Time": 4, "Time64": 8, "Enum8": 1, "Enum16": 2},
    **{"Decimal32": 4, "Decimal64": 8, "Decimal128": 16, "Decimal256": 32},
}
DECIMAL_BYTES = ((9, 4), (18, 8), (38, 16), (76, 32))
INDEX_TYPE_MASK = 0xFF
TYPE = re.compile(r"(\w+)(?:\((.*)\))?", re.DOTALL)
ELEMENT_NAME = re.compile(r"(?:\w+|`(?:[^`\\]|\\.)*`) (?=[A-Z])")


class Unwalkable(ValueError):
    """A type whose values this module cannot find the end of."""


def with_revision(body: bytes) -> bytes:
    """A Native body of revision 0 as revision 54454 and later. Raises Unwalkable, naming the type."""
    out: list[bytes] = []
    at = 0
    while at < len(body):
        out.append(BLOCK_INFO)
        start = at
        columns, at = varint(body, at)
        rows, at = varint(body, at)
        for _ in range(columns):
            _, at = text(body, at)
            type_name, at = text(body, at)
            out += (body[start:at], NO_CUSTOM_SERIALIZATION)
            start = at
            if rows:
                walk_prefix, walk_values = walker(type_name)
                at = walk_values(body, walk_prefix(at), rows)
        out.append(body[start:at])
    return b"".join(out)


def varint(body: bytes, at: int) -> tuple[int, int]:
    """A LEB128 number and where it ends."""
    value = shift = 0
    while True:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def text(body: bytes, at: int) -> tuple[str, int]:
    length, at = varint(body, at)
    return body[at : at + length].decode(), at + length


def number(body: bytes, at: int) -> int:
    return int.from_bytes(body[at : at + 8], "little")


def skip_strings(body: bytes, at: int, rows: int) -> int:
    for _ in range(rows):
        length = body[at]
        at += 1
        if length >= 0x80:
            length, at = varint(body, at - 1)
        at += length
    return at


Prefix = Callable[[int], int]
Values = Callable[[bytes, int, int], int]


def no_prefix(at: int) -> int:
    return at


def walker(type_name: str) -> tuple[Prefix, Values]:
    """Two functions that give the end of a type's prefix, and of a number of its values."""
    match = TYPE.fullmatch(type_name)
    if match is None:
        raise Unwalkable(type_name)
    name, inside = match.group(1), match.group(2) or ""
    if name == "String":
        return no_prefix, skip_strings
    size = FIXED_BYTES.get(name) or (8 if name.startswith("Interval") else None)
    if name == "FixedString":
        size = int(inside)
    if name == "Decimal":
        size = next(size for digits, size in DECIMAL_BYTES if int(inside.split(",")[0]) <= digits)
    if size is not None:
        return no_prefix, fixed(size)
    match name:
        case "Nullable":
            prefix, values = walker(inside)
            return prefix, lambda body, at, rows: values(body, at + rows, rows)
        case "Array":
            prefix, values = walker(inside)
            return prefix, array(values)
        case "Map":
            prefix, values = tuple_of(split(inside))
            return prefix, array(values)
        case "Tuple":
            return tuple_of([ELEMENT_NAME.sub("", part, count=1) for part in split(inside)])
        case "LowCardinality":
            return low_cardinality(inside)
        case "SimpleAggregateFunction":
            return walker(split(inside)[1])
    raise Unwalkable(type_name)


def fixed(size: int) -> Values:
    return lambda _, at, rows: at + size * rows


def array(values: Values) -> Values:
    """Offsets of 8 bytes, then all elements; the last offset is how many."""

    def walk(body: bytes, at: int, rows: int) -> int:
        if not rows:
            return at
        at += 8 * rows
        return values(body, at, number(body, at - 8))

    return walk


def tuple_of(types: list[str]) -> tuple[Prefix, Values]:
    parts = [walker(part) for part in types]

    def prefix(at: int) -> int:
        for part_prefix, _ in parts:
            at = part_prefix(at)
        return at

    def values(body: bytes, at: int, rows: int) -> int:
        for _, part_values in parts:
            at = part_values(body, at, rows)
        return at

    return prefix, values


def low_cardinality(inside: str) -> tuple[Prefix, Values]:
    """Prefix: a version, 8 bytes. Values: flags · keys, counted · indexes, counted."""
    nullable = TYPE.fullmatch(inside)
    if nullable is not None and nullable.group(1) == "Nullable":
        inside = nullable.group(2)
    _, keys = walker(inside)

    def walk(body: bytes, at: int, rows: int) -> int:
        if not rows:
            return at
        index_bytes = 1 << (number(body, at) & INDEX_TYPE_MASK)
        at = keys(body, at + 16, number(body, at + 8))
        return at + 8 + index_bytes * number(body, at)

    return lambda at: at + 8, walk


def split(inside: str) -> list[str]:
    """The arguments of a type, at commas outside brackets and quotes."""
    parts, depth, start, quote = [], 0, 0, ""
    escaped = False
    for at, character in enumerate(inside):
        if quote:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == quote:
                quote = ""
        elif character in "'`":
            quote = character
        elif character in "()":
            depth += 1 if character == "(" else -1
        elif character == "," and depth == 0:
            parts.append(inside[start:at].strip())
            start = at + 1
    return [*parts, inside[start:].strip()]
