"""Attempts at an insert that the server did not answer: whether they may still come through."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.delivery.answers import Ambiguous, DeliveryError
from gateway.delivery.clickhouse import ClickHouse

UNANSWERED = "an attempt before it, which was not answered, may still come through"
WHOLE_SECONDS = 1.0
"""A server says in these how long it has been running."""


@dataclass(slots=True)
class Unanswered:
    """``last``: the clock when the last of them was given up, ``until``: when none is believed in any more."""

    last: float = 0.0
    until: float = 0.0

    def add(self, now: float, clickhouse: ClickHouse) -> None:
        """An attempt was given up now, or before."""
        self.last, self.until = now, now + clickhouse.under_way_s

    def note(self, error: DeliveryError, now: float, clickhouse: ClickHouse) -> None:
        """An attempt ended with this error; where that has a code the server is done with it."""
        if isinstance(error, Ambiguous) and not error.code:
            self.add(now, clickhouse)

    async def may_come_through(self, now: float, clickhouse: ClickHouse) -> bool:
        """Whether one may. What a server was doing ends with it, so not if it has started since."""
        if now < self.until:
            try:
                uptime_s = await clickhouse.uptime_s()
            except Exception:  # Whatever stands in its place may answer anything.
                return True
            if now - uptime_s - WHOLE_SECONDS > self.last:
                self.until = 0.0
        return now < self.until
