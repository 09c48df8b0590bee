"""A dead letter gives back the very row, and one of a log is OTLP that any receiver takes."""

from __future__ import annotations

import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gateway._native import Columns, EntryPlan, OtlpPlan, entries, otlp_json
from gateway.delivery.answers import Poison
from gateway.delivery.block import Block
from gateway.delivery.clickhouse import ClickHouse
from gateway.delivery.deadletter import PAGE_BYTES, DeadLetters, DeadLettersBusy, DeadLettersFull
from gateway.delivery.letter import Letter, letter_of, line, row_of
from gateway.delivery.replay import Replay
from gateway.schema import OTEL_LOGS
from tests.delivery.rig import Engine
from tests.delivery.things import NOON_NS
from tests.reference.native_block import read_block

WALL = 1_790_000_000.25
REFUSED = Poison("ClickHouse error 6 CANNOT_PARSE_TEXT", code=6, detail="it says 'a row'")
HOSTILE = "'\"\\\0\n\u2028 é 💧 </script> %41 `"


def logs(count: int, frame: int) -> bytes:
    """A block of logs, some of them odd."""
    rules = [
        ("service", "text", "ServiceName", ""),
        ("body", "text", "Body", ""),
        ("level", "level", "SeverityText", ""),
    ]
    feeds = {column.name: column.source for column in OTEL_LOGS.columns if column.source in ("time", "severity_number")}
    plan = EntryPlan([(OTEL_LOGS.layout, rules, feeds)], unknown="LogAttributes")
    columns = Columns(OTEL_LOGS.layout)
    records = [{"service": f"s{n}", "body": HOSTILE + str(n), "level": "warn", HOSTILE: HOSTILE} for n in range(count)]
    entries(json.dumps(records).encode(), plan, [columns], constants={}, arrival_ns=NOON_NS + 1)
    names = [name for name, _ in OTEL_LOGS.layout]
    return columns.cut(frame=frame, frame_column=names.index("SpoolFrame"), row_column=names.index("SpoolRow"))


@pytest_asyncio.fixture
async def clickhouse(engine: Engine, tmp_path: Path) -> AsyncIterator[ClickHouse]:
    client = ClickHouse(engine.url, database=f"letters_{tmp_path.name}".replace("-", "_"))
    await client.start()
    await client.create_tables([OTEL_LOGS], retention_days=0)
    yield client
    await client.execute(f"DROP DATABASE `{client.database}`")
    await client.close()


async def test_a_log_comes_back_as_it_was_and_is_otlp(clickhouse: ClickHouse, tmp_path: Path) -> None:
    data = logs(5, 77)
    block = Block(OTEL_LOGS.name, "p", 77, 5, data, 0.0)
    rows = await clickhouse.read_rows(OTEL_LOGS, data, [1, 3])
    found = [letter_of(row, number, block, REFUSED, WALL) for number, row in zip((1, 3), rows, strict=True)]
    for row, letter in zip(rows, found, strict=True):
        assert row_of(json.loads(line(letter))) == row
        assert letter["reason"] == {"code": 6, "error": str(REFUSED), "text": "it says 'a row'"}
        assert letter["time"] == "2026-09-21T14:13:20.250Z"
        assert posted(letter) == [(row["Body"], row["ServiceName"], "warn")]

    slot = tmp_path / "spool" / "slot-00"
    slot.mkdir(parents=True)
    DeadLetters(slot, bytes_max=1 << 20).write(OTEL_LOGS.name, 77, found)
    (came,) = await Replay(tmp_path / "spool", clickhouse).run()
    assert (came.stored, came.left) == (2, 0)
    await clickhouse.insert_absent(OTEL_LOGS, data, frame=77, token="the rest")
    columns = ", ".join(f"`{name}`" for name, _ in OTEL_LOGS.layout)
    stored = await clickhouse.query(
        f"SELECT {columns} FROM `{clickhouse.database}`.otel_logs"
        " ORDER BY SpoolRow SETTINGS date_time_output_format='iso'"
    )
    assert stored == await clickhouse.read_rows(OTEL_LOGS, data, range(5))


def posted(letter: Letter) -> list[tuple[Any, ...]]:
    """(body, service, level) of the rows that its record comes to where OTLP is taken."""
    feeds = {column.name: column.source for column in OTEL_LOGS.columns if column.source not in ("", "frame", "row")}
    columns = Columns(OTEL_LOGS.layout)
    constants = {"project_id": "p", "dialect": "otlp"}
    body = json.dumps(letter["record"]).encode()
    decoded = otlp_json(body, OtlpPlan([(OTEL_LOGS.layout, feeds)]), [columns], constants=constants, arrival_ns=NOON_NS)
    assert (decoded.rows, dict(decoded.rejected)) == (1, {})
    (row,) = read_block(columns.native()).table()
    return [(row["Body"], row["ServiceName"], row["SeverityText"])]


def letter(row: int, size: int = 10) -> Letter:
    return {"row": row, "record": {"Body": "x" * size}}


def test_files_are_private_whole_and_taken_back(tmp_path: Path) -> None:
    found = DeadLetters(tmp_path, bytes_max=1 << 20)
    found.write("things", 7, [letter(1), letter(2)])
    found.write("others", 8, [letter(1)])
    assert [(file.table, file.frame, len(file.letters())) for file in found.files()] == [
        ("others", 8, 1),
        ("things", 7, 2),
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "deadletters").iterdir()} == {0o600}
    found.withdraw("things", 7)
    found.withdraw("things", 7)
    assert [file.table for file in found.files()] == ["others"]


def test_the_budget_counts_pages(tmp_path: Path) -> None:
    found = DeadLetters(tmp_path, bytes_max=3 * PAGE_BYTES)
    found.write("things", 1, [letter(1)])
    found.write("things", 2, [letter(1, size=PAGE_BYTES)])
    with pytest.raises(DeadLettersFull):
        found.write("things", 3, [letter(1)])
    assert len(found.files()) == 2
    found.withdraw("things", 1)
    found.write("things", 3, [letter(1)])


def test_one_at_a_time_changes_them(tmp_path: Path) -> None:
    found = DeadLetters(tmp_path, bytes_max=1 << 20)
    with found.locked(), pytest.raises(DeadLettersBusy):
        DeadLetters(tmp_path, bytes_max=1 << 20).write("things", 1, [letter(1)])
    found.write("things", 1, [letter(1)])
