"""Listening sockets and what they do to clients that are slow, many or broken; below every server here.

aiohttp speaks HTTP. It has no deadline for headers, no cap on connections, and logs a stack trace for
every broken request; this adds what is missing and keeps each answer in one TCP segment.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import socket
import sys
import termios
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

import msgspec
from aiohttp import HttpVersion11, StreamReader, http_parser, web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError

from gateway.dialects.dialect import Reply
from gateway.errors import Disconnected, Malformed, SenderError
from gateway.http import parts
from gateway.http.arrivals import Arrivals
from gateway.http.binding import bind, deafen
from gateway.http.body import Incoming
from gateway.http.parts import PartsReply
from gateway.http.surprise import without_its_text

log = logging.getLogger(__name__)

_READ_BYTES = 256 << 10
_DEAF_S = 0.02
_SWEEP_S = 0.5
# A sender that is still writing sees our refusal only if we read on until it is done; for this long.
_DRAIN_BYTES_MAX = 64 << 20
_DRAIN_S = 2.0

LINGER_S = 0.5
"""How long a stop leaves idle connections open: a request on its way to a closed one ends in a reset."""

Handler = Callable[[web.BaseRequest, Incoming], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how much of it: ``idle_s`` between requests, ``header_s`` for a request's headers.

    An answer of which nothing is read for ``idle_s`` is not waited for either.
    """

    idle_s: float = 75.0
    header_s: float = 10.0
    connections_per_address_max: int = 4096


class Listener:
    """Serves HTTP until stopped. ``handle`` turns each request into a reply.

    ``addresses``: ``host:port``, or a socket that somebody has bound already.
    """

    def __init__(self, addresses: Sequence[str | socket.socket], handle: Handler, patience: Patience) -> None:
        if getattr(http_parser, "HttpRequestParserC", None) is not http_parser.HttpRequestParser:
            raise ImportError("aiohttp was installed without its C parser: install it from a wheel")
        self._wanted = tuple(addresses)
        self._handle = handle
        self.patience = patience
        self._sockets: list[socket.socket] = []
        self._arrivals = Arrivals(self._connection, lambda: len(self.connections))
        self._http: web.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._leaving = self._stopping = False
        self._requests: set[asyncio.Task[object]] = set()
        self._quiet = asyncio.Event()
        self.connections: set[Connection] = set()
        self.per_address: Counter[str] = Counter()

    async def start(self) -> list[str]:
        """The addresses it listens on, ``host:port``, in the order asked for. Raises OSError when one is taken."""
        loop = asyncio.get_running_loop()
        self._http = web.Server(self._answer)
        actual: list[str] = []
        try:
            for address in self._wanted:
                if isinstance(address, socket.socket):
                    host, port = address.getsockname()[:2]
                    actual.append(f"{host}:{port}")
                    self._sockets.append(address)
                else:
                    bound = bind(address)
                    actual.append(bound.text)
                    self._sockets += bound.shares[0]
            self._arrivals.start(self._sockets)
        except OSError:
            self._close()
            raise
        self._sweeper = loop.create_task(self._sweep())
        return actual

    def leave(self) -> None:
        """From now on every answer closes its connection, so that its sender goes elsewhere; new ones are taken."""
        self._leaving = True

    async def stop(self, deadline_s: float, linger_s: float = LINGER_S, *, others_go_on: bool = False) -> None:
        """No new connections; requests are answered for at most ``deadline_s``; then all is closed.

        An idle connection has ``linger_s`` of it for a last request, whose answer says that it was the last.
        ``others_go_on``: somebody else has the sockets too, and takes who comes.
        """
        ends_s = asyncio.get_running_loop().time() + deadline_s
        self._leaving = self._stopping = True
        if not others_go_on:
            for one in self._sockets:
                deafen(one)
            await asyncio.sleep(_DEAF_S)  # connections that the kernel had begun are made meanwhile
        self._arrivals.stop()
        self._close()
        await self._arrivals.made()
        await self._until_quiet(min(linger_s, deadline_s))
        for connection in list(self.connections):
            if connection.idle:
                connection.force_close()
        await self._until_quiet(ends_s - asyncio.get_running_loop().time())
        for request in self._requests:
            request.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)
        if self._sweeper is not None:
            self._sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeper
        if self._http is not None:
            await self._http.shutdown(0.1)

    def hurry(self, deadline_s: float) -> None:
        """A stop that is under way ends within ``deadline_s``."""
        asyncio.get_running_loop().call_later(deadline_s, self._quiet.set)

    def _close(self) -> None:
        for one in self._sockets:
            one.close()
        self._sockets = []

    async def _until_quiet(self, seconds: float) -> None:
        """Returns when there are no connections and no requests any more, or after so long."""
        self._note_quiet()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0)):
                await self._quiet.wait()

    def _note_quiet(self) -> None:
        if self._stopping and not self.connections and not self._requests:
            self._quiet.set()

    def _connection(self) -> Connection:
        assert self._http is not None  # noqa: S101 - made before anybody can connect
        return Connection(self, self._http, asyncio.get_running_loop(), self.patience)

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        self.connections.discard(connection)
        self._note_quiet()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = cast(Connection, request.protocol)
        task = cast("asyncio.Task[object]", asyncio.current_task())
        connection.begin()
        self._requests.add(task)
        try:
            body = _Body(request)
            reply = await self._handle(request, Incoming(request.content_length, body.chunk))
            response = _response(reply)
            if self._leaving or body.broken:
                response.force_close()
            # A sender that has gone misses its answer, and that is all.
            with suppress(ConnectionError):
                if isinstance(reply, PartsReply):
                    await parts.send(request, response, reply)
                else:
                    await response.prepare(request)
                    await response.write_eof()
            if reply.status != HTTPStatus.REQUEST_TIMEOUT:
                await body.drain()
            return response
        finally:
            self._requests.discard(task)
            connection.end()
            self._note_quiet()

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            for connection in list(self.connections):
                connection.look(loop.time())


class Connection(web.RequestHandler):
    """One client's connection."""

    __slots__ = (
        "_address",
        "_answered",
        "_broken",
        "_last_body",
        "_listener",
        "_pipe",
        "_unread_bytes",
        "_unread_since_s",
        "busy",
        "header_began_s",
    )

    def __init__(
        self, listener: Listener, server: web.Server, loop: asyncio.AbstractEventLoop, patience: Patience
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=patience.idle_s,
            access_log=None,  # type: ignore[arg-type]  # which is how it is switched off
            lingering_time=0,
            read_bufsize=_READ_BYTES,
            auto_decompress=False,
        )
        self._listener = listener
        self._address = ""
        self._last_body: StreamReader | None = None
        self._answered = 0
        self._broken = False
        self._pipe: asyncio.WriteTransport
        self._unread_bytes, self._unread_since_s = 0, 0.0
        self.busy = False
        self.header_began_s: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._pipe = cast("asyncio.WriteTransport", transport)
        peer = transport.get_extra_info("peername")
        self._address = str(peer[0]) if peer else ""
        self._listener.connections.add(self)
        self._listener.per_address[self._address] += 1
        if self._listener.per_address[self._address] > self._listener.patience.connections_per_address_max:
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._listener.forget(self)
        self._listener.per_address[self._address] -= 1
        if not self._listener.per_address[self._address]:
            del self._listener.per_address[self._address]
        self.header_began_s = None
        super().connection_lost(exc)

    def look(self, now_s: float) -> None:
        """Close it when its headers take too long, and cut it when for too long nothing of its answers was read."""
        patience = self._listener.patience
        if self.header_began_s is not None and self.header_began_s < now_s - patience.header_s:
            self.force_close()
        unread_bytes = self._pipe.get_write_buffer_size()
        if unread_bytes:
            # The system takes more of ours by the megabyte, so what it still has of the last one counts as well.
            unread_bytes += in_flight_bytes(self._pipe)
        if not unread_bytes or unread_bytes != self._unread_bytes:
            self._unread_bytes, self._unread_since_s = unread_bytes, now_s
        elif self._unread_since_s < now_s - patience.idle_s:
            self._pipe.abort()  # a close would wait for it to be read

    def data_received(self, data: bytes) -> None:
        if self._broken:
            return  # Read on, for the sender to see our answer, but no more of it is looked at.
        if data and not self.busy and self.header_began_s is None:
            self.header_began_s = asyncio.get_running_loop().time()
        before = self._last_body
        super().data_received(data)
        if not self._messages:
            return
        message, self._last_body = self._messages[-1]
        if not isinstance(message, RawRequestMessage):
            # The error's text and trace hold all that was read.
            self._broken = True
            self._messages[-1] = type(message)(message.status, ValueError(), ""), self._last_body
        # Behind a body that has not ended nothing can be queued but the news that its framing broke, which
        # aiohttp would tell the next request only, while this one waits for its body until it is too slow.
        if before is not None and before is not self._last_body and not before.is_eof():
            before.set_exception(web.RequestPayloadError("broken framing"))

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp's says None: always close at once
        """The sender will send no more. One whose request is whole may still be waiting for its answer."""
        waiting = self._request_count > self._answered
        if not waiting or self._last_body is None or not self._last_body.is_eof():
            return False
        self.close()
        return True

    @property
    def idle(self) -> bool:
        """Nothing of a request is here that is not answered."""
        return not self.busy and self.header_began_s is None and self._request_count == self._answered

    def begin(self) -> None:
        """A request's headers are here."""
        self.busy = True
        self.header_began_s = None

    def end(self) -> None:
        """It was answered."""
        self._answered += 1
        self.busy = False

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """400 for what is not HTTP, 503 for a failure of ours, and the connection is closed.

        Nothing of the request is logged or repeated, nor an exception's text: either may hold a key.
        """
        if status < HTTPStatus.INTERNAL_SERVER_ERROR or exc is None:
            reply = _error(400, "this is not a valid HTTP/1.1 request: the connection is closed")
        else:
            reply = unforeseen(exc)
        response = _response(reply)
        response.force_close()
        return response


def in_flight_bytes(pipe: asyncio.WriteTransport) -> int:
    """What the system has of a connection's answers that the other side has not; 0 where it does not say."""
    count = bytearray(4)
    try:
        fcntl.ioctl(pipe.get_extra_info("socket").fileno(), termios.TIOCOUTQ, count)
    except OSError:
        return 0
    return int.from_bytes(count, sys.byteorder)


def unforeseen(surprise: BaseException) -> Reply:
    """What is answered, and logged, when nothing more fitting can be."""
    log.error("a request could not be answered", extra=without_its_text(surprise))
    return _error(503, "the gateway could not take this request: send it again later", ("Retry-After", "1"))


def _error(status: int, text: str, *headers: tuple[str, str]) -> Reply:
    return Reply(status, msgspec.json.encode({"error": text}), "application/json", headers)


class _Body:
    """A request's body as aiohttp has it."""

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        # HTTP/1.0 knows no interim answer: such a sender would take it for the answer (RFC 9110, 10.1.1).
        invites = request.version >= HttpVersion11 and request.headers.get("expect", "").lower() == "100-continue"
        self._invited = not invites
        self.broken = False

    async def chunk(self) -> bytes:
        """The next bytes, ``b""`` at the end. Raises Disconnected, Malformed."""
        try:
            if not self._invited:
                self._invited = True
                await self._request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                self._request.writer.output_size = 0
            return await self._request.content.readany()
        except OSError:
            self.broken = True
            raise Disconnected("the connection was lost before the body was here") from None
        except (web.RequestPayloadError, HttpProcessingError) as error:
            self.broken = True
            raise Malformed("the body's framing is broken: check Content-Length and chunk sizes") from error

    async def drain(self) -> None:
        """Reads on what a refused sender is still writing, so that it gets to see the refusal."""
        if self.broken or not self._invited or self._request.content.is_eof():
            return
        drained = 0
        with suppress(TimeoutError, SenderError):
            async with asyncio.timeout(_DRAIN_S):
                while drained < _DRAIN_BYTES_MAX and (chunk := await self.chunk()):
                    drained += len(chunk)


def _response(reply: Reply) -> web.StreamResponse:
    headers = dict(reply.headers)
    headers["Server"] = "weir"
    if reply.media_type:
        headers["Content-Type"] = reply.media_type
    if isinstance(reply, PartsReply):
        return web.StreamResponse(status=reply.status, headers=headers)
    return web.Response(status=reply.status, body=reply.body, headers=headers)
