"""The servers over real sockets: slow, broken, vanishing and oversized senders, and a stop that drops nobody."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import ClassVar, NoReturn

import pytest
import uvloop
from aiohttp import StreamReader, http_parser

from gateway.config import Limits
from gateway.dialects.dialect import Dialect
from gateway.http.listener import Connection, Listener, Patience
from gateway.http.probes import Probes
from gateway.http.server import AdminServer, IngestServer
from gateway.metrics import Metrics
from tests.unit.http.fakes import KEY, House, lines

WAIT_S = 10
POST = f"POST /lines HTTP/1.1\r\nHost: test\r\nX-API-Key: {KEY}\r\n"


@pytest.fixture(autouse=True)
async def clients_are_closed() -> AsyncIterator[None]:
    yield
    while Client.open:
        client = Client.open.pop()
        client.close()
        with suppress(OSError):
            await client.writer.wait_closed()


class Client:
    """A raw connection; closed when its test is over."""

    open: ClassVar[list[Client]] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.open.append(self)

    @classmethod
    async def to(cls, address: str) -> Client:
        host, _, port = address.rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    def send(self, text: str | bytes) -> None:
        self.writer.write(text.encode() if isinstance(text, str) else text)

    async def reply(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (lower-case) and body of the next reply."""
        async with asyncio.timeout(WAIT_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            return int(head[0].split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def post(self, body: bytes, *headers: str) -> tuple[int, dict[str, str], bytes]:
        more = "".join(f"{header}\r\n" for header in headers)
        self.send(f"{POST}{more}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return await self.reply()

    async def closed(self) -> bytes:
        """What still comes until the server closes."""
        async with asyncio.timeout(WAIT_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    def close(self) -> None:
        self.writer.close()


@asynccontextmanager
async def serving(house: House, dialect: Dialect | None = None) -> AsyncIterator[str]:
    server = IngestServer(["127.0.0.1:0"], house.ingest, [dialect or lines()])
    [address] = await server.start()
    try:
        yield address
    finally:
        await server.stop(WAIT_S)
    house.check_sums()


async def until(condition: Callable[[], bool]) -> None:
    """Until it holds."""
    async with asyncio.timeout(WAIT_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.001)


async def test_a_connection_serves_one_request_after_the_other() -> None:
    house = House()
    async with serving(house) as address:
        client = await Client.to(address)
        for number in range(5):
            assert (await client.post(b"line %d" % number))[0] == 200
        assert (await client.post(b"bad"))[0] == 400
        assert (await client.post(b"last"))[2] == b"1 for project"
        client.close()
    assert house.shelf.texts == [*(f"line {number}" for number in range(5)), "last"]


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serving(House()) as address:
        client = await Client.to(address)
        one = f"{POST}Content-Length: 1\r\n\r\n".encode()
        client.send(one + b"a" + one.replace(b": 1", b": 3") + b"b\nc" + one + b"d")
        assert [(await client.reply())[2][:1] for _ in range(3)] == [b"1", b"2", b"1"]
        client.close()


async def test_a_body_that_comes_in_pieces_behind_a_request_that_waits_is_whole() -> None:
    house = House()
    house.shelf.promise.kept.clear()
    server = IngestServer(["127.0.0.1:0"], house.ingest, [lines()])
    [address] = await server.start()
    client = await Client.to(address)
    one = f"{POST}Content-Length: 3\r\n\r\n"
    client.send(f"{one}one")
    await asyncio.wait_for(house.shelf.promise.waited_for.wait(), WAIT_S)
    [connection] = server._listener.connections
    for piece, body_bytes in ((f"{one}t", 1), ("w", 2)):
        client.send(piece)
        await until(lambda body_bytes=body_bytes: bool(connection._messages) and queued(connection) == body_bytes)  # type: ignore[misc]
    client.send("o")
    house.shelf.promise.kept.set()
    assert [(await client.reply())[0] for _ in range(2)] == [200, 200]
    assert house.shelf.texts == ["one", "two"]
    await server.stop(WAIT_S)


def queued(connection: Connection) -> int:
    """Bytes that are here of the body of the request that waits its turn."""
    body = connection._messages[-1][1]
    assert isinstance(body, StreamReader)
    return body.total_bytes


async def test_an_answer_comes_in_one_segment() -> None:
    async with serving(House()) as address:
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), WAIT_S) as raw:
            raw.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(raw, f"{POST}Content-Length: 3\r\n\r\none".encode())
            answer = await asyncio.wait_for(loop.sock_recv(raw, 65536), WAIT_S)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n1 for project")


async def test_an_unknown_path_is_404_with_a_hint_and_the_request_id() -> None:
    async with serving(House()) as address:
        client = await Client.to(address)
        client.send("POST /line HTTP/1.1\r\nHost: test\r\nX-Request-Id: abc\r\nContent-Length: 3\r\n\r\none")
        status, headers, body = await client.reply()
        assert (status, headers["x-request-id"]) == (404, "abc")
        assert b"/lines" in body
        assert (await client.post(b"one"))[0] == 200
        client.close()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_ingest_port_answers_healthz(method: str) -> None:
    async with serving(House()) as address:
        client = await Client.to(address)
        client.send(f"{method} /healthz HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        answer = await client.closed()
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert answer.endswith(b"ok\n") == (method == "GET")


@pytest.mark.parametrize(
    "broken",
    [
        b"garbage\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS greeting
        b"POST /lines HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"POST /lines HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /lines HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        POST.encode() + b"Transfer-Encoding: chunked\r\n\r\nzz\r\none",
    ],
    ids=("garbage", "tls", "length", "smuggling", "long", "chunk"),
)
async def test_what_is_not_http_is_400_and_closed_and_not_quoted(
    broken: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(House()) as address:
        client = await Client.to(address)
        client.send(broken)
        answer = await client.closed()
        assert b" 400 Bad Request\r\n" in answer
        other = await Client.to(address)
        assert (await other.post(b"one"))[0] == 200
        other.close()
    assert not caplog.records


async def test_framing_that_breaks_within_a_body_is_400_and_closed(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    async with serving(house) as address:
        client = await Client.to(address)
        client.send(f"{POST}Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await until(lambda: house.admission.bytes > 0)
        client.send("zz\r\n")
        assert b" 400 Bad Request\r\n" in await client.closed()
    assert house.shelf.texts == []
    assert not caplog.records


async def test_a_sender_that_goes_away_while_sending_is_no_error_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    async with serving(house) as address:
        for ending in ("close", "abort"):
            client = await Client.to(address)
            client.send(f"{POST}Content-Length: 100\r\n\r\nhalf")
            await until(lambda: house.admission.requests > 0)
            if ending == "close":
                client.close()
            else:
                client.writer.transport.abort()
            await until(lambda: house.admission.requests == 0)
    assert house.metrics.requests_refused.values == {("lines", "disconnected"): 2}
    assert not caplog.records


async def test_a_sender_that_closes_its_half_still_gets_its_answer() -> None:
    house = House()
    async with serving(house) as address:
        client = await Client.to(address)
        client.send(f"{POST}Content-Length: 3\r\n\r\none")
        client.writer.write_eof()
        assert (await client.reply())[0] == 200
        assert await client.closed() == b""
        house.shelf.promise.kept.clear()
        house.shelf.promise.waited_for.clear()
        client = await Client.to(address)
        client.send(f"{POST}Content-Length: 3\r\n\r\ntwo")
        await asyncio.wait_for(house.shelf.promise.waited_for.wait(), WAIT_S)
        client.writer.write_eof()
        house.shelf.promise.kept.set()
        assert (await client.reply())[0] == 200
        assert await client.closed() == b""
    assert house.shelf.texts == ["one", "two"]


async def test_a_bug_outside_the_story_is_503_and_quotes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def claims(key: str | None) -> bool:
        raise RuntimeError(f"a bug with {key}")

    house = House()
    async with serving(house, lines(claims=claims)) as address:
        client = await Client.to(address)
        status, headers, body = await client.post(b"one")
        assert (status, headers["retry-after"]) == (503, "1")
        assert KEY.encode() not in body
    [record] = caplog.records
    assert vars(record)["exception_type"] == "RuntimeError"
    assert f"a bug with {KEY}" not in str(vars(record))


async def test_a_sender_that_does_not_wait_for_its_answer_is_no_error_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    house.shelf.promise.kept.clear()
    async with serving(house) as address:
        client = await Client.to(address)
        client.send(f"{POST}Content-Length: 3\r\n\r\none")
        await asyncio.wait_for(house.shelf.promise.waited_for.wait(), WAIT_S)
        client.writer.transport.abort()
        # The server has seen it go when the next connection is served.
        house.shelf.promise.kept.set()
        other = await Client.to(address)
        assert (await other.post(b"two"))[0] == 200
    assert house.shelf.texts == ["one", "two"]
    assert not caplog.records


async def test_an_offer_to_upgrade_is_passed_over() -> None:
    # As Java's own HTTP client makes it with every request.
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk")
    async with serving(House()) as address:
        client = await Client.to(address)
        for _ in range(3):
            assert (await client.post(b"one", *upgrade))[0] == 200
        client.close()


async def test_slow_headers_are_cut_off_and_others_are_served_meanwhile() -> None:
    async with serving(House(limits=Limits(header_timeout_ms=200))) as address:
        slow, idle = await Client.to(address), await Client.to(address)
        slow.send("POST /lines HTT")
        assert await slow.closed() == b""
        # A connection that has sent nothing yet is idle, not slow.
        assert (await idle.post(b"one"))[0] == 200
        idle.send("POST /lines HTT")
        assert await idle.closed() == b""


async def test_idle_connections_are_closed() -> None:
    async with serving(House(limits=Limits(idle_timeout_ms=1000))) as address:
        never, after = await Client.to(address), await Client.to(address)
        assert (await after.post(b"one"))[0] == 200
        assert [await client.closed() for client in (never, after)] == [b"", b""]


async def test_a_slow_body_is_408() -> None:
    house = House(limits=Limits(body_timeout_ms=200))
    async with serving(house) as address:
        client = await Client.to(address)
        client.send(f"{POST}Content-Length: 100\r\n\r\nhalf")
        assert (await client.reply())[0] == 408
        assert await client.closed() == b""


async def test_more_connections_of_one_address_than_allowed_are_closed() -> None:
    async with serving(House(limits=Limits(connections_per_address_max=2))) as address:
        first, second = await Client.to(address), await Client.to(address)
        assert [(await client.post(b"one"))[0] for client in (first, second)] == [200, 200]
        third = await Client.to(address)
        assert await third.closed() == b""
        first.close()
        async with asyncio.timeout(WAIT_S):
            while True:
                again = await Client.to(address)
                again.send(f"{POST}Content-Length: 1\r\nConnection: close\r\n\r\na")
                if (await again.closed()).startswith(b"HTTP/1.1 200"):
                    break
        second.close()


async def test_a_sender_still_writing_an_oversized_body_sees_the_413() -> None:
    async with serving(House()) as address:
        client = await Client.to(address)
        assert (await client.post(b"x" * (20 << 20)))[0] == 413
        # It was read to its end, so the connection goes on.
        assert (await client.post(b"one"))[0] == 200
        client.close()


async def test_a_body_is_invited_only_when_it_would_be_taken() -> None:
    async with serving(House()) as address:
        client = await Client.to(address)
        client.send(f"{POST}Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        async with asyncio.timeout(WAIT_S):
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send("one")
        assert (await client.reply())[0] == 200
        client.send(f"{POST}Expect: 100-continue\r\nContent-Length: 3000\r\n\r\n")
        assert (await client.reply())[0] == 413
        assert await client.closed() == b""


async def test_a_sender_of_http_1_0_is_never_invited() -> None:
    async with serving(House()) as address:
        client = await Client.to(address)
        asking = POST.replace("HTTP/1.1", "HTTP/1.0") + "Expect: 100-continue\r\n"
        client.send(f"{asking}Content-Length: 3\r\n\r\none")
        assert (await client.reply())[0] == 200


async def test_a_stop_answers_those_in_flight_and_takes_no_more() -> None:
    house = House()
    server = IngestServer(["127.0.0.1:0"], house.ingest, [lines()])
    [address] = await server.start()
    house.shelf.promise.kept.clear()
    waiting, sending, idle = [await Client.to(address) for _ in range(3)]
    waiting.send(f"{POST}Content-Length: 3\r\n\r\none")
    sending.send(f"{POST}Content-Length: 3\r\n\r\ntw")
    await asyncio.wait_for(house.shelf.promise.waited_for.wait(), WAIT_S)
    await until(lambda: house.admission.requests == 2)
    stopping = asyncio.create_task(server.stop(WAIT_S))
    assert await idle.closed() == b""
    with pytest.raises(OSError, match="Connect call failed"):
        await Client.to(address)
    assert not stopping.done()
    sending.send("o")
    house.shelf.promise.kept.set()
    for client in (waiting, sending):
        status, headers, _ = await client.reply()
        assert (status, headers["connection"]) == (200, "close")
        assert await client.closed() == b""
    await asyncio.wait_for(stopping, WAIT_S)
    assert sorted(house.shelf.texts) == ["one", "two"]
    house.check_sums()


async def test_who_leaves_takes_all_that_comes_and_asks_each_sender_to_go_elsewhere() -> None:
    house = House()
    server = IngestServer(["127.0.0.1:0"], house.ingest, [lines()])
    [address] = await server.start()
    stays = await Client.to(address)
    status, headers, _ = await stays.post(b"one")
    assert (status, headers.get("connection")) == (200, None)
    server.leave()
    new = await Client.to(address)
    for client, body, expected in ((stays, b"two", 200), (new, b"bad", 400)):
        status, headers, _ = await client.post(body)
        assert (status, headers["connection"]) == (expected, "close")
        assert await client.closed() == b""
    # One that has had no answer since is still there when the stop begins, and is served once more.
    idle = await Client.to(address)
    await until(lambda: len(server._listener.connections) == 1)
    stopping = asyncio.create_task(server.stop(WAIT_S, linger_s=WAIT_S))
    status, headers, _ = await idle.post(b"three")
    assert (status, headers["connection"]) == (200, "close")
    assert await idle.closed() == b""
    await asyncio.wait_for(stopping, WAIT_S)
    assert house.shelf.texts == ["one", "two", "three"]
    house.check_sums()


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_senders_that_never_pause_see_no_reset_and_no_refusal_until_the_listening_ends(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Each posts on one connection until it is closed, then on a new one, while the server leaves and stops."""
    house = House()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        accepted = runner.run(_left_and_stopped_under_load(house))
    assert len(house.shelf.texts) == accepted
    house.check_sums()


async def _left_and_stopped_under_load(house: House) -> int:
    """How many posts were accepted, and every answer was 200; until it stops nobody is turned away."""
    server = IngestServer(["127.0.0.1:0"], house.ingest, [lines()])
    [address] = await server.start()
    sent, turned_away, stopping = 0, 0, False

    async def sender() -> None:
        nonlocal sent, turned_away
        client = await Client.to(address)
        while True:
            status, headers, _ = await client.post(b"one")
            assert status == 200
            sent += 1
            if headers.get("connection") != "close":
                continue
            assert await client.closed() == b""
            client.close()
            turned_away += 1
            try:
                client = await Client.to(address)
            except ConnectionRefusedError:
                assert stopping
                return

    senders = [asyncio.create_task(sender()) for _ in range(20)]
    await until(lambda: sent > 200)
    assert turned_away == 0
    server.leave()
    await until(lambda: turned_away > 200)
    stopping = True
    await asyncio.wait_for(server.stop(WAIT_S), WAIT_S)
    await asyncio.gather(*senders)
    return sent


async def test_a_stop_ends_at_its_deadline() -> None:
    house = House()
    server = IngestServer(["127.0.0.1:0"], house.ingest, [lines()])
    [address] = await server.start()
    client = await Client.to(address)
    client.send(f"{POST}Content-Length: 3\r\n\r\non")
    await until(lambda: house.admission.requests > 0)
    await asyncio.wait_for(server.stop(0.05), WAIT_S)
    assert await client.closed() == b""
    await until(lambda: house.admission.requests == 0)
    house.check_sums()


async def test_an_address_that_is_taken_is_named_and_the_others_are_given_back() -> None:
    house = House()
    async with serving(house) as address:
        server = IngestServer(["127.0.0.1:0", address], house.ingest, [lines()])
        with pytest.raises(OSError, match=f"cannot listen on {address}: "):
            await server.start()


async def test_who_cannot_listen_says_so_and_stops_in_order() -> None:
    """The port was free when it was taken, and another one listens meanwhile."""
    sockets: list[socket.socket] = []
    for _ in range(2):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(sockets[0].getsockname() if sockets else ("127.0.0.1", 0))
        sockets.append(one)
    sockets[0].listen()
    with sockets[0]:
        server = IngestServer([sockets[1]], House().ingest, [lines()])
        with pytest.raises(OSError, match="Address already in use"):
            await server.start()
        await server.stop(0.05)


def test_aiohttps_slow_parser_is_not_served_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_parser, "HttpRequestParser", http_parser.HttpRequestParserPy)

    async def unasked(*_: object) -> NoReturn:
        raise AssertionError("nobody listens")

    with pytest.raises(ImportError, match="C parser"):
        Listener([], unasked, Patience())


async def get(address: str, path: str, *headers: str, method: str = "GET") -> tuple[int, dict[str, str], str]:
    client = await Client.to(address)
    client.send(f"{method} {path} HTTP/1.1\r\nHost: test\r\n" + "".join(f"{line}\r\n" for line in headers) + "\r\n")
    status, headers_, body = await client.reply()
    client.close()
    return status, headers_, body.decode()


async def test_probes() -> None:
    wrong = {"buffers": "", "keys": ""}

    async def keys() -> str:
        return wrong["keys"]

    metrics = Metrics()
    metrics.requests_received.add(3, "lines")
    probes = Probes({"buffers": lambda: wrong["buffers"], "keys": keys}, metrics)
    server = AdminServer(["127.0.0.1:0"], probes, Limits())
    [address] = await server.start()
    try:
        for path in ("/livez", "/-/healthy", "/readyz", "/healthz", "/-/ready"):
            assert (await get(address, path))[0] == 200
        assert (await get(address, "/readyz"))[2] == "ready\n"
        assert (await get(address, "/readyz?verbose"))[2] == "[+] buffers ok\n[+] keys ok\nready\n"
        wrong["keys"] = "Postgres is away"
        for path in ("/readyz", "/healthz", "/-/ready"):
            assert (await get(address, path))[::2] == (
                503,
                "[+] buffers ok\n[-] keys: Postgres is away\nnot ready\n",
            )
        assert (await get(address, "/livez"))[0] == 200
        status, headers, text = await get(address, "/metrics")
        assert (status, headers["content-type"].split(";")[0]) == (200, "text/plain")
        assert 'weir_requests_received_total{dialect="lines"} 3.0\n' in text
        _, headers, text = await get(address, "/metrics", "Accept: application/openmetrics-text; version=1.0.0")
        assert headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert text.endswith("# EOF\n")
        status, headers, _ = await get(address, "/metrics", "Content-Length: 0", method="POST")
        assert (status, headers["allow"]) == (405, "GET, HEAD")
        assert (await get(address, "/nothing"))[0] == 404
    finally:
        await server.stop(WAIT_S)


async def test_a_check_that_fails_itself_is_not_ready_and_quotes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> str:
        raise RuntimeError("postgresql://user:password@host")

    probes = Probes({"store": broken}, Metrics())
    with caplog.at_level(logging.DEBUG):
        reply = await probes.answer("GET", "/readyz", False, "")
    assert reply is not None
    assert reply.status == 503
    assert b"password" not in reply.body
