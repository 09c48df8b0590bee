"""Programme "overload": senders offer twice and ten times what the gateway takes, and ClickHouse is away.

The machine is made small instead of the crowd large: each write to the disk takes some tens of milliseconds,
and few requests are answered at once. What that gateway takes is measured first, by senders who post as they are
answered. Then others come who do not wait: twice as many posts, ten times as many, ClickHouse down within it until
much more waits on disk than may be held in memory. Then ClickHouse is back, all drains, and the oracle asks.

Wrong is a row, a worker that grew beyond its cap, no answer, or one other than 2xx, 429 and 503. How much was
still taken, and how fast the rest was refused, is told.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from pathlib import Path

from tests.chaos.crowd import Crowd, Fared, Group, quantile
from tests.chaos.gateway import World
from tests.chaos.load import settle
from tests.chaos.oracle import Report
from tests.chaos.records import DIALECTS
from tests.chaos.rounds import Rounds

MIB = 1 << 20
RING_BYTES, BODIES_BYTES = 4 * MIB, 2 * MIB
PLACES = 12
CONNECTIONS = 40
"""Of each project, where they do not wait."""
RECORDS, RECORD_BYTES = 2, 16 << 10
"""Of a post."""
SLACK_BYTES = 20 * MIB
"""What a worker may grow by between its first reading and its peak beside the budgets: pages it touches for the
first time, what the allocator keeps, the index of what waits on disk, buffers of sockets."""
SHARED = {
    "limits__requests_in_flight_max": str(PLACES),
    "limits__bytes_in_flight_max": str(BODIES_BYTES),
    "limits__column_bytes_max": str(RING_BYTES // 2),
    "limits__inline_bytes_max": str(1 * MIB),
    "delivery__ring_bytes_max": str(RING_BYTES),
    "delivery__block_bytes": str(128 << 10),
    "delivery__batch_bytes": str(256 << 10),
    "delivery__segment_bytes": str(4 * MIB),
    "delivery__reserve_bytes": str(512 << 10),
    "delivery__audit_ms": "500",
}
LARGEST = ("otlp", "loguro", "datasets", "proliferate", "streamlogia", "streamlogia_bulk", "ndjson", "brokle")
BODY_BYTES_MAX = 1 * MIB
SLOW_S = (0.02, 0.03)
"""Of a write to the disk."""
TWICE = 2
"""Ten times as many are offered as would be taken; so many at least are made."""
AWAY_S = 90.0
"""By then the backlog has to be there."""


def small(settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """Settings of a gateway that is soon full."""
    bodies = {
        f"limits__{name}__{what}_bytes_max": str(BODY_BYTES_MAX) for name in LARGEST for what in ("body", "inflated")
    }
    return {**SHARED, **bodies, **(settings or {})}


class OverloadRounds(Rounds):
    """Rounds on one gateway with a slow disk, started anew for each. ``weakened_by``: besides that."""

    def __init__(self, world: World, seed: str, *, weakened_by: str = "") -> None:
        names = ["fast disk", *filter(None, [weakened_by])]
        gateway = world.gateway(
            name=f"overload-{seed}-{bool(weakened_by)}", weakened_by=",".join(names), settings=small()
        )
        super().__init__(world, seed, gateway, pause_ms=0.0)

    def round(self, number: int, *, phase_s: float = 5.0, backlog: float = 20.0) -> Report:
        """One overload. ``phase_s``: of each phase while ClickHouse is there. ``backlog``: how many times the memory
        budget waits on disk at least when it comes back."""
        choose = random.Random(f"{self._seed}/{number}")
        what = f"seed {self._seed} round {number}"
        world, gateway = self._world, self._gateway
        fared: dict[str, Fared] = {}
        world.clickhouse.become("up")
        gateway.environ["WEAKENED_SLOW_S"] = str(choose.choice(SLOW_S))
        gateway.start()
        idle_bytes = self._resident_bytes("VmRSS")
        with Crowd(world, gateway, f"{gateway.data_dir.name}-{number}") as crowd:
            fared["unloaded"] = crowd.phase("unloaded", self._groups(0.0), phase_s)[""]
            capacity = fared["unloaded"].accepted_per_s
            fared["2x"] = crowd.phase("twice", self._groups(2 * capacity), phase_s)[""]
            fared["10x"] = crowd.phase("ten", self._groups(10 * capacity), phase_s)[""]
            world.clickhouse.become(choose.choice(("down", "stopped")))
            fared["10x, no ClickHouse"] = crowd.until(
                lambda: gateway.metric("weir_spool_bytes") > backlog * RING_BYTES,
                "away",
                self._groups(10 * capacity),
                phase_s,
                AWAY_S,
            )[""]
            self.tally.measure("backlog / memory budget", gateway.metric("weir_spool_bytes") / RING_BYTES)
            self.tally.measure("memory budget held", gateway.metric("weir_ring_bytes") / RING_BYTES)
            world.clickhouse.become("up")
            began = time.monotonic()
            crowd.drain()
            self.tally.measure("drain s", time.monotonic() - began)
            report = settle(world, gateway, crowd)
        self._judge(what, fared, idle_bytes)
        self._count(report, what)
        gateway.kill_all()
        return report

    def _groups(self, posts_per_s: float) -> list[Group]:
        """All projects alike; 0: as many as the gateway answers at once, each posting when it is answered."""
        keys = json.loads(self._world.keys_path.read_text())
        each = CONNECTIONS if posts_per_s else PLACES // len(DIALECTS)
        return [
            Group(
                dialect,
                [keys[dialect]],
                f"{dialect}+{RECORD_BYTES}",
                records=RECORDS,
                posts_per_s=posts_per_s / len(DIALECTS),
                connections=each,
            )
            for dialect in DIALECTS
        ]

    def _resident_bytes(self, name: str) -> int:
        """Of the largest worker; ``VmRSS`` is now, ``VmHWM`` the most there ever was."""
        return max(resident_bytes(pid, name) for pid in self._gateway.workers())

    def _judge(self, what: str, fared: Mapping[str, Fared], idle_bytes: int) -> None:
        """Tell what was measured; too much memory is a finding."""
        tally, capacity = self.tally, fared["unloaded"].accepted_per_s
        tally.cycles += 1
        most_bytes = self._resident_bytes("VmHWM")
        cap_bytes = idle_bytes + RING_BYTES + BODIES_BYTES + SLACK_BYTES
        tally.measure("idle MiB", idle_bytes / MIB)
        tally.measure("most MiB", most_bytes / MIB)
        tally.measure("capacity posts/s", capacity)
        for phase, one in fared.items():
            print(f"{what}, {phase}: {one.told()}", flush=True)
            if one.unanswered:
                tally.finding(f"{what}, {phase}: {one.unanswered} posts were not answered")
            if phase != "unloaded":
                tally.measure(f"{phase}: made / capacity", one.made / one.seconds / capacity)
                tally.measure(f"{phase}: goodput / capacity", one.accepted_per_s / capacity)
                tally.measure(f"{phase}: refusal p99 ms", 1000 * quantile(one.refused_s, 0.99))
        tenfold = [one for phase, one in fared.items() if phase.startswith("10x")]
        if sum(one.made for one in tenfold) < TWICE * sum(one.accepted for one in tenfold):
            tally.finding(
                f"{what}: of ten times too much {[(one.made, one.accepted) for one in tenfold]} proves nothing"
            )
        if most_bytes > cap_bytes:
            tally.finding(f"{what}: a worker took {most_bytes} bytes, idle {idle_bytes}; its cap is {cap_bytes}")


def resident_bytes(pid: int, name: str) -> int:
    """A line of /proc/PID/status, which counts in kB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith(f"{name}:"))
