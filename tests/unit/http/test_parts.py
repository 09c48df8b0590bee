"""Answers that are sent as they are made, over a real socket: whole, or seen to be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from gateway.dialects.dialect import Reply
from gateway.errors import GatewayError
from gateway.http import parts
from gateway.http.body import Incoming
from gateway.http.listener import Listener, Patience
from gateway.http.parts import PartsReply

PART = b"x" * 100_000
WAIT_S = 10


class Source:
    """Makes ``count`` parts, then raises ``error`` if there is one. ``ended`` is set when it is over, in any way."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.count = count
        self.error = error
        self.ended = asyncio.Event()

    async def parts(self) -> AsyncGenerator[bytes, None]:
        try:
            yield b""
            for _ in range(self.count):
                yield PART
            if self.error is not None:
                raise self.error
        finally:
            self.ended.set()

    async def answer(self, request: web.BaseRequest, incoming: Incoming) -> Reply:
        begun = self.parts()
        await anext(begun)
        return PartsReply(200, media_type="text/plain", headers=(("X-Odd", "yes"),), parts=begun)


class Asking:
    """A connection; a call sends a request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def __call__(self, version: str = "1.1") -> None:
        self.writer.write(f"GET / HTTP/{version}\r\nHost: test\r\n\r\n".encode())


@asynccontextmanager
async def serving(source: Source) -> AsyncIterator[Asking]:
    """A connection to a listener that answers with the source."""
    listener = Listener(["127.0.0.1:0"], source.answer, Patience())
    (address,) = await listener.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
    try:
        yield Asking(reader, writer)
    finally:
        writer.transport.abort()
        await listener.stop(1)


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S)


async def chunks_of(reader: asyncio.StreamReader) -> bytes:
    """The body, as chunked transfer has it. Raises IncompleteReadError when it does not end as one."""
    body = b""
    while size := int(await asyncio.wait_for(reader.readuntil(b"\r\n"), WAIT_S), 16):
        body += (await asyncio.wait_for(reader.readexactly(size + 2), WAIT_S))[:-2]
    await reader.readexactly(2)
    return body


async def test_all_parts_arrive_and_the_connection_goes_on() -> None:
    source = Source(30)
    async with serving(source) as ask:
        for _ in range(2):
            ask()
            head = await head_of(ask.reader)
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"\r\nX-Odd: yes\r\n" in head
            assert b"\r\nServer: weir\r\n" in head
            assert await chunks_of(ask.reader) == PART * 30
            assert source.ended.is_set()


async def test_an_answer_of_nothing_is_one() -> None:
    async with serving(Source(0)) as ask:
        ask()
        await head_of(ask.reader)
        assert await chunks_of(ask.reader) == b""


async def test_a_client_without_chunks_gets_all_until_the_end() -> None:
    async with serving(Source(30)) as ask:
        ask("1.0")
        assert b"chunked" not in await head_of(ask.reader)
        assert await asyncio.wait_for(ask.reader.read(-1), WAIT_S) == PART * 30


@pytest.mark.parametrize("error", [GatewayError("the store went away"), RuntimeError("nobody foresaw this")])
async def test_what_fails_on_its_way_is_seen_to_be_cut(error: Exception) -> None:
    source = Source(3, error)
    async with serving(source) as ask:
        ask()
        await head_of(ask.reader)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await chunks_of(ask.reader)
        assert source.ended.is_set()


async def test_a_reader_that_goes_away_ends_it() -> None:
    source = Source(1 << 40)
    async with serving(source) as ask:
        ask()
        await head_of(ask.reader)
        assert not source.ended.is_set()
        ask.writer.transport.abort()
        assert await asyncio.wait_for(source.ended.wait(), WAIT_S)


async def test_a_reader_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_S", 0.05)
    source = Source(1 << 40)
    async with serving(source) as ask:
        ask.reader._transport.pause_reading()  # type: ignore[attr-defined]
        ask()
        assert await asyncio.wait_for(source.ended.wait(), WAIT_S)
        ask.reader._transport.resume_reading()  # type: ignore[attr-defined]
        await head_of(ask.reader)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await chunks_of(ask.reader)
