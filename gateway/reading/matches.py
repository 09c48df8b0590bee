"""The logs an alert waits for: how many arrived in a time, and the first of them.

A statement is one of twelve texts, made of ours alone: logs or heartbeats, with or without each condition.
Its bounds are those of the room, and every value goes beside it. What is there is counted by its arrival, so the time
an alert asks about is short whatever times the logs bear.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Protocol

from gateway import schema
from gateway.reading.logs import BOUNDS, HAS_LEVEL, HAS_TEXT, Query, level_name, level_values, table_of, timestamp
from gateway.reading.status import SERVICE

HEARTBEAT = "heartbeat"
MESSAGE_CHARS_MAX, SERVICE_CHARS_MAX = 1000, 200
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Wanted(Protocol):
    """Which logs; ``gateway.tenants.records.AlertRecord``. Empty conditions always hold.

    ``levels`` are names of levels, or ``heartbeat`` alone.
    """

    @property
    def project_id(self) -> str: ...
    @property
    def levels(self) -> tuple[str, ...]: ...
    @property
    def contains(self) -> str: ...
    @property
    def context_key(self) -> str: ...
    @property
    def context_value(self) -> str: ...


@dataclass(frozen=True, slots=True)
class First:
    """The log that arrived first, cut to what fits into a message. ``time`` is its own, ISO 8601."""

    time: str
    level: str | None
    message: str
    service: str | None


@dataclass(frozen=True, slots=True)
class Found:
    """How many logs there are; ``first`` is None when there are none."""

    count: int
    first: First | None = None


class MatchReader:
    """Reads ``database`` through ``ask``, a query; what that raises goes on to the caller."""

    def __init__(self, ask: Query, database: str) -> None:
        self._ask = ask
        self._database = database

    async def find(self, wanted: Wanted, since: datetime, until: datetime) -> Found:
        """The logs that arrived after ``since`` and not after ``until``."""
        heartbeats = wanted.levels == (HEARTBEAT,)
        conditions = {
            "levels": bool(wanted.levels) and not heartbeats,
            "contains": bool(wanted.contains),
            "context": bool(wanted.context_key),
        }
        values: dict[str, object] = {"project_id": wanted.project_id, "since_ns": _ns(since), "until_ns": _ns(until)}
        if conditions["levels"]:
            values |= level_values(wanted.levels)
        if conditions["contains"]:
            values["search"] = wanted.contains
        if conditions["context"]:
            values |= {"key": wanted.context_key, "value": wanted.context_value}
        rows = await self._ask(match_text(self._database, heartbeats=heartbeats, **conditions), values)
        row = rows[0]
        if not row["found"]:
            return Found(0)
        first = First(
            timestamp(row["time_ns"]), level_name(row["number"], row["level"]), row["message"], row["service"] or None
        )
        return Found(row["found"], first)


@cache
def match_text(database: str, *, heartbeats: bool, levels: bool, contains: bool, context: bool) -> str:
    """The statement: one row."""
    conditions = [
        "ProjectId = {project_id:String}",
        "ObservedTimestamp > fromUnixTimestamp64Nano({since_ns:Int64})",
        "ObservedTimestamp <= fromUnixTimestamp64Nano({until_ns:Int64})",
        f"EventName {'=' if heartbeats else '!='} '{HEARTBEAT}'",
    ]
    if levels:
        conditions.append(HAS_LEVEL)
    if contains:
        conditions.append(HAS_TEXT)
    if context:
        conditions.append(
            "(LogAttributes[{key:String}] = {value:String}"
            " OR ({key:String} = 'service' AND ServiceName = {value:String}))"
        )
    shown = {
        "time_ns": "toUnixTimestamp64Nano(Timestamp)",
        "number": "SeverityNumber",
        "level": f"substringUTF8(toString(SeverityText), 1, {SERVICE_CHARS_MAX})",
        "message": f"substringUTF8(Body, 1, {MESSAGE_CHARS_MAX})",
        "service": f"substringUTF8({SERVICE}, 1, {SERVICE_CHARS_MAX})",
    }
    columns = ", ".join(
        f"argMin({what}, (ObservedTimestamp, SpoolFrame, SpoolRow)) AS {name}" for name, what in shown.items()
    )
    return (
        f"SELECT count() AS found, {columns} FROM {table_of(database, schema.OTEL_LOGS)} "  # noqa: S608 - no text but ours
        f"WHERE {' AND '.join(conditions)} SETTINGS {BOUNDS}"
    )


def _ns(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND * 1000
