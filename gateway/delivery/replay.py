"""Dead letters sent again: each row that the table takes now is stored once, whatever happens.

A row keeps its identity, and only rows that the table does not have are inserted. The token of an insert is
made of the very rows in it, so one whose outcome nobody knows and the next try of the same rows are one.
Replaying twice, or after a crash, or beside a gateway that runs, changes nothing. The file of a frame is
locked while it is replayed, and rewritten when its rows are there; what is refused again stays.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.delivery.answers import Ambiguous, Busy, DeliveryError, Operator, Poison
from gateway.delivery.clickhouse import ClickHouse, Row
from gateway.delivery.deadletter import FOLDER, DeadLetters, DeadLettersBusy, LetterFile
from gateway.delivery.letter import Letter, row_of
from gateway.delivery.search import Search
from gateway.schema import Column, Table

FRAME, ROW = "SpoolFrame", "SpoolRow"
"""A row's identity, in every table."""
TRIES_MAX = 5
PAUSE_S = 0.2
"""Of one insert whose outcome is not known."""


@dataclass
class Replayed:
    """What a replay came to for one table. ``reasons``: why letters stayed, each once."""

    table: str
    found: int = 0
    stored: int = 0
    there_already: int = 0
    left: int = 0
    reasons: tuple[str, ...] = ()

    def stay(self, letters: int, *reasons: object) -> None:
        """So many letters stay where they are."""
        self.left += letters
        if letters:
            self.reasons = tuple(dict.fromkeys((*self.reasons, *map(str, reasons))))


class Replay:
    """A replay of all slots below ``spool``, a data directory's spool; of one ``table`` where it is named.

    Without a ``clickhouse`` there is only ``look``. ``shown`` is told how many files are done, and of how many.
    """

    def __init__(
        self,
        spool: Path,
        clickhouse: ClickHouse | None = None,
        *,
        table: str = "",
        shown: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        self._spool = spool
        self._shown = shown
        self._only = table
        self._given = clickhouse
        self._tables: dict[str, Replayed] = {}

    @property
    def _clickhouse(self) -> ClickHouse:
        if self._given is None:
            raise LookupError("there is no ClickHouse to send dead letters to")
        return self._given

    def look(self) -> list[Replayed]:
        """How many letters there are, and nothing else."""
        for _, file in self._files():
            came = self._of(file)
            letters = self._letters(file, came)
            came.found += len(letters)
            came.stay(len(letters), *(letter["reason"]["error"] for letter in letters))
        return list(self._tables.values())

    async def run(self) -> list[Replayed]:
        """Send them. Raises Busy when the server is away."""
        files = list(self._files())
        for done, (dead_letters, file) in enumerate(files):
            self._shown(done, len(files))
            came = self._of(file)
            try:
                with dead_letters.locked():
                    await self._replay(dead_letters, file, came)
            except Busy:
                raise
            except (DeadLettersBusy, DeliveryError) as error:
                came.stay(max(1, len(self._letters(file, came))), error)
        if files:
            self._shown(len(files), len(files))
        return list(self._tables.values())

    def _files(self) -> Iterator[tuple[DeadLetters, LetterFile]]:
        for folder in sorted(self._spool.glob(f"slot-*/{FOLDER}")):
            dead_letters = DeadLetters(folder.parent, bytes_max=0)
            yield from ((dead_letters, file) for file in dead_letters.files() if self._only in ("", file.table))

    def _of(self, file: LetterFile) -> Replayed:
        return self._tables.setdefault(file.table, Replayed(file.table))

    def _letters(self, file: LetterFile, came: Replayed) -> list[Letter]:
        try:
            return file.letters()
        except ValueError:
            came.stay(1, f"{file.path} is damaged: each line has to be one JSON object")
            return []

    async def _replay(self, dead_letters: DeadLetters, file: LetterFile, came: Replayed) -> None:
        letters = self._letters(file, came)
        rows = {letter["row"]: row_of(letter) for letter in letters if "record" in letter}
        came.found += len(letters)
        came.stay(len(letters) - len(rows), "it is a block that cannot be decoded")
        if not rows:
            return
        table = _table(file.table, next(iter(rows.values())))
        there = await self._clickhouse.stored_rows(table, file.frame)
        absent = [row for number, row in sorted(rows.items()) if number not in there]
        reasons = await self._send(table, file.frame, absent)
        now = await self._clickhouse.stored_rows(table, file.frame)
        came.there_already += len(there & rows.keys())
        came.stored += len((now - there) & rows.keys())
        kept = [letter for letter in letters if letter["row"] not in now]
        if len(kept) < len(letters):
            dead_letters.keep(file, kept)
        came.stay(len(rows.keys() - now), *reasons)

    async def _send(self, table: Table, frame: int, rows: Sequence[Row]) -> list[DeliveryError]:
        """Insert rows; why some were refused."""
        search = Search(len(rows), refused=False)
        reasons: list[DeliveryError] = []
        while (run := search.next()) is not None:
            try:
                await self._insert(table, frame, rows[run.start : run.stop])
            except Poison as error:
                search.refused()
                reasons.append(error)
            else:
                search.taken()
        return reasons

    async def _insert(self, table: Table, frame: int, rows: Sequence[Row]) -> None:
        """Insert rows, and see that they are there. Raises Poison when the table takes them not all."""
        lost = 0
        for _ in range(TRIES_MAX):
            there = await self._clickhouse.stored_rows(table, frame)
            absent = [row for row in rows if row[ROW] not in there]
            if not absent:
                return
            try:
                await self._clickhouse.insert_rows(table, absent, token=_token(frame, absent, lost))
            except Ambiguous:
                await asyncio.sleep(PAUSE_S)
            else:
                lost += 1  # so far as we know; another token, should the server know this one and have lost the rows
        if not (await self._clickhouse.stored_rows(table, frame)).issuperset(row[ROW] for row in rows):
            raise Ambiguous(f"nobody knows what became of an insert into {table.name}; replay again later")


def _token(frame: int, rows: Sequence[Row], lost: int) -> str:
    numbers = ",".join(str(row[ROW]) for row in rows)
    return f"replay-{frame:016x}-{hashlib.sha256(numbers.encode()).hexdigest()[:32]}-{lost}"


def _table(name: str, row: Row) -> Table:
    """What is needed of a table to insert rows by name: also one that is known at run time alone."""
    sources = {FRAME: "frame", ROW: "row"}
    if not sources.keys() <= row.keys() or any(re.search(r"[`\\]", column) for column in row):
        raise Operator("its columns are not those of a table of ours")
    columns = tuple(Column(column, "", "", sources.get(column, "")) for column in row)
    return Table(name, columns, order_by="", partition_by="", ttl_column="")
