"""Workers are replaced and gateways stopped under load, and no sender notices."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.gateway import World
from tests.chaos.rolls import RollRounds

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds workers through /proc")

ROLLS = 1
PAUSE_MS = 20.0


def test_no_sender_notices_that_workers_are_replaced_and_a_gateway_is_stopped(world: World, seed: str) -> None:
    with RollRounds(world, seed, pause_ms=PAUSE_MS) as rounds:
        report = rounds.round(0, ROLLS)
    assert report.acked > 0
    assert rounds.tally.clean, rounds.tally.summary()


def test_without_patience_for_senders_their_connections_break(world: World, seed: str) -> None:
    """The positive control."""
    with RollRounds(world, seed, pause_ms=0.0, weakened_by="patience for senders") as rounds:
        report = rounds.round(0, ROLLS)
    assert report.clean, report
    assert rounds.tally.findings, rounds.tally.summary()
