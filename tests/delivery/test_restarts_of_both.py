"""What ClickHouse lost is found where the gateway died too, or ClickHouse stays away for long."""

from __future__ import annotations

import errno
import math
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from gateway.delivery.answers import Busy, Operator
from gateway.delivery.audit import Audit
from gateway.delivery.block import Block, Durability
from gateway.delivery.disk import Disk
from gateway.delivery.segments import Frame, Kind, Member, SegmentReader, found_segments
from gateway.delivery.spool import Spool
from tests.delivery.audits import audit_of, stored_block
from tests.delivery.disks import Recording
from tests.delivery.rig import Engine, crash, holds, rig, until, until_it
from tests.delivery.spools import killed, opened, refused
from tests.delivery.things import things


@pytest.mark.parametrize("audit_ms", [600_000.0, 0.0], ids=["with the audit", "without it they are lost"])
async def test_rows_lost_with_the_machine_of_both_are_inserted_again(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, audit_ms: float
) -> None:
    monkeypatch.setattr("gateway.delivery.audit.LOOK_S", 0.05)
    async with rig(engine, tmp_path / "other") as other:
        database = other.direct.database
        async with rig(engine, tmp_path / "a", database=database, audit_ms=audit_ms) as before:
            before.send(range(1_000), days=4)
            before.send(range(1_000, 1_500), project="q")
            await before.flush()
        await other.run(f"TRUNCATE TABLE `{database}`.things")
        await crash(other, engine)
        async with rig(engine, tmp_path / "a", database=database, audit_ms=audit_ms) as after:
            if audit_ms:
                await until_it(lambda: holds(after, 1_500), "the rows are back")
            after.send(range(1_500, 1_510))
            await after.flush()
            assert await after.stored() == list(range(0 if audit_ms else 1_500, 1_510))
            after.check_counters()


class Server:
    """One that is asked for its uptime, and has lost all but what is ``there``: rows by frame, of three each."""

    under_way_s = 60.0

    def __init__(self) -> None:
        self.clock_s = 1_000.0
        self.started: float | None = 0.0
        self.counted: list[int] = []
        self.inserted: list[int] = []
        self.tokens: list[str] = []
        self.there: dict[int, int] = {}

    async def uptime_s(self) -> float:
        if self.started is None:
            raise Busy("cannot connect")
        return float(int(self.clock_s - self.started))

    async def rows_by_frame(self, table: object, frames: Sequence[int]) -> dict[int, int]:
        self.counted += frames
        return {frame: self.there[frame] for frame in frames if frame in self.there}

    async def insert_absent(self, table: object, block: bytes, *, frame: int, token: str, **more: object) -> None:
        self.inserted.append(frame)
        self.tokens.append(token)
        self.there[frame] = 3


async def away(table: object, frames: Sequence[int]) -> dict[int, int]:
    raise Busy("cannot connect")


def told(server: Server, again: list[int], **how: Any) -> Audit:
    """An audit of it, with its clock; ``again`` is told which frames are to be inserted again."""
    return audit_of(server, lambda: server.clock_s, again=lambda block: again.append(block.frame), keep_s=120.0, **how)


async def test_a_server_that_is_away_for_long_is_counted_when_it_is_back() -> None:
    server, again = Server(), list[int]()
    audit = told(server, again)
    audit.found_all()
    await audit.look()
    audit.stored("things", [stored_block(7)])
    stored_at = server.clock_s
    server.clock_s, server.started = 100_000.0, None
    with pytest.raises(Busy):
        await audit.look()
    assert audit.safe() < stored_at, "its segment stays"
    assert audit.safe(hurry=True) < stored_at, "where there is little room too"
    server.started = 99_995.0
    await audit.look()
    assert again == [7]


async def test_what_the_same_server_has_for_long_is_safe() -> None:
    server, again = Server(), list[int]()
    audit = told(server, again)
    assert audit.safe() == float("-inf"), "before anything is known"
    audit.found_all()
    await audit.look()
    audit.stored("things", [stored_block(7)])
    server.clock_s += 50.0
    await audit.look()
    assert audit.safe() < 1_000.0 < audit.safe(hurry=True)
    server.clock_s += 100.0
    await audit.look()
    assert audit.safe() > 1_000.0
    server.started = server.clock_s
    server.clock_s += 5.0
    await audit.look()
    assert (server.counted, again) == ([], [])


class Mute(Server):
    """It may say nothing of itself."""

    is_mute = True

    async def uptime_s(self) -> float:
        if self.is_mute:
            raise Operator("it is not for you", code=497)
        return await super().uptime_s()


async def test_a_server_that_takes_rows_and_never_says_how_long_it_runs_does_not_fill_the_disk() -> None:
    server = Mute()
    audit = told(server, [])
    audit.found_all()
    for server.clock_s in (1_000.0, 2_000.0):
        with pytest.raises(Operator):
            await audit.look()
        assert audit.safe() == float("-inf")
        audit.stored("things", [stored_block(int(server.clock_s))])
    with pytest.raises(Operator):
        await audit.look()
    assert audit.safe() == 1_880.0


async def test_a_server_whose_first_word_is_an_error_is_counted() -> None:
    server, again = Mute(), list[int]()
    server.is_mute = False
    audit = told(server, again)
    audit.found_all()
    await audit.look()
    audit.stored("things", [stored_block(7)])
    server.clock_s, server.is_mute = 1_600.0, True
    with pytest.raises(Operator):
        await audit.look()
    server.clock_s, server.is_mute, server.started = 1_605.0, False, 1_601.0
    await audit.look()
    assert again == [7]


@pytest.mark.parametrize("earlier_s", [10.0, 500.0], ids=["we were suspended", "another server, that is older"])
async def test_a_server_that_seems_to_run_for_longer_than_it_did_is_counted_and_does_not_fill_the_disk(
    earlier_s: float,
) -> None:
    server = Server()
    audit = told(server, [])
    audit.found_all()
    for frame in (7, 8, 9):
        audit.stored("things", [stored_block(frame)])
        server.clock_s += 5.0
        await audit.look()
    met = server.clock_s
    assert server.started is not None
    server.started -= earlier_s
    while server.clock_s < met + 120.0:
        server.clock_s += 5.0
        await audit.look()
        assert (audit.safe(), server.counted) == (met - 120.0, [])
    server.clock_s += 5.0
    await audit.look()
    assert server.counted == [7, 8, 9], "nobody knows what it has"
    server.clock_s += 200.0
    await audit.look()
    assert audit.safe() == server.clock_s - 120.0


async def test_what_cannot_be_counted_holds_up_no_other_and_keeps_its_own_segment_alone() -> None:
    """Of a table that is added later, and of a file that cannot be read."""
    server, again = Server(), list[int]()

    async def read(members: Iterable[Member]) -> list[Block]:
        [(segment, frame)] = members
        if frame == 5:
            raise OSError(errno.EIO, "Input/output error")
        return [stored_block(frame, segment)]

    audit = told(server, again, read=read)
    audit.found("mine", 900.0, array("Q", (3, 9, 3)), letters=False)
    audit.found("things", 901.0, array("Q", (2, 5, 3)), letters=False)
    audit.found("things", 902.0, array("Q", (1, 7, 3)), letters=False)
    audit.found_all()
    server.started = 950.0
    with pytest.raises(OSError, match="output error"):
        await audit.look()
    assert again == [7]
    assert audit.needed == {2, 3}
    assert audit.safe() == 880.0
    assert audit.counted < 900.0, "the next start is to find them"
    audit.add_table(things("mine"))
    with pytest.raises(OSError, match="output error"):
        await audit.look()
    assert again == [7, 9]


@pytest.mark.parametrize(
    ("started", "stored", "counts"),
    [(800.0, 900.0, []), (870.0, 900.0, [5]), (950.0, 900.0, [5]), (800.0, 4_500.0, [5])],
    ids=["it goes on", "which clock knows", "it started since", "the time of the day was put back"],
)
async def test_what_an_earlier_life_stored_is_counted_where_the_server_started_since(
    started: float, stored: float, counts: list[int]
) -> None:
    server, again = Server(), list[int]()
    server.started = started
    audit = told(server, again)
    await audit.look()
    audit.found("things", stored, array("Q", (1, 5, 3)), letters=False)
    audit.found_all()
    assert audit.safe() == float("-inf"), "before the server was asked"
    await audit.look()
    assert (server.counted, again) == (counts, counts)


async def test_two_lives_insert_the_rest_of_a_frame_under_the_same_token() -> None:
    """The first may have been killed while that was under way, which the server then does not take twice."""
    server = Server()

    async def one_life() -> list[str]:
        server.there, server.tokens = {5: 2, 6: 3}, []
        again: list[int] = []
        audit = told(server, again)
        audit.found("things", 900.0, array("Q", (1, 5, 3, 1, 6, 3, 1, 7, 3)), letters=False)
        audit.found_all()
        await audit.look()
        assert again == [7], "what is gone whole goes by the spool, and its SEALs"
        server.there[5] = 1  # and it is lost once more
        server.clock_s, server.started = server.clock_s + 20.0, server.clock_s + 10.0
        await audit.look()
        return server.tokens

    server.started = 950.0
    first = await one_life()
    assert len(set(first)) == len(first) == 2, "what the server knows and has lost needs another"
    assert await one_life() == first


async def test_what_is_lost_comes_back_no_faster_than_there_is_memory_for_it() -> None:
    server, again, room = Server(), list[int](), [16]
    audit = told(server, again, has_room=lambda: len(again) < room[0])
    frames = array("Q", chain.from_iterable((1, frame, 3) for frame in range(40)))
    audit.found("things", 900.0, frames, letters=False)
    audit.found_all()
    server.started = 950.0
    for taken in (16, 32):
        room[0] = taken
        with pytest.raises(Busy, match="waits for room"):
            await audit.look()
        assert again == list(range(taken))
    room[0] = 100
    await audit.look()
    assert again == list(range(40))


async def test_what_was_stored_before_a_start_that_is_known_already_is_counted() -> None:
    """A frame with dead letters is done with later than it was counted; the server may have died in between."""
    server, again = Server(), list[int]()
    audit = told(server, again)
    audit.found_all()
    server.started = 990.0
    await audit.look()
    audit.stored("things", [stored_block(7)], at=995.0)
    audit.stored("things", [stored_block(8)], at=985.0)
    await audit.look()
    assert again == [8]


async def test_a_server_that_is_another_one_is_not_counted() -> None:
    """Behind one address there may be several, and one that runs for longer has not lost anything."""
    server, again = Server(), list[int]()
    audit = told(server, again)
    audit.found_all()
    server.started = 900.0
    await audit.look()
    audit.stored("things", [stored_block(7)])
    server.clock_s, server.started = 1_005.0, 1_003.0
    server.rows_by_frame, counts = away, server.rows_by_frame  # type: ignore[method-assign]
    with pytest.raises(Busy):
        await audit.look()
    server.rows_by_frame = counts  # type: ignore[method-assign]
    server.started = 900.0
    await audit.look()
    assert (server.counted, again) == ([], [])
    server.started = 1_003.0
    await audit.look()
    assert again == [7]


async def test_what_was_inserted_again_is_kept_and_counted_as_if_it_were_new() -> None:
    server = Server()
    audit = told(server, [])
    audit.found_all()
    await audit.look()
    audit.stored("things", [stored_block(7)])
    server.clock_s, server.started, server.there = 1_100.0, 1_095.0, {7: 2}
    await audit.look()
    assert (server.inserted, audit.needed) == ([7], {1})
    server.clock_s = 1_200.0
    await audit.look()
    assert audit.needed == {1}, "it is there for less than two minutes"
    server.clock_s, server.started, server.there = 1_210.0, 1_205.0, {7: 1}
    await audit.look()
    assert server.inserted == [7, 7]
    server.clock_s = 1_340.0
    await audit.look()
    assert audit.needed == set()


async def test_of_what_cannot_be_counted_only_a_table_that_is_gone_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is little room: its segment keeps all that came later. The rest waits until somebody mends it."""
    monkeypatch.setattr("gateway.delivery.audit.UNKNOWN_LOOKS_MAX", 3)

    class Forbidden(Server):
        async def rows_by_frame(self, table: object, frames: Sequence[int]) -> dict[int, int]:
            raise Operator("it may not be read", code=497)

    server = Forbidden()
    audit = told(server, [])
    audit.found("gone", 900.0, array("Q", (1, 5, 3)), letters=False)
    audit.found("things", 901.0, array("Q", (2, 7, 3)), letters=False)
    audit.found_all()
    server.started = 950.0
    for _ in range(3):
        with pytest.raises(Operator):
            await audit.look()
    server.clock_s, started, server.started = 100_000.0, server.started, None
    for _ in range(10):
        with pytest.raises(Busy):
            await audit.look()
    audit.give_up()
    assert audit.needed == {1, 2}, "a server that is away cannot be asked"
    server.started = started
    with pytest.raises(Operator):
        await audit.look()
    assert audit.needed == {1, 2}
    audit.give_up()
    assert audit.needed == {2}


async def test_rows_beside_dead_letters_of_an_earlier_life_are_searched_for() -> None:
    """Nobody remembers which were dead letters, so none may be inserted without their being taken back."""
    server, suspects = Server(), list[bool]()
    server.there = {5: 1}
    audit = audit_of(server, lambda: server.clock_s, again=lambda block: suspects.append(block.suspect), keep_s=120.0)
    audit.found("things", 900.0, array("Q", (1, 5, 2)), letters=True)
    audit.found_all()
    server.started = 950.0
    with pytest.raises(Busy):
        await audit.look()
    assert suspects == [], "who found it before may be inserting some of it"
    server.clock_s += 61.0
    await audit.look()
    assert (suspects, server.inserted) == ([True], [])


async def test_no_more_is_remembered_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.delivery.audit.FRAMES_MAX", 2)
    server, again = Server(), list[int]()
    audit = told(server, again)
    audit.found_all()
    await audit.look()
    for frame in (7, 8, 9):
        audit.stored("things", [stored_block(frame)])
    server.clock_s, server.started = 1_010.0, 1_005.0
    await audit.look()
    assert again == [8, 9]
    for frame in (10, 11):
        audit.stored("things", [stored_block(frame)])
    server.clock_s, server.started = 1_020.0, 1_015.0
    await audit.look()
    assert again == [8, 9, 10, 11], "what is gone back to the spool leaves room"


async def test_of_what_was_done_the_last_is_found_where_it_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gateway.delivery.walk.DONE_MAX", 1)
    async with begun(tmp_path / "a") as (spool, _, append):
        first, second = await append(), await append()
        spool.done("things", [first])
        spool.done("things", [second])
        await append()
        assert await found(killed(tmp_path / "a", tmp_path / "b")) == {(second.frame, 3, False)}
        assert "only 1 are looked after" in caplog.text


async def test_a_block_that_is_written_again_is_counted_first_by_a_later_life_too(tmp_path: Path) -> None:
    """Some of it may be there: who revived it knew, and may be dead."""
    async with begun(tmp_path / "a") as (spool, kept, append):
        block = await append()
        spool.done("things", [block])
        block.suspect = True
        spool.revive(block, kept.append)
        await until(lambda: len(kept) == 2, "it is kept again")
        numbers_after, after = opened(killed(tmp_path / "a", tmp_path / "b"))
        await after.recover()
        assert [each.suspect for each in await after.load("things", 1 << 20)] == [True]
        numbers_after.close()


async def test_what_was_done_is_found_until_it_is_said_to_be_safe(tmp_path: Path) -> None:
    """Each frame once, however often it is there."""
    async with begun(tmp_path / "a") as (spool, kept, append):
        first, second, third, letters, last = [await append() for _ in range(5)]
        spool.done("things", [first, second])
        spool.revive(second, kept.append)
        await until(lambda: kept.count(second) == 2, "it is kept again")
        spool.done("things", [second])
        spool.done("things", [third])
        spool.revive(third, kept.append)
        await until(lambda: kept.count(third) == 2, "it is kept again, and not done")
        spool.skip("things", [letters], rows=2)
        await append()
        assert await found(killed(tmp_path / "a", tmp_path / "b")) == {
            (first.frame, 3, False),
            (second.frame, 3, False),
            (letters.frame, 2, True),
        }
        spool.sweep(-math.inf, counted=spool._clock() + 1.0)
        spool.done("things", [last])
        await append()  # behind it
        assert await found(killed(tmp_path / "a", tmp_path / "c")) == set()


async def test_that_what_was_done_last_is_safe_is_said_once_where_nothing_follows(tmp_path: Path) -> None:
    """Else a start would count it anew, whatever somebody has done to the table since."""
    async with begun(tmp_path / "a") as (spool, _, append):
        block = await append()
        spool.done("things", [block])
        for _ in range(3):
            spool.sweep(-math.inf, counted=spool._clock() + 1.0)
        await append()
        copy = killed(tmp_path / "a", tmp_path / "b")
        assert await found(copy) == set()
        [(name, path), *_] = found_segments(copy / "slot-00")
        with SegmentReader(path, name) as reader:
            assert [each.kind for each in reader.frames() if isinstance(each, Frame)] == [
                Kind.DATA,
                Kind.DONE,
                Kind.DONE,
                Kind.DATA,
            ]


async def test_while_a_block_is_written_again_nothing_is_said_to_be_safe(tmp_path: Path) -> None:
    disk = Recording()
    async with begun(tmp_path / "a", disk) as (spool, kept, append):
        lost, other = await append(), await append()
        spool.done("things", [lost])
        spool.sweep(-math.inf, counted=spool._clock() + 1.0)
        disk.fails = lambda what, name: OSError(errno.EIO, "no") if what == "write" else None
        spool.revive(lost, kept.append)
        await until(lambda: bool(spool.unwritten()), "it could not be written")
        disk.fails = lambda what, name: None
        spool.done("things", [other])
        await append()
        assert (other.frame, 3, False) in await found(killed(tmp_path / "a", tmp_path / "b"))


@asynccontextmanager
async def begun(
    directory: Path, disk: Disk | None = None
) -> AsyncIterator[tuple[Spool, list[Block], Callable[[], Awaitable[Block]]]]:
    """A spool alone, the blocks that were kept in it, and what puts one more there."""
    numbers, spool = opened(directory, disk)
    spool.start()
    await spool.recover()
    kept: list[Block] = []

    async def append() -> Block:
        block = Block("things", "p", numbers.next(), 3, b"a block", 0.0, durability=Durability.DISK)
        spool.append(block, kept.append, refused)
        await until(lambda: block in kept, "it is kept")
        return block

    try:
        yield spool, kept, append
    finally:
        await spool.stop()
        numbers.close()


async def found(directory: Path) -> set[tuple[int, int, bool]]:
    """(frame, rows, whether beside dead letters) of what a start finds to be done."""
    numbers, spool = opened(directory)
    backlog, _ = await spool.recover()
    numbers.close()
    frames = [
        (number, rows, letters)
        for (_, _, letters), some in backlog.done.items()
        for number, rows in zip(some[1::3], some[2::3], strict=True)
    ]
    assert len(frames) == len(set(frames))
    return set(frames)
