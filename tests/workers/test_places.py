"""One place: whoever dies in it is followed, at once or ever more slowly; here with lives that end when told to."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from gateway.config import Config
from gateway.metrics import Counter, Family, Gauge, Table, exposed, together
from gateway.workers.channel import Ended
from gateway.workers.lives import Life, WorkerFailed
from gateway.workers.places import DELAY_MAX_S, Place
from gateway.workers.supervisor import Supervisor


class ScriptedLife:
    """A life without a process; it ends when it is told to."""

    def __init__(self, slot: int) -> None:
        self.slot, self.pid = slot, 1
        self.last: Ended | None = None
        self.hangs = False
        self.asked = 0
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def ended(self) -> int:
        return await asyncio.shield(self._status)

    def end(self, status: int, last: Ended | None = None) -> None:
        self.last = last
        self._status.set_result(status)

    async def ask(self, *_: object) -> object:
        self.asked += 1
        if self.hangs:
            raise TimeoutError
        if self._status.done():
            raise ConnectionError
        return ""

    async def kill(self) -> None:
        self.end(-9)

    async def stop(self, **_: object) -> None:
        if not self._status.done():
            self.end(0, Ended(0, 0, counted(5), is_owed=False))


class Rig:
    """A place whose lives begin here. ``failures``: how many begins fail; ``slept``: what it waited before each;
    ``turns``: how many turns of the loop a begin takes."""

    def __init__(self) -> None:
        self.now_s, self.failures, self.deaths, self.begins = 0.0, 0, 0, 0
        self.turns = 1
        self.lives: list[ScriptedLife] = []
        self.slept: list[float] = []
        self.place = Place(0, self._begin, self._died, clock=lambda: self.now_s, sleep=self._sleep, watch_s=0)

    async def _begin(self, number: int, slot: int | None) -> Life:
        self.begins += 1
        await self.pass_turns(self.turns)
        if self.failures:
            self.failures -= 1
            raise WorkerFailed("the test says so")
        self.lives.append(ScriptedLife(len(self.lives) if slot is None else slot))
        return cast(Life, self.lives[-1])

    def _died(self, number: int) -> None:
        self.deaths += 1

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        await self.pass_turns(1)

    async def pass_turns(self, turns: int) -> None:
        """Turns of the loop: no time has to pass."""
        for _ in range(turns):
            await asyncio.sleep(0)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await self.pass_turns(1)


def counted(value: float) -> list[Family]:
    return [Family("weir_things", "Things.", "counter", True, [("weir_things_total", {"kind": "a"}, value)])]


async def test_one_that_lived_long_is_followed_at_once_on_its_slot() -> None:
    rig = Rig()
    await rig.place.start()
    for follower in range(2, 6):
        rig.now_s += 60
        rig.lives[-1].end(-9)
        await rig.until(lambda follower=follower: len(rig.lives) == follower)  # type: ignore[misc]
    assert (rig.slept, rig.deaths) == ([0.0] * 4, 4)
    assert {life.slot for life in rig.lives} == {0}


async def test_one_that_dies_again_and_again_is_followed_ever_more_slowly_and_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    rig = Rig()
    await rig.place.start()
    rig.failures = 50
    rig.lives[-1].end(1)
    await rig.until(lambda: len(rig.lives) == 2)
    assert rig.slept[:6] == [0.0, 0.1, 0.2, 0.4, 0.8, DELAY_MAX_S]
    assert (len(rig.slept), max(rig.slept), rig.deaths) == (51, DELAY_MAX_S, 51)
    assert rig.place.slots == {0}
    # It has lived: the next one comes at once.
    rig.now_s += 60
    rig.lives[-1].end(-9)
    await rig.until(lambda: len(rig.lives) == 3)
    assert rig.slept[-1] == 0.0


async def test_one_that_hangs_is_killed_and_followed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    rig = Rig()
    await rig.place.start()
    await rig.until(lambda: rig.lives[0].asked > 10)
    assert len(rig.lives) == 1, "one that answers lives on"
    rig.now_s += 60
    rig.lives[-1].hangs = True
    await rig.until(lambda: len(rig.lives) == 2)
    assert (rig.place.slots, rig.deaths) == ({0}, 1)


async def test_one_that_is_replaced_keeps_its_slot_until_it_has_ended_and_is_no_death() -> None:
    rig = Rig()
    await rig.place.start()
    assert await rig.place.roll(1) == (0, False), "nothing waits there"
    await rig.until(lambda: rig.place.slots == {1})
    assert ([life.slot for life in rig.lives], rig.deaths, rig.slept) == ([0, 1], 0, [])
    rig.lives[1].end(0)
    families, _ = await rig.place.families()
    assert families == counted(5), "what it counted is counted on"


@pytest.mark.parametrize("last", [None, Ended(0, 7, [], is_owed=True)], ids=["killed", "owing"])
async def test_of_one_that_is_replaced_it_is_known_that_rows_may_wait(last: Ended | None) -> None:
    rig = Rig()
    await rig.place.start()
    rig.turns = 20
    rolling = asyncio.create_task(rig.place.roll(1))
    await rig.until(lambda: rig.begins == 2)
    rig.lives[0].end(-9, last)
    assert await rolling == (0, True)


async def test_one_that_ends_by_itself_while_it_is_replaced_is_counted_once() -> None:
    rig = Rig()
    await rig.place.start()
    rig.turns = 20
    rolling = asyncio.create_task(rig.place.roll(1))
    await rig.until(lambda: rig.begins == 2)
    rig.lives[0].end(0, Ended(0, 0, counted(5), is_owed=False))
    await rolling
    assert rig.deaths == 1, "it had ended before there was a successor"
    rig.lives[1].end(0)
    families, _ = await rig.place.families()
    assert families == counted(5)


async def test_a_supervisor_that_has_no_file_left_goes_on_with_the_workers_it_has(tmp_path: Path) -> None:
    class Full:
        number = 0

        async def roll(self, patience_s: float) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

    supervisor = Supervisor(Config(data_dir=str(tmp_path)))
    assert not await supervisor.roll([cast(Place, Full())])


async def test_when_a_successor_cannot_start_the_old_one_stays() -> None:
    rig = Rig()
    await rig.place.start()
    rig.failures = 1
    with pytest.raises(WorkerFailed):
        await rig.place.roll(1)
    assert (rig.place.slots, rig.deaths) == ({0}, 0)
    rig.lives[0].end(-9)
    await rig.until(lambda: len(rig.lives) == 2)
    assert rig.place.slots == {0}


async def test_a_place_is_settled_once_nobody_is_starting_there() -> None:
    rig = Rig()
    await rig.place.start()
    rig.turns = 20
    rig.lives[-1].end(-9)
    await rig.until(lambda: rig.begins == 2)
    await rig.place.settled(0)
    assert rig.place.pid is None, "it was not waited for"
    await rig.place.settled(60)
    assert rig.place.pid is not None


async def test_a_stop_that_comes_between_two_lives_is_the_end() -> None:
    rig = Rig()
    await rig.place.start()
    rig.failures = 10**9
    rig.lives[-1].end(-9)
    await rig.until(lambda: len(rig.slept) > 3)
    assert await rig.place.stop(delay_s=0, within_s=1) == []
    tried = len(rig.slept)
    await rig.pass_turns(100)
    assert len(rig.slept) == tried


def test_of_two_processes_in_a_place_counts_add_and_ages_do_not() -> None:
    class Few(Table):
        def __init__(self, things: int, age_s: float) -> None:
            self.things = Counter("things", "Things.", ("kind",))
            self.things.add(things, "a")
            self.age_seconds = Gauge("age_seconds", "Age.", adds=False)
            self.age_seconds.set(age_s)

    both = together([Few(2, 7.0).families(), Few(3, 5.0).families()])
    assert [family.samples for family in both] == [
        [("weir_things_total", {"kind": "a"}, 5)],
        [("weir_age_seconds", {}, 7.0)],
    ]
    alone = [(sample.name, sample.labels) for metric in exposed({"0": both}) for sample in metric.samples]
    assert alone == [("weir_things_total", {"kind": "a"}), ("weir_age_seconds", {})]
    of_two = [sample.labels for metric in exposed({"0": both, "1": both}) for sample in metric.samples]
    assert of_two[:2] == [{"worker": "0", "kind": "a"}, {"worker": "1", "kind": "a"}]
