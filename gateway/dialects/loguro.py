"""Loguro's ingest: ``POST /`` and ``POST /batch``, in Loguro's own JSON or OTLP (logu.ro/docs, Getting Started).

Either path takes an entry or an array of entries, and answers 202 ``{"success":true,"status":"queued"}``.

    level      debug info warning error critical heartbeat, in any case and with the usual aliases
    message    the text; the one member that must be there
    timestamp  RFC 3339; missing or "" is the time of arrival
    context    any object; searchable by its flattened keys: context.order.id is the attribute order.id

The documents leave open what follows; we decided:
* An entry without ``message`` is refused (400 naming ``[i].message``): a misspelt member would
  otherwise become an empty log with a 202. An entry without ``level`` has no severity. A number for a
  timestamp is epoch seconds.
* A log of level heartbeat says, by its arrival, that its ``context.service`` lives. docs/reading.md has what
  comes of it when none does, docs/alerts.md who is told.
* A request is accepted or refused whole. Members not in the list above are kept as attributes.
* ``//`` and what follows it on its line is a comment, outside strings: the documents' first example has some.
* ``X-Request-Id`` is the trace id of records that bring none of their own.
* OTLP by content: protobuf when the content type says so, OTLP/JSON when ``resourceLogs`` is a member
  of the top-level object. Any other content type is read as JSON, as ``curl -d`` and beacons label it.
* Errors are ``{"error": "<text>"}``. A spent quota is 402. Storage trouble is 503, never 500.
"""

from __future__ import annotations

import re
from functools import partial

import msgspec

from gateway import schema
from gateway._native import EntryPlan, entries, json_member
from gateway.config import DialectLimits
from gateway.dialects import otlp
from gateway.dialects.dialect import Context, Dialect, Outcome, Reply, Request, Rows, refusal_headers
from gateway.errors import Invalid, Malformed, WeirError

_LOGS = schema.OTEL_LOGS
_RULES = (
    ("level", "level", "SeverityText", ""),
    ("message", "text required", "Body", ""),
    ("timestamp", "time", "Timestamp", ""),
    ("context", "attributes", "LogAttributes", ""),
)
# What does not come from a member: the request's, and where a level's number, a heartbeat's name and the
# original of a clamped timestamp go.
_BESIDE_THE_RULES = frozenset(
    (
        *("project_id", "dialect", "trace_id", "observed_time"),
        *("severity_number", "event_name", "attributes", "frame", "row"),
    )
)
_FEEDS = {column: source for column, source in _LOGS.feeds.items() if source in _BESIDE_THE_RULES}
PLAN = EntryPlan([(_LOGS.layout, _RULES, _FEEDS)], unknown="LogAttributes")

# A string that does not end goes to the end of the body, so that the rest is not searched from each of its quotes.
_STRING_OR_COMMENT = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|(?P<comment>//[^\n]*+)', re.DOTALL)

_QUEUED = Reply(202, b'{"success":true,"status":"queued"}', otlp.JSON)
_OTLP_MEMBERS = (b"resourceLogs", b"resource_logs")


def dialect(limits: DialectLimits) -> Dialect:
    """``POST /`` and ``POST /batch``."""
    return Dialect(
        name="loguro",
        routes=(("POST", "/"), ("POST", "/batch")),
        limits=limits,
        decode=decode,
        accepted=accepted,
        refused=refused,
    )


def decode(request: Request, body: bytes, context: Context, rows: Rows) -> Outcome:
    """Raises Malformed, Invalid (naming the entry and its member), TooLarge."""
    constants = {"dialect": "loguro"}
    if request.request_id_sent:
        constants["trace_id"] = request.request_id
    encoding = otlp_encoding_of(request.media_type, body)
    if encoding is not None:
        outcome = otlp.decode_as(encoding, body, context, rows, constants, request.arrival_ns)
        if outcome.rejected:
            raise Invalid(outcome.message)
        return outcome
    as_sent = partial(
        entries,
        plan=PLAN,
        outputs=[rows.columns(_LOGS.name)],
        constants={"project_id": context.project_id, **constants},
        **context.bounds(request.arrival_ns),
    )
    try:
        return Outcome.of(as_sent(body))
    except Malformed:
        if b"//" not in body:
            raise
    return Outcome.of(as_sent(without_comments(body)))


def without_comments(body: bytes) -> bytes:
    """The body with spaces for its ``//`` comments, so that every byte stays where it was."""
    return _STRING_OR_COMMENT.sub(lambda found: b" " * len(found[0]) if found["comment"] else found[0], body)


def otlp_encoding_of(media_type: str, body: bytes) -> str | None:
    """Which OTLP encoding the body is in, or None when it is Loguro's own JSON."""
    label = otlp.PROTOBUF if media_type == otlp.PROTOBUF else otlp.JSON
    if otlp.encoding_of(label, body) == otlp.PROTOBUF:
        return otlp.PROTOBUF
    # Most bodies do not hold the word at all: look for it before parsing for it.
    if any(name in body and json_member(body, name) is not None for name in _OTLP_MEMBERS):
        return otlp.JSON
    return None


def accepted(request: Request, outcome: Outcome) -> Reply:
    """202, the same for one entry and for many."""
    return _QUEUED


def refused(request: Request, error: WeirError) -> Reply:
    """``{"error": ...}`` with the error's own status."""
    return Reply(error.status, msgspec.json.encode({"error": str(error)}), otlp.JSON, refusal_headers(error))
