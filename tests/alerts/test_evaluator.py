"""When alerts fire and when they must not, with a clock that is moved and arrivals that are made up."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from gateway.alerts.evaluator import LOOK_BACK, OVERLAP, Evaluator
from gateway.metrics import Metrics
from gateway.reading.matches import Found
from gateway.tenants.records import AlertRecord

BEGAN = datetime(2026, 1, 31, 12, tzinfo=UTC)
INTERVAL_S = 5
STEP = timedelta(seconds=INTERVAL_S)


def alert(timeout_s: int | None = None, cooldown_s: int = 300) -> AlertRecord:
    """An alert on any log, or on heartbeats; it is an hour old."""
    return AlertRecord(
        id=1,
        project_id="p",
        project_slug="shop",
        name="an alert",
        levels=("heartbeat",) if timeout_s else (),
        contains="",
        context_key="",
        context_value="",
        timeout_s=timeout_s,
        cooldown_s=cooldown_s,
        webhook_url="https://example.com/",
        enabled=True,
        created_at=BEGAN - timedelta(hours=1),
        last_fired_at=None,
        last_outcome="",
    )


class World:
    """A clock, rows by arrival and by when they are stored, one alert, and what was told of it.

    ``postgres`` and ``clickhouse`` say whether these answer, ``fires`` whether the former takes that an alert
    fired, ``grants`` whether everybody may evaluate. ``lost_races``: how often somebody else had fired.
    """

    def __init__(self, kept: AlertRecord) -> None:
        self.now = BEGAN
        self.rows: list[tuple[datetime, datetime]] = []
        self.kept: AlertRecord | None = kept
        self.told: list[tuple[datetime, int]] = []
        self.postgres = self.clickhouse = self.grants = True
        self.fires = True
        self.lost_races = 0
        self.unstored_s = 0.0
        self.looks: list[timedelta] = []
        self.metrics = Metrics()

    def evaluator(self) -> Evaluator:
        return Evaluator(
            self,
            self.look,
            lambda alert, at, found: self.told.append((at, found.count)),
            unstored_s=lambda: self.unstored_s,
            metrics=self.metrics,
            interval_s=INTERVAL_S,
            now=lambda: self.now,
        )

    def arrive(self, stored_after_s: float = 0.0) -> None:
        """A row arrives now."""
        self.rows.append((self.now, self.now + timedelta(seconds=stored_after_s)))

    async def look(self, alert: Any, since: datetime, until: datetime) -> Found:
        if not self.clickhouse:
            raise ConnectionError("away")
        self.looks.append(until - since)
        await asyncio.sleep(0)
        return Found(sum(since < arrived <= until and stored <= self.now for arrived, stored in self.rows))

    async def watched(self, instance: uuid.UUID, lease_s: float) -> Sequence[AlertRecord] | None:
        if not self.postgres:
            raise ConnectionError("away")
        return None if not self.grants else [self.kept] if self.kept else []

    async def leave(self, instance: uuid.UUID) -> None:
        return

    async def fire(self, alert: AlertRecord, at: datetime) -> bool:
        if not self.fires:
            raise ConnectionError("away")
        if self.kept is None or self.kept.last_fired_at != alert.last_fired_at:
            self.lost_races += 1
            return False
        self.kept = msgspec.structs.replace(self.kept, last_fired_at=at)
        return True

    async def run(self, evaluator: Evaluator, seconds: float, *, beats_s: float = 0) -> None:
        """Time passes with a look every five seconds, and a row every ``beats_s``."""
        ends = self.now + timedelta(seconds=seconds)
        beat = self.now
        while self.now < ends:
            self.now += STEP
            if beats_s and self.now - beat >= timedelta(seconds=beats_s):
                beat = self.now
                self.arrive()
            await evaluator.look()

    def told_after_s(self) -> list[float]:
        """When it was told, in seconds since the beginning."""
        return [(at - BEGAN).total_seconds() for at, _ in self.told]


@pytest.fixture
def matching() -> World:
    """An alert on any log, with five minutes of cool-down."""
    return World(alert())


@pytest.fixture
def beating() -> World:
    """An alert on heartbeats that are away for two minutes, with five minutes of cool-down."""
    return World(alert(timeout_s=120))


async def test_the_first_match_fires_and_says_how_many_there_are(matching: World) -> None:
    evaluator = matching.evaluator()
    await matching.run(evaluator, 60)
    assert matching.told == []
    matching.arrive()
    matching.arrive()
    await matching.run(evaluator, 60)
    assert matching.told == [(BEGAN + timedelta(seconds=65), 2)]


async def test_what_matches_during_the_cooldown_is_never_told_and_what_comes_after_is(matching: World) -> None:
    evaluator = matching.evaluator()
    matching.arrive()
    await matching.run(evaluator, 300, beats_s=20)
    assert matching.told_after_s() == [5]
    assert len(matching.looks) == 1, "nobody looks for what will not be told"
    await matching.run(evaluator, 600)
    assert matching.told_after_s() == [5]
    matching.arrive()
    await matching.run(evaluator, 60)
    assert matching.told_after_s() == [5, 905]


async def test_a_match_goes_on_firing_once_in_each_cooldown(matching: World) -> None:
    await matching.run(matching.evaluator(), 1200, beats_s=5)
    assert matching.told_after_s() == [5, 310, 615, 920]


async def test_what_arrived_before_there_was_the_alert_is_not_told(matching: World) -> None:
    matching.arrive()
    matching.now += STEP
    assert matching.kept
    matching.kept = msgspec.structs.replace(matching.kept, created_at=matching.now)
    await matching.run(matching.evaluator(), 60)
    assert matching.told == []
    matching.arrive()
    await matching.run(matching.evaluator(), 60)
    assert len(matching.told) == 1


async def test_a_row_that_another_gateway_stores_late_is_found(matching: World) -> None:
    evaluator = matching.evaluator()
    await matching.run(evaluator, 600)
    matching.arrive(stored_after_s=OVERLAP.total_seconds() - INTERVAL_S)
    await matching.run(evaluator, 300)
    assert len(matching.told) == 1


async def test_after_an_outage_what_another_gateway_stores_bit_by_bit_is_found(matching: World) -> None:
    evaluator = matching.evaluator()
    await matching.run(evaluator, 600)
    matching.clickhouse = False
    matching.arrive(stored_after_s=400)
    await matching.run(evaluator, 300)
    matching.clickhouse = True
    await matching.run(evaluator, 95)
    assert matching.told == []
    await matching.run(evaluator, 30)
    assert len(matching.told) == 1


async def test_a_row_that_waits_here_is_found_however_long_it_waits(matching: World) -> None:
    evaluator = matching.evaluator()
    await matching.run(evaluator, 600)
    matching.arrive(stored_after_s=600)
    arrived = matching.now
    while not matching.told:
        matching.unstored_s = (matching.now - arrived).total_seconds()
        await matching.run(evaluator, INTERVAL_S)
        assert matching.now - arrived < timedelta(seconds=700)


async def test_after_a_while_looks_are_short_and_they_never_are_long(matching: World) -> None:
    evaluator = matching.evaluator()
    await matching.run(evaluator, 3600)
    assert max(matching.looks) == LOOK_BACK
    assert matching.looks[-1] == OVERLAP + STEP
    matching.unstored_s = 10_000
    await matching.run(evaluator, 60)
    assert max(matching.looks) == LOOK_BACK


async def test_of_two_that_both_evaluate_one_fires(matching: World) -> None:
    one, other = matching.evaluator(), matching.evaluator()
    for _ in range(100):
        matching.arrive()
        matching.now += STEP
        await asyncio.gather(one.look(), other.look())
    assert matching.told_after_s() == [5, 315]
    # Both saw it.
    assert matching.lost_races == 2


async def test_a_gateway_that_starts_again_does_not_tell_again(matching: World) -> None:
    matching.arrive()
    await matching.run(matching.evaluator(), 60)
    for _ in range(10):
        await matching.run(matching.evaluator(), 60)
    assert len(matching.told) == 1


async def test_who_may_not_evaluate_looks_at_nothing(matching: World) -> None:
    matching.grants = False
    matching.arrive()
    await matching.run(matching.evaluator(), 60)
    assert (matching.looks, matching.told) == ([], [])


@pytest.mark.parametrize("away", ["postgres", "clickhouse", "fires"])
async def test_what_matches_during_an_outage_is_told_after_it(matching: World, away: str) -> None:
    evaluator = matching.evaluator()
    await matching.run(evaluator, 300)
    setattr(matching, away, False)
    matching.arrive()
    await matching.run(evaluator, 300)
    assert matching.told == []
    assert matching.metrics.alert_evaluations.values["failed",] == 60
    setattr(matching, away, True)
    await matching.run(evaluator, 60)
    assert matching.told_after_s() == [605]


async def test_one_alert_that_fails_keeps_no_other_from_firing(matching: World) -> None:
    evaluator = matching.evaluator()
    good = matching.kept
    assert good
    bad = msgspec.structs.replace(good, id=2, created_at=None)
    matching.watched = lambda instance, lease_s: _soon([bad, good])  # type: ignore[method-assign]
    matching.arrive()
    await matching.run(evaluator, INTERVAL_S)
    assert len(matching.told) == 1


async def test_an_absence_fires_after_the_timeout_and_again_after_the_cooldown(beating: World) -> None:
    evaluator = beating.evaluator()
    await beating.run(evaluator, 600, beats_s=60)
    assert beating.told == []
    last = beating.rows[-1][0]
    await beating.run(evaluator, 600)
    first, second = (at - last for at, _ in beating.told)
    assert timedelta(seconds=120) <= first <= timedelta(seconds=125)
    assert timedelta(seconds=300) <= second - first <= timedelta(seconds=305)
    assert [count for _, count in beating.told] == [0, 0]
    await beating.run(evaluator, 900, beats_s=60)
    assert len(beating.told) == 2


async def test_a_gateway_that_has_just_started_concludes_no_absence(beating: World) -> None:
    evaluator = beating.evaluator()
    await beating.run(evaluator, 120)
    assert beating.told == []
    await beating.run(evaluator, 10)
    assert beating.told_after_s() == [125]


async def test_an_alert_that_was_just_made_waits_for_its_timeout(beating: World) -> None:
    evaluator = beating.evaluator()
    kept, beating.kept = beating.kept, None
    await beating.run(evaluator, 600)
    assert kept
    beating.kept = msgspec.structs.replace(kept, created_at=beating.now)
    await beating.run(evaluator, 115)
    assert beating.told == []
    await beating.run(evaluator, 15)
    assert len(beating.told) == 1


@pytest.mark.parametrize("away", ["postgres", "clickhouse"])
async def test_an_outage_is_no_absence_and_a_silence_that_goes_on_after_it_is(beating: World, away: str) -> None:
    evaluator = beating.evaluator()
    await beating.run(evaluator, 600, beats_s=60)
    setattr(beating, away, False)
    await beating.run(evaluator, 900)
    setattr(beating, away, True)
    # What was sent meanwhile is stored bit by bit.
    await beating.run(evaluator, 110)
    assert beating.told == []
    await beating.run(evaluator, 20)
    assert len(beating.told) == 1


async def test_heartbeats_that_wait_here_are_not_absent(beating: World) -> None:
    evaluator = beating.evaluator()
    await beating.run(evaluator, 600, beats_s=60)
    began = beating.now
    while beating.now - began < timedelta(minutes=20):
        beating.unstored_s = (beating.now + STEP - began).total_seconds()
        await beating.run(evaluator, INTERVAL_S)
    assert beating.told == []
    assert beating.metrics.alert_evaluations.values["failed",] > 0, "that it is not known is to be seen"
    beating.unstored_s = 0
    await beating.run(evaluator, 130)
    assert len(beating.told) == 1


async def test_a_process_that_was_asleep_concludes_nothing_from_it(beating: World) -> None:
    evaluator = beating.evaluator()
    await beating.run(evaluator, 600, beats_s=60)
    beating.now += timedelta(hours=8)
    await beating.run(evaluator, 110, beats_s=60)
    assert beating.told == []
    await beating.run(evaluator, 200)
    assert len(beating.told) == 1


async def test_one_that_may_evaluate_again_looks_for_a_whole_timeout_first(beating: World) -> None:
    evaluator = beating.evaluator()
    await beating.run(evaluator, 600, beats_s=60)
    beating.grants = False
    await beating.run(evaluator, 50)
    beating.grants = True
    await beating.run(evaluator, 120)
    assert beating.told == []
    await beating.run(evaluator, 10)
    assert len(beating.told) == 1


async def _soon(value: Any) -> Any:
    return value
