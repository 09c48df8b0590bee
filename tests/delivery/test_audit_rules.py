"""What keeps the audit, and those beside it, from forgetting rows too soon: each rule alone, on a clock that stands."""

from __future__ import annotations

import asyncio
import logging
import math
from array import array
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from gateway.delivery.answers import Ambiguous, Busy, DeliveryError, Operator, Poison
from gateway.delivery.audit import Audit
from gateway.delivery.batch import Batch, Isolation, Queue
from gateway.delivery.block import Block, Durability
from gateway.delivery.clickhouse import ALL_ROWS, ClickHouse, Row
from gateway.delivery.deadletter import DeadLetters
from gateway.delivery.flusher import Flusher
from gateway.delivery.frames import FrameNumbers
from gateway.delivery.poison import Isolator
from gateway.delivery.progress import Progress
from gateway.delivery.ring import Ring
from gateway.delivery.seals import Sealed
from gateway.delivery.segments import Member
from gateway.delivery.settings import Settings
from gateway.delivery.spool import Spool
from gateway.metrics import Metrics
from gateway.schema import Table
from tests.delivery.audits import audit_of, stored_block
from tests.delivery.rig import SETTINGS, until
from tests.delivery.spools import killed, opened, refused
from tests.delivery.test_restarts_of_both import Mute, Server, away, begun, told
from tests.delivery.things import THINGS

# What is remembered ---------------------------------------------------------------------------------


async def test_what_earlier_lives_stored_is_let_go_by_its_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever order they told of it."""
    monkeypatch.setattr("gateway.delivery.audit.FRAMES_MAX", 2)
    server = Server()
    audit = told(server, [])
    for frame, at in ((5, 950.0), (6, 900.0)):
        audit.found("things", at, one(frame), letters=False)
    audit.found_all()
    await audit.look()
    audit.stored("things", [stored_block(7)])
    assert await counted_after_a_crash(audit, server) == [5, 7]


async def test_what_is_safe_is_let_go_though_it_was_found_behind_what_is_not() -> None:
    """It would be inserted again, had somebody deleted it since."""
    server = Server()
    audit = told(server, [])
    for frame, at in ((5, 950.0), (6, 500.0)):
        audit.found("things", at, one(frame), letters=False)
    audit.found_all()
    await audit.look()
    assert await counted_after_a_crash(audit, server) == [5]


@pytest.mark.parametrize("is_earlier", [True, False], ids=["of an earlier life", "of ours"])
async def test_of_much_that_was_stored_at_once_not_all_is_let_go(
    monkeypatch: pytest.MonkeyPatch, is_earlier: bool
) -> None:
    monkeypatch.setattr("gateway.delivery.audit.FRAMES_MAX", 5)
    monkeypatch.setattr("gateway.delivery.audit.FRAMES_PER_COUNT", 2)
    server = Server()
    audit = told(server, [])
    frames = range(1, 7)
    if is_earlier:
        audit.found("things", 950.0, array("Q", chain.from_iterable((1, each, 3) for each in frames)), letters=False)
    else:
        audit.stored("things", [stored_block(each) for each in frames])
    audit.found_all()
    await audit.look()
    assert await counted_after_a_crash(audit, server) == [3, 4, 5, 6]


async def test_what_was_let_go_leaves_its_room_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is let go while it waits to be counted, and goes back to the spool then."""
    monkeypatch.setattr("gateway.delivery.audit.FRAMES_MAX", 2)
    server, again = Server(), list[int]()
    audit = told(server, again)
    audit.found_all()
    await audit.look()
    audit.stored("things", [stored_block(7)])
    restart(server, 1_010.0)
    server.rows_by_frame, counts = away, server.rows_by_frame  # type: ignore[method-assign]
    with pytest.raises(Busy):
        await audit.look()
    for frame in (8, 9):
        audit.stored("things", [stored_block(frame)])
    server.rows_by_frame = counts  # type: ignore[method-assign]
    await audit.look()
    assert again == [7]
    server.counted = []
    audit.stored("things", [stored_block(10)])
    assert await counted_after_a_crash(audit, server) == [9, 10], "there is room for two"


async def test_a_server_that_speaks_again_is_believed_to_be_mute_no_longer() -> None:
    """What was stored between two silences may be lost: both of them were starts."""
    server, again = Mute(), list[int]()
    audit = told(server, again)
    audit.found_all()
    with pytest.raises(Operator):
        await audit.look()
    server.clock_s, server.is_mute = 1_100.0, False
    await audit.look()
    server.clock_s = 1_230.0
    audit.stored("things", [stored_block(7)])
    server.clock_s, server.is_mute = 1_400.0, True
    with pytest.raises(Operator):
        await audit.look()
    assert audit.safe() == 980.0, "it was seen at 1100"
    restart(server, 1_410.0)
    server.is_mute = False
    await audit.look()
    assert again == [7]


# What the next life is told -------------------------------------------------------------------------


async def test_a_later_life_is_told_that_what_is_safe_was_done_a_minute_earlier() -> None:
    """It goes by the time of the day, which may be put forward and back meanwhile."""
    server = Server()
    audit = told(server, [])
    audit.found_all()
    await audit.look()
    assert (audit.safe(), audit.counted) == (880.0, 820.0)


async def test_a_later_life_finds_what_is_still_to_be_counted() -> None:
    server = Server()
    audit = told(server, [])
    audit.found_all()
    await audit.look()
    audit.stored("things", [stored_block(7)])
    restart(server, 1_100.0)
    server.rows_by_frame, counts = away, server.rows_by_frame  # type: ignore[method-assign]
    for server.clock_s in (1_100.0, 1_500.0):
        with pytest.raises(Busy):
            await audit.look()
    assert (audit.safe(), audit.counted) == (1_380.0, 940.0)
    server.rows_by_frame, server.there = counts, {7: 3}  # type: ignore[method-assign]
    await audit.look()
    assert (audit.needed, audit.counted) == (set(), 1_320.0)


async def test_a_later_life_finds_what_was_inserted_again_a_moment_ago() -> None:
    server = Server()
    audit = told(server, [])
    await a_rest_is_missing(audit, server)
    await audit.look()
    assert server.inserted == [7]
    server.clock_s = 1_210.0
    await audit.look()
    assert (audit.safe(), audit.counted) == (1_090.0, 940.0)
    server.clock_s = 1_300.0
    await audit.look()
    assert audit.counted == 1_120.0


# Counting -------------------------------------------------------------------------------------------


async def test_what_an_earlier_life_stored_is_looked_after_for_as_long_once_it_was_counted() -> None:
    """That life may have inserted some of it again before it was killed: as young as that is what is there."""

    async def read(members: Iterable[Member]) -> list[Block]:
        return [stored_block(frame, segment) for segment, frame in members]

    server, again = Server(), list[int]()
    server.started, server.there = 950.0, {5: 3}
    audit = told(server, again, read=read)
    audit.found("things", 900.0, one(5), letters=False)
    audit.found("things", 901.0, one(6, segment=2), letters=False)
    audit.found_all()
    await audit.look()
    assert (again, audit.needed) == ([6], {1}), "what is in the spool anew is looked after there"
    server.clock_s, server.there = 1_100.0, {}
    restart(server, 1_100.0)
    await audit.look()
    assert again == [6, 5]


async def test_what_was_counted_and_is_there_keeps_no_segment() -> None:
    server = Server()
    audit = told(server, [])
    audit.found_all()
    await audit.look()
    audit.stored("things", [stored_block(7)])
    server.there = {7: 3}
    assert (await counted_after_a_crash(audit, server), audit.needed) == ([7], set())


async def test_a_batch_that_cannot_be_counted_keeps_no_other_of_its_table_waiting() -> None:
    class Slow(Server):
        async def rows_by_frame(self, table: object, frames: Sequence[int]) -> dict[int, int]:
            if 5 in frames:
                raise Ambiguous("no answer")
            return await super().rows_by_frame(table, frames)

    server, again = Slow(), list[int]()
    audit = told(server, again)
    for frame, at in ((5, 900.0), (6, 901.0), (7, 902.0)):
        audit.found("things", at, one(frame), letters=False)
    audit.found_all()
    server.started = 950.0
    for expected in ([], [6, 7]):
        with pytest.raises(Ambiguous):
            await audit.look()
        assert again == expected


class Late(Server):
    """Its answer to an insert takes ``takes_s``, and says ``error`` once, though the rows are stored."""

    def __init__(self, takes_s: float = 0.0, error: DeliveryError | None = None) -> None:
        super().__init__()
        self._takes_s = takes_s
        self._error = error

    async def insert_absent(self, *arguments: Any, **more: Any) -> None:
        await super().insert_absent(*arguments, **more)
        self.clock_s += self._takes_s
        error, self._error = self._error, None
        if error is not None:
            raise error


async def test_a_rest_whose_insert_had_no_answer_is_kept_as_if_it_had() -> None:
    server = Late(error=Ambiguous("no answer"))
    audit = told(server, [])
    await a_rest_is_missing(audit, server)
    with pytest.raises(Ambiguous):
        await audit.look()
    server.clock_s = 1_130.0
    await audit.look()
    assert (server.inserted, audit.needed) == ([7], {1}), "it is there, and may be lost once more"
    restart(server, 1_140.0)
    server.there = {7: 1}
    await audit.look()
    assert server.inserted == [7, 7]


async def test_a_rest_is_kept_from_the_moment_its_insert_was_answered() -> None:
    server = Late(takes_s=100.0)
    audit = told(server, [])
    await a_rest_is_missing(audit, server)
    await audit.look()
    for server.clock_s, needed in ((1_310.0, {1}), (1_330.0, set[int]())):
        await audit.look()
        assert audit.needed == needed


async def test_a_rest_that_the_table_refuses_is_searched_for_and_kept_no_longer() -> None:
    again: list[tuple[int, bool]] = []
    server = Late(error=Poison("it is not for this table", code=117))
    audit = audit_of(
        server, lambda: server.clock_s, again=lambda block: again.append((block.frame, block.suspect)), keep_s=120.0
    )
    await a_rest_is_missing(audit, server)
    await audit.look()
    assert (again, audit.needed) == ([(7, True)], set())


@pytest.mark.parametrize("is_earlier", [False, True], ids=["our own attempt", "that of an earlier life"])
async def test_what_is_refused_is_not_searched_while_an_attempt_before_may_come_through(is_earlier: bool) -> None:
    errors: list[DeliveryError] = [] if is_earlier else [Ambiguous("no answer")]

    class Refusing(Server):
        async def insert_absent(self, *arguments: Any, **more: Any) -> None:
            raise errors.pop(0) if errors else Poison("it is not for this table", code=117)

    server, again = Refusing(), list[int]()
    audit = told(server, again)
    await a_rest_is_missing(audit, server, is_earlier=is_earlier)
    for error in (*(type(each) for each in errors), Busy):
        with pytest.raises(error):
            await audit.look()
    assert again == []
    server.clock_s += server.under_way_s
    await audit.look()
    assert again == [7]


class Scripted(Server):
    """Says so, one after the other, and then nothing any more."""

    def __init__(self, *script: float | DeliveryError) -> None:
        super().__init__()
        self.is_over = False
        self._script = list(script)

    async def uptime_s(self) -> float:
        if not self._script:
            self.is_over = True
            await asyncio.Event().wait()
        answer = self._script.pop(0)
        if isinstance(answer, DeliveryError):
            raise answer
        return answer


async def test_the_same_trouble_is_said_once_until_all_was_well(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gateway.delivery.audit.LOOK_S", 0.0)
    denied, closed = Operator("it is not for you", code=497), Operator("it is closed", code=242)
    server = Scripted(denied, denied, Busy("cannot connect"), denied, 1_000.0, denied, closed, closed, denied)
    watch = asyncio.create_task(told(server, []).run())
    await until(lambda: server.is_over, "all of it was said")
    watch.cancel()
    said = [record.getMessage().rpartition(": ")[2] for record in caplog.records if record.levelno == logging.ERROR]
    assert said == ["it is not for you", "it is not for you", "it is closed", "it is not for you"]


# The spool ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("put_s", [5_000.0, -5_000.0], ids=["put forward", "put back"])
async def test_what_was_done_seems_rather_late_than_early_where_the_time_of_the_day_was_put(
    tmp_path: Path, put_s: float
) -> None:
    """Else a server that started since would seem to have started before, or what was done before to be safe."""
    clock_s, day_s = 1_000.0, 1_790_000_000.0

    def spool_of(directory: Path) -> tuple[FrameNumbers, Spool]:
        numbers = FrameNumbers(directory)
        return numbers, Spool(
            numbers,
            segment_bytes=1 << 16,
            reserve_bytes=1 << 12,
            audit_s=100.0,
            clock=lambda: clock_s,
            wall=lambda: day_s,
        )

    numbers, spool = spool_of(tmp_path / "a")
    spool.start()
    await spool.recover()
    block = Block("things", "p", numbers.next(), 3, b"a block", clock_s, durability=Durability.DISK)
    kept: list[Block] = []
    spool.append(block, kept.append, refused)
    await until(lambda: bool(kept), "it is kept")
    day_s += put_s
    spool.sweep(-math.inf, counted=clock_s - 100.0)
    spool.done("things", [block])
    await spool.stop()
    numbers.close()
    numbers_after, after = spool_of(killed(tmp_path / "a", tmp_path / "b"))
    backlog, _ = await after.recover()
    numbers_after.close()
    [(table, at, letters)] = backlog.done
    assert (table, at >= clock_s, letters) == ("things", True, False)


async def test_blocks_are_read_in_whatever_order_they_are_asked_for(tmp_path: Path) -> None:
    async with begun(tmp_path / "a") as (spool, _, append):
        blocks = [await append() for _ in range(4)]
        for wanted in (blocks[2:3], blocks[:1], blocks[1:], blocks[3:], blocks):
            read = await spool.read(block.member for block in wanted)
            assert sorted(block.frame for block in read) == [block.frame for block in wanted]


# The flusher ----------------------------------------------------------------------------------------


class InPart(ClickHouse):
    """Of the frame 5 it has a row, when it ``counts``. Inserts are answered when they may ``go``."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1")
        self.counted = 0
        self.under_way = 0
        self.counts, self.go = asyncio.Event(), asyncio.Event()
        self.counts.set()

    async def rows_by_frame(self, table: Table, frames: Sequence[int]) -> dict[int, int]:
        self.counted += 1
        await self.counts.wait()
        return {5: 1}

    async def insert(self, table: Table, blocks: Sequence[bytes], *, token: str, patience: float = 1.0) -> int:
        self.under_way += 1
        await self.go.wait()
        return 3


@asynccontextmanager
async def flusher_of(server: ClickHouse, directory: Path, **settings: Any) -> AsyncIterator[tuple[Flusher, Ring]]:
    """A flusher that is not started, on a clock that stands, and the ring that counts its blocks."""
    numbers, spool = opened(directory)
    chosen, metrics = Settings(**{**SETTINGS, **settings}), Metrics()
    common: dict[str, Any] = {"frames": numbers, "metrics": metrics, "clock": lambda: 1_000.0}
    ring = Ring(0, {}, chosen, take=lambda block: None, is_idle=lambda: True, **common)
    flusher = Flusher(
        ring,
        server,
        chosen,
        spool=spool,
        progress=Progress(numbers),
        wall=lambda: 0.0,
        random=lambda: 1.0,
        letters=DeadLetters(numbers.place, bytes_max=0),
        on_stored=lambda *stored: None,
        **common,
    )
    flusher.add_table(THINGS)
    try:
        yield flusher, ring
    finally:
        await flusher.stop()
        numbers.close()


def resumed(flusher: Flusher, ring: Ring) -> None:
    """It takes up a batch that an earlier life sealed, and whose rows may be there under another token."""
    block = held(ring, 5)
    block.suspect = True
    flusher.resume(THINGS, Sealed("things", "00c0ffee12345678-1-0-1", ((1, 5),)), [block])


def held(ring: Ring, frame: int) -> Block:
    """A block of three rows, in memory."""
    block = Block("things", "p", frame, 3, b"a block", 0.0)
    ring.find("things", block.rows)
    ring.hold(block)
    return block


async def test_a_batch_that_may_be_there_under_another_token_is_set_aside(tmp_path: Path) -> None:
    async with flusher_of(InPart(), tmp_path, batch_bytes=300) as (flusher, ring):
        resumed(flusher, ring)
        table = flusher.tables()["things"]
        assert (table["batches_set_aside"], table["batches_waiting"]) == (1, 0)
        assert not flusher.is_parked("things")
    async with flusher_of(InPart(), tmp_path, batch_bytes=300, inserts_in_flight=1) as (flusher, ring):
        resumed(flusher, ring)
        assert flusher.is_parked("things"), "as much as that waits on disk"


async def test_a_batch_of_which_a_part_is_there_holds_no_other_up_while_it_waits(tmp_path: Path) -> None:
    """Nor are there fewer inserts side by side for it: the server has no trouble."""
    server = InPart()
    async with flusher_of(server, tmp_path, batch_rows=3, inserts_in_flight=2) as (flusher, ring):
        resumed(flusher, ring)
        await flusher.start()
        await until(lambda: server.counted == 1 and not flusher.in_flight, "it waits for what may be under way")
        for frame in (7, 8):
            flusher.take(held(ring, frame))
        await until(lambda: server.under_way == 2, "others are sent, side by side")
        server.go.set()
        await until(lambda: ring.rows == {"things": 3}, "and stored")
        server.counts.clear()
        counted = server.counted
        flusher.hurry()
        await until(lambda: server.counted > counted, "it is being counted anew")
        flusher.take(held(ring, 9))
        await until(lambda: server.under_way == 3 and ring.rows == {"things": 3}, "others are stored beside that too")
        assert server.counted == counted + 1, "that is being counted still"


# The search -----------------------------------------------------------------------------------------


class Losing(ClickHouse):
    """A table that takes each row of a frame but its second, and ``loses`` so often all it has once it was seen."""

    def __init__(self, loses: int) -> None:
        super().__init__("http://127.0.0.1")
        self.there: set[int] = set()
        self._loses = loses
        self._asked = 0

    async def rows_by_frame(self, table: Table, frames: Sequence[int]) -> dict[int, int]:
        return {}

    async def read_rows(self, table: Table, block: bytes, rows: Sequence[int]) -> list[Row]:
        return [{"Number": row} for row in rows]

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
        some = set(range(rows[0], rows[1] + 1))
        if 1 in some:
            raise Poison("it is not for this table", code=117)
        self.there |= some

    async def stored_rows(self, table: Table, frame: int) -> set[int]:
        self._asked += 1
        assert self._asked < 200, "this goes on for ever"
        seen = set(self.there)
        if seen == {0, 2} and self._loses:
            self._loses -= 1
            self.there.clear()
        return seen


async def searched(server: Losing, directory: Path) -> list[list[int]]:
    """Search a block of three rows that the table refused; returns the rows that became dead letters, each time."""
    numbers = FrameNumbers(directory)
    buried: list[list[int]] = []

    async def attempt(table: Table, insert: Awaitable[None]) -> None:
        await insert

    async def deliver(batch: Batch) -> None:
        raise AssertionError(batch)  # It is one frame: there is no search by frame.

    isolator = Isolator(
        server,
        opened(directory / "unused")[1],
        numbers,
        DeadLetters(numbers.place, bytes_max=1 << 20),
        refused_rows_max=10,
        clock=lambda: 1_000.0,
        wall=lambda: 0.0,
        deliver=deliver,
        attempt=attempt,
        taken=lambda queue: None,
        stored=lambda batch, blocks: None,
        buried=lambda batch, block, rows, at: buried.append(list(rows)),
    )
    batch = Batch.of(THINGS, numbers.token(), [Block("things", "p", 5, 3, b"a block", 0.0)])
    try:
        await isolator.run(Queue(THINGS), batch, Isolation(Poison("no", code=117), refused=True))
    finally:
        numbers.close()
    return buried


async def test_rows_that_are_gone_before_their_frame_is_done_with_are_inserted_again(tmp_path: Path) -> None:
    for loses in (0, 1, 3):
        server = Losing(loses)
        assert await searched(server, tmp_path / str(loses)) == [[1]]
        assert server.there == {0, 2}


async def test_a_table_that_deletes_what_it_takes_is_not_filled_for_ever(tmp_path: Path) -> None:
    with pytest.raises(Poison, match="does not keep the rows"):
        await searched(Losing(1_000), tmp_path)


# ----------------------------------------------------------------------------------------------------


def one(frame: int, segment: int = 1) -> array[int]:
    """A frame of three rows, as a start finds it."""
    return array("Q", (segment, frame, 3))


def restart(server: Server, clock_s: float) -> None:
    """It has started anew five seconds before that."""
    server.clock_s, server.started = clock_s, clock_s - 5.0


async def counted_after_a_crash(audit: Audit, server: Server) -> list[int]:
    """The frames that are counted, once each, when the server is there again."""
    restart(server, server.clock_s + 10.0)
    await audit.look()
    return sorted(set(server.counted))


async def a_rest_is_missing(audit: Audit, server: Server, *, is_earlier: bool = False) -> None:
    """A batch was stored at 1000, and at 1100 the server has started anew and lost a row of it."""
    if is_earlier:
        server.clock_s = 1_096.0  # Our start is behind the server's.
        audit.found("things", 1_000.0, one(7), letters=False)
    audit.found_all()
    if not is_earlier:
        await audit.look()
        audit.stored("things", [stored_block(7)])
    restart(server, 1_100.0)
    server.there = {7: 2}
