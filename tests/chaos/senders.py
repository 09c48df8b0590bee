"""Programme "senders": thousands of connections that are slow, silent, broken or made to be dear (``hostile.py``).

Senders as they should be post in all dialects, and one more posts a record every few milliseconds: alone first, and
then while the hostile ones come and go, as many at once as were asked for. Then the oracle asks.

Wrong is a row, no answer, a hostile connection that is not closed at its deadline or is before it, another answer to
one than is due, one that is left at the end, and a worker that grew beyond its budget for bodies and so much for each
connection. Told is how long the one waited for its answers, how long somebody new from connecting to theirs, and
by how much this machine let somebody oversleep.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from gateway.tenants.postgres import ControlStore
from tests.chaos.crowd import Crowd, Fared, Group, quantile
from tests.chaos.gateway import ROOT, World, poll
from tests.chaos.hostile import ADDRESS_CONNECTIONS_MAX, BYTES_PER_S_MIN, MIB, Held, Storm, Told
from tests.chaos.load import settle
from tests.chaos.oracle import ANSWER_S, Report
from tests.chaos.overload import BODY_BYTES_MAX, LARGEST, SLACK_BYTES, resident_bytes
from tests.chaos.records import DIALECTS
from tests.chaos.rounds import Rounds
from tests.support.leash import leashed

BODIES_BYTES, INFLATED_BYTES = 16 * MIB, 8 * MIB
CONNECTION_BYTES = 64 << 10
"""What a worker may grow by for each connection that is open at once."""
HOSTILE = "loguro"
"""The dialect of the key the hostile ones have, in a project of their own."""
ACCEPTED_PART = 0.05
"""Of what those offer who are not hostile, at the least: each waits for its answer before it posts again."""
PROBES_PER_S, NORMAL_PER_S = 100.0, 20.0
PATIENCE_S = ((10.0, 15.0, 12.0), (12.0, 8.0, 15.0))
"""Deadlines of headers, of bodies, of who is idle, one of them for each round."""
SLACK_S = 8.0
"""What is late on a machine where thousands of connections on both ends share a few cores."""
STORM_S_MAX = 600.0
KNOCK_S = 0.05


def may_count_connections() -> bool:
    """Whether this machine tells whose connections are open."""
    return Path("/proc/net/tcp").exists()


class SenderRounds(Rounds):
    """Rounds on one gateway that is not very patient, started anew for each."""

    def __init__(self, world: World, seed: str, *, weakened_by: str = "") -> None:
        settings = {
            "limits__connections_per_address_max": str(ADDRESS_CONNECTIONS_MAX),
            "limits__body_bytes_per_s_min": str(BYTES_PER_S_MIN),
            "limits__bytes_in_flight_max": str(BODIES_BYTES),
        }
        for dialect in LARGEST:
            settings[f"limits__{dialect}__body_bytes_max"] = str(BODY_BYTES_MAX)
            settings[f"limits__{dialect}__inflated_bytes_max"] = str(INFLATED_BYTES)
        gateway = world.gateway(
            name=f"senders-{seed}-{bool(weakened_by)}".lower(), weakened_by=weakened_by, settings=settings
        )
        super().__init__(world, seed, gateway, pause_ms=0.0)
        self._key = ""

    def _begin(self, stack: ExitStack) -> None:
        super()._begin(stack)
        self._key = asyncio.run(self._make_key())

    async def _make_key(self) -> str:
        store = await ControlStore.connect(self._world.dsn)
        slug = self._gateway.data_dir.name
        await store.create_project(slug)
        _, key = await store.create_key(slug, kind="server", dialect=HOSTILE, name="chaos")
        await store.close()
        return key

    def round(
        self,
        number: int,
        *,
        connections: int = 10_000,
        seconds: float = 20.0,
        alone_s: float = 5.0,
        slack_s: float = SLACK_S,
        patience_s: tuple[float, float, float] | None = None,
        kinds: Sequence[str] = (),
    ) -> Report:
        """One storm of so many ``connections`` at once, for so many ``seconds`` and until the last one's deadline."""
        choose = random.Random(f"{self._seed}/{number}")
        what = f"seed {self._seed} round {number}"
        world, gateway = self._world, self._gateway
        header_s, body_s, idle_s = patience_s or choose.choice(PATIENCE_S)
        seed = f"{self._seed}/{number}"
        fared: dict[str, Mapping[str, Fared]] = {}
        storm = Storm(gateway.ingest, self._key, seed, connections, seconds, header_s, body_s, idle_s, slack_s, kinds)
        for name, each_s in {"HEADER": header_s, "BODY": body_s, "IDLE": idle_s}.items():
            gateway.environ[f"WEIR__LIMITS__{name}_TIMEOUT_MS"] = str(int(1000 * each_s))
        world.clickhouse.become("up")
        gateway.start()
        with Crowd(world, gateway, f"{gateway.data_dir.name}-{number}") as crowd:
            if alone_s:
                crowd.begin("alone", self._groups(), alone_s)
                ends_s = time.monotonic() + alone_s
                self._knock("alone", lambda: time.monotonic() > ends_s)
                fared["alone"] = crowd.end()
            before_bytes = self._resident_bytes("VmRSS")
            crowd.begin("among", self._groups(), 2 * STORM_S_MAX)
            told = self._rage(storm)
            fared["among"] = crowd.end(at_once=True)
            held = Held(gateway.ingest)
            poll(lambda: not held.hostile(), slack_s, f"{held.hostile()} hostile connections are let go of")
            report = settle(world, gateway, crowd)
        self._judge(what, fared, told)
        self._weigh(what, before_bytes, told.open_max)
        self._count(report, what)
        gateway.kill_all()
        return report

    def _groups(self) -> list[Group]:
        """The one that is measured, and others; none waits in line for another."""
        keys = json.loads(self._world.keys_path.read_text())
        probe = Group("probe", [keys["loguro"]], "loguro", "probe", 1, PROBES_PER_S, connections=1)
        return [probe] + [
            Group(dialect, [keys[dialect]], dialect, "normal", 2, NORMAL_PER_S, connections=1) for dialect in DIALECTS
        ]

    def _rage(self, storm: Storm) -> Told:
        """The storm, from its beginning to its end."""
        process = subprocess.Popen(
            leashed(sys.executable, "-m", "tests.chaos.hostile"),
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        began = time.monotonic()
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(asdict(storm)).encode())
            process.stdin.close()
            process.stdin = None  # communicate() would flush it
            self._knock("among", lambda: process.poll() is not None or time.monotonic() > began + STORM_S_MAX)
            if process.poll() is None:
                raise TimeoutError(f"the storm has not ended after {STORM_S_MAX} s")
            said, _ = process.communicate()
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            raise AssertionError(f"the hostile ones ended with {process.returncode}")
        self.tally.measure("storm s", time.monotonic() - began)
        return Told(**json.loads(said.splitlines()[-1]))

    def _knock(self, phase: str, is_over: Callable[[], bool]) -> None:
        """Somebody new comes again and again: how long it takes them from connecting to an answer."""
        took_s, overslept_s = [], 0.0
        while not is_over():
            asleep = time.monotonic()
            time.sleep(KNOCK_S)
            began = time.monotonic()
            overslept_s = max(overslept_s, began - asleep - KNOCK_S)
            try:
                with urllib.request.urlopen(f"http://{self._gateway.ingest}/healthz", timeout=ANSWER_S):
                    took_s.append(time.monotonic() - began)
            except OSError as error:
                self.tally.finding(f"{phase}: somebody new was not answered: {error!r}")
        self._spread(f"{phase}, newcomer", took_s)
        self.tally.measure(f"{phase}: machine overslept ms", 1000 * overslept_s)

    def _spread(self, what: str, times_s: Sequence[float]) -> None:
        for name, part in {"p50": 0.5, "p99": 0.99, "longest": 1.0}.items():
            self.tally.measure(f"{what}: {name} ms", 1000 * quantile(times_s, part))

    def _resident_bytes(self, name: str) -> int:
        return max(resident_bytes(pid, name) for pid in self._gateway.workers())

    def _judge(self, what: str, fared: Mapping[str, Mapping[str, Fared]], told: Told) -> None:
        """What the storm saw is a finding; how the others fared is told."""
        tally = self.tally
        tally.cycles += sum(told.opened.values())
        tally.faults.update(told.opened)
        tally.measure("hostile connections", sum(told.opened.values()))
        tally.measure("hostile connections open at once", told.open_max)
        tally.measure("longest beyond a deadline s", max(told.late_s.values(), default=0.0))
        for text, times in told.faults.items():
            tally.finding(f"{what}: {times} times {text}")
        for phase, labels in fared.items():
            for label, one in labels.items():
                print(f"{what}, {phase}, {label}: {one.told()}", flush=True)
                if one.unanswered:
                    tally.finding(f"{what}, {phase}, {label}: {one.unanswered} posts were not answered")
                if one.accepted < ACCEPTED_PART * (one.made + one.unmade) or not one.accepted:
                    tally.finding(f"{what}, {phase}, {label}: only so much was accepted: {one.told()}")
            probe = labels["probe"]
            tally.measure(f"{phase}: refused part", probe.refused / max(1, probe.made))
            self._spread(phase, probe.accepted_s)

    def _weigh(self, what: str, before_bytes: int, connections: int) -> None:
        """The most a worker ever took."""
        most_bytes = self._resident_bytes("VmHWM")
        cap_bytes = before_bytes + BODIES_BYTES + connections * CONNECTION_BYTES + SLACK_BYTES
        self.tally.measure("before MiB", before_bytes / MIB)
        self.tally.measure("most MiB", most_bytes / MIB)
        self.tally.measure("after MiB", self._resident_bytes("VmRSS") / MIB)
        if most_bytes > cap_bytes:
            self.tally.finding(f"{what}: a worker took {most_bytes} bytes, before {before_bytes}; cap {cap_bytes}")
