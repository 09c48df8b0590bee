"""A TCP proxy that does to HTTP exchanges what networks do.

It speaks just enough HTTP/1.1 to know where a request ends and an answer begins: one exchange per
connection to the server, chunked or counted request bodies. Faults are taken from ``plan``, one per
exchange that ``applies`` to; when the plan is empty everything passes. ``choose`` decides instead of a
plan where it is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """What happens to one exchange.

    ``kind``: ``pass`` (nothing does), ``swallow`` (forward, read the whole answer, then reset), ``reset`` (reset after
    ``at_byte`` bytes of the request were forwarded), ``reset_unsent`` (reset, nothing forwarded),
    ``answer`` (do not forward; answer with ``status``, ``headers`` and ``body``), ``rewrite`` (forward,
    then answer with those instead), ``half_open`` (forward, then never answer), ``truncate`` (forward,
    pass on the answer's first ``at_byte`` bytes, then reset), ``slow`` (forward, answer after ``delay_s``),
    ``late`` (reset, and forward only after ``delay_s``: by then it was probably sent again).
    """

    kind: str
    at_byte: int = 0
    delay_s: float = 0.0
    status: int = 503
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


class Proxy:
    """Between a client and a port of this machine.

    ``seen`` counts exchanges that ``applies`` was true for, ``late`` those that are yet to be forwarded.
    """

    def __init__(
        self,
        port: int,
        *,
        applies: Callable[[bytes], bool] = lambda head: True,
        choose: Callable[[bytes], Fault | None] | None = None,
    ) -> None:
        self.plan: deque[Fault] = deque()
        self.refusing = False
        self.late = 0
        self.seen = 0
        self.applies = applies
        self._choose = choose or (lambda head: self.plan.popleft() if self.plan else None)
        self._port = port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while not self.refusing and await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            _reset(writer)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection goes on."""
        head = await reader.readuntil(b"\r\n\r\n")
        fault = None
        if self.applies(head):
            self.seen += 1
            fault = self._choose(head)
            if fault is not None and fault.kind == "pass":
                fault = None
        kind = fault.kind if fault else ""
        if fault is not None and kind == "answer":
            await _request(reader, head)
            await _answer(writer, fault)
            return True
        if kind == "reset_unsent":
            return False
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            request = head + await _request(reader, head)
            if fault is not None and kind == "reset":
                server_writer.write(request[: fault.at_byte])
                await server_writer.drain()
                return False
            if fault is not None and kind == "late":
                _reset(writer)
                self.late += 1
                await asyncio.sleep(fault.delay_s)
            server_writer.write(request)
            await server_writer.drain()
            answer = await _whole_answer(server_reader)
            self.late -= kind == "late"
            if kind in ("swallow", "late"):
                return False
            if kind == "half_open":
                await reader.read()  # until the client has had enough
                return False
            if fault is not None and kind == "slow":
                await asyncio.sleep(fault.delay_s)
                writer.write(answer)
                await writer.drain()
                return True
            if fault is not None and kind == "rewrite":
                await _answer(writer, fault)
                return True
            writer.write(answer[: fault.at_byte] if fault is not None else answer)
            await writer.drain()
            return fault is None
        finally:
            _reset(server_writer)


async def _request(reader: asyncio.StreamReader, head: bytes) -> bytes:
    """A request's body as it is on the wire."""
    if re.search(rb"transfer-encoding:\s*chunked", head, re.IGNORECASE):
        body = b""
        while True:
            line = await reader.readuntil(b"\r\n")
            body += line + await reader.readexactly(int(line, 16) + 2)
            if int(line, 16) == 0:
                return body
    length = re.search(rb"content-length:\s*(\d+)", head, re.IGNORECASE)
    return await reader.readexactly(int(length[1])) if length else b""


async def _whole_answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    return head + await _request(reader, head)


async def _answer(writer: asyncio.StreamWriter, fault: Fault) -> None:
    headers = "".join(f"{name}: {value}\r\n" for name, value in fault.headers)
    head = f"HTTP/1.1 {fault.status} Fault\r\nContent-Length: {len(fault.body)}\r\n{headers}\r\n"
    writer.write(head.encode() + fault.body)
    await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(Exception):
        writer.transport.abort()
