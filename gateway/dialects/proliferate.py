"""Proliferate's logs and errors (docs.proliferate.com, API reference; proliferate-ai 0.1.0 to 0.2.2 on PyPI).

    POST /api/v1/logs/batch                {"api_key", "environment", "release", "logs": [entry, ...]}
    POST /api/v1/errors and /v1/errors     an error event, or an array of them

The key is ``api_key`` in the body (the last one, should there be several), else ``X-API-Key``, else Bearer; of an
array of error events the first one's.
A body is JSON whatever its content type says: a page's ``sendBeacon`` cannot set one.

Of a log entry:

    timestamp                   epoch seconds with a fraction, or RFC 3339; missing is the time of arrival
    level                       trace debug info warn error fatal, in any case and with the usual aliases
    message                     the text; the one member that must be there
    template                    attribute log.template
    attributes                  flattened to attributes, without a prefix
    trace_id, span_id           as they came: they are not W3C ids
    user, account               attributes user.id, user.email, account.id, ...
    logger_name                 the scope's name
    file_path, line_number, function_name    attributes code.file.path, code.line.number, code.function.name
    environment, release        of the whole request: resource attributes deployment.environment.name
                                (production when missing) and service.version

The documents leave open what follows; we decided:
* Logs are accepted in part, 202 ``{"accepted","dropped"}``: an entry that is not acceptable is dropped and
  counted, and so is every entry behind the first 100. The header ``X-Dropped-Reason`` says what is wrong with
  the first one that was dropped, since the documented body has no place for it.
* An entry without ``level`` has no severity; a level that is none of the words drops the entry.
* Members of an entry that are not in the list are kept as attributes; members beside ``logs`` are not. Where an
  attribute has the name of one we add (``user.id``), the sender's attribute wins.
* ``NaN`` and infinities are taken as numbers, as by FastAPI's own parser.
* A body that is not JSON, or without an array ``logs`` of at least one entry, is 422 with a ``detail`` list as
  FastAPI writes it: ``loc``, ``msg``, ``type``. An unknown key is 401 ``{"detail":"Invalid API key"}``, any storage
  trouble 503 ``{"detail":"Log storage temporarily unavailable"}``; other errors are ``{"detail": "<text>"}``.

Error events go to the table ``error_events``, in both shapes that clients send:

    event_id                    as sent, else one we mint; the reply names it
    exception                   {"type", "value" or "message", "stacktrace" or "stack", "mechanism": {"handled"}}
    message                     of an event without an exception; its Type is message
    timestamp                   RFC 3339 or epoch seconds; trace_id, platform, environment, release as sent
    anything else               kept as JSON in Context: user, account, breadcrumbs, extra, session_id, ...

* One event is 202 ``{"success":true,"event_id"}``, or 422. An array is 202 ``{"success":true,"accepted","dropped",
  "event_ids"}``, the ids of those accepted, in order; more than 100 are dropped and counted.
* The start-up ping of 0.1.0 is a message event like any other, and is stored: what was accepted can be found.
* ``api_key`` is never stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import msgspec
from msgspec import Raw

from gateway import schema
from gateway._native import EntryPlan, entries, json_member
from gateway.config import CountedLimits
from gateway.dialects.dialect import (
    Context,
    Dialect,
    Outcome,
    Reply,
    Request,
    Rows,
    bearer_or_api_key,
    refusal_headers,
)
from gateway.errors import Invalid, Malformed, Unauthorized, WeirError

JSON = "application/json"

_LOGS = schema.OTEL_LOGS
_LOG_RULES = (
    ("timestamp", "time", "Timestamp", ""),
    ("level", "level", "SeverityText", ""),
    ("message", "text required", "Body", ""),
    ("template", "attribute", "LogAttributes", "log.template"),
    ("trace_id", "text", "TraceId", ""),
    ("span_id", "text", "SpanId", ""),
    ("user", "attributes", "LogAttributes", "user."),
    ("account", "attributes", "LogAttributes", "account."),
    ("logger_name", "text", "ScopeName", ""),
    ("file_path", "attribute", "LogAttributes", "code.file.path"),
    ("line_number", "attribute", "LogAttributes", "code.line.number"),
    ("function_name", "attribute", "LogAttributes", "code.function.name"),
    # Behind those above: of two attributes with one name the last is kept.
    ("attributes", "attributes", "LogAttributes", ""),
    ("../environment", "attribute default=production", "ResourceAttributes", "deployment.environment.name"),
    ("../release", "attribute", "ResourceAttributes", "service.version"),
)
_LOG_SOURCES = ("project_id", "dialect", "observed_time", "severity_number", "attributes", "event_name", "frame", "row")
_LOG_FEEDS = {column: source for column, source in _LOGS.feeds.items() if source in _LOG_SOURCES}
LOG_PLAN = EntryPlan([(_LOGS.layout, _LOG_RULES, _LOG_FEEDS)], unknown="LogAttributes", member="logs")

_ERRORS = schema.ERROR_EVENTS
_ERROR_RULES = (
    ("timestamp", "time", "Timestamp", ""),
    ("event_id", "text", "EventId", ""),
    ("trace_id", "text", "TraceId", ""),
    ("type", "text", "Type", ""),
    ("value", "text", "Value", ""),
    ("stack", "text", "Stack", ""),
    ("handled", "boolean", "Handled", ""),
    ("platform", "text", "Platform", ""),
    ("environment", "text", "Environment", ""),
    ("release", "text", "Release", ""),
    ("context", "json", "Context", ""),
)
_ERROR_FEEDS = {name: source for name, source in _ERRORS.feeds.items() if source in ("project_id", "frame", "row")}
ERROR_PLAN = EntryPlan([(_ERRORS.layout, _ERROR_RULES, _ERROR_FEEDS)])

_AS_SENT = ("timestamp", "event_id", "trace_id", "platform", "environment", "release")
"""Members of an error event that go to columns as they are."""

_NOT_READABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def dialects(limits: CountedLimits) -> tuple[Dialect, Dialect]:
    """Logs, and error events."""
    logs = Dialect(
        name="proliferate",
        routes=(("POST", "/api/v1/logs/batch"),),
        limits=limits,
        decode=lambda request, body, context, rows: decode_logs(request, body, context, rows, limits.entries_max),
        accepted=logs_accepted,
        refused=refused,
        header_key=header_key,
        body_key=body_key,
    )
    errors = Dialect(
        name="proliferate",
        routes=(("POST", "/api/v1/errors"), ("POST", "/v1/errors")),
        limits=limits,
        decode=lambda request, body, context, rows: decode_errors(request, body, context, rows, limits.entries_max),
        accepted=errors_accepted,
        refused=refused,
        header_key=header_key,
        body_key=error_key,
    )
    return logs, errors


def header_key(headers: Mapping[str, str]) -> str | None:
    """``X-API-Key``, then Bearer."""
    key = headers.get("x-api-key", "").strip()
    return key if key and key.isascii() else bearer_or_api_key(headers)


def body_key(body: bytes) -> str | None:
    """The member ``api_key``, when it is a string that can be a key."""
    key = json_member(body, b"api_key")
    return key.decode() if key and key.isascii() else None


def error_key(body: bytes) -> str | None:
    """The same, of an array of events of its first. Nobody is known yet, so the others are not looked at."""
    start = body.lstrip()
    return body_key(start[1:] if start[:1] == b"[" else start)


def decode_logs(request: Request, body: bytes, context: Context, rows: Rows, entries_max: int) -> Outcome:
    """Raises Malformed, Invalid (of the object around the entries), TooLarge."""
    decoded = entries(
        body,
        LOG_PLAN,
        [rows.columns(_LOGS.name)],
        constants={"project_id": context.project_id, "dialect": "proliferate"},
        **context.bounds(request.arrival_ns),
        entries_max=entries_max,
        nan_literals=True,
        partial=True,
    )
    outcome = Outcome.of(decoded)
    if not outcome.rows and not outcome.rejections:
        raise Invalid("logs must hold at least one entry", field="logs")
    return outcome


def logs_accepted(request: Request, outcome: Outcome) -> Reply:
    """202 with the counts."""
    counts = {"accepted": outcome.rows, "dropped": outcome.rejections}
    return Reply(202, msgspec.json.encode(counts), JSON, _reason(outcome))


@dataclass(frozen=True, slots=True)
class Events:
    """The ids of the error events that were stored, in order; ``batch`` when an array was sent."""

    ids: tuple[str, ...]
    batch: bool


def decode_errors(
    request: Request,
    body: bytes,
    context: Context,
    rows: Rows,
    entries_max: int,
) -> Outcome:
    """Raises Malformed, TooLarge; Invalid for one event, or for an array without an event."""
    sent, batch = events_of(body)
    flat: list[dict[str, Raw] | None] = []
    problems: dict[int, str] = {}
    for index, event in enumerate(sent[:entries_max]):
        try:
            flat.append(flattened(event, lambda: request.mint(16).hex()))
        except Invalid as error:
            if not batch:
                raise
            problems[index] = f"[{index}]: {error}"
            flat.append(None)
    decoded = entries(
        msgspec.json.encode(flat if batch else flat[0]),
        ERROR_PLAN,
        [rows.columns(_ERRORS.name)],
        constants={"project_id": context.project_id},
        **context.bounds(request.arrival_ns),
        partial=batch,
        problems_max=len(flat),
    )
    for found in decoded.problems:
        problems.setdefault(found.index, f"{found.field} {found.message}")
    rejected = {"count": len(sent) - len(flat), "invalid": len(problems)}
    return Outcome(
        decoded.rows,
        {reason: count for reason, count in rejected.items() if count},
        problems[min(problems)] if problems else f"only the first {entries_max} events of a request are kept",
        timestamps_clamped=decoded.timestamps_clamped,
        state=Events(tuple(_text(row["event_id"]) for i, row in enumerate(flat) if row and i not in problems), batch),
    )


def events_of(body: bytes) -> tuple[list[Raw], bool]:
    """The events as sent, and whether they came as an array. Raises Malformed, Invalid."""
    batch = body.lstrip()[:1] == b"["
    try:
        whole = msgspec.json.decode(body.decode(), type=Raw)
    except _NOT_READABLE as error:
        whole = _repaired(body, str(error))
    if not batch:
        return [whole], False
    events = msgspec.json.decode(whole, type=list[Raw])
    if not events:
        raise Invalid("the array must hold at least one event")
    return events, True


def flattened(event: Raw, mint_id: Callable[[], str]) -> dict[str, Raw]:
    """An event of either generation as the members that ``ERROR_PLAN`` knows. Raises Invalid."""
    members = _object(event, "the event")
    members.pop("api_key", None)
    flat = {name: members.pop(name) for name in _AS_SENT if _there(members.get(name))}
    if not _text(flat.get("event_id", Raw(b'""'))):
        flat["event_id"] = _json(mint_id())
    if _there(members.get("exception")):
        exception = _object(members.pop("exception"), "exception")
        _take(flat, "type", exception, "type")
        _take(flat, "value", exception, "value", "message")
        _take(flat, "stack", exception, "stacktrace", "stack")
        if _there(exception.get("mechanism")):
            mechanism = _object(exception.pop("mechanism"), "exception.mechanism")
            if bytes(mechanism.get("handled", b"")) in (b"true", b"false"):
                flat["handled"] = mechanism.pop("handled")
            if mechanism:
                exception["mechanism"] = _json(mechanism)
        if exception:
            members["exception"] = _json(exception)
    elif _there(members.get("message")):
        flat["type"] = _json("message")
        flat["value"] = members.pop("message")
        members.pop("type", None)
    else:
        raise Invalid("exception or message is required", field="exception")
    flat["context"] = _json({name: value for name, value in members.items() if _there(value)})
    return flat


def errors_accepted(request: Request, outcome: Outcome) -> Reply:
    """202 with the id, or of an array the counts and the ids."""
    events = cast(Events, outcome.state)
    if not events.batch:
        return Reply(202, msgspec.json.encode({"success": True, "event_id": events.ids[0]}), JSON)
    counts = {"accepted": outcome.rows, "dropped": outcome.rejections}
    reply = {"success": True, **counts, "event_ids": events.ids}
    return Reply(202, msgspec.json.encode(reply), JSON, _reason(outcome))


def refused(request: Request, error: WeirError) -> Reply:
    """``{"detail": ...}``: a text, or of a body that does not fit a list as FastAPI writes it, with 422."""
    status, detail = error.status, str(error)
    if isinstance(error, Malformed):
        at = () if error.offset is None else (error.offset,)
        return _unprocessable({"type": "json_invalid", "loc": ("body", *at), "msg": detail})
    if isinstance(error, Invalid):
        member = (error.field,) if error.field else ()
        return _unprocessable({"type": "value_error", "loc": ("body", *member), "msg": detail})
    if isinstance(error, Unauthorized):
        detail = "Invalid API key"
    elif status == 503:
        detail = "Log storage temporarily unavailable"
    return Reply(status, msgspec.json.encode({"detail": detail}), JSON, refusal_headers(error))


def _unprocessable(problem: Mapping[str, object]) -> Reply:
    return Reply(422, msgspec.json.encode({"detail": [problem]}), JSON)


def _reason(outcome: Outcome) -> tuple[tuple[str, str], ...]:
    return (("X-Dropped-Reason", outcome.message),) if outcome.rejections else ()


def _repaired(body: bytes, why: str) -> Raw:
    """JSON as clients really write it: what is not UTF-8 and lone surrogates become U+FFFD, NaN its name."""
    try:
        text = json.dumps(json.loads(body.decode("utf-8", "replace"), parse_constant=str), ensure_ascii=False)
    except (ValueError, RecursionError):
        raise Malformed(f"The body is not JSON: {why}") from None
    return Raw(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode())


def _object(value: Raw, name: str) -> dict[str, Raw]:
    try:
        return msgspec.json.decode(value, type=dict[str, Raw])
    except _NOT_READABLE:
        raise Invalid(f"{name} must be an object", field=name if name != "the event" else None) from None


def _there(value: Raw | None) -> bool:
    return value is not None and bytes(value) != b"null"


def _take(flat: dict[str, Raw], column: str, members: dict[str, Raw], *names: str) -> None:
    """The first of the names that is there."""
    name = next((name for name in names if _there(members.get(name))), None)
    if name is not None:
        flat[column] = members.pop(name)


def _text(value: Raw) -> str:
    """A string's text, of anything else its JSON: what the column will hold."""
    raw = bytes(value)
    text = json_member(b'{"":%b}' % raw, b"") if raw[:1] == b'"' else raw
    return (text or b"").decode("utf-8", "replace")


def _json(value: object) -> Raw:
    return Raw(msgspec.json.encode(value))
