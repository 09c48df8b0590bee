"""Log queries: filters in, rows of ``otel_logs`` out as Proliferate's API words them, whatever dialect sent them.

A statement is one of 25 texts, made of ours alone: a page from either end or a count, with or without each of three
filters, or an error event. Every value goes beside it as a typed parameter. Each text carries its own bounds: rows,
bytes, memory, seconds, and that it may only read. What cannot be answered within them is refused, never cut.

When ClickHouse is away its client's error goes on to the caller; nothing is retried here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import msgspec

from gateway import schema

Query = Callable[[str, Mapping[str, object]], Awaitable[list[dict[str, Any]]]]
"""Runs a SELECT with typed parameters, ``{name:Type}``; its rows as dicts. ``ClickHouse.query``."""

LIMIT_MAX = 1000
OFFSET_MAX = 10_000
AROUND_NS = 300 * 10**9
"""How far from an error the logs are looked for that belong to it: five minutes."""
TIME_MIN_NS, TIME_MAX_NS = 0, 4_102_444_799_999_999_999
"""No row lies outside 1970 to 2099."""

LEVELS = {"trace": 1, "debug": 5, "info": 9, "warn": 13, "error": 17, "fatal": 21}
"""The first of the four severity numbers of each level."""
_SPELLINGS = {
    "trace": ("trace",),
    "debug": ("debug",),
    "info": ("info", "information", "notice", "heartbeat"),
    "warn": ("warn", "warning"),
    "error": ("error", "err"),
    "fatal": ("fatal", "critical", "crit", "alert", "emergency", "emerg", "panic"),
}
LEVEL_OF = {word: level for level, words in _SPELLINGS.items() for word in words}
"""Every spelling of a level, in lower case."""

_LIFTED = {
    "template": ("log.template",),
    "user_id": ("user.id",),
    "account_id": ("account.id",),
    "file_path": ("code.file.path", "code.filepath"),
    "line_number": ("code.line.number", "code.lineno"),
    "function_name": ("code.function.name", "code.function"),
}
"""Members of a log that are stored as attributes; of several the first that is there counts."""

_COLUMNS = (
    "Timestamp", "SeverityNumber", "SeverityText", "Body", "LogAttributes", "TraceId", "SpanId", "ScopeName",
)  # fmt: skip
BOUNDS = (
    "readonly = 1, max_execution_time = 10, timeout_overflow_mode = 'throw', max_result_bytes = 16777216, "
    "max_result_rows = 1501, result_overflow_mode = 'throw', max_memory_usage = 2147483648, max_threads = 2"
)
"""Settings of every statement."""
HAS_LEVEL = (
    "(SeverityNumber IN {numbers:Array(UInt8)}"
    " OR (SeverityNumber = 0 AND lower(SeverityText) IN {words:Array(String)}))"
)
"""A condition; ``level_values`` are its parameters."""
HAS_TEXT = "positionCaseInsensitiveUTF8(Body, {search:String}) > 0"
_QUERIES_MAX = 16

_SCALAR = re.compile(r"true|false|-?[0-9][-+.0-9e]*", re.ASCII)
_SCALAR_CHARS_MAX = 32
_WHOLE_MAX = 2**53 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class TooMany(Exception):
    """As many queries as may run at once are running."""


class Log(msgspec.Struct, frozen=True):
    """A row as the API shows it. What the row does not have is None; ``timestamp`` is ISO 8601 with ms and Z."""

    timestamp: str
    level: str | None
    message: str
    template: str | None
    attributes: dict[str, str | int | float | bool]
    trace_id: str | None
    span_id: str | None
    user_id: str | None
    account_id: str | None
    logger_name: str | None
    file_path: str | None
    line_number: int | None
    function_name: str | None


class Page(msgspec.Struct, frozen=True):
    """Some of the logs that were asked for, how many there are in all, and whether there are more behind these."""

    logs: list[Log]
    total: int
    has_more: bool


@dataclass(frozen=True, slots=True)
class Filters:
    """Which logs of a project, and how many of them. Empty text and an empty set filter nothing.

    ``levels`` are names in ``LEVELS``. Times are nanoseconds since 1970 and compared in whole milliseconds, as
    answers show them, both ends included. ``search`` is part of a message in any case.
    """

    levels: frozenset[str] = frozenset()
    search: str = ""
    trace_id: str = ""
    start_ns: int = TIME_MIN_NS
    end_ns: int = TIME_MAX_NS
    limit: int = 100
    offset: int = 0
    oldest_first: bool = False


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """What is known of an error: whose, when, in which trace (empty when it names none)."""

    project_id: str
    time_ns: int
    trace_id: str


class LogReader:
    """Reads ``database`` through ``query``, a few queries at once. Methods raise TooMany and what ``query`` raises."""

    def __init__(self, query: Query, database: str) -> None:
        self._query = query
        self._database = database
        self._running = 0

    async def logs(self, project_id: str, filters: Filters) -> Page:
        """The logs of a project, newest first unless asked for otherwise."""
        values = _values(project_id, filters)
        counted, rows = await asyncio.gather(
            self.ask(count_text(self._database, **_asked(filters)), values),
            self.ask(
                page_text(self._database, oldest_first=filters.oldest_first, **_asked(filters)),
                # One more than wanted tells whether there are more.
                {**values, "limit": filters.limit + 1, "offset": filters.offset},
            ),
        )
        logs = [log(row) for row in rows[: filters.limit]]
        # Rows may have come in between the two.
        total = max(counted[0]["total"], filters.offset + len(rows) if rows else 0)
        return Page(logs, total, has_more=len(rows) > filters.limit)

    async def event(self, event_id: str) -> ErrorEvent | None:
        """The newest error event of that id, of whatever project."""
        rows = await self.ask(event_text(self._database), {"event_id": event_id})
        return ErrorEvent(rows[0]["ProjectId"], rows[0]["time_ns"], rows[0]["TraceId"]) if rows else None

    async def around(self, event: ErrorEvent, filters: Filters) -> Page:
        """The logs of an error's trace within five minutes of it, oldest first; none when it names no trace.

        Of ``filters`` only ``limit`` and ``offset`` count.
        """
        if not event.trace_id:
            return Page([], 0, has_more=False)
        start_ns, end_ns = event.time_ns - AROUND_NS, event.time_ns + AROUND_NS
        wanted = replace(filters, trace_id=event.trace_id, start_ns=start_ns, end_ns=end_ns, oldest_first=True)
        return await self.logs(event.project_id, wanted)

    async def ask(self, text: str, values: Mapping[str, object]) -> list[dict[str, Any]]:
        """Runs a statement of the room, as long as few others run. Raises TooMany."""
        if self._running >= _QUERIES_MAX:
            raise TooMany
        self._running += 1
        try:
            return await self._query(text, values)
        finally:
            self._running -= 1


@cache
def page_text(database: str, *, levels: bool, search: bool, trace_id: bool, oldest_first: bool) -> str:
    """The statement for a page. The flags say which filters it has."""
    # The first member of the order is the sorting key's: the engine then reads no further than the page.
    members = ("toStartOfFiveMinutes(Timestamp)", "Timestamp", "SpoolFrame", "SpoolRow")
    order = ", ".join(f"{member} {'ASC' if oldest_first else 'DESC'}" for member in members)
    columns = ", ".join(_COLUMNS[1:])
    return (
        f"SELECT toUnixTimestamp64Nano(Timestamp) AS time_ns, {columns} "  # noqa: S608 - no text but ours
        f"FROM {table_of(database, schema.OTEL_LOGS)} WHERE {_conditions(levels, search, trace_id)} "
        f"ORDER BY {order} LIMIT {{limit:UInt32}} OFFSET {{offset:UInt32}} SETTINGS {BOUNDS}"
    )


@cache
def count_text(database: str, *, levels: bool, search: bool, trace_id: bool) -> str:
    """The statement that counts what all pages hold."""
    return (
        f"SELECT count() AS total FROM {table_of(database, schema.OTEL_LOGS)} "  # noqa: S608 - as above
        f"WHERE {_conditions(levels, search, trace_id)} SETTINGS {BOUNDS}"
    )


@cache
def event_text(database: str) -> str:
    """The statement that finds an error event."""
    return (
        "SELECT ProjectId, toUnixTimestamp64Nano(Timestamp) AS time_ns, TraceId "  # noqa: S608 - as above
        f"FROM {table_of(database, schema.ERROR_EVENTS)} WHERE EventId = {{event_id:String}} "
        f"ORDER BY Timestamp DESC, SpoolFrame DESC, SpoolRow DESC LIMIT 1 SETTINGS {BOUNDS}"
    )


def table_of(database: str, table: schema.Table) -> str:
    """A table's name as statements have it."""
    return f"`{database}`.`{table.name}`"


def _conditions(levels: bool, search: bool, trace_id: bool) -> str:
    conditions = [
        "ProjectId = {project_id:String}",
        "Timestamp >= fromUnixTimestamp64Nano({start_ns:Int64})",
        "Timestamp <= fromUnixTimestamp64Nano({end_ns:Int64})",
    ]
    if levels:
        conditions.append(HAS_LEVEL)
    if search:
        conditions.append(HAS_TEXT)
    if trace_id:
        conditions.append("TraceId = {trace_id:String}")
    return " AND ".join(conditions)


def _asked(filters: Filters) -> dict[str, bool]:
    return {
        "levels": bool(filters.levels),
        "search": bool(filters.search),
        "trace_id": bool(filters.trace_id),
    }


def _values(project_id: str, filters: Filters) -> dict[str, object]:
    """The parameters of both statements; the engine wants to hear of no others."""
    values: dict[str, object] = {
        "project_id": project_id,
        "start_ns": _within(filters.start_ns // 10**6 * 10**6),
        "end_ns": _within(filters.end_ns // 10**6 * 10**6 + 999_999),
    }
    if filters.levels:
        values |= level_values(filters.levels)
    if filters.search:
        values["search"] = filters.search
    if filters.trace_id:
        values["trace_id"] = filters.trace_id
    return values


def _within(time_ns: int) -> int:
    return min(max(time_ns, TIME_MIN_NS), TIME_MAX_NS)


def level_values(levels: Iterable[str]) -> dict[str, object]:
    """The parameters of ``HAS_LEVEL``."""
    wanted = sorted(levels)
    return {
        "numbers": [LEVELS[level] + more for level in wanted for more in range(4)],
        "words": [word for word, level in LEVEL_OF.items() if level in wanted],
    }


def log(row: Mapping[str, Any]) -> Log:
    """A row of ``page_text`` as the API shows it."""
    attributes: dict[str, str] = dict(row["LogAttributes"])
    lifted = {member: _lift(attributes, names) for member, names in _LIFTED.items() if member != "line_number"}
    return Log(
        timestamp=timestamp(row["time_ns"]),
        level=level_name(row["SeverityNumber"], row["SeverityText"]),
        message=row["Body"],
        trace_id=row["TraceId"] or None,
        span_id=row["SpanId"] or None,
        logger_name=row["ScopeName"] or None,
        line_number=_lift_whole(attributes, _LIFTED["line_number"]),
        attributes={name: scalar(text) for name, text in attributes.items()},
        **lifted,
    )


def timestamp(time_ns: int) -> str:
    """Nanoseconds since 1970 as ISO 8601 with milliseconds, cut and not rounded, and Z."""
    moment = _EPOCH + timedelta(milliseconds=time_ns // 10**6)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def scalar(text: str) -> str | int | float | bool:
    """An attribute's value: a number or a boolean where its text is just how JSON writes one, else the text.

    What was sent as a text of that shape cannot be told from it. Whole numbers over 53 bits stay text: readers
    of JSON would change their digits.
    """
    if len(text) > _SCALAR_CHARS_MAX or not _SCALAR.fullmatch(text):
        return text
    try:
        value: int | float | bool = msgspec.json.decode(text, type=int | float | bool)
    except msgspec.DecodeError:
        return text
    if isinstance(value, int) and abs(value) > _WHOLE_MAX:
        return text
    written = str(value).lower() if isinstance(value, bool) else repr(value)
    return value if written == text else text


def level_name(number: int, text: str) -> str | None:
    """The name of a row's level; of one nobody knows its text in lower case, of none None."""
    if 1 <= number <= 24:
        return list(LEVELS)[(number - 1) // 4]
    return LEVEL_OF.get(text.lower(), text.lower()) or None


def _lift(attributes: dict[str, str], names: tuple[str, ...]) -> str | None:
    name = next((name for name in names if attributes.get(name)), None)
    return None if name is None else attributes.pop(name)


def _lift_whole(attributes: dict[str, str], names: tuple[str, ...]) -> int | None:
    """The same of a whole number; what is none stays an attribute."""
    for name in names:
        value = scalar(attributes.get(name, ""))
        if type(value) is int:
            del attributes[name]
            return value
    return None
