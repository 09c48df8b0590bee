"""Programme "rolls": workers are replaced and gateways stopped under load, and no sender notices.

A round: a gateway with one worker or two, senders at it, ClickHouse up, stopped or down. Some times its workers are
replaced (SIGUSR2), or one is asked to end by somebody else (SIGTERM). Then the gateway is stopped (SIGTERM) in the
middle of it all, and started again; ClickHouse comes back, everything drains, and the oracle asks.

Wrong is a connection that is refused or breaks while workers are replaced, one that breaks while the gateway stops
(refused it may be then), a stop that takes longer than ten seconds or says that something was lost.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from tests.chaos.gateway import World, poll
from tests.chaos.load import Load, settle
from tests.chaos.oracle import Report
from tests.chaos.rounds import Rounds

ROLLS_A_ROUND = 5
STATES = ("up", "up", "stopped", "down")
ROLL_S = 60.0
STOP_S = 10.0
BETWEEN_RECORDS = 50


class RollRounds(Rounds):
    """Rounds in one world, one gateway directory. ``weakened_by``: a protection that is off."""

    def __init__(self, world: World, seed: str, *, pause_ms: float = 2.0, weakened_by: str = "") -> None:
        gateway = world.gateway(name=f"rolls-{seed}-{bool(weakened_by)}".lower(), weakened_by=weakened_by)
        super().__init__(world, seed, gateway, pause_ms=pause_ms)

    def round(self, number: int, rolls: int = ROLLS_A_ROUND) -> Report:
        """One round; its report, which is in the tally too."""
        choose = random.Random(f"{self._seed}/{number}")
        world, gateway, what = self._world, self._gateway, f"seed {self._seed} round {number}"
        workers = choose.choice((1, 2))
        gateway.environ["WEIR__WORKERS"] = str(workers)
        world.clickhouse.become("up")
        gateway.start()
        with self._load(number) as load:
            for roll in range(rolls):
                world.clickhouse.become(state := choose.choice(STATES))
                self.tally.states[state] += 1
                self._roll(choose.choice(("all", "all", "one")), load, f"{what} roll {roll}")
            self._stop(load, what)
            gateway.start()
            load.wait_for(BETWEEN_RECORDS)
            report = settle(world, gateway, load)
        self._count(report, what)
        gateway.stop()
        return report

    def _roll(self, whom: str, load: Load, what: str) -> None:
        gateway, began = self._gateway, time.monotonic()
        before = set(gateway.workers())
        if whom == "all":
            os.kill(gateway.pid, signal.SIGUSR2)
            self._wait_for_workers(lambda there: not there & before, len(before))
        else:
            asked = min(before)
            with suppress(ProcessLookupError):
                os.kill(asked, signal.SIGTERM)
            self._wait_for_workers(lambda there: asked not in there, len(before))
        self.tally.cycles += 1
        self.tally.kills[f"replaced {whom}"] += 1
        self.tally.measure(f"replaced {whom} s", time.monotonic() - began)
        load.wait_for(BETWEEN_RECORDS)
        if broken := load.broken():
            self.tally.finding(f"{what}, replaced {whom}: {broken}")

    def _wait_for_workers(self, condition: Callable[[set[int]], bool], count: int) -> None:
        poll(
            lambda: condition(there := set(self._gateway.workers())) and len(there) == count,
            ROLL_S,
            f"workers are replaced; {self._gateway.said()}",
        )

    def _stop(self, load: Load, what: str) -> None:
        began = time.monotonic()
        code = self._gateway.stop()
        took_s = time.monotonic() - began
        self.tally.kills["stopped"] += 1
        self.tally.measure("stopped s", took_s)
        if code or took_s > STOP_S:
            self.tally.finding(f"{what}: stopped with {code} after {took_s:.1f} s")
        load.acked()
        if broken := {why: count for why, count in load.broken().items() if why != "ConnectionRefusedError"}:
            self.tally.finding(f"{what}, stopped: {broken}")
