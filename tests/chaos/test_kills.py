"""What was acknowledged survives SIGKILL, whatever ClickHouse does meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.gateway import World
from tests.chaos.kill import KillRounds
from tests.chaos.load import Load, settle

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds workers through /proc")

ROUNDS, CYCLES = 1, 4
PAUSE_MS = 10.0


def test_no_acknowledged_record_is_lost_or_doubled_by_kills(world: World, seed: str) -> None:
    with KillRounds(world, seed, pause_ms=PAUSE_MS) as rounds:
        for number in range(ROUNDS):
            rounds.round(number, CYCLES)
    print(rounds.tally.summary())
    assert rounds.tally.acked > 0
    assert rounds.tally.clean, rounds.tally.summary()


@pytest.mark.parametrize("state", ["stopped", "down"])
def test_a_start_does_not_wait_for_clickhouse(world: World, seed: str, state: str) -> None:
    world.clickhouse.become(state)
    with world.gateway(name=f"start-{state}-{seed}") as gateway:
        assert gateway.start() < 15.0  # a query may take 30


@pytest.mark.parametrize(("durability", "is_lost"), [("memory", True), ("disk", False)])
def test_on_a_slow_disk_only_what_was_acknowledged_from_memory_is_lost(
    world: World, seed: str, durability: str, is_lost: bool
) -> None:
    """The first is the positive control: the oracle sees a loss where there is one."""
    world.clickhouse.become("down")
    settings = {"delivery__durability": durability}
    name = f"{durability}-{seed}"
    with world.gateway(name=name, weakened_by="fast disk", settings=settings) as gateway:
        gateway.start()
        with Load(world, gateway, name, pause_ms=PAUSE_MS) as load:
            load.wait_for(200)
            gateway.kill_all()
            load.stop()
            world.clickhouse.become("up")
            gateway.start()
            report = settle(world, gateway, load, stalled_s=2.0)
    assert (report.missing > 0) == is_lost, report
    assert report.duplicate == report.corrupt == report.invented == 0, report
