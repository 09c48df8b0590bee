"""Who is slow, silent or broken is closed at their deadline, and those who are not have their answers."""

from __future__ import annotations

import pytest

from tests.chaos.gateway import World
from tests.chaos.hostile import KINDS, UNREAD
from tests.chaos.senders import SenderRounds, may_count_connections

pytestmark = pytest.mark.skipif(not may_count_connections(), reason="looks at connections in /proc")

CONNECTIONS, ALONE_S, SLACK_S = 300, 0.5, 4.0
PATIENCE_S = (1.0, 2.0, 2.0)
CONTROL_CONNECTIONS, CONTROL_SLACK_S = 50, 1.0
WAITING = (UNREAD, "silent", "header byte by byte", "header unfinished", "body half", "chunks without end")


def test_each_hostile_connection_is_closed_in_time_and_nobody_else_is_hurt(world: World, seed: str) -> None:
    with SenderRounds(world, seed) as rounds:
        report = rounds.round(
            0,
            connections=CONNECTIONS,
            seconds=0.0,
            alone_s=ALONE_S,
            slack_s=SLACK_S,
            patience_s=PATIENCE_S,
        )
    print(rounds.tally.summary())
    assert report.acked > 0
    assert rounds.tally.faults.keys() >= set(KINDS)
    assert rounds.tally.clean, rounds.tally.summary()


def test_without_deadlines_who_waits_is_not_closed(world: World, seed: str) -> None:
    """The positive control."""
    with SenderRounds(world, seed, weakened_by="deadlines") as rounds:
        report = rounds.round(
            0,
            connections=CONTROL_CONNECTIONS,
            seconds=0.0,
            alone_s=0.0,
            slack_s=CONTROL_SLACK_S,
            patience_s=PATIENCE_S,
            kinds=WAITING,
        )
    assert report.clean, report
    for kind in WAITING:
        assert any(f"{kind}: not closed" in finding for finding in rounds.tally.findings), rounds.tally.summary()
