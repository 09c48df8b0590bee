"""What readers of Streamlogia's paths are told of trouble and of their rate, and what an export holds on to."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.config import Limits
from gateway.delivery.answers import MEMORY_LIMIT, Ambiguous, AnswerTooLarge, Busy
from gateway.dialects.dialect import Reply
from gateway.errors import GatewayError
from gateway.http.admission import Admission
from gateway.http.api import Api, ApiRoute
from gateway.http.body import Incoming
from gateway.http.parts import PartsReply
from gateway.http.streamlogia_export import AT_ONCE_MAX, SECONDS_MAX
from gateway.http.streamlogia_reads import routes
from gateway.reading.logs import LogReader
from gateway.reading.streamlogia import Place, StreamlogiaReader, identity, identity_of, rfc3339, rfc3339_ns, shown_id
from gateway.tenants.errors import StoreUnavailable
from gateway.tenants.rates import Buckets, shared_buckets
from gateway.tenants.records import PatRecord, Project

NOW = datetime(2025, 1, 15, tzinfo=UTC)
SECOND_NS = 10**9
PAGES = ("/v1/projects/shop/logs", "/v1/query/logs")
EXPORTS = ("/v1/projects/shop/logs/export", "/v1/query/logs/export")
COUNTS = ("/v1/projects/shop/logs/stats", "/v1/projects/shop/logs/timeseries", "/v1/projects/shop/logs/aggregate")
LOG = "/v1/projects/shop/logs/7d3c1c0e-5a39-4f0e-9a57-6a3b2d5d9f11"
Ask = Callable[[str, Mapping[str, object]], Awaitable[list[dict[str, Any]]]]


class Tokens:
    """Every token is good, and is its own id."""

    async def check(self, token: str | None) -> PatRecord:
        return PatRecord(token or "", "name", NOW)


class OneProject:
    """``away``: Postgres is."""

    def __init__(self, *, away: bool = False) -> None:
        self.away = away

    async def find_project(self, name: str) -> Project | None:
        return (await self.list_projects())[0]

    async def list_projects(self) -> list[Project]:
        if self.away:
            raise StoreUnavailable("secret words about Postgres")
        return [Project("id", "shop", "shop", NOW)]


class Clock:
    """Nanoseconds that go on when told to."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


class Reads:
    """The API above what answers statements."""

    def __init__(self, ask: Ask, *, away: bool = False, shared: int | None = None) -> None:
        self.clock = Clock()
        found: list[ApiRoute] = routes(
            StreamlogiaReader(LogReader(ask, "default").ask, "default"),
            OneProject(away=away),
            Buckets(shared, now_ns=self.clock),
            now_ns=lambda: 1_736_942_400 * SECOND_NS,
            monotonic_ns=self.clock,
        )
        self._api = Api(found, Tokens(), limits=Limits(), admission=Admission(requests_max=50, bytes_max=1 << 20))

    async def get(self, path: str, *parameters: tuple[str, str], token: str = "pat_one") -> Reply:
        async def nothing() -> bytes:
            return b""

        headers = {"authorization": f"Bearer {token}"}
        reply = await self._api.answer("GET", path, parameters, headers, Incoming(0, nothing))
        assert reply is not None
        return reply


def row(number: int) -> dict[str, Any]:
    """A row as the store answers a page."""
    return {
        "time_ns": SECOND_NS, "SpoolFrame": 1, "SpoolRow": number, "ProjectId": "id", "RecordId": "",
        "Dialect": "loguro", "level": "INFO", "Body": str(number), "ServiceName": "", "tags": [], "has_tags": 0,
        "source_type": "app", "LogAttributes": {}, "ResourceAttributes": {}, "TraceId": "", "SpanId": "",
    }  # fmt: skip


async def no_rows(sql: str, values: Mapping[str, object]) -> list[dict[str, Any]]:
    return [{"total": 0}] if "count() AS total" in sql else []


async def endless(sql: str, values: Mapping[str, object]) -> list[dict[str, Any]]:
    """As many rows as are asked for, always."""
    assert isinstance(values["limit"], int)
    return [row(number) for number in range(values["limit"])]


def failing(error: Exception) -> Ask:
    async def ask(sql: str, values: Mapping[str, object]) -> list[dict[str, Any]]:
        raise error

    return ask


@pytest.mark.parametrize("path", [*PAGES, *EXPORTS, *COUNTS, LOG])
@pytest.mark.parametrize(
    ("error", "word"),
    [
        (Busy("cannot connect"), "unavailable"),
        (Ambiguous("ClickHouse error 159", code=159), "less time between from and to"),
        (Busy("ClickHouse error 241", code=MEMORY_LIMIT), "less time between from and to"),
    ],
    ids=["away", "slow", "memory"],
)
async def test_trouble_of_the_store_is_503_and_says_what_to_change(path: str, error: Exception, word: str) -> None:
    reply = await Reads(failing(error)).get(path)
    body = json.loads(reply.body)
    assert (reply.status, body["error"], body["code"]) == (503, "unavailable", "unavailable")
    assert word in body["message"]
    assert ("Retry-After", "1") in reply.headers


@pytest.mark.parametrize("path", [*PAGES, *EXPORTS])
async def test_too_much_for_one_answer_is_400(path: str) -> None:
    reply = await Reads(failing(AnswerTooLarge("over 64 MiB"))).get(path)
    assert (reply.status, json.loads(reply.body)["details"][0]["field"]) == (400, "limit")


@pytest.mark.parametrize("path", [PAGES[0], EXPORTS[0], *COUNTS, LOG, "/v1/query/projects"])
async def test_while_postgres_is_away_the_answer_is_503_and_says_nothing_of_it(path: str) -> None:
    reply = await Reads(no_rows, away=True).get(path)
    body = json.loads(reply.body)
    assert (reply.status, body["code"], body["message"]) == (503, "unavailable", "Projects temporarily unavailable")


async def test_a_token_may_ask_240_times_at_once_and_twice_a_second_from_then_on() -> None:
    reads = Reads(no_rows)
    for asked in range(240):
        headers = dict((await reads.get("/v1/query/logs")).headers)
        left = 240 - asked - 1
        assert headers == {
            "X-RateLimit-Limit": "120",
            "X-RateLimit-Remaining": str(left),
            "X-RateLimit-Reset": str((240 - left + 1) // 2),
        }
    refused = await reads.get("/v1/query/stats", ("projectId", "shop"))
    body = json.loads(refused.body)
    assert (refused.status, body["error"], body["code"]) == (429, "too_many_requests", "too_many_requests")
    assert dict(refused.headers) == {
        "Retry-After": "1",
        "X-RateLimit-Limit": "120",
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": "120",
    }
    assert (await reads.get("/v1/query/logs", token="pat_other")).status == 200
    assert (await reads.get("/v1/projects/shop/logs")).status == 200, "the dashboard's paths are not metered"
    reads.clock.ns += SECOND_NS
    statuses = [(await reads.get("/v1/query/logs")).status for _ in range(3)]
    assert statuses == [200, 200, 429]


async def test_workers_share_what_a_token_may_ask() -> None:
    shared = shared_buckets()
    try:
        workers = Reads(no_rows, shared=shared), Reads(no_rows, shared=shared)
        for asked in range(240):
            assert (await workers[asked % 2].get("/v1/query/logs")).status == 200
        assert [(await worker.get("/v1/query/logs")).status for worker in workers] == [429, 429]
    finally:
        os.close(shared)


async def test_an_export_counts_as_twenty() -> None:
    reads = Reads(no_rows)
    for asked in range(12):
        reply = await reads.get(EXPORTS[1])
        assert isinstance(reply, PartsReply)
        await reply.parts.aclose()
        assert ("X-RateLimit-Remaining", str(240 - 20 * (asked + 1))) in reply.headers
    refused = await reads.get(EXPORTS[1])
    assert (refused.status, dict(refused.headers)["Retry-After"]) == (429, "10")


@pytest.mark.parametrize("path", ["/v1/query/logs?", "/v1/query/stats", "/v1/query/logs/x", "/v1/query/projects"])
async def test_a_refusal_says_what_is_left_too(path: str) -> None:
    reply = await Reads(no_rows).get(path.rstrip("?"), ("no", "such"))
    assert reply.status == 400
    assert ("X-RateLimit-Remaining", "239") in reply.headers


async def test_an_export_is_read_page_by_page_and_ends_at_its_rows() -> None:
    asked: list[object] = []

    async def ask(sql: str, values: Mapping[str, object]) -> list[dict[str, Any]]:
        asked.append(values["limit"])
        return await endless(sql, values)

    reply = await Reads(ask).get(EXPORTS[0], ("maxRows", "2500"))
    assert isinstance(reply, PartsReply)
    assert asked == [1000], "no page is read before it is wanted"
    lines = b"".join([part async for part in reply.parts]).splitlines()
    assert (len(lines), asked) == (2500, [1000, 1000, 500])
    assert dict(reply.headers)["X-Export-Row-Limit"] == "2500"


async def test_a_page_of_an_export_that_is_too_large_is_asked_for_in_parts() -> None:
    async def ask(sql: str, values: Mapping[str, object]) -> list[dict[str, Any]]:
        assert isinstance(values["limit"], int)
        if values["limit"] > 3:
            raise AnswerTooLarge("over 64 MiB")
        return await endless(sql, values)

    reply = await Reads(ask).get(EXPORTS[0], ("maxRows", "10"))
    assert isinstance(reply, PartsReply)
    assert len(b"".join([part async for part in reply.parts]).splitlines()) == 10


async def test_exports_are_few_at_once_and_each_gives_its_place_back_however_it_ends() -> None:
    reads = Reads(endless)
    begun = [await reads.get(EXPORTS[0]) for _ in range(AT_ONCE_MAX)]
    assert (await reads.get(EXPORTS[0])).status == 503
    for reply in begun:
        assert isinstance(reply, PartsReply)
        await reply.parts.aclose()
    failed = Reads(failing(Busy("away")))
    for _ in range(AT_ONCE_MAX + 1):
        assert (await reads.get(EXPORTS[0], ("maxRows", "0"))).status == 400
        assert "Too many" not in json.loads((await failed.get(EXPORTS[0])).body)["message"]
    last = await reads.get(EXPORTS[0])
    assert isinstance(last, PartsReply)
    await last.parts.aclose()


async def test_an_export_that_takes_too_long_ends() -> None:
    reads = Reads(endless)
    reply = await reads.get(EXPORTS[0])
    assert isinstance(reply, PartsReply)
    await anext(reply.parts)
    reads.clock.ns += (SECONDS_MAX + 1) * SECOND_NS
    with pytest.raises(GatewayError, match="too long"):
        await anext(reply.parts)


async def test_queries_share_their_places_with_all_other_reads() -> None:
    gate, waiting = asyncio.Event(), asyncio.Semaphore(0)

    async def ask(sql: str, values: Mapping[str, object]) -> list[dict[str, Any]]:
        waiting.release()
        await gate.wait()
        return await no_rows(sql, values)

    reads = Reads(ask)
    first = [asyncio.create_task(reads.get(PAGES[0])) for _ in range(8)]
    for _ in range(16):
        await waiting.acquire()
    assert (await reads.get(PAGES[0])).status == 503
    gate.set()
    assert {reply.status for reply in await asyncio.gather(*first)} == {200}


@pytest.mark.parametrize("frame", [0, 1, 2**32, 2**63 + 12_345, 2**64 - 1])
@pytest.mark.parametrize("number", [0, 1, 2**31, 2**32 - 1])
def test_a_rows_identity_is_a_uuid_and_back(frame: int, number: int) -> None:
    text = identity(frame, number)
    assert identity_of(text) == (frame, number)
    assert identity_of(f"{text[:14]}4{text[15:]}") is None
    assert Place.of_cursor(Place(123, frame, number).cursor) == Place(123, frame, number)


def test_only_an_id_that_is_a_uuid_as_written_is_shown() -> None:
    given = "7d3c1c0e-5a39-4f0e-9a57-6a3b2d5d9f11"
    assert shown_id(given, 1, 2) == given
    for other in ("", "x", given.upper(), f"{{{given}}}", given.replace("-", ""), identity(5, 6)):
        assert shown_id(other, 1, 2) == identity(1, 2)


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
        (1_736_942_400_120_000_000, "2025-01-15T12:00:00.12Z"),
        (4_102_444_799_999_999_999, "2099-12-31T23:59:59.999999999Z"),
    ],
)
def test_a_time_is_told_with_as_many_digits_as_it_takes(time_ns: int, text: str) -> None:
    assert (rfc3339(time_ns), rfc3339_ns(text)) == (text, time_ns)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("2025-01-15t12:00:00z", "2025-01-15T12:00:00Z"),
        ("2025-01-15T14:00:00.5+02:00", "2025-01-15T12:00:00.5Z"),
        ("2025-01-15T14:00:00 02:00", "2025-01-15T12:00:00Z"),
        ("2025-01-15T06:30:00-05:30", "2025-01-15T12:00:00Z"),
        ("2025-01-15T12:00:00.1234567899Z", "2025-01-15T12:00:00.123456789Z"),
    ],
)
def test_a_time_may_be_in_any_zone(text: str, same: str) -> None:
    assert rfc3339(rfc3339_ns(text)) == same


@pytest.mark.parametrize(
    "text",
    ["", "now", "2025-01-15", "2025-01-15T12:00:00", "2025-01-15 12:00:00Z", "2025-02-30T00:00:00Z",
     "2025-01-15T12:00:00+25:00", "2025-01-15T12:00:00.Z", "2025-01-15T12:00:00Z\n", "０025-01-15T12:00:00Z",
     "0000-01-01T00:00:00Z", "2025-01-15T12:00:60Z"],
)  # fmt: skip
def test_what_is_no_time_is_none(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        rfc3339_ns(text)
