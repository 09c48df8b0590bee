"""chDB, the ClickHouse engine as a library: one process, one database directory, many sessions.

Every statement gets a session of its own (a connection; opening one takes a fraction of a
millisecond), so settings, parameters and the current database never leak from one to the next.
All of this blocks and belongs in a worker thread.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from chdb.state import sqlitelike

RESULT_BYTES_MAX = 1 << 30
"""A larger result is refused by the engine (396): results are held in memory until they are sent."""
CODE = re.compile(r"Code: (\d+)")
SETTING_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
# Restarting with a broken part set aside beats not restarting: the gateway still holds what it has not confirmed.
CONFIGURATION = """\
<clickhouse>
    <!-- Written by the gateway at each start. One small machine, shared with the gateway itself. -->
    <max_server_memory_usage_to_ram_ratio>0.5</max_server_memory_usage_to_ram_ratio>
    <mark_cache_size>134217728</mark_cache_size>
    <index_mark_cache_size>67108864</index_mark_cache_size>
    <primary_index_cache_size>134217728</primary_index_cache_size>
    <text_index_tokens_cache_size>67108864</text_index_tokens_cache_size>
    <text_index_header_cache_size>67108864</text_index_header_cache_size>
    <text_index_postings_cache_size>134217728</text_index_postings_cache_size>
    <vector_similarity_index_cache_size>16777216</vector_similarity_index_cache_size>
    <parquet_metadata_cache_size>16777216</parquet_metadata_cache_size>
    <iceberg_metadata_files_cache_size>16777216</iceberg_metadata_files_cache_size>
    <max_thread_pool_size>1000</max_thread_pool_size>
    <max_thread_pool_free_size>64</max_thread_pool_free_size>
</clickhouse>
"""
SESSION_DEFAULTS: Mapping[str, str] = {
    # A server's defaults, where the library's differ.
    "implicit_select": "0",
    "allow_introspection_functions": "0",
    "max_result_bytes": str(RESULT_BYTES_MAX),
}


class EngineError(Exception):
    """What the engine says about a statement: ClickHouse's error ``code`` and its text."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def engine_error(error: BaseException) -> EngineError:
    """The engine's error without the library's words around it."""
    text = str(error)
    match = CODE.search(text)
    if match is None:
        return server_error(1001, text, "STD_EXCEPTION")
    return EngineError(int(match.group(1)), text[match.start() :])


def server_error(code: int, message: str, name: str) -> EngineError:
    """An error of our own, worded as ClickHouse words its."""
    return EngineError(code, f"Code: {code}. DB::Exception: {message}. ({name})")


@dataclass(frozen=True)
class Result:
    """What a statement came to; counts as in ClickHouse's X-ClickHouse-Summary.

    ``streamed``: an insert whose data came in pieces. The engine swallows what goes wrong behind its parsing
    (a constraint, a full disk), so that ``written_rows`` are the rows it parsed, stored or not.
    """

    body: bytes = b""
    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    result_rows: int = 0
    result_bytes: int = 0
    elapsed_ns: int = 0
    streamed: bool = False


class Engine:
    """The database in ``directory``, open as long as this object is."""

    def __init__(self, directory: Path) -> None:
        # The engine reads config.xml from the working directory; the caller has changed to ``directory``.
        (directory / "config.xml").write_text(CONFIGURATION)
        self._path = str(directory / "data")
        # The engine shuts down with its last session; this one keeps it up.
        self._anchor = sqlitelike.connect(self._path)
        version, timezone = self._anchor.query("SELECT version(), timezone()", "TSV").bytes().decode().split()
        self.version: str = version
        self.timezone: str = timezone

    def session(self, database: str, settings: Mapping[str, str], parameters: Mapping[str, str]) -> Session:
        """A session with these settings; raises EngineError for an unknown database or setting."""
        session = Session(sqlitelike.connect(self._path))
        try:
            session.prepare(database, settings, parameters)
        except BaseException:
            session.close()
            raise
        return session

    def close(self) -> None:
        """Flush and shut the engine down."""
        self._anchor.close()


class Session:
    """One statement's connection."""

    def __init__(self, connection: sqlitelike.Connection) -> None:
        self._connection = connection
        self._inserter: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent; an insert that was not finished is cancelled."""
        if self._inserter is not None:
            inserter, self._inserter = self._inserter, None
            with contextlib.suppress(RuntimeError):
                inserter.cancel()
        self._connection.close()

    def prepare(self, database: str, settings: Mapping[str, str], parameters: Mapping[str, str]) -> None:
        """Enter the database and apply settings and query parameters."""
        assignments = [f"{name} = {quoted(value)}" for name, value in {**SESSION_DEFAULTS, **settings}.items()]
        for name in (*settings, *parameters):
            if not SETTING_NAME.fullmatch(name):
                raise server_error(115, f"Unknown setting {quoted(name)}", "UNKNOWN_SETTING")
        assignments += [f"param_{name} = {quoted(value)}" for name, value in parameters.items()]
        if database and database != "default":
            self._run("USE " + identifier(database), "Null")
        self._run("SET " + ", ".join(assignments), "Null")

    def query(self, sql: str, default_format: str) -> Result:
        """Run a statement that needs no data."""
        result = self._run(sql, default_format)
        return Result(
            body=result.bytes(),
            read_rows=result.storage_rows_read(),
            read_bytes=result.storage_bytes_read(),
            written_rows=result.rows_written(),
            written_bytes=result.bytes_written(),
            result_rows=result.rows_read(),
            result_bytes=result.bytes_read(),
            elapsed_ns=int(result.elapsed() * 1e9),
        )

    def begin_insert(self, sql: str, data_format: str) -> None:
        """Start an INSERT whose data ``append`` brings, in ``data_format``."""
        try:
            self._inserter = self._connection.send_insert(sql, data_format)
        except RuntimeError as error:
            raise engine_error(error) from error

    def append(self, chunk: bytes) -> None:
        """Hand over a piece of the data, cut anywhere."""
        try:
            self._inserter.append(chunk)
        except RuntimeError:
            # The library only says that it failed; finishing says why.
            self.finish_insert()
            raise server_error(1001, "the insert was refused without a reason", "STD_EXCEPTION") from None

    def finish_insert(self) -> Result:
        """Commit; raises EngineError, and then nothing that follows the last committed part was stored."""
        started_ns = time.monotonic_ns()
        inserter, self._inserter = self._inserter, None
        try:
            result = inserter.finish()
        except RuntimeError as error:
            raise engine_error(error) from error
        rows, size = result.rows_written, result.bytes_written
        elapsed_ns = int(result.elapsed * 1e9) or time.monotonic_ns() - started_ns
        return Result(
            read_rows=rows,
            read_bytes=size,
            written_rows=rows,
            written_bytes=size,
            result_rows=rows,
            result_bytes=size,
            streamed=True,
            elapsed_ns=elapsed_ns,
        )

    def _run(self, sql: str, default_format: str) -> Any:
        try:
            return self._connection.query(sql, default_format)
        except RuntimeError as error:
            raise engine_error(error) from error


def quoted(value: str) -> str:
    """A ClickHouse string literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def identifier(name: str) -> str:
    """A quoted ClickHouse identifier."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"
