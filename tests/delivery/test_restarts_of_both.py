"""What ClickHouse lost is found where the gateway died too, or ClickHouse stays away for long."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from gateway.delivery.audit import Audit
from gateway.delivery.block import Block, Durability
from gateway.delivery.clickhouse import Busy, ClickHouse, Operator
from gateway.delivery.segments import Place
from tests.delivery.disks import Recording
from tests.delivery.rig import Engine, crash, holds, rig, until, until_it
from tests.delivery.spools import killed, opened, refused
from tests.delivery.things import things

KEPT = {"audit_ms": 600_000.0}


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
    """One that is asked for its uptime, and has lost all."""

    def __init__(self) -> None:
        self.clock_s = 1_000.0
        self.started: float | None = 0.0
        self.counted: list[int] = []

    async def uptime_s(self) -> float:
        if self.started is None:
            raise Busy("cannot connect")
        return float(int(self.clock_s - self.started))

    async def rows_by_frame(self, table: object, frames: Sequence[int]) -> dict[int, int]:
        self.counted += frames
        return {}


def audit_of(server: Server, again: list[int]) -> Audit:
    async def read(members: object) -> list[Block]:
        return [stored_block(frame) for _, frame in cast("dict[tuple[int, int], int]", members)]

    return Audit(
        cast("ClickHouse", server),
        read=read,
        again=lambda block: again.append(block.frame),
        token=str,
        keep_s=120.0,
        clock=lambda: server.clock_s,
    )


def stored_block(frame: int) -> Block:
    block = Block("things", "p", frame, 3, b"", 0.0, durability=Durability.DISK)
    block.place = Place(1, 64, 100)
    return block


async def test_a_server_that_is_away_for_long_is_counted_when_it_is_back() -> None:
    server, again = Server(), list[int]()
    audit = audit_of(server, again)
    audit.found_all()
    await audit.look()
    audit.stored(things(), [stored_block(7)])
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
    audit = audit_of(server, again)
    assert audit.safe() == float("-inf"), "before anything is known"
    audit.found_all()
    await audit.look()
    audit.stored(things(), [stored_block(7)])
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


async def test_a_server_that_never_says_how_long_it_runs_does_not_fill_the_disk() -> None:
    class Silent(Server):
        async def uptime_s(self) -> float:
            raise Operator("it is not for you", code=497)

    server = Silent()
    audit = audit_of(server, [])
    audit.found_all()
    server.clock_s = 2_000.0
    with pytest.raises(Operator):
        await audit.look()
    assert audit.safe() == 1_880.0


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
    audit = audit_of(server, again)
    await audit.look()
    audit.found(things(), stored, array("Q", (1, 5, 3)), letters=False)
    audit.found_all()
    assert audit.safe() == float("-inf"), "before the server was asked"
    await audit.look()
    assert (server.counted, again) == (counts, counts)


async def test_what_was_done_is_found_until_it_is_said_to_be_safe(tmp_path: Path) -> None:
    """Each frame once, however often it is there."""
    numbers, spool = opened(tmp_path / "a")
    spool.start()
    await spool.recover()
    kept: list[Block] = []

    async def append() -> Block:
        block = Block("things", "p", numbers.next(), 3, b"a block", 0.0, durability=Durability.DISK)
        spool.append(block, kept.append, refused)
        await until(lambda: block in kept, "it is kept")
        return block

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
    spool.sweep(safe=spool._clock() + 1.0)
    spool.done("things", [last])
    await append()  # behind it
    assert await found(killed(tmp_path / "a", tmp_path / "c")) == set()
    await spool.stop()
    numbers.close()


async def test_while_a_block_is_written_again_nothing_is_said_to_be_safe(tmp_path: Path) -> None:
    disk = Recording()
    numbers, spool = opened(tmp_path / "a", disk)
    spool.start()
    await spool.recover()
    kept: list[Block] = []

    async def append() -> Block:
        block = Block("things", "p", numbers.next(), 3, b"a block", 0.0, durability=Durability.DISK)
        spool.append(block, kept.append, refused)
        await until(lambda: block in kept, "it is kept")
        return block

    lost, other = await append(), await append()
    spool.done("things", [lost])
    spool.sweep(safe=spool._clock() + 1.0)
    disk.fails = lambda what, name: OSError(errno.EIO, "no") if what == "write" else None
    spool.revive(lost, kept.append)
    await until(lambda: bool(spool.unwritten()), "it could not be written")
    disk.fails = lambda what, name: None
    spool.done("things", [other])
    await append()
    assert (other.frame, 3, False) in await found(killed(tmp_path / "a", tmp_path / "b"))
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
