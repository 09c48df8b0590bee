"""The embedded ClickHouse answers as a ClickHouse server does."""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import aiohttp
import clickhouse_connect
import lz4.frame
import pytest
import zstandard
from clickhouse_cityhash.cityhash import CityHash128
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from gateway.embedded.clickhouse import EmbeddedClickHouse
from gateway.embedded.clickhouse_compression import BlockDecoder

from .conftest import Curl, becomes_true

pytestmark = pytest.mark.asyncio(loop_scope="session")
CHECKSUM_BYTES = 16


def connect(engine: EmbeddedClickHouse, **options: Any) -> Client:
    port = int(engine.url.rsplit(":", 1)[1])
    return clickhouse_connect.get_client(host="127.0.0.1", port=port, **options)


@pytest.mark.parametrize("compress", [True, False, "lz4", "zstd", "gzip"])
async def test_clickhouse_connect_creates_inserts_and_queries(
    clickhouse: EmbeddedClickHouse, table: str, compress: bool | str
) -> None:
    def work() -> None:
        client = connect(clickhouse, compress=compress, database="own")
        assert (client.server_version or "").startswith("2")
        summary = client.insert("t", [[n, f"row {n}"] for n in range(1000)], column_names=["a", "s"])
        assert summary.written_rows == 1000
        result = client.query("SELECT a, s FROM t WHERE a >= {least:UInt64} ORDER BY a", parameters={"least": 998})
        assert result.result_rows == [(998, "row 998"), (999, "row 999")]
        assert client.command("SELECT count() FROM t") == 1000
        assert client.query("SELECT map('k', 'v') AS m, toDateTime64('2026-01-02 03:04:05.5', 9, 'UTC')").row_count == 1
        with pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
            client.query("SELECT * FROM nowhere")
        client.close()

    await asyncio.to_thread(work)


async def test_clickhouse_connect_takes_user_password_and_settings_as_given(clickhouse: EmbeddedClickHouse) -> None:
    def work() -> None:
        client = connect(clickhouse, username="somebody", password="secret", settings={"max_threads": 1})
        assert client.query("SELECT getSetting('max_threads')").first_row == (1,)
        long_list = ", ".join(str(n) for n in range(20_000))
        found = client.query(f"SELECT count() FROM numbers(30000) WHERE number IN ({long_list})")
        assert found.first_row == (20_000,)
        form = connect(clickhouse, form_encode_query_params=True)
        assert form.query("SELECT {text:String}", parameters={"text": "tab\tand 'quote'"}).first_row == (
            "tab\tand 'quote'",
        )
        client.close()
        form.close()

    await asyncio.to_thread(work)


@pytest.mark.parametrize("path", ["/", "/ping", "/replicas_status"])
async def test_the_probes_answer_ok(clickhouse: EmbeddedClickHouse, path: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(clickhouse.url + path) as reply:
        assert (reply.status, await reply.text()) == (200, "Ok.\n")


async def test_the_query_may_be_in_the_url_in_the_body_or_in_both(curl: Curl) -> None:
    assert (await curl("SELECT 1", method="GET")).text == "1\n"
    assert (await curl(None, "SELECT 2")).text == "2\n"
    assert (await curl("SELECT 3 +", "4")).text == "7\n"
    assert (await curl("SELECT '" + "x" * 100_000 + "'")).body == b"x" * 100_000 + b"\n"


async def test_data_follows_an_insert_in_the_url_or_in_the_body(curl: Curl, table: str) -> None:
    for query, body in (
        ("INSERT INTO own.t FORMAT CSV", '1,"a"\n'),
        ("INSERT INTO own.t (a, s) SETTINGS async_insert = 0 FORMAT JSONEachRow", '{"a": 2, "s": "b"}'),
        ("INSERT INTO own.t (a, s) FORMAT TabSeparated SETTINGS async_insert = 0", "3\tc\n"),
        (None, "INSERT INTO own.t FORMAT CSV\n4,d\n"),
        (None, "INSERT INTO own.t VALUES (5, 'FORMAT CSV')"),
        ("INSERT INTO own.t VALUES", "(6, upper('f'))"),
        ("INSERT INTO own.t VALUES (7, 'g')", None),
        ("INSERT INTO own.t", "(8, 'h')"),
        (None, "-- SELECT\nINSERT INTO TABLE own.`t` /* VALUES */ (a, s) SELECT 9, 'FORMAT'"),
    ):
        reply = await curl(query, body)
        assert reply.status == 200, reply.text
        assert json.loads(reply.headers["X-ClickHouse-Summary"])["written_rows"] == "1", (query, body)
    rows = await curl.value("SELECT a, s FROM own.t ORDER BY a FORMAT CSV")
    letters = ["a", "b", "c", "d", "FORMAT CSV", "F", "g", "h", "FORMAT"]
    assert rows.splitlines() == [f'{n},"{letter}"' for n, letter in enumerate(letters, 1)]


async def test_a_native_block_fetched_compressed_is_accepted_compressed(curl: Curl, table: str) -> None:
    fetched = await curl("SELECT number AS a, toString(number) AS s FROM numbers(200000) FORMAT Native", compress="1")
    assert fetched.body[CHECKSUM_BYTES] == 0x82
    posted = await curl("INSERT INTO own.t FORMAT Native", fetched.body * 2, decompress="1", async_insert="0")
    assert json.loads(posted.headers["X-ClickHouse-Summary"])["written_rows"] == "400000"
    assert await curl.value("SELECT count(), uniqExact(a), sum(toUInt64(s) = a) FROM own.t") == "400000\t200000\t400000"


async def test_the_other_codecs_of_the_block_framing_are_accepted(curl: Curl, table: str) -> None:
    framed = await curl("SELECT 1", compress="1")
    assert framed.body[:CHECKSUM_BYTES] == city_hash(framed.body[CHECKSUM_BYTES:])
    for method in (0x02, 0x90):
        plain = (await curl(f"SELECT {method}::UInt64 AS a, 'x' AS s FORMAT Native")).body
        packed = zstandard.compress(plain) if method == 0x90 else plain
        header = struct.pack("<BII", method, 9 + len(packed), len(plain)) + packed
        reply = await curl("INSERT INTO own.t FORMAT Native", city_hash(header) + header, decompress="1")
        assert reply.status == 200, reply.text
    assert await curl.value("SELECT groupArray(a) FROM own.t WHERE s = 'x'") in ("[2,144]", "[144,2]")


def city_hash(data: bytes) -> bytes:
    """The reference: the package that clickhouse-driver uses."""
    number: int = CityHash128(data)
    return struct.pack("<QQ", number >> 64, number & 0xFFFFFFFFFFFFFFFF)


async def test_the_block_framing_is_the_one_of_the_engines_own_files(
    clickhouse_directory: Path, curl: Curl, table: str
) -> None:
    await curl.value("INSERT INTO own.t SELECT number, toString(number) FROM numbers(1000)")
    (file,) = (clickhouse_directory / "clickhouse").glob("**/data.bin")
    decoder = BlockDecoder()
    plain = decoder.feed(file.read_bytes())
    decoder.finish()
    assert struct.pack("<Q", 999) in plain


async def test_a_damaged_or_cut_block_is_refused_and_nothing_is_stored(curl: Curl, table: str) -> None:
    block = (await curl("SELECT number AS a, 'x' AS s FROM numbers(1000) FORMAT Native", compress="1")).body
    damaged = block[:-1] + bytes([block[-1] ^ 1])
    for body, code in ((damaged, "40"), (block[:-1], "33"), (b"\0" * 40, "432")):
        reply = await curl("INSERT INTO own.t FORMAT Native", body, decompress="1")
        assert (reply.status, reply.headers["X-ClickHouse-Exception-Code"]) == (500, code)
    assert await curl.value("SELECT count() FROM own.t") == "0"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", "lz4"])
async def test_content_encodings_work_both_ways(curl: Curl, table: str, encoding: str) -> None:
    compress = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstandard.compress, "lz4": lz4.frame.compress}
    expand = {"gzip": gzip.decompress, "deflate": zlib.decompress, "lz4": lz4.frame.decompress}
    expand["zstd"] = lambda body: zstandard.ZstdDecompressor().decompressobj().decompress(body)
    body = compress[encoding](b"".join(b"%d,x\n" % n for n in range(100_000)))
    sent = await curl("INSERT INTO own.t FORMAT CSV", body, headers={"Content-Encoding": encoding})
    assert sent.status == 200, sent.text
    asked = {"Accept-Encoding": encoding}
    reply = await curl("SELECT count() FROM own.t", headers=asked, enable_http_compression="1")
    assert (reply.headers["Content-Encoding"], expand[encoding](reply.body)) == (encoding, b"100000\n")
    plain = await curl("SELECT count() FROM own.t", headers=asked)
    assert ("Content-Encoding" in plain.headers, plain.body) == (False, b"100000\n")
    cut = await curl("INSERT INTO own.t FORMAT CSV", body[:-5], headers={"Content-Encoding": encoding})
    assert cut.status == 500
    assert await curl.value("SELECT count() FROM own.t") == "100000"


async def test_the_same_deduplication_token_stores_the_rows_once(curl: Curl, table: str) -> None:
    body = "1,a\n2,b\n"
    for token in ("batch 'one'", "batch 'one'", "batch two"):
        reply = await curl("INSERT INTO own.t FORMAT CSV", body, insert_deduplication_token=token, async_insert="0")
        assert json.loads(reply.headers["X-ClickHouse-Summary"])["written_rows"] == "2"
    assert await curl.value("SELECT count() FROM own.t") == "4"


async def test_errors_carry_code_status_header_and_text(curl: Curl) -> None:
    for query, status, code, name in (
        ("SELECT * FROM nowhere", 404, 60, "UNKNOWN_TABLE"),
        ("SELECT * FROM nowhere.at_all", 404, 81, "UNKNOWN_DATABASE"),
        ("SELEC 1", 400, 62, "SYNTAX_ERROR"),
        ("SELECT 1; SELECT 2", 400, 62, "SYNTAX_ERROR"),
        ("SELECT missing", 404, 47, "UNKNOWN_IDENTIFIER"),
        ("SELECT toUInt8('x')", 400, 6, "CANNOT_PARSE_TEXT"),
        ("SELECT throwIf(1)", 500, 395, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
        ("INSERT INTO nowhere FORMAT CSV\n1,2", 404, 60, "UNKNOWN_TABLE"),
    ):
        reply = await curl(None, query, query_id="mine")
        assert (reply.status, reply.headers["X-ClickHouse-Exception-Code"]) == (status, str(code)), reply.text
        assert reply.text.startswith(f"Code: {code}. DB::Exception: ")
        assert f"({name})" in reply.text
        assert reply.headers["X-ClickHouse-Query-Id"] == "mine"


async def test_unreadable_data_is_refused_with_the_parsers_reason(curl: Curl, table: str) -> None:
    reply = await curl("INSERT INTO own.t FORMAT CSV", "not a number,x\n")
    assert (reply.status, reply.headers["X-ClickHouse-Exception-Code"]) == (400, "27")
    reply = await curl("INSERT INTO own.t FORMAT Native", b"\x02\x01nonsense")
    assert reply.status != 200
    assert reply.headers["X-ClickHouse-Exception-Code"] != "1001"
    assert await curl.value("SELECT count() FROM own.t") == "0"


async def test_settings_apply_to_one_statement_and_unknown_ones_are_refused(curl: Curl) -> None:
    assert await curl.value("SELECT getSetting('max_threads')", max_threads="1") == "1"
    quoted = 'it\'s \\ "quoted"'
    assert await curl.value("SELECT getSetting('log_comment')", log_comment=quoted) == 'it\\\'s \\\\ "quoted"'
    assert await curl.value("SELECT getSetting('log_comment')") == ""
    for settings in ({"no_such_setting": "1"}, {"max_threads = 1, log_comment": "x"}, {"max_threads": "many"}):
        reply = await curl(None, "SELECT 1", method="POST", headers=None, **settings)
        assert reply.status in (400, 404), reply.text


async def test_parameters_are_values_never_text_of_the_statement(curl: Curl) -> None:
    found = await curl(None, "SELECT {text:String}, {number:UInt8} + 1", param_text="a' OR 1=1 --", param_number="4")
    assert found.text == "a\\' OR 1=1 --\t5\n"
    assert (await curl(None, "SELECT {missing:UInt8}")).status != 200


async def test_a_database_is_entered_for_one_statement(curl: Curl, table: str) -> None:
    assert await curl.value("SELECT currentDatabase() || count() FROM t", database="own") == "own0"
    header = await curl("SELECT currentDatabase()", headers={"X-ClickHouse-Database": "own"})
    assert header.text == "own\n"
    assert await curl.value("SELECT currentDatabase()") == "default"
    assert (await curl("SELECT 1", database="no`where")).status == 404


async def test_get_may_only_read(curl: Curl, table: str) -> None:
    reply = await curl("INSERT INTO own.t VALUES (1, 'x')", method="GET")
    assert (reply.status, reply.headers["X-ClickHouse-Exception-Code"]) == (500, "164")
    assert await curl.value("SELECT count() FROM own.t") == "0"


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://elsewhere.example"}, {"Origin": "null"}, {"Host": "a.example"}]
)
async def test_a_page_in_a_browser_gets_nothing(curl: Curl, headers: dict[str, str]) -> None:
    reply = await curl("SELECT 'secret'", headers=headers)
    assert (reply.status, reply.headers["X-ClickHouse-Exception-Code"]) == (403, "497")
    assert b"secret" not in reply.body
    allowed = await curl("SELECT 1", headers={"Origin": "http://localhost:3000"})
    assert allowed.status == 200


async def test_headers_describe_the_answer(curl: Curl) -> None:
    reply = await curl("SELECT number FROM numbers(10) FORMAT JSONEachRow", wait_end_of_query="1", session_id="s")
    assert reply.headers["X-ClickHouse-Format"] == "JSONEachRow"
    assert reply.headers["X-ClickHouse-Timezone"]
    assert reply.headers["X-ClickHouse-Server-Display-Name"]
    summary = json.loads(reply.headers["X-ClickHouse-Summary"])
    assert (summary["read_rows"], summary["result_rows"]) == ("10", "10")
    default = await curl("SELECT 1 AS x", default_format="JSONCompact")
    assert default.headers["X-ClickHouse-Format"] == "JSONCompact"
    assert json.loads(default.body)["data"] == [[1]]


async def test_an_insert_whose_sender_went_away_stores_nothing(
    clickhouse: EmbeddedClickHouse, curl: Curl, table: str
) -> None:
    port = int(clickhouse.url.rsplit(":", 1)[1])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST /?query=INSERT%20INTO%20own.t%20FORMAT%20CSV HTTP/1.1\r\nHost: localhost\r\n"
    writer.write(head + b"Content-Length: 4000000\r\n\r\n" + b"1,x\n" * 500_000)
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    # The control: the same rows in a whole request are stored.
    assert (await curl("INSERT INTO own.t FORMAT CSV", b"2,x\n" * 500_000)).status == 200
    assert await curl.value("SELECT countIf(a = 1), countIf(a = 2) FROM own.t") == "0\t500000"


async def test_statements_run_side_by_side(curl: Curl) -> None:
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    replies = await asyncio.gather(*(curl(None, "SELECT sleep(0.5)") for _ in range(8)))
    assert [reply.status for reply in replies] == [200] * 8
    assert loop.time() - started_s < 2.0


async def test_uptime_grows(curl: Curl) -> None:
    first_s = int(await curl.value("SELECT uptime()"))

    async def grown() -> bool:
        return int(await curl.value("SELECT uptime()")) > first_s

    await becomes_true(grown)
    assert await grown()
