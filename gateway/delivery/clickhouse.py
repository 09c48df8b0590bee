"""ClickHouse over HTTP: inserts of raw blocks, and queries. What its errors mean is in ``answers.py``.

aiochclient speaks to the server through ``Exchange``, our transport: one request and its answer. It
adds what the library has no place for: settings for one call, a time-out, the error code (also the
one that comes with a 200), and the summary of rows written. The library parses each statement with
sqlparse, 0.5-4 ms on the loop; our texts are few, so each is parsed once.

When the server is away every call raises Busy (never connected) or Ambiguous (lost on the way);
nothing is retried here. No message ever holds a key or a row.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import aiohttp
import lz4.block
import orjson
from aiochclient import ChClient
from aiochclient.http_clients.abc import HttpClientABC

from gateway import schema
from gateway.delivery.answers import ERROR_BYTES_MAX, Ambiguous, AnswerTooLarge, Busy, Operator, TimedOut, check

Row = dict[str, Any]


_INSERT_SETTINGS = {
    "async_insert": "0",
    "insert_deduplicate": "1",
    # A sender's odd time stamps must not get everybody's rows refused.
    "max_partitions_per_insert_block": "0",
    "wait_end_of_query": "1",
}
ALL_ROWS = (0, (1 << 32) - 1)
PATIENCE_MAX = 8.0
"""How many times the usual time an insert is given at the most."""
_LZ4 = 0x82
_ANSWER_BYTES_MAX = 64 << 20
_MISSING_FIX = "run `weir migrate`, or grant its user SELECT on system.columns"


class Exchange(HttpClientABC):  # type: ignore[misc]
    """One request to the server and its answer. ``settings`` go on its URL beside the library's own.

    ``written_rows`` is the summary's, None when the server sent none.
    """

    def __init__(self, session: aiohttp.ClientSession, settings: Mapping[str, str], timeout_s: float) -> None:
        self._session = session
        self._settings = settings
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(5.0, timeout_s))
        self.written_rows: int | None = None

    async def get(self, url: str, params: dict[str, Any], headers: dict[str, str]) -> None:
        await self._send("GET", url, params, headers, None)

    async def post_no_return(self, url: str, params: dict[str, Any], headers: dict[str, str], data: Any) -> None:
        body = await self._send("POST", url, params, headers, data)
        if body:  # Nothing answers an insert or a definition with text but something that is not ClickHouse.
            raise Ambiguous("a 200 with a body where ClickHouse sends none; is the URL ClickHouse's own?")

    async def post_return_lines(
        self, url: str, params: dict[str, Any], headers: dict[str, str], data: Any
    ) -> AsyncGenerator[bytes, None]:
        for line in (await self._send("POST", url, params, headers, data)).splitlines():
            yield line

    async def close(self) -> None:
        """The session is the owner's to close."""

    async def _send(self, method: str, url: str, params: dict[str, Any], headers: dict[str, str], data: Any) -> bytes:
        try:
            async with self._session.request(
                method,
                url,
                params={**params, **self._settings},
                headers=headers,
                data=data,
                timeout=self._timeout,
                allow_redirects=False,
            ) as answer:
                body = await _read(answer)
                check(answer.status, answer.headers.get("X-ClickHouse-Exception-Code"), body)
                self.written_rows = _written(answer.headers.get("X-ClickHouse-Summary"))
                return body
        except aiohttp.ClientConnectorCertificateError as error:
            raise Operator("the server's certificate is not valid for its name") from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Busy("cannot connect") from error
        except TimeoutError as error:
            raise TimedOut(f"no answer within {self._timeout.total:g} s") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Ambiguous(f"no whole answer ({type(error).__name__})") from error


class _Client(ChClient):  # type: ignore[misc]
    """aiochclient with our transport and each statement parsed once."""

    def __init__(self, exchange: Exchange, session: aiohttp.ClientSession, **settings: Any) -> None:
        super().__init__(session, json=orjson, **settings)
        self._http_client = exchange

    @staticmethod
    @lru_cache(maxsize=256)
    def _parse_squery(query: str) -> Any:
        return ChClient._parse_squery(query)

    @staticmethod
    @lru_cache(maxsize=256)
    def _check_insert_file_query(query: str) -> None:
        if not query.endswith("base64Decode("):  # half a statement of ours; the rest follows its data
            ChClient._check_insert_file_query(query)


class ClickHouse:
    """A ClickHouse server. Tables are the schema's, in ``database``.

    ``url`` is the HTTP interface. All methods raise a DeliveryError; ``start`` only binds resources
    and does not connect.
    """

    def __init__(
        self,
        url: str,
        *,
        user: str = "default",
        password: str = "",
        database: str = "default",
        insert_timeout_s: float = 60.0,
        query_timeout_s: float = 30.0,
    ) -> None:
        self.url = url.rstrip("/") + "/"
        self.database = database
        self._account = {"user": user, "password": password}
        self.insert_timeout_s = insert_timeout_s
        self._query_timeout_s = query_timeout_s
        self._session: aiohttp.ClientSession | None = None

    @property
    def under_way_s(self) -> float:
        """How long an insert that was not answered may go on in the server: as long as any is waited for."""
        return PATIENCE_MAX * self.insert_timeout_s

    async def start(self) -> None:
        """Open the connection pool."""
        # The server closes idle connections after 3 s (10 s later on); a request that meets the
        # closing is ambiguous, so ours go first. How many are in use is the flushers' to bound.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)

    async def close(self) -> None:
        """Close the connection pool; what is under way fails."""
        if self._session is not None:
            await self._session.close()

    async def insert(
        self, table: schema.Table, blocks: Sequence[bytes], *, token: str, patience: float = 1.0
    ) -> int | None:
        """Insert blocks, compressed Native as ``Columns.cut`` gives them.

        ``patience``: times the time an insert has.
        Returns the rows the server says it wrote, None when it did not say. Fewer than were sent means:
        count them; so may a server answer that has seen the token before.
        """
        settings = {"decompress": "1", "insert_deduplication_token": token}
        return await self._insert(_insert_text(table, self.database), "", blocks, settings, patience)

    async def insert_absent(
        self,
        table: schema.Table,
        block: bytes,
        *,
        frame: int,
        token: str,
        rows: tuple[int, int] = ALL_ROWS,
        patience: float = 1.0,
    ) -> None:
        """Insert those rows of one block that the table does not have yet. ``frame`` is the block's number.

        ``rows``: the first and the last of them to insert. The server leaves out the rows that are there.
        The block goes as text in the statement, which an embedded engine takes as well (it cannot stream
        into ``input()``), and is kept out of its query log.
        """
        literal, settings = _literal(block)
        settings |= {
            "insert_deduplication_token": token,
            "param_frame": str(frame),
            "param_first": str(rows[0]),
            "param_last": str(rows[1]),
            "max_insert_threads": "1",
        }
        await self._insert(*_insert_absent_text(table, self.database), [literal], settings, patience)

    async def insert_rows(self, table: schema.Table, rows: Sequence[Row], *, token: str) -> None:
        """Insert rows as ``read_rows`` gave them. Of the table only the names are looked at."""
        settings = {"insert_deduplication_token": token, "date_time_input_format": "best_effort"}
        text = f"INSERT INTO `{self.database}`.`{table.name}` ({_names(table)}) FORMAT JSONEachRow"
        await self._insert(text, "", [orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows], settings)

    async def read_rows(self, table: schema.Table, block: bytes, rows: Sequence[int]) -> list[Row]:
        """These rows of a block, decoded by the server: their columns by name, times as RFC 3339."""
        literal, settings = _literal(block)
        settings |= {
            "param_rows": _array(rows),
            "date_time_output_format": "iso",
            "output_format_json_quote_64bit_integers": "0",
            "output_format_json_quote_denormals": "1",
            "wait_end_of_query": "1",
        }
        exchange = self._exchange(settings, self._query_timeout_s)
        client = self._speak(exchange, self.database)
        before, after = _read_rows_text(table)
        lines = exchange.post_return_lines(
            client.url, {**client.params, "query": before}, client.headers, _body([literal], after.encode())
        )
        return [orjson.loads(line) async for line in lines]

    async def stored_rows(self, table: schema.Table, frame: int) -> set[int]:
        """The numbers of a frame's rows that the table holds."""
        found = await self._query(_stored_rows_text(table, self.database), {"frame": str(frame)})
        return {row["row"] for row in found}

    async def rows_by_frame(self, table: schema.Table, frames: Sequence[int]) -> dict[int, int]:
        """How many rows of each frame the table holds; frames without any are left out."""
        found = await self._query(_count_text(table, self.database), {"frames": _array(frames)})
        return {row["frame"]: row["rows"] for row in found}

    async def ping(self) -> None:
        """Ask for nothing; raises when the server does not answer as it should."""
        await self._query("SELECT 1 AS one", {})

    async def uptime_s(self) -> float:
        """How long the server has been running, in whole seconds."""
        rows = await self._query("SELECT uptime() AS uptime", {})
        return float(rows[0]["uptime"])

    async def version(self) -> tuple[int, ...]:
        """The server's version, (26, 9, 1, ...)."""
        rows = await self._query("SELECT version() AS version", {})
        return tuple(int(part) for part in re.findall(r"\d+", rows[0]["version"]))

    async def query(self, sql: str, params: Mapping[str, object] | None = None) -> list[Row]:
        """The rows of a SELECT, whole, as dicts; at most 64 MiB of them.

        ``sql`` names its parameters with their types, ``{project:String}``; the server puts the values
        in. A list or tuple is an Array. 64-bit integers come back as int.
        """
        return await self._query(sql, {name: _text(value) for name, value in (params or {}).items()})

    async def execute(self, sql: str) -> None:
        """Run a statement that returns no rows."""
        await self._client({}).execute(sql)

    async def create_tables(self, tables: Sequence[schema.Table], *, retention_days: int) -> None:
        """Create the database and those of ``tables`` that are not there. Alters nothing."""
        # Naming a database that is not there yet as the current one would be refused.
        await self._client({}, database="").execute(f"CREATE DATABASE IF NOT EXISTS `{self.database}`")
        version = await self.version()
        for table in tables:
            await self.execute(
                schema.create_table(table, database=self.database, version=version, retention_days=retention_days)
            )

    async def missing_columns(self, tables: Sequence[schema.Table]) -> list[str]:
        """What ``tables`` lack at the server, one sentence each for an operator; empty when all is there."""
        names = {"database": self.database, "tables": _text([table.name for table in tables])}
        columns = await self._query(_COLUMNS_TEXT, names)
        have: dict[str, dict[str, str]] = {}
        for row in columns:
            have.setdefault(row["table"], {})[row["name"]] = row["type"]
        engines = {row["name"]: row["engine_full"] for row in await self._query(_ENGINES_TEXT, names)}
        lacks = []
        for table in tables:
            if table.name not in have:
                lacks.append(f"table {self.database}.{table.name} is not there: {_MISSING_FIX}")
            else:
                lacks += _lacks(f"{self.database}.{table.name}", table, have[table.name], engines[table.name])
        return lacks

    async def _insert(
        self, text: str, after: str, blocks: Sequence[bytes], settings: Mapping[str, str], patience: float = 1.0
    ) -> int | None:
        """Send a statement with its data behind it, and what follows the data."""
        exchange = self._exchange({**_INSERT_SETTINGS, **settings}, patience * self.insert_timeout_s)
        await self._speak(exchange, self.database).insert_file(text, _body(blocks, after.encode()))
        return exchange.written_rows

    async def _query(self, sql: str, params: Mapping[str, str]) -> list[Row]:
        settings = {f"param_{name}": value for name, value in params.items()}
        settings |= {"output_format_json_quote_64bit_integers": "0", "wait_end_of_query": "1"}
        rows: list[Row] = await self._client(settings).fetch(sql, json=True)
        return rows

    def _client(self, settings: Mapping[str, str], database: str | None = None) -> _Client:
        exchange = self._exchange(settings, self._query_timeout_s)
        return self._speak(exchange, self.database if database is None else database)

    def _exchange(self, settings: Mapping[str, str], timeout_s: float) -> Exchange:
        if self._session is None:
            raise RuntimeError("ClickHouse.start() comes first")
        return Exchange(self._session, settings, timeout_s)

    def _speak(self, exchange: Exchange, database: str) -> _Client:
        return _Client(exchange, exchange._session, url=self.url, database=database, **self._account)


async def _body(blocks: Sequence[bytes], after: bytes) -> AsyncGenerator[bytes, None]:
    """The blocks one after the other: ClickHouse reads several as one body, nothing is joined here."""
    for block in blocks:
        yield block
    if after:
        yield after


def _literal(block: bytes) -> tuple[bytes, dict[str, str]]:
    """A block as text in a statement, and the settings such a statement needs."""
    # The server puts a line break between the URL's part of a statement and the body's.
    literal = b"'" + base64.b64encode(_uncompressed(block)) + b"'"
    return literal, {
        "log_queries": "0",
        "log_queries_cut_to_length": "1000",
        "max_query_size": str(len(literal) + (1 << 20)),
    }


def _uncompressed(block: bytes) -> bytes:
    """A block without ClickHouse's framing: checksum 16, method 1, sizes 4 (with these nine) and 4, data."""
    parts, at = [], 0
    while at < len(block):
        method, size, plain = struct.unpack_from("<BII", block, at + 16)
        data = block[at + 25 : at + 16 + size]
        parts.append(lz4.block.decompress(data, uncompressed_size=plain) if method == _LZ4 else data)
        at += 16 + size
    return b"".join(parts)


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    """The answer's body, bounded; of an error's only the start."""
    limit = _ANSWER_BYTES_MAX if answer.status == 200 else ERROR_BYTES_MAX
    parts, length = [], 0
    async for part in answer.content.iter_any():
        parts.append(part)
        length += len(part)
        if length > limit:
            if answer.status == 200:
                raise AnswerTooLarge(f"the answer is over {limit >> 20} MiB; ask for less at once")
            answer.close()
            break
    return b"".join(parts)


def _written(summary: str | None) -> int | None:
    """None also where an embedded engine says that it does not know what became of the rows it parsed."""
    try:
        said = orjson.loads(summary or "")
        return None if "written_rows_only_parsed" in said else int(said["written_rows"])
    except (ValueError, KeyError, TypeError):
        return None


def _array(numbers: Sequence[int]) -> str:
    return f"[{','.join(map(str, numbers))}]"


def _text(value: object) -> str:
    """A parameter's value as ClickHouse reads it from a URL: escaped as in TSV; quoted inside an array."""
    if isinstance(value, list | tuple):
        return f"[{','.join(schema.quote(item) if isinstance(item, str) else str(item) for item in value)}]"
    if isinstance(value, bool):
        return str(int(value))
    text = str(value)
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\0", "\\0")


@lru_cache(maxsize=256)
def _insert_text(table: schema.Table, database: str) -> str:
    return f"INSERT INTO `{database}`.`{table.name}` ({_names(table)}) FORMAT Native"


@lru_cache(maxsize=256)
def _insert_absent_text(table: schema.Table, database: str) -> tuple[str, str]:
    """What comes before and after the block in base64."""
    frame, row = identity(table)
    target = f"`{database}`.`{table.name}`"
    stored = f"SELECT `{row}` FROM {target} WHERE `{frame}` = {{frame:UInt64}}"  # noqa: S608
    into = f"INSERT INTO {target} ({_names(table)}) SELECT {_names(table)} FROM {_decoded(table)}"  # noqa: S608
    return into, f")) WHERE `{row}` BETWEEN {{first:UInt32}} AND {{last:UInt32}} AND `{row}` NOT IN ({stored})"


@lru_cache(maxsize=256)
def _read_rows_text(table: schema.Table) -> tuple[str, str]:
    """The same for reading rows of it."""
    _, row = identity(table)
    after = f")) WHERE `{row}` IN {{rows:Array(UInt32)}} ORDER BY `{row}` FORMAT JSONEachRow"
    return f"SELECT {_names(table)} FROM {_decoded(table)}", after  # noqa: S608


def _decoded(table: schema.Table) -> str:
    """A block that follows in base64, as a table. Names are the schema's, never a sender's."""
    layout = schema.quote(", ".join(f"`{name}` {type_}" for name, type_ in table.layout))
    return f"format(Native, {layout}, base64Decode("


@lru_cache(maxsize=256)
def _stored_rows_text(table: schema.Table, database: str) -> str:
    frame, row = identity(table)
    target = f"`{database}`.`{table.name}`"
    return f"SELECT DISTINCT `{row}` AS row FROM {target} WHERE `{frame}` = {{frame:UInt64}}"  # noqa: S608


@lru_cache(maxsize=256)
def _count_text(table: schema.Table, database: str) -> str:
    frame, _ = identity(table)
    return (
        f"SELECT `{frame}` AS frame, count() AS rows FROM `{database}`.`{table.name}` "  # noqa: S608 - as above
        f"WHERE `{frame}` IN {{frames:Array(UInt64)}} GROUP BY `{frame}`"
    )


def _names(table: schema.Table) -> str:
    return ", ".join(f"`{column.name}`" for column in table.columns)


def identity(table: schema.Table) -> tuple[str, str]:
    """The names of the two columns that identify a row: its frame, and its number in it."""
    by_source = {column.source: column.name for column in table.columns}
    return by_source["frame"], by_source["row"]


_COLUMNS_TEXT = """
    SELECT table, name, type FROM system.columns
    WHERE database = {database:String} AND table IN {tables:Array(String)}
"""
_ENGINES_TEXT = """
    SELECT name, engine_full FROM system.tables
    WHERE database = {database:String} AND name IN {tables:Array(String)}
"""


def _lacks(where: str, table: schema.Table, have: Mapping[str, str], engine: str) -> list[str]:
    lacks = []
    for column in table.columns:
        found = have.get(column.name)
        if found is None:
            lacks.append(f"{where} has no column {column.name} {column.type} ({column.meaning}): run `weir migrate`")
        elif not _same_type(found, column.type):
            lacks.append(
                f"{where}.{column.name} is {found} and has to be {column.type}: alter it, or give the gateway"
                " another database"
            )
    if engine.startswith("MergeTree") and not re.search(r"non_replicated_deduplication_window = [1-9]", engine):
        lacks.append(
            f"{where} forgets insert tokens, so rows could be stored twice:"
            f" ALTER TABLE {where} MODIFY SETTING non_replicated_deduplication_window = 10000"
        )
    return lacks


def _same_type(found: str, wanted: str) -> bool:
    """Equal, or the same time with a zone: that changes how it is shown, not what is stored."""
    return found == wanted or re.sub(r"^(DateTime64\(\d), '[^']+'\)$", r"\1)", found) == wanted
