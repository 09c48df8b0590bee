"""A real Postgres for these tests: one server for all of them, a database of its own for each."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
import pytest_asyncio

from gateway.embedded.postgres import EmbeddedPostgres
from gateway.tenants.keys import Keys
from gateway.tenants.postgres import ControlStore

_numbers = itertools.count(1)


class Server:
    """A running Postgres, and databases in it."""

    def __init__(self, dsn: str) -> None:
        self._parts = urlsplit(dsn)

    def dsn(self, database: str) -> str:
        return self._parts._replace(path=f"/{database}").geturl()

    async def new_database(self, template: str = "template1") -> str:
        name = f"test_{next(_numbers)}"
        connection = await asyncpg.connect(self._parts.geturl())
        try:
            await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        finally:
            await connection.close()
        return name


class Clock:
    """Wall-clock seconds that a test may move."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


class Proxy:
    """TCP to Postgres, with faults: ``hang`` passes nothing on in either direction, ``cut`` ends and refuses all.

    ``hang_at``: it hangs from the moment that somebody says this.
    """

    def __init__(self, dsn: str) -> None:
        self._target = urlsplit(dsn)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self.hang_at = b""
        self._pipes: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        return self._target._replace(
            netloc=f"{self._target.username}:{self._target.password}@127.0.0.1:{port}", query="sslmode=disable"
        ).geturl()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self.cut()

    @property
    def is_hanging(self) -> bool:
        return not self._flowing.is_set()

    def hang(self) -> None:
        self._flowing.clear()

    async def cut(self) -> None:
        self._refusing = True
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    def heal(self) -> None:
        self._refusing = False
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.close()
            return
        upstream_reader, upstream_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        for source, sink in ((reader, upstream_writer), (upstream_reader, writer)):
            pipe = asyncio.create_task(self._pass_on(source, sink))
            self._pipes.add(pipe)
            pipe.add_done_callback(self._pipes.discard)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                while data := await source.read(65536):
                    if self.hang_at and self.hang_at in data:
                        self.hang()
                    await self._flowing.wait()
                    sink.write(data)
                    await sink.drain()
        finally:
            sink.close()


Until = Callable[..., Awaitable[float]]
Sql = Callable[..., Awaitable[Any]]
MakeKeys = Callable[..., Awaitable[Keys]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    postgres = EmbeddedPostgres(tmp_path_factory.mktemp("tenants"))
    try:
        dsn = await postgres.start()
        connection = await asyncpg.connect(dsn)
        # Sixty databases made to be thrown away need not reach the disk: most of the time went there.
        await connection.execute("ALTER SYSTEM SET fsync = off")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.close()
        yield Server(dsn)
    finally:
        await postgres.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def migrated(server: Server) -> str:
    """The name of a database to copy."""
    name = await server.new_database()
    store = await ControlStore.connect(server.dsn(name))
    await store.migrate()
    await store.close()
    return name


@pytest.fixture
async def empty_dsn(server: Server) -> str:
    """A database without a table."""
    return server.dsn(await server.new_database())


@pytest.fixture
async def dsn(server: Server, migrated: str) -> str:
    """A migrated database without a row."""
    return server.dsn(await server.new_database(migrated))


@pytest.fixture
async def store(dsn: str) -> AsyncIterator[ControlStore]:
    """The control store, with the projects ``demo`` and ``other``."""
    store = await ControlStore.connect(dsn)
    await store.create_project("demo", "Demo")
    await store.create_project("other", "Other")
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def sql(dsn: str) -> AsyncIterator[Sql]:
    """Runs a statement behind everyone's back; returns its rows."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection.fetch
    finally:
        await connection.close()


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(dsn)
    try:
        yield proxy
    finally:
        await proxy.stop()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def make_keys(dsn: str) -> AsyncIterator[MakeKeys]:
    """Starts a Keys on the test's database (or another ``dsn``) and stops it in the end."""
    made: list[Keys] = []

    async def make(other_dsn: str = "", **settings: Any) -> Keys:
        settings.setdefault("snapshot_path", None)
        settings.setdefault("retry_max_s", 0.2)
        keys = Keys(other_dsn or dsn, **settings)
        made.append(keys)
        await keys.start()
        return keys

    yield make
    for keys in made:
        await keys.stop()


@pytest.fixture
def until() -> Until:
    """Waits for a condition and returns how many seconds that took; fails after ``within_s``."""

    async def wait(condition: Callable[[], bool], within_s: float = 1.0) -> float:
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < within_s, f"not within {within_s} s"
            await asyncio.sleep(0.005)
        return time.monotonic() - began

    return wait
