"""Streamlogia's ingest (docs.streamlogia.com; streamlogia 0.1.0 to 0.4.0 on PyPI; the vendor's public server).

    POST /v1/ingest         an entry or an array of them; 200 {"ingested": n, "ids": [...]}
    POST /v1/ingest/bulk    NDJSON, an array or an object; 202 {"accepted", "rejected", "errors"?: [{"index", "error"}]}
    POST /v1/ingest/otlp    OTLP: JSON when the content type says so, else protobuf; the same reply as bulk

Of an entry of /v1/ingest:

    projectId    a UUID; kept as the attribute project.id. Rows always go to the project of the key
    level        DEBUG INFO WARN ERROR, in any case and with the usual aliases; required
    message      the text; required, not empty
    source       the service's name; required, not empty
    timestamp    RFC 3339; missing or null is the time of arrival, "" is an error
    tags         attribute tags, a JSON array as text
    meta         any object; flattened to attributes, without a prefix

The documents and the vendor's server differ, or are silent; we decided:
* The server's codes and statuses hold, not the documents': ``{"error","code","message","details"?}``, a wrong level
  is 400 ``invalid_argument``, a bad key 401 ``unauthenticated``. ``details`` has the first problem of each of the first
  100 entries that are not acceptable, by its place: ``{"field":"[3].level","message":...}``. The field of a bad
  timestamp is ``timestamp``, as it was sent, where the server says ``ts``.
* All or nothing, and an empty array is 400: as the server.
* Clients never send again, and some write what no strict parser takes. So ``NaN`` and infinities, lone
  surrogates, NUL and integers of any size are accepted, and kept as text; the server refuses the batch.
* An empty message or source is refused, as by the server, although clients send one when told to.
* A project's id of old is not refused: who moves here keeps it in their configuration, and their records must
  not be lost. The server answers 404 to a project it does not know.
* ``ids`` are version 4 UUIDs, in the order of the entries, and the rows' RecordId. They are one random number
  for each request, counted up.
* The documented 8 KB of a message and 64 KB of meta are not enforced, as on the server; docs/rows.md has our caps.
* A spent quota and too many requests are both 429 ``too_many_requests``, as on the server; of the second we say
  when to come back.
* Members that are not in the list are kept as attributes. A member of ``meta`` called ``tags`` or ``project.id``
  wins over ours. Names of members are case-sensitive.
* What was stored is read on /v1/projects/{id}/logs and /v1/query, as docs/reading.md says: with a personal access
  token instead of a session or a key for queries. There is no live stream.

/v1/ingest/bulk and /v1/ingest/otlp accept in part, and take any key: we have no source keys of another kind.
* bulk: only ``message`` is required. ``level`` is INFO when it is missing or none; ``ts`` is the timestamp, or what is
  none that of arrival; ``source`` is the service, ``attributes`` is flattened, ``tags`` as above; ``host container pod
  namespace cluster region cloudResourceId`` become the resource attributes host.name, container.name, k8s.pod.name,
  k8s.namespace.name, k8s.cluster.name, cloud.region, cloud.resource_id; others are kept.
* NDJSON when the content type contains ``ndjson``, and when a body that begins with an object is no single JSON value.
* ``errors`` has the first 100; an index counts records from 0, not blank lines. Of OTLP it has one, without an index:
  its text names the first record that was rejected, and why.
* More than 10,000 records or 8 MiB are 400, and nothing is stored. A body that is not JSON at all is 400, too.
* Nothing is sampled, redacted or lifted out of messages: what was sent is what is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import msgspec

from gateway import schema
from gateway._native import EntryPlan, entries, json_check, record_ids
from gateway.config import CountedLimits, DialectLimits
from gateway.dialects import otlp
from gateway.dialects.dialect import Context, Dialect, Outcome, Reply, Request, Rows, refusal_headers
from gateway.errors import Invalid, Malformed, Problem, SubscriptionRequired, TooLarge, WeirError

JSON = "application/json"
PROBLEMS_MAX = 100

_LOGS = schema.OTEL_LOGS
_RULES = (
    ("projectId", "attribute uuid", "LogAttributes", "project.id"),
    ("level", "level required", "SeverityText", ""),
    ("message", "text required nonempty", "Body", ""),
    ("source", "text required nonempty", "ServiceName", ""),
    ("timestamp", "timestamp", "Timestamp", ""),
    ("tags", "attribute array", "LogAttributes", "tags"),
    ("meta", "attributes", "LogAttributes", ""),
)
_BULK_RULES = (
    ("ts", "time lenient", "Timestamp", ""),
    ("level", "level default=INFO lenient", "SeverityText", ""),
    ("message", "text required nonempty", "Body", ""),
    ("source", "text", "ServiceName", ""),
    ("tags", "attribute", "LogAttributes", "tags"),
    ("host", "attribute", "ResourceAttributes", "host.name"),
    ("container", "attribute", "ResourceAttributes", "container.name"),
    ("pod", "attribute", "ResourceAttributes", "k8s.pod.name"),
    ("namespace", "attribute", "ResourceAttributes", "k8s.namespace.name"),
    ("cluster", "attribute", "ResourceAttributes", "k8s.cluster.name"),
    ("region", "attribute", "ResourceAttributes", "cloud.region"),
    ("cloudResourceId", "attribute", "ResourceAttributes", "cloud.resource_id"),
    ("attributes", "attributes", "LogAttributes", ""),
)
_SOURCES = (
    *("project_id", "dialect", "observed_time", "severity_number", "event_name"),
    *("attributes", "record_id", "frame", "row"),
)
_FEEDS = {column: source for column, source in _LOGS.feeds.items() if source in _SOURCES}
PLAN = EntryPlan([(_LOGS.layout, _RULES, _FEEDS)], unknown="LogAttributes")
BULK_PLAN = EntryPlan([(_LOGS.layout, _BULK_RULES, _FEEDS)], unknown="LogAttributes")

CODES = {
    400: "invalid_argument",
    401: "unauthenticated",
    403: "permission_denied",
    404: "not_found",
    405: "method_not_allowed",
    408: "deadline_exceeded",
    413: "payload_too_large",
    415: "unsupported_media_type",
    422: "unprocessable_entity",
    429: "too_many_requests",
    503: "unavailable",
}
"""The vendor's word for each status."""


def dialects(limits: DialectLimits, bulk_limits: CountedLimits) -> tuple[Dialect, Dialect, Dialect]:
    """Ingest; bulk; OTLP."""
    entries_max = bulk_limits.entries_max
    ingest = Dialect(
        name="streamlogia",
        routes=(("POST", "/v1/ingest"),),
        limits=limits,
        decode=decode,
        accepted=accepted,
        refused=refused,
    )
    bulk = Dialect(
        name="streamlogia",
        routes=(("POST", "/v1/ingest/bulk"),),
        limits=bulk_limits,
        decode=lambda request, body, context, rows: decode_bulk(request, body, context, rows, entries_max),
        accepted=bulk_accepted,
        refused=bulk_refused,
    )
    bulk_otlp = Dialect(
        name="streamlogia",
        routes=(("POST", "/v1/ingest/otlp"),),
        limits=bulk_limits,
        decode=lambda request, body, context, rows: decode_otlp(request, body, context, rows, entries_max),
        accepted=bulk_accepted,
        refused=bulk_refused,
    )
    return ingest, bulk, bulk_otlp


def decode(request: Request, body: bytes, context: Context, rows: Rows) -> Outcome:
    """Raises Malformed, Invalid (naming entries and members), TooLarge. ``state``: the first row's id."""
    first_id = request.mint(16)
    decoded = entries(
        body,
        PLAN,
        [rows.columns(_LOGS.name)],
        constants={"project_id": context.project_id, "dialect": "streamlogia"},
        **context.bounds(request.arrival_ns),
        nan_literals=True,
        problems_max=PROBLEMS_MAX,
        record_id=first_id,
    )
    if not decoded.rows:
        raise Invalid("the request body must hold at least one entry")
    return Outcome.of(decoded, first_id)


def accepted(request: Request, outcome: Outcome) -> Reply:
    """200 with the ids, in order."""
    ids = record_ids(cast(bytes, outcome.state), outcome.rows)
    return Reply(200, msgspec.json.encode({"ingested": outcome.rows, "ids": ids}), JSON)


def refused(request: Request, error: WeirError) -> Reply:
    """``{"error","code","message"}``, and ``details`` by entry and member."""
    status = 429 if isinstance(error, SubscriptionRequired) else error.status
    return _error(status, CODES.get(status, "internal"), error)


def decode_bulk(request: Request, body: bytes, context: Context, rows: Rows, entries_max: int) -> Outcome:
    """Raises Malformed, Invalid (no record, or too many), TooLarge. ``state``: the first problems."""
    decoded = entries(
        body,
        BULK_PLAN,
        [rows.columns(_LOGS.name)],
        constants={"project_id": context.project_id, "dialect": "streamlogia"},
        **context.bounds(request.arrival_ns),
        entries_max=entries_max,
        nan_literals=True,
        lines=are_lines(request, body),
        partial=True,
        problems_max=PROBLEMS_MAX,
    )
    return _bulk_outcome(Outcome.of(decoded, decoded.problems), entries_max)


def are_lines(request: Request, body: bytes) -> bool:
    """Whether the body is one object a line."""
    if "ndjson" in request.media_type:
        return True
    if body.lstrip()[:1] != b"{":
        return False
    try:
        json_check(body, nan_literals=True)
    except Malformed:
        return True
    return False


def decode_otlp(request: Request, body: bytes, context: Context, rows: Rows, entries_max: int) -> Outcome:
    """Raises Malformed, Invalid (no record, or too many), TooLarge. ``state``: the first problem."""
    encoding = otlp.encoding_of(otlp.JSON if "json" in request.media_type else otlp.PROTOBUF, body)
    outcome = otlp.decode_as(encoding, body, context, rows, {"dialect": "streamlogia"}, request.arrival_ns)
    return _bulk_outcome(outcome, entries_max)


def bulk_accepted(request: Request, outcome: Outcome) -> Reply:
    """202 with the counts, and ``errors`` when records were rejected."""
    counts = {"accepted": outcome.rows, "rejected": outcome.rejections}
    problems = cast(tuple[Problem, ...], outcome.state or ())
    errors: list[dict[str, object]] = [{"index": each.index, "error": _sentence(each)} for each in problems]
    if outcome.rejections and not errors:
        errors = [{"error": outcome.message}]
    return Reply(202, msgspec.json.encode({**counts, "errors": errors} if errors else counts), JSON)


def bulk_refused(request: Request, error: WeirError) -> Reply:
    """The same errors; but too large is 400, and 429 is ``resource_exhausted``."""
    if isinstance(error, TooLarge):
        return _error(400, CODES[400], error)
    if isinstance(error, SubscriptionRequired) or error.status == 429:
        return _error(429, "resource_exhausted", error)
    return refused(request, error)


def _bulk_outcome(outcome: Outcome, entries_max: int) -> Outcome:
    records = outcome.rows + outcome.rejections
    if records > entries_max:
        raise Invalid(f"too many records: {records} (at most {entries_max}); send them in several requests")
    if not records:
        raise Invalid("the request body must hold at least one record")
    return outcome


def _error(status: int, code: str, error: WeirError) -> Reply:
    reply: dict[str, object] = {"error": code, "code": code, "message": str(error)}
    if isinstance(error, Invalid) and error.field:
        reply |= {"message": "validation failed", "details": _details(error.problems)}
    return Reply(status, msgspec.json.encode(reply), JSON, refusal_headers(error))


def _details(problems: Sequence[Problem]) -> list[dict[str, str]]:
    # Of an entry that came alone the place is the first, as if it had come in an array.
    fields = [problem.field if problem.field[:1] == "[" else f"[0].{problem.field}" for problem in problems]
    return [{"field": field, "message": _sentence(problem)} for field, problem in zip(fields, problems, strict=True)]


def _sentence(problem: Problem) -> str:
    """``level is required``; of a whole entry ``entry must be an object``."""
    member = problem.field.rpartition("].")[2] if "]." in problem.field or problem.field[:1] != "[" else "entry"
    return f"{member} {problem.message}"
