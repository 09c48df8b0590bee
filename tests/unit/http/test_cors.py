"""What a browser is told before it posts, and which answers its page may read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest

from gateway.errors import GatewayError, Overloaded
from gateway.http.server import IngestServer
from tests.unit.http.fakes import KEY, House, lines

WAIT_S = 10
PAGE = "https://shop.example"
STRANGER = "https://other.example"
ASKING = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
EXPOSED = (
    "Retry-After, X-Quota-Warning, X-Request-Id, X-Durability, Idempotent-Replayed, RateLimit, RateLimit-Policy, "
    "X-Dropped-Reason"
)

Answer = tuple[int, dict[str, str], bytes]


@asynccontextmanager
async def house_for_pages() -> AsyncIterator[tuple[House, str]]:
    """A server that one browser key may use from PAGE, and its address."""
    house = House()
    house.gate.origins = {PAGE}
    server = IngestServer(["127.0.0.1:0"], house.ingest, [lines()])
    [address] = await server.start()
    try:
        yield house, address
    finally:
        await server.stop(WAIT_S)
    house.check_sums()


async def ask(address: str, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
    """Status, headers by lower-case names, body; no header may come twice."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = [f"{method} {path} HTTP/1.1", "Host: test", "Connection: close", f"Content-Length: {len(body)}"]
    head += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join((*head, "", "")).encode() + body)
    async with asyncio.timeout(WAIT_S):
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    top, _, content = answer.partition(b"\r\n\r\n")
    status, *rest = top.decode("ascii").split("\r\n")
    found = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in rest)]
    assert len(found) == len(dict(found))
    return int(status.split(" ")[1]), dict(found), content


def cors_of(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("access-control") or name == "vary"}


@pytest.mark.parametrize("path", ["/lines", "/wrong"])
async def test_an_allowed_origin_that_asks_is_told_yes_without_a_key_and_without_being_counted(path: str) -> None:
    async with house_for_pages() as (house, address):
        status, headers, body = await ask(address, "OPTIONS", path, {"Origin": PAGE, **ASKING})
        assert (status, body) == (204, b"")
        assert cors_of(headers) == {
            "access-control-allow-origin": PAGE,
            "access-control-allow-methods": "POST, OPTIONS",
            "access-control-allow-headers": "authorization, content-type, content-encoding, x-api-key, x-request-id, "
            "traceparent, tracestate, idempotency-key",
            "access-control-max-age": "7200",
            "vary": "Origin",
        }
        assert house.metrics.requests_received.total() == 0


@pytest.mark.parametrize(
    "origin",
    [
        STRANGER,
        "null",
        "",
        "*",
        "http://shop.example",  # the scheme differs
        "https://shop.example:8443",  # the port
        "https://www.shop.example",  # the host
        f"{PAGE}, {STRANGER}",
        f"{PAGE}.other.example",
        "https://shöp.example",
    ],
)
@pytest.mark.parametrize("path", ["/lines", "/wrong"])
async def test_an_origin_that_nobody_allows_is_refused_when_it_asks(path: str, origin: str) -> None:
    async with house_for_pages() as (_, address):
        status, headers, body = await ask(address, "OPTIONS", path, {"Origin": origin, **ASKING})
        assert (status, cors_of(headers)) == (403, {"vary": "Origin"})
        assert b"browser key" in body


async def test_what_is_not_ascii_no_browser_sends_and_is_not_repeated() -> None:
    async with house_for_pages() as (house, address):
        house.gate.allows_origin = lambda origin: True  # type: ignore[method-assign]
        assert (await ask(address, "OPTIONS", "/lines", {"Origin": PAGE, **ASKING}))[0] == 204
        for odd in ("https://shöp.example", "https://shop.example\x80"):
            status, headers, _ = await ask(address, "OPTIONS", "/lines", {"Origin": odd, **ASKING})
            assert (status, cors_of(headers)) == (403, {"vary": "Origin"})


@pytest.mark.parametrize("headers", [{}, {"Origin": PAGE}, {"Origin": STRANGER}, ASKING])
async def test_options_of_what_is_no_asking_browser_says_what_is_allowed(headers: dict[str, str]) -> None:
    async with house_for_pages() as (house, address):
        status, answered, body = await ask(address, "OPTIONS", "/lines", headers)
        assert (status, answered["allow"], body) == (204, "POST, OPTIONS", b"")
        assert (await ask(address, "OPTIONS", "/wrong", headers))[0] == 404
        assert house.metrics.requests_received.total() == 0


def too_full(house: House) -> None:
    house.shelf.full = Overloaded("full", retry_after_s=3)


def broken_promise(house: House) -> None:
    house.shelf.promise.broken = GatewayError("away")


@pytest.mark.parametrize(
    ("path", "key", "body", "trouble", "status"),
    [
        ("/lines", KEY, b"one", None, 200),
        ("/lines", "wrong", b"one", None, 401),
        ("/lines", KEY, b"bad", None, 400),
        ("/lines", KEY, b"x" * 2000, None, 413),
        ("/lines", KEY, b"one", too_full, 503),
        ("/lines", KEY, b"one", broken_promise, 503),
        ("/lines", KEY, b"boom", None, 503),
        ("/wrong", KEY, b"one", None, 404),
    ],
)
async def test_every_answer_to_a_post_may_be_read_by_an_allowed_page_and_by_no_other(
    path: str, key: str, body: bytes, trouble: Callable[[House], None] | None, status: int
) -> None:
    async with house_for_pages() as (house, address):
        if trouble:
            trouble(house)
        answers = {
            origin: await ask(address, "POST", path, {"Origin": origin, "X-API-Key": key}, body)
            for origin in (PAGE, STRANGER, "null")
        }
        assert {answer[0] for answer in answers.values()} == {status}
        assert cors_of(answers[PAGE][1]) == {
            "access-control-allow-origin": PAGE,
            "access-control-expose-headers": EXPOSED,
            "vary": "Origin",
        }
        assert [cors_of(answers[origin][1]) for origin in (STRANGER, "null")] == [{"vary": "Origin"}] * 2


async def test_an_answer_to_a_bug_outside_the_story_may_be_read_too() -> None:
    def claims(key: str | None) -> bool:
        raise RuntimeError("a bug")

    house = House()
    house.gate.origins = {PAGE}
    server = IngestServer(["127.0.0.1:0"], house.ingest, [lines(claims=claims)])
    [address] = await server.start()
    try:
        status, headers, _ = await ask(address, "POST", "/lines", {"Origin": PAGE, "X-API-Key": KEY}, b"one")
    finally:
        await server.stop(WAIT_S)
    assert (status, headers["retry-after"], headers["access-control-allow-origin"]) == (503, "1", PAGE)


async def test_a_beacon_needs_no_asking() -> None:
    async with house_for_pages() as (house, address):
        headers = {"Origin": PAGE, "X-API-Key": KEY, "Content-Type": "text/plain;charset=UTF-8"}
        status, answered, _ = await ask(address, "POST", "/lines", headers, b"one")
        assert (status, answered["access-control-allow-origin"]) == (200, PAGE)
        assert house.shelf.texts == ["one"]


async def test_who_is_no_page_sees_nothing_of_this() -> None:
    async with house_for_pages() as (_, address):
        assert cors_of((await ask(address, "POST", "/lines", {"X-API-Key": KEY}, b"one"))[1]) == {}
        for method in ("GET", "HEAD"):
            for path in ("/healthz", "/lines"):
                assert cors_of((await ask(address, method, path, {"Origin": PAGE}))[1]) == {}, (method, path)
