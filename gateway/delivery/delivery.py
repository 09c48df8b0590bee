"""Delivery: accepted rows to ClickHouse, all of them, once.

A project belongs to one shard by hash: a ring that bounds memory and a flusher that inserts. Rows
come in through ``rows``; the receipt says when they are as safe as was promised (now: in memory, at
once). When ClickHouse is away the rings fill, and requests are refused with a time to come back.

    rows_accepted = rows_stored + rows_buffered        at any moment, for each table
"""

from __future__ import annotations

import asyncio
import logging
import random as randomness
import time
import zlib
from collections.abc import Callable, Sequence

from gateway._native import Columns
from gateway.delivery.clickhouse import ClickHouse
from gateway.delivery.flusher import Flusher
from gateway.delivery.frames import FrameNumbers
from gateway.delivery.ring import Ring, RowsHandle, Stock
from gateway.delivery.settings import Settings
from gateway.errors import Draining
from gateway.metrics import Metrics
from gateway.schema import Table

log = logging.getLogger(__name__)


class Delivery:
    """All shards of a process. Belongs to one event loop.

    ``open_columns`` makes empty columns of a layout, ``clock`` gives seconds that never go back,
    ``wall`` seconds since 1970, ``random`` numbers in [0, 1).
    """

    def __init__(
        self,
        tables: Sequence[Table],
        clickhouse: ClickHouse,
        settings: Settings,
        *,
        frames: FrameNumbers,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        random: Callable[[], float] = randomness.random,
        open_columns: Callable[[Sequence[tuple[str, str]]], Columns] = Columns,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._open_columns = open_columns
        self._stopping = False
        self._stocks: dict[str, Stock] = {}
        self._rings = [
            Ring(shard, self._stocks, settings, frames=frames, metrics=metrics, clock=clock)
            for shard in range(settings.shards)
        ]
        self._flushers = [
            Flusher(ring, clickhouse, settings, frames=frames, metrics=metrics, clock=clock, wall=wall, random=random)
            for ring in self._rings
        ]
        for table in tables:
            self.add_table(table)
        self._show(metrics)

    def add_table(self, table: Table) -> None:
        """Take rows of this table from now on. Its columns must include a ``frame`` and a ``row`` source."""
        self._stocks[table.name] = Stock(
            table,
            self._open_columns,
            spare_max=self._settings.spare_columns_max,
            spare_bytes_max=2 * self._settings.block_bytes,
        )
        for flusher in self._flushers:
            flusher.add_table(table)

    async def start(self) -> None:
        """Start the flushers."""
        for flusher in self._flushers:
            await flusher.start()

    def rows(self, project_id: str, expected_bytes: int) -> RowsHandle:
        """A request's way in: ``with delivery.rows(...) as rows``, then ``rows.columns``, ``rows.commit``.

        Entering reserves ``expected_bytes`` (what its columns will come to) and raises Overloaded
        when they do not fit now, TooLarge when they never will; Draining here while stopping.
        """
        if self._stopping:
            raise Draining("shutting down; send the same again later", retry_after_s=1)
        return RowsHandle(self._rings[zlib.crc32(project_id.encode()) % len(self._rings)], project_id, expected_bytes)

    async def flush(self) -> None:
        """Return when everything accepted before the call is stored, however long that takes."""
        for ring in self._rings:
            while not ring.cut():  # noqa: ASYNC110 - a disk without room tells nobody when it has some
                await asyncio.sleep(self._settings.block_age_ms / 1000)
        await asyncio.gather(*(flusher.flush() for flusher in self._flushers))

    async def stop(self, deadline_s: float) -> dict[str, int]:
        """Take no more, store what can be stored by the deadline; returns the rows lost, per table."""
        self._stopping = True
        for ring in self._rings:
            ring.stop()
        try:
            async with asyncio.timeout(deadline_s):
                await self.flush()
        except TimeoutError:
            log.warning("not everything could be stored within %.1f s", deadline_s)
        for flusher in self._flushers:
            await flusher.stop()
        lost = {table: rows for table, rows in self.buffered().items() if rows}
        for table, rows in lost.items():
            log.error("%s: %d rows were held in memory only and are lost with this process", table, rows)
        return lost

    def buffered(self) -> dict[str, int]:
        """Rows accepted and not yet stored, per table."""
        rows = dict.fromkeys(self._stocks, 0)
        for ring in self._rings:
            for table, held in ring.rows.items():
                rows[table] += held
        return rows

    def buffers(self) -> dict[str, object]:
        """What is held where, for a person; counted afresh from the buffers themselves."""
        return {
            "oldest_unstored_seconds": self._oldest_s(),
            "shards": [
                {
                    "shard": ring.shard,
                    "bytes": ring.held_bytes,
                    "bytes_max": ring.bytes_max,
                    "bytes_reserved": ring.reserved_bytes,
                    "inserts_in_flight": flusher.in_flight,
                    "rows_open": ring.open_rows(),
                    "tables": flusher.tables(),
                }
                for ring, flusher in zip(self._rings, self._flushers, strict=True)
            ],
        }

    def _show(self, metrics: Metrics) -> None:
        """Gauges are read when they are scraped."""
        metrics.rows_buffered.read = lambda: {(table,): rows for table, rows in self.buffered().items()}
        metrics.ring_bytes.read = lambda: {(str(ring.shard),): ring.held_bytes for ring in self._rings}
        metrics.ring_capacity_bytes.read = lambda: {(str(ring.shard),): ring.bytes_max for ring in self._rings}
        metrics.oldest_unstored_seconds.read = lambda: {(): self._oldest_s()}
        metrics.inserts_in_flight.read = lambda: {
            (str(ring.shard),): flusher.in_flight for ring, flusher in zip(self._rings, self._flushers, strict=True)
        }

    def _oldest_s(self) -> float:
        oldest = [ring.oldest() for ring in self._rings] + [flusher.oldest() for flusher in self._flushers]
        moments = [moment for moment in oldest if moment is not None]
        return self._clock() - min(moments) if moments else 0.0
