"""Brokle: ``POST /v1/logs`` for keys that begin with ``bk_``, and the other paths its clients call (Logs API).

The bodies are OTLP, protobuf or JSON, and the rows are those of plain OTLP. The answers differ. To a
request labelled as JSON, or as neither:

    200  {"data": {"batch_id", "event_count", "status": "accepted"}, "meta": {...}, "success": true}
    4xx  {"error": {"code", "message"}, "meta": {"request_id", "timestamp", "version": "v1"}, "success": false}

``batch_id`` is a ULID. ``event_count`` is records stored plus GenAI events: such a record counts twice.
A request labelled as protobuf is answered as OTLP wants, in protobuf: every client of Brokle's ignores
the body of a 2xx, and a plain OpenTelemetry exporter with a Brokle key parses it.

    POST /v1/traces, /v1/metrics  taken and thrown away (``signals.py``)
    POST /v1/auth/validate-key    200 when the key, of any dialect, is good, else 401

The documents leave open what follows, or we go beyond the server; we decided:
* OTLP's own rules hold where the server is stricter: hex ids in JSON, unknown members ignored, an
  absent time is the observed one or arrival, any of gzip, deflate and zstd. A body whose first byte
  contradicts its label is believed.
* A request without a single log record is refused (400), in protobuf too, as the server refuses one
  without ``resourceLogs``.
* Records that cannot be stored do not fail the others. They are told in ``partialSuccess``, beside ``data``.
* Undecodable OTLP is a VALIDATION_ERROR; a body that cannot be read at all is a BAD_REQUEST_ERROR.
* A spent quota is 429 QUOTA_EXCEEDED_ERROR, storage trouble 503 SERVICE_UNAVAILABLE_ERROR, never 500:
  both codes are the server's. 429 and 503 say ``Retry-After``.
* ``X-Brokle-Environment`` is ignored, as by the server: it would change what a record says of itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.config import DialectLimits
from gateway.dialects import otlp, signals
from gateway.dialects.dialect import Context, Dialect, Outcome, Reply, Request, Rows, refusal_headers
from gateway.dialects.ulid import ulid
from gateway.errors import Invalid, Malformed, SubscriptionRequired, WeirError

KEY_PREFIX = "bk_"

_NAME = "brokle"
_CODES = {
    400: "VALIDATION_ERROR",
    401: "UNAUTHORIZED_ERROR",
    403: "FORBIDDEN_ERROR",
    404: "NOT_FOUND_ERROR",
    405: "METHOD_NOT_ALLOWED_ERROR",
    408: "REQUEST_TIMEOUT_ERROR",
    413: "payload_too_large",
    415: "unsupported_media_type",
    422: "UNPROCESSABLE_ENTITY_ERROR",
    429: "RATE_LIMIT_ERROR",
    503: "SERVICE_UNAVAILABLE_ERROR",
}
_CODE_OTHERWISE = "INTERNAL_ERROR"


def dialects(limits: DialectLimits) -> tuple[Dialect, ...]:
    """Logs, the other signals, and the check of a key. Goes before plain OTLP, whose paths it shares."""
    return (
        Dialect(
            name=_NAME,
            routes=(("POST", "/v1/logs"),),
            limits=limits,
            decode=decode,
            accepted=accepted,
            refused=refused,
            claims=claims,
        ),
        Dialect(
            name=_NAME,
            routes=signals.ROUTES,
            limits=limits,
            decode=signals.decode,
            accepted=signal_accepted,
            refused=refused,
            claims=claims,
        ),
        Dialect(
            name=_NAME,
            routes=(("POST", "/v1/auth/validate-key"),),
            limits=limits,
            decode=check_key,
            accepted=key_is_good,
            refused=refused,
        ),
    )


def claims(key: str | None) -> bool:
    """Whether it is one of Brokle's keys."""
    return key is not None and key.startswith(KEY_PREFIX)


# Logs.


def decode(request: Request, body: bytes, context: Context, rows: Rows) -> Outcome:
    """Raises UnsupportedMedia, Invalid (not OTLP, or no record at all), TooLarge."""
    encoding = otlp.encoding_of(request.media_type, body)
    try:
        outcome = otlp.decode_as(encoding, body, context, rows, {"dialect": _NAME}, request.arrival_ns)
    except Malformed as error:
        # Not to be confused with a body that could not be decompressed, which has another code.
        raise Invalid(str(error), log=error.log) from error
    if not outcome.rows and not outcome.rejections:
        raise Invalid("there is no log record in this request: send at least one in resourceLogs")
    return outcome


def accepted(request: Request, outcome: Outcome) -> Reply:
    """200: the envelope, or an ExportLogsServiceResponse in protobuf."""
    if request.media_type == otlp.PROTOBUF:
        return otlp.accepted(request, outcome)
    content: dict[str, Any] = {"data": _batch(request, event_count=outcome.rows + outcome.events)}
    if outcome.rejections:
        content["partialSuccess"] = {
            "rejectedLogRecords": str(outcome.rejections),
            "errorMessage": outcome.message,
        }
    return _envelope(request, 200, content)


def refused(request: Request, error: WeirError) -> Reply:
    """The envelope with an error code, or a google.rpc.Status in protobuf."""
    if request.media_type == otlp.PROTOBUF:
        return otlp.refused(request, error)
    status, code = error.status, _CODES.get(error.status, _CODE_OTHERWISE)
    if isinstance(error, SubscriptionRequired):
        status, code = 429, "QUOTA_EXCEEDED_ERROR"
    elif isinstance(error, Malformed):
        code = "BAD_REQUEST_ERROR"
    told = {"code": code, "message": str(error)}
    if status == 401:
        told["type"] = code
    return _envelope(request, status, {"error": told}, refusal_headers(error))


# Traces and metrics.


def signal_accepted(request: Request, outcome: Outcome) -> Reply:
    """200: the envelope of a batch of which nothing was stored, or a warning in protobuf."""
    if request.media_type == otlp.PROTOBUF:
        return signals.accepted(request, outcome)
    if "traces" in outcome.rejected:
        data = _batch(request, stream_id="", processed_spans=0, duplicate_spans=0)
    else:
        data = _batch(request, event_count=0)
    return _envelope(request, 200, {"data": data, "partialSuccess": signals.partial_success(outcome)})


# Keys.


def check_key(request: Request, body: bytes, context: Context, rows: Rows) -> Outcome:
    """Who gets here has a good key; the body does not matter. ``state`` is the key's project."""
    return Outcome(0, state=context.project_id)


def key_is_good(request: Request, outcome: Outcome) -> Reply:
    """200 with the project; clients look at ``success``."""
    return _envelope(request, 200, {"data": {"project_id": outcome.state}})


# The envelope.


def _batch(request: Request, **counts: object) -> dict[str, object]:
    batch_id = ulid(request.minted_ns or request.arrival_ns, request.mint)
    return {"batch_id": batch_id, **counts, "status": "accepted"}


def _envelope(
    request: Request, status: int, content: Mapping[str, object], headers: tuple[tuple[str, str], ...] = ()
) -> Reply:
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(request.arrival_ns // 1_000_000_000))
    meta = {"request_id": request.request_id, "timestamp": moment, "version": "v1"}
    whole = {**content, "meta": meta, "success": status < 400}
    return Reply(status, msgspec.json.encode(whole), otlp.JSON, headers)
