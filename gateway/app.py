"""The composition root: builds each part once, in floor order, and stops them in reverse.

Start: the data directory's lock, the engines (our own where none are configured), the control store
and its migrations, keys, the client to ClickHouse and the tables, delivery, the admin server, and the
ingest server last, so that nobody is let in before there is somewhere to put what they send.

Stop: not ready, the configured delay, no new requests, those in flight are answered, everything
accepted is stored, then the rest in reverse.

Where Postgres is configured and away, known keys work from their snapshot. Where ClickHouse is
configured and away, rows wait in the rings, and its tables are checked when it answers.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import signal
from contextlib import AsyncExitStack, suppress
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from gateway import demo, schema
from gateway.config import STOP_MS_MAX, Config
from gateway.data_dir import DataDir
from gateway.datasets.catalog import Catalog
from gateway.delivery.clickhouse import Ambiguous, Busy, ClickHouse, DeliveryError
from gateway.delivery.delivery import Delivery
from gateway.delivery.frames import FrameNumbers
from gateway.delivery.settings import Settings
from gateway.dialects import NEVER_RETRYING, registry
from gateway.engines import Engines, clickhouse_client, control_store, lacking
from gateway.http import reads, status
from gateway.http.admission import Admission
from gateway.http.api import BODY_BYTES_MAX, Api, ApiRoute
from gateway.http.datasets import routes as dataset_routes
from gateway.http.ingest import Ingest
from gateway.http.probes import Probes
from gateway.http.server import AdminServer, IngestServer
from gateway.metrics import Metrics
from gateway.reading.logs import LogReader
from gateway.reading.status import StatusReader
from gateway.tenants.datasets import DatasetStore
from gateway.tenants.gate import Gate
from gateway.tenants.keys import Keys
from gateway.tenants.pat_store import PatStore
from gateway.tenants.pats import Pats
from gateway.tenants.postgres import ControlStore, StoreUnavailable
from gateway.tenants.quotas import Quotas
from gateway.tenants.rates import Rates

logger = logging.getLogger(__name__)

_TABLES_POLL_S = 2.0
_PROBE_STOP_S = 0.2


class CannotStart(Exception):
    """Something outside has to be changed first; the text says what."""


class App:
    """A gateway. ``start`` once, then ``stop`` once, also after a ``start`` that failed."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.directory = DataDir(config.data_path)
        self.metrics = Metrics()
        self.listen: dict[str, Any] = {}
        self._not_ready = "starting"
        self._parts = AsyncExitStack()
        self._lost = 0

    async def start(self) -> str:
        """Starts everything; returns what to tell the person who started it.

        Raises CannotStart, DataDirBusy, EngineFailed, ControlError, OSError (an address is taken).
        """
        config, directory, parts = self.config, self.directory, self._parts
        directory.lock()
        parts.callback(directory.unlock)
        directory.forget_addresses()
        engines = Engines(config, directory, on_restart=lambda: self.metrics.clickhouse_restarts.add(1))
        parts.push_async_callback(engines.stop)
        await engines.start()
        first = await self._prepare_store(engines)
        gate = await self._start_gate(engines.postgres_dsn)
        clickhouse = await parts.enter_async_context(clickhouse_client(config, engines.clickhouse_url))
        await self._prepare_tables(engines, clickhouse)
        delivery = await self._start_delivery(clickhouse)
        admin = AdminServer(
            config.admin.listen, Probes({"gateway": lambda: self._not_ready}, self.metrics), config.limits
        )
        parts.push_async_callback(admin.stop, _PROBE_STOP_S)
        admin_addresses = await admin.start()
        store = await ControlStore.connect(engines.postgres_dsn, at_once=False)
        parts.push_async_callback(store.close)
        datasets = DatasetStore(store)
        catalog = await self._start_catalog(datasets, delivery)
        dialects = registry(config.limits, config.ndjson, catalog.find)
        house = self._house(gate, delivery)
        reader = LogReader(clickhouse.query, config.clickhouse.database)
        routes: list[ApiRoute] = [
            *dataset_routes(datasets, catalog, clickhouse),
            *reads.routes(reader, store),
            *status.routes(StatusReader(reader.ask, config.clickhouse.database), store),
        ]
        # Of its own: a query may wait for ClickHouse, and must take no sender's place meanwhile.
        api_requests = config.limits.api_requests_in_flight_max
        api_admission = Admission(requests_max=api_requests, bytes_max=api_requests * BODY_BYTES_MAX)
        api = Api(routes, Pats(PatStore(store)), limits=config.limits, admission=api_admission)
        ingest = IngestServer(config.ingest.listen, house, dialects, api)
        parts.push_async_callback(ingest.stop, config.shutdown.requests_ms_max / 1000)
        self.listen = {
            "ingest": await ingest.start(),
            "admin": admin_addresses,
            "clickhouse": _without_account(engines.clickhouse_url),
        }
        parts.callback(directory.forget_addresses)
        if engines.postgres:
            directory.write(directory.dsn, engines.postgres_dsn + "\n")
        if first:
            demo.keep(first, directory)
        directory.write(directory.listen, json.dumps(self.listen) + "\n", mode=0o644)
        self._not_ready = ""
        told = demo.banner(self.listen, directory, database=config.clickhouse.database)
        if first:
            names = {dialect.name for dialect in dialects}
            told += "\n\n" + demo.lessons(first, self.listen, names, database=config.clickhouse.database)
        return told

    async def stop(self) -> int:
        """Stops everything that was started; returns how many accepted rows could not be stored."""
        was_ready = not self._not_ready
        self._not_ready = "shutting down"
        if was_ready:
            await asyncio.sleep(self.config.shutdown.delay_ms / 1000)
        await self._parts.aclose()
        return self._lost

    async def _prepare_store(self, engines: Engines) -> dict[str, Any] | None:
        """The control store's tables; on a first start of our own Postgres also the demo project."""
        try:
            async with control_store(engines.postgres_dsn) as store:
                if engines.postgres:
                    await store.migrate()
                    return await demo.create(
                        store, self.directory, self.config.admin.token or self.directory.admin_token()
                    )
                await _check_migrations(store)
        except StoreUnavailable as error:
            if engines.postgres:
                raise
            logger.warning("Postgres is away, starting with the keys known from before: %s", error)
        return None

    async def _start_gate(self, dsn: str) -> Gate:
        config, folder = self.config, self.directory.path
        rates = Rates(
            config.keys.requests_per_minute,
            by_dialect=dict.fromkeys(NEVER_RETRYING, config.keys.requests_per_minute_no_retry),
        )
        keys = Keys(
            dsn,
            snapshot_path=folder / "keys.snapshot",
            poll_s=config.keys.poll_ms / 1000,
            on_table=rates.keep,
        )
        quotas = Quotas(dsn, kept_path=folder / "usage.snapshot", settle_s=config.quotas.settle_ms / 1000)
        for part in (keys, quotas):
            self._parts.push_async_callback(part.stop)
        await asyncio.gather(keys.start(), quotas.start())
        self._observe(keys, quotas)
        return Gate(keys, rates, quotas)

    async def _prepare_tables(self, engines: Engines, clickhouse: ClickHouse) -> None:
        if engines.clickhouse:
            await clickhouse.create_tables(schema.TABLES, retention_days=self.config.clickhouse.retention_days)
        try:
            missing = await lacking(clickhouse)
        except (Busy, Ambiguous) as error:
            logger.warning("ClickHouse is away, rows wait in memory until it answers: %s", error)
            looking = asyncio.create_task(_look_at_tables_later(clickhouse))
            self._parts.push_async_callback(_cancelled, looking)
            return
        except DeliveryError as error:
            raise CannotStart(f"ClickHouse refuses us: {error}. Check clickhouse.url, user and password.") from error
        if missing:
            raise CannotStart("ClickHouse is not as this version needs it:\n  " + "\n  ".join(missing))

    async def _start_delivery(self, clickhouse: ClickHouse) -> Delivery:
        settings = self.config.delivery
        frames = FrameNumbers(self.directory.path / "frames")
        self._parts.callback(frames.close)
        delivery = Delivery(
            schema.TABLES,
            clickhouse,
            Settings(
                shards=settings.shards,
                ring_bytes_max=settings.ring_bytes_max,
                block_bytes=settings.block_bytes,
                block_age_ms=settings.block_age_ms,
                batch_rows=settings.batch_rows,
                batch_bytes=settings.batch_bytes,
                batch_age_ms=settings.batch_age_ms,
                inserts_in_flight=settings.inserts_in_flight,
                retry_first_ms=settings.retry_first_ms,
                retry_max_ms=settings.retry_max_ms,
            ),
            frames=frames,
            metrics=self.metrics,
        )
        await delivery.start()
        self._parts.push_async_callback(self._stop_delivery, delivery)
        return delivery

    async def _start_catalog(self, store: DatasetStore, delivery: Delivery) -> Catalog:
        catalog = Catalog(store.change, store.all, delivery.add_table, poll_s=self.config.keys.poll_ms / 1000)
        self._parts.push_async_callback(catalog.stop)
        await catalog.start()
        return catalog

    async def _stop_delivery(self, delivery: Delivery) -> None:
        self._lost = sum((await delivery.stop(self.config.shutdown.flush_ms_max / 1000)).values())

    def _observe(self, keys: Keys, quotas: Quotas) -> None:
        self.metrics.keys_loaded.read = lambda: {(): len(keys)}
        self.metrics.keys_age_seconds.read = lambda: {(): keys.age_s}
        self.metrics.key_store_failures.read = lambda: {(): keys.store_failures}
        self.metrics.key_tables_refused.read = lambda: {(): keys.empty_tables_refused}
        self.metrics.usage_store_failures.read = lambda: {(): quotas.store_failures}
        self.metrics.usage_unsettled_records.read = lambda: {(): quotas.unsettled_records}

    def _house(self, gate: Gate, delivery: Delivery) -> Ingest:
        limits = self.config.limits
        return Ingest(
            gate=gate,
            delivery=delivery,
            admission=Admission(
                requests_max=limits.requests_in_flight_max,
                bytes_max=limits.bytes_in_flight_max,
                project_requests_max=limits.project_requests_in_flight_max,
            ),
            limits=limits,
            metrics=self.metrics,
            retention_s=self.config.clickhouse.retention_days * 86_400,
        )


async def serve(config: Config) -> bool:
    """Runs a gateway until SIGTERM, SIGINT or SIGHUP; true when it stopped in order and nothing was lost."""
    _allow_open_files()
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A terminal that is closed hangs up; under nohup that is to be ignored.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, asked_to_stop.set)
    app = App(config)
    starting = asyncio.create_task(app.start())
    waiting = asyncio.create_task(asked_to_stop.wait())
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            print(starting.result(), flush=True)
            await waiting
            logger.info("stopping")
    finally:
        await _cancelled(starting)
        await _cancelled(waiting)
        # What hangs dies with us: our engines notice that we are gone.
        try:
            lost = await asyncio.wait_for(app.stop(), STOP_MS_MAX / 1000)
        except TimeoutError:
            logger.error("stopping took longer than %d ms: ending without order", STOP_MS_MAX)  # noqa: TRY400
            return False
    if starting.done() and not starting.cancelled() and not lost:
        logger.info("stopped; everything accepted is in ClickHouse")
    return not lost


def _allow_open_files() -> None:
    """As many as the system lets us: a connection is a file, and the usual 1,024 are soon gone."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task


def _without_account(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
