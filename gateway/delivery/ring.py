"""One shard's ring: rows come in as columns and go out as blocks, never more bytes than its budget.

A row's bytes are counted from its request's admission until ClickHouse has it:

    reserved (what the request said) -> open columns (what it came to) -> block (compressed)
        -> spooled -> batch -> released
               '--(too much is held)--> released, and read from the spool when its turn has come

A request writes into the open columns of its project and table, after a mark; it is kept whole or
taken back whole. Open columns are cut into a block when they are large enough, and all of them together
when the disk has nothing else to write, or the first has waited long enough. A block's bytes are final:
they are what the spool writes and what an insert sends.

Nothing here waits. When the budget is spent, requests are refused with an estimate of when to return.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from types import TracebackType

from gateway._native import Columns
from gateway.delivery.block import Block, Durability, Promise, Receipt, tie
from gateway.delivery.drain import Drain
from gateway.delivery.frames import FrameNumbers
from gateway.delivery.idempotency import Claims
from gateway.delivery.settings import Settings
from gateway.errors import Overloaded, TooLarge
from gateway.metrics import Metrics
from gateway.schema import Table

log = logging.getLogger(__name__)

SMALL_BYTES, SMALL_SPARE_MAX = 16 << 10, 64
"""Of columns that never held more than this, so many are kept for reuse: making them costs more than filling them."""
OPEN_OVERHEAD_BYTES = 4096
"""What open columns may come to beyond their rows: a small block has more frame than picture."""


class Stock:
    """The columns of one table: made when needed, reused when cut. ``make`` builds empty ones."""

    def __init__(
        self,
        table: Table,
        make: Callable[[Sequence[tuple[str, str]]], Columns],
        *,
        spare_max: int,
        spare_bytes_max: int,
    ) -> None:
        sources = [column.source for column in table.columns]
        self.table = table
        self.name = table.name
        self._layout = table.layout
        self.frame_column = sources.index("frame")
        self.row_column = sources.index("row")
        self._make = make
        self._spare: list[Columns] = []
        self._spare_max = spare_max
        self._spare_bytes_max = spare_bytes_max

    def take(self) -> Columns:
        """Empty columns."""
        return self._spare.pop() if self._spare else self._make(self._layout)

    def give(self, columns: Columns, grown_to_bytes: int) -> None:
        """Return empty columns. Those that once held a large request stay large: few or none of them are kept."""
        few = len(self._spare) < self._spare_max and grown_to_bytes <= self._spare_bytes_max
        if few or (len(self._spare) < SMALL_SPARE_MAX and grown_to_bytes <= SMALL_BYTES):
            self._spare.append(columns)


class _Open:
    """Open columns of one project and table, and what of them is counted so far."""

    __slots__ = (
        "bytes_before",
        "columns",
        "durability",
        "held",
        "held_bytes",
        "key",
        "keys",
        "promise",
        "rows_before",
        "since",
        "stock",
    )

    def __init__(self, key: tuple[str, str], stock: Stock, since: float) -> None:
        self.key = key
        self.durability = Durability.MEMORY
        self.promise = Promise()
        self.keys = b""
        self.stock = stock
        self.columns = stock.take()
        self.since = since
        self.held = False
        self.held_bytes = 0
        self.rows_before = self.bytes_before = 0


class RowsHandle:
    """One request's way in, a context manager: what is not committed is taken back.

    Between the first ``columns`` and ``commit`` the caller must not await: the columns are shared
    with the project's other requests.
    """

    __slots__ = ("_bytes", "_durability", "_opened", "_project_id", "_ring")

    def __init__(self, ring: Ring, project_id: str, expected_bytes: int, durability: Durability) -> None:
        self._ring = ring
        self._durability = durability
        self._project_id = project_id
        self._bytes = expected_bytes
        self._opened: list[_Open] = []

    def __enter__(self) -> RowsHandle:
        self._ring.reserve(self._bytes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ring.take_back(self._opened, self._bytes)
        self._opened, self._bytes = [], 0

    def columns(self, table: str) -> Columns:
        """The open columns of a table, marked at the first call.

        Raises RuntimeError when another request still has them, LookupError for a table nobody declared.
        """
        for opened in self._opened:
            if opened.stock.name == table:
                return opened.columns
        opened = self._ring.open(self._project_id, table)
        self._opened.append(opened)
        return opened.columns

    @property
    def tables(self) -> int:
        """How many were opened."""
        return len(self._opened)

    def rollback(self) -> None:
        """Take back what was written; it may be written once more."""
        for opened in self._opened:
            opened.columns.rollback()

    async def cut(self) -> None:
        """Nothing: the ring cuts when there is enough for a block."""

    def commit(self, *claims: Claims) -> Receipt:
        """Keep what was written, but for what the claims say is kept already.

        Raises Overloaded or TooLarge when it came to more than there is room for.
        """
        receipt = self._ring.keep(self._opened, self._bytes, self._durability, claims)
        self._opened, self._bytes = [], 0
        return receipt


class RowsApart:
    """A large request's way in, a context manager: columns of its own, which another thread may write.

    ``columns`` may be called there; ``cut`` and then ``commit`` by the event loop. What is not committed
    is as if it had never been.
    """

    __slots__ = ("_blocks", "_bytes", "_durability", "_opened", "_project_id", "_ring")

    def __init__(self, ring: Ring, project_id: str, expected_bytes: int, durability: Durability) -> None:
        self._ring = ring
        self._durability = durability
        self._project_id = project_id
        self._bytes = expected_bytes
        self._opened: dict[str, tuple[Stock, Columns]] = {}
        self._blocks: list[Block] = []

    def __enter__(self) -> RowsApart:
        self._ring.reserve(self._bytes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ring.take_back([], self._bytes)
        self._bytes = 0

    def columns(self, table: str) -> Columns:
        """Columns of a table for this request alone. Raises LookupError for a table nobody declared."""
        if table not in self._opened:
            stock = self._ring.stock(table)
            columns = stock.take()
            columns.mark()
            self._opened[table] = stock, columns
        return self._opened[table][1]

    async def cut(self) -> None:
        """Make blocks of what was written, in a thread."""
        for stock, columns in self._opened.values():
            if columns.rows:
                self._blocks.append(await self._ring.cut_apart(stock, columns, self._project_id, self._durability))

    @property
    def tables(self) -> int:
        """How many were opened."""
        return len(self._opened)

    def rollback(self) -> None:
        """Take back what was written; it may be written once more."""
        for _, columns in self._opened.values():
            columns.rollback()

    def commit(self, *claims: Claims) -> Receipt:
        """Keep what was cut, but for what the claims say is kept already.

        Raises Overloaded or TooLarge when it came to more than there is room for.
        """
        blocks = {block.table: block for block in self._blocks}
        parts = [blocks.get(table) for table in self._opened]
        receipt = self._ring.keep_blocks(parts, self._bytes, self._durability, claims)
        self._bytes = 0
        return receipt


class Ring:
    """One shard. ``take`` is given each block as it is cut. ``is_idle``: whether the disk waits for one.

    ``rows``: rows accepted and not yet released, per table. ``held_bytes``: of the budget, in use.
    """

    def __init__(
        self,
        shard: int,
        stocks: dict[str, Stock],
        settings: Settings,
        *,
        frames: FrameNumbers,
        metrics: Metrics,
        clock: Callable[[], float],
        take: Callable[[Block], None],
        is_idle: Callable[[], bool],
    ) -> None:
        self.shard = shard
        self.bytes_max = settings.shard_bytes_max
        self.held_bytes = 0
        self.reserved_bytes = 0
        self.rows: dict[str, int] = {}
        self._take = take
        self._is_idle = is_idle
        self._stocks = stocks
        self._settings = settings
        self._frames = frames
        self._metrics = metrics
        self._clock = clock
        self._open: dict[tuple[str, str], _Open] = {}
        self._timer: asyncio.Handle | None = None
        self._drain = Drain(clock)

    def check(self, wanted: int) -> None:
        """Refuse what does not fit beside what is held."""
        if self.held_bytes + wanted > self.bytes_max:
            raise self._refusal(wanted, extra=wanted)

    def reserve(self, wanted: int) -> None:
        """Count ``wanted`` bytes as held, or refuse."""
        self.check(wanted)
        self.held_bytes += wanted
        self.reserved_bytes += wanted

    def stock(self, table: str) -> Stock:
        """The columns of a table. Raises LookupError when nobody declared it."""
        stock = self._stocks.get(table)
        if stock is None:
            raise LookupError(f"no table {table!r} was declared to the delivery")
        return stock

    def open(self, project_id: str, table: str) -> _Open:
        """The open columns of a project and table, marked and held until kept or taken back."""
        key = (project_id, table)
        opened = self._open.get(key)
        if opened is None:
            opened = self._open[key] = _Open(key, self.stock(table), self._clock())
        elif opened.held:
            raise RuntimeError(f"two requests write into the open columns of {table} at once: one awaited in between")
        opened.held = True
        opened.rows_before = opened.columns.rows
        opened.bytes_before = opened.columns.bytes
        opened.columns.mark()
        return opened

    def keep(
        self, opened: list[_Open], reserved: int, durability: Durability, claims: Sequence[Claims] = ()
    ) -> Receipt:
        """Keep what was written since ``open``, at its real size instead of the reserved one."""
        parts, repeated = opened, [each for part, each in enumerate(opened) if _has(claims, part)]
        if repeated:
            opened = [each for each in opened if each not in repeated]
        grown = 0
        for each in opened:
            grown += each.columns.bytes - each.bytes_before
            if each.rows_before == 0:
                grown += OPEN_OVERHEAD_BYTES
        if self.held_bytes - reserved + grown > self.bytes_max:
            raise self._refusal(grown, extra=grown - reserved)
        self.held_bytes += grown - reserved
        self.reserved_bytes -= reserved
        self.take_back(repeated, 0)
        for part, each in enumerate(parts if claims else ()):
            has_rows = each not in repeated and each.columns.rows > each.rows_before
            each.keys += _entries(claims, part, len(parts), has_rows=has_rows)
        promises = [each.promise for each in opened if each.columns.rows > each.rows_before]
        receipt = self._receipt(promises, durability, claims)
        for each in opened:
            each.durability = max(each.durability, durability)
            self._count(each)
        if len(self._open) > self._settings.open_columns_max:
            self._cut_safely(list(self._open.values()))
        else:
            self._cut_safely([each for each in opened if each.columns.bytes >= self._settings.block_bytes])
        if self._timer is None and self._open:
            self._start_timer()
        return receipt

    async def cut_apart(self, stock: Stock, columns: Columns, project_id: str, durability: Durability) -> Block:
        """A block of a request's own columns, cut in a thread; nothing is counted yet."""
        since, rows, frame = self._clock(), columns.rows, self._frames.next()
        data = await asyncio.to_thread(
            columns.cut, frame=frame, frame_column=stock.frame_column, row_column=stock.row_column
        )
        return Block(stock.name, project_id, frame, rows, data, since, durability=durability)

    def keep_blocks(
        self, parts: Sequence[Block | None], reserved: int, durability: Durability, claims: Sequence[Claims] = ()
    ) -> Receipt:
        """Keep blocks that were cut apart, at their real size instead of the reserved one.

        ``parts``: one for each table that was opened, None without rows.
        """
        blocks = [block for part, block in enumerate(parts) if block is not None and not _has(claims, part)]
        grown = sum(block.held_bytes for block in blocks)
        if self.held_bytes - reserved + grown > self.bytes_max:
            raise self._refusal(grown, extra=grown - reserved)
        for part, block in enumerate(parts if claims else ()):
            entries = _entries(claims, part, len(parts), has_rows=block in blocks)
            if block is not None:
                block.keys = entries
        self.held_bytes += sum(block.held_bytes for block in blocks) - reserved
        self.reserved_bytes -= reserved
        receipt = self._receipt([block.promise for block in blocks], durability, claims)
        for block in blocks:
            self.rows[block.table] = self.rows.get(block.table, 0) + block.rows
            self._metrics.rows_accepted.add(block.rows, block.table)
            self._take(block)
        return receipt

    def take_back(self, opened: list[_Open], reserved: int) -> None:
        """Forget what was written since ``open``, and the reservation."""
        for each in opened:
            grown_to_bytes = each.columns.bytes
            each.columns.rollback()
            each.held = False
            if each.columns.rows == 0:
                self._put_away(each, grown_to_bytes)
        self.held_bytes -= reserved
        self.reserved_bytes -= reserved

    def release(self, table: str, rows: int, held_bytes: int) -> None:
        """Nothing is left to do for these rows."""
        self.held_bytes -= held_bytes
        self.rows[table] -= rows
        self._drain.add(held_bytes)

    def forget(self, block: Block) -> None:
        """A block is on disk alone now."""
        self.held_bytes -= block.held_bytes
        self._drain.add(block.held_bytes)

    def hold(self, block: Block) -> None:
        """A block was read from disk. This may go over the budget: accepted rows need not fit twice."""
        self.held_bytes += block.held_bytes

    def find(self, table: str, rows: int) -> None:
        """Rows of an earlier life are on disk."""
        self.rows[table] = self.rows.get(table, 0) + rows

    def cut(self) -> bool:
        """Cut all open columns into blocks; false when some could not be, which is logged."""
        return self._cut_safely(list(self._open.values()))

    def stop(self) -> None:
        """Cut what is open and stop the timer."""
        self.cut()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def open_rows(self) -> dict[str, int]:
        """Rows in open columns, per table; counted afresh."""
        rows: dict[str, int] = {}
        for opened in self._open.values():
            kept = opened.rows_before if opened.held else opened.columns.rows
            rows[opened.stock.name] = rows.get(opened.stock.name, 0) + kept
        return rows

    def oldest(self) -> float | None:
        """The clock when the oldest open row came."""
        return min((opened.since for opened in self._open.values()), default=None)

    def _receipt(self, promises: Sequence[Promise], durability: Durability, claims: Sequence[Claims]) -> Receipt:
        if len(promises) > 1:
            tie(promises)
        if any(claim.some_are_kept for claim in claims):
            # An earlier request had some of it kept, and nobody here knows whether that is stored.
            durability = min(durability, Durability.DISK)
        return Receipt(promises, durability, stored_s_max=self._settings.stored_ms_max / 1000)

    def _count(self, opened: _Open) -> None:
        table = opened.stock.name
        columns = opened.columns
        rows = columns.rows - opened.rows_before
        held_bytes = columns.bytes
        opened.held = False
        opened.held_bytes += held_bytes - opened.bytes_before
        if opened.rows_before == 0:
            opened.held_bytes += OPEN_OVERHEAD_BYTES
        if rows:
            self.rows[table] = self.rows.get(table, 0) + rows
            self._metrics.rows_accepted.add(rows, table)
        elif columns.rows == 0:
            self.held_bytes -= opened.held_bytes
            self._put_away(opened, held_bytes)

    def _cut(self, opened: _Open) -> None:
        columns, stock = opened.columns, opened.stock
        rows, grown_to_bytes = columns.rows, columns.bytes
        frame = self._frames.next()
        data = columns.cut(frame=frame, frame_column=stock.frame_column, row_column=stock.row_column)
        block = Block(
            stock.name,
            opened.key[0],
            frame,
            rows,
            data,
            opened.since,
            durability=opened.durability,
            promise=opened.promise,
            keys=opened.keys,
        )
        self.held_bytes += block.held_bytes - opened.held_bytes
        self._put_away(opened, grown_to_bytes)
        self._take(block)

    def _put_away(self, opened: _Open, grown_to_bytes: int) -> None:
        del self._open[opened.key]
        opened.stock.give(opened.columns, grown_to_bytes)

    def cut_soon(self) -> None:
        """Cut all open columns at the end of this turn of the loop: nothing else is under way to the disk."""
        if self._open:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_soon(self._expire)

    def _start_timer(self) -> None:
        loop = asyncio.get_running_loop()
        if self._is_idle():
            self._timer = loop.call_soon(self._expire)
        else:
            self._timer = loop.call_later(self._settings.block_age_ms / 1000, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self._cut_safely(list(self._open.values()))
        if self._open:
            self._start_timer()

    def _cut_safely(self, opened: list[_Open]) -> bool:
        """Cut; where that fails the rows, which are accepted, stay in their columns for the next turn."""
        whole = True
        for each in opened:
            try:
                if not each.held:
                    self._cut(each)
            except Exception:
                log.exception("shard %d: columns of %s could not be cut; kept", self.shard, each.stock.name)
                whole = False
        return whole

    def _refusal(self, wanted: int, *, extra: int) -> Overloaded | TooLarge:
        if wanted > self.bytes_max:
            return TooLarge(
                f"the request needs {wanted} bytes of buffer and there are {self.bytes_max} in all; send smaller ones",
                log=f"shard {self.shard}: a request wants {wanted} of {self.bytes_max} bytes",
            )
        missing = self.held_bytes + extra - self.bytes_max
        return Overloaded(
            "buffers are full; send the same again later",
            log=f"shard {self.shard}: {self.held_bytes} of {self.bytes_max} bytes held, {wanted} more wanted",
            retry_after_s=self._drain.seconds(missing),
        )


def _has(claims: Sequence[Claims], part: int) -> bool:
    """Whether a part of a request is kept already."""
    return any(claim.has(part) for claim in claims)


def _entries(claims: Sequence[Claims], part: int, parts: int, *, has_rows: bool) -> bytes:
    """What the block of a part carries of the claims; nothing where it has no rows to keep."""
    if has_rows:
        return b"".join(claim.entries(part, parts) for claim in claims)
    for claim in claims:
        claim.without_rows(part, parts)
    return b""
