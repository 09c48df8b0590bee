"""A ClickHouse with what matters of the real one to those who insert, and its network.

* A row is stored when its part is. An insert makes one part for each day, one after the other, so it can be
  stored in part, and it goes on when nobody waits for its answer any more.
* Every part has the insert's token. Of a token that a day's window knows no part is made; the answer is the same.
* Killed between the two it remembers the token and has lost the part.
* Killed with its machine it may also lose parts that it acknowledged a moment ago.
* INSERT SELECT decides which rows are absent when it begins, and stores them when it ends.
"""

from __future__ import annotations

import asyncio
import struct
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from gateway.delivery.answers import Ambiguous, Busy, Operator, Poison
from gateway.delivery.clickhouse import ALL_ROWS, PATIENCE_MAX, ClickHouse, Row, _uncompressed
from gateway.schema import Table
from tests.chaos.simulation.loop import Being, Loop
from tests.delivery.things import DAY_NS


@dataclass(frozen=True, slots=True)
class Stored:
    """One row: its identity, its thing's number, and its day."""

    frame: int
    row: int
    number: int
    day: int


@dataclass
class Network:
    """How often an exchange goes wrong, in which way."""

    refused: float = 0.0
    request_lost: float = 0.0
    answer_lost: float = 0.0
    slow: float = 0.0
    busy: float = 0.0
    cut_short: float = 0.0
    memory: float = 0.0
    cancelled: float = 0.0
    silent_count: float = 0.0
    query_fails: float = 0.0
    timeout_s: float = 5.0
    slow_s: float = 20.0


@dataclass
class _Kept:
    """A table: its rows by identity, its parts that a crash may still lose, the tokens of each day."""

    rows: dict[tuple[int, int], Stored] = field(default_factory=dict)
    frames: dict[int, set[int]] = field(default_factory=dict)
    young: list[tuple[float, tuple[Stored, ...]]] = field(default_factory=list)
    tokens: dict[int, OrderedDict[str, None]] = field(default_factory=dict)
    operator: bool = False


class Server:
    """The server. ``stored`` is told of each row that is stored, ``lost`` of each that a crash has lost.

    ``poison``: numbers of things it will never take.
    """

    def __init__(
        self,
        loop: Loop,
        random: Random,
        tables: Iterable[str],
        note: Callable[[str], None],
        *,
        stored: Callable[[str, Stored], None],
        lost: Callable[[str, Stored], None],
    ) -> None:
        self.network = Network()
        self.window = 10_000
        self.unsynced_s = 8.0
        self.loses = 0.0
        self.poison: set[int] = set()
        self._loop = loop
        self._random = random
        self._note = note
        self._on_stored = stored
        self._on_lost = lost
        self._tables = {name: _Kept() for name in tables}
        self._being = Being("server 0")
        self._life = 0
        self._up = True
        self._started = -1000.0
        self._waiting: dict[asyncio.Future[Any], None] = {}
        self._committing: dict[tuple[str, int, str], None] = {}
        self._seen: dict[bytes, tuple[Stored, ...]] = {}

    # What happens to it ------------------------------------------------------------------------------

    def crash(self, *, machine: bool, for_s: float) -> None:
        """Be killed, with the machine or alone, and be back after a while."""
        if not self._up:
            return
        self._note(f"server: killed{' with its machine' if machine else ''}, back in {for_s:.3f}")
        self._up = False
        self._being.dead = True
        for name, day, token in list(self._committing):
            if self._random.random() < 0.5:
                self._note(f"server: {name}: {token} is known, its part is lost")
                self._remember(self._tables[name], day, token)
        self._committing.clear()
        if machine:
            self._lose()
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(Ambiguous("reset"))
        self._waiting.clear()
        self._loop.call_later(for_s, self._come_back)

    def _lose(self) -> None:
        for name, kept in self._tables.items():
            for at, part in kept.young:
                if self._loop.time() - at > self.unsynced_s or self._random.random() >= self.loses:
                    continue
                self._note(f"server: {name}: lost {len(part)} rows of frames {sorted({row.frame for row in part})}")
                for row in part:
                    del kept.rows[row.frame, row.row]
                    kept.frames[row.frame].discard(row.row)
                    self._on_lost(name, row)
            kept.young = []

    def _come_back(self) -> None:
        self._life += 1
        self._being = Being(f"server {self._life}")
        self._up = True
        self._started = self._loop.time()

    @property
    def is_up(self) -> bool:
        return self._up

    def park(self, table: str, *, parked: bool) -> None:
        """Take no rows of a table, or take them again."""
        self._note(f"server: {table} is {'parked' if parked else 'mended'}")
        self._tables[table].operator = parked

    def rows(self, table: str) -> Iterable[Stored]:
        """All rows of a table."""
        return self._tables[table].rows.values()

    # What it is asked --------------------------------------------------------------------------------

    async def exchange(self, work: Callable[[], Coroutine[Any, Any, Any]], *, insert: bool) -> Any:
        """A request over the network. Raises what became of it."""
        network = self.network
        await asyncio.sleep(self._random.random() * 0.003)
        if not self._up or self._fails(network.refused):
            raise Busy("cannot connect")
        if self._fails(network.request_lost):
            await asyncio.sleep(self._random.random() * 0.1)
            raise Ambiguous("reset before it was sent")
        answer_lost = self._fails(network.answer_lost)
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._waiting[answer] = None

        async def serve() -> None:
            result, error = None, None
            try:
                result = await work()
            except (Ambiguous, Busy, Operator, Poison) as raised:
                error = raised
            await asyncio.sleep(self._random.random() * 0.003)
            self._waiting.pop(answer, None)
            if answer.done():
                return
            if answer_lost:
                answer.set_exception(Ambiguous("reset before the answer"))
            elif error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)

        self._loop.create_task(serve(), context=self._being.context())
        try:
            async with asyncio.timeout(network.timeout_s if insert else 2 * network.timeout_s):
                return await answer
        except TimeoutError:
            raise Ambiguous("no answer in time") from None
        finally:
            self._waiting.pop(answer, None)

    async def insert(self, name: str, rows: Sequence[Stored], token: str) -> int | None:
        """Store rows, a part for each day. Returns how many it says it wrote."""
        kept = self._tables[name]
        network = self.network
        await asyncio.sleep(self._random.random() * 0.01)
        if kept.operator:
            raise Operator("TABLE_IS_READ_ONLY", code=242)
        if self._fails(network.busy):
            raise Busy("TOO_MANY_PARTS", code=252)
        if self._fails(network.cut_short):
            raise Ambiguous("CANNOT_READ_ALL_DATA", code=33)
        if any(row.number in self.poison for row in rows):
            # A batch is less than what the server puts into one block, which it checks before it stores any.
            raise Poison("VIOLATED_CONSTRAINT", code=469, detail="no")
        days: dict[int, list[Stored]] = {}
        for row in rows:
            days.setdefault(row.day, []).append(row)
        stop = self._random.randint(0, len(days)) if self._fails(network.memory) else None
        written = 0
        for index, (day, part) in enumerate(days.items()):
            if index == stop:
                raise Busy("MEMORY_LIMIT_EXCEEDED", code=241)
            if self._fails(network.cancelled):
                raise Ambiguous("TIMEOUT_EXCEEDED", code=159)
            committing = (name, day, token)
            self._committing[committing] = None
            await asyncio.sleep(self._random.random() * (network.slow_s if self._fails(network.slow) else 0.02))
            self._committing.pop(committing, None)
            if token not in kept.tokens.get(day, ()):
                self._remember(kept, day, token)
                self._store(name, kept, tuple(part))
                written += len(part)
        return None if self._fails(network.silent_count) else written

    async def insert_absent(self, name: str, rows: Sequence[Stored], between: tuple[int, int], token: str) -> None:
        """Store those rows that are not there yet."""
        await asyncio.sleep(self._random.random() * 0.01)
        there = self._tables[name].rows
        first, last = between
        absent = [row for row in rows if first <= row.row <= last and (row.frame, row.row) not in there]
        if absent:
            await self.insert(name, absent, token)

    async def ask(self, table: str, answer: Callable[[_Kept], Any]) -> Any:
        """A query."""
        await asyncio.sleep(self._random.random() * 0.005)
        kept = self._tables.get(table)
        if self._fails(self.network.query_fails):
            raise self._random.choice(
                (Busy("TOO_MANY_SIMULTANEOUS_QUERIES", code=202), Ambiguous("TIMEOUT_EXCEEDED", code=159))
            )
        return answer(kept if kept is not None else _Kept())

    @property
    def uptime_s(self) -> float:
        return float(int(self._loop.time() - self._started))

    def read(self, blocks: Sequence[bytes]) -> list[Stored]:
        """The rows of blocks as they are sent."""
        rows: list[Stored] = []
        for block in blocks:
            found = self._seen.get(block)
            if found is None:
                found = self._seen[block] = _rows(_uncompressed(block))
            rows += found
        return rows

    def _store(self, name: str, kept: _Kept, part: tuple[Stored, ...]) -> None:
        now = self._loop.time()
        kept.young = [young for young in kept.young if now - young[0] <= self.unsynced_s]
        kept.young.append((now, part))
        for row in part:
            self._on_stored(name, row)
            kept.rows[row.frame, row.row] = row
            kept.frames.setdefault(row.frame, set()).add(row.row)

    def _remember(self, kept: _Kept, day: int, token: str) -> None:
        known = kept.tokens.setdefault(day, OrderedDict())
        known[token] = None
        while len(known) > self.window:
            known.popitem(last=False)

    def _fails(self, chance: float) -> bool:
        return chance > 0 and self._random.random() < chance


UNDER_WAY_S = 60.0
"""So long a client believes that what an earlier life has sent may go on."""


class Client(ClickHouse):
    """A process's way to the server."""

    def __init__(self, server: Server, client: Being, note: Callable[[str], None]) -> None:
        super().__init__("http://simulated", insert_timeout_s=UNDER_WAY_S / PATIENCE_MAX)
        self._server = server
        self._process = client
        self._note = note

    async def insert(self, table: Table, blocks: Sequence[bytes], *, token: str, patience: float = 1.0) -> int | None:
        rows = self._server.read(blocks)
        written: int | None = await self._told(
            f"insert {table.name} {token} {_frames(rows)}",
            self._server.exchange(lambda: self._server.insert(table.name, rows, token), insert=True),
        )
        return written

    async def insert_absent(
        self,
        table: Table,
        block: bytes,
        *,
        frame: int,
        token: str,
        rows: tuple[int, int] = ALL_ROWS,
        patience: float = 1.0,
    ) -> None:
        found = self._server.read([block])
        await self._told(
            f"insert absent {table.name} {token} {_frames(found)} {rows}",
            self._server.exchange(lambda: self._server.insert_absent(table.name, found, rows, token), insert=True),
        )

    async def rows_by_frame(self, table: Table, frames: Sequence[int]) -> dict[int, int]:
        counted: dict[int, int] = await self._told(
            f"count {table.name} {_short(frames)}",
            self._asked(
                table.name, lambda kept: {frame: len(kept.frames[frame]) for frame in frames if kept.frames.get(frame)}
            ),
        )
        return counted

    async def stored_rows(self, table: Table, frame: int) -> set[int]:
        rows: set[int] = await self._asked(table.name, lambda kept: set(kept.frames.get(frame, ())))
        return rows

    async def read_rows(self, table: Table, block: bytes, rows: Sequence[int]) -> list[Row]:
        found = self._server.read([block])
        await self._asked(table.name, lambda kept: None)
        return [{"Number": found[row].number} for row in rows]

    async def uptime_s(self) -> float:
        uptime: float = await self._asked("", lambda kept: self._server.uptime_s)
        return uptime

    def _asked(self, table: str, answer: Callable[[_Kept], Any]) -> Awaitable[Any]:
        return self._server.exchange(lambda: self._server.ask(table, answer), insert=False)

    async def _told(self, what: str, exchange: Awaitable[Any]) -> Any:
        self._note(f"{self._process.name}: {what}")
        try:
            result = await exchange
        except Exception as error:
            self._note(f"{self._process.name}: {what}: {type(error).__name__} {error}")
            raise
        self._note(f"{self._process.name}: {what}: {result}")
        return result


def _frames(rows: Iterable[Stored]) -> str:
    return _short(dict.fromkeys(row.frame for row in rows))


def _short(frames: Iterable[int]) -> str:
    """Slot, epoch and sequence of frame numbers."""
    return " ".join(f"{frame >> 44 & 63}.{frame >> 26 & 0x3FFFF}.{frame & 0x3FFFFFF}" for frame in frames)


def _rows(native: bytes) -> tuple[Stored, ...]:
    """The things of Native blocks, by the layout of ``things``."""
    found: list[Stored] = []
    at = 0
    while at < len(native):
        columns, at = _varint(native, at)
        rows, at = _varint(native, at)
        read: list[Sequence[int]] = []
        for _ in range(columns):
            _, at = _text(native, at)
            type_, at = _text(native, at)
            values, at = _column(native, at, type_.decode(), rows)
            read.append(values)
        times, numbers, _, frames, row_numbers = read
        found += [
            Stored(frame, row, number, time // DAY_NS)
            for frame, row, number, time in zip(frames, row_numbers, numbers, times, strict=True)
        ]
    return tuple(found)


def _column(native: bytes, at: int, type_: str, rows: int) -> tuple[Sequence[int], int]:
    if type_ == "String":
        for _ in range(rows):
            _, at = _text(native, at)
        return [0] * rows, at
    code, size = ("I", 4) if type_ == "UInt32" else ("Q", 8)
    return struct.unpack_from(f"<{rows}{code}", native, at), at + rows * size


def _text(native: bytes, at: int) -> tuple[bytes, int]:
    length, at = _varint(native, at)
    return native[at : at + length], at + length


def _varint(native: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = native[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
