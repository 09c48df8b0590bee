"""One call of the spool fails, or comes back short: what is acknowledged is on disk, and the gateway goes on."""

from __future__ import annotations

from tests.chaos.errnos import KILL, SHORT, SWEEP, Call, ErrnoRounds, Fault
from tests.chaos.gateway import World
from tests.chaos.machine import preloads

PAUSE_MS = 10.0
FAULTS = [
    (Fault(Call.FDATASYNC, "EIO", 3), "nothing"),
    (Fault(Call.PWRITEV, SHORT, 2), KILL),
    (Fault(Call.FSYNC, "ENOSPC", 1, starting=True), "nothing"),
]


@preloads
def test_a_call_that_fails_costs_nothing_that_was_acknowledged(world: World, seed: str) -> None:
    with ErrnoRounds(world, seed, pause_ms=PAUSE_MS) as rounds:
        for number, (fault, end) in enumerate(FAULTS):
            rounds.round(number, fault=fault, end=end)
    assert rounds.tally.struck == len(FAULTS), rounds.tally.summary()
    assert rounds.tally.clean, rounds.tally.summary()


@preloads
def test_whoever_ignores_a_failed_sync_loses_records_with_the_power(world: World, seed: str) -> None:
    """The positive control."""
    with ErrnoRounds(world, seed, pause_ms=PAUSE_MS, weakened_by="disk errors") as rounds:
        report = rounds.round(0, fault=Fault(Call.FDATASYNC, "EIO", 2), end="nothing", state="down", stalled_s=2.0)
    assert rounds.tally.struck == 1
    assert report.missing > 0, report


def test_the_sweep_has_each_call_and_errno_once() -> None:
    assert len(set(SWEEP)) == len(SWEEP)
    assert {fault.call for fault in SWEEP} == set(Call)
    assert [fault.number for fault in SWEEP] == sorted(fault.number for fault in SWEEP)
