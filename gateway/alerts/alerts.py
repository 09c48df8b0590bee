"""Alerts as a whole: an evaluator that looks, and the webhooks that tell.

What is told is JSON:

    project   its id and slug          alert    its id, its name, and whether it fired on a match or an absence
    fired_at  when                     count    how many logs matched; of an absence 0
    first     of those that matched the first to arrive: time, level, message (cut to 1,000 characters), service
    text      the same in a sentence, as Slack's webhooks want it
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

import msgspec

from gateway.alerts import evaluator
from gateway.alerts.evaluator import Evaluator, Look
from gateway.alerts.webhook import Webhooks
from gateway.metrics import Metrics


class Store(evaluator.Store, Protocol):
    """``gateway.tenants.alerts.AlertStore``."""

    async def tell(self, alert_id: int, fired_at: datetime, outcome: str) -> None: ...


class Alerts:
    """``start`` once, then ``stop``. ``interval_s``, ``unstored_s`` and ``now`` are the evaluator's."""

    def __init__(
        self,
        store: Store,
        look: Look,
        *,
        hosts: Sequence[str],
        interval_s: float,
        unstored_s: Callable[[], float],
        metrics: Metrics,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._webhooks = Webhooks(hosts, metrics)
        self.evaluator = Evaluator(
            store, look, self._tell, unstored_s=unstored_s, metrics=metrics, interval_s=interval_s, now=now
        )

    async def start(self) -> None:
        """Looks and tells from now on."""
        await self._webhooks.start()
        self.evaluator.start()

    async def stop(self) -> None:
        """Stops both within about a second; what is not told by then is given up."""
        await asyncio.gather(self.evaluator.stop(), self._webhooks.stop())

    def _tell(self, alert: Any, fired_at: datetime, found: Any) -> None:
        body = msgspec.json.encode(message(alert, fired_at, found))
        self._webhooks.post(alert.webhook_url, body, partial(self._store.tell, alert.id, fired_at))


def message(alert: Any, fired_at: datetime, found: Any) -> dict[str, Any]:
    """What is told. ``alert``: an ``AlertRecord``; ``found``: a ``reading.matches.Found``."""
    of_project = f"{alert.name} ({alert.project_slug})"
    if alert.timeout_s is not None:
        text = f"{of_project}: no heartbeat for {alert.timeout_s} seconds"
    else:
        text = f"{of_project}: {found.count} {'log' if found.count == 1 else 'logs'}, first: {found.first.message}"
    return {
        "project": {"id": alert.project_id, "slug": alert.project_slug},
        "alert": {"id": alert.id, "name": alert.name, "kind": "match" if alert.timeout_s is None else "absence"},
        "fired_at": fired_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "count": found.count,
        "first": found.first,
        "text": text,
    }
