"""Export requests as plain values, and their spellings on the wire: protobuf and OTLP/JSON.

A ``Style`` makes the choices a sender has: style 0 spells as every encoder does, any other one picks
among all that the rules allow (order, split and repeated fields, unknown ones, odd names and numbers).
All spellings of one request mean the same rows.
"""

from __future__ import annotations

import base64
import json
import math
import random
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

UINT64_MAX = (1 << 64) - 1


@dataclass(frozen=True)
class Text:
    """A stringValue: bytes, for they need not be UTF-8."""

    raw: bytes


@dataclass(frozen=True)
class Pairs:
    """A kvlistValue. A value of ``ABSENT`` is not there at all, one of None has no member set."""

    entries: tuple[tuple[bytes, AnyValue | Absent], ...]


@dataclass(frozen=True)
class Absent:
    """A field that is not sent."""


ABSENT = Absent()
AnyValue: TypeAlias = bool | int | float | bytes | Text | Pairs | tuple["AnyValue", ...] | None
Entries: TypeAlias = tuple[tuple[bytes, AnyValue | Absent], ...]


@dataclass(frozen=True)
class Record:
    """A LogRecord. Zero and empty mean not sent."""

    time_ns: int = 0
    observed_ns: int = 0
    severity_number: int = 0
    severity_text: bytes = b""
    body: AnyValue | Absent = ABSENT
    attributes: Entries = ()
    flags: int = 0
    trace_id: bytes = b""
    span_id: bytes = b""
    event_name: bytes = b""


@dataclass(frozen=True)
class ScopeLogs:
    """A scope and its records."""

    records: tuple[Record, ...] = ()
    name: bytes = b""
    version: bytes = b""
    attributes: Entries = ()
    schema_url: bytes = b""


@dataclass(frozen=True)
class ResourceLogs:
    """A resource and its scopes."""

    scopes: tuple[ScopeLogs, ...] = ()
    attributes: Entries = ()
    schema_url: bytes = b""


@dataclass(frozen=True)
class Style:
    """A sender's choices. ``odd()`` is never true in style 0."""

    seed: int = 0
    choice: random.Random = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "choice", random.Random(self.seed))

    def odd(self, share: float = 0.15) -> bool:
        return self.seed != 0 and self.choice.random() < share


# Protobuf.

Piece = tuple[int, bytes]
"""One occurrence of a field: its number and all its bytes. Those of one number keep their order."""


def protobuf(request: Sequence[ResourceLogs], style: Style) -> bytes:
    """The request as an ExportLogsServiceRequest."""
    wire = _Wire(style)
    return wire.message([piece for group in request for piece in wire.embed(1, wire.resource_logs(group))])


class _Wire:
    def __init__(self, style: Style) -> None:
        self.style = style

    # What every message is made of.

    def varint(self, value: int, longest: int = 10) -> bytes:
        digits = [(value >> shift) & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
        if self.style.odd(0.03):
            digits += [0] * self.style.choice.randint(0, longest - len(digits))
        return bytes([digit | 0x80 for digit in digits[:-1]] + [digits[-1]])

    def tag(self, number: int, wire: int) -> bytes:
        return self.varint(number << 3 | wire, longest=5)

    def block(self, number: int, content: bytes) -> Piece:
        return number, self.tag(number, 2) + self.varint(len(content), longest=5) + content

    def fixed64(self, number: int, value: int) -> list[Piece]:
        tag = self.tag(number, 1)
        return self.last_of(number, value != 0, tag + struct.pack("<Q", 7), tag + struct.pack("<Q", value))

    def fixed32(self, number: int, value: int) -> list[Piece]:
        tag = self.tag(number, 5)
        return self.last_of(number, value != 0, tag + struct.pack("<I", 7), tag + struct.pack("<I", value))

    def number(self, number: int, value: int) -> list[Piece]:
        tag = self.tag(number, 0)
        return self.last_of(number, value != 0, tag + self.varint(7), tag + self.varint(value & UINT64_MAX))

    def text(self, number: int, value: bytes) -> list[Piece]:
        return self.last_of(number, value != b"", self.block(number, b"lost")[1], self.block(number, value)[1])

    def last_of(self, number: int, there: bool, losing: bytes, winning: bytes) -> list[Piece]:
        """A scalar field; perhaps with another value before it, which loses."""
        if self.style.odd(0.05):
            return [(number, losing), (number, winning)]
        return [(number, winning)] if there or self.style.odd(0.05) else []

    def embed(self, number: int, pieces: list[Piece]) -> list[Piece]:
        """A message field that stands for itself: one of a repeated field."""
        return [self.block(number, self.message(pieces))]

    def merge(self, number: int, pieces: list[Piece]) -> list[Piece]:
        """A message field; perhaps in several parts, which are merged."""
        if self.style.odd():
            cut = self.style.choice.randint(0, len(pieces))
            return self.embed(number, pieces[:cut]) + self.embed(number, pieces[cut:])
        return self.embed(number, pieces)

    def message(self, pieces: list[Piece]) -> bytes:
        """The fields in some order."""
        if self.style.odd():
            numbers = [number for number, _ in pieces]
            self.style.choice.shuffle(numbers)
            queues = {number: [raw for other, raw in pieces if other == number] for number in numbers}
            pieces = [(number, queues[number].pop(0)) for number in numbers]
        encoded = [raw for _, raw in pieces]
        if self.style.odd(0.08):
            encoded.insert(self.style.choice.randint(0, len(encoded)), self.noise())
        return b"".join(encoded)

    def noise(self, depth: int = 0) -> bytes:
        """A field that no message of ours has: by its number, or by its wire type."""
        choice = self.style.choice
        number = choice.choice((13, 99, 1000, 19_999, (1 << 29) - 1))
        kind = choice.randrange(6)
        if kind == 0:
            return self.tag(choice.choice((1, number)), 0) + self.varint(choice.getrandbits(64))
        if kind == 1:
            return self.tag(choice.choice((2, number)), 1) + choice.randbytes(8)
        if kind == 2:
            return self.tag(choice.choice((1, 2, 6, number)), 5) + choice.randbytes(4)
        if kind == 3:
            return self.block(number, choice.randbytes(choice.randrange(9)))[1]
        number = choice.choice((1, 2, 5, 6, number))
        inner = b"".join(self.noise(depth + 1) for _ in range(choice.randrange(3))) if depth < 5 else b""
        return self.tag(number, 3) + inner + self.tag(number, 4)

    # The messages, from the outside in.

    def resource_logs(self, group: ResourceLogs) -> list[Piece]:
        pieces: list[Piece] = []
        if group.attributes or self.style.odd():
            pieces += self.merge(1, self.entries(1, group.attributes))
        for scope in group.scopes:
            pieces += self.embed(2, self.scope_logs(scope))
        return pieces + self.text(3, group.schema_url)

    def scope_logs(self, scope: ScopeLogs) -> list[Piece]:
        pieces: list[Piece] = []
        if scope.name or scope.version or scope.attributes or self.style.odd():
            inner = self.text(1, scope.name) + self.text(2, scope.version) + self.entries(3, scope.attributes)
            pieces += self.merge(1, inner)
        for record in scope.records:
            pieces += self.embed(2, self.record(record))
        return pieces + self.text(3, scope.schema_url)

    def record(self, record: Record) -> list[Piece]:
        pieces = self.fixed64(1, record.time_ns) + self.fixed64(11, record.observed_ns)
        pieces += self.number(2, record.severity_number) + self.text(3, record.severity_text)
        if not isinstance(record.body, Absent):
            pieces += self.merge(5, self.value(record.body))
        pieces += self.entries(6, record.attributes) + self.fixed32(8, record.flags)
        pieces += self.text(9, record.trace_id) + self.text(10, record.span_id) + self.text(12, record.event_name)
        return pieces

    def entries(self, number: int, entries: Entries) -> list[Piece]:
        pieces: list[Piece] = []
        for key, value in entries:
            inner = self.text(1, key)
            if not isinstance(value, Absent):
                inner += self.merge(2, self.value(value))
            pieces += self.embed(number, inner)
        return pieces

    def value(self, value: AnyValue) -> list[Piece]:
        """The member of an AnyValue; perhaps behind another one, which loses: among members the order counts."""
        if value is None:
            return []
        pieces = [(2, self.tag(2, 0) + self.varint(1))] if self.style.odd(0.05) else []
        return [(0, raw) for _, raw in pieces + self.member(value)]

    def member(self, value: AnyValue) -> list[Piece]:
        if isinstance(value, bool):
            return [(2, self.tag(2, 0) + self.varint(value))]
        if isinstance(value, int):
            return [(3, self.tag(3, 0) + self.varint(value & UINT64_MAX))]
        if isinstance(value, float):
            return [(4, self.tag(4, 1) + struct.pack("<d", value))]
        if isinstance(value, bytes):
            return [self.block(7, value)]
        if isinstance(value, Text):
            return [self.block(1, value.raw)]
        if isinstance(value, Pairs):
            return self.merge(6, self.entries(1, value.entries))
        assert isinstance(value, tuple)
        return self.merge(5, [piece for inner in value for piece in self.embed(1, self.value(inner))])


# OTLP/JSON.

Member = tuple[str, bytes]
"""A member's name in lowerCamelCase, and its value as JSON."""
_SPACE = (b" ", b"\n", b"\t", b"\r", b"  ")
_SEVERITY_NAMES = [f"{name}{n}" for name in ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL") for n in ("", *"234")]


def document(request: Sequence[ResourceLogs], style: Style) -> bytes:
    """The request as OTLP/JSON. Text that is not UTF-8 stays so."""
    writer = _Document(style)
    return writer.space() + writer.object([writer.array("resourceLogs", map(writer.resource_logs, request))])


class _Document:
    def __init__(self, style: Style) -> None:
        self.style = style

    def space(self) -> bytes:
        return self.style.choice.choice(_SPACE) if self.style.odd(0.05) else b""

    def object(self, members: Sequence[Member | None]) -> bytes:
        """An object of the members that are not None, in some order, among others that mean nothing."""
        style = self.style
        spelt = [(self.name(name), value) for member in members if member for name, value in [member]]
        if style.odd():
            style.choice.shuffle(spelt)
        if spelt and style.odd(0.08):
            # A duplicate of the same type before it, which loses.
            spelt.insert(0, style.choice.choice(spelt))
        if style.odd(0.1):
            unknown = style.choice.choice((b"null", b'[1,{},"x"]', b'{"a":{"b":[]}}', b"-1.5e3", b'"\\ud800"', b"true"))
            spelt.insert(style.choice.randint(0, len(spelt)), (b'"unknownMember"', unknown))
        parts = [name + self.space() + b":" + self.space() + value for name, value in spelt]
        return (
            b"{" + self.space() + (self.space() + b"," + self.space()).join(parts) + self.space() + b"}" + self.space()
        )

    def array(self, name: str, elements: Iterable[bytes]) -> Member | None:
        inner = list(elements)
        if not inner:
            return self.nothing(name, b"[]")
        return name, b"[" + self.space() + (b"," + self.space()).join(inner) + b"]"

    def nothing(self, name: str, empty: bytes) -> Member | None:
        """A field that is not sent: left out, null or its empty value."""
        if not self.style.odd():
            return None
        return name, self.style.choice.choice((b"null", empty))

    def name(self, camel: str) -> bytes:
        if camel == "flags" and self.style.odd():
            camel = "traceFlags"
        elif self.style.odd():
            camel = re.sub("[A-Z]", lambda match: "_" + match[0].lower(), camel)
        return self.string(camel.encode())

    def string(self, raw: bytes) -> bytes:
        """A JSON string; perhaps with escapes that need not be."""
        if self.style.odd():
            characters = raw.decode(errors="replace")
            escape_all = self.style.odd(0.5)
            return (
                json.dumps(characters, ensure_ascii=escape_all)
                .replace("/", self.style.choice.choice(("/", "\\/")))
                .encode()
            )
        escaped = b"".join(
            json.dumps(chr(byte)).encode()[1:-1] if byte < 0x20 or byte in b'"\\' else bytes([byte]) for byte in raw
        )
        return b'"' + escaped + b'"'

    def text(self, name: str, raw: bytes) -> Member | None:
        return (name, self.string(raw)) if raw else self.nothing(name, b'""')

    def integer(self, name: str, value: int) -> Member | None:
        return (name, self.integer_value(value)) if value else self.nothing(name, b"0")

    def integer_value(self, value: int) -> bytes:
        spelt = [f'"{value}"', f"{value}", f"{value}.0", f"{value}.000e0", f"{value * 10}e-1"]
        return (self.style.choice.choice(spelt) if self.style.odd(0.5) else spelt[0]).encode()

    def hexadecimal(self, name: str, raw: bytes) -> Member | None:
        if not raw:
            return self.nothing(name, self.style.choice.choice((b'""', b'"not hex"', b'"abc"')))
        return name, self.string((raw.hex().upper() if self.style.odd() else raw.hex()).encode())

    def severity(self, value: int) -> Member | None:
        if not value:
            return self.nothing("severityNumber", b'"SEVERITY_NUMBER_UNSPECIFIED"')
        if self.style.odd(0.3) and 0 < value <= 24:
            return "severityNumber", f'"SEVERITY_NUMBER_{_SEVERITY_NAMES[value - 1]}"'.encode()
        return "severityNumber", (f'"{value}"' if self.style.odd() else f"{value}").encode()

    # The messages, from the outside in.

    def resource_logs(self, group: ResourceLogs) -> bytes:
        resource = self.object([self.entries("attributes", group.attributes)]) if group.attributes else None
        return self.object(
            [
                ("resource", resource) if resource else self.nothing("resource", b"{}"),
                self.array("scopeLogs", map(self.scope_logs, group.scopes)),
                self.text("schemaUrl", group.schema_url),
            ]
        )

    def scope_logs(self, scope: ScopeLogs) -> bytes:
        inner = self.object(
            [
                self.text("name", scope.name),
                self.text("version", scope.version),
                self.entries("attributes", scope.attributes),
            ]
        )
        there = scope.name or scope.version or scope.attributes
        return self.object(
            [
                ("scope", inner) if there else self.nothing("scope", b"{}"),
                self.array("logRecords", map(self.record, scope.records)),
                self.text("schemaUrl", scope.schema_url),
            ]
        )

    def record(self, record: Record) -> bytes:
        return self.object(
            [
                self.integer("timeUnixNano", record.time_ns),
                self.integer("observedTimeUnixNano", record.observed_ns),
                self.severity(record.severity_number),
                self.text("severityText", record.severity_text),
                self.nothing("body", b"null") if isinstance(record.body, Absent) else ("body", self.value(record.body)),
                self.entries("attributes", record.attributes),
                self.integer("flags", record.flags),
                self.hexadecimal("traceId", record.trace_id),
                self.hexadecimal("spanId", record.span_id),
                self.text("eventName", record.event_name),
            ]
        )

    def entries(self, name: str, entries: Entries) -> Member | None:
        return self.array(name, (self.entry(key, value) for key, value in entries))

    def entry(self, key: bytes, value: AnyValue | Absent) -> bytes:
        there = self.nothing("value", b"null") if isinstance(value, Absent) else ("value", self.value(value))
        return self.object([self.text("key", key), there])

    def value(self, value: AnyValue) -> bytes:
        if value is None:
            return self.object([self.nothing("stringValue", b"null")])
        if isinstance(value, bool):
            return self.object([("boolValue", b"true" if value else b"false")])
        if isinstance(value, int):
            return self.object([("intValue", self.integer_value(value))])
        if isinstance(value, float):
            return self.object([("doubleValue", self.double(value))])
        if isinstance(value, bytes):
            return self.object([("bytesValue", self.base64(value))])
        if isinstance(value, Text):
            return self.object([("stringValue", self.string(value.raw))])
        if isinstance(value, Pairs):
            inner = self.object([self.entries("values", value.entries)])
            return self.object([("kvlistValue", inner)])
        assert isinstance(value, tuple)
        return self.object([("arrayValue", self.object([self.array("values", map(self.value, value))]))])

    def double(self, value: float) -> bytes:
        if math.isnan(value):
            return b'"NaN"'
        if math.isinf(value):
            return b'"Infinity"' if value > 0 else b'"-Infinity"'
        return (f'"{value!r}"' if self.style.odd() else f"{value!r}").encode()

    def base64(self, raw: bytes) -> bytes:
        encoded = base64.urlsafe_b64encode(raw) if self.style.odd() else base64.b64encode(raw)
        return b'"' + (encoded.rstrip(b"=") if self.style.odd() else encoded) + b'"'
