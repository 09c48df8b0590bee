"""Early refusals come when rows have waited too long for a while, grow, and end at once when they do not."""

from __future__ import annotations

from collections import Counter

import pytest

from gateway.delivery.congestion import INTERVAL_S, TARGET_S, Congestion
from gateway.errors import Overloaded
from tests.delivery.conftest import OpenRig
from tests.delivery.rig import until
from tests.delivery.test_spool import Gated


class Clock:
    """Time that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def refusals(congestion: Congestion, clock: Clock, seconds: float, a_second: int = 1_000) -> int:
    """How many of so many requests are refused."""
    count = 0
    for _ in range(round(seconds * a_second)):
        clock.now += 1 / a_second
        count += congestion.refuses("p")
    return count


def test_a_burst_that_is_gone_soon_is_nothing() -> None:
    clock = Clock()
    congestion = Congestion(clock)
    congestion.enter(clock.now, "p", 10)
    assert refusals(congestion, clock, TARGET_S + INTERVAL_S - 0.01) == 0
    congestion.leave("p", 10)
    congestion.enter(clock.now, "p", 10)
    clock.now += 0.01
    congestion.leave("p", 10)
    assert refusals(congestion, clock, 5.0) == 0


def test_refusals_grow_while_rows_wait_and_end_when_they_do_not() -> None:
    clock = Clock()
    congestion = Congestion(clock)
    congestion.enter(clock.now, "p", 10)
    assert refusals(congestion, clock, TARGET_S + INTERVAL_S + 0.01) == 1
    first, second, third = (refusals(congestion, clock, 2.0) for _ in range(3))
    assert 2 < first < second < third
    congestion.leave("p", 10)
    congestion.enter(clock.now, "p", 10)
    clock.now += 0.001
    congestion.leave("p", 10)
    assert refusals(congestion, clock, 5.0) == 0


def test_who_makes_the_others_wait_is_refused_and_nobody_else() -> None:
    clock = Clock()
    congestion = Congestion(clock)
    for project_id, data_bytes in (("much", 500), ("small", 10), ("more", 300)):
        congestion.enter(clock.now, project_id, data_bytes)
    refused: Counter[str] = Counter()
    for _ in range(3_000):
        clock.now += 0.001
        for project_id in ("small", "new", "more", "much"):
            refused[project_id] += congestion.refuses(project_id)
    assert refused["small"] == refused["new"] == 0
    assert refused["more"] > 2, "it has more than a third of what waits"


def test_who_makes_nobody_wait_any_more_is_refused_no_more() -> None:
    """Whoever else does."""
    clock = Clock()
    congestion = Congestion(clock)
    for project_id, data_bytes in (("much", 500), ("more", 300)):
        congestion.enter(clock.now, project_id, data_bytes)

    def refused_in_turns() -> set[str]:
        """Of those who come again and again, for two seconds."""
        refused = set()
        for _ in range(2_000):
            clock.now += 0.001
            refused |= {project_id for project_id in ("much", "more") if congestion.refuses(project_id)}
        return refused

    assert refused_in_turns() == {"much"}
    congestion.leave("much", 500)
    assert refused_in_turns() == {"more"}
    congestion.leave("more", 300)
    assert refused_in_turns() == set()


async def test_a_disk_that_stands_is_felt_at_the_door_by_those_who_come_back(open_rig: OpenRig) -> None:
    clock = Clock()
    disk = Gated()
    async with open_rig(disk=disk, clock=clock) as rig:
        await rig.send(range(10)).wait()
        disk.holds = "write"
        receipt = rig.send(range(10, 20))
        await until(disk.is_held, "the disk is asked")
        rig.delivery.check("p", 100, retries=True)
        clock.now += TARGET_S
        rig.delivery.check("p", 100, retries=True)
        clock.now += INTERVAL_S
        rig.delivery.check("p", 100, retries=False)
        with pytest.raises(Overloaded):
            rig.delivery.check("p", 100, retries=True)
        disk.let_go()
        await receipt.wait()
