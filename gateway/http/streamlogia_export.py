"""Streamlogia's exports: many logs as NDJSON or CSV, page by page, so that no more than a page is held.

Before the first byte is sent the first page is here: what is wrong with a request is told in an answer. Later
trouble cuts the connection (``parts.py``), because half of an export must not be taken for the whole.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

import msgspec

from gateway.errors import GatewayError
from gateway.http.reads import TooMuch, asked
from gateway.reading.logs import LIMIT_MAX
from gateway.reading.streamlogia import Entry, Place, StreamlogiaReader, Wanted

ROWS_MAX = 100_000
AT_ONCE_MAX = 4
SECONDS_MAX = 300
SLOW = "The query takes too long: ask for less time between from and to"

FORMATS = {"ndjson": "ndjson", "jsonl": "ndjson", "json": "ndjson", "csv": "csv"}
MEDIA_TYPES = {"ndjson": "application/x-ndjson", "csv": "text/csv; charset=utf-8"}

_RETRY_AFTER_S = 1
_COLUMNS = ("id", "timestamp", "level", "source", "message", "projectId", "sourceType", "tags", "meta")
# What a spreadsheet takes for the beginning of a formula, full-width forms included (OWASP, CSV Injection).
_FORMULA = re.compile(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_JSON = msgspec.json.Encoder()


class Exports:
    """The exports that are under way, a few at once. ``monotonic_ns`` must not step back."""

    def __init__(self, reader: StreamlogiaReader, monotonic_ns: Callable[[], int]) -> None:
        self._reader = reader
        self._monotonic_ns = monotonic_ns
        self.running = 0

    async def begin(self, wanted: Wanted, after: Place | None, rows_max: int, kind: str) -> AsyncGenerator[bytes, None]:
        """The parts of an export of at most so many rows, newest first. Raises what ``asked`` raises."""
        if self.running >= AT_ONCE_MAX:
            raise GatewayError(
                "Too many exports at once", log="reading: too many exports at once", retry_after_s=_RETRY_AFTER_S
            )
        parts = self._parts(wanted, after, rows_max, kind)
        await anext(parts)
        return parts

    async def _parts(
        self, wanted: Wanted, after: Place | None, rows_max: int, kind: str
    ) -> AsyncGenerator[bytes, None]:
        lines = _csv_lines if kind == "csv" else _JSON.encode_lines
        ends_ns = self._monotonic_ns() + SECONDS_MAX * 10**9
        self.running += 1
        try:
            pages = self._pages(wanted, after, rows_max)
            first = await anext(pages)
            yield b""  # so far nothing went wrong
            if kind == "csv":
                yield _csv([_COLUMNS])
            yield lines(first)
            async for page in pages:
                if self._monotonic_ns() > ends_ns:
                    raise GatewayError(SLOW, log=f"reading: an export takes over {SECONDS_MAX} s")
                yield lines(page)
        finally:
            self.running -= 1

    async def _pages(self, wanted: Wanted, after: Place | None, rows_max: int) -> AsyncGenerator[Sequence[Entry], None]:
        """At least one page, which may be empty. One that is too large is asked for in parts."""
        size, left, place = LIMIT_MAX, rows_max, after
        while left:
            try:
                entries, place = await asked(self._reader.page(wanted, min(size, left), place), SLOW)
            except TooMuch:
                if size == 1:
                    raise
                size = max(1, size // 8)
                continue
            yield entries
            left -= len(entries)
            if place is None:
                return


def _csv_lines(entries: Iterable[Entry]) -> bytes:
    return _csv(
        (
            *(entry.id, entry.timestamp, entry.level, entry.source, entry.message, entry.pid, entry.source_type),
            *(",".join(entry.tags), _JSON.encode(entry.meta).decode() if entry.meta else ""),
        )
        for entry in entries
    )


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    """As RFC 4180 has it. What a spreadsheet would compute gets an apostrophe in front, and is text."""
    written = io.StringIO()
    csv.writer(written).writerows([f"'{cell}" if _FORMULA.match(cell) else cell for cell in row] for row in rows)
    return written.getvalue().encode()
