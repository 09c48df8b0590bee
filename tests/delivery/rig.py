"""A delivery, a proxy full of faults, and a real ClickHouse; and an oracle that asks past the proxy."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gateway.delivery import Delivery, Settings
from gateway.delivery.block import Receipt
from gateway.delivery.clickhouse import ClickHouse
from gateway.delivery.disk import Disk
from gateway.delivery.frames import FrameNumbers
from gateway.metrics import Metrics
from gateway.schema import Table
from tests.delivery.things import THINGS, numbered, write
from tests.support.proxy import Fault, Proxy

UNDER_WAY_S = 1.0
PATIENCE_S = 20.0

SETTINGS: dict[str, Any] = {
    "shards": 1,
    "ring_bytes_max": 8 << 20,
    "block_bytes": 64 << 10,
    "batch_age_ms": 10.0,
    "retry_first_ms": 5.0,
    "retry_max_ms": 100.0,
    "parked_first_ms": 50.0,
    "parked_max_ms": 200.0,
    "segment_bytes": 1 << 20,
    "reserve_bytes": 64 << 10,
    "spool_bytes_max": 64 << 20,
    "spool_free_bytes_min": 0,
    "audit_ms": 0.0,
}


class Engine(Protocol):
    """A running ClickHouse."""

    @property
    def url(self) -> str: ...
    @property
    def pid(self) -> int | None: ...


class Frames(FrameNumbers):
    """Frame numbers that remember what they gave."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.given: list[int] = []

    def next(self) -> int:
        number = super().next()
        self.given.append(number)
        return number


def answered(status: int, code: int = 0, text: str = "", *, written: int | None = None) -> Fault:
    """An answer that does not come from the server."""
    headers = [("X-ClickHouse-Exception-Code", str(code))] if code else []
    if written is not None:
        headers.append(("X-ClickHouse-Summary", f'{{"written_rows":"{written}"}}'))
    return Fault("answer", status=status, headers=tuple(headers), body=text.encode())


async def crash(rig: Rig, engine: Engine) -> None:
    """Kill the server and wait for the next one."""
    pid = engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await until(lambda: engine.pid not in (None, pid), "another server is there")
    await until_it(lambda: answers(rig.direct), "it answers")


async def holds(rig: Rig, rows: int) -> bool:
    """Whether so many are stored."""
    return len(await rig.stored()) >= rows


async def until(true: Callable[[], bool], what: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S} s"
        await asyncio.sleep(0.002)


async def until_it(true: Callable[[], Awaitable[bool]], what: str) -> None:
    """The same for what has to be asked for."""
    deadline = time.monotonic() + PATIENCE_S
    while not await true():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S} s"
        await asyncio.sleep(0.02)


class Prompt(ClickHouse):
    """One in which nothing goes on for long behind anybody's back."""

    @property
    def under_way_s(self) -> float:
        return UNDER_WAY_S


@dataclass
class Rig:
    """Everything a test holds in its hands."""

    delivery: Delivery
    metrics: Metrics
    frames: Frames
    proxy: Proxy
    direct: ClickHouse
    sent: list[int] = field(default_factory=list)

    def send(
        self, numbers: Sequence[int], *, project: str = "p", days: int = 1, table: str = "things", body: str = "a thing"
    ) -> Receipt:
        """One request of things, accepted."""
        with self.delivery.rows(project, 64 * len(numbers)) as rows:
            write(rows.columns(table), numbered(numbers, days=days), body=body)
            receipt = rows.commit()
        self.sent += numbers
        return receipt

    async def stored(self, table: str = "things") -> list[int]:
        """The numbers in the table, asked past the proxy."""
        rows = await self.direct.query(f"SELECT Number AS n FROM `{self.direct.database}`.`{table}` ORDER BY n")
        return [row["n"] for row in rows]

    async def flush(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.delivery.flush()

    async def run(self, statement: str) -> None:
        """A statement without rows, past the proxy."""
        await self.direct.execute(statement)

    def outcomes(self, table: str = "things") -> dict[str, float]:
        """Insert attempts by what became of them."""
        return {labels[1]: count for labels, count in self.metrics.inserts.values.items() if labels[0] == table}

    def check_counters(self) -> None:
        """Accepted and recovered rows are stored, refused, damaged or buffered.

        And buffered is what the buffers really hold, as long as the spool's writer has nothing under way.
        """
        really: dict[str, int] = {}
        shards: Any = self.delivery.buffers()["shards"]
        for shard in shards:
            for table, count in shard["rows_open"].items():
                really[table] = really.get(table, 0) + count
            for table, held in shard["tables"].items():
                really[table] = really.get(table, 0) + held["rows_sealing"] + held["rows_sealed"]
        assert self.metrics.rows_buffered.read is not None
        for (table,), buffered in self.metrics.rows_buffered.read().items():
            came, went = (
                sum(counter.values.get((table,), 0) for counter in counters)
                for counters in (
                    (self.metrics.rows_accepted, self.metrics.rows_recovered),
                    (
                        self.metrics.rows_stored,
                        self.metrics.rows_dead_lettered,
                        self.metrics.rows_refused,
                        self.metrics.rows_damaged,
                    ),
                )
            )
            assert came == went + buffered, table
            assert buffered >= really.get(table, 0), table

    def rows_open(self) -> int:
        """Rows in columns that are not cut into blocks yet."""
        shards: Any = self.delivery.buffers()["shards"]
        return sum(count for shard in shards for count in shard["rows_open"].values())

    def held_bytes(self) -> float:
        assert self.metrics.ring_bytes.read is not None
        return sum(self.metrics.ring_bytes.read().values())


@asynccontextmanager
async def rig(
    engine: Engine,
    directory: Path,
    *,
    tables: Sequence[Table] = (THINGS,),
    insert_timeout_s: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
    disk: Disk | None = None,
    database: str = "",
    plan: Sequence[Fault] = (),
    **settings: Any,
) -> AsyncIterator[Rig]:
    """A started rig on a database of its own, or on one that another rig has and drops; ``plan``: see Proxy."""
    own_database = not database
    database = database or f"{directory.name}_{random.getrandbits(32):08x}".replace("-", "_")
    proxy = Proxy(int(engine.url.rsplit(":", 1)[1]), applies=lambda head: b"query=INSERT" in head)
    proxy.plan.extend(plan)
    await proxy.start()
    direct = ClickHouse(engine.url, database=database)
    through = Prompt(proxy.url, database=database, insert_timeout_s=insert_timeout_s)
    await direct.start()
    await through.start()
    await direct.create_tables(tables, retention_days=0)
    frames = Frames(directory)
    metrics = Metrics()
    delivery = Delivery(
        tables,
        through,
        Settings(**{**SETTINGS, **settings}),
        frames=frames,
        metrics=metrics,
        clock=clock,
        random=random.Random(7).random,
        disk=disk,
    )
    await delivery.start()
    try:
        yield Rig(delivery, metrics, frames, proxy, direct)
    finally:
        await delivery.stop(0.0)
        await through.close()
        await proxy.stop()
        await until_it(lambda: answers(direct), "the engine answers")
        if own_database:
            await direct.execute(f"DROP DATABASE `{database}`")
        await direct.close()
        frames.close()


async def answers(clickhouse: ClickHouse) -> bool:
    try:
        await clickhouse.ping()
    except Exception:
        return False
    return True
