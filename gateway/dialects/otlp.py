"""Plain OTLP over HTTP: ``POST /v1/logs`` in protobuf or JSON (OpenTelemetry protocol 1.11).

A full success is 200 with an empty ``ExportLogsServiceResponse``. Records that cannot be stored do
not fail the others: they are counted in ``partial_success``. Every error is a ``google.rpc.Status``
in the encoding the request is labelled with; where the label is neither, in JSON, since then it is a
person who reads it. Only 429 and 503 invite another try; overload is 503, since old exporters drop
on 429.

    ExportLogsServiceResponse { partial_success = 1: ExportLogsPartialSuccess }
    ExportLogsPartialSuccess  { rejected_log_records = 1: int64, error_message = 2: string }
    google.rpc.Status         { code = 1: int32, message = 2: string }
"""

from __future__ import annotations

import re

import msgspec

from gateway import schema
from gateway._native import OtlpPlan, mentions, otlp_json, otlp_protobuf
from gateway.config import DialectLimits
from gateway.dialects.dialect import Context, Dialect, Outcome, Reply, Request, Rows, refusal_headers
from gateway.errors import SubscriptionRequired, UnsupportedMedia, WeirError

JSON = "application/json"
PROTOBUF = "application/x-protobuf"

_LOGS, _EVENTS = schema.OTEL_LOGS, schema.GENAI_EVENTS
PLAN = OtlpPlan([(_LOGS.layout, _LOGS.feeds)])
PLAN_WITH_EVENTS = OtlpPlan([(_LOGS.layout, _LOGS.feeds), (_EVENTS.layout, _EVENTS.feeds)], genai=[1])

_JSON_OBJECT = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*["}]')

_RPC_CODES = {
    400: 3,  # INVALID_ARGUMENT
    401: 16,  # UNAUTHENTICATED
    402: 8,  # RESOURCE_EXHAUSTED
    403: 7,  # PERMISSION_DENIED
    404: 5,  # NOT_FOUND
    405: 12,  # UNIMPLEMENTED
    408: 4,  # DEADLINE_EXCEEDED
    413: 8,  # RESOURCE_EXHAUSTED, as gRPC itself says of a message over the limit
    415: 3,
    422: 3,
    429: 8,
    503: 14,  # UNAVAILABLE
}
_RPC_UNKNOWN = 2


def dialect(limits: DialectLimits) -> Dialect:
    """``POST /v1/logs`` for every key that no other dialect claims."""
    return Dialect(
        name="otlp",
        routes=(("POST", "/v1/logs"),),
        limits=limits,
        decode=decode,
        accepted=accepted,
        refused=refused,
    )


def decode(request: Request, body: bytes, context: Context, rows: Rows) -> Outcome:
    """Raises UnsupportedMedia for another content type, Malformed, TooLarge."""
    encoding = encoding_of(request.media_type, body)
    return decode_as(encoding, body, context, rows, {"dialect": "otlp"}, request.arrival_ns)


def encoding_of(media_type: str, body: bytes) -> str:
    """``JSON`` or ``PROTOBUF``: what the label says, unless the first byte contradicts it.

    A known client labels protobuf as JSON. Protobuf begins with 0x0a (field 1, length-delimited), which
    JSON may too, as a newline; so a JSON label stands when an object follows.
    Raises UnsupportedMedia when the label is neither.
    """
    if media_type == PROTOBUF:
        return JSON if body[:1] == b"{" else PROTOBUF
    if media_type == JSON:
        return PROTOBUF if body[:1] == b"\n" and not _JSON_OBJECT.match(body) else JSON
    wrong = "this Content-Type is not taken here" if media_type else "the Content-Type is missing"
    raise UnsupportedMedia(f"{wrong}: send OTLP logs as {PROTOBUF} or {JSON}")


def decode_as(
    encoding: str, body: bytes, context: Context, rows: Rows, constants: dict[str, str], arrival_ns: int
) -> Outcome:
    """An ExportLogsServiceRequest into rows of ``otel_logs``, its GenAI events into rows of ``genai_events`` too.

    For every dialect that takes OTLP.
    """
    read = otlp_json if encoding == JSON else otlp_protobuf
    plan, outputs = PLAN, [rows.columns(_LOGS.name)]
    if _may_hold_events(encoding, body):
        plan, outputs = PLAN_WITH_EVENTS, [*outputs, rows.columns(_EVENTS.name)]
    decoded = read(
        body,
        plan,
        outputs,
        constants={"project_id": context.project_id, "uid_seed": context.project_id, **constants},
        **context.bounds(arrival_ns),
        content_bytes_max=context.content_bytes_max,
        known=context.known,
    )
    return Outcome.of(decoded)


def _may_hold_events(encoding: str, body: bytes) -> bool:
    """Whether a GenAI event's name can be in the body. Most bodies hold none and need no second table."""
    return mentions(body, b"gen_ai.", escaped=encoding == JSON)


def accepted(request: Request, outcome: Outcome) -> Reply:
    """200 with ``partial_success`` unset, or with the number of rejected records and why."""
    if request.media_type == PROTOBUF:
        return Reply(200, _partial_success(outcome) if outcome.rejections else b"", PROTOBUF)
    if not outcome.rejections:
        return Reply(200, b"{}", JSON)
    partial = {"rejectedLogRecords": str(outcome.rejections), "errorMessage": outcome.message}
    return Reply(200, msgspec.json.encode({"partialSuccess": partial}), JSON)


def refused(request: Request, error: WeirError) -> Reply:
    """A ``google.rpc.Status``. A spent quota is 429 here: the protocol has no word for 402."""
    status = 429 if isinstance(error, SubscriptionRequired) else error.status
    code = _RPC_CODES.get(status, _RPC_UNKNOWN)
    message = str(error)
    headers = refusal_headers(error)
    if request.media_type == PROTOBUF:
        return Reply(status, _number(1, code) + _text(2, message), PROTOBUF, headers)
    return Reply(status, msgspec.json.encode({"code": code, "message": message}), JSON, headers)


def _partial_success(outcome: Outcome) -> bytes:
    partial = _number(1, outcome.rejections) + _text(2, outcome.message)
    return b"\x0a" + _varint(len(partial)) + partial


def _number(field: int, value: int) -> bytes:
    return bytes((field << 3,)) + _varint(value)


def _text(field: int, value: str) -> bytes:
    data = value.encode("utf-8", "replace")
    return bytes((field << 3 | 2,)) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
