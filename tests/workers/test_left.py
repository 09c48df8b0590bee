"""What replaced workers have stored is counted by others where ClickHouse started anew since, and only there."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import cast

import pytest

from gateway import foundation
from gateway.config import Config
from gateway.config.settings import ClickHouse, Delivery
from gateway.data_dir import DataDir
from gateway.delivery.frames import slot_place
from gateway.foundation import Foundation
from gateway.workers.left import UNSEEN_S, YOUNG_S, LeftSlots
from gateway.workers.places import Place
from gateway.workers.supervisor import Supervisor

LEFT, KEPT_S = 1_000.0, 120.0
LONG_AGO = -500_000.0


def judged(*looks: tuple[float, float], keep_s: float = KEPT_S) -> tuple[list[float], bool]:
    """When slot 3, left at ``LEFT``, was owed, by answers at a time of servers that started at another; and whether
    it is watched still."""
    slots, owed = LeftSlots(), []
    slots.leave(3, LEFT, keep_s)
    for at, started in looks:
        if slots.judge(at, float(int(at - started))) == {3}:
            owed.append(at)
    return owed, bool(slots)


def test_a_slot_is_let_go_once_the_same_server_has_run_for_long_enough() -> None:
    looks = [(LEFT + seconds, LONG_AGO) for seconds in range(5, 125, 10)]
    assert judged(*looks[:-1]) == ([], True)
    assert judged((LEFT + KEPT_S, LONG_AGO)) == ([], True), "not a moment earlier"
    assert judged((LEFT + KEPT_S + 1, LONG_AGO)) == ([], False)


@pytest.mark.parametrize("started", [LEFT - UNSEEN_S + 1, LEFT, LEFT + 0.5, LEFT + 60, LEFT + 9_000])
def test_a_slot_is_owed_once_when_the_server_has_started_since(started: float) -> None:
    looks = [(started + YOUNG_S + seconds, started) for seconds in range(1, 30_000, 10)]
    assert judged(*looks) == ([looks[0][0]], False)
    # The control: the same looks at a server that was there before.
    assert judged(*((at, started - 10_000) for at, _ in looks)) == ([], False)


def test_however_long_nobody_answered_the_first_server_that_can_tell_decides() -> None:
    assert judged() == ([], True)
    assert judged((90_000.0, 89_990.0)) == ([90_000.0], False)
    assert judged((90_000.0, LONG_AGO)) == ([], False)


def test_a_server_that_has_just_started_is_asked_again() -> None:
    started = LEFT + 20
    assert judged((started, started), (started + YOUNG_S - 0.1, started)) == ([], True)
    assert judged((started, started), (started + YOUNG_S, started)) == ([started + YOUNG_S], False)


@pytest.mark.parametrize("taken_after_s", [0.1, 1.0, 5.0, 600.0])
def test_one_start_makes_nobody_be_replaced_twice_also_where_servers_answer_in_turns(taken_after_s: float) -> None:
    slots, started, take_overs = LeftSlots(), LEFT + 20, 0
    slots.leave(0, LEFT, KEPT_S)
    for turn in range(200):
        at = LEFT + 20 + 1.7 * turn
        # They are asked a while before they answer, and tell whole seconds.
        answered = at + (turn * 0.37) % 2.0
        server = started if turn % 2 else LONG_AGO
        if slots.judge(at, float(int(answered - server))):
            take_overs += 1
            slots.leave(take_overs, answered + taken_after_s, KEPT_S)
    assert (take_overs, bool(slots)) == (1, taken_after_s > KEPT_S)


def test_a_slot_that_somebody_has_is_not_watched_and_neither_is_any_where_nothing_is_kept() -> None:
    assert judged((LEFT + 90, LEFT + 60), keep_s=0) == ([], False)
    slots = LeftSlots()
    slots.leave(3, LEFT, KEPT_S)
    slots.leave(4, LEFT, KEPT_S)
    slots.forget([0, 3])
    assert slots.judge(LEFT + 90, 30) == {4}


class Ending:
    """A place whose worker leaves slot 3 whenever it is replaced, and cannot be replaced again at once."""

    number = 0

    def __init__(self, *, holds_rows: bool) -> None:
        self._holds_rows = holds_rows

    async def roll(self, patience_s: float) -> tuple[int, bool]:
        return 3, self._holds_rows


@pytest.mark.parametrize("audit_ms", [120_000, 0])
async def test_a_supervisor_asks_until_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, audit_ms: int) -> None:
    now_s, uptime_s, asked = LEFT, None, 0

    async def clickhouse_uptime_s(foundation: Foundation) -> float | None:
        nonlocal asked
        asked += 1
        return uptime_s

    monkeypatch.setattr(Foundation, "clickhouse_uptime_s", clickhouse_uptime_s)
    config = Config(data_dir=str(tmp_path), delivery=Delivery(audit_ms=audit_ms))
    supervisor = Supervisor(config, clock=lambda: now_s)
    place = slot_place(supervisor.directory.spool, 3)
    place.mkdir(parents=True)
    (place / "0000000001-0000000000000001.seg").touch()

    assert await supervisor.roll([cast(Place, Ending(holds_rows=False))])
    assert supervisor.has_slots_of_nobody == bool(audit_ms)
    for now_s, uptime_s in ((2_000.0, None), (3_000.0, None), (3_010.0, 4.0), (3_020.0, 14.0), (3_030.0, 24.0)):  # noqa: B007
        await supervisor.look_after_slots()
        assert supervisor.owed_slots == ({3} if audit_ms and now_s >= 3_020 else set())
    assert asked == (4 if audit_ms else 0)


async def test_where_rows_wait_nobody_has_to_be_asked(tmp_path: Path) -> None:
    supervisor = Supervisor(Config(data_dir=str(tmp_path)))
    assert await supervisor.roll([cast(Place, Ending(holds_rows=True))])
    assert supervisor.owed_slots == {3}


async def test_a_clickhouse_that_does_not_say_how_long_it_runs_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foundation, "_UPTIME_S_MAX", 0.2)
    answered = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
        writer.close()
        await writer.wait_closed()
        answered.set()

    async def uptime_s(port: int) -> float | None:
        config = Config(data_dir=str(tmp_path), clickhouse=ClickHouse(url=f"http://127.0.0.1:{port}"))
        return await Foundation(config, DataDir(tmp_path), on_clickhouse_restart=lambda: None).clickhouse_uptime_s()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert await uptime_s(port) is None
    assert await uptime_s(port) is None, "nobody is there"
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as somebody_else:
        assert await uptime_s(somebody_else.sockets[0].getsockname()[1]) is None
        await answered.wait()
