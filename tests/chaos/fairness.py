"""Programme "fairness": who takes more than their share, or sends what is hard to store, slows only themselves.

A gateway with a slow disk, few places and little room. Some projects send little. First they are alone; then
comes one that offers ten times an equal part of what the gateway takes, one whose records ClickHouse will never
take now and then, and one whose records are giants. Then ClickHouse goes, the spool fills up to what is shared,
and all go on. Then it is back, all drains, and the oracle asks: of the poison every record acknowledged has to be
a dead letter, of the rest none.

Wrong is a row, no answer, an odd one, and a part of the small ones' posts refused. How long they waited for their
answers, with and without the others, is told.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from contextlib import ExitStack

from gateway import schema
from gateway.delivery.clickhouse import ClickHouse
from gateway.tenants.postgres import ControlStore
from tests.chaos.crowd import Crowd, Fared, Group, quantile
from tests.chaos.gateway import World
from tests.chaos.load import settle
from tests.chaos.oracle import Ledger, Report, ask, check, missing_now
from tests.chaos.overload import AWAY_S, MIB, SLOW_S, small
from tests.chaos.records import record
from tests.chaos.rounds import Rounds

NORMAL = 6
OTHERS = ("loud", "poison", "giant")
SHARES = {"loud": 10.0, "poison": 0.05, "giant": 0.1, "normal": 0.1}
"""What each offers, of an equal part of what the gateway takes."""
CONNECTIONS = {"loud": 80, "poison": 4, "giant": 4, "normal": 2}
PLACES = 40
"""Half of them are the loud one's at most, so that all connections of the others fit into the rest."""
LOUD_BYTES, GIANT_BYTES = 4 << 10, 128 << 10
SPOOL_BYTES, SHARED_PART = 8 * MIB, 0.70
POISON = "otlp"
"""The dialect of the poison alone, because its events are what the table does not take."""
ACCEPTED_PART = 0.999
SETTINGS = {
    "limits__requests_in_flight_max": str(PLACES),
    "limits__bytes_in_flight_max": str(8 * MIB),
    "delivery__ring_bytes_max": str(8 * MIB),
    "delivery__spool_bytes_max": str(SPOOL_BYTES),
    "delivery__segment_bytes": str(1 * MIB),
}


class Neighbours(Crowd):
    """A crowd with a database of its own, which some of its records have no place in."""

    def doomed(self) -> int:
        """Of what is acked, what ClickHouse will never take."""
        counts: dict[tuple[str, int], int] = {}
        doomed = 0
        for path, words in Ledger(self.ledger_dir, self.run).lines():
            first = int(words[1])
            if not path.name.endswith(".poison.log"):
                continue
            if words[0] == "posted":
                counts[path.name, first] = int(words[2])
            elif words[0] == "acked":
                prefix = path.name.removesuffix(".log")
                ids = (f"{prefix}.{first + at}" for at in range(counts[path.name, first]))
                doomed += sum(record(id_, POISON, self.base_s).event for id_ in ids)
        return doomed

    @property
    def database(self) -> str:
        return "fair_" + self.run.replace("-", "_")

    async def make_database(self) -> None:
        """With all tables."""
        clickhouse = ClickHouse(self._world.clickhouse.url, database=self.database)
        await clickhouse.start()
        await clickhouse.create_tables(schema.TABLES, retention_days=3650)
        await clickhouse.close()

    def narrow(self) -> None:
        """From now on the table takes no events."""
        ask(self._world.clickhouse.url, f"ALTER TABLE {self.database}.otel_logs MODIFY COLUMN EventName Enum8('' = 1)")

    def missing(self) -> int:
        url = self._world.clickhouse.url
        missing = missing_now(self.ledger_dir, self.run, url, base_s=self.base_s, database=self.database)
        return missing - self.doomed()

    def check(self) -> Report:
        url = self._world.clickhouse.url
        report = check(self.ledger_dir, self.run, url, base_s=self.base_s, database=self.database, rows_before={})
        report.missing -= self.doomed()
        return report


class FairnessRounds(Rounds):
    """Rounds on one gateway with a slow disk, started anew for each. ``weakened_by``: besides that."""

    def __init__(self, world: World, seed: str, *, weakened_by: str = "", accepted_part: float = ACCEPTED_PART) -> None:
        names = ["fast disk", *filter(None, [weakened_by])]
        name = f"fairness-{seed}-{bool(weakened_by)}".lower()
        gateway = world.gateway(name=name, weakened_by=",".join(names), settings=small(SETTINGS))
        super().__init__(world, seed, gateway, pause_ms=0.0)
        self._accepted_part = accepted_part
        self._keys: dict[str, str] = {}

    def _begin(self, stack: ExitStack) -> None:
        super()._begin(stack)
        self._keys = asyncio.run(self._make_projects())

    async def _make_projects(self) -> dict[str, str]:
        store = await ControlStore.connect(self._world.dsn)
        keys = {}
        for name in [*map(str, range(NORMAL)), *OTHERS]:
            slug = f"{self._gateway.data_dir.name}-{name}"
            await store.create_project(slug)
            _, keys[name] = await store.create_key(slug, kind="server", dialect=_dialect(name), name="chaos")
        await store.close()
        return keys

    def round(self, number: int, *, phase_s: float = 10.0, filled: float = SHARED_PART) -> Report:
        """``phase_s``: how long the small ones are alone, among the others, and among them while the spool is full,
        which is when this part of it is ``filled``."""
        choose = random.Random(f"{self._seed}/{number}")
        what = f"seed {self._seed} round {number}"
        world, gateway = self._world, self._gateway
        fared: dict[str, Mapping[str, Fared]] = {}
        world.clickhouse.become("up")
        with Neighbours(world, gateway, f"{gateway.data_dir.name}-{number}") as crowd:
            gateway.environ["WEAKENED_SLOW_S"] = str(choose.choice(SLOW_S))
            gateway.environ["WEIR__CLICKHOUSE__DATABASE"] = crowd.database
            asyncio.run(crowd.make_database())
            gateway.start()
            crowd.narrow()
            fared["unloaded"] = crowd.phase("unloaded", self._groups(0.0), phase_s / 2)
            share = fared["unloaded"]["normal"].accepted_per_s / (NORMAL + len(OTHERS))
            fared["alone"] = crowd.phase("alone", self._groups(share), phase_s)
            fared["among"] = crowd.phase("among", self._groups(share, OTHERS), phase_s)
            world.clickhouse.become(choose.choice(("down", "stopped")))
            fared["filling"] = crowd.until(
                lambda: gateway.metric("weir_spool_bytes") > filled * SPOOL_BYTES,
                "filling",
                self._groups(share, OTHERS),
                phase_s / 2,
                AWAY_S,
            )
            fared["full"] = crowd.phase("full", self._groups(share, OTHERS), phase_s)
            world.clickhouse.become("up")
            crowd.drain()
            report = settle(world, gateway, crowd)
            self._look_at_dead_letters(what, crowd.doomed())
        self._judge(what, fared)
        self.tally.add(report, what)
        gateway.kill_all()
        ask(world.clickhouse.url, f"DROP DATABASE {crowd.database}")
        return report

    def _groups(self, share: float, others: tuple[str, ...] = ()) -> list[Group]:
        """The small ones and ``others``; without a share they take all places, posting as they are answered."""
        groups = []
        for name in [*map(str, range(NORMAL)), *others]:
            label = name if name in OTHERS else "normal"
            connections = CONNECTIONS[label] if share else PLACES // NORMAL
            rate = SHARES[label] * share
            groups.append(Group(name, self._keys[name], _kind(name), label, posts_per_s=rate, connections=connections))
        return groups

    def _look_at_dead_letters(self, what: str, doomed: int) -> None:
        """Each record of the poison that ClickHouse will never take, and no other one."""
        letters = self._gateway.metric("weir_rows_dead_lettered_total")
        self.tally.measure("dead letters", doomed)
        if not doomed or letters != doomed:
            self.tally.finding(f"{what}: {letters} rows are dead letters, {doomed} should be")

    def _judge(self, what: str, fared: Mapping[str, Mapping[str, Fared]]) -> None:
        """Tell what was measured; a part of the small ones' posts refused is a finding."""
        tally = self.tally
        tally.cycles += 1
        for phase, labels in fared.items():
            for label, one in labels.items():
                print(f"{what}, {phase}, {label}: {one.told()}", flush=True)
                tally.measure(f"{phase}, {label}: accepted part", one.accepted_part)
                tally.measure(f"{phase}, {label}: p99 ms", 1000 * quantile(one.accepted_s, 0.99))
                if one.unanswered:
                    tally.finding(f"{what}, {phase}, {label}: {one.unanswered} posts were not answered")
        alone_s, among_s = (quantile(fared[phase]["normal"].accepted_s, 0.99) for phase in ("alone", "among"))
        tally.measure("normal: p99 among / alone", among_s / alone_s if alone_s else float("nan"))
        among = [fared[phase]["normal"] for phase in ("among", "filling", "full")]
        made, accepted = sum(one.made for one in among), sum(one.accepted for one in among)
        # One that was not made found all its senders still waiting for answers.
        unmade = sum(one.unmade for one in among)
        tally.measure("normal: accepted part", accepted / max(1, made))
        if not accepted or accepted < self._accepted_part * made or unmade > made:
            tally.finding(
                f"{what}: of {made} posts of those who send little only {accepted} were accepted, {unmade} more unmade"
            )
        if not any(labels["loud"].refused for labels in fared.values() if "loud" in labels):
            tally.finding(f"{what}: nobody was refused, so nothing was proved")


def _dialect(name: str) -> str:
    if name == "poison":
        return POISON
    return "streamlogia" if name.isdecimal() and int(name) % 2 else "loguro"


def _kind(name: str) -> str:
    more = {"loud": f"+{LOUD_BYTES}", "giant": f"+{GIANT_BYTES}"}
    return _dialect(name) + more.get(name, "")
