"""Newline-delimited JSON: ``POST /v1/ndjson``, one object a line (jsonlines.org), for everything that writes logs.

Which members of a line mean what is configured (section ``ndjson``; the names below are the defaults), for all
keys at once; an empty name means none.

    timestamp    RFC 3339, or epoch seconds with a fraction; what is missing or none is the time of arrival
    level        trace debug info warn error fatal, in any case and with the usual aliases; may be missing, and what
                 is none of them is kept as it is
    message      the text; may be missing
    service      the service's name
    trace_id, span_id    as they come
    all others   attributes; nested objects join their names with a dot, arrays are JSON text

This wire is our own. What it does:
* The content type does not matter. Blank lines are skipped; the last line needs no line feed.
* Lines are accepted one by one: 200 ``{"accepted","rejected","errors"?: [{"line","error"}]}``, lines counted from 1 and
  without the blank ones, with the first 20 errors. When no line at all is acceptable the answer is 400
  ``{"error","errors"}``: a sender that is set up wrongly must notice.
* ``NaN`` and infinities are taken as numbers, since loggers write them.
* Errors are ``{"error": "<text>"}`` with the status of the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import msgspec

from gateway import schema
from gateway._native import EntryPlan, entries
from gateway.config import DialectLimits, Ndjson
from gateway.dialects.dialect import Context, Dialect, Outcome, Reply, Request, Rows, refusal_headers
from gateway.errors import Invalid, Problem, WeirError

JSON = "application/json"
PROBLEMS_MAX = 20

_LOGS = schema.OTEL_LOGS
_SOURCES = (
    *("time", "observed_time", "project_id", "dialect", "severity_number", "event_name"),
    *("attributes", "frame", "row"),
)
_FEEDS = {column: source for column, source in _LOGS.feeds.items() if source in _SOURCES}


def dialect(limits: DialectLimits, names: Ndjson) -> Dialect:
    """``POST /v1/ndjson``."""
    plan = plan_of(names)
    return Dialect(
        name="ndjson",
        routes=(("POST", "/v1/ndjson"),),
        limits=limits,
        decode=lambda request, body, context, rows: decode(request, body, context, rows, plan),
        accepted=accepted,
        refused=refused,
    )


def plan_of(names: Ndjson) -> EntryPlan:
    """Where the members go that have these names."""
    rules = (
        (names.time, "time lenient", "Timestamp", ""),
        (names.level, "level lenient", "SeverityText", ""),
        (names.message, "text", "Body", ""),
        (names.service, "text", "ServiceName", ""),
        (names.trace_id, "text", "TraceId", ""),
        (names.span_id, "text", "SpanId", ""),
    )
    return EntryPlan([(_LOGS.layout, [rule for rule in rules if rule[0]], _FEEDS)], unknown="LogAttributes")


def decode(request: Request, body: bytes, context: Context, rows: Rows, plan: EntryPlan) -> Outcome:
    """Raises TooLarge, and Invalid when no line is acceptable. ``state``: the first problems."""
    decoded = entries(
        body,
        plan,
        [rows.columns(_LOGS.name)],
        constants={"project_id": context.project_id, "dialect": "ndjson"},
        **context.bounds(request.arrival_ns),
        nan_literals=True,
        lines=True,
        partial=True,
        problems_max=PROBLEMS_MAX,
    )
    if not decoded.rows:
        message = "no line is acceptable" if decoded.problems else "the body holds no line"
        raise Invalid(message, problems=decoded.problems)
    return Outcome.of(decoded, decoded.problems)


def accepted(request: Request, outcome: Outcome) -> Reply:
    """200 with the counts, and the first problems where there are any."""
    counts = {"accepted": outcome.rows, "rejected": outcome.rejections}
    problems = cast(tuple[Problem, ...], outcome.state)
    return Reply(200, msgspec.json.encode({**counts, "errors": _errors(problems)} if problems else counts), JSON)


def refused(request: Request, error: WeirError) -> Reply:
    """``{"error": ...}``, with the first problems when no line was acceptable."""
    reply: dict[str, object] = {"error": str(error)}
    if isinstance(error, Invalid) and error.problems:
        reply["errors"] = _errors(error.problems)
    return Reply(error.status, msgspec.json.encode(reply), JSON, refusal_headers(error))


def _errors(problems: Sequence[Problem]) -> list[dict[str, object]]:
    return [
        {"line": problem.index + 1, "error": f"{problem.field.partition('].')[2]} {problem.message}".strip()}
        for problem in problems
    ]
