"""Programme "fairness": who takes more than their share, or sends what is hard to store, slows only themselves.

A gateway with a slow disk, few places and little room. Many projects send little. First they are alone; then
come one that alone offers more than the gateway takes, another that does so with thousands of keys, one whose
records ClickHouse will never take now and then, and one whose records are giants. Then ClickHouse goes, the spool
fills up to what is shared, and all go on. Then it is back, all drains, and the oracle asks: of the poison every record
acknowledged has to be a dead letter, of the rest none.

Wrong is a row, no answer, an odd one, and a part of the small ones' posts refused. How long they waited for their
answers, with and without the others, is told.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Mapping
from contextlib import ExitStack

from gateway import schema
from gateway.delivery.clickhouse import ClickHouse
from gateway.tenants.minting import digest_of, mint, prefix_of
from gateway.tenants.postgres import ControlStore
from tests.chaos.crowd import Crowd, Fared, Group, quantile
from tests.chaos.gateway import World
from tests.chaos.load import settle
from tests.chaos.oracle import Ledger, Report, ask, check, missing_now
from tests.chaos.overload import AWAY_S, MIB, SLOW_S, small
from tests.chaos.records import record
from tests.chaos.rounds import Rounds

NORMAL = 100
KEYS = 50_000
OTHERS = ("loud", "keyed", "poison", "giant")
SHARES = {"loud": 1.1, "keyed": 1.1, "poison": 0.005, "giant": 0.01, "normal": 0.07}
"""What each offers, of what the gateway takes; the normal ones together."""
CONNECTIONS = {"loud": 80, "keyed": 80, "poison": 4, "giant": 4, "normal": 2}
PLACES = 40
LOUD_BYTES, GIANT_BYTES = 4 << 10, 128 << 10
SPOOL_BYTES, SHARED_PART = 8 * MIB, 0.70
POISON = "otlp"
"""The dialect of the poison alone, because its events are what the table does not take."""
ACCEPTED_PART = 0.999
_CREATE_KEYS = """
    INSERT INTO keys (project_id, sha256, kind, dialect, name)
    SELECT projects.id, unnest($2::bytea[]), 'server', 'loguro', 'one of many' FROM projects WHERE slug = $1
"""
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
    """Rounds on one gateway with a slow disk, started anew for each. ``weakened_by``: besides that.

    ``normal``: how many send little. ``keys``: how many keys has the one that has many.
    """

    def __init__(
        self,
        world: World,
        seed: str,
        *,
        weakened_by: str = "",
        accepted_part: float = ACCEPTED_PART,
        normal: int = NORMAL,
        keys: int = KEYS,
    ) -> None:
        names = ["fast disk", *filter(None, [weakened_by])]
        name = f"fairness-{seed}-{bool(weakened_by)}".lower()
        gateway = world.gateway(name=name, weakened_by=",".join(names), settings=small(SETTINGS))
        super().__init__(world, seed, gateway, pause_ms=0.0)
        self._accepted_part = accepted_part
        self._normal = normal
        self._keys_of_keyed = keys
        self._keys: dict[str, list[str]] = {}

    def _begin(self, stack: ExitStack) -> None:
        super()._begin(stack)
        self._keys = asyncio.run(self._make_projects())

    async def _make_projects(self) -> dict[str, list[str]]:
        store = await ControlStore.connect(self._world.dsn)
        keys = {}
        for name in [*map(str, range(self._normal)), *OTHERS]:
            slug = f"{self._gateway.data_dir.name}-{name}"
            await store.create_project(slug)
            if name == "keyed":
                keys[name] = await _many_keys(store, slug, self._keys_of_keyed)
            else:
                keys[name] = [(await store.create_key(slug, kind="server", dialect=_dialect(name), name="chaos"))[1]]
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
            fared["unloaded"] = crowd.phase("unloaded", self._busy(), phase_s / 2)
            capacity = fared["unloaded"]["normal"].accepted_per_s
            fared["alone"] = crowd.phase("alone", self._groups(capacity), phase_s)
            fared["among"] = crowd.phase("among", self._groups(capacity, OTHERS), phase_s)
            world.clickhouse.become(choose.choice(("down", "stopped")))
            fared["filling"] = crowd.until(
                lambda: gateway.metric("weir_spool_bytes") > filled * SPOOL_BYTES,
                "filling",
                self._groups(capacity, OTHERS),
                phase_s / 2,
                AWAY_S,
            )
            fared["full"] = crowd.phase("full", self._groups(capacity, OTHERS), phase_s)
            world.clickhouse.become("up")
            crowd.drain()
            report = settle(world, gateway, crowd)
            self._look_at_dead_letters(what, crowd.doomed())
        self._judge(what, fared)
        self.tally.add(report, what)
        gateway.kill_all()
        # ClickHouse was killed just now, and the next round has other tables: what these held would be missed there.
        shutil.rmtree(gateway.data_dir / "spool")
        ask(world.clickhouse.url, f"DROP DATABASE {crowd.database}")
        return report

    def _busy(self) -> list[Group]:
        """Some of the small ones take all places, posting as they are answered."""
        some = [str(at) for at in range(min(self._normal, PLACES))]
        each = PLACES // len(some)
        return [Group(name, self._keys[name], _kind(name), "normal", connections=each) for name in some]

    def _groups(self, capacity: float, others: tuple[str, ...] = ()) -> list[Group]:
        """The small ones and ``others``. ``capacity``: posts a second that the gateway takes."""
        groups = []
        for name in [*map(str, range(self._normal)), *others]:
            label = name if name in OTHERS else "normal"
            rate = SHARES[label] * capacity / (self._normal if label == "normal" else 1)
            groups.append(
                Group(name, self._keys[name], _kind(name), label, posts_per_s=rate, connections=CONNECTIONS[label])
            )
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


async def _many_keys(store: ControlStore, slug: str, count: int) -> list[str]:
    """So many keys of a project, in one statement."""
    secrets = [mint(prefix_of("loguro", "server"), random.choice) for _ in range(count)]
    async with store.connection() as connection:
        await connection.execute(_CREATE_KEYS, slug, [digest_of(secret) for secret in secrets])
    return secrets


def _dialect(name: str) -> str:
    if name == "poison":
        return POISON
    return "streamlogia" if name.isdecimal() and int(name) % 2 else "loguro"


def _kind(name: str) -> str:
    more = {"loud": f"+{LOUD_BYTES}", "giant": f"+{GIANT_BYTES}"}
    return _dialect(name) + more.get(name, "")
