"""What all workers of a gateway stand on, made once before them and taken away after them.

The engines (our own where none are configured), the control store and its migrations, on a first start
the demo project, and ClickHouse's tables. Nothing of somebody else's server is created or altered:
what is missing there is named.

Where Postgres is configured and away, known keys work from their snapshot. Where ClickHouse is
configured and away, its tables are checked when it answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import msgspec

from gateway import demo, schema
from gateway.config import Config
from gateway.data_dir import DataDir
from gateway.delivery.answers import Ambiguous, Busy, DeliveryError
from gateway.delivery.clickhouse import ClickHouse
from gateway.engines import Engines, clickhouse_client, control_store, lacking
from gateway.tenants.errors import StoreUnavailable
from gateway.tenants.postgres import ControlStore

logger = logging.getLogger(__name__)

_TABLES_S_MAX = _STORE_S_MAX = 1.0
_UPTIME_S_MAX = 2.0
_TABLES_POLL_S = 2.0


class CannotStart(Exception):
    """Something outside has to be changed first; the text says what."""


class Foundation:
    """``start`` once, then ``stop`` once, also after a ``start`` that failed. ``directory`` is locked."""

    def __init__(self, config: Config, directory: DataDir, on_clickhouse_restart: Callable[[], None]) -> None:
        self._config = config
        self._directory = directory
        self._engines = Engines(config, directory, on_restart=on_clickhouse_restart)
        self._parts = AsyncExitStack()
        self.first: dict[str, Any] | None = None
        """The demo project's secrets, when this was a first start."""

    async def start(self) -> None:
        """Raises CannotStart, EngineFailed, ControlError."""
        self._parts.push_async_callback(self._engines.stop)
        await self._engines.start()
        self.first = await self._prepare_store()
        clickhouse = await self._parts.enter_async_context(
            clickhouse_client(self._config, self._engines.clickhouse_url)
        )
        await self._prepare_tables(clickhouse)

    async def stop(self) -> None:
        """Stops what is ours."""
        await self._parts.aclose()

    @property
    def clickhouse_url(self) -> str:
        return self._engines.clickhouse_url

    @property
    def own_postgres_dsn(self) -> str | None:
        """How to reach our own Postgres, for those who find it by the data directory; None: it is somebody else's."""
        return self._engines.postgres_dsn if self._engines.postgres else None

    def named_in(self, config: Config) -> Config:
        """The same settings with these engines as the configured ones: what a worker gets."""
        replace = msgspec.structs.replace
        return replace(
            config,
            clickhouse=replace(config.clickhouse, url=self._engines.clickhouse_url),
            postgres=replace(config.postgres, dsn=self._engines.postgres_dsn),
        )

    async def clickhouse_uptime_s(self) -> float | None:
        """How long ClickHouse has been running, in whole seconds, over a new connection; None: it does not say now."""
        # Where something else answers in its place, the answer may be anything.
        with suppress(DeliveryError, TimeoutError, LookupError, ValueError):
            async with (
                asyncio.timeout(_UPTIME_S_MAX),
                clickhouse_client(self._config, self.clickhouse_url) as clickhouse,
            ):
                return await clickhouse.uptime_s()
        return None

    async def _prepare_store(self) -> dict[str, Any] | None:
        """The control store's tables; on a first start of our own Postgres also the demo project."""
        engines = self._engines
        if engines.postgres:
            async with control_store(engines.postgres_dsn) as store:
                await store.migrate()
                token = self._config.admin.token or self._directory.admin_token()
                return await demo.create(store, self._directory, token)
        try:
            # Where keys are known, one that hangs must not keep their senders waiting.
            async with asyncio.timeout(_STORE_S_MAX if self._directory.keys.exists() else None):
                async with control_store(engines.postgres_dsn) as store:
                    await _check_migrations(store)
        except (StoreUnavailable, TimeoutError) as error:
            said = str(error) or f"no answer within {_STORE_S_MAX} s"
            logger.warning("Postgres is away, starting with the keys known from before: %s", said)
        return None

    async def _prepare_tables(self, clickhouse: ClickHouse) -> None:
        if self._engines.clickhouse:
            await clickhouse.create_tables(schema.TABLES, retention_days=self._config.clickhouse.retention_days)
        try:
            # One that takes connections and answers none must not keep senders waiting.
            async with asyncio.timeout(_TABLES_S_MAX):
                missing = await lacking(clickhouse)
        except (Busy, Ambiguous, TimeoutError) as error:
            said = str(error) or f"no answer within {_TABLES_S_MAX} s"
            logger.warning("ClickHouse is away, rows wait until it answers: %s", said)
            looking = asyncio.create_task(_look_at_tables_later(clickhouse))
            self._parts.push_async_callback(_cancelled, looking)
            return
        except DeliveryError as error:
            raise CannotStart(f"ClickHouse refuses us: {error}. Check clickhouse.url, user and password.") from error
        if missing:
            raise CannotStart("ClickHouse is not as this version needs it:\n  " + "\n  ".join(missing))


async def _check_migrations(store: ControlStore) -> None:
    pending = await store.migrate(dry_run=True)
    if pending:
        raise CannotStart(f"Postgres lacks {', '.join(pending)}: run `weir migrate`")


async def _look_at_tables_later(clickhouse: ClickHouse) -> None:
    """Says what is missing as soon as ClickHouse answers. Until that is mended its rows wait."""
    while True:
        await asyncio.sleep(_TABLES_POLL_S)
        try:
            missing = await lacking(clickhouse)
        except DeliveryError:
            continue
        for what in missing:
            logger.error("ClickHouse is not as this version needs it: %s", what)
        return


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
