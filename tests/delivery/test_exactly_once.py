"""Every accepted row is in the table once, whatever happens to the exchange that carried it."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
from collections.abc import Sequence

import pytest

from gateway.delivery.clickhouse import ClickHouse
from gateway.delivery.flusher import Flusher
from gateway.delivery.poison import REPAIRS_MAX
from gateway.schema import Table
from tests.delivery.conftest import OpenRig
from tests.delivery.rig import PATIENCE_S, Engine, Rig, answered, crash, until, until_it
from tests.delivery.things import THINGS, block, numbered, things
from tests.support.proxy import Fault

UNSENT = Fault("reset_unsent")


async def test_rows_arrive_once_and_the_counters_add_up(plain: Rig) -> None:
    for start in range(0, 5000, 50):
        await plain.send(range(start, start + 50), project=f"p{start % 7}").wait()
        plain.check_counters()
    await plain.flush()
    plain.check_counters()
    assert await plain.stored() == list(range(5000))
    assert plain.held_bytes() == 0
    assert plain.outcomes().keys() == {"stored"}


async def test_an_answer_lost_after_the_commit_stores_no_row_twice(plain: Rig) -> None:
    plain.proxy.plan.extend([Fault("swallow")] * 3)
    plain.send(range(300), days=3)
    await plain.flush()
    assert await plain.stored() == list(range(300))
    assert plain.outcomes() == {"ambiguous": 3, "stored": 1}


async def test_with_a_new_token_for_each_attempt_they_are_doubled(plain: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive control: the test above can fail."""
    insert = ClickHouse.insert

    async def forgetful(
        self: ClickHouse, table: Table, blocks: Sequence[bytes], *, token: str, patience: float
    ) -> int | None:
        return await insert(self, table, blocks, token=plain.frames.token(), patience=patience)

    monkeypatch.setattr(ClickHouse, "insert", forgetful)
    plain.proxy.plan.extend([Fault("swallow")] * 3)
    plain.send(range(300), days=3)
    await plain.flush()
    assert await plain.stored() == sorted([*range(300)] * 4)


@pytest.mark.parametrize("at_byte", [1, 200, 700, 900, 1200])
async def test_a_request_reset_in_the_middle_is_sent_again(plain: Rig, at_byte: int) -> None:
    plain.proxy.plan.append(Fault("reset", at_byte=at_byte))
    plain.send(range(500), days=4)
    await plain.flush()
    assert await plain.stored() == list(range(500))
    assert plain.outcomes() == {"ambiguous": 1, "stored": 1}


@pytest.mark.parametrize("at_byte", [0, 5, 40, 200])
async def test_a_truncated_answer_is_no_answer(plain: Rig, at_byte: int) -> None:
    plain.proxy.plan.append(Fault("truncate", at_byte=at_byte))
    plain.send(range(100))
    await plain.flush()
    assert await plain.stored() == list(range(100))
    assert plain.outcomes() == {"ambiguous": 1, "stored": 1}


async def test_a_server_that_never_answers_is_asked_again(open_rig: OpenRig) -> None:
    async with open_rig(insert_timeout_s=1.0) as rig:
        rig.proxy.plan.append(Fault("half_open"))
        rig.send(range(100))
        await rig.flush()
        assert await rig.stored() == list(range(100))
        assert rig.outcomes()["ambiguous"] >= 1


async def refused_behind_one_that_is_late(rig: Rig) -> None:
    """The first attempt comes through long after the second was refused."""
    rig.proxy.plan.extend([Fault("late", delay_s=0.3), answered(400, 117)])
    rig.send(range(100))
    await rig.flush()
    await until(lambda: rig.proxy.late == 0, "the first came through")


async def test_what_is_refused_is_not_searched_while_an_attempt_before_may_come_through(plain: Rig) -> None:
    await refused_behind_one_that_is_late(plain)
    assert await plain.stored() == list(range(100))


async def test_an_attempt_ends_with_the_server_that_had_it(
    open_rig: OpenRig, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.delivery.rig.UNDER_WAY_S", 10 * PATIENCE_S)
    async with open_rig() as rig:
        rig.proxy.plan.append(Fault("swallow"))
        rig.proxy.plan.extend([answered(400, 117)] * 2)
        rig.send(range(100))
        await until(lambda: not rig.proxy.plan, "it is refused behind one that was not answered")
        await crash(rig, engine)
        rig.proxy.plan.extend([answered(400, 117)] * 2)
        await rig.flush()
        assert await rig.stored() == list(range(100))


async def test_searched_at_once_its_rows_are_doubled(plain: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive control."""
    monkeypatch.setattr("tests.delivery.rig.UNDER_WAY_S", 0.0)
    await refused_behind_one_that_is_late(plain)
    assert await plain.stored() == sorted([*range(100)] * 2)


async def test_an_insert_that_takes_too_long_each_time_gets_more_time(open_rig: OpenRig) -> None:
    async with open_rig(insert_timeout_s=0.1) as rig:
        rig.proxy.plan.extend([Fault("slow", delay_s=0.5)] * 20)
        rig.send(range(100))
        await rig.flush()
        assert await rig.stored() == list(range(100))
        assert 3 <= rig.outcomes()["ambiguous"] < 20


async def test_with_the_same_time_for_each_it_would_be_sent_for_ever(
    open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The positive control: all twenty slow answers are waited for in vain."""
    monkeypatch.setattr("gateway.delivery.batch.PATIENCE_MAX", 1.0)
    async with open_rig(insert_timeout_s=0.1) as rig:
        rig.proxy.plan.extend([Fault("slow", delay_s=0.5)] * 20)
        rig.send(range(100))
        await rig.flush()
        assert rig.outcomes()["ambiguous"] == 20


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (answered(503), "ambiguous"),
        (answered(502, text="<html>bad gateway</html>"), "ambiguous"),
        (answered(429), "busy"),
        (answered(500, 252, "Code: 252. DB::Exception: Too many parts (3000). (TOO_MANY_PARTS)"), "busy"),
        (answered(500, 241), "busy"),
        (answered(500, 999), "ambiguous"),
        (answered(500, 425), "ambiguous"),
        (answered(500, 33), "ambiguous"),
        (answered(200, 202), "busy"),
        (answered(200, 0, "Code: 159. DB::Exception: Timeout exceeded"), "ambiguous"),
        (answered(200, 0, "<html>please log in</html>"), "ambiguous"),
        (answered(404), "operator"),
        (answered(302), "operator"),
        (answered(403, 497), "operator"),
        (answered(404, 60), "operator"),
        (answered(500, 48), "operator"),
        (answered(500, 252, "Code: 252. DB::Exception: Too many partitions for single INSERT block"), "poison"),
        (answered(400, 117), "poison"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.status}-{dict(value.headers)}",
)
async def test_an_error_delays_rows_and_loses_none(plain: Rig, fault: Fault, outcome: str) -> None:
    plain.proxy.plan.extend([fault] * 3)
    plain.send(range(100))
    await plain.flush()
    assert await plain.stored() == list(range(100))
    outcomes = plain.outcomes()
    assert outcomes.pop("stored") == 1 or outcome == "poison", "poison is sent in parts"
    assert outcomes == {outcome: 3}
    plain.check_counters()


async def lose_the_part(rig: Rig) -> None:
    """What a killed server does: nobody knows the outcome, then the token is known and the rows are not there."""
    rig.proxy.plan.extend([UNSENT, answered(200, written=400)])
    rig.send(range(400), days=4)
    await rig.flush()


async def test_rows_whose_token_is_known_but_which_are_not_there_are_inserted_again(plain: Rig) -> None:
    await lose_the_part(plain)
    assert await plain.stored() == list(range(400))
    plain.check_counters()


async def test_without_verification_they_are_lost(plain: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive control: the test above can fail."""

    async def all_there(self: Flusher, batch: object) -> None:
        return None

    monkeypatch.setattr(Flusher, "_missing", all_there)
    await lose_the_part(plain)
    assert await plain.stored() == []


@pytest.mark.parametrize("written", [0, 399, None])
async def test_fewer_rows_written_than_sent_are_counted_and_mended(plain: Rig, written: int | None) -> None:
    plain.proxy.plan.append(answered(200, written=written))
    plain.send(range(400), days=4)
    await plain.flush()
    assert await plain.stored() == list(range(400))


async def test_a_known_token_that_writes_nothing_is_counted_and_left(plain: Rig) -> None:
    plain.proxy.plan.append(Fault("rewrite", status=200, headers=answered(200, written=0).headers))
    plain.send(range(400), days=4)
    await plain.flush()
    assert await plain.stored() == list(range(400))
    assert plain.proxy.seen == 1


async def test_of_a_frame_that_is_there_in_part_only_the_rest_is_inserted(plain: Rig) -> None:
    """An insert over several days is not atomic: here the first of two days was stored."""
    plain.proxy.plan.extend([UNSENT] * 10_000)
    plain.send(range(100), days=2)
    await until(lambda: len(plain.proxy.plan) < 10_000, "the insert is tried")
    frame = plain.frames.given[0]
    await plain.direct.insert(THINGS, [block(numbered(range(100), days=2)[:50], frame)], token="first day")
    plain.proxy.plan.clear()
    plain.proxy.plan.append(answered(200, written=100))
    await plain.flush()
    assert await plain.stored() == list(range(100))


async def test_of_many_frames_that_are_there_in_part_each_is_completed_without_a_pause(open_rig: OpenRig) -> None:
    count = 3 * REPAIRS_MAX
    async with open_rig(batch_age_ms=500.0, parked_first_ms=1e6, parked_max_ms=1e6) as rig:
        rig.proxy.plan.extend([UNSENT] * 10_000)
        for number in range(count):
            await rig.send(range(10 * number, 10 * number + 10), days=2, project=str(number)).wait()
        await until(lambda: len(rig.proxy.plan) < 10_000, "the insert is tried")
        for frame, kept in rig.delivery._spool.ledger.held.items():
            first = 10 * int(kept.project_id)
            rows = numbered(range(first, first + 10), days=2)
            await rig.direct.insert(THINGS, [block(rows[:5], frame)], token=f"first day of {frame}")
        rig.proxy.plan.clear()
        rig.proxy.plan.append(answered(200, written=10 * count))
        await rig.flush()
        assert await rig.stored() == list(range(10 * count))


async def test_rows_that_a_server_says_it_wrote_and_did_not_are_found(plain: Rig) -> None:
    """The embedded engine answers OK when a constraint refuses the rows behind its parsing."""
    await plain.run(f"ALTER TABLE `{plain.direct.database}`.things ADD CONSTRAINT seven CHECK Number != 7")
    plain.send(range(100))
    await until(lambda: "poison" in plain.outcomes(), "it is noticed that they are not there")
    assert plain.metrics.rows_stored.values == {}
    plain.check_counters()
    await plain.run(f"ALTER TABLE `{plain.direct.database}`.things DROP CONSTRAINT seven")
    await plain.flush()
    assert await plain.stored() == list(range(100))


async def test_mending_survives_lost_answers_too(plain: Rig) -> None:
    plain.proxy.plan.extend([UNSENT, answered(200, written=400), Fault("swallow"), UNSENT, answered(503)])
    plain.send(range(400), days=4)
    await plain.flush()
    assert await plain.stored() == list(range(400))


async def test_a_batch_too_large_for_the_servers_memory_goes_in_halves(open_rig: OpenRig) -> None:
    async with open_rig(batch_age_ms=100.0) as rig:
        rig.proxy.plan.extend([answered(500, 241)] * 5)
        for project in range(8):
            rig.send(range(project * 10, project * 10 + 10), project=f"p{project}")
        await rig.flush()
        assert await rig.stored() == list(range(80))
        assert rig.proxy.seen == 5 + 2, "two halves of eight frames"


async def test_random_faults_lose_and_double_nothing(open_rig: OpenRig) -> None:
    seed = random.getrandbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with open_rig(inserts_in_flight=3, batch_age_ms=2.0) as rig:
        faults = [
            *(Fault("swallow"), UNSENT, answered(503), answered(500, 252), answered(200, written=0)),
            *(Fault("reset", at_byte=chance.randrange(3000)), Fault("truncate", at_byte=chance.randrange(200))),
        ]
        for start in range(0, 3000, 30):
            if chance.random() < 0.5:
                rig.proxy.plan.append(chance.choice(faults))
            seen = rig.proxy.seen
            receipt = rig.send(
                range(start, start + 30), project=f"p{chance.randrange(5)}", days=chance.choice([1, 1, 3])
            )
            rig.check_counters()
            # The next request comes with this one open, on disk, or on its way.
            moment = chance.randrange(3)
            if moment:
                await receipt.wait()
            if moment == 2:
                await until(lambda seen=seen: rig.proxy.seen > seen, "an insert is tried")  # type: ignore[misc]
        await rig.flush()
        assert await rig.stored() == list(range(3000)), f"seed {seed}"
        assert rig.outcomes()["ambiguous"] > 0
        rig.check_counters()


async def test_an_engine_killed_in_the_middle_of_inserts_ends_with_every_row_once(
    open_rig: OpenRig, engine: Engine
) -> None:
    async with open_rig(batch_age_ms=2.0) as rig:
        number = 0
        for _ in range(2):
            pid = engine.pid
            assert pid is not None
            seen = rig.proxy.seen
            async with asyncio.timeout(PATIENCE_S):
                while rig.proxy.seen < seen + 12:
                    await rig.send(range(number, number + 200), project=f"p{number % 3}", days=5).wait()
                    number += 200
            os.kill(pid, signal.SIGKILL)
            for _ in range(20):
                await rig.send(range(number, number + 200), days=5).wait()
                number += 200
            rig.check_counters()
            await rig.flush()
            assert await rig.stored() == list(range(number))
        assert rig.outcomes().keys() - {"stored"}, "the kills were felt"


async def test_a_dropped_table_waits_and_arrives_while_others_go_on(
    open_rig: OpenRig, caplog: pytest.LogCaptureFixture
) -> None:
    others = things("others")
    async with open_rig(tables=(THINGS, others)) as rig:
        rig.send(range(100))
        await rig.flush()
        await rig.run(f"DROP TABLE `{rig.direct.database}`.things SYNC")
        for start in range(100, 400, 100):
            rig.send(range(start, start + 100))
        await until(lambda: rig.outcomes().get("operator", 0) >= 2, "the table is parked")
        rig.send(range(50), table="others")
        await until(lambda: rig.metrics.rows_stored.values.get(("others",)) == 50, "others go on")
        rig.check_counters()
        shards: object = rig.delivery.buffers()["shards"]
        assert "UNKNOWN_TABLE" in str(shards)
        await rig.direct.create_tables([THINGS], retention_days=0)
        await until_it(lambda: _has(rig, list(range(100, 400))), "parked rows arrive")
        assert await rig.stored("others") == list(range(50))
        alarms = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert len(alarms) == 1, "one alarm, not one for each attempt"


async def _has(rig: Rig, numbers: list[int]) -> bool:
    return await rig.stored() == numbers


async def test_poison_delays_only_its_own_batch(plain: Rig) -> None:
    plain.proxy.plan.append(answered(400, 117))
    plain.send(range(100))
    await until(lambda: plain.outcomes().get("poison") == 1, "the batch is refused")
    plain.proxy.plan.clear()
    plain.send(range(100, 200))
    await until(lambda: plain.metrics.rows_stored.values.get(("things",), 0) >= 100, "the next one is stored")
    plain.check_counters()
    await plain.flush()
    assert await plain.stored() == list(range(200))


async def test_a_block_that_always_looks_cut_short_is_poison_in_the_end(open_rig: OpenRig) -> None:
    async with open_rig(parked_first_ms=60_000.0, parked_max_ms=60_000.0) as rig:
        rig.proxy.plan.extend([answered(500, 33)] * 5)
        rig.send(range(100))
        await until(lambda: rig.outcomes().get("ambiguous") == 5, "it is tried five times")
        rig.send(range(100, 200))
        await until(lambda: rig.metrics.rows_stored.values.get(("things",), 0) == 100, "others pass")
        await rig.flush()
        assert await rig.stored() == list(range(200))
