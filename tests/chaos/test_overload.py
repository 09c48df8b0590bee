"""More than there is room for is refused, to the right ones, and what was acknowledged is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.fairness import SHARED_PART, FairnessRounds
from tests.chaos.gateway import World
from tests.chaos.machine import full
from tests.chaos.overload import OverloadRounds

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a worker's memory in /proc")

PHASE_S, BACKLOG = 0.5, 3.0
UNBOUNDED_BACKLOG = 7.0
"""More than the slack that a worker's cap has beside its budgets."""
FAIR_PHASE_S, FAIR_PART = 1.0, 0.95
"""A machine that stands still for a while may refuse one; it is make chaos that asks for 99.9 %."""
NEARLY_ALL = 0.96


def neighbours(world: World, seed: str, weakened_by: str = "") -> FairnessRounds:
    """Few of them."""
    return FairnessRounds(world, seed, weakened_by=weakened_by, accepted_part=FAIR_PART, normal=6, keys=100)


def test_ten_times_too_much_is_refused_and_memory_stays_bounded(world: World, seed: str) -> None:
    with OverloadRounds(world, seed) as rounds:
        report = rounds.round(0, phase_s=PHASE_S, backlog=BACKLOG)
    assert report.acked > 0
    assert rounds.tally.clean, rounds.tally.summary()


def test_without_a_memory_budget_the_backlog_is_in_memory(world: World, seed: str) -> None:
    """The positive control."""
    with OverloadRounds(world, seed, weakened_by="memory budget") as rounds:
        report = rounds.round(0, phase_s=PHASE_S, backlog=UNBOUNDED_BACKLOG)
    assert report.clean, report
    assert any("a worker took" in finding for finding in rounds.tally.findings), rounds.tally.summary()


def test_who_sends_little_is_not_refused_for_who_sends_much_or_poison_or_giants(world: World, seed: str) -> None:
    with neighbours(world, seed) as rounds:
        report = rounds.round(0, phase_s=FAIR_PHASE_S)
    assert report.acked > 0
    assert rounds.tally.clean, rounds.tally.summary()


@pytest.mark.parametrize(
    ("weakened_by", "filled"),
    [pytest.param("shares of places", SHARED_PART, marks=full), ("shares of room", NEARLY_ALL)],
)
def test_without_shares_who_sends_little_is_refused_too(
    world: World, seed: str, weakened_by: str, filled: float
) -> None:
    """The positive controls. Only without shares can one project fill nearly all of the spool."""
    with neighbours(world, seed, weakened_by) as rounds:
        report = rounds.round(0, phase_s=FAIR_PHASE_S, filled=filled)
    assert report.clean, report
    assert any("of those who send little" in finding for finding in rounds.tally.findings), rounds.tally.summary()
