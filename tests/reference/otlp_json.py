"""OTLP/JSON to rows, slow and obvious: JSON by the standard library, then the protobuf reference.

Written from ``docs/rows.md`` alone: the document is turned into the protobuf message it means, and
the rows are those of that message. protobuf's own ``json_format`` is of no use here: it reads the
hex ids as base64 and knows nothing of the leniency our rules ask for.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry.proto.logs.v1 import logs_pb2

from gateway.errors import Malformed
from tests.reference import otlp
from tests.reference.strict_json import NUMBER, Members, Number, exact, parse

NESTING_MAX = 192
_BASE64 = re.compile(r"[A-Za-z0-9+/]*", re.ASCII)
Fill = Callable[[Any, Any, str], None]
"""Puts a JSON value (never null) into a message; the text is the path, for the error."""


def decode_json(
    body: bytes, *, constants: Mapping[str, str], arrival_ns: int, time_min_ns: int, time_max_ns: int
) -> otlp.Result:
    """The rows of an ExportLogsServiceRequest in JSON. Raises Malformed."""
    request = to_message(body)
    sizes = (
        record.ByteSize()
        for group in request.resource_logs
        for scope in group.scope_logs
        for record in scope.log_records
    )
    return otlp.rows_of(
        request,
        sizes,
        constants=constants,
        arrival_ns=arrival_ns,
        time_min_ns=time_min_ns,
        time_max_ns=time_max_ns,
    )


def to_message(body: bytes) -> Any:
    """The message that a document means. Raises Malformed."""
    document = parse(body, nesting_max=NESTING_MAX)
    request = otlp.Request()
    _fill(request, document, "", {"resource_logs": _each("resource_logs", _resource_logs)})
    return request


def _fill(target: Any, value: Any, path: str, members: Mapping[str, Fill]) -> None:
    """Put the members of a JSON object into a message. Two names of one field count as the same member."""
    if not isinstance(value, Members):
        raise Malformed(f"{path or 'the document'} must be an object")
    last: dict[str, tuple[str, Any]] = {}
    for name, inner in value.sent:
        field = _FIELD_NAMES.get(name, name)
        if field in members:
            lost = last.pop(field, None)
            if lost is not None and lost[1] is not None:
                # It must be of the right type all the same.
                members[field](type(target)(), lost[1], f"{path}.{lost[0]}")
            last[field] = (name, inner)
    for field, (name, inner) in last.items():
        if inner is not None:
            members[field](target, inner, f"{path}.{name}")


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


_SNAKE = (
    "resource_logs", "scope_logs", "schema_url", "log_records", "time_unix_nano", "observed_time_unix_nano",
    "severity_number", "severity_text", "trace_id", "span_id", "event_name", "string_value", "bool_value",
    "int_value", "double_value", "bytes_value", "array_value", "kvlist_value",
)  # fmt: skip
_FIELD_NAMES = {_camel(name): name for name in _SNAKE} | {"traceFlags": "flags", "trace_flags": "flags"}


# How a value gets into a message.


def _each(field: str, fill: Fill) -> Fill:
    """A list of messages. A null element is an empty message."""

    def put(target: Any, value: Any, path: str) -> None:
        if not isinstance(value, list):
            raise Malformed(f"{path} must be an array")
        for index, element in enumerate(value):
            inner = getattr(target, field).add()
            if element is not None:
                fill(inner, element, f"{path}[{index}]")

    return put


def _one(field: str, fill: Fill) -> Fill:
    """A message; there even when it is empty."""

    def put(target: Any, value: Any, path: str) -> None:
        inner = getattr(target, field)
        inner.SetInParent()
        fill(inner, value, path)

    return put


def _scalar(field: str, read: Callable[[Any, str], Any]) -> Fill:
    def put(target: Any, value: Any, path: str) -> None:
        setattr(target, field, read(value, path))

    return put


def _text(value: Any, path: str) -> bytes:
    return _string(value, path).encode()


def _string(value: Any, path: str) -> str:
    # A number is kept as text, but is no string.
    if not isinstance(value, str) or isinstance(value, Number):
        raise Malformed(f"{path} must be a string")
    return value


def _boolean(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise Malformed(f"{path} must be true or false")
    return value


def _integer(low: int, high: int) -> Callable[[Any, str], int]:
    """An integer as a number or in a string, also spelt as a float."""

    def read(value: Any, path: str) -> int:
        number = exact(value) if isinstance(value, str) and NUMBER.fullmatch(value) else None
        if number is None or number.denominator != 1 or not low <= number <= high:
            raise Malformed(f"{path} must be an integer from {low} to {high}")
        return int(number)

    return read


def _double(value: Any, path: str) -> float:
    if isinstance(value, str):
        if value in ("NaN", "Infinity", "-Infinity") and not isinstance(value, Number):
            return float(value)
        if NUMBER.fullmatch(value):
            return float(value)
    raise Malformed(f"{path} must be a number")


def _severity(value: Any, path: str) -> int:
    if isinstance(value, str) and value in tuple(logs_pb2.SeverityNumber.keys()):
        return int(logs_pb2.SeverityNumber.Value(value))
    return _integer(-(1 << 31), (1 << 31) - 1)(value, path)


def _identifier(value: Any, path: str) -> bytes:
    digits = _string(value, path)
    if len(digits) % 2 or not re.fullmatch(r"[0-9a-fA-F]*", digits, re.ASCII):
        return b""
    return bytes.fromhex(digits)


def _base64(value: Any, path: str) -> bytes:
    encoded = _string(value, path)
    plain = encoded.rstrip("=").replace("-", "+").replace("_", "/")
    padding = len(encoded) - len(plain)
    if not _BASE64.fullmatch(plain) or padding not in (0, -len(plain) % 4) or len(plain) % 4 == 1:
        raise Malformed(f"{path} must be base64")
    return base64.b64decode(plain + "=" * (-len(plain) % 4))


# The messages, from the outside in.


def _any_value(target: Any, value: Any, path: str) -> None:
    _fill(target, value, path, _ANY_VALUE)


def _key_value(target: Any, value: Any, path: str) -> None:
    _fill(target, value, path, {"key": _scalar("key", _text), "value": _one("value", _any_value)})


def _array(target: Any, value: Any, path: str) -> None:
    _fill(target, value, path, {"values": _each("values", _any_value)})


def _key_value_list(target: Any, value: Any, path: str) -> None:
    _fill(target, value, path, {"values": _each("values", _key_value)})


_ANY_VALUE: Mapping[str, Fill] = {
    "string_value": _scalar("string_value", _text),
    "bool_value": _scalar("bool_value", _boolean),
    "int_value": _scalar("int_value", _integer(-(1 << 63), (1 << 63) - 1)),
    "double_value": _scalar("double_value", _double),
    "bytes_value": _scalar("bytes_value", _base64),
    "array_value": _one("array_value", _array),
    "kvlist_value": _one("kvlist_value", _key_value_list),
}
_ATTRIBUTES = _each("attributes", _key_value)
_UINT64 = _integer(0, (1 << 64) - 1)
_RECORD: Mapping[str, Fill] = {
    "time_unix_nano": _scalar("time_unix_nano", _UINT64),
    "observed_time_unix_nano": _scalar("observed_time_unix_nano", _UINT64),
    "severity_number": _scalar("severity_number", _severity),
    "severity_text": _scalar("severity_text", _text),
    "body": _one("body", _any_value),
    "attributes": _ATTRIBUTES,
    "flags": _scalar("flags", _integer(0, (1 << 32) - 1)),
    "trace_id": _scalar("trace_id", _identifier),
    "span_id": _scalar("span_id", _identifier),
    "event_name": _scalar("event_name", _text),
}


def _record(target: Any, value: Any, path: str) -> None:
    _fill(target, value, path, _RECORD)


def _scope(target: Any, value: Any, path: str) -> None:
    _fill(
        target,
        value,
        path,
        {"name": _scalar("name", _text), "version": _scalar("version", _text), "attributes": _ATTRIBUTES},
    )


def _scope_logs(target: Any, value: Any, path: str) -> None:
    _fill(
        target,
        value,
        path,
        {
            "scope": _one("scope", _scope),
            "log_records": _each("log_records", _record),
            "schema_url": _scalar("schema_url", _text),
        },
    )


def _resource(target: Any, value: Any, path: str) -> None:
    _fill(target, value, path, {"attributes": _ATTRIBUTES})


def _resource_logs(target: Any, value: Any, path: str) -> None:
    _fill(
        target,
        value,
        path,
        {
            "resource": _one("resource", _resource),
            "scope_logs": _each("scope_logs", _scope_logs),
            "schema_url": _scalar("schema_url", _text),
        },
    )
