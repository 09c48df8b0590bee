"""What readers are told when the store is away, slow or has too much to say, and that queries are few at once."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.config import Limits
from gateway.delivery.answers import Ambiguous
from gateway.delivery.clickhouse import ClickHouse
from gateway.dialects.dialect import Reply
from gateway.http.admission import Admission
from gateway.http.api import Api
from gateway.http.body import Incoming
from gateway.http.reads import routes
from gateway.reading.logs import Filters, LogReader, Query, TooMany
from gateway.tenants.errors import StoreUnavailable
from gateway.tenants.records import PatRecord, Project
from tests.reading.rig import Project as SendingProject

NOW = datetime(2025, 1, 15, tzinfo=UTC)
PATHS = ("/api/v1/projects/shop/logs", "/api/v1/events/e/logs")


class OneToken:
    async def check(self, token: str | None) -> PatRecord:
        return PatRecord("id", "name", NOW)


class OneProject:
    """``away``: Postgres is."""

    def __init__(self, *, away: bool = False) -> None:
        self.away = away

    async def find_project(self, name: str) -> Project | None:
        if self.away:
            raise StoreUnavailable("secret words about Postgres")
        return Project("id", "shop", "shop", NOW)


async def read(query: Query, path: str, *, away: bool = False) -> Reply:
    async def nothing() -> bytes:
        return b""

    api = Api(
        routes(LogReader(query, "default"), OneProject(away=away)),
        OneToken(),
        limits=Limits(),
        admission=Admission(requests_max=9, bytes_max=1 << 20),
    )
    reply = await api.answer("GET", path, [], {}, Incoming(0, nothing))
    assert reply is not None
    return reply


@pytest.fixture
async def away() -> AsyncIterator[ClickHouse]:
    """A client to a port where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        clickhouse = ClickHouse(f"http://127.0.0.1:{taken.getsockname()[1]}")
        await clickhouse.start()
        yield clickhouse
        await clickhouse.close()


@pytest.mark.parametrize("path", PATHS)
async def test_while_clickhouse_is_away_the_answer_is_503(away: ClickHouse, path: str) -> None:
    reply = await read(away.query, path)
    assert reply.status == 503
    assert json.loads(reply.body) == {"detail": "Log storage temporarily unavailable"}
    assert ("Retry-After", "1") in reply.headers


async def test_while_postgres_is_away_the_answer_is_503_and_says_nothing_of_it(away: ClickHouse) -> None:
    reply = await read(away.query, PATHS[0], away=True)
    assert (reply.status, json.loads(reply.body)) == (503, {"detail": "Projects temporarily unavailable"})


@pytest.mark.parametrize("path", PATHS)
async def test_a_query_that_takes_too_long_says_what_to_change(path: str) -> None:
    async def slow(sql: str, values: Mapping[str, object]) -> list[dict[str, Any]]:
        raise Ambiguous("ClickHouse error 159 TIMEOUT_EXCEEDED", code=159)

    reply = await read(slow, path)
    assert reply.status == 503
    assert "less time" in json.loads(reply.body)["detail"]


async def test_only_so_many_queries_run_at_once_and_places_are_given_back() -> None:
    open_gate, all_are_in = asyncio.Event(), asyncio.Barrier(17)

    async def waiting(sql: str, values: Mapping[str, object]) -> list[dict[str, Any]]:
        if not open_gate.is_set():
            await all_are_in.wait()
        await open_gate.wait()
        return [{"total": 0}] if sql.startswith("SELECT count()") else []

    reader = LogReader(waiting, "default")
    first = [asyncio.create_task(reader.logs("id", Filters())) for _ in range(8)]
    await all_are_in.wait()
    with pytest.raises(TooMany):
        await reader.event("e")
    assert (await read(reader.ask, PATHS[1])).status == 503
    open_gate.set()
    assert [page.total for page in await asyncio.gather(*first)] == [0] * 8
    assert await reader.event("e") is None


def test_logs_that_are_too_large_together_are_asked_for_in_smaller_parts(project: SendingProject) -> None:
    for _ in range(20):
        project.send([{"message": "x" * 1_000_000}])
    status, reply = project.house.get(project.path)
    assert (status, reply["detail"][0]["loc"]) == (422, ["query", "limit"])
    assert project.read(limit=5)["total"] == 20
