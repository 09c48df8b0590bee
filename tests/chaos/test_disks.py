"""Disks that are full, fail, rot, or lose power: nothing acknowledged is lost but what the medium itself lost."""

from __future__ import annotations

import random

from tests.chaos.crash import WRITE, CrashRounds
from tests.chaos.disk import FullDiskRounds
from tests.chaos.frames import frames_of
from tests.chaos.gateway import World
from tests.chaos.load import Load, settle
from tests.chaos.machine import full, mounts, preloads, traces
from tests.chaos.power import MODES, PowerRounds
from tests.chaos.rot import SETTINGS, RotRounds

PAUSE_MS = 10.0


@mounts
def test_a_full_disk_refuses_and_loses_nothing(world: World, seed: str) -> None:
    with FullDiskRounds(world, seed, pause_ms=PAUSE_MS) as rounds:
        rounds.round(0, kill=True)
    assert rounds.tally.clean, rounds.tally.summary()


@full
@mounts
def test_whoever_ignores_a_full_disk_loses_records(world: World, seed: str) -> None:
    with FullDiskRounds(world, seed, pause_ms=PAUSE_MS, weakened_by="disk errors") as rounds:
        report = rounds.round(0, kill=True, stalled_s=2.0)
    assert report.missing > 0, report


@traces
def test_dying_or_failing_at_any_call_loses_nothing(world: World, seed: str) -> None:
    with CrashRounds(world, seed, pause_ms=PAUSE_MS) as rounds:
        rounds.round(0, storm_s=2.5)
        if not rounds.tally.struck:  # what was chosen by chance did not come to pass
            rounds.round(1, injection=f"{WRITE}:error=EIO:when=1+2", storm_s=5.0)
    assert rounds.tally.struck > 0
    assert rounds.tally.clean, rounds.tally.summary()


@full
@traces
def test_whoever_ignores_a_failed_write_loses_records(world: World, seed: str) -> None:
    with CrashRounds(world, seed, pause_ms=PAUSE_MS, weakened_by="disk errors") as rounds:
        report = rounds.round(0, injection=f"{WRITE}:error=EIO:when=1+1", state="down", stalled_s=2.0)
    assert report.missing > 0, report


def test_rot_costs_no_more_than_what_it_hit_and_is_told(world: World, seed: str) -> None:
    with RotRounds(world, seed, pause_ms=PAUSE_MS) as rounds:
        rounds.round(0)
    assert rounds.tally.clean, rounds.tally.summary()


def test_rot_of_what_says_that_rows_are_stored_doubles_none(world: World, seed: str) -> None:
    books = rows = 0
    with world.gateway(name=f"books-{seed}", settings=SETTINGS) as gateway:
        gateway.start()
        with Load(world, gateway, f"books-{seed}", pause_ms=PAUSE_MS) as load:
            load.wait_for(500)
            assert settle(world, gateway, load).clean
            gateway.kill_all()
            for path in gateway.data_dir.glob("spool/slot-*/*.seg"):
                with path.open("r+b") as segment:
                    for frame in frames_of(path):
                        rows += frame.rows
                        if not frame.rows:
                            books += 1
                            segment.seek(frame.start)
                            segment.write(bytes(frame.end - frame.start))
            gateway.start()
            report = settle(world, gateway, load)
    assert books > 0
    assert rows > 0, "there is nothing that could be doubled"
    assert report.missing == report.duplicate == report.clashing == 0, report


@full
def test_without_checksums_rot_is_not_told(world: World, seed: str) -> None:
    with RotRounds(world, seed, pause_ms=PAUSE_MS, weakened_by="checksums") as rounds:
        for number in range(5):
            try:
                rounds.round(number, damages=5)
            except TimeoutError as error:  # what was damaged may hold up the rest as well
                print(error)
                break
            if not rounds.tally.clean:
                break
    assert not rounds.tally.clean, f"nothing was wrong: {rounds.tally.summary()}"


@preloads
def test_what_is_acknowledged_survives_a_loss_of_power(world: World, seed: str) -> None:
    with PowerRounds(world, seed, pause_ms=PAUSE_MS) as rounds:
        rounds.round(0, mode=random.Random(seed).choice(MODES))
    assert rounds.tally.clean, rounds.tally.summary()


@full
@preloads
def test_whoever_does_not_sync_loses_records_with_the_power(world: World, seed: str) -> None:
    with PowerRounds(world, seed, pause_ms=PAUSE_MS, unsynced=True) as rounds:
        report = rounds.round(0, mode="nothing", stalled_s=2.0)
    assert report.missing > 0, report
