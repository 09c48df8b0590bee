"""The client: what is asked of a server, and what its answers mean."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiochclient import ChClient

from gateway import schema
from gateway._native import Columns, EntryPlan, entries
from gateway.delivery.answers import CODES, Ambiguous, Busy, DeliveryError, Operator, Poison
from gateway.delivery.clickhouse import ClickHouse
from tests.delivery.rig import Engine, answered
from tests.delivery.things import NOON_NS, THINGS, block, numbered
from tests.support.proxy import Fault, Proxy


@pytest_asyncio.fixture
async def clickhouse(engine: Engine, tmp_path: Path) -> AsyncIterator[ClickHouse]:
    client = ClickHouse(engine.url, database=f"client_{tmp_path.name}".replace("-", "_"))
    await client.start()
    await client.create_tables([THINGS], retention_days=0)
    yield client
    await client.execute(f"DROP DATABASE `{client.database}`")
    await client.close()


@pytest_asyncio.fixture
async def proxy(engine: Engine) -> AsyncIterator[Proxy]:
    between = Proxy(int(engine.url.rsplit(":", 1)[1]))
    await between.start()
    yield between
    await between.stop()


async def test_our_names_of_errors_are_the_engines(clickhouse: ClickHouse) -> None:
    rows = await clickhouse.query(
        "SELECT code, errorCodeToName(code) AS name FROM (SELECT arrayJoin({codes:Array(Int32)}) AS code)",
        {"codes": list(CODES)},
    )
    assert {row["code"]: row["name"] for row in rows} == {code: name for code, (name, _) in CODES.items()}


async def test_parameters_are_put_in_by_the_server(clickhouse: ClickHouse) -> None:
    for text in ["plain", "a'b", 'a"b', "a\\b", "a\nb", "a\tb", "a\0b", "ünï", "{x}", "", "%41", "\\'", "'); DROP"]:
        rows = await clickhouse.query(
            "SELECT {text:String} AS text, {texts:Array(String)} AS texts, {number:UInt64} AS number,"
            " {yes:Bool} AS yes",
            {"text": text, "texts": [text, text], "number": 2**64 - 1, "yes": True},
        )
        assert rows == [{"text": text, "texts": [text, text], "number": 2**64 - 1, "yes": True}]


async def test_a_server_is_asked_for_its_version(clickhouse: ClickHouse) -> None:
    await clickhouse.ping()
    assert await clickhouse.version() >= (23, 1)


async def test_tables_are_created_once_and_lack_nothing(clickhouse: ClickHouse) -> None:
    for _ in range(2):
        await clickhouse.create_tables(schema.TABLES, retention_days=3650)
    assert await clickhouse.missing_columns([*schema.TABLES, THINGS]) == []


async def test_what_is_missing_is_said_in_words(clickhouse: ClickHouse) -> None:
    await clickhouse.execute(
        f"CREATE TABLE `{clickhouse.database}`.`error_events` (Timestamp DateTime64(9, 'UTC'), Type String,"
        " ProjectId LowCardinality(String)) ENGINE = MergeTree ORDER BY Timestamp"
    )
    said = await clickhouse.missing_columns([schema.OTEL_LOGS, schema.ERROR_EVENTS])
    where = clickhouse.database
    assert f"table {where}.otel_logs is not there" in said[0]
    assert any("error_events has no column EventId String" in line and "weir migrate" in line for line in said)
    assert any("error_events.Type is String and has to be LowCardinality(String)" in line for line in said)
    assert any("non_replicated_deduplication_window" in line for line in said)
    assert not any("Timestamp" in line or "ProjectId" in line for line in said), "a time zone is no difference"


async def test_a_token_counts_once(clickhouse: ClickHouse) -> None:
    blocks = [block(numbered(range(start, start + 50), days=3), frame) for frame, start in ((7, 0), (2**64 - 1, 50))]
    assert await clickhouse.insert(THINGS, blocks, token="one") is None, "the embedded engine does not know"
    await clickhouse.insert(THINGS, blocks, token="one")
    assert await clickhouse.rows_by_frame(THINGS, [7, 2**64 - 1, 8]) == {7: 50, 2**64 - 1: 50}


async def test_rows_over_hundreds_of_days_are_one_insert(clickhouse: ClickHouse) -> None:
    await clickhouse.insert(THINGS, [block(numbered(range(150), days=150), 1)], token="days")
    assert await clickhouse.rows_by_frame(THINGS, [1]) == {1: 150}


async def test_of_a_block_only_absent_rows_are_inserted(clickhouse: ClickHouse) -> None:
    some = numbered(range(1000), days=2)
    await clickhouse.insert(THINGS, [block(some[:300], 9)], token="part")
    for token in ("rest", "rest", "again"):
        await clickhouse.insert_absent(THINGS, block(some, 9), frame=9, token=token)
    rows = await clickhouse.query(f"SELECT SpoolRow AS r FROM `{clickhouse.database}`.things ORDER BY r")
    assert [row["r"] for row in rows] == list(range(1000))


async def test_maps_and_low_cardinality_survive_that_way_too(clickhouse: ClickHouse) -> None:
    table = schema.OTEL_LOGS
    await clickhouse.create_tables([table], retention_days=0)
    rules = [("service", "text", "ServiceName", ""), ("body", "text", "Body", "")]
    plan = EntryPlan([(table.layout, rules, {"Timestamp": "time"})], unknown="LogAttributes")
    columns = Columns(table.layout)
    records = [{"service": f"s{n % 3}", "body": f"b{n}", "a": "'\\\0", f"k{n % 7}": str(n)} for n in range(500)]
    entries(json.dumps(records).encode(), plan, [columns], constants={}, arrival_ns=NOON_NS)
    layout = [name for name, _ in table.layout]
    data = columns.cut(frame=3, frame_column=layout.index("SpoolFrame"), row_column=layout.index("SpoolRow"))
    await clickhouse.insert_absent(table, data, frame=3, token="absent")
    rows = await clickhouse.query(
        f"SELECT ServiceName AS service, Body AS body, LogAttributes AS a FROM `{clickhouse.database}`.otel_logs"
        " ORDER BY SpoolRow"
    )
    assert rows == [{"service": record.pop("service"), "body": record.pop("body"), "a": record} for record in records]


async def test_a_damaged_block_is_poison_and_its_rows_are_not_quoted(clickhouse: ClickHouse) -> None:
    data = bytearray(block(numbered(range(1000)), 1))
    data[-1] ^= 0xFF
    with pytest.raises(Poison) as caught:
        await clickhouse.insert(THINGS, [bytes(data)], token="t")
    assert str(caught.value) == "ClickHouse error 40 CHECKSUM_DOESNT_MATCH"


async def test_an_absent_table_is_an_operators(clickhouse: ClickHouse) -> None:
    await clickhouse.execute(f"DROP TABLE `{clickhouse.database}`.things SYNC")
    with pytest.raises(Operator, match="UNKNOWN_TABLE"):
        await clickhouse.insert(THINGS, [block(numbered(range(3)), 1)], token="t")


async def test_an_absent_server_is_busy() -> None:
    client = ClickHouse("http://127.0.0.1:9")
    await client.start()
    with pytest.raises(Busy, match="cannot connect"):
        await client.ping()
    await client.close()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("swallow"), Ambiguous),
        (answered(500, 252, "Too many parts (600)"), Busy),
        (answered(500, 252, "Too many partitions for single INSERT block"), Poison),
        (answered(500, 1234), Operator),
        (answered(500, 0), Ambiguous),
        (answered(200, 0, "Code: 241. DB::Exception: Memory limit"), Busy),
        (answered(200, 0, '{"one":1}\n__exception__\r\nCode: 209. DB::Exception: x\n'), Ambiguous),
    ],
    ids=str,
)
async def test_every_answer_means_something(proxy: Proxy, fault: Fault, error: type[DeliveryError]) -> None:
    client = ClickHouse(proxy.url)
    await client.start()
    proxy.plan.append(fault)
    with pytest.raises(error):
        await client.ping()
    await client.ping()
    await client.close()


async def test_keys_are_in_no_error(proxy: Proxy) -> None:
    client = ClickHouse(proxy.url, user="weir", password="hunter2-canary")
    await client.start()
    for fault in (answered(403, 516, "Code: 516. Authentication failed: password is incorrect"), Fault("swallow")):
        proxy.plan.append(fault)
        with pytest.raises(DeliveryError) as caught:
            await client.ping()
        assert "canary" not in repr(caught.value)
    await client.close()


async def test_a_statement_is_parsed_once(clickhouse: ClickHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """sqlparse costs milliseconds on the loop."""
    parsed: list[str] = []
    check = ChClient._check_insert_file_query

    def counting(query: str) -> None:
        parsed.append(query)
        check(query)

    monkeypatch.setattr(ChClient, "_check_insert_file_query", counting)
    for turn in range(5):
        await clickhouse.insert(THINGS, [block(numbered(range(3)), turn)], token=f"t{turn}")
    assert len(parsed) <= 1


async def test_a_slow_server_is_given_up(proxy: Proxy) -> None:
    client = ClickHouse(proxy.url, query_timeout_s=0.2)
    await client.start()
    proxy.plan.append(Fault("half_open"))
    start = time.monotonic()
    with pytest.raises(Ambiguous):
        await client.ping()
    assert time.monotonic() - start < 5
    await client.close()
