"""One embedded ClickHouse and one embedded Postgres for the tests that do them no harm."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from gateway.embedded.clickhouse import EmbeddedClickHouse
from gateway.embedded.postgres import EmbeddedPostgres


@dataclass(frozen=True)
class Reply:
    """An answer of the HTTP interface, as received."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class Curl:
    """Requests as curl would make them: URL parameters, a body, headers; nothing added, nothing decoded."""

    url: str
    session: aiohttp.ClientSession

    async def __call__(
        self,
        query: str | None = None,
        body: bytes | str | None = None,
        *,
        method: str = "POST",
        headers: dict[str, str] | None = None,
        **parameters: str,
    ) -> Reply:
        given = {**parameters} if query is None else {"query": query, **parameters}
        # As a file: aiohttp warns of large bodies that are bytes.
        data = io.BytesIO(body.encode() if isinstance(body, str) else body) if body is not None else None
        async with self.session.request(method, self.url, params=given, data=data, headers=headers) as reply:
            return Reply(reply.status, dict(reply.headers), await reply.read())

    async def value(self, query: str, **parameters: str) -> str:
        """The only value of a query that must succeed."""
        reply = await self(None, query, method="POST", headers=None, **parameters)
        assert reply.status == 200, reply.text
        return reply.text.strip()


@pytest.fixture(scope="session")
def clickhouse_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def clickhouse(clickhouse_directory: Path) -> AsyncIterator[EmbeddedClickHouse]:
    engine = EmbeddedClickHouse(clickhouse_directory, port=0)
    await engine.start()
    yield engine
    await engine.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def curl(clickhouse: EmbeddedClickHouse) -> AsyncIterator[Curl]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield Curl(clickhouse.url, session)


@pytest_asyncio.fixture(loop_scope="session")
async def table(curl: Curl) -> AsyncIterator[str]:
    """An empty table t(a UInt64, s String) in a database of its own, deduplicating."""
    await curl.value("CREATE DATABASE own")
    await curl.value(
        "CREATE TABLE own.t (a UInt64, s String) ENGINE = MergeTree ORDER BY a"
        " SETTINGS non_replicated_deduplication_window = 1000"
    )
    yield "own.t"
    await curl.value("DROP DATABASE own SYNC")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedPostgres]:
    engine = EmbeddedPostgres(tmp_path_factory.mktemp("engine"))
    await engine.start()
    yield engine
    await engine.stop()


async def becomes_true(condition: Callable[[], Awaitable[bool]], *, within_s: float = 10.0) -> None:
    """Return once ``condition`` holds; TimeoutError when it does not in time."""
    async with asyncio.timeout(within_s):
        while not await condition():  # noqa: ASYNC110 - the condition is another process's
            await asyncio.sleep(0.02)
