"""How a project and its services are: their last heartbeats and their rates of errors (logu.ro/docs, Heartbeat).

A heartbeat is a log of level ``heartbeat``. It counts when it arrived, whatever time it bears; so does a log for the
rate of errors. A service is the row's service name, else the attribute ``service`` (Loguro's ``context.service``);
rows that name none are a service without a name.

    no heartbeat for a timeout     degraded, and down after twice the timeout
    else, of the last 30 minutes   incident from 40 % of errors on, degraded from 10 % on, else operational

The documents leave open what follows; we decided:

* Errors are logs of level error or fatal (critical); heartbeats are no logs here. Without logs the rate is 0.
* Only heartbeats of the last 24 hours count: a service that was shut down is forgotten after a day. Where there is no
  heartbeat in that time the rate of errors decides alone.
* A project is judged by its latest heartbeat and the rate over all its logs, and is at least degraded while the
  heartbeat of any of its services is late.
* OTLP lets senders say when a record was first seen; that is then its arrival. What claims to arrive more than a minute
  from now is left out, so that a wrong clock cannot vouch for the future.

One statement answers all; its bounds are those of the room.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import msgspec

from gateway import schema
from gateway.reading.logs import BOUNDS, HAS_LEVEL, Query, level_values, table_of, timestamp

TIMEOUT_S_MIN, TIMEOUT_S_MAX = 120, 300
RATE_S, REMEMBERED_S, AHEAD_S = 1800, 86_400, 60
INCIDENT_PERCENT, DEGRADED_PERCENT = 40, 10
SERVICES_MAX = 500
SERVICE = "if(ServiceName = '', LogAttributes['service'], toString(ServiceName))"
"""What a row's service is called."""
ERROR_LEVELS = frozenset(("error", "fatal"))
_NS = 10**9


class Service(msgspec.Struct, frozen=True):
    """``service``: None for rows that name none. ``last_heartbeat``: ISO 8601; None: none in 24 hours.

    ``errors`` of ``logs`` came in the last 30 minutes; ``error_rate`` is from 0 to 1.
    """

    service: str | None
    status: str
    last_heartbeat: str | None
    errors: int
    logs: int
    error_rate: float


class Status(msgspec.Struct, frozen=True):
    """The project as a whole, and its services: the longest silent first, those without heartbeats last.

    ``has_more``: there are more services than these.
    """

    project_id: str
    status: str
    checked_at: str
    timeout_s: int
    last_heartbeat: str | None
    errors: int
    logs: int
    error_rate: float
    services: list[Service]
    has_more: bool


class StatusReader:
    """Reads ``database`` through ``ask``, ``LogReader.ask``; what that raises goes on to the caller."""

    def __init__(self, ask: Query, database: str, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._ask = ask
        self._database = database
        self._now_ns = now_ns

    async def status(self, project_id: str, timeout_s: int) -> Status:
        """How a project is. ``timeout_s``: the longest a service may be silent."""
        now_ns = self._now_ns()
        rows = await self._ask(
            status_text(self._database),
            {
                "project_id": project_id,
                "heartbeats_since_ns": now_ns - REMEMBERED_S * _NS,
                "logs_since_ns": now_ns - RATE_S * _NS,
                "until_ns": now_ns + AHEAD_S * _NS,
                "limit": SERVICES_MAX + 2,
                **level_values(ERROR_LEVELS),
            },
        )
        whole = next((row for row in rows if row["is_whole"]), {"heartbeat_ns": 0, "errors": 0, "logs": 0})
        services = [_service(row, now_ns, timeout_s) for row in rows if not row["is_whole"]]
        found = judged(whole["heartbeat_ns"], whole["errors"], whole["logs"], now_ns=now_ns, timeout_s=timeout_s)
        late = any(is_late(row["heartbeat_ns"], now_ns, timeout_s) for row in rows)
        return Status(
            project_id=project_id,
            status="degraded" if late and found == "operational" else found,
            checked_at=timestamp(now_ns),
            timeout_s=timeout_s,
            services=services[:SERVICES_MAX],
            has_more=len(services) > SERVICES_MAX,
            **_figures(whole),
        )


def judged(heartbeat_ns: int, errors: int, logs: int, *, now_ns: int, timeout_s: int) -> str:
    """``operational``, ``degraded``, ``incident`` or ``down``. ``heartbeat_ns`` is the last one's arrival, 0: none."""
    if is_late(heartbeat_ns, now_ns, timeout_s):
        return "down" if is_late(heartbeat_ns, now_ns, 2 * timeout_s) else "degraded"
    if logs and 100 * errors >= INCIDENT_PERCENT * logs:
        return "incident"
    return "degraded" if logs and 100 * errors >= DEGRADED_PERCENT * logs else "operational"


def is_late(heartbeat_ns: int, now_ns: int, timeout_s: int) -> bool:
    """Whether there were heartbeats, and none for longer than the timeout."""
    return bool(heartbeat_ns) and now_ns - heartbeat_ns > timeout_s * _NS


@cache
def status_text(database: str) -> str:
    """The statement: a row for the whole and one for each service."""
    arrived = "toUnixTimestamp64Nano(ObservedTimestamp)"
    is_log = "EventName != 'heartbeat' AND ObservedTimestamp >= fromUnixTimestamp64Nano({logs_since_ns:Int64})"
    return (
        f"SELECT {SERVICE} AS service, grouping(service) AS is_whole, "  # noqa: S608 - no text but ours
        f"maxIf({arrived}, EventName = 'heartbeat') AS heartbeat_ns, "
        f"countIf({is_log}) AS logs, countIf({is_log} AND {HAS_LEVEL}) AS errors "
        f"FROM {table_of(database, schema.OTEL_LOGS)} WHERE ProjectId = {{project_id:String}} "
        "AND ObservedTimestamp >= fromUnixTimestamp64Nano({heartbeats_since_ns:Int64}) "
        "AND ObservedTimestamp <= fromUnixTimestamp64Nano({until_ns:Int64}) "
        "AND (EventName = 'heartbeat' OR ObservedTimestamp >= fromUnixTimestamp64Nano({logs_since_ns:Int64})) "
        "GROUP BY GROUPING SETS ((), (service)) "
        "ORDER BY is_whole DESC, heartbeat_ns = 0, heartbeat_ns, logs DESC, service LIMIT {limit:UInt32} "
        f"SETTINGS {BOUNDS}"
    )


def _service(row: Mapping[str, Any], now_ns: int, timeout_s: int) -> Service:
    found = judged(row["heartbeat_ns"], row["errors"], row["logs"], now_ns=now_ns, timeout_s=timeout_s)
    return Service(service=row["service"] or None, status=found, **_figures(row))


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "last_heartbeat": timestamp(row["heartbeat_ns"]) if row["heartbeat_ns"] else None,
        "errors": row["errors"],
        "logs": row["logs"],
        "error_rate": row["errors"] / row["logs"] if row["logs"] else 0.0,
    }
