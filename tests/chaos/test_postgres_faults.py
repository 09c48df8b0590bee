"""Whatever becomes of Postgres, known keys work, and nobody is told that a key is wrong who may have a good one."""

from __future__ import annotations

import random

from tests.chaos.gateway import World
from tests.chaos.postgres import FAULTS, PostgresRounds

FAULT_S, PAUSE_MS = 1.0, 20.0
RESTARTED = ("stopped", "refuse", "hang", "slow", "wrong password", "empty")


def test_known_keys_work_and_valid_ones_are_never_unknown_whatever_postgres_does(world: World, seed: str) -> None:
    choose = random.Random(seed)
    restarted = choose.choice(RESTARTED)
    others = choose.sample([*FAULTS.keys() - {restarted}], 3)
    with PostgresRounds(world, seed, pause_ms=PAUSE_MS) as rounds:
        report = rounds.round(0, faults=[restarted, *others], restarted=[restarted], fault_s=FAULT_S)
    print(rounds.tally.summary())
    assert report.acked > 0
    assert rounds.tally.clean, rounds.tally.summary()


def test_without_doubt_a_valid_key_is_unknown_while_postgres_is_away(world: World, seed: str) -> None:
    """The positive control."""
    with PostgresRounds(world, seed, weakened_by="doubt", pause_ms=PAUSE_MS) as rounds:
        report = rounds.round(0, faults=["refuse"], restarted=[], fault_s=FAULT_S)
    assert report.clean, report
    said = " ".join(rounds.tally.findings)
    assert "401 for a valid key" in said, rounds.tally.summary()
    assert "401 for a key nobody issued, which nobody can know" in said, rounds.tally.summary()
    assert len(rounds.tally.findings) == 2, rounds.tally.summary()
