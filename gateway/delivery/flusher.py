"""One shard's flusher: blocks become batches, batches become inserts, until every row is stored once.

What becomes of a batch, whose SEAL is in the spool before the first insert is sent:

    sealed --insert--> clean OK ----------------------------------------------------------> stored
                 |         '--(ever ambiguous, or fewer rows written)--> count --all there--> stored
                 |                                                         '--> insert what is missing
                 |                                                              under a new token, count again
                 |--> error --> waits --> the same bytes, the same token
                 '--> poison --> the guilty rows are found, and become dead letters: see poison.py

A deduplication token alone is not exactly-once: the server can have recorded it and lost the part
(killed between the two), and an insert over several partitions is not atomic. So after any doubt the
same token is sent until there is a clean answer - from then on no earlier attempt can still come
through - and then the rows of each frame are counted.

A batch that waits gives its place in flight to others and holds its table: rows pile up in blocks
and go out in larger batches later. Poison is set aside and holds nothing. Nothing is ever dropped,
and there is no last retry. When the server is away, rows wait in the spool.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from gateway.delivery.answers import CUT_SHORT, MEMORY_LIMIT, Ambiguous, Busy, DeliveryError, Operator, Poison
from gateway.delivery.batch import Batch, Isolation, Queue, Repair
from gateway.delivery.block import Block, Durability
from gateway.delivery.clickhouse import ALL_ROWS, ClickHouse
from gateway.delivery.deadletter import DeadLetters
from gateway.delivery.frames import FrameNumbers
from gateway.delivery.poison import NOT_KEPT, REPAIRS_MAX, SUSPICIONS_MAX, Isolator, counted
from gateway.delivery.progress import Progress
from gateway.delivery.ring import Ring
from gateway.delivery.seals import Run, Sealed, by_row
from gateway.delivery.settings import Settings
from gateway.delivery.spool import Spool
from gateway.delivery.unanswered import UNANSWERED
from gateway.metrics import Metrics
from gateway.schema import Table

log = logging.getLogger(__name__)


class Flusher:
    """The flusher of one ring. ``random`` gives numbers in [0, 1), ``wall`` seconds since 1970."""

    def __init__(
        self,
        ring: Ring,
        clickhouse: ClickHouse,
        settings: Settings,
        *,
        frames: FrameNumbers,
        spool: Spool,
        progress: Progress,
        metrics: Metrics,
        clock: Callable[[], float],
        wall: Callable[[], float],
        random: Callable[[], float],
        letters: DeadLetters,
        on_stored: Callable[[Table, Sequence[Block], Sequence[int], float], None],
    ) -> None:
        self._ring = ring
        self._spool = spool
        self._progress = progress
        self._on_stored = on_stored
        self._clickhouse = clickhouse
        self._settings = settings
        self._frames = frames
        self._metrics = metrics
        self._clock = clock
        self._wall = wall
        self._random = random
        self._queues: dict[str, Queue] = {}
        self._inserts: set[asyncio.Task[None]] = set()
        self._in_flight_max = settings.inserts_in_flight
        self._runner: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._alarms: dict[tuple[str, str], tuple[float, int]] = {}
        self._isolating = False
        self._isolator = Isolator(
            clickhouse,
            spool,
            frames,
            letters,
            refused_rows_max=settings.refused_rows_max,
            clock=clock,
            wall=wall,
            deliver=self._settle,
            attempt=self._attempt,
            taken=self._are_taken,
            stored=self._are_stored,
            buried=self._is_buried,
        )

    @property
    def in_flight(self) -> int:
        """Inserts sent and not yet answered."""
        return len(self._inserts)

    def add_table(self, table: Table) -> None:
        """Blocks of this table may come."""
        self._queues[table.name] = Queue(table)

    def take(self, block: Block) -> None:
        """Take charge of a block, which is as safe as it is to be."""
        queue = self._queues[block.table]
        first = not queue.rows
        queue.add(block)
        if first or self._full(queue):
            self._wake.set()

    def resume(self, table: Table, sealed: Sealed, blocks: list[Block]) -> None:
        """Take charge of a batch that an earlier life sealed: nobody knows whether it was sent."""
        batch = Batch.of(table, sealed.token, blocks)
        batch.sealed = batch.doubtful = True
        batch.unsure = batch.answered  # Its blocks are suspect: it may have gone under another token.
        batch.answered = False  # Only the same token shows what became of it.
        batch.unanswered.add(self._clock(), self._clickhouse)
        batch.run = sealed.run
        queue = self._queues[table.name]
        if sealed.over:
            batch.poison, batch.isolation = True, Isolation(None, refused=False)
            queue.aside.append(batch)
        else:
            (queue.aside if batch.unsure else queue.waiting).append(batch)
        self._wake.set()

    def queued_bytes(self, table: str) -> int:
        """Of blocks of a table that are in no batch yet."""
        return self._queues[table].data_bytes

    def is_parked(self, table: str) -> bool:
        """Whether a table waits for a person, or so much of it is set aside that the rest waits on disk."""
        queue = self._queues[table]
        aside_max = self._settings.batch_bytes * self._settings.inserts_in_flight
        return bool(queue.parked) or sum(batch.held_bytes for batch in queue.aside) > aside_max

    async def start(self) -> None:
        """Start sending."""
        self._runner = asyncio.create_task(self._run(), name=f"flusher-{self._ring.shard}")

    async def stop(self) -> None:
        """Stop sending; inserts under way are cut off."""
        tasks = [*self._inserts, *([self._runner] if self._runner else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def hurry(self) -> None:
        """Try now what waits for a retry."""
        for queue in self._queues.values():
            for batch in (*queue.waiting, *queue.aside):
                batch.due = 0.0
        self._wake.set()

    def oldest(self) -> float | None:
        """The clock when the oldest row that is not stored came, of those in blocks."""
        return min(
            (
                since
                for queue in self._queues.values()
                for since in (*((queue.since,) if queue.rows else ()), *(batch.since for batch in queue.batches()))
            ),
            default=None,
        )

    def tables(self) -> dict[str, dict[str, object]]:
        """What each table has waiting, for a person; counted afresh."""
        return {
            name: {
                "rows_sealing": sum(block.rows for mine in queue.blocks.values() for block in mine),
                "rows_sealed": sum(block.rows for batch in queue.batches() for block in batch.blocks),
                "batches_in_flight": len(queue.sent),
                "batches_waiting": len(queue.waiting),
                "batches_set_aside": len(queue.aside),
                "parked": queue.parked,
            }
            for name, queue in self._queues.items()
        }

    def rows_in_memory_only(self) -> dict[str, int]:
        """Rows that the spool does not have, per table."""
        return {
            name: sum(block.rows for block in queue.all_blocks() if block.place is None)
            for name, queue in self._queues.items()
        }

    async def _run(self) -> None:
        while True:
            try:
                await self._turn()
            except Exception:  # A fault of ours must not stop a shard.
                log.exception("flusher %d stumbled and goes on", self._ring.shard)
                await asyncio.sleep(1.0)

    async def _turn(self) -> None:
        """Send what is due, then wait for more or for the next moment something is."""
        self._wake.clear()
        now = self._clock()
        while len(self._inserts) < self._in_flight_max:
            batch = self._next(now)
            if batch is None:
                break
            task = asyncio.create_task(self._send(batch))
            self._inserts.add(task)
            task.add_done_callback(self._inserts.discard)
        due = self._due() if len(self._inserts) < self._in_flight_max else None
        try:
            async with asyncio.timeout(None if due is None else max(due - now, 0.001)):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _next(self, now: float) -> Batch | None:
        """The next batch to send; tables take turns."""
        for name, queue in self._queues.items():
            batch = self._retry(queue, now) or self._seal(queue, now)
            if batch is not None:
                self._queues[name] = self._queues.pop(name)
                queue.sent.add(batch)
                return batch
        return None

    def _retry(self, queue: Queue, now: float) -> Batch | None:
        for batches in (queue.waiting, queue.aside):
            for batch in batches:
                if batch.due <= now and not self._must_wait(batch):
                    batches.remove(batch)
                    self._isolating |= batch.isolation is not None
                    return batch
        return None

    def _must_wait(self, batch: Batch) -> bool:
        """One batch is searched for its guilty rows at a time: it takes many inserts."""
        return self._isolating and batch.isolation is not None

    def _seal(self, queue: Queue, now: float) -> Batch | None:
        if not queue.rows or self._held(queue) or now < self._sealing(queue):
            return None
        blocks = queue.take(self._settings.batch_rows, self._settings.batch_bytes)
        batch = Batch.of(queue.table, self._frames.token(), blocks)
        self._metrics.batch_rows.observe(batch.rows, queue.table.name)
        return batch

    def _held(self, queue: Queue) -> bool:
        """Whether the table is in trouble: then it gets no new batches until an old one is through."""
        return bool(
            queue.waiting or any(batch.attempts and not batch.poison and not batch.unsure for batch in queue.sent)
        )

    def _sealing(self, queue: Queue) -> float:
        """The clock when the table's next batch is sealed."""
        if self._full(queue) or self._progress.is_awaited:
            return 0.0
        return queue.since + self._settings.batch_age_ms / 1000

    def _full(self, queue: Queue) -> bool:
        return queue.rows >= self._settings.batch_rows or queue.data_bytes >= self._settings.batch_bytes

    def _due(self) -> float | None:
        """The clock when there is next something to send."""
        moments = [
            batch.due
            for queue in self._queues.values()
            for batches in (queue.waiting, queue.aside)
            for batch in batches
            if not self._must_wait(batch)
        ]
        moments += [self._sealing(queue) for queue in self._queues.values() if queue.rows and not self._held(queue)]
        return min(moments, default=None)

    async def _send(self, batch: Batch) -> None:
        """One attempt at what the batch needs next."""
        table = batch.table
        isolation = batch.isolation
        try:
            if isolation is not None:
                await self._isolator.run(self._queues[table.name], batch, isolation)
            else:
                await self._attempt(table, self._settle(batch))
        except DeliveryError as error:
            self._failed(batch, await self._not_too_early(batch, error))
        except Exception as error:  # A fault of ours must not cost rows: it is a person's to mend.
            log.exception("insert into %s failed unexpectedly; its rows are kept", table.name)
            batch.doubtful = True
            if isolation is not None:
                isolation.doubt()
            self._failed(batch, Operator(f"{type(error).__name__} in the gateway"))
        else:
            self._finished(batch)
        finally:
            if isolation is not None:
                self._isolating = False
            # This task still counts as in flight until it is done, one step after this.
            asyncio.get_running_loop().call_soon(self._wake.set)

    async def _attempt(self, table: Table, insert: Awaitable[None]) -> None:
        """Await an insert, and count what became of it."""
        start = self._clock()
        outcome = "cut_off"  # by ``stop``; every other end says its own
        try:
            await insert
            outcome = "stored"
        except DeliveryError as error:
            outcome = error.outcome
            raise
        except Exception:
            outcome = Operator.outcome
            raise
        finally:
            self._metrics.inserts.add(1, table.name, outcome)
            self._metrics.insert_seconds.observe(self._clock() - start, table.name)

    async def _settle(self, batch: Batch) -> None:
        """Return when every row of the batch is known to be stored."""
        if not batch.sealed:
            await self._seal_on_disk(batch)
        if batch.unsure:
            there = sum((await counted(self._clickhouse, batch.table, batch.blocks)).values())
            if 0 < there < batch.rows and await self._may_come_through(batch):
                raise Busy(f"a part of it is there; {UNANSWERED}")
            batch.answered, batch.unsure = there > 0, False
        if not batch.answered:
            written = await self._insert(batch, batch.blocks, batch.run, batch.token)
            batch.answered = True
            if not batch.doubtful and written is not None and written >= batch.rows:
                return
        while True:
            if batch.repair is None:
                batch.repair = await self._missing(batch)
            if batch.repair is None:
                return
            await self._mend(batch, batch.repair)
            batch.repair = None
            batch.repairs += 1
            if batch.repairs >= REPAIRS_MAX:
                batch.repairs = 0
                raise Poison(NOT_KEPT)

    async def _insert(self, batch: Batch, blocks: list[Block], run: Run | None, token: str) -> int | None:
        """Insert blocks of a batch, or of the only one those rows of ``run`` that are not there.

        How many rows the server says it wrote, None when it does not say.
        """
        table, patience = batch.table, batch.patience
        if run is None:
            return await self._clickhouse.insert(table, [each.data for each in blocks], token=token, patience=patience)
        (block,) = blocks
        await self._clickhouse.insert_absent(
            table, block.data, frame=block.frame, token=token, rows=run, patience=patience
        )
        return None

    async def _seal_on_disk(self, batch: Batch) -> None:
        await self._seal_blocks(batch.table, batch.token, batch.blocks)
        batch.sealed = True

    async def _seal_blocks(self, table: Table, token: str, blocks: list[Block]) -> None:
        on_disk = [block for block in blocks if block.place is not None]
        if on_disk:
            try:
                await self._spool.seal(table.name, token, on_disk)
            except OSError as error:
                raise Busy(f"the spool cannot be written ({error.strerror})") from error

    async def _missing(self, batch: Batch) -> Repair | None:
        """What of the batch the table does not hold: whole frames first, then parts of frames."""
        stored = await counted(self._clickhouse, batch.table, batch.blocks)
        surplus = sum(max(0, stored.get(block.frame, 0) - block.rows) for block in batch.blocks)
        if surplus:
            self._alarm(batch.table.name, "surplus", f"{surplus} rows more than were sent; something else writes here")
        absent = sum(max(0, block.rows - stored.get(block.frame, 0)) for block in batch.blocks)
        if absent < batch.absent_min:
            batch.absent_min, batch.repairs = absent, 0
        whole = [block for block in batch.blocks if block.frame not in stored]
        parts = [block for block in batch.blocks if 0 < stored.get(block.frame, 0) < block.rows]
        if not whole and not parts:
            return None
        blocks = whole[: batch.repair_blocks_max] or parts[:1]
        log.info(
            "%s: of %d frames %d are missing, %d in part", batch.table.name, len(batch.blocks), len(whole), len(parts)
        )
        if whole:
            return Repair(blocks, None, self._frames.token())
        return Repair(blocks, ALL_ROWS, by_row(self._frames.token(), ALL_ROWS))

    async def _mend(self, batch: Batch, repair: Repair) -> None:
        if not repair.sealed:
            # After a crash nobody but its SEAL knows of an insert that may come through later.
            await self._seal_blocks(batch.table, repair.token, repair.blocks)
            repair.sealed = True
        await self._insert(batch, repair.blocks, repair.run, repair.token)

    async def _not_too_early(self, batch: Batch, error: DeliveryError) -> DeliveryError:
        """A refusal says nothing of attempts before it: while one may come through, the same is sent again."""
        is_cut_short = error.code in CUT_SHORT and batch.suspicions + 1 >= SUSPICIONS_MAX
        is_refusal = batch.isolation is None and ((isinstance(error, Poison) and error.code) or is_cut_short)
        if is_refusal and await self._may_come_through(batch):
            return Poison(f"{error}; {UNANSWERED}")
        return error

    async def _may_come_through(self, batch: Batch) -> bool:
        return await batch.unanswered.may_come_through(self._clock(), self._clickhouse)

    def _failed(self, batch: Batch, error: DeliveryError) -> None:
        queue = self._queues[batch.table.name]
        queue.sent.discard(batch)
        batch.attempts += 1
        if isinstance(error, Busy | Ambiguous) and not batch.unsure:
            # Inserts that time out side by side may each get through alone.
            self._in_flight_max = max(1, self._in_flight_max // 2)
        now = self._clock()
        batch.due = now + self._pause(batch, parked=isinstance(error, Operator | Poison))
        if batch.isolation is None:
            error = self._understood(batch, error)
            if isinstance(error, Poison) and error.code:
                batch.isolation = Isolation(error, refused=not batch.answered and batch.run is None)
                batch.attempts, batch.due = 0, now
        batch.poison = isinstance(error, Poison) or batch.isolation is not None
        (queue.aside if batch.poison or batch.unsure else queue.waiting).append(batch)
        if isinstance(error, Operator):
            queue.parked = str(error)
        elif not isinstance(error, Poison):
            queue.parked = ""
        what = "held" if isinstance(error, Poison) and not error.code else error.outcome
        self._alarm(batch.table.name, what, f"{error}; {batch.rows} rows wait, none is lost")

    def _understood(self, batch: Batch, error: DeliveryError) -> DeliveryError:
        """Note what an error says about a batch, and what it means by now."""
        batch.note(error, self._clock(), self._clickhouse)
        if isinstance(error, Ambiguous) and batch.repair is not None:
            batch.repair.doubtful = True
        if error.code in CUT_SHORT or error.code == MEMORY_LIMIT:
            batch.suspicions += 1
            if batch.suspicions >= SUSPICIONS_MAX:
                return self._believed(batch, error)
        return error

    def _believed(self, batch: Batch, error: DeliveryError) -> DeliveryError:
        """Act on what has now been said often enough."""
        batch.suspicions = 0
        if error.code in CUT_SHORT:
            return Poison(str(error), code=error.code, detail=error.detail)
        # Too large for the server's memory, and it said so each time: no attempt can still come
        # through. So count, and insert by halves what is missing.
        part = batch.repair.blocks if batch.repair else batch.blocks
        doubtful = batch.repair.doubtful if batch.repair else batch.doubtful
        if len(part) > 1 and not doubtful:
            batch.answered = True
            batch.repair = None
            batch.repair_blocks_max = len(part) // 2
            batch.repairs = 0
        return error

    def _finished(self, batch: Batch) -> None:
        self._queues[batch.table.name].sent.discard(batch)
        if batch.blocks:
            self._are_taken(self._queues[batch.table.name])
        self._are_stored(batch, batch.blocks)

    def _are_stored(self, batch: Batch, blocks: list[Block]) -> None:
        """These blocks of a batch are in the table."""
        self._in_flight_max = min(self._settings.inserts_in_flight, self._in_flight_max + 1)
        self._spool.done(batch.table.name, blocks)
        for block in blocks:
            block.promise.reach(Durability.STORED)
        self._settled(batch, blocks)
        self._on_stored(batch.table, blocks, (), self._clock())

    def _are_taken(self, queue: Queue) -> None:
        """The table takes rows now."""
        self._metrics.last_insert_timestamp_seconds.set(self._wall())
        queue.refused_rows = queue.refused_frames = 0
        if queue.parked:
            log.warning("%s takes rows again", queue.table.name)
            queue.parked = ""
        for waiting in (*queue.waiting, *queue.aside):
            waiting.due = 0.0

    def _is_buried(self, batch: Batch, block: Block, dead: Sequence[int], counted_at: float) -> None:
        """A block of a batch is settled: the rows ``dead`` are dead letters, the others are in the table."""
        if not dead:
            self._are_stored(batch, [block])
            return
        table = batch.table.name
        log.error("%s: %d rows that it will never take are dead letters now: `weir replay`", table, len(dead))
        self._spool.skip(table, [block], rows=block.rows - len(dead))
        self._metrics.rows_dead_lettered.add(len(dead), table)
        self._settled(batch, [block], dead=len(dead))
        self._on_stored(batch.table, [block], dead, counted_at)

    def _settled(self, batch: Batch, blocks: list[Block], *, dead: int = 0) -> None:
        """Nothing is left to do for these blocks of a batch; all of their rows but ``dead`` are in the table."""
        rows = sum(block.rows for block in blocks)
        self._ring.release(batch.table.name, rows, sum(block.held_bytes for block in blocks))
        if rows > dead:
            self._metrics.rows_stored.add(rows - dead, batch.table.name)
        batch.drop(blocks)
        for block in blocks:
            self._progress.settle(block.frame)

    def _pause(self, batch: Batch, *, parked: bool) -> float:
        """Seconds until the next attempt: exponential, capped, with jitter."""
        settings = self._settings
        doubled = 2.0 ** min(batch.attempts - 1, 30)
        if parked:
            return min(settings.parked_max_ms, settings.parked_first_ms * doubled) / 1000 * (0.5 + self._random() / 2)
        return min(settings.retry_max_ms, settings.retry_first_ms * doubled) / 1000 * self._random()

    def _alarm(self, table: str, what: str, message: str) -> None:
        """Log, but the same trouble of a table only every so often."""
        last, unsaid = self._alarms.get((table, what), (None, 0))
        now = self._clock()
        if last is not None and now - last < self._settings.alarm_every_ms / 1000:
            self._alarms[table, what] = (last, unsaid + 1)
            return
        self._alarms[table, what] = (now, 0)
        level = logging.WARNING if what in (Busy.outcome, Ambiguous.outcome) else logging.ERROR
        more = f" ({unsaid} more like it since the last message)" if unsaid else ""
        log.log(level, "%s: %s: %s%s", table, what, message, more)
