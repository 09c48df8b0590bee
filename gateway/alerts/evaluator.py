"""When alerts fire: looks every few seconds at what arrived, and says so once.

An alert fires on the first log that matches it; one that watches for heartbeats fires when none came for its
time-out. For its cool-down afterwards it is silent: what matches meanwhile is never told, an absence that
goes on is told again when it is over.

Of all gateway processes one evaluates, which holds a lease in Postgres. Should two believe that they do, it is the
change of ``last_fired_at`` from the value both have seen that only one of them can make.

What is known is what is stored, which may be later than it arrived. So a look goes back further than the last
one, and over all rows that this process has not stored yet. And an absence is concluded only

* from a good answer, of a time by whose end everything that arrived here was stored,
* after looking for a whole time-out without a failure or a pause: when ClickHouse, Postgres or this
  process were away, nobody knows what else was, and a heartbeat may still be on its way.

While ClickHouse or Postgres are away nothing fires; what matched meanwhile does afterwards, if it arrived
in the last 15 minutes.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from gateway.metrics import Metrics

logger = logging.getLogger(__name__)

LOOKS_AT_ONCE = 4
LOOK_BACK = timedelta(minutes=15)
"""The longest time a look covers."""
OVERLAP = timedelta(minutes=2)
"""How late a row may be stored at another gateway, or be seen after its sender saw it, to be found all the same."""
UNSTORED_MAX = timedelta(minutes=5)
"""Rows that wait longer than this leave absence unknown."""
_LEASE_S_MIN = 30.0
_STOP_S = 0.5


class Alert(Protocol):
    """``gateway.tenants.records.AlertRecord``, as far as it is looked at here."""

    @property
    def id(self) -> int: ...
    @property
    def timeout_s(self) -> int | None:
        """Set of an alert on absence."""
        ...

    @property
    def cooldown_s(self) -> int: ...
    @property
    def created_at(self) -> datetime: ...
    @property
    def last_fired_at(self) -> datetime | None: ...


class Found(Protocol):
    """``gateway.reading.matches.Found``."""

    @property
    def count(self) -> int: ...


class Store(Protocol):
    """``gateway.tenants.alerts.AlertStore``. Everything may raise."""

    async def watched(self, instance: uuid.UUID, lease_s: float) -> Sequence[Any] | None: ...
    async def leave(self, instance: uuid.UUID) -> None: ...
    async def fire(self, alert: Any, at: datetime) -> bool: ...


Look = Callable[[Any, datetime, datetime], Awaitable[Any]]
"""What arrived for an alert after the first moment and not after the second; ``MatchReader.find``. May raise."""
Tell = Callable[[Any, datetime, Any], None]
"""Sends word of an alert that fired at a moment because of what was found; returns at once."""


class RowsWait(Exception):
    """Rows have waited so long to be stored that nobody can say what did not arrive."""


@dataclass(slots=True)
class _Watch:
    """Looks at one alert without a failure or a pause: since when, when last, and what needs no looking at again."""

    began: datetime
    last: datetime
    settled: datetime


class Evaluator:
    """``unstored_s``: how old the oldest row is that this process has accepted and not yet stored, in seconds."""

    def __init__(
        self,
        store: Store,
        look: Look,
        tell: Tell,
        *,
        unstored_s: Callable[[], float],
        metrics: Metrics,
        interval_s: float,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store, self._look, self._tell = store, look, tell
        self._unstored_s = unstored_s
        self._metrics = metrics
        self._interval_s = interval_s
        self._now = now
        self._instance = uuid.uuid4()
        self._watches: dict[int, _Watch] = {}
        self._failing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Looks from now on, every ``interval_s``."""
        self._task = asyncio.create_task(self._run(), name="alerts")

    async def stop(self) -> None:
        """Stops looking and leaves it to another process."""
        if self._task is None:
            return
        self._task.cancel()
        # A Postgres that hangs must not hold up the stop.
        _, hanging = await asyncio.wait({self._task}, timeout=_STOP_S)
        if not hanging:
            with suppress(Exception):
                async with asyncio.timeout(_STOP_S):
                    await self._store.leave(self._instance)

    async def look(self) -> None:
        """Looks once at every alert that is due, unless another process does. Never raises but for cancellation."""
        try:
            alerts = await self._store.watched(self._instance, max(_LEASE_S_MIN, 3 * self._interval_s))
        except Exception as error:  # outlives its own mistakes; texts may quote what a person has written
            self._failed("Postgres", error)
            return
        if alerts is None:
            self._watches.clear()
            return
        there = {alert.id for alert in alerts}
        self._watches = {alert_id: watch for alert_id, watch in self._watches.items() if alert_id in there}
        turns = iter(alerts)
        done = await asyncio.gather(*(self._take_turns(turns) for _ in range(LOOKS_AT_ONCE)))
        if self._failing and all(done):
            self._failing = False
            logger.info("alerts are evaluated again")

    async def _run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(self._interval_s)

    async def _take_turns(self, turns: Iterator[Any]) -> bool:
        good = True
        for alert in turns:
            try:
                await self._evaluate(alert)
                self._metrics.alert_evaluations.add(1, "good")
            except Exception as error:  # the same
                self._watches.pop(alert.id, None)
                self._failed(f"alert {alert.id}", error)
                good = False
        return good

    async def _evaluate(self, alert: Alert) -> None:
        now = self._now()
        rests = alert.last_fired_at is not None and now < alert.last_fired_at + timedelta(seconds=alert.cooldown_s)
        if alert.timeout_s is None:
            found = None if rests else await self._matched(alert, now)
        else:
            # Also while it rests: how long was looked must be known when it is over.
            found = await self._absent(alert, now, timedelta(seconds=alert.timeout_s))
        if found is not None and not rests and await self._store.fire(alert, now):
            self._metrics.alerts_fired.add(1)
            self._tell(alert, now, found)

    async def _matched(self, alert: Alert, now: datetime) -> Found | None:
        """What matches and was not told; None: nothing."""
        watch = self._watches.get(alert.id)
        settled = watch.settled if watch else now - LOOK_BACK
        since = max(now - LOOK_BACK, alert.created_at, settled - OVERLAP)
        if alert.last_fired_at is not None:
            since = max(since, alert.last_fired_at + timedelta(seconds=alert.cooldown_s))
        # Asked before looking: a row that is stored meanwhile may be missed by the look, and is by none after.
        stored_until = now - timedelta(seconds=self._unstored_s())
        found: Found = await self._look(alert, since, now)
        watch = self._watches.setdefault(alert.id, _Watch(now, now, settled))
        watch.last = now
        # After an outage other gateways take a while to store what they hold.
        if now - watch.began >= OVERLAP:
            watch.settled = stored_until
        return found if found.count else None

    async def _absent(self, alert: Alert, now: datetime, allowed: timedelta) -> Found | None:
        """What was found, when that is nothing and nothing can have been missed; else None."""
        unstored = timedelta(seconds=self._unstored_s())
        if unstored > UNSTORED_MAX:
            raise RowsWait
        found: Found = await self._look(alert, now - unstored - allowed, now)
        watch = self._watches.get(alert.id)
        if watch is None or now - watch.last > allowed / 2:
            watch = self._watches[alert.id] = _Watch(now, now, now)
        watch.last = now
        return None if found.count or now - watch.began < allowed else found

    def _failed(self, what: str, error: Exception) -> None:
        self._metrics.alert_evaluations.add(1, "failed")
        if not self._failing:
            self._failing = True
            logger.warning("alerts are not evaluated: %s: %s", what, type(error).__name__)
