"""Native as clickhouse-go reads it, over HTTP too: what a client with a protocol version is sent."""

from __future__ import annotations

import json

import pytest

from .conftest import Curl

pytestmark = pytest.mark.asyncio(loop_scope="session")
REVISION = "54460"
BLOCK_INFO = b"\x01\x00\x02\xff\xff\xff\xff\x00"
ROWS = 300
COLUMNS = (
    "number",
    "toInt8(number % 100)",
    "toString(number)",
    "repeat('long ', number)",
    "toFixedString(toString(number % 10), 3)",
    "if(number % 3 = 0, NULL, toString(number))",
    "toNullable(toDateTime64(number, 9))",
    "toDecimal128(number, 5)",
    "CAST('a', 'Enum8(\\'a\\' = 1, \\'b, (\\' = 2)')",
    "toLowCardinality(toString(number % 7))",
    "toLowCardinality(toNullable(toString(number)))",
    "map(toLowCardinality('k' || toString(number % 5)), toString(number), toLowCardinality('z'), '')",
    "range(number % 4)",
    "arrayMap(n -> (n, [toString(n)]), range(number % 4))",
    "CAST((number, 'x', now()), 'Tuple(a UInt64, `b c` LowCardinality(String), d DateTime(\\'UTC\\'))')",
    "generateUUIDv4()",
    "toIPv6('::1')",
    "toIntervalDay(number)",
    "true",
)


def header(name: bytes, kind: bytes) -> bytes:
    return bytes([len(name)]) + name + bytes([len(kind)]) + kind


@pytest.mark.parametrize("column", COLUMNS)
async def test_a_column_is_announced_and_its_values_are_left_alone(curl: Curl, column: str) -> None:
    # Between two columns of numbers, so that its end must be found; over several blocks.
    query = f"SELECT number AS a, {column} AS b, number AS c FROM numbers({ROWS}) FORMAT Native"
    fixed = query.replace("generateUUIDv4()", "toUUID('6f1a3c7e-0000-4000-8000-0000000000ff')").replace("now()", "1")
    plain = await curl(None, fixed, max_block_size="100", max_threads="1")
    sent = await curl(None, fixed, max_block_size="100", max_threads="1", client_protocol_version=REVISION)
    assert sent.status == 200, sent.text
    described = await curl(None, "SELECT toTypeName(b) FROM (" + fixed.removesuffix(" FORMAT Native") + ") LIMIT 1")
    unfolded = described.text.strip().replace("(\\n    ", "(").replace("\\n    ", " ")
    kind = unfolded.replace("\\'", "'").encode()
    blocks = sent.body.split(BLOCK_INFO + b"\x03")
    assert len(blocks) > 1
    assert blocks[0] == b""
    restored = b""
    for block in blocks[1:]:
        for announced in (header(b"a", b"UInt64"), header(b"b", kind), header(b"c", b"UInt64")):
            assert block.count(announced + b"\x00") == 1
            block = block.replace(announced + b"\x00", announced)
        restored += b"\x03" + block
    assert restored == plain.body


async def test_clients_of_an_older_revision_are_served_revision_0(curl: Curl) -> None:
    query = "SELECT 1 AS x FORMAT Native"
    assert (await curl(None, query, client_protocol_version="54405")).body == (await curl(None, query)).body


async def test_a_type_that_cannot_be_walked_is_refused_by_name(curl: Curl) -> None:
    query = "SELECT sumState(number) AS s FROM numbers(3) FORMAT Native"
    reply = await curl(None, query, client_protocol_version=REVISION)
    assert (reply.status, "AggregateFunction(sum, UInt64)" in reply.text) == (501, True)
    other = await curl(None, query.replace("Native", "JSON"), client_protocol_version=REVISION)
    assert json.loads(other.body)["rows"] == 1
