"""Rows that no table would take become dead letters, alone; and a replay stores each of them once."""

from __future__ import annotations

import base64
import math
import shutil
import stat
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from gateway.delivery.block import Block, Receipt
from gateway.delivery.clickhouse import ClickHouse
from gateway.delivery.deadletter import DeadLetters, LetterFile
from gateway.delivery.replay import Replay
from gateway.delivery.seals import Sealed, disjoint
from gateway.delivery.segments import Frame, Kind, SegmentReader, members_of, segment_name
from gateway.schema import create_table
from tests.delivery.conftest import OpenRig
from tests.delivery.rig import Engine, Rig, answered, crash, holds, rig, until, until_it
from tests.delivery.things import NOON_NS, THINGS, numbered, things, write
from tests.support.proxy import Fault

CANARY = "canary-5f3a"
DEAD = [7, 8]
STORED = sorted(set(range(100)) - set(DEAD))
GOOD, BAD = "a thing", f"a bad thing {CANARY}"


async def narrow(rig: Rig, *, takes: str = GOOD) -> None:
    """The table takes one body alone from now on, and no row yet."""
    ddl = create_table(THINGS, database=rig.direct.database, version=(26, 9), retention_days=0)
    await rig.run(f"DROP TABLE `{rig.direct.database}`.things SYNC")
    await rig.run(ddl.replace("`Body` String", f"`Body` Enum8('{takes}' = 1)"))


async def widen(rig: Rig, *, took: str = GOOD) -> None:
    """The cause is mended: it takes both."""
    other = BAD if took == GOOD else GOOD
    where = f"`{rig.direct.database}`.things"
    await rig.run(f"ALTER TABLE {where} MODIFY COLUMN `Body` Enum8('{took}' = 1, '{other}' = 2)")


def send(rig: Rig, numbers: Sequence[int], bad: Sequence[int], *, project: str = "p") -> Receipt:
    """One request, in which these numbers are bad."""
    with rig.delivery.rows(project, 64 * len(numbers)) as rows:
        for is_bad, run in groupby(numbers, key=set(bad).__contains__):
            write(rows.columns("things"), numbered(run), body=BAD if is_bad else GOOD)
        return rows.commit()


def letters(rig: Rig) -> list[dict[str, Any]]:
    """All there are, from the files."""
    return [letter for file in files(rig.frames.place) for letter in file.letters()]


def files(slot: Path) -> list[LetterFile]:
    return DeadLetters(slot, bytes_max=0).files()


@asynccontextmanager
async def watched(open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    """A table that has a hundred rows but DEAD, which are dead letters; whether its server lives is looked at often."""
    monkeypatch.setattr("gateway.delivery.audit.LOOK_S", 0.05)
    async with open_rig(audit_ms=600_000.0) as rig_:
        await narrow(rig_)
        send(rig_, range(100), DEAD)
        await rig_.flush()
        assert (await rig_.stored(), buried(rig_)) == (STORED, DEAD)
        yield rig_


def buried(rig: Rig) -> list[int]:
    """The numbers in the dead letters."""
    return sorted(letter["record"]["Number"] for letter in letters(rig))


async def test_one_bad_row_of_ten_thousand_is_found_and_the_others_are_stored(
    plain: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    await narrow(plain)
    for start in range(0, 10_000, 1_000):
        send(plain, range(start, start + 1_000), [7_341], project=f"p{start}")
    await plain.flush()
    assert await plain.stored() == [number for number in range(10_000) if number != 7_341]
    (letter,) = letters(plain)
    assert (letter["record"]["Number"], letter["record"]["Body"]) == (7_341, BAD)
    assert letter["reason"]["code"] == 691
    assert letter["reason"]["error"].endswith("UNKNOWN_ELEMENT_OF_ENUM")
    assert (letter["table"], letter["project_id"], letter["row"]) == ("things", "p7000", 341)
    assert plain.metrics.rows_dead_lettered.values == {("things",): 1}
    plain.check_counters()
    assert plain.held_bytes() == 0
    assert CANARY not in caplog.text, "no log quotes a row"
    for path in (plain.frames.place / "deadletters").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("bad", [0, 1, 4_095, 5_000, 9_999])
async def test_the_search_takes_few_inserts(open_rig: OpenRig, bad: int) -> None:
    rows = 10_000
    async with open_rig(batch_age_ms=500.0) as rig:
        await narrow(rig)
        for start in range(0, rows, 500):
            send(rig, range(start, start + 500), [bad])
        await rig.flush()
        assert buried(rig) == [bad]
        assert rig.proxy.seen <= 2 * math.log2(rows) + 2


async def test_several_bad_rows_are_found_together(open_rig: OpenRig) -> None:
    bad = [0, 1, 2, 77, 1_500, 2_999]
    async with open_rig(batch_age_ms=500.0) as rig:
        await narrow(rig)
        for start in range(0, 3_000, 100):
            send(rig, range(start, start + 100), bad)
        await rig.flush()
        assert buried(rig) == bad
        assert await rig.stored() == sorted(set(range(3_000)) - set(bad))
        assert rig.proxy.seen <= len(bad) * (2 * math.log2(3_000) + 2)
        rig.check_counters()


async def test_rows_that_are_all_bad_are_all_kept(plain: Rig) -> None:
    await narrow(plain)
    send(plain, range(40), range(40))
    await plain.flush()
    assert await plain.stored() == []
    assert buried(plain) == list(range(40))
    assert plain.metrics.rows_stored.values.get(("things",), 0) == 0
    plain.check_counters()


@pytest.mark.parametrize("loss", ["TRUNCATE TABLE {}", "ALTER TABLE {} DELETE WHERE Number % 3 = 0"])
async def test_rows_beside_dead_letters_come_again_when_clickhouse_loses_them(
    open_rig: OpenRig, engine: Engine, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    async with watched(open_rig, monkeypatch) as rig_:
        await rig_.run(loss.format(f"`{rig_.direct.database}`.things") + " SETTINGS mutations_sync = 2")
        assert await rig_.stored() != STORED
        await crash(rig_, engine)
        await until_it(lambda: holds(rig_, len(STORED)), "the rows are back")
        await rig_.flush()
        assert (await rig_.stored(), buried(rig_)) == (STORED, DEAD)
        rig_.check_counters()


async def test_letters_of_a_block_that_is_to_be_inserted_again_are_taken_back(
    open_rig: OpenRig, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a replay would store its dead rows, and the block would bring them once more."""
    async with watched(open_rig, monkeypatch) as rig_:
        await widen(rig_)
        await rig_.run(f"TRUNCATE TABLE `{rig_.direct.database}`.things")
        with DeadLetters(rig_.frames.place, bytes_max=0).locked():
            await crash(rig_, engine)
            await until(lambda: sum(rig_.metrics.rows_recovered.values.values()) == 100, "it is to be inserted again")
            assert (await rig_.stored(), buried(rig_)) == ([], DEAD), "a replay is under way"
        await rig_.flush()
        assert (await rig_.stored(), letters(rig_)) == (list(range(100)), [])
        rig_.check_counters()


async def test_what_a_replay_has_stored_stands_for_no_other_row(
    open_rig: OpenRig, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watched(open_rig, monkeypatch) as rig_:
        await widen(rig_)
        (came,) = await Replay(rig_.frames.place.parent, rig_.direct).run()
        assert came.stored == len(DEAD)
        table = f"`{rig_.direct.database}`.things"
        await rig_.run(f"ALTER TABLE {table} DELETE WHERE Number IN (40, 41) SETTINGS mutations_sync = 2")
        await crash(rig_, engine)
        await until_it(lambda: holds(rig_, 100), "the rows are back")
        assert await rig_.stored() == list(range(100))


async def test_a_frame_with_dead_letters_that_is_there_is_left_alone(
    open_rig: OpenRig, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    count = ClickHouse.stored_rows

    async def stored_rows(clickhouse: ClickHouse, *arguments: Any) -> set[int]:
        found = await count(clickhouse, *arguments)
        counted.append(len(found))
        return found

    async with watched(open_rig, monkeypatch) as rig_:
        monkeypatch.setattr(ClickHouse, "stored_rows", stored_rows)
        await crash(rig_, engine)
        await until(lambda: counted == [len(STORED)], "it was counted")
        await rig_.flush()
        assert sum(rig_.metrics.rows_recovered.values.values()) == 0


async def test_poison_delays_no_other_rows(open_rig: OpenRig) -> None:
    async with open_rig(tables=(things(), things("others")), batch_age_ms=5.0) as rig:
        await narrow(rig)
        send(rig, range(2_000), range(0, 2_000, 400))
        await until(lambda: rig.proxy.seen > 3, "the search is under way")
        send(rig, range(2_000, 2_100), [], project="q")
        rig.send(range(50), table="others")
        await until(lambda: rig.metrics.rows_stored.values.get(("others",)) == 50, "others go on")
        assert not buried(rig), "and have not waited for the end of the search"
        await rig.flush()
        assert buried(rig) == list(range(0, 2_000, 400))
        assert len(await rig.stored()) == 2_100 - 5


@pytest.mark.parametrize("after", range(1, 14, 2))
async def test_a_crash_in_the_middle_of_the_search_loses_and_doubles_nothing(
    engine: Engine, tmp_path: Path, after: int
) -> None:
    """Killed after so many inserts, the last of which was committed without an answer."""
    bad = [130, 131, 777]
    async with rig(engine, tmp_path / "a", batch_age_ms=500.0) as before:
        await narrow(before)
        before.proxy.plan.extend([*[Fault("pass")] * after, *[Fault("swallow")] * 100_000])
        for start in range(0, 1_000, 100):
            await send(before, range(start, start + 100), bad).wait()
        await until(lambda: before.proxy.seen > after + 2, "the search is under way")
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        await before.delivery.stop(0.0)
        async with rig(engine, tmp_path / "b", database=before.direct.database) as again:
            await again.flush()
            assert buried(again) == bad
            assert await again.stored() == sorted(set(range(1_000)) - set(bad))
            again.check_counters()


@pytest.mark.parametrize("after", range(1, 16, 2))
async def test_a_cause_that_is_mended_between_crash_and_restart_doubles_nothing(
    engine: Engine, tmp_path: Path, after: int
) -> None:
    """Then the refused batches would be taken: but parts of them are there already."""
    async with rig(engine, tmp_path / "a", batch_age_ms=500.0) as before:
        await stop_in_the_middle(before, after)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        await before.delivery.stop(0.0)
        await widen(before)
        async with rig(engine, tmp_path / "b", database=before.direct.database) as again:
            await again.flush()
            assert await again.stored() == list(range(1_000))
            assert letters(again) == []


async def test_with_batches_sent_again_as_they_were_sealed_first_rows_are_doubled(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The positive control: the test above can fail. Here the oldest SEAL of a frame counts."""
    async with rig(engine, tmp_path / "a", batch_age_ms=500.0) as before:
        await stop_in_the_middle(before, 7)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        await before.delivery.stop(0.0)
        await widen(before)
        monkeypatch.setattr("gateway.delivery.spool.disjoint", oldest)
        async with rig(engine, tmp_path / "b", database=before.direct.database) as again:
            await again.flush()
            assert len(await again.stored()) > 1_000


def oldest(seals: Iterable[Sealed]) -> list[Sealed]:
    """What was sealed before anything was refused."""
    return [min(seals, key=lambda sealed: int(sealed.token.split("-")[3]))]


async def stop_in_the_middle(rig: Rig, after: int) -> None:
    """A search of 1,000 rows, two of them bad, that gets no answer any more after so many inserts."""
    await narrow(rig)
    rig.proxy.plan.extend([*[Fault("pass")] * after, *[Fault("swallow")] * 100_000])
    for start in range(0, 1_000, 100):
        await send(rig, range(start, start + 100), [450, 990]).wait()
    await until(lambda: rig.proxy.seen > after + 2, "the search is under way")


async def test_faults_during_the_search_lose_and_double_nothing(open_rig: OpenRig) -> None:
    bad = [3, 500, 501, 1_999]
    async with open_rig(batch_age_ms=200.0) as rig:
        await narrow(rig)
        faults = [Fault("swallow"), answered(503), Fault("pass"), answered(500, 241), Fault("reset", at_byte=900)]
        rig.proxy.plan.extend([faults[turn % len(faults)] for turn in range(60)])
        for start in range(0, 2_000, 200):
            send(rig, range(start, start + 200), bad)
        await rig.flush()
        assert buried(rig) == bad
        assert await rig.stored() == sorted(set(range(2_000)) - set(bad))
        rig.check_counters()


async def test_the_books_hold_no_more_seals_however_long_a_table_refuses_everything(open_rig: OpenRig) -> None:
    """Each try has a SEAL of its own, and of those that name a frame only the newest counts."""
    async with open_rig(refused_rows_max=3, parked_first_ms=1.0, parked_max_ms=2.0, batch_age_ms=200.0) as rig:
        await narrow(rig)
        for start in range(0, 100, 10):
            send(rig, range(start, start + 10), range(100), project=f"p{start}")
        await until(lambda: rig.proxy.seen > 60, "it was tried many times")
        ledger = rig.delivery._spool.ledger
        assert len(ledger.sealed) <= 10, "no more than there are blocks"
        await widen(rig)
        await rig.flush()
        assert sorted(await rig.stored() + buried(rig)) == list(range(100))
        assert not ledger.sealed
        assert not ledger.homes
        rig.check_counters()


async def test_a_replay_stores_each_row_once_when_the_cause_is_mended(plain: Rig) -> None:
    bad = [5, 6, 700]
    await narrow(plain)
    for start in range(0, 1_000, 250):
        send(plain, range(start, start + 250), bad, project=f"p{start}")
    await plain.flush()
    assert sorted(letter["record"]["Number"] for letter in letters(plain)) == bad
    spool = plain.frames.place.parent

    assert [(came.found, came.left) for came in Replay(spool).look()] == [(3, 3)]
    (still,) = await Replay(spool, plain.direct).run()
    assert (still.found, still.stored, still.left) == (3, 0, 3)
    assert still.reasons == ("ClickHouse error 691 UNKNOWN_ELEMENT_OF_ENUM",)
    assert buried(plain) == bad

    await widen(plain)
    kept = {file.path: file.path.read_bytes() for file in files(plain.frames.place)}
    assert await Replay(spool, plain.direct, table="others").run() == []
    (came,) = await Replay(spool, plain.direct).run()
    assert (came.found, came.stored, came.there_already, came.left) == (3, 3, 0, 0)
    assert letters(plain) == []
    assert await plain.stored() == list(range(1_000))

    for path, lines in kept.items():  # as if it had died before it was done with the files
        path.write_bytes(lines)
    (again,) = await Replay(spool, plain.direct).run()
    assert (again.stored, again.there_already, again.left) == (0, 3, 0)
    assert await plain.stored() == list(range(1_000))
    rows = await plain.direct.query(
        f"SELECT Body AS body, SpoolRow AS row, toUnixTimestamp64Nano(Timestamp) AS at"
        f" FROM `{plain.direct.database}`.things WHERE Number = 700"
    )
    assert rows == [{"body": BAD, "row": 200, "at": NOON_NS}]


async def test_of_a_frame_some_rows_may_still_be_refused(plain: Rig) -> None:
    await narrow(plain)
    send(plain, range(20), range(10))
    await plain.flush()
    (file,) = files(plain.frames.place)
    lines = file.path.read_bytes().splitlines(keepends=True)
    file.path.write_bytes(b"".join([*lines[:3], lines[3].replace(BAD.encode(), GOOD.encode()), *lines[4:]]))
    (came,) = await Replay(plain.frames.place.parent, plain.direct).run()
    assert (came.found, came.stored, came.left) == (10, 1, 9)
    assert await plain.stored() == [3, *range(10, 20)]
    assert buried(plain) == [0, 1, 2, *range(4, 10)]


@pytest.mark.parametrize("fault", [Fault("swallow"), Fault("reset_unsent"), answered(503)], ids=lambda f: f.kind)
async def test_a_replay_without_an_answer_doubles_nothing(plain: Rig, fault: Fault) -> None:
    await narrow(plain)
    send(plain, range(20), range(20))
    await plain.flush()
    await widen(plain)
    through = ClickHouse(plain.proxy.url, database=plain.direct.database)
    await through.start()
    plain.proxy.plan.extend([fault] * 100)
    (lost,) = await Replay(plain.frames.place.parent, through).run()
    assert lost.left in (0, 20)
    plain.proxy.plan.clear()
    await Replay(plain.frames.place.parent, through).run()
    await through.close()
    assert await plain.stored() == list(range(20))
    assert letters(plain) == []


async def test_dead_letters_have_a_budget_and_what_is_over_it_waits(
    open_rig: OpenRig, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_rig(dead_letter_bytes_max=2 * 4096) as rig:
        await narrow(rig)
        for number in range(4):
            send(rig, range(number * 10, number * 10 + 10), [number * 10], project=f"p{number}")
            await until(lambda: not rig.delivery.buffers()["shards"][0]["rows_open"], "it is cut")  # type: ignore[index]
        await until(lambda: "no room for dead letters" in caplog.text, "the alarm")
        await until_it(lambda: stores(rig, 36), "good rows are stored all the same")
        assert len(letters(rig)) == 2
        rig.check_counters()
        for file in files(rig.frames.place)[:2]:
            file.path.unlink()
        await rig.flush()
        assert len(letters(rig)) == 2
        assert rig.metrics.rows_dead_lettered.values == {("things",): 4}
        rig.check_counters()


@pytest.mark.parametrize("is_mended", [False, True], ids=["still refused", "taken by now"])
async def test_rows_that_are_lost_before_the_letters_beside_them_are_written_are_inserted_again(
    open_rig: OpenRig, caplog: pytest.LogCaptureFixture, is_mended: bool
) -> None:
    """A search may wait for hours, and nobody else looks after what it has stored."""

    def alarms() -> int:
        return caplog.text.count("no room for dead letters")

    async with open_rig(dead_letter_bytes_max=1, alarm_every_ms=1.0) as rig:
        await narrow(rig)
        send(rig, range(100), DEAD)
        await until(lambda: alarms() > 0, "the alarm")
        await until_it(lambda: stores(rig, 98), "good rows are stored all the same")
        if is_mended:
            await widen(rig)
        await rig.run(f"TRUNCATE TABLE `{rig.direct.database}`.things")
        await until_it(lambda: stores(rig, 100 if is_mended else 98), "they are there again")
        before = alarms()
        await until(lambda: is_mended or alarms() > before + 1, "it is tried again")
        rig.delivery._letters._bytes_max = 1 << 20
        await rig.flush()
        assert (await rig.stored(), buried(rig)) == ((list(range(100)), []) if is_mended else (STORED, DEAD))
        rig.check_counters()


async def test_a_table_that_no_row_fits_is_parked_and_fills_no_dead_letters(
    open_rig: OpenRig, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_rig(refused_rows_max=20) as rig:
        await narrow(rig, takes="something else")
        for start in range(0, 500, 100):
            await send(rig, range(start, start + 100), []).wait()
            await until(lambda: waiting(rig) == 0, "it is in a batch")
        await until(lambda: "operator: 20 rows" in caplog.text, "the table is parked")
        assert "held: 20 rows" in caplog.text
        assert len(letters(rig)) < 2 * 20
        rig.check_counters()
        await widen(rig, took="something else")
        await rig.flush()
        dead = buried(rig)
        assert await rig.stored() == sorted(set(range(500)) - set(dead))
        rig.check_counters()


async def test_rows_that_come_one_by_one_do_not_pass_for_poison_for_ever(
    open_rig: OpenRig, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_rig(refused_rows_max=10) as rig:
        await narrow(rig, takes="something else")
        sent = 0
        while "operator: " not in caplog.text:
            assert sent < 1_000
            await send(rig, [sent], []).wait()
            await until(lambda: waiting(rig) == 0, "it is in a batch, or waits on disk")
            sent += 1
        assert len(letters(rig)) <= 10
        await widen(rig, took="something else")
        await rig.flush()
        assert sorted([*await rig.stored(), *buried(rig)]) == list(range(sent))
        rig.check_counters()


async def test_many_bad_rows_of_one_sender_are_buried_while_others_prove_the_table_sound(open_rig: OpenRig) -> None:
    async with open_rig(refused_rows_max=20) as rig:
        await narrow(rig)
        send(rig, range(100), range(100))
        await until(lambda: rig.proxy.seen > 20, "the search stops")
        number = 100
        while len(letters(rig)) < 100:
            assert number < 2_000
            send(rig, [number], [], project="q")
            number += 1
            await until_it(partial(stores, rig, number - 100), "it is stored")
        assert buried(rig) == list(range(100))
        rig.check_counters()


def waiting(rig: Rig) -> int:
    """Rows that are in no batch yet."""
    return int(rig.delivery.buffers()["shards"][0]["tables"]["things"]["rows_sealing"])  # type: ignore[index]


async def stores(rig: Rig, rows: int) -> bool:
    return len(await rig.stored()) == rows


async def test_crashes_are_tried_in_both_halves_of_the_search(engine: Engine, tmp_path: Path) -> None:
    """Else the tests above would prove less than they say."""
    kinds = set()
    for after in (3, 13):
        async with rig(engine, tmp_path / str(after), batch_age_ms=500.0) as before:
            await stop_in_the_middle(before, after)
            kinds.add(last_seal(before.frames.place).run is not None)
            await before.delivery.stop(0.0)
    assert kinds == {False, True}


def last_seal(slot: Path) -> Sealed:
    """The newest in a spool."""
    seals = []
    for path in slot.glob("*.seg"):
        name = segment_name(path)
        assert name is not None
        with SegmentReader(path, name) as reader:
            for frame in reader.frames():
                if isinstance(frame, Frame) and frame.kind == Kind.SEAL:
                    token, members = members_of(reader.payload(frame) or b"\0")
                    seals.append(Sealed(frame.table, token, tuple(members)))
    return disjoint(seals)[0]


async def test_a_block_that_cannot_be_decoded_is_kept_whole(
    plain: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make = Block.__init__

    def broken(
        self: Block, table: str, project_id: str, frame: int, rows: int, data: bytes, *rest: Any, **more: Any
    ) -> None:
        wrong = data[:-1] + b"?" if project_id == "broken" else data
        make(self, table, project_id, frame, rows, wrong, *rest, **more)

    monkeypatch.setattr(Block, "__init__", broken)
    plain.send(range(100), project="broken")
    plain.send(range(100, 200))
    await plain.flush()
    assert await plain.stored() == list(range(100, 200))
    (letter,) = letters(plain)
    assert (letter["reason"]["code"], letter["row"], letter["rows"]) == (40, None, 100)
    assert len(base64.b64decode(letter["block"])) > 100
    assert plain.metrics.rows_dead_lettered.values == {("things",): 100}
    plain.check_counters()
    (came,) = await Replay(plain.frames.place.parent, plain.direct).run()
    assert (came.left, came.reasons) == (1, ("it is a block that cannot be decoded",))
