"""Every acknowledged record is in ClickHouse once, whatever happens between the two."""

from __future__ import annotations

import pytest

from tests.chaos.clickhouse import QUICK_KINDS, FaultRounds
from tests.chaos.gateway import World
from tests.chaos.machine import full

FAULTS, KILLS = 40, 1
PAUSE_MS = 10.0


def test_no_fault_of_an_exchange_loses_or_doubles_a_record(world: World, seed: str) -> None:
    with FaultRounds(world, seed, pause_ms=PAUSE_MS, kinds=QUICK_KINDS) as rounds:
        report = rounds.round(0, faults=FAULTS, kills=KILLS)
    print(rounds.tally.summary())
    assert report.acked > 0
    assert rounds.tally.cycles >= FAULTS
    assert rounds.tally.clean, rounds.tally.summary()


@pytest.mark.parametrize(
    ("weakened_by", "fault"), [pytest.param("verification", "missing", marks=full), ("tokens", "duplicate")]
)
def test_without_a_protection_the_oracle_finds_what_it_is_for(
    world: World, seed: str, weakened_by: str, fault: str
) -> None:
    """The positive controls."""
    kinds = ("swallow", "unsent")
    with FaultRounds(world, seed, weakened_by=weakened_by, pause_ms=PAUSE_MS, kinds=kinds) as rounds:
        report = rounds.round(0, faults=FAULTS, kills=0, stalled_s=2.0)
    assert getattr(report, fault) > 0, report
    assert report.corrupt == 0, report
