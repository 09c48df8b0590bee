"""ClickHouse and Postgres: the configured ones, else Weir's own, started here and stopped here.

A command that runs beside a gateway uses that gateway's engines; when none runs, it starts its own
for the moment. The lock of the data directory decides which.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from gateway import schema
from gateway.config import Config
from gateway.data_dir import DataDir, DataDirBusy
from gateway.delivery.answers import Operator
from gateway.delivery.clickhouse import ClickHouse
from gateway.embedded.clickhouse import EmbeddedClickHouse
from gateway.embedded.postgres import EmbeddedPostgres
from gateway.tenants.postgres import ControlStore

_WAIT_S = 15.0
_POLL_S = 0.1
_UNKNOWN_DATABASE = 81


class Engines:
    """``clickhouse_url`` and ``postgres_dsn``, valid from ``start`` to ``stop``."""

    def __init__(
        self,
        config: Config,
        directory: DataDir,
        *,
        clickhouse: bool = True,
        on_restart: Callable[[], None] | None = None,
    ) -> None:
        self.clickhouse_url = config.clickhouse.url
        self.postgres_dsn = config.postgres.dsn
        self.clickhouse: EmbeddedClickHouse | None = None
        self.postgres: EmbeddedPostgres | None = None
        if clickhouse and not config.clickhouse.url:
            self.clickhouse = EmbeddedClickHouse(
                directory.path, port=config.clickhouse.embedded_port, on_restart=on_restart
            )
        if not config.postgres.dsn:
            self.postgres = EmbeddedPostgres(directory.path)

    async def start(self) -> None:
        """Starts what is ours, both at once: each takes about a second. Raises EngineFailed."""
        try:
            async with asyncio.TaskGroup() as starting:
                clickhouse = starting.create_task(self.clickhouse.start()) if self.clickhouse else None
                postgres = starting.create_task(self.postgres.start()) if self.postgres else None
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        if clickhouse:
            self.clickhouse_url = clickhouse.result()
        if postgres:
            self.postgres_dsn = postgres.result()

    async def stop(self) -> None:
        """Stops what is ours, both at once. Also right after a ``start`` that failed."""
        engines = [engine for engine in (self.clickhouse, self.postgres) if engine]
        for outcome in await asyncio.gather(*(engine.stop() for engine in engines), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome


@asynccontextmanager
async def reach(config: Config, *, clickhouse: bool) -> AsyncIterator[Engines]:
    """The engines for one command; ClickHouse only when asked for. Raises DataDirBusy when they cannot be had."""
    directory = DataDir(config.data_path)
    engines = Engines(config, directory, clickhouse=clickhouse)
    if not engines.clickhouse and not engines.postgres:
        yield engines
        return
    if await _found(engines, directory):
        yield engines
        return
    try:
        await engines.start()
        yield engines
    finally:
        await engines.stop()
        directory.unlock()


async def _found(engines: Engines, directory: DataDir) -> bool:
    """True with the running gateway's addresses filled in; False with the directory locked for us."""
    deadline = asyncio.get_running_loop().time() + _WAIT_S
    while True:
        try:
            directory.lock()
        except DataDirBusy:
            listen = directory.read_json(directory.listen)
            # A gateway writes both files when it is ready; until then it is starting or stopping.
            if listen is not None and (not engines.postgres or directory.dsn.exists()):
                engines.clickhouse_url = engines.clickhouse_url or listen["clickhouse"]
                engines.postgres_dsn = engines.postgres_dsn or directory.dsn.read_text("utf-8").strip()
                return True
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(_POLL_S)
        else:
            return False


@asynccontextmanager
async def clickhouse_client(config: Config, url: str) -> AsyncIterator[ClickHouse]:
    """A client to the ClickHouse at ``url``, with the configured account."""
    clickhouse = ClickHouse(
        url,
        user=config.clickhouse.user,
        password=config.clickhouse.password,
        database=config.clickhouse.database,
        insert_timeout_s=config.delivery.insert_timeout_ms / 1000,
    )
    await clickhouse.start()
    try:
        yield clickhouse
    finally:
        await clickhouse.close()


async def lacking(clickhouse: ClickHouse) -> list[str]:
    """What the tables lack, a sentence each. Raises DeliveryError when it cannot be asked."""
    try:
        return await clickhouse.missing_columns(schema.TABLES)
    except Operator as error:
        if error.code != _UNKNOWN_DATABASE:
            raise
        return [f"database {clickhouse.database} is not there: run `weir migrate`"]


async def migrate_tables(config: Config, clickhouse: ClickHouse) -> None:
    """Creates what is not there and adds what tables lack: columns, small indexes, and the memory of insert tokens.

    A column of another type stays as it is: only a person can say what shall become of its rows.
    """
    await clickhouse.create_tables(schema.TABLES, retention_days=config.clickhouse.retention_days)
    there = await clickhouse.query(
        "SELECT table, name FROM system.columns WHERE database = {database:String}", {"database": clickhouse.database}
    )
    names = {(row["table"], row["name"]) for row in there}
    for table in schema.TABLES:
        where = f"`{clickhouse.database}`.`{table.name}`"
        place = "FIRST"
        for column in table.columns:
            if (table.name, column.name) not in names:
                what = f"`{column.name}` {column.type} COMMENT {schema.quote(column.meaning)} {place}"
                await clickhouse.execute(f"ALTER TABLE {where} ADD COLUMN IF NOT EXISTS {what}")
            place = f"AFTER `{column.name}`"
        for index in table.indexes:
            # The others are dear, and an operator may have left them out.
            if index.text.startswith("minmax"):
                what = f"{index.name} {index.expression} TYPE {index.text}"
                await clickhouse.execute(f"ALTER TABLE {where} ADD INDEX IF NOT EXISTS {what}")
    forgetful = await clickhouse.query(
        "SELECT name FROM system.tables WHERE database = {database:String} AND name IN {tables:Array(String)} "
        "AND engine = 'MergeTree' AND engine_full NOT LIKE '%non_replicated_deduplication_window%'",
        {"database": clickhouse.database, "tables": [table.name for table in schema.TABLES]},
    )
    for row in forgetful:
        where = f"`{clickhouse.database}`.`{row['name']}`"
        await clickhouse.execute(f"ALTER TABLE {where} MODIFY SETTING non_replicated_deduplication_window = 10000")


@asynccontextmanager
async def control_store(dsn: str) -> AsyncIterator[ControlStore]:
    """The control store at ``dsn``. Raises StoreUnavailable when it is away."""
    store = await ControlStore.connect(dsn)
    try:
        yield store
    finally:
        await store.close()
