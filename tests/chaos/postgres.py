"""Programme "postgres": a control store that is away in every way, or is there and must not be believed.

The gateway has a role of its own and reaches Postgres over a wire that can refuse, hang, be slow, or be cut. Postgres
itself is stopped, takes the gateway's password no more, does not notify, or has no keys all at once. Meanwhile known
keys post, and so do keys that nobody issued. Past the wire keys are made and revoked. In some faults everything is
killed and has to start. Then the fault is over, and what was changed takes effect; at the end of all the oracle asks.

Wrong is a row; a post with a known key that was refused; a 401 for a key that is older than two polls; any but a 503
for a key that nobody issued while the store cannot be asked; and a change that takes no effect when it can again.
"""

from __future__ import annotations

import asyncio
import http.client
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from gateway.tenants import snapshot
from gateway.tenants.minting import digest_of, mint, prefix_of
from gateway.tenants.postgres import ControlStore
from tests.chaos.gateway import Gateway, World, poll
from tests.chaos.load import Load, settle
from tests.chaos.oracle import Report
from tests.chaos.rounds import Rounds

POLL_MS = 200
STALE_S = 2 * POLL_MS / 1000
"""Two polls: what the memory says is no older, or is not said."""
BACK_S = 8.0
"""From the end of a fault until what was changed takes effect: a wait, an attempt, and a busy machine."""
READY_S = 5.0
"""More than with Postgres, which a start without it may take."""
RESTARTED = 0.3
NEW_KEYS = 3
DIALECT, PATH, BODY = "loguro", "/", b'{"message": "with a new key"}'
TURN_S = 0.01
SLOW_S = (0.3, 1.5)
"""Each way: an answer is older than two polls when it comes, or it is not waited for."""
DEAF = """
    CREATE OR REPLACE FUNCTION count_key_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN UPDATE key_changes SET number = number + 1; RETURN NULL; END; $$
"""
CLOSE_ALL = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE usename = '{}'"


@dataclass(frozen=True, slots=True)
class Fault:
    """``is_away``: no answer can be current. ``is_writable``: keys can be made and revoked meanwhile.
    ``heals``: changes take effect before it is mended."""

    is_away: bool = True
    is_writable: bool = True
    heals: bool = False


FAULTS = {
    "stopped": Fault(is_writable=False),
    "refuse": Fault(),
    "hang": Fault(),
    "slow": Fault(),
    "wrong password": Fault(),
    "empty": Fault(is_writable=False),
    "cut": Fault(is_away=False, heals=True),
    "deaf": Fault(is_away=False, heals=True),
}


class Wire:
    """TCP to ``target`` on this machine, with an event loop of its own. ``port`` is where it listens."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._delay_s = 0.0
        self._flowing = asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wire", daemon=True)
        self._thread.start()
        self.become("pass")

    def close(self) -> None:
        self.become("refuse")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def become(self, state: str, delay_s: float = 0.0) -> None:
        """``pass``; ``slow``: each piece comes so much later; ``hang``: connections stay, nothing comes; ``refuse``:
        all are closed, and there is no more; ``cut``: all are closed, and the next ones pass."""
        asyncio.run_coroutine_threadsafe(self._become(state, delay_s), self._loop).result(10)

    async def _become(self, state: str, delay_s: float) -> None:
        self._delay_s = delay_s
        if state == "hang":
            self._flowing.clear()
        else:
            self._flowing.set()
        if state in ("refuse", "cut"):
            if self._server is not None:
                self._server.close()
                self._server = None
            for connection in self._open:
                connection.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)
        if state != "refuse" and self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        writers, pipes = [writer], []
        try:
            if self._server is None:  # it was closed when this one was taken already
                return
            answers, upstream = await asyncio.open_connection("127.0.0.1", self._target)
            writers.append(upstream)
            pipes = [asyncio.create_task(self._pipe(*way)) for way in ((reader, upstream), (answers, writer))]
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for pipe in pipes:
                pipe.cancel()
            for each in writers:
                each.transport.abort()
            self._open.discard(task)

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await source.read(65536):
                await asyncio.sleep(self._delay_s)
                await self._flowing.wait()
                sink.write(piece)
                await sink.drain()


class Asker:
    """One connection that posts a record with any key."""

    def __init__(self, gateway: Gateway) -> None:
        self._connection = http.client.HTTPConnection(gateway.ingest, timeout=10)

    def close(self) -> None:
        self._connection.close()

    def ask(self, key: str) -> int:
        """The status; 0 when there is no answer."""
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        try:
            self._connection.request("POST", PATH, BODY, headers)
            with self._connection.getresponse() as answer:
                answer.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return 0
        return answer.status


def unissued(choose: random.Random) -> str:
    """A key like any other, but in no table."""
    return mint(prefix_of(DIALECT, "server"), choose.choice)


class Flood:
    """Posts with keys that nobody issued, ever new ones. ``answers``: when asked, when answered, the status."""

    def __init__(self, gateway: Gateway, seed: str) -> None:
        self.answers: list[tuple[float, float, int]] = []
        self._asker = Asker(gateway)
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flood", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._asker.close()

    def _run(self) -> None:
        while not self._over.wait(TURN_S / 5):
            asked, status = time.monotonic(), self._asker.ask(unissued(self._random))
            self.answers.append((asked, time.monotonic(), status))


class Changes:
    """Keys made and revoked past the wire while a fault is on, and what the gateway answers them."""

    def __init__(self, dsn: str, project: str, gateway: Gateway, seed: str) -> None:
        self.wrong: Counter[str] = Counter()
        self.accepted = 0
        self._dsn, self._project, self._gateway = dsn, project, gateway
        self._asker, self._random = Asker(gateway), random.Random(seed)
        self._made: list[tuple[float, str]] = []
        self._doomed = self._revoked = ""

    def make_one_to_revoke(self) -> None:
        """Returns when it works, and would without Postgres after a kill."""
        self._doomed = self._make()
        path, digest = self._gateway.data_dir / "keys.snapshot", digest_of(self._doomed)
        poll(lambda: self._ask(self._doomed) == 202, BACK_S, "a key works")
        poll(lambda: (kept := snapshot.read(path)) and digest in kept.table.live, BACK_S, "a key is kept")

    def revoke(self) -> None:
        """That one."""
        _sql(self._dsn, f"UPDATE keys SET revoked_at = now() WHERE sha256 = '\\x{digest_of(self._doomed).hex()}'")
        self._revoked = self._doomed

    def make(self) -> None:
        """Another one."""
        secret = self._make()
        self._made.append((time.monotonic(), secret))

    def have_effect(self) -> bool:
        """Ask with all of them and with one that nobody issued; whether each is known for what it is."""
        known = True
        for made, secret in self._made:
            asked = time.monotonic()
            status = self._ask(secret)
            known = known and status == 202
            if status not in (202, 503) and (status != 401 or asked > made + STALE_S):
                self.wrong[f"{status} for a valid key"] += 1
        if self._doomed:
            status = self._ask(self._doomed)
            known = known and (status == 401 or not self._revoked)
            if status not in ((202, 401) if self._revoked else (202,)):
                self.wrong[f"{status} for a key that was known"] += 1
        return known and self._ask(unissued(self._random)) == 401

    def close(self) -> None:
        """Its connection; the next question opens another one."""
        self._asker.close()

    def _ask(self, secret: str) -> int:
        status = self._asker.ask(secret)
        self.accepted += status == 202
        return status

    def _make(self) -> str:
        async def make() -> str:
            store = await ControlStore.connect(self._dsn)
            try:
                return (await store.create_key(self._project, kind="server", dialect=DIALECT, name="chaos"))[1]
            finally:
                await store.close()

        return asyncio.run(make())


class PostgresRounds(Rounds):
    """Rounds on one gateway, which goes on from fault to fault, or is killed and has to start in one."""

    def __init__(self, world: World, seed: str, *, weakened_by: str = "", pause_ms: float = 5.0) -> None:
        self._name = f"postgres-{seed}-{bool(weakened_by)}".lower()
        gateway = world.gateway(name=self._name, weakened_by=weakened_by, settings={"keys__poll_ms": str(POLL_MS)})
        super().__init__(world, seed, gateway, pause_ms=pause_ms)
        self._role, self._password = f'"{self._name}"', secrets.token_hex(8)
        self._start_s = 0.0

    def _begin(self, stack: ExitStack) -> None:
        self._wire = stack.enter_context(closing(Wire(self._world.postgres.port)))
        self._sql(f"CREATE ROLE {self._role} LOGIN PASSWORD '{self._password}' IN ROLE weir")
        stack.callback(self._sql, f"DROP ROLE {self._role}")
        self._sql(f"INSERT INTO projects (slug, name) VALUES ('{self._name}', 'chaos')")
        super()._begin(stack)
        place = f"{self._name}:{self._password}@127.0.0.1:{self._wire.port}"
        self._gateway.environ["WEIR__POSTGRES__DSN"] = urlsplit(self._world.dsn)._replace(netloc=place).geturl()
        self._start_s = self._gateway.start()

    def round(
        self,
        number: int,
        *,
        faults: Sequence[str] = tuple(FAULTS),
        restarted: Sequence[str] | None = None,
        fault_s: float = 10.0,
    ) -> Report:
        """Each of ``faults`` for so long at least, in an order of the seed's; in those ``restarted`` all is killed.

        None: in such as the seed chooses.
        """
        choose = random.Random(f"{self._seed}/{number}")
        what = f"seed {self._seed} round {number}"
        with self._load(number) as load, closing(Flood(self._gateway, what)) as flood:
            for name in choose.sample(faults, len(faults)):
                is_chosen = choose.random() < RESTARTED
                is_restarted = is_chosen if restarted is None else name in restarted
                self._fault(name, f"{what}, {name}{', restarted' * is_restarted}", load, flood, fault_s, is_restarted)
            report = settle(self._world, self._gateway, load)
        self._count(report, what)
        return report

    def _fault(self, name: str, what: str, load: Load, flood: Flood, fault_s: float, is_restarted: bool) -> None:
        choose, tally, fault, world = random.Random(what), self.tally, FAULTS[name], self._world
        load.wait_for(1)
        refused, first = load.ledger.answers.copy(), len(flood.answers)
        changes = Changes(world.dsn, self._name, self._gateway, what)
        with closing(changes), ExitStack() as mending:
            if fault.is_writable:
                changes.make_one_to_revoke()
            self._strike(name, choose, mending)
            struck = time.monotonic()
            if is_restarted:
                changes.close()
                self._restart(name, what)
            self._last(changes, choose, fault, fault_s)
            load.wait_for(1)
            ended = time.monotonic()
            if not fault.heals:
                mending.close()
            try:
                tally.recovery_s.append(poll(changes.have_effect, BACK_S, "what was changed meanwhile has an effect"))
            except TimeoutError as error:
                tally.finding(f"{what}: {error}")
        load.acked()
        for status, count in (load.ledger.answers - refused).items():
            changes.wrong[f"{status} for a key of the load"] += count
        answers = flood.answers[first:]
        for asked, answered, code in answers:
            is_sure = fault.is_away and struck + STALE_S < asked and answered < ended
            if code not in ((503,) if is_sure else (401, 503)) and not (is_restarted and code == 0):
                changes.wrong[f"{code} for a key nobody issued{', which nobody can know' * is_sure}"] += 1
        for wrong, count in changes.wrong.items():
            tally.finding(f"{what}: {count} times {wrong}")
        tally.faults[name] += 1
        tally.cycles += 1
        tally.measure("keys nobody issued, a second", len(answers) / (answers[-1][1] - answers[0][0]))
        world.rows_before["otel_logs"] = world.rows_before.get("otel_logs", 0) + changes.accepted

    def _last(self, changes: Changes, choose: random.Random, fault: Fault, fault_s: float) -> None:
        """The fault is on for so long; keys are made and one is revoked."""
        moments = [0.0, *sorted(choose.random() * fault_s for _ in range(NEW_KEYS - 1))]
        began = time.monotonic()
        if fault.is_writable:
            changes.revoke()
        while (passed := time.monotonic() - began) < fault_s:
            if fault.is_writable and moments and passed >= moments[0]:
                del moments[0]
                changes.make()
            changes.have_effect()
            time.sleep(TURN_S)

    def _restart(self, name: str, what: str) -> None:
        """Kill everything, and start with what is known from before."""
        self._gateway.kill_all()
        self.tally.kills["all"] += 1
        ready_s = self._gateway.start()
        self.tally.ready_s.setdefault(name, []).append(ready_s)
        if ready_s > self._start_s + READY_S:
            self.tally.slow_starts += 1
            self.tally.finding(f"{what}: ready after {ready_s:.1f} s, and with Postgres after {self._start_s:.1f}")

    def _strike(self, name: str, choose: random.Random, mending: ExitStack) -> None:
        """Begin it; ``mending`` ends it. On return it is there."""
        if name == "stopped":
            mending.callback(self._world.postgres.start)
            self._world.postgres.stop()
        elif name == "wrong password":
            mending.callback(self._sql, f"ALTER ROLE {self._role} PASSWORD '{self._password}'")
            self._sql(f"ALTER ROLE {self._role} PASSWORD 'another'")
            self._sql(CLOSE_ALL.format(self._name))
        elif name == "empty":
            self._sql("CREATE TABLE kept_keys AS TABLE keys", choose.choice(("DELETE FROM keys", "TRUNCATE keys")))
            mending.callback(self._sql, "INSERT INTO keys TABLE kept_keys", "DROP TABLE kept_keys")
        elif name == "deaf":
            notifying = self._sql("SELECT pg_get_functiondef('count_key_change'::regproc)")
            mending.callback(self._sql, notifying)
            self._sql(DEAF)
        else:
            mending.callback(self._wire.become, "pass")
            self._wire.become(name, choose.choice(SLOW_S) if name == "slow" else 0.0)

    def _sql(self, *statements: str) -> Any:
        return _sql(self._world.dsn, *statements)


def _sql(dsn: str, *statements: str) -> Any:
    """All of them or none; the first value of the last."""

    async def run() -> Any:
        connection = await asyncpg.connect(dsn)
        try:
            async with connection.transaction():
                return [await connection.fetchval(statement) for statement in statements][-1]
        finally:
            await connection.close()

    return asyncio.run(run())
