"""OTLP traces and metrics, ``POST /v1/traces`` and ``POST /v1/metrics``: taken, counted and thrown away.

Whoever sends logs by OpenTelemetry mostly sends these too, and complains of every batch that is
refused. Only logs are stored here; so the answer is a 200 that says so in ``partial_success``, which
the protocol allows as a warning: a message, and no count. A body is read under the limits of one
with logs and must be labelled like one, but nobody looks into it. Each request counts as one record
rejected for the reason ``traces`` or ``metrics``.

    Export{Trace,Metrics}ServiceResponse { partial_success = 1 { error_message = 2: string } }
"""

from __future__ import annotations

import msgspec

from gateway.config import DialectLimits
from gateway.dialects import otlp
from gateway.dialects.dialect import Context, Dialect, Outcome, Reply, Request, Rows

ROUTES = (("POST", "/v1/traces"), ("POST", "/v1/metrics"))


def dialect(limits: DialectLimits) -> Dialect:
    """Both paths, for every key that no other dialect claims."""
    return Dialect(
        name="otlp",
        routes=ROUTES,
        limits=limits,
        decode=decode,
        accepted=accepted,
        refused=otlp.refused,
    )


def decode(request: Request, body: bytes, context: Context, rows: Rows) -> Outcome:
    """Raises UnsupportedMedia for a content type that logs may not have either."""
    otlp.encoding_of(request.media_type, body)
    signal = request.path.rpartition("/")[2]
    return Outcome(0, {signal: 1}, f"{signal} are not stored: this gateway takes logs only")


def partial_success(outcome: Outcome) -> dict[str, str]:
    """The warning, as it is in JSON."""
    return {"errorMessage": outcome.message}


def accepted(request: Request, outcome: Outcome) -> Reply:
    """200 with a warning."""
    if request.media_type != otlp.PROTOBUF:
        return Reply(200, msgspec.json.encode({"partialSuccess": partial_success(outcome)}), otlp.JSON)
    message = outcome.message.encode()
    # Both lengths are below 128, so that one byte holds each.
    warning = bytes((2 << 3 | 2, len(message))) + message
    return Reply(200, bytes((1 << 3 | 2, len(warning))) + warning, otlp.PROTOBUF)
