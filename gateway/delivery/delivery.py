"""Delivery: accepted rows to ClickHouse, all of them, once.

A project belongs to one shard by hash: a ring that bounds memory and a flusher that inserts. Rows
come in through ``rows``; each block that is cut goes to the spool, and the receipt says when it is as
safe as was promised. From the spool's writer it goes on to its flusher, or, when much is held in
memory already, stays on disk alone until there is room for it again. When ClickHouse is away the
spool fills, and when that is full requests are refused with a time to come back: first those of
projects that take more than their share.

    rows_accepted + rows_recovered =
        rows_stored + rows_dead_lettered + rows_refused + rows_damaged + rows_buffered

at any moment, for each table.
"""

from __future__ import annotations

import asyncio
import logging
import random as randomness
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from gateway._native import Columns
from gateway.delivery.audit import Audit
from gateway.delivery.block import Block, Durability
from gateway.delivery.clickhouse import ClickHouse
from gateway.delivery.congestion import Congestion
from gateway.delivery.deadletter import DeadLetters, DeadLettersBusy
from gateway.delivery.disk import Disk
from gateway.delivery.flusher import Flusher
from gateway.delivery.frames import FrameNumbers
from gateway.delivery.idempotency import Claim, Claims, Idempotency
from gateway.delivery.progress import Progress
from gateway.delivery.ring import Ring, RowsApart, RowsHandle, Stock
from gateway.delivery.room import Room
from gateway.delivery.seals import Sealed
from gateway.delivery.settings import Settings
from gateway.delivery.spool import Spool
from gateway.errors import Draining, Overloaded
from gateway.metrics import Metrics
from gateway.schema import Table

log = logging.getLogger(__name__)

SWEEP_S = 1.0
SPOOL_STOP_S = 1.0
"""A disk that hangs must not keep a stop waiting for ever."""
LETTERS_AGAIN_S = 1.0
HELD_PART = 0.5
"""Of a ring's budget: when more is held, blocks that are on disk are not held as well."""
LOADED_PART = 0.75
"""Of a ring's budget: beyond it nothing is loaded from disk."""
FAILURES_MAX = 2
"""Groups in a row that may fail before the gateway says that it is not ready."""


class Delivery:
    """All shards of a process, and its spool. Belongs to one event loop.

    ``open_columns`` makes empty columns of a layout, ``clock`` gives seconds that never go back,
    ``wall`` seconds since 1970, ``random`` numbers in [0, 1). ``frames`` says where the spool is.
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
        disk: Disk | None = None,
        keys: Idempotency | None = None,
    ) -> None:
        self._settings = settings
        self._keys = keys or Idempotency(None, slots=(frames.slot,), wall=wall)
        self._clock = clock
        self._metrics = metrics
        self._open_columns = open_columns
        self._stopping = False
        self._stocks: dict[str, Stock] = {}
        self._seals: dict[str, list[Sealed]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._wake = asyncio.Event()
        self._unkept: Counter[tuple[str, str]] = Counter()
        self._progress = Progress(frames)
        self._spool = Spool(
            frames,
            segment_bytes=settings.segment_bytes,
            reserve_bytes=settings.reserve_bytes,
            audit_s=settings.audit_ms / 1000,
            clock=clock,
            wall=wall,
            disk=disk,
            keys=self._keys,
            on_damaged=self._damaged,
        )
        self._congestion = Congestion(clock)
        self._room = Room(self._spool, settings, clock=clock)
        ring = partial(Ring, take=self._spooled, is_idle=self._congestion.is_clear)
        self._rings = [
            ring(shard, self._stocks, settings, frames=frames, metrics=metrics, clock=clock)
            for shard in range(settings.shards)
        ]
        self._letters = DeadLetters(frames.place, bytes_max=settings.dead_letter_bytes_max)
        flusher = partial(
            Flusher,
            spool=self._spool,
            progress=self._progress,
            letters=self._letters,
            on_stored=self._stored,
        )
        self._flushers = [
            flusher(each, clickhouse, settings, frames=frames, metrics=metrics, clock=clock, wall=wall, random=random)
            for each in self._rings
        ]
        self._audit = Audit(
            clickhouse,
            read=self._spool.read,
            again=self._lost_there,
            has_room=self._has_room,
            keep_s=settings.audit_ms / 1000,
            clock=clock,
        )
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
        self._audit.add_table(table)
        self._wake.set()

    @property
    def trouble(self) -> str:
        """Why this process should be sent nothing more, in words; empty when it should."""
        if self._spool.failures >= FAILURES_MAX:
            return "the spool cannot be written"
        return self._room.trouble

    async def start(self) -> None:
        """Start the spool and the flushers. What earlier lives left is looked through behind this."""
        self._spool.start()
        for flusher in self._flushers:
            await flusher.start()
        self._tasks = [
            asyncio.create_task(self._recover(), name="spool-recover"),
            asyncio.create_task(self._sweep(), name="spool-sweep"),
            asyncio.create_task(self._audit.run(), name="audit"),
        ]

    def check(self, project_id: str, declared_bytes: int, *, retries: bool) -> None:
        """Raise what ``rows`` would raise for a body of this size, before it is read.

        Senders that come back (``retries``) are refused earlier, when rows wait too long for the disk.
        """
        if self._stopping:
            raise Draining("shutting down; send the same again later", retry_after_s=1)
        self._room.check(project_id, declared_bytes)
        self._ring(project_id).check(declared_bytes)
        if retries and self._congestion.refuses(project_id):
            raise Overloaded("rows wait too long for the disk; send the same again later", retry_after_s=1)

    def rows(self, project_id: str, expected_bytes: int, durability: str = "") -> RowsHandle:
        """A request's way in: ``with delivery.rows(...) as rows``, then ``rows.columns``, ``rows.commit``.

        Entering reserves ``expected_bytes`` (what its columns will come to) and raises Overloaded
        when they do not fit now, TooLarge when they never will; ``durability`` is a word of Durability, empty
        for what the settings say. Draining here while stopping, and
        Overloaded when the disk has no room for this project.
        """
        return RowsHandle(*self._way_in(project_id, expected_bytes, durability))

    def rows_apart(self, project_id: str, expected_bytes: int, durability: str = "") -> RowsApart:
        """The same for a large request: its rows are written and cut by another thread meanwhile."""
        return RowsApart(*self._way_in(project_id, expected_bytes, durability))

    def claim(self, project_id: str, path: str, key: str, body: bytes) -> Claim:
        """Claim an idempotency key for a request to ``path``; its ``commit`` then takes the claim.

        Raises KeyReused when it was used for another body, UnderWay when that is being stored, or nothing can be
        known yet.
        """
        return self._keys.claim(project_id, path, key, body)

    def claim_records(self, uids: bytes, tables: int) -> Claims:
        """Claim the decoded records that have a uid, with rows for so many tables; ``commit`` takes the claims.

        Raises UnderWay when one of them is being stored, or nothing can be known yet.
        """
        return self._keys.claim_records(uids, tables)

    async def flush(self) -> None:
        """Return when everything accepted before the call is stored, however long that takes."""
        await self._spool.recovered.wait()
        for ring in self._rings:
            while not ring.cut():  # noqa: ASYNC110 - a disk without room tells nobody when it has some
                await asyncio.sleep(self._settings.block_age_ms / 1000)
        flushing = asyncio.ensure_future(self._progress.flush())
        await asyncio.sleep(0)
        for flusher in self._flushers:
            flusher.hurry()
        await flushing

    async def stop(self, deadline_s: float) -> dict[str, int]:
        """Take no more, store what can be stored by the deadline; returns the rows lost, per table.

        Lost is only what was promised no more than memory, or could not be written. Whatever else is
        not stored waits in the spool.
        """
        self._stopping = True
        for ring in self._rings:
            ring.stop()
        try:
            async with asyncio.timeout(deadline_s):
                await self.flush()
        except TimeoutError:
            log.warning("not everything could be stored within %.1f s", deadline_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for flusher in self._flushers:
            await flusher.stop()
        self._tell()
        try:
            async with asyncio.timeout(max(deadline_s, SPOOL_STOP_S)):
                await self._spool.stop()
        except TimeoutError:
            log.error("the disk answers nothing: what was being written may be lost, and was promised to nobody")  # noqa: TRY400
        return self._left()

    def buffered(self) -> dict[str, int]:
        """Rows accepted and not yet stored, per table."""
        rows = dict.fromkeys(self._stocks, 0)
        for ring in self._rings:
            for table, held in ring.rows.items():
                rows[table] = rows.get(table, 0) + held
        return rows

    @property
    def is_counting(self) -> bool:
        """Whether ClickHouse may have lost what it had acknowledged: that is being counted, or was mended just now."""
        return bool(self._audit.needed)

    def buffers(self) -> dict[str, object]:
        """What is held where, for a person; counted afresh from the buffers themselves."""
        return {
            "oldest_unstored_seconds": self._oldest_s(),
            "spool": self._spool.described() | {"bytes": self._room.used_bytes, "bytes_max": self._room.bytes_max},
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

    def _way_in(self, project_id: str, expected_bytes: int, durability: str) -> tuple[Ring, str, int, Durability]:
        if self._stopping:
            raise Draining("shutting down; send the same again later", retry_after_s=1)
        self._room.check(project_id, expected_bytes)
        wanted = Durability[durability.upper()] if durability else self._settings.durability
        return self._ring(project_id), project_id, expected_bytes, wanted

    def _ring(self, project_id: str) -> Ring:
        return self._rings[self._shard(project_id)]

    def _shard(self, project_id: str) -> int:
        return zlib.crc32(project_id.encode()) % len(self._rings)

    def _spooled(self, block: Block) -> None:
        """A block was cut: it goes to the spool."""
        self._congestion.enter(block.since, block.project_id, len(block.data))
        self._progress.add(block.frame)
        self._spool.append(block, self._kept, self._not_kept)

    def _kept(self, block: Block) -> None:
        """A block is in the spool."""
        self._congestion.leave(block.project_id, len(block.data))
        self._line_up(block)

    def _line_up(self, block: Block) -> None:
        """A block can be inserted."""
        block.promise.reach(min(block.durability, Durability.DISK))
        shard = self._shard(block.project_id)
        ring, flusher = self._rings[shard], self._flushers[shard]
        if ring.held_bytes > ring.bytes_max * HELD_PART or flusher.is_parked(block.table):
            ring.forget(block)
            self._spool.drop(block)
            self._wake.set()
        else:
            flusher.take(block)
        self._cut_soon()

    def _cut_soon(self) -> None:
        """The disk is idle again: what has gathered meanwhile is the next group."""
        if self._congestion.is_clear():
            for each in self._rings:
                each.cut_soon()

    def _not_kept(self, block: Block, error: OSError) -> None:
        """A block could not be written, or synced: its senders are told, unless what they were promised holds."""
        self._congestion.leave(block.project_id, len(block.data))
        shard = self._shard(block.project_id)
        if block.durability <= block.promise.reached:
            self._flushers[shard].take(block)
            return
        self._unkept[block.table, error.strerror or "no reason given"] += block.rows
        self._rings[shard].release(block.table, block.rows, block.held_bytes)
        self._metrics.rows_refused.add(block.rows, block.table)
        self._progress.settle(block.frame)
        block.promise.fail(
            Overloaded(
                "nothing can be kept on disk now; send the same again later",
                log=f"the spool could not be written: {error.strerror}",
                retry_after_s=1,
            )
        )
        self._cut_soon()

    def _stored(self, table: Table, blocks: Sequence[Block], dead: Sequence[int], at: float) -> None:
        self._audit.stored(table.name, blocks, dead, at)
        self._wake.set()

    def _lost_there(self, block: Block) -> None:
        """ClickHouse lost a block that it had acknowledged: it is as if it had been found at the start."""
        ring = self._ring(block.project_id)
        ring.find(block.table, block.rows)
        ring.hold(block)
        self._metrics.rows_recovered.add(block.rows, block.table)
        self._congestion.enter(self._clock(), block.project_id, len(block.data))
        self._progress.add(block.frame)
        self._spool.revive(block, self._kept_again if block.suspect else self._kept)

    def _kept_again(self, block: Block) -> None:
        """A block is in the spool again whole, and some of its rows may be dead letters, which a replay would store."""
        self._congestion.leave(block.project_id, len(block.data))
        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks.append(asyncio.create_task(self._take_letters_back(block), name="letters"))

    async def _take_letters_back(self, block: Block) -> None:
        while True:
            try:
                await asyncio.to_thread(self._letters.withdraw, block.table, block.frame)
                break
            except (DeadLettersBusy, OSError) as error:
                log.warning("%s: dead letters cannot be taken back now: %s", block.table, error)
            await asyncio.sleep(LETTERS_AGAIN_S)
        self._line_up(block)

    def _damaged(self, block: Block) -> None:
        log.error("%s: %d rows are lost: their block in the spool is damaged", block.table, block.rows)
        self._ring(block.project_id).release(block.table, block.rows, 0)
        self._metrics.rows_damaged.add(block.rows, block.table)
        self._progress.settle(block.frame)

    async def _recover(self) -> None:
        try:
            backlog, seals = await self._spool.recover()
        except Exception:  # A fault of ours must not look like an empty spool: nothing of it is touched then.
            log.exception("what the spool holds of before could not be looked through; it stays for the next start")
            return
        for (project_id, table), rows in backlog.rows.items():
            self._ring(project_id).find(table, rows)
            self._metrics.rows_recovered.add(rows, table)
        self._progress.add_old(backlog.frames)
        for (table, at, letters), frames in backlog.done.items():
            self._audit.found(table, at, frames, letters=letters)
        self._audit.found_all()
        for sealed in seals:
            self._seals.setdefault(sealed.table, []).append(sealed)
        if backlog.frames:
            log.info("the spool holds %d rows of before", sum(backlog.rows.values()))
        self._wake.set()

    async def _sweep(self) -> None:
        """Load what there is room for, remove what nobody needs."""
        while True:
            self._wake.clear()
            self._tell()
            try:
                audit, hurry = self._audit, self._room.is_crowded
                if hurry:
                    audit.give_up()
                self._spool.sweep(audit.safe(hurry=hurry), needed=audit.needed, counted=audit.counted)
                self._room.look()
                for table in list(self._stocks):
                    await self._resume(table)
                    await self._load(table)
                if await self._spool.compact():
                    self._wake.set()
            except Exception:  # A fault of ours must not stop the spool.
                log.exception("the spool stumbled and goes on")
            try:
                async with asyncio.timeout(SWEEP_S):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _resume(self, table: str) -> None:
        """Take up the batches that an earlier life sealed; those that cannot be read now at the next turn."""
        seals = self._seals.get(table, [])
        while seals:
            sealed = seals[0]
            try:
                blocks = await self._spool.load_sealed(sealed.token)
            except OSError as error:
                log.error("%s: a sealed batch cannot be read now: %s", table, error.strerror)  # noqa: TRY400
                return
            del seals[0]
            if blocks:
                shard = self._shard(blocks[0].project_id)
                for block in blocks:
                    self._rings[shard].hold(block)
                self._flushers[shard].resume(self._stocks[table].table, sealed, blocks)

    async def _load(self, table: str) -> None:
        while self._spool.has_unread(table) and (bytes_max := self._wanted_bytes(table)) > 0:
            blocks = await self._spool.load(table, bytes_max)
            for block in blocks:
                shard = self._shard(block.project_id)
                ring = self._rings[shard]
                # There was room for it when it was asked for; a larger one is never to wait for more.
                is_small = block.held_bytes <= ring.bytes_max * (1 - LOADED_PART)
                if is_small and ring.held_bytes + block.held_bytes > ring.bytes_max:
                    self._spool.drop(block)  # Senders were quicker.
                else:
                    ring.hold(block)
                    self._flushers[shard].take(block)
            if not blocks:
                return

    def _has_room(self) -> bool:
        """Whether blocks that come from disk may be held."""
        return all(ring.held_bytes < ring.bytes_max * LOADED_PART for ring in self._rings)

    def _wanted_bytes(self, table: str) -> int:
        """How much of a table should be read from disk now: none of it may keep senders out while it waits."""
        batch_bytes = self._settings.batch_bytes
        if any(flusher.is_parked(table) for flusher in self._flushers):
            return 0
        if sum(flusher.queued_bytes(table) for flusher in self._flushers) >= batch_bytes:
            return 0
        room_bytes = min(ring.bytes_max * LOADED_PART - ring.held_bytes for ring in self._rings)
        return min(batch_bytes, int(room_bytes))

    def _tell(self) -> None:
        """Say what could not be kept since the last time, in one line for each table and reason."""
        for (table, reason), rows in self._unkept.items():
            log.error("%s: %d rows could not be written to the spool and were refused: %s", table, rows, reason)
        self._unkept.clear()

    def _left(self) -> dict[str, int]:
        """What a stop leaves: says what waits in the spool, returns what was in memory only."""
        lost: dict[str, int] = {}
        nowhere_else = [self._spool.unwritten()]
        nowhere_else += [flusher.rows_in_memory_only() for flusher in self._flushers]
        nowhere_else += [ring.open_rows() for ring in self._rings]
        for held in nowhere_else:
            for table, rows in held.items():
                lost[table] = lost.get(table, 0) + rows
        for table, rows in self.buffered().items():
            if gone := lost.get(table, 0):
                log.error("%s: %d rows were held in memory only and are lost with this process", table, gone)
            if rows > gone:
                log.warning("%s: %d rows wait in the spool for the next start", table, rows - gone)
        return {table: rows for table, rows in lost.items() if rows}

    def _show(self, metrics: Metrics) -> None:
        """Gauges are read when they are scraped."""
        metrics.rows_buffered.read = lambda: {(table,): rows for table, rows in self.buffered().items()}
        metrics.ring_bytes.read = lambda: {(str(ring.shard),): ring.held_bytes for ring in self._rings}
        metrics.ring_capacity_bytes.read = lambda: {(str(ring.shard),): ring.bytes_max for ring in self._rings}
        metrics.oldest_unstored_seconds.read = lambda: {(): self._oldest_s()}
        metrics.inserts_in_flight.read = lambda: {
            (str(ring.shard),): flusher.in_flight for ring, flusher in zip(self._rings, self._flushers, strict=True)
        }
        metrics.idempotency_keys_displaced.read = lambda: {(): self._keys.displaced}
        metrics.spool_bytes.read = lambda: {(): self._room.used_bytes}
        metrics.spool_capacity_bytes.read = lambda: {(): self._room.bytes_max}
        metrics.spool_disk_bytes.read = lambda: {(): self._spool.ledger.disk_bytes}
        metrics.spool_segments.read = lambda: {(): len(self._spool.ledger.segments)}
        metrics.spool_recovering.read = lambda: {(): float(not self._spool.recovered.is_set())}
        metrics.spool_failures.read = lambda: {(): self._spool.failures}
        metrics.spool_damaged_bytes.read = lambda: {(): self._spool.damaged_bytes}

    def _oldest_s(self) -> float:
        oldest = [ring.oldest() for ring in self._rings] + [flusher.oldest() for flusher in self._flushers]
        moments = [moment for moment in (*oldest, self._spool.oldest()) if moment is not None]
        return self._clock() - min(moments) if moments else 0.0
