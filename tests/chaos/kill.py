"""Programme "kill": SIGKILL at random moments under load, ClickHouse in a random state.

A round is a gateway with senders at it, some cycles of killing, then ClickHouse comes back, everything
drains, and the oracle asks. A cycle: ClickHouse up, stopped, down, or just up again behind a backlog;
load for a random while; SIGKILL to a worker, to the parent alone, or to all at once; sometimes again
while it starts.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress

from tests.chaos.gateway import World, poll
from tests.chaos.load import Load, settle
from tests.chaos.oracle import Report
from tests.chaos.rounds import Rounds

CYCLES_A_ROUND = 5
STATES = ("up", "up", "stopped", "down", "backlog")
ORPHANS_S = 15.0
MOMENT_S = 0.3
PATIENCE_S = 5.0
"""For a start. The bar is two seconds on a machine that does nothing else."""


class KillRounds(Rounds):
    """Rounds in one world, one gateway directory."""

    def __init__(
        self, world: World, seed: str, *, pause_ms: float = 2.0, settings: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(world, seed, world.gateway(name=f"kill-{seed}", settings=settings), pause_ms=pause_ms)

    def _begin(self, stack: ExitStack) -> None:
        super()._begin(stack)
        self._world.clickhouse.become("up")
        self._gateway.start()

    def round(self, number: int, cycles: int = CYCLES_A_ROUND) -> Report:
        """One round; its report, which is in the tally too."""
        choose = random.Random(f"{self._seed}/{number}")
        gateway, what = self._gateway, f"seed {self._seed} round {number}"
        with self._load(number) as load:
            for cycle in range(cycles):
                self._cycle(choose, load, f"{what} cycle {cycle}")
            report = settle(self._world, gateway, load)
        try:
            poll(lambda: not gateway.orphans(), ORPHANS_S, "workers without a parent are gone")
        except TimeoutError as error:
            self.tally.finding(f"{what}: {error}")
        self._count(report, what)
        return report

    def _cycle(self, choose: random.Random, load: Load, what: str) -> None:
        world, tally = self._world, self.tally
        state = choose.choice(STATES)
        tally.states[state] += 1
        if state == "backlog":
            world.clickhouse.become(choose.choice(("down", "stopped")))
            load.wait_for(choose.randrange(50, 500))
            world.clickhouse.become("up")
        else:
            world.clickhouse.become(state)
        load.wait_for(choose.randrange(1, 100))
        time.sleep(choose.random() * MOMENT_S)  # the moment of a crash is nobody's to wait for
        whom = choose.choice(("worker", "parent", "all")) if self._gateway.workers() else "all"
        self._kill(whom, choose, what)
        if whom != "worker" and choose.random() < 0.2:
            self._gateway.launch()
            time.sleep(choose.random() * 1.5)
            self._gateway.kill_all()
            tally.kills["starting"] += 1
        tally.cycles += 1
        if whom != "worker":
            self._gateway.launch()
        self._wait_until_ready(what)

    def _wait_until_ready(self, what: str) -> None:
        """Until it is ready, whatever ClickHouse does; where that takes too long it is a finding, once."""
        tally, state, began = self.tally, self._world.clickhouse.state, time.monotonic()
        try:
            self._gateway.wait_until_ready(PATIENCE_S)
        except TimeoutError:
            finding = f"{what}: not ready within {PATIENCE_S} s while ClickHouse is {state}"
            if not any("not ready" in said for said in tally.findings):
                tally.finding(finding)
            tally.slow_starts += 1
            self._world.clickhouse.become("up")
            self._gateway.wait_until_ready()
        tally.ready_s.setdefault(state, []).append(time.monotonic() - began)

    def _kill(self, whom: str, choose: random.Random, what: str) -> None:
        gateway = self._gateway
        self.tally.kills[whom] += 1
        if whom == "all":
            gateway.kill_all()
        elif whom == "parent":
            # They store what they can and go, while the next gateway is there already.
            gateway.kill_parent()
        else:
            before = gateway.workers()
            victim = choose.choice(before)
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            poll(lambda: len(set(gateway.workers()) - {victim}) >= len(before), 10.0, "a dead worker is replaced")
