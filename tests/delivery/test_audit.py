"""What ClickHouse acknowledged and then lost with a crash is found and inserted again, once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from gateway.delivery.answers import Operator
from gateway.delivery.block import Block
from gateway.delivery.clickhouse import ClickHouse
from gateway.delivery.segments import Member
from gateway.schema import Table
from tests.delivery.audits import audit_of, stored_block
from tests.delivery.conftest import OpenRig
from tests.delivery.rig import Engine, Rig, crash, holds, until, until_it
from tests.delivery.things import DAY_NS, NOON_NS

FIRST_DAY = NOON_NS // DAY_NS
KEPT = {"audit_ms": 600_000.0}


async def test_rows_lost_with_a_crash_are_inserted_again(
    open_rig: OpenRig, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.delivery.audit.LOOK_S", 0.05)
    async with open_rig(**KEPT) as rig:
        rig.send(range(1_000), days=4)
        rig.send(range(1_000, 1_500), project="q")
        await rig.flush()
        # What was lost is lost before the server dies: whole frames of one table, and one day of another frame.
        await rig.run(f"TRUNCATE TABLE `{rig.direct.database}`.things")
        await crash(rig, engine)
        await until_it(lambda: holds(rig, 1_500), "the rows are back")
        assert await rig.stored() == list(range(1_500))
        rig.check_counters()
        assert sum(rig.metrics.rows_recovered.values.values()) == 1_500


async def test_of_a_frame_that_was_lost_in_part_only_the_rest_is_inserted_again(
    open_rig: OpenRig, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.delivery.audit.LOOK_S", 0.05)
    async with open_rig(**KEPT) as rig:
        rig.send(range(1_000), days=4)
        await rig.flush()
        day = (await rig.direct.query("SELECT toString(toDate({day:UInt32})) AS day", {"day": FIRST_DAY}))[0]["day"]
        await rig.run(f"ALTER TABLE `{rig.direct.database}`.things DROP PARTITION '{day}'")
        assert len(await rig.stored()) == 750
        was_counting = rig.delivery.is_counting
        await crash(rig, engine)
        await until_it(lambda: holds(rig, 1_000), "the rows are back")
        assert (was_counting, rig.delivery.is_counting) == (False, True), "who takes over is to look after them, too"
        assert await rig.stored() == list(range(1_000))
        rig.check_counters()


async def test_without_the_audit_they_are_lost(
    open_rig: OpenRig, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The positive control: nothing is remembered."""
    monkeypatch.setattr("gateway.delivery.audit.LOOK_S", 0.05)
    async with open_rig(audit_ms=0.0) as rig:
        rig.send(range(1_000))
        await rig.flush()
        await rig.run(f"TRUNCATE TABLE `{rig.direct.database}`.things")
        await crash(rig, engine)
        rig.send(range(1_000, 1_010))
        await rig.flush()
        assert await rig.stored() == list(range(1_000, 1_010))


async def test_a_server_that_goes_on_is_not_counted(open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.delivery.audit.LOOK_S", 0.01)
    async with open_rig(**KEPT) as rig:
        asked: list[int] = []

        async def counted(*_: object) -> dict[int, int]:
            asked.append(1)
            return {}

        rig.send(range(1_000))
        await rig.flush()
        monkeypatch.setattr(ClickHouse, "rows_by_frame", counted)
        looks = looked(rig, monkeypatch)
        await until(lambda: len(looks) > 5, "it was looked after")
        assert asked == []


@pytest.mark.parametrize(
    ("looks", "counts"),
    [
        ([(100.0, 90), (105.0, 95), (110.0, 100)], []),
        ([(100.0, 90), (105.9, 95), (110.1, 100)], []),
        ([(100.0, 0), (102.0, 0)], [1]),
        ([(100.0, 0), (105.0, 3)], [1]),
        ([(100.0, 0), (86_500.0, 86_390)], []),
        ([(100.0, 90), (105.0, 2), (110.0, 100), (115.0, 12)], [1]),
    ],
    ids=["goes on", "in whole seconds", "at once", "soon", "a clock that drifts", "two servers in turns"],
)
async def test_a_start_is_told_from_going_on_by_the_uptime(looks: list[tuple[float, int]], counts: list[int]) -> None:
    """(our clock, the server's uptime) of each look; which of the looks behind the first count."""
    counted: list[int] = []
    look, (clock_s, uptime) = 0, looks[0]

    class Server:
        async def uptime_s(self) -> float:
            return uptime

        async def rows_by_frame(self, table: object, frames: Sequence[int]) -> dict[int, int]:
            counted.append(look)
            return dict.fromkeys(frames, 3)

    async def read(members: object) -> list[Block]:
        raise AssertionError(members)

    audit = audit_of(Server(), lambda: clock_s, read=read, again=refused, keep_s=1e6)
    await audit.look()
    audit.stored("things", [stored_block(7)])
    for look, (clock_s, uptime) in enumerate(looks[1:], 1):  # noqa: B007
        await audit.look()
    assert counted == counts


async def test_one_table_s_trouble_holds_up_no_other() -> None:
    """And what is still to be counted keeps its segments."""

    class Server:
        started = 0.0

        async def uptime_s(self) -> float:
            return 1_000.0 - self.started

        async def rows_by_frame(self, table: Table, frames: Sequence[int]) -> dict[int, int]:
            return dict.fromkeys(frames, 2) if table.name == "things" else {}

        async def insert_absent(self, *_: object, **__: object) -> None:
            raise Operator("it is read-only")

    async def read(members: Iterable[Member]) -> list[Block]:
        return [blocks[frame] for _, frame in members]

    blocks, again = {1: stored_block(1, 1), 2: stored_block(2, 2, table="others")}, list[int]()
    server = Server()
    audit = audit_of(
        server,
        lambda: 1_000.0,
        read=read,
        again=lambda lost: again.append(lost.frame),
        keep_s=1e6,
        tables=("things", "others"),
    )
    await audit.look()
    audit.stored("things", [blocks[1]])
    audit.stored("others", [blocks[2]])
    server.started = 990.0
    with pytest.raises(Operator):
        await audit.look()
    assert (again, audit.needed) == ([2], {1})


def refused(block: Block) -> None:
    """Nothing is lost in these tests."""
    raise AssertionError(block)


def looked(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Uptimes that were asked for."""
    seen: list[float] = []
    ask = ClickHouse.uptime_s

    async def uptime_s(clickhouse: ClickHouse) -> float:
        seen.append(await ask(clickhouse))
        return seen[-1]

    monkeypatch.setattr(ClickHouse, "uptime_s", uptime_s)
    return seen
