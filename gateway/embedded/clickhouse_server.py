"""The embedded ClickHouse's process: ClickHouse's HTTP interface on loopback, over chDB.

Started by ``clickhouse.py`` as ``python -m gateway.embedded.clickhouse_server``. Speaks enough of the
interface for the gateway, clickhouse-connect, Grafana and curl. What differs from a server: users and
passwords are accepted whatever they are (it listens on loopback only), sessions are not kept between
requests, ``query_id`` is echoed but not known to the engine, and a result is complete in memory before
its first byte is sent (so every error still has its status; results are capped, see the engine).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import uvloop
from aiohttp import web

from gateway.embedded import lifeline
from gateway.embedded.clickhouse_compression import (
    BlockDecoder,
    Decoder,
    Undecodable,
    accepted_encoding,
    content_decoder,
    content_encode,
    encode_blocks,
)
from gateway.embedded.clickhouse_engine import Engine, EngineError, Result, Session, server_error
from gateway.embedded.clickhouse_native import BLOCK_INFO_AND_CUSTOM_SERIALIZATION, Unwalkable, with_revision
from gateway.embedded.clickhouse_statement import MultiStatement, Statement, parse
from gateway.embedded.directory_lock import hold

logger = logging.getLogger(__name__)
T = TypeVar("T")

WORKERS = 16
"""Statements that run at once; more wait their turn."""
REQUESTS_MAX = 256
"""Statements accepted at once; more are told to come back (202)."""
STATEMENT_BYTES_MAX = 16 << 20
INSERT_STATEMENT_BYTES_MAX = 1 << 20
"""Where the data of an INSERT sent without ``query`` in the URL must have begun."""
INSERT_BYTES_MAX = 1 << 30
REQUEST_LINE_BYTES_MAX = 16 << 20
CHUNK_BYTES = 256 << 10
PORT_WAIT_S = 5.0
GRACE_S = 5.0

LOOPBACK = re.compile(r"(|127\.0\.0\.1|localhost|\[::1\])(:\d+)?")

NOT_SETTINGS = frozenset(
    (
        "query",
        "database",
        "default_format",
        "query_id",
        "session_id",
        "session_timeout",
        "session_check",
        "close_session",
        "quota_key",
        "user",
        "password",
        "compress",
        "decompress",
        "buffer_size",
        "wait_end_of_query",
        "stacktrace",
        "role",
        "client_protocol_version",
    )
)
# ClickHouse, src/Server/HTTP/exceptionCodeToHTTPStatus.cpp
STATUS_BY_CODE: Mapping[int, int] = {
    194: 401,
    **dict.fromkeys((192, 193, 497, 512, 516), 403),
    **dict.fromkeys((6, 8, 15, 25, 26, 27, 36, 37, 38, 41, 44, 53, 62, 72, 117, 123, 167, 168, 223, 321, 376), 400),
    **dict.fromkeys((427, 441, 675, 676), 400),
    **dict.fromkeys((46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 152, 336, 511), 404),
    159: 408,
    381: 411,
    229: 413,
    48: 501,
    779: 415,
    **dict.fromkeys((76, 209, 439), 503),
}


ONLY_PARSED = "written_rows_only_parsed"
"""Of our own, in the summary of an insert: its written rows may not be stored, count them."""


@dataclass
class Request:
    """The parts of a request, sorted by what they are for."""

    query: bytes
    database: str
    default_format: str | None
    query_id: str
    settings: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    decompress: bool = False
    compress: bool = False
    http_compression: bool = False
    revision: int = 0


def sort_parameters(request: web.Request, form: Mapping[str, str]) -> Request:
    """URL parameters, and the fields of a multipart form, by ClickHouse's rules."""
    given = {**request.query, **form}
    sorted_request = Request(
        query=given.get("query", "").encode(),
        database=given.get("database") or request.headers.get("X-ClickHouse-Database") or "",
        default_format=given.get("default_format") or request.headers.get("X-ClickHouse-Format"),
        query_id=given.get("query_id") or request.headers.get("X-ClickHouse-Query-Id") or str(uuid.uuid4()),
        decompress=given.get("decompress") in ("1", "true"),
        compress=given.get("compress") in ("1", "true"),
        http_compression=given.get("enable_http_compression") in ("1", "true"),
        revision=int(version) if (version := given.get("client_protocol_version", "")).isdecimal() else 0,
    )
    for name, value in given.items():
        if name.startswith("param_"):
            sorted_request.parameters[name.removeprefix("param_")] = value
        elif name not in NOT_SETTINGS:
            sorted_request.settings[name] = value
    if request.method in ("GET", "HEAD"):
        sorted_request.settings.setdefault("readonly", "2")
    return sorted_request


class Body:
    """A request's body, decoded piece by piece; at most ``bytes_max`` decoded bytes."""

    def __init__(self, request: web.Request, decoders: list[Decoder], run: Runner, bytes_max: int) -> None:
        self._request = request
        self._decoders = decoders
        self._run = run
        self._left = bytes_max

    async def read(self) -> bytes:
        """The next piece, empty at the end. Raises Undecodable, and EngineError over the cap."""
        while True:
            chunk = await self._gather()
            if not chunk:
                for decoder in self._decoders:
                    decoder.finish()
                return b""
            if self._decoders:
                chunk = await self._run(self._decode, chunk)
            self._left -= len(chunk)
            if self._left < 0:
                raise server_error(229, "the body is too large", "QUERY_IS_TOO_LARGE")
            if chunk:
                return chunk

    async def _gather(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        while size < CHUNK_BYTES:
            part = await self._request.content.readany()
            if not part:
                break
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    def _decode(self, chunk: bytes) -> bytes:
        for decoder in self._decoders:
            chunk = decoder.feed(chunk)
        return chunk


class Runner:
    """Blocking work in a bounded pool of threads."""

    def __init__(self, workers: int) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="statement")

    async def __call__(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)


class Interface:
    """The HTTP interface over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._run = Runner(WORKERS)
        self._host = socket.gethostname()
        self._requests = 0

    def application(self) -> web.Application:
        application = web.Application(client_max_size=STATEMENT_BYTES_MAX)
        application.router.add_get("/ping", self.ok)
        application.router.add_get("/replicas_status", self.ok)
        application.router.add_get("/", self.statement)
        application.router.add_post("/", self.statement)
        return application

    async def ok(self, _: web.Request) -> web.Response:
        return web.Response(text="Ok.\n", content_type="text/html", charset="UTF-8")

    async def statement(self, http: web.Request) -> web.Response:
        """Run one statement: the answer, or ClickHouse's error with its status."""
        if http.method in ("GET", "HEAD") and not http.query.get("query"):
            return await self.ok(http)
        started_ns = time.monotonic_ns()
        query_id = http.query.get("query_id") or ""
        self._requests += 1
        try:
            refuse_above(self._requests)
            refuse_foreign_pages(http)
            form = await read_form(http)
            request = sort_parameters(http, form)
            query_id = request.query_id
            statement, result = await self._answer(http, request)
            return await self._reply(http, request, statement, result, time.monotonic_ns() - started_ns)
        except Undecodable as error:
            return self._refusal(error.code, f"Code: {error.code}. DB::Exception: {error}", query_id)
        except MultiStatement:
            return self._refusal(
                62, "Code: 62. DB::Exception: Multi-statements are not allowed. (SYNTAX_ERROR)", query_id
            )
        except EngineError as error:
            return self._refusal(error.code, str(error), query_id)
        finally:
            self._requests -= 1

    async def _answer(self, http: web.Request, request: Request) -> tuple[Statement, Result]:
        decoders: list[Decoder] = []
        if (outer := content_decoder(http.headers.get("Content-Encoding", ""))) is not None:
            decoders.append(outer)
        if request.decompress:
            decoders.append(BlockDecoder())
        is_form = http.content_type == "multipart/form-data"
        body = Body(http, decoders, self._run, INSERT_BYTES_MAX)
        statement = parse(request.query)
        if not is_form and (statement.data is None or not request.query.strip()):
            text, ended = await read_statement(body, request.query)
            statement = parse(text)
        else:
            ended = is_form
        session = await self._run(self._engine.session, request.database, request.settings, request.parameters)
        try:
            if statement.data is not None:
                return statement, await self._insert(session, request, statement, None if ended else body)
            output = request.default_format or "TabSeparated"
            return statement, await self._run(session.query, decode_text(statement.text), output)
        finally:
            await self._run(session.close)

    async def _insert(self, session: Session, request: Request, statement: Statement, body: Body | None) -> Result:
        data_format = statement.format or request.default_format or "Values"
        await self._run(session.begin_insert, decode_text(statement.text), data_format)
        if statement.data:
            await self._run(session.append, statement.data)
        while body is not None and (chunk := await body.read()):
            await self._run(session.append, chunk)
        return await self._run(session.finish_insert)

    async def _reply(
        self, http: web.Request, request: Request, statement: Statement, result: Result, elapsed_ns: int
    ) -> web.Response:
        headers = self._headers(request.query_id)
        summary = {
            "read_rows": result.read_rows,
            "read_bytes": result.read_bytes,
            "written_rows": result.written_rows,
            "written_bytes": result.written_bytes,
            "total_rows_to_read": 0,
            "result_rows": result.result_rows,
            "result_bytes": result.result_bytes,
            "elapsed_ns": elapsed_ns,
        }
        if result.streamed:
            summary[ONLY_PARSED] = 1
        headers["X-ClickHouse-Summary"] = json.dumps({name: str(value) for name, value in summary.items()})
        body = result.body
        headers["Content-Type"] = "text/plain; charset=UTF-8"
        if statement.returns_rows:
            output = statement.format or request.default_format or "TabSeparated"
            headers["X-ClickHouse-Format"] = output
            if output == "Native" and request.revision >= BLOCK_INFO_AND_CUSTOM_SERIALIZATION:
                body = await self._run(renumber, body)
            headers["Content-Type"] = content_type_of(output)
        if request.compress:
            body = await self._run(encode_blocks, body)
        elif request.http_compression and body:
            encoding = accepted_encoding(http.headers.get("Accept-Encoding", ""))
            if encoding is not None:
                body = await self._run(content_encode, body, encoding)
                headers["Content-Encoding"] = encoding
        return web.Response(body=body, headers=headers)

    def _refusal(self, code: int, message: str, query_id: str) -> web.Response:
        headers = self._headers(query_id)
        headers["X-ClickHouse-Exception-Code"] = str(code)
        headers["Content-Type"] = "text/plain; charset=UTF-8"
        if "(version " not in message:
            message += f" (version {self._engine.version})"
        return web.Response(
            status=STATUS_BY_CODE.get(code, 500), text=None, body=f"{message}\n".encode(), headers=headers
        )

    def _headers(self, query_id: str) -> dict[str, str]:
        return {
            "X-ClickHouse-Query-Id": query_id if query_id.isprintable() else "",
            "X-ClickHouse-Timezone": self._engine.timezone,
            "X-ClickHouse-Server-Display-Name": self._host,
        }


def renumber(body: bytes) -> bytes:
    try:
        return with_revision(body)
    except Unwalkable as error:
        message = f"client_protocol_version with a column of type {error} is not supported here"
        raise server_error(48, message, "NOT_IMPLEMENTED") from None


def refuse_above(requests: int) -> None:
    if requests > REQUESTS_MAX:
        raise server_error(202, "Too many simultaneous queries", "TOO_MANY_SIMULTANEOUS_QUERIES")


def refuse_foreign_pages(http: web.Request) -> None:
    """Nobody has a password here, so a page in somebody's browser must not get in: by its origin, or by a
    name of its own that it points to this machine."""
    origin = http.headers.get("Origin")
    hosts = [http.headers.get("Host", ""), "" if origin is None else origin.partition("://")[2] or origin]
    if not all(LOOPBACK.fullmatch(host) for host in hosts):
        raise server_error(497, "only this machine may ask: use the host 127.0.0.1 or localhost", "ACCESS_DENIED")


async def read_form(http: web.Request) -> dict[str, str]:
    """The fields of a multipart form; an uploaded file would be a table of external data."""
    if http.content_type != "multipart/form-data":
        return {}
    fields: dict[str, str] = {}
    for name, value in (await http.post()).items():
        if not isinstance(value, str):
            raise server_error(48, "external data tables are not supported here", "NOT_IMPLEMENTED")
        fields[name] = value
    return fields


async def read_statement(body: Body, query: bytes) -> tuple[bytes, bool]:
    """The statement that the URL began and the body goes on with, and whether the body ended."""
    text = query + b"\n" if query.strip() else b""
    while chunk := await body.read():
        text += chunk
        if len(text) >= INSERT_STATEMENT_BYTES_MAX and parse(text[:INSERT_STATEMENT_BYTES_MAX]).data is not None:
            return text, False
        if len(text) > STATEMENT_BYTES_MAX:
            raise server_error(229, "the statement is too large", "QUERY_IS_TOO_LARGE")
    return text, True


def decode_text(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise server_error(62, "the statement is not UTF-8 text", "SYNTAX_ERROR") from None


def content_type_of(output: str) -> str:
    """As the engine's formats declare it."""
    if output.startswith("JSON"):
        lines = output.endswith("EachRow") or "EachRow" in output
        return "application/x-ndjson; charset=UTF-8" if lines else "application/json; charset=UTF-8"
    if output.startswith(("TabSeparated", "TSV")):
        return "text/tab-separated-values; charset=UTF-8"
    if output.startswith("CSV"):
        return "text/csv; charset=UTF-8; header=" + ("present" if "WithNames" in output else "absent")
    binary = ("Native", "RowBinary", "Parquet", "Arrow", "ORC", "Avro", "MsgPack", "Protobuf")
    return "application/octet-stream" if output.startswith(binary) else "text/plain; charset=UTF-8"


def bind(port: int, exactly: bool) -> socket.socket:
    """A socket on loopback: on ``port``, else on a free one - or, ``exactly``, on that port once it is free."""
    deadline = time.monotonic() + PORT_WAIT_S
    while True:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(1024)
        except OSError:
            listener.close()
            if not exactly:
                port, exactly = 0, True
            elif time.monotonic() > deadline:
                raise SystemExit(f"port {port} on 127.0.0.1 is taken") from None
            else:
                time.sleep(0.02)
        else:
            return listener


async def serve(engine: Engine, listener: socket.socket) -> None:
    """Serve until SIGTERM; then finish what is in flight, within the grace."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    runner = web.AppRunner(
        Interface(engine).application(),
        access_log=None,
        max_line_size=REQUEST_LINE_BYTES_MAX,
        auto_decompress=False,
        read_bufsize=CHUNK_BYTES,
        shutdown_timeout=GRACE_S,
    )
    await runner.setup()
    await web.SockSite(runner, listener).start()
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nobody reads our standard output from here on
    await ended.wait()
    await runner.cleanup()


def gone() -> None:
    """The gateway is no more. Its inserts were acknowledged or will be sent again: nothing to wait for."""
    os._exit(0)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--directory", type=Path, required=True)
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--exactly", action="store_true")
    arguments.add_argument("--parent", type=int, required=True)
    given = arguments.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    lifeline.watch(given.parent, gone)
    hold(given.directory)
    os.chdir(given.directory)
    engine = Engine(given.directory)
    uvloop.run(serve(engine, bind(given.port, given.exactly)))
    engine.close()
    # A statement that outlived the grace still has its thread; nobody waits for its answer.
    os._exit(0)


if __name__ == "__main__":
    main()
