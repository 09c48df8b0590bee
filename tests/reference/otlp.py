"""OTLP protobuf to rows, slow and obvious: what the compiled decoder is held to.

Written from ``docs/rows.md`` alone. The wire format is left to protobuf's own parser (upb), with
two things it cannot give done here: text that is not UTF-8 is repaired where upb refuses it, so the
published descriptors are copied with every ``string`` turned into ``bytes``; and the encoded length
of each record, and what our wire rules are stricter or wider in than upb, come from ``scan``.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from google._upb import _message
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
from google.protobuf.descriptor import Descriptor, FileDescriptor
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2

from gateway.errors import Malformed
from gateway.schema import Table

Value = str | int | float | bool | None | dict[str, str]
"""One cell. Times are integer nanoseconds."""
Row = dict[str, Value]

ATTRIBUTES_MAX = 128
KEY_BYTES_MAX = 256
VALUE_BYTES_MAX = 65_536
RECORD_BYTES_MAX = 1_048_576
VALUE_DEPTH_MAX = 32
GROUP_DEPTH_MAX = 100
UPB_DEPTH_MAX = 100
SEVERITIES = tuple(
    f"{name}{number or ''}" for name in ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL") for number in ("", 2, 3, 4)
)
"""The texts of severity numbers 1 to 24."""


@dataclass
class Result:
    """What a request comes to. ``rows`` have the names in ``schema.SOURCES``, without frame and row."""

    rows: list[Row] = field(default_factory=list)
    rejected: dict[str, int] = field(default_factory=dict)
    attributes_cut: int = 0
    timestamps_clamped: int = 0


# The descriptors, with bytes for text.


def _bytes_for_text() -> type[message.Message]:
    """ExportLogsServiceRequest in a pool of its own, where every ``string`` field is ``bytes``."""
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(file: FileDescriptor) -> None:
        if file.name in added:
            return
        added.add(file.name)
        for dependency in file.dependencies:
            add(dependency)
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        pending = list(proto.message_type)
        while pending:
            kind = pending.pop()
            pending.extend(kind.nested_type)
            for member in kind.field:
                if member.type == member.TYPE_STRING:
                    member.type = member.TYPE_BYTES
        pool.Add(proto)

    add(logs_service_pb2.DESCRIPTOR)
    name = logs_service_pb2.ExportLogsServiceRequest.DESCRIPTOR.full_name
    request: type[message.Message] = message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
    return request


Request = _bytes_for_text()
_RECORD = Request.DESCRIPTOR.file.pool.FindMessageTypeByName("opentelemetry.proto.logs.v1.LogRecord")


def parse(body: bytes) -> Any:
    """The request message. Raises Malformed."""
    # upb gives up at a hundred messages deep, which is no rule of the wire; a process-wide switch lifts it.
    _message.SetAllowOversizeProtos(True)
    try:
        return Request.FromString(body)
    except message.DecodeError as error:
        raise Malformed("not an ExportLogsServiceRequest") from error
    finally:
        _message.SetAllowOversizeProtos(False)


# A walk over the wire.


@dataclass
class Scan:
    """What a walk over the bytes of a request saw, up to the first thing it could not read."""

    record_bytes: list[int] = field(default_factory=list)
    """Encoded length of each LogRecord, in order."""
    message_depth: int = 0
    group_depth: int = 0
    broken: bool = False


def scan(body: bytes) -> Scan:
    """Walk over the bytes of a request."""
    seen = Scan()
    try:
        _walk(body, seen)
    except IndexError:
        seen.broken = True
    return seen


def _walk(body: bytes, seen: Scan) -> None:
    """Note in ``seen`` what is there. Raises IndexError where the bytes are not on the wire's terms."""
    # What is open, from the outside in: (end, message type, or the number of a group).
    opened: list[tuple[int, Descriptor | int]] = [(len(body), Request.DESCRIPTOR)]
    at = 0
    while opened:
        end, kind = opened[-1]
        if at == end and not isinstance(kind, int):
            opened.pop()
            continue
        tag, length = _varint(body, at, end)
        at += length
        number, wire = tag >> 3, tag & 7
        if not 1 <= number < 1 << 29 or wire > 5 or (wire == 4 and number != kind):
            raise IndexError
        if wire == 0:
            at += _varint(body, at, end)[1]
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            size, length = _varint(body, at, end)
            at += length
            child = None if isinstance(kind, int) else kind.fields_by_number.get(number)
            if child is not None and child.message_type is not None and at + size <= end:
                if child.message_type is _RECORD:
                    seen.record_bytes.append(size)
                opened.append((at + size, child.message_type))
            else:
                at += size
        elif wire == 3:
            opened.append((end, number))
        else:
            opened.pop()
        if at > end:
            raise IndexError
        groups = sum(isinstance(kind, int) for _, kind in opened)
        seen.group_depth = max(seen.group_depth, groups)
        seen.message_depth = max(seen.message_depth, len(opened) - groups)


def _varint(body: bytes, at: int, end: int) -> tuple[int, int]:
    """(value, length) of the varint at ``at``. Raises IndexError where there is none of ten bytes at most."""
    value = 0
    for length in range(1, 11):
        if at + length > end:
            raise IndexError
        byte = body[at + length - 1]
        value |= (byte & 0x7F) << 7 * (length - 1)
        if byte < 0x80:
            return value & (1 << 64) - 1, length
    raise IndexError


def oracle_silent(body: bytes) -> bool:
    """Whether the oracle cannot be asked about this body, so that anything but a crash is right.

    So it is for one broken below more than a hundred messages, where every other decoder has given
    up and one that rejected the record need not look any further.
    """
    seen = scan(body)
    return seen.broken and seen.message_depth > UPB_DEPTH_MAX


# Messages to rows.


def decode_protobuf(
    body: bytes, *, constants: Mapping[str, str], arrival_ns: int, time_min_ns: int, time_max_ns: int
) -> Result:
    """The rows of an ExportLogsServiceRequest. Raises Malformed."""
    request = parse(body)
    seen = scan(body)
    # Inside groups upb takes field number 0; with its limit lifted, any depth.
    if seen.broken or seen.group_depth > GROUP_DEPTH_MAX:
        raise Malformed("not an ExportLogsServiceRequest")
    return rows_of(
        request,
        iter(seen.record_bytes),
        constants=constants,
        arrival_ns=arrival_ns,
        time_min_ns=time_min_ns,
        time_max_ns=time_max_ns,
    )


def rows_of(
    request: Any,
    record_bytes: Iterator[int],
    *,
    constants: Mapping[str, str],
    arrival_ns: int,
    time_min_ns: int,
    time_max_ns: int,
) -> Result:
    """The rows of a parsed request; ``record_bytes`` gives the size of each of its records in turn."""
    result = Result()
    window = _Window(arrival_ns, time_min_ns, time_max_ns)
    for resource_logs in request.resource_logs:
        resource = attributes_of(resource_logs.resource.attributes)
        for scope_logs in resource_logs.scope_logs:
            scope = attributes_of(scope_logs.scope.attributes)
            shared: Row = {
                "scope_name": text(scope_logs.scope.name),
                "scope_version": text(scope_logs.scope.version),
                "scope_attributes": scope.stored,
                "scope_schema_url": text(scope_logs.schema_url),
                "resource_attributes": resource.stored,
                "resource_schema_url": text(resource_logs.schema_url),
                "service_name": resource.whole.get("service.name", ""),
                "project_id": constants.get("project_id", ""),
                "dialect": constants.get("dialect", ""),
            }
            before = len(result.rows)
            for record in scope_logs.log_records:
                reason = _refusal(record, next(record_bytes))
                if reason:
                    result.rejected[reason] = result.rejected.get(reason, 0) + 1
                else:
                    result.rows.append(_record_row(record, window, result) | shared)
            if len(result.rows) > before:
                result.attributes_cut += resource.cut + scope.cut
    return result


@dataclass(frozen=True)
class _Window:
    """When the request arrived, and the times a row may have."""

    arrival_ns: int
    time_min_ns: int
    time_max_ns: int

    def clamp(self, time_ns: int) -> int:
        return min(max(time_ns, self.time_min_ns), self.time_max_ns)


def _refusal(record: Any, size: int) -> str:
    """Why a record is not stored; empty when it is."""
    if size > RECORD_BYTES_MAX:
        return "size"
    values = [record.body] + [entry.value for entry in record.attributes[:ATTRIBUTES_MAX]]
    return "depth" if any(too_deep(value, 1) for value in values) else ""


def _record_row(record: Any, window: _Window, result: Result) -> Row:
    attributes = attributes_of(record.attributes)
    result.attributes_cut += attributes.cut
    stored = attributes.stored
    sent_ns = record.time_unix_nano or record.observed_time_unix_nano or window.arrival_ns
    time_ns = window.clamp(sent_ns)
    if time_ns != sent_ns:
        result.timestamps_clamped += 1
        stored.pop("weir.timestamp", None)
        stored["weir.timestamp"] = str(sent_ns)
    number = record.severity_number if 0 <= record.severity_number <= 24 else 0
    return {
        "time": time_ns,
        "observed_time": window.clamp(record.observed_time_unix_nano or window.arrival_ns),
        "trace_id": identifier(record.trace_id, 16),
        "span_id": identifier(record.span_id, 8),
        "flags": record.flags & 0xFF,
        "severity_number": number,
        "severity_text": text(record.severity_text) or (SEVERITIES[number - 1] if number else ""),
        "body": value_text(record.body),
        "attributes": stored,
        "event_name": text(record.event_name) or attributes.whole.get("event.name", ""),
        "record_id": attributes.whole.get("log.record.uid", ""),
    }


@dataclass
class Attributes:
    """An attribute list: as ``stored``, with values ``whole``, and how much was ``cut``."""

    stored: dict[str, str] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    cut: int = 0

    def add(self, key: str, value: str) -> None:
        """Keep one entry, under the caps on keys and values; the last of a key wins, at its own place."""
        short_key, short = cut_bytes(key, KEY_BYTES_MAX), cut_bytes(value, VALUE_BYTES_MAX)
        self.cut += (short_key != key) + (short != value)
        self.stored.pop(short_key, None)
        self.stored[short_key] = short
        self.whole[short_key] = value


def attributes_of(entries: Any) -> Attributes:
    """The attributes of a record, scope or resource. A value nested too deep is empty and counted as cut."""
    attributes = Attributes(cut=max(0, len(entries) - ATTRIBUTES_MAX))
    for entry in entries[:ATTRIBUTES_MAX]:
        deep = too_deep(entry.value, 1)
        attributes.cut += deep
        attributes.add(text(entry.key), "" if deep else value_text(entry.value))
    return attributes


def cut_bytes(whole: str, limit: int) -> str:
    """As many characters as fit into ``limit`` bytes of UTF-8."""
    return whole.encode()[:limit].decode(errors="ignore")


def text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")


def identifier(raw: bytes, length: int) -> str:
    """A trace or span id as hex; empty when it is none."""
    return raw.hex() if len(raw) == length and any(raw) else ""


# AnyValue to text.


def too_deep(value: Any, depth: int) -> bool:
    """Whether a value at this depth, or one within it, is deeper than the rules allow."""
    if depth > VALUE_DEPTH_MAX:
        return True
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return any(too_deep(inner, depth + 1) for inner in value.array_value.values)
    if kind == "kvlist_value":
        members = (entry.value for entry in value.kvlist_value.values if entry.HasField("value"))
        return any(too_deep(inner, depth + 1) for inner in members)
    return False


def value_text(value: Any) -> str:
    """An AnyValue as the text of a column or of an attribute."""
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return text(value.string_value)
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    if kind == "double_value" and not math.isfinite(value.double_value):
        return _not_finite(value.double_value)
    if kind in (None, "string_value_strindex"):
        return ""
    return value_json(value)


def value_json(value: Any) -> str:
    """An AnyValue as compact JSON."""
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return json_string(text(value.string_value))
    if kind == "bool_value":
        return "true" if value.bool_value else "false"
    if kind == "int_value":
        return str(value.int_value)
    if kind == "double_value":
        number = value.double_value
        return repr(number) if math.isfinite(number) else json_string(_not_finite(number))
    if kind == "bytes_value":
        return json_string(base64.b64encode(value.bytes_value).decode())
    if kind == "array_value":
        return "[" + ",".join(value_json(inner) for inner in value.array_value.values) + "]"
    if kind == "kvlist_value":
        members: dict[str, str] = {}
        for entry in value.kvlist_value.values:
            key = text(entry.key)
            members.pop(key, None)
            members[key] = value_json(entry.value)
        return "{" + ",".join(f"{json_string(key)}:{inner}" for key, inner in members.items()) + "}"
    return "null"


def json_string(plain: str) -> str:
    return json.dumps(plain, ensure_ascii=False)


def _not_finite(number: float) -> str:
    if math.isnan(number):
        return "NaN"
    return "Infinity" if number > 0 else "-Infinity"


# Rows to a table.


def to_table_rows(result: Result, table: Table) -> list[Row]:
    """The rows by column name; columns that nothing feeds, and the row's identity, hold their default."""
    table_rows: list[Row] = []
    for row in result.rows:
        cells = {column.name: row.get(column.source, default_of(column.type)) for column in table.columns}
        for column in table.columns:
            time_ns = cells[column.name]
            if column.source in ("time", "observed_time") and isinstance(time_ns, int):
                cells[column.name] = ticks(time_ns, column.type)
        table_rows.append(cells)
    return table_rows


def ticks(time_ns: int, type_: str) -> int:
    """A time in the unit of a column's type."""
    match = re.search(r"DateTime64\((\d)", type_)
    if match:
        unit_ns: int = 10 ** (9 - int(match[1]))
        return time_ns // unit_ns
    return time_ns // 1_000_000_000 // (1 if "DateTime" in type_ else 86_400)


def default_of(type_: str) -> Value:
    """What ClickHouse holds in a column of this type that was given nothing. Times are ticks."""
    if type_.startswith("Nullable("):
        return None
    if type_.startswith("Map("):
        return {}
    if type_ in ("String", "LowCardinality(String)"):
        return ""
    if type_.startswith("Float"):
        return 0.0
    return False if type_ == "Bool" else 0
