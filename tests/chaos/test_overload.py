"""More than there is room for is refused, to the right ones, and what was acknowledged is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.gateway import World
from tests.chaos.overload import OverloadRounds

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a worker's memory in /proc")

PHASE_S, BACKLOG = 0.5, 5.0


def test_ten_times_too_much_is_refused_and_memory_stays_bounded(world: World, seed: str) -> None:
    with OverloadRounds(world, seed) as rounds:
        report = rounds.round(0, phase_s=PHASE_S, backlog=BACKLOG)
    assert report.acked > 0
    assert rounds.tally.clean, rounds.tally.summary()


def test_without_a_memory_budget_the_backlog_is_in_memory(world: World, seed: str) -> None:
    """The positive control."""
    with OverloadRounds(world, seed, weakened_by="memory budget") as rounds:
        report = rounds.round(0, phase_s=PHASE_S, backlog=BACKLOG)
    assert report.clean, report
    assert any("a worker took" in finding for finding in rounds.tally.findings), rounds.tally.summary()
