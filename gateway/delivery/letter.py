"""A dead letter: one row that no table would take, as one line of JSON with the reason.

    {"reason": {"code": 469, "error": "ClickHouse error 469 VIOLATED_CONSTRAINT", "text": "..."},
     "table": "otel_logs", "project_id": "...", "frame": 123, "row": 5, "time": "2026-11-22T01:33:26Z",
     "record": {"resourceLogs": [...]}, "columns": {"ServiceName": "...", ...}}

``frame`` and ``row`` are the row's identity, ``time`` when it was given up. A row of ``otel_logs`` is an
OTLP/JSON logs payload, which any OTLP receiver takes; ``columns`` are those that OTLP has no place for. Of
another table ``record`` is the row, its columns by name. ``row_of`` gives back the very row.

A whole block that cannot even be decoded is one letter: ``block`` instead of ``record``, compressed
Native in base64, ``row`` null and ``rows`` how many there are in it.
"""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from typing import Any

import orjson

from gateway.delivery.answers import DeliveryError
from gateway.delivery.block import Block
from gateway.delivery.clickhouse import Row
from gateway.schema import OTEL_LOGS

Letter = dict[str, Any]

_PLACES = {
    "Timestamp": ("record", "timeUnixNano", "time"),
    "ObservedTimestamp": ("record", "observedTimeUnixNano", "time"),
    "SeverityNumber": ("record", "severityNumber", "plain"),
    "SeverityText": ("record", "severityText", "plain"),
    "Body": ("record", "body", "value"),
    "LogAttributes": ("record", "attributes", "attributes"),
    "TraceFlags": ("record", "flags", "plain"),
    "TraceId": ("record", "traceId", "plain"),
    "SpanId": ("record", "spanId", "plain"),
    "EventName": ("record", "eventName", "plain"),
    "ScopeName": ("scope", "name", "plain"),
    "ScopeVersion": ("scope", "version", "plain"),
    "ScopeAttributes": ("scope", "attributes", "attributes"),
    "ScopeSchemaUrl": ("scopeLogs", "schemaUrl", "plain"),
    "ResourceAttributes": ("resource", "attributes", "attributes"),
    "ResourceSchemaUrl": ("resourceLogs", "schemaUrl", "plain"),
}
"""Where OTLP/JSON has a column of ``otel_logs``: which object, which member, in which form."""


def letter_of(row: Row, number: int, block: Block, error: DeliveryError | None, wall: float) -> Letter:
    """The letter for one row of a block; ``wall``: now, in seconds since 1970."""
    letter = _envelope(number, block, error, wall)
    if block.table == OTEL_LOGS.name:
        letter["record"], letter["columns"] = _otlp(row)
    else:
        letter["record"] = row
    return letter


def letter_of_block(block: Block, error: DeliveryError | None, wall: float) -> Letter:
    """The letter for a block that cannot be decoded."""
    envelope = _envelope(None, block, error, wall)
    envelope["rows"], envelope["block"] = block.rows, base64.b64encode(block.data).decode()
    return envelope


def row_of(letter: Letter) -> Row:
    """The row a letter was made of. Raises LookupError for a letter that holds a block."""
    row: Row = letter["record"]
    return _from_otlp(row) | letter["columns"] if letter["table"] == OTEL_LOGS.name else row


def line(letter: Letter) -> bytes:
    """A letter as it is in a file."""
    return orjson.dumps(letter, option=orjson.OPT_APPEND_NEWLINE)


def _envelope(number: int | None, block: Block, error: DeliveryError | None, wall: float) -> Letter:
    return {
        "reason": {
            "code": error.code if error else 0,
            "error": str(error) if error else "refused",
            "text": error.detail if error else "",
        },
        "table": block.table,
        "project_id": block.project_id,
        "frame": block.frame,
        "row": number,
        "time": datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }


def _otlp(row: Row) -> tuple[dict[str, Any], Row]:
    """A row of ``otel_logs`` as an OTLP/JSON payload, and what of it has no place there."""
    objects: dict[str, dict[str, Any]] = {
        name: {} for name in ("record", "scope", "scopeLogs", "resource", "resourceLogs")
    }
    rest: Row = {}
    for name, value in row.items():
        if name in _PLACES:
            where, member, form = _PLACES[name]
            objects[where][member] = _to(form, value)
        else:
            rest[name] = value
    if (service := row.get("ServiceName")) and "service.name" not in row["ResourceAttributes"]:
        # Not every dialect has a resource, and who posts this again means the same service.
        rest["ResourceAttributes"] = row["ResourceAttributes"]
        objects["resource"]["attributes"].append({"key": "service.name", "value": {"stringValue": service}})
    scope_logs = objects["scopeLogs"] | {"scope": objects["scope"], "logRecords": [objects["record"]]}
    resource_logs = objects["resourceLogs"] | {"resource": objects["resource"], "scopeLogs": [scope_logs]}
    return {"resourceLogs": [resource_logs]}, rest


def _from_otlp(payload: dict[str, Any]) -> Row:
    resource_logs = payload["resourceLogs"][0]
    scope_logs = resource_logs["scopeLogs"][0]
    objects = {
        "record": scope_logs["logRecords"][0],
        "scope": scope_logs["scope"],
        "scopeLogs": scope_logs,
        "resource": resource_logs["resource"],
        "resourceLogs": resource_logs,
    }
    return {
        name: _from(form, objects[where][member])
        for name, (where, member, form) in _PLACES.items()
        if member in objects[where]
    }


def _to(form: str, value: Any) -> Any:
    if form == "time":
        return str(_nanoseconds(value))
    if form == "value":
        return {"stringValue": value}
    if form == "attributes":
        return [{"key": key, "value": {"stringValue": text}} for key, text in value.items()]
    return value


def _from(form: str, value: Any) -> Any:
    if form == "time":
        seconds, nanoseconds = divmod(int(value), 10**9)
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"
    if form == "value":
        return value["stringValue"]
    if form == "attributes":
        return {each["key"]: each["value"]["stringValue"] for each in value}
    return value


def _nanoseconds(text: str) -> int:
    """RFC 3339 as the server writes it, since 1970."""
    found = re.fullmatch(r"([^.]+)(?:\.(\d{1,9}))?Z", text)
    if found is None:
        raise ValueError("not a time")
    seconds = int(datetime.fromisoformat(found[1] + "+00:00").timestamp())
    return seconds * 10**9 + int((found[2] or "0").ljust(9, "0"))
