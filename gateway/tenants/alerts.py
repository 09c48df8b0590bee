"""Alerts in Postgres: what they watch for, which gateway evaluates them, and when they last fired.

Every SQL statement about alerts is here; the connections are the control store's, and so are the
errors: AlreadyThere, StoreUnavailable.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from gateway.tenants.errors import AlreadyThere
from gateway.tenants.postgres import ControlStore
from gateway.tenants.records import AlertRecord

PER_PROJECT_MAX, IN_ALL_MAX = 100, 10_000
_ID_MAX = 2**31 - 1

_COLUMNS = """
    alerts.id, project_id, projects.slug AS project_slug, alerts.name, levels, contains, context_key, context_value,
    timeout_s, cooldown_s, webhook_url, enabled, alerts.created_at, last_fired_at, last_outcome
"""
_ALERTS = f"SELECT {_COLUMNS} FROM alerts JOIN projects ON projects.id = project_id"  # noqa: S608 - the text above
_LIST = _ALERTS + " WHERE project_id = $1 ORDER BY alerts.id"
_ENABLED = _ALERTS + f" WHERE enabled ORDER BY alerts.id LIMIT {IN_ALL_MAX}"
# One after the other in a project, so that none passes the limit.
_LOCK_PROJECT = "SELECT FROM projects WHERE id = $1 FOR UPDATE"
_COUNT = "SELECT count(*) FILTER (WHERE project_id = $1) AS here, count(*) AS in_all FROM alerts"
_CREATE = """
    INSERT INTO alerts (project_id, name, levels, contains, context_key, context_value, timeout_s, cooldown_s,
                        webhook_url, enabled)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING id
"""
_READ = _ALERTS + " WHERE alerts.id = $1"
_DELETE = "DELETE FROM alerts WHERE project_id = $1 AND id = $2 RETURNING id"
_WATCH = """
    INSERT INTO alert_watch (instance, expires_at) VALUES ($1, clock_timestamp() + $2)
    ON CONFLICT (only_row) DO UPDATE SET instance = EXCLUDED.instance, expires_at = EXCLUDED.expires_at
    WHERE alert_watch.instance = EXCLUDED.instance OR alert_watch.expires_at < clock_timestamp()
    RETURNING instance
"""
_LEAVE = "DELETE FROM alert_watch WHERE instance = $1"
_FIRE = """
    UPDATE alerts SET last_fired_at = $3, last_outcome = ''
    WHERE id = $1 AND enabled AND last_fired_at IS NOT DISTINCT FROM $2 RETURNING id
"""
_TELL = "UPDATE alerts SET last_outcome = $3 WHERE id = $1 AND last_fired_at = $2"


class AlertStore:
    """The alerts of a control store."""

    def __init__(self, store: ControlStore) -> None:
        self._store = store

    async def list(self, project_id: str) -> list[AlertRecord]:
        """A project's alerts, oldest first."""
        async with self._store.connection() as connection:
            return [_alert(row) for row in await connection.fetch(_LIST, uuid.UUID(project_id))]

    async def create(
        self,
        project_id: str,
        *,
        name: str,
        webhook_url: str,
        levels: tuple[str, ...] = (),
        contains: str = "",
        context_key: str = "",
        context_value: str = "",
        timeout_s: int | None = None,
        cooldown_s: int = 300,
        enabled: bool = True,
    ) -> AlertRecord:
        """A new alert of a project that is there. AlreadyThere: there are as many as there may be."""
        owner = uuid.UUID(project_id)
        settings = (name, levels, contains, context_key, context_value, timeout_s, cooldown_s, webhook_url, enabled)
        async with self._store.transaction() as connection:
            await connection.execute(_LOCK_PROJECT, owner)
            there = await connection.fetchrow(_COUNT, owner)
            if there["here"] >= PER_PROJECT_MAX:
                raise AlreadyThere(f"the project has {PER_PROJECT_MAX} alerts, which is the most: delete one first")
            if there["in_all"] >= IN_ALL_MAX:
                raise AlreadyThere(
                    f"all projects together have {IN_ALL_MAX} alerts, which is the most: delete one first"
                )
            alert_id = await connection.fetchval(_CREATE, owner, *settings)
            return _alert(await connection.fetchrow(_READ, alert_id))

    async def delete(self, project_id: str, alert_id: int) -> bool:
        """Forgets an alert for good. False: the project has none with this id."""
        if not 0 < alert_id <= _ID_MAX:
            return False
        async with self._store.connection() as connection:
            return await connection.fetchval(_DELETE, uuid.UUID(project_id), alert_id) is not None

    async def watched(self, instance: uuid.UUID, lease_s: float) -> Sequence[AlertRecord] | None:
        """The enabled alerts of all projects, for ``instance`` to evaluate; None while another one does.

        Whoever asks first evaluates, for ``lease_s`` and for as long as it asks again before those are over.
        """
        async with self._store.connection() as connection:
            if await connection.fetchval(_WATCH, instance, timedelta(seconds=lease_s)) is None:
                return None
            return [_alert(row) for row in await connection.fetch(_ENABLED)]

    async def leave(self, instance: uuid.UUID) -> None:
        """Leaves evaluating to another one, at once."""
        async with self._store.connection() as connection:
            await connection.execute(_LEAVE, instance)

    async def fire(self, alert: AlertRecord, at: datetime) -> bool:
        """True for one alone of all who saw the alert as it is and fire it now."""
        async with self._store.connection() as connection:
            return await connection.fetchval(_FIRE, alert.id, alert.last_fired_at, at) is not None

    async def tell(self, alert_id: int, fired_at: datetime, outcome: str) -> None:
        """Keeps what became of telling of an alert, unless it has fired again."""
        async with self._store.connection() as connection:
            await connection.execute(_TELL, alert_id, fired_at, outcome)


def _alert(row: Any) -> AlertRecord:
    return AlertRecord(**{**row, "project_id": str(row["project_id"]), "levels": tuple(row["levels"])})
