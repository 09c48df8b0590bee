"""Log queries as Streamlogia's API has them: pages by a keyset, counts, time series, groups.

Rows of every dialect are shown, worded as Streamlogia's. What a row is shown as is computed in the statement
(its level, its tags, its source type), so that a filter and an answer cannot disagree.

One text does for all filters: each condition also holds when its parameter is empty, and the engine folds it
away then. Texts differ only by what is asked, and whether of one project, of some or of all; all values are
typed parameters. Bounds and what is told when there is too much are those of ``logs.py``.
"""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from gateway import schema
from gateway.reading.logs import BOUNDS, LEVEL_OF, TIME_MAX_NS, TIME_MIN_NS, Query, scalar, table_of

LEVELS = ("DEBUG", "INFO", "WARN", "ERROR")
SOURCE_TYPES = ("app", "infra")
TOTAL_MAX = 10_000
"""Where a bounded total stops counting."""
BUCKETS_MAX = 1500
COLUMNS = ("level", "source", "source_type")
"""What rows can be grouped by, beside a member of ``meta``."""

_SECOND_NS = 10**9
_FOUR = {"trace": "DEBUG", "debug": "DEBUG", "info": "INFO", "warn": "WARN", "error": "ERROR", "fatal": "ERROR"}
LEVEL_NAMED = {word: _FOUR[level] for word, level in LEVEL_OF.items()}
"""Which of the four levels a word means, in lower case."""

_INFRA = {
    "host": "host.name",
    "container": "container.name",
    "pod": "k8s.pod.name",
    "namespace": "k8s.namespace.name",
    "cluster": "k8s.cluster.name",
    "region": "cloud.region",
    "cloud_resource_id": "cloud.resource_id",
}
"""Members of an entry that are stored as attributes of the resource, as /v1/ingest/bulk stores them."""


def _quoted(texts: Sequence[str]) -> str:
    return f"[{', '.join(map(schema.quote, texts))}]"


# Of OpenTelemetry's numbers as the vendor's server maps them. Where there is none the word counts, and a word nobody
# knows is INFO.
_LEVEL = (
    "multiIf(SeverityNumber > 16, 'ERROR', SeverityNumber > 12, 'WARN', SeverityNumber > 8, 'INFO', "
    "SeverityNumber > 0, 'DEBUG', transform(lower(toString(SeverityText)), "
    f"{_quoted(list(LEVEL_NAMED))}, {_quoted(list(LEVEL_NAMED.values()))}, 'INFO'))"
)
# Only /v1/ingest gives every row an id, and none of its rows has a resource.
_SOURCE_TYPE = "if(Dialect = 'streamlogia' AND (RecordId = '' OR notEmpty(ResourceAttributes)), 'infra', 'app')"
_TAGS = "JSONExtract(LogAttributes['tags'], 'Array(String)')"

_CONDITIONS = (
    "Timestamp >= fromUnixTimestamp64Nano({from_ns:Int64})",
    "Timestamp <= fromUnixTimestamp64Nano({to_ns:Int64})",
    f"(empty({{levels:Array(String)}}) OR has({{levels:Array(String)}}, {_LEVEL}))",
    "({search:String} = '' OR positionCaseInsensitiveUTF8(Body, {search:String}) > 0"
    " OR positionCaseInsensitiveUTF8(ServiceName, {search:String}) > 0)",
    "({source:String} = '' OR ServiceName = {source:String})",
    f"(empty({{tags:Array(String)}}) OR hasAll({_TAGS}, {{tags:Array(String)}}))",
    "(empty({meta_names:Array(String)}) OR arrayAll((name, value) -> mapContains(LogAttributes, name)"
    " AND LogAttributes[name] = value, {meta_names:Array(String)}, {meta_values:Array(String)}))",
    f"({{source_type:String}} = '' OR {_SOURCE_TYPE} = {{source_type:String}})",
)
_SCOPES = {
    "one": "ProjectId = {project_id:String}",
    "some": "ProjectId IN {project_ids:Array(String)}",
    "all": "1",
}
_KEYS = {
    "level": _LEVEL,
    "source": "ServiceName",
    "source_type": _SOURCE_TYPE,
    "meta": "LogAttributes[{field:String}]",
}
_COLUMNS = (
    "toUnixTimestamp64Nano(Timestamp) AS time_ns, SpoolFrame, SpoolRow, ProjectId, RecordId, Dialect, "
    f"{_LEVEL} AS level, Body, ServiceName, {_TAGS} AS tags, JSONType(LogAttributes['tags']) = 'Array' AS has_tags, "
    f"{_SOURCE_TYPE} AS source_type, LogAttributes, ResourceAttributes, TraceId, SpanId"
)
# Its first member is the sorting key's: of one project the engine then reads no further than the page.
_NEWEST_FIRST = "toStartOfFiveMinutes(Timestamp) DESC, Timestamp DESC, SpoolFrame DESC, SpoolRow DESC"

_RFC3339 = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,30}))?"
    r"(?:[Zz]|([-+ ][0-9]{2}:[0-9]{2}))",
    re.ASCII,
)
# Not of version 8, which is ours.
_GIVEN_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-79a-f][0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CURSOR_CHARS_MAX = 256


class Place(NamedTuple):
    """Where a row is in the order of all rows: nobody else is at the same place, whatever its time."""

    time_ns: int
    frame: int
    row: int

    @property
    def cursor(self) -> str:
        """URL-safe base64, without padding, of ``{"ts": ..., "id": ...}``; the id is the row's identity."""
        text = msgspec.json.encode(_Cursor(rfc3339(self.time_ns), identity(self.frame, self.row)))
        return base64.urlsafe_b64encode(text).rstrip(b"=").decode()

    @classmethod
    def of_cursor(cls, text: str) -> Place:
        """The place that ``cursor`` gave. Raises ValueError when it is none."""
        if len(text) > _CURSOR_CHARS_MAX:
            raise ValueError("too long")
        bare = text.rstrip("=")
        try:
            decoded = base64.b64decode(bare + "=" * (-len(bare) % 4), altchars=b"-_", validate=True)
            cursor = msgspec.json.decode(decoded, type=_Cursor)
        except (binascii.Error, UnicodeDecodeError, msgspec.DecodeError) as error:
            raise ValueError("not a cursor") from error
        time_ns, row = rfc3339_ns(cursor.ts), identity_of(cursor.id)
        if row is None or not TIME_MIN_NS <= time_ns <= TIME_MAX_NS:
            raise ValueError("not the place of a row")
        return cls(time_ns, *row)


class _Cursor(msgspec.Struct, frozen=True):
    ts: str
    id: str


class Entry(msgspec.Struct, frozen=True, rename="camel"):
    """A row as the API shows it. ``meta`` is flat, as stored; the seven last are only there where the row has them."""

    id: str
    pid: str
    project_id: str
    level: str
    message: str
    source: str
    timestamp: str
    ts: str
    tags: list[str]
    meta: dict[str, str | int | float | bool]
    source_type: str
    source_id: str | None
    attributes: dict[str, str | int | float | bool]
    host: str | UnsetType = UNSET
    container: str | UnsetType = UNSET
    pod: str | UnsetType = UNSET
    namespace: str | UnsetType = UNSET
    cluster: str | UnsetType = UNSET
    region: str | UnsetType = UNSET
    cloud_resource_id: str | UnsetType = UNSET


class Bucket(msgspec.Struct, frozen=True):
    """How many rows of each level from ``ts`` on, until the next bucket."""

    ts: str
    counts: dict[str, int]


class Group(msgspec.Struct, frozen=True):
    """How many rows have this value; rows without any have the empty one."""

    key: str
    count: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows. What is empty filters nothing: no ``project_ids`` are all projects.

    ``levels`` are names in ``LEVELS``, ``source_type`` is one of ``SOURCE_TYPES``. ``search`` is part of the message
    or of the source, in any case. All of ``tags`` and of ``meta`` (a name and the text stored under it) must be there.
    Times are nanoseconds since 1970, both ends included, from 1970 to 2099.
    """

    project_ids: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    search: str = ""
    source: str = ""
    tags: tuple[str, ...] = ()
    meta: tuple[tuple[str, str], ...] = ()
    source_type: str = ""
    from_ns: int = TIME_MIN_NS
    to_ns: int = TIME_MAX_NS

    @property
    def scope(self) -> str:
        """The name of the condition on projects."""
        if not self.project_ids:
            return "all"
        return "some" if self.project_ids[1:] else "one"

    @property
    def project(self) -> dict[str, object]:
        """The parameters of that condition; the engine wants to hear of no others."""
        if not self.project_ids:
            return {}
        return {"project_ids": self.project_ids} if self.project_ids[1:] else {"project_id": self.project_ids[0]}

    @property
    def values(self) -> dict[str, object]:
        """The parameters of the conditions."""
        return {
            **self.project,
            "from_ns": self.from_ns,
            "to_ns": self.to_ns,
            "levels": self.levels,
            "search": self.search,
            "source": self.source,
            "tags": self.tags,
            "meta_names": [name for name, _ in self.meta],
            "meta_values": [value for _, value in self.meta],
            "source_type": self.source_type,
        }


class StreamlogiaReader:
    """Reads ``database`` through ``ask``, ``LogReader.ask``; methods raise what it raises."""

    def __init__(self, ask: Query, database: str) -> None:
        self._ask = ask
        self._database = database

    async def page(self, wanted: Wanted, limit: int, after: Place | None = None) -> tuple[list[Entry], Place | None]:
        """At most ``limit`` entries, newest first, behind a place; and the place of the last of a full page."""
        values = wanted.values
        after = after or Place(TIME_MAX_NS + 1, 0, 0)
        values |= {"after_ns": after.time_ns, "after_frame": after.frame, "after_row": after.row, "limit": limit}
        rows = await self._ask(page_text(self._database, wanted.scope), values)
        return [entry(row) for row in rows], _place(rows[-1]) if len(rows) == limit else None

    async def total(self, wanted: Wanted, *, exact: bool) -> tuple[int, bool]:
        """How many rows there are, and whether that is exact: else there are more than ``TOTAL_MAX``."""
        values = wanted.values if exact else {**wanted.values, "most": TOTAL_MAX + 1}
        (row,) = await self._ask(total_text(self._database, wanted.scope, exact=exact), values)
        return (row["total"], True) if exact else (min(row["total"], TOTAL_MAX), row["total"] <= TOTAL_MAX)

    async def find(self, wanted: Wanted, log_id: str) -> Entry | None:
        """The entry with this id, of several the newest. Only the projects of ``wanted`` count."""
        found = identity_of(log_id)
        text = find_text(self._database, wanted.scope, by_identity=found is not None)
        names = {"record_id": log_id} if found is None else {"frame": found[0], "row": found[1]}
        rows = await self._ask(text, {**wanted.project, **names})
        return entry(rows[0]) if rows else None

    async def stats(self, wanted: Wanted) -> dict[str, int]:
        """The number of rows of each level."""
        (row,) = await self._ask(stats_text(self._database, wanted.scope), wanted.values)
        return {level: row[level] for level in LEVELS}

    async def series(self, wanted: Wanted, step_s: int) -> list[Bucket]:
        """The rows in buckets of so many seconds since 1970, from the one of ``from_ns`` to the one of ``to_ns``."""
        values = {**wanted.values, "step_s": step_s}
        found = {row["bucket"]: row for row in await self._ask(series_text(self._database, wanted.scope), values)}
        none = dict.fromkeys(LEVELS, 0)
        return [
            Bucket(rfc3339(number * step_s * _SECOND_NS), {level: found.get(number, none)[level] for level in LEVELS})
            for number in bucket_numbers(wanted.from_ns, wanted.to_ns, step_s)
        ]

    async def groups(self, wanted: Wanted, group_by: str, field: str, limit: int) -> list[Group]:
        """The most frequent values of one of ``COLUMNS``, or of ``meta``: then ``field`` is its member."""
        values = {**wanted.values, "limit": limit, **({"field": field} if group_by == "meta" else {})}
        rows = await self._ask(groups_text(self._database, wanted.scope, group_by), values)
        return [Group(row["key"], row["count"]) for row in rows]


def _place(row: Mapping[str, Any]) -> Place:
    return Place(row["time_ns"], row["SpoolFrame"], row["SpoolRow"])


def bucket_numbers(from_ns: int, to_ns: int, step_s: int) -> range:
    """The numbers, counted from 1970, of the buckets between two times, both of which are in one."""
    return range(from_ns // (step_s * _SECOND_NS), to_ns // (step_s * _SECOND_NS) + 1)


@cache
def page_text(database: str, scope: str) -> str:
    """The statement for a page behind a place."""
    return (
        f"SELECT {_COLUMNS} FROM {table_of(database, schema.OTEL_LOGS)} WHERE {_where(scope)} "  # noqa: S608 - all ours
        # The time alone too: parts and granules are left out by it.
        "AND Timestamp <= fromUnixTimestamp64Nano({after_ns:Int64}) AND (Timestamp, SpoolFrame, SpoolRow) < "
        "(fromUnixTimestamp64Nano({after_ns:Int64}), {after_frame:UInt64}, {after_row:UInt32}) "
        f"ORDER BY {_NEWEST_FIRST} LIMIT {{limit:UInt32}} SETTINGS {BOUNDS}"
    )


@cache
def total_text(database: str, scope: str, *, exact: bool) -> str:
    """The statement that counts rows, all or some of them."""
    rows = f"FROM {table_of(database, schema.OTEL_LOGS)} WHERE {_where(scope)}"
    counted = rows if exact else f"FROM (SELECT 1 {rows} LIMIT {{most:UInt32}})"
    return f"SELECT count() AS total {counted} SETTINGS {BOUNDS}"


@cache
def find_text(database: str, scope: str, *, by_identity: bool) -> str:
    """The statement for one row."""
    what = "SpoolFrame = {frame:UInt64} AND SpoolRow = {row:UInt32}" if by_identity else "RecordId = {record_id:String}"
    return (
        f"SELECT {_COLUMNS} FROM {table_of(database, schema.OTEL_LOGS)} "  # noqa: S608 - as above
        f"WHERE {_SCOPES[scope]} AND {what} ORDER BY {_NEWEST_FIRST} LIMIT 1 SETTINGS {BOUNDS}"
    )


@cache
def stats_text(database: str, scope: str) -> str:
    """The statement that counts rows by level."""
    return f"SELECT {_COUNTS} FROM {table_of(database, schema.OTEL_LOGS)} WHERE {_where(scope)} SETTINGS {BOUNDS}"  # noqa: S608


@cache
def series_text(database: str, scope: str) -> str:
    """The statement that counts them in buckets of time; empty ones are not in its answer."""
    return (
        "SELECT intDiv(toUnixTimestamp64Second(Timestamp), {step_s:Int64}) AS bucket, "  # noqa: S608 - as above
        f"{_COUNTS} FROM {table_of(database, schema.OTEL_LOGS)} WHERE {_where(scope)} GROUP BY bucket SETTINGS {BOUNDS}"
    )


@cache
def groups_text(database: str, scope: str, group_by: str) -> str:
    """The statement that counts them by a value."""
    return (
        f"SELECT {_KEYS[group_by]} AS key, count() AS count "  # noqa: S608 - as above
        f"FROM {table_of(database, schema.OTEL_LOGS)} WHERE {_where(scope)} "
        f"GROUP BY key ORDER BY count DESC, key LIMIT {{limit:UInt32}} SETTINGS {BOUNDS}"
    )


_COUNTS = ", ".join(f"countIf({_LEVEL} = '{level}') AS {level}" for level in LEVELS)


def _where(scope: str) -> str:
    return " AND ".join((_SCOPES[scope], *_CONDITIONS))


def entry(row: Mapping[str, Any]) -> Entry:
    """A row of ``page_text`` as the API shows it."""
    own: dict[str, str] = dict(row["LogAttributes"])
    if row["has_tags"]:
        del own["tags"]
    if row["Dialect"] == "streamlogia" and row["source_type"] == "app":
        own.pop("project.id", None)  # as sent in projectId; whose row it is stands in pid
    resource: dict[str, str] = dict(row["ResourceAttributes"])
    infra = {member: resource.pop(name) for member, name in _INFRA.items() if resource.get(name)}
    ids = {"trace_id": row["TraceId"], "span_id": row["SpanId"]}
    # What came by the bulk paths was sent as attributes; filters by meta find all rows alike.
    others = {**resource, **{name: value for name, value in ids.items() if value}}
    others |= own if row["source_type"] == "infra" else {}
    time = rfc3339(row["time_ns"])
    return Entry(
        id=shown_id(row["RecordId"], row["SpoolFrame"], row["SpoolRow"]),
        pid=row["ProjectId"],
        project_id=row["ProjectId"],
        level=row["level"],
        message=row["Body"],
        source=row["ServiceName"],
        timestamp=time,
        ts=time,
        tags=row["tags"],
        meta={name: scalar(value) for name, value in own.items()},
        source_type=row["source_type"],
        source_id=None,
        attributes={name: scalar(value) for name, value in others.items()},
        **infra,
    )


def shown_id(record_id: str, frame: int, row: int) -> str:
    """The id given at ingest, or sent, where it is a UUID as they are written; else one made of the identity."""
    return record_id if _GIVEN_ID.fullmatch(record_id) else identity(frame, row)


def identity(frame: int, row: int) -> str:
    """A row's identity as a UUID of version 8 (RFC 9562, 5.8): 64 bits frame, 32 bits row, zeros between and behind."""
    bits = frame << 32 | row
    return str(uuid.UUID(int=bits >> 48 << 80 | 8 << 76 | (bits >> 36 & 0xFFF) << 64 | 2 << 62 | bits & (1 << 36) - 1))


def identity_of(text: str) -> tuple[int, int] | None:
    """Frame and row of such a UUID, None when it is another one. Raises ValueError when it is none at all."""
    number = uuid.UUID(text).int
    bits = number >> 80 << 48 | (number >> 64 & 0xFFF) << 36 | number & (1 << 36) - 1
    frame, row = bits >> 32, bits & 0xFFFF_FFFF
    return (frame, row) if identity(frame, row) == text else None


def rfc3339(time_ns: int) -> str:
    """Nanoseconds since 1970 in UTC, with as many digits as it takes."""
    seconds, fraction = divmod(time_ns, _SECOND_NS)
    digits = f".{fraction:09d}".rstrip("0").rstrip(".")
    return f"{(_EPOCH + timedelta(seconds=seconds)).isoformat()[:19]}{digits}Z"


def rfc3339_ns(text: str) -> int:
    """Such a time, in any zone, as nanoseconds since 1970; further digits are cut. Raises ValueError."""
    found = _RFC3339.fullmatch(text)
    if found is None:
        raise ValueError("not RFC 3339")
    day, clock, fraction, offset = found.groups()
    # A + in an address is a space; nobody means one there.
    moment = datetime.fromisoformat(f"{day}T{clock}{(offset or '+00:00').replace(' ', '+')}")
    try:
        since = moment - _EPOCH
    except OverflowError as error:
        raise ValueError("not a time") from error
    return (since.days * 86_400 + since.seconds) * _SECOND_NS + int((fraction or "").ljust(9, "0")[:9])
