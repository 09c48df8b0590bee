"""The composition root of a worker: builds each part once, in floor order, and stops them in reverse.

Start: keys, the client to ClickHouse, delivery, the rest, and the ingest server last, so that nobody is
let in before there is somewhere to put what they send. Engines, tables and migrations are there
already: ``foundation.py``.

Stop: not ready, the configured delay, no new requests, those in flight are answered, everything
accepted is stored, then the rest in reverse.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack

from gateway import schema
from gateway.alerts.alerts import Alerts
from gateway.config import Config
from gateway.data_dir import DataDir
from gateway.datasets.catalog import Catalog
from gateway.delivery.adoption import adopt
from gateway.delivery.block import Durability
from gateway.delivery.clickhouse import ClickHouse
from gateway.delivery.delivery import Delivery
from gateway.delivery.frames import FrameNumbers
from gateway.delivery.idempotency import Idempotency
from gateway.delivery.settings import Settings
from gateway.dialects import NEVER_RETRYING, registry
from gateway.engines import clickhouse_client
from gateway.http import reads, status, streamlogia_reads
from gateway.http.admission import Admission
from gateway.http.alerts import routes as alert_routes
from gateway.http.api import BODY_BYTES_MAX, Api, ApiRoute
from gateway.http.datasets import routes as dataset_routes
from gateway.http.ingest import Ingest
from gateway.http.listener import LINGER_S
from gateway.http.server import IngestServer
from gateway.metrics import Metrics
from gateway.reading.logs import LogReader
from gateway.reading.matches import MatchReader
from gateway.reading.status import StatusReader
from gateway.reading.streamlogia import StreamlogiaReader
from gateway.tenants.alerts import AlertStore
from gateway.tenants.datasets import DatasetStore
from gateway.tenants.gate import Gate
from gateway.tenants.keys import Keys
from gateway.tenants.pat_store import PatStore
from gateway.tenants.pats import Pats
from gateway.tenants.postgres import ControlStore
from gateway.tenants.quotas import Quotas
from gateway.tenants.rates import Buckets, Rates

logger = logging.getLogger(__name__)

_PATIENT_LINGER_S = 5.0
"""How long a worker that is being replaced waits for one more request on a connection: senders' usual interval."""


class App:
    """A worker's gateway. ``start`` once, then ``stop`` once, also after a ``start`` that failed.

    ``config`` names the engines. ``slots``: the first is this worker's own; what others hold is to be
    finished. ``listen``: the sockets where senders connect. ``buckets``, ``claims``: memories of the keys' rates and of
    idempotency keys that are shared with the other workers.
    """

    def __init__(
        self,
        config: Config,
        *,
        slots: Sequence[int],
        listen: Sequence[socket.socket],
        buckets: int | None = None,
        claims: int | None = None,
    ) -> None:
        self.config = config
        self.directory = DataDir(config.data_path)
        self.metrics = Metrics()
        self._slots, self._listen, self._buckets, self._claims = slots, listen, buckets, claims
        self._not_ready = "starting"
        self._parts = AsyncExitStack()
        self._ingest: IngestServer | None = None
        self._delivery: Delivery | None = None
        self._patient = self._others_go_on = False
        self.lost = self.waiting = 0
        """Rows that were accepted and are not in ClickHouse after ``stop``: nowhere, and in the spool."""
        self.is_owed = False
        """Whether somebody has to take over the slot, when nobody starts on it again."""

    @property
    def trouble(self) -> str:
        """Why no new requests should come here; empty when they may."""
        return self._not_ready or (self._delivery.trouble if self._delivery else "")

    async def start(self) -> None:
        """Starts everything. Raises SlotTaken, OSError."""
        config, parts = self.config, self._parts
        gate = await self._start_gate()
        clickhouse = await parts.enter_async_context(clickhouse_client(config, config.clickhouse.url))
        delivery = self._delivery = await self._start_delivery(clickhouse)
        store = await ControlStore.connect(config.postgres.dsn, at_once=False)
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
            *streamlogia_reads.routes(
                StreamlogiaReader(reader.ask, config.clickhouse.database), store, Buckets(self._buckets)
            ),
            *alert_routes(await self._start_alerts(store, clickhouse), store, config.alerts.webhook_hosts),
        ]
        # Of its own: a query may wait for ClickHouse, and must take no sender's place meanwhile.
        api_requests = config.limits.api_requests_in_flight_max
        api_admission = Admission(requests_max=api_requests, bytes_max=api_requests * BODY_BYTES_MAX)
        api = Api(routes, Pats(PatStore(store)), limits=config.limits, admission=api_admission)
        ingest = self._ingest = IngestServer(self._listen, house, dialects, api)
        parts.push_async_callback(self._stop_ingest, ingest)
        await ingest.start()
        self._not_ready = ""

    async def stop(self, *, delay_s: float = 0.0, patient: bool = False, others_go_on: bool = False) -> None:
        """Stops everything that was started.

        For ``delay_s`` requests are accepted still. ``patient``: others accept meanwhile, so senders have
        all the time they would have had. ``others_go_on``: somebody will listen on the same sockets.
        """
        was_ready = not self._not_ready
        self._not_ready = "shutting down"
        self._patient, self._others_go_on = patient, others_go_on
        if was_ready and self._ingest is not None:
            self._ingest.leave()
            await asyncio.sleep(delay_s)
        await self._parts.aclose()

    def hurry(self) -> None:
        """A patient stop that is under way is to be patient no more."""
        if self._ingest is not None:
            self._ingest.hurry(self.config.shutdown.requests_ms_max / 1000)

    async def _stop_ingest(self, ingest: IngestServer) -> None:
        limits = self.config.limits
        deadline_s, linger_s = self.config.shutdown.requests_ms_max / 1000, LINGER_S
        if self._patient:
            deadline_s, linger_s = (limits.header_timeout_ms + limits.body_timeout_ms) / 1000, _PATIENT_LINGER_S
        await ingest.stop(deadline_s, linger_s, others_go_on=self._others_go_on)

    async def _start_gate(self) -> Gate:
        config, folder, dsn = self.config, self.directory.path, self.config.postgres.dsn
        rates = Rates(
            config.keys.requests_per_minute,
            by_dialect=dict.fromkeys(NEVER_RETRYING, config.keys.requests_per_minute_no_retry),
            shared=self._buckets,
        )
        keys = Keys(
            dsn,
            snapshot_path=self.directory.keys,
            poll_s=config.keys.poll_ms / 1000,
            on_table=rates.keep,
        )
        quotas = Quotas(
            dsn, kept_path=folder / f"usage-{self._slots[0]:02d}.snapshot", settle_s=config.quotas.settle_ms / 1000
        )
        for part in (keys, quotas):
            self._parts.push_async_callback(part.stop)
        await asyncio.gather(keys.start(), quotas.start())
        self._observe(keys, quotas)
        return Gate(keys, rates, quotas)

    async def _start_delivery(self, clickhouse: ClickHouse) -> Delivery:
        settings = self.config.delivery
        frames = FrameNumbers(self.directory.spool, slot=self._slots[0])
        for slot in self._slots[1:]:
            adopt(frames, slot)
        self._parts.callback(frames.close)
        keys = Idempotency(
            self._claims,
            slots=self._slots,
            keys_max=settings.idempotency_keys_max,
            keep_s=settings.idempotency_ms / 1000,
        )
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
                durability=Durability[settings.durability.upper()],
                stored_ms_max=settings.stored_ms_max,
                segment_bytes=settings.segment_bytes,
                reserve_bytes=settings.reserve_bytes,
                spool_bytes_max=settings.spool_bytes_max // self.config.workers,
                spool_free_bytes_min=settings.spool_free_bytes_min,
                audit_ms=settings.audit_ms,
                dead_letter_bytes_max=settings.dead_letter_bytes_max,
                refused_rows_max=settings.refused_rows_max,
            ),
            frames=frames,
            metrics=self.metrics,
            keys=keys,
        )
        await delivery.start()
        self._parts.push_async_callback(self._stop_delivery, delivery)
        return delivery

    async def _start_catalog(self, store: DatasetStore, delivery: Delivery) -> Catalog:
        catalog = Catalog(
            store.change,
            store.all,
            delivery.add_table,
            poll_s=self.config.keys.poll_ms / 1000,
            workers=self.config.workers,
        )
        self._parts.push_async_callback(catalog.stop)
        await catalog.start()
        return catalog

    async def _start_alerts(self, store: ControlStore, clickhouse: ClickHouse) -> AlertStore:
        config, kept = self.config, AlertStore(store)
        oldest = self.metrics.oldest_unstored_seconds
        alerts = Alerts(
            kept,
            MatchReader(clickhouse.query, config.clickhouse.database).find,
            hosts=config.alerts.webhook_hosts,
            interval_s=config.alerts.interval_ms / 1000,
            unstored_s=lambda: max(oldest.read().values()) if oldest.read else 0.0,
            metrics=self.metrics,
        )
        self._parts.push_async_callback(alerts.stop)
        await alerts.start()
        return kept

    async def _stop_delivery(self, delivery: Delivery) -> None:
        self.lost = sum((await delivery.stop(self.config.shutdown.flush_ms_max / 1000)).values())
        self.waiting = max(sum(delivery.buffered().values()) - self.lost, 0)
        self.is_owed = self.waiting > 0 or delivery.is_counting

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
