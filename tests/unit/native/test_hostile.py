"""What an attacker or a slip of the caller cannot do: cost the product of two sizes, count twice, crash."""

from __future__ import annotations

import time
from contextlib import nullcontext

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue

from gateway._native import (
    RECORD_BYTES_MAX,
    Columns,
    EntryPlan,
    OtlpPlan,
    entries,
    json_member,
    otlp_json,
    otlp_protobuf,
)
from gateway.errors import TooLarge
from tests.reference.native_block import read_block

LAYOUT = (
    ("body", "String"),
    ("level", "LowCardinality(String)"),
    ("service", "LowCardinality(String)"),
    ("url", "LowCardinality(String)"),
    ("resource", "Map(LowCardinality(String), String)"),
    ("map", "Map(LowCardinality(String), String)"),
)
FEEDS = {"body": "body", "service": "service_name", "url": "resource_schema_url", "resource": "resource_attributes"}
PLAN = OtlpPlan([(LAYOUT, FEEDS)])
TWO = OtlpPlan([(LAYOUT, FEEDS), (LAYOUT, FEEDS)])
ARRIVAL_NS = 1_700_000_000_000_000_000
SECONDS_MAX = 5.0
"""Of one body of a quarter of a MiB; it takes milliseconds, and took most of a minute where two sizes multiplied."""


def message(number: int, content: bytes) -> bytes:
    """One field of protobuf that has a length."""
    size, head = len(content), bytes([number << 3 | 2])
    while size > 127:
        head += bytes([size & 127 | 128])
        size >>= 7
    return head + bytes([size]) + content


RECORD = message(2, b"")
ONE_RECORD = message(2, RECORD)
NO_RECORD = message(2, b"")
MANY_ATTRIBUTES = message(1, message(1, b"") * 65_536)
LONG_URL = message(3, b"\xff" * 131_072)


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (MANY_ATTRIBUTES + NO_RECORD * 65_536, 0),
        (MANY_ATTRIBUTES + ONE_RECORD * 32_768, 32_768),
        (LONG_URL + ONE_RECORD * 32_768, 32_768),
    ],
)
def test_a_large_resource_is_read_once_however_many_scopes_it_has(content: bytes, rows: int) -> None:
    columns = Columns(LAYOUT)
    before = time.process_time()
    result = otlp_protobuf(message(1, content), PLAN, [columns], constants={}, arrival_ns=ARRIVAL_NS)
    assert time.process_time() - before < SECONDS_MAX
    assert (result.rows, columns.rows) == (rows, rows)


def test_every_scope_has_its_resource_and_what_was_cut_of_it_is_counted_for_each_with_rows() -> None:
    request = ExportLogsServiceRequest()
    for name in ("one", "two"):
        resource = request.resource_logs.add(schema_url=f"https://{name}.test")
        for number in range(130):
            attribute = resource.resource.attributes.add(key=f"{name}.{number}")
            attribute.value.string_value = name
        resource.resource.attributes[5].key = "service.name"
        for records in (2, 0, 1, 3):
            scope = resource.scope_logs.add()
            for _ in range(records):
                scope.log_records.add().body.string_value = name
    both = [Columns(LAYOUT), Columns(LAYOUT)]
    result = otlp_protobuf(request.SerializeToString(), TWO, both, constants={}, arrival_ns=ARRIVAL_NS)
    assert result.outputs == (12, 12)
    assert result.attributes_cut == 2 * 3 * 2
    for columns in both:
        for row in read_block(columns.native()).table():
            name = str(row["body"])
            assert (row["service"], row["url"]) == (name, f"https://{name}.test")
            assert row["resource"] == {
                "service.name" if number == 5 else f"{name}.{number}": name for number in range(128)
            }


def test_a_deep_object_is_flattened_in_one_pass() -> None:
    plan = EntryPlan([(LAYOUT, [], {})], unknown="map")
    body = b'{"a":' * 60 + b"{" + b'"k":0,' * 500_000 + b'"k":1}' + b"}" * 60
    before = time.process_time()
    columns = Columns(LAYOUT)
    result = entries(body, plan, [columns], constants={}, arrival_ns=ARRIVAL_NS)
    assert time.process_time() - before < SECONDS_MAX
    assert result.attributes_cut == 500_001 - 128
    (row,) = read_block(columns.native()).table()
    assert row["map"] == {"a." * 60 + "k": "0"}


@pytest.mark.parametrize("shared", [b'"' + b"\xff" * 100_000 + b'"', b"[" + b" " * 100_000 + b"]", b'"\\n"'])
def test_what_entries_share_is_read_once_however_many_they_are(shared: bytes) -> None:
    rules = [("../r", "attribute", "resource", "r"), ("../r", "text", "level", "")]
    plan = EntryPlan([(LAYOUT, rules, {})], member="logs")
    body = b'{"r":' + shared + b',"logs":[' + b"{}," * 50_000 + b"{}]}"
    columns = Columns(LAYOUT)
    before = time.process_time()
    with pytest.raises(TooLarge) if b"\xff" in shared else nullcontext():
        entries(body, plan, [columns], constants={}, arrival_ns=ARRIVAL_NS, column_bytes_max=16 << 20)
    assert time.process_time() - before < SECONDS_MAX
    assert columns.rows == (0 if b"\xff" in shared else 50_001)


def test_a_line_that_is_wrong_twice_is_counted_once() -> None:
    plan = EntryPlan([(LAYOUT, [("l", "level", "level", "")], {})])
    columns = Columns(LAYOUT)
    body = b'{"l":"info"}\n{"l":"loud"} x\n{"l":"warn"} x\n1 x\n{"l":"error"}'
    result = entries(
        body, plan, [columns], constants={}, arrival_ns=ARRIVAL_NS, lines=True, partial=True, problems_max=9
    )
    assert (result.rows, dict(result.rejected)) == (2, {"invalid": 3})
    assert [problem.index for problem in result.problems] == [1, 2, 3]
    assert [row["level"] for row in read_block(columns.native()).table()] == ["info", "error"]


def test_outputs_that_are_none_or_one_and_the_same_are_refused() -> None:
    columns = Columns(LAYOUT)
    with pytest.raises(TypeError):
        otlp_protobuf(b"", PLAN, [None], constants={}, arrival_ns=0)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="output 1 is output 0 again"):
        otlp_protobuf(b"", TWO, [columns, columns], constants={}, arrival_ns=0)
    with pytest.raises(RuntimeError, match="once"):
        PLAN.__init__([(LAYOUT, FEEDS)])


def test_a_record_below_the_size_limit_is_kept_in_json_as_in_protobuf() -> None:
    flags = 150_000
    body = AnyValue(array_value=ArrayValue(values=[AnyValue(bool_value=True)] * flags))
    request = ExportLogsServiceRequest()
    request.resource_logs.add().scope_logs.add().log_records.add().body.CopyFrom(body)
    protobuf = request.SerializeToString()
    assert len(protobuf) < RECORD_BYTES_MAX
    values = b",".join([b'{"boolValue":true}'] * flags)
    document = (
        b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"arrayValue":{"values":[' + values + b"]}}}]}]}]}"
    )
    for decode, sent in ((otlp_protobuf, protobuf), (otlp_json, document)):
        columns = Columns(LAYOUT)
        assert decode(sent, PLAN, [columns], constants={}, arrival_ns=1).rows == 1


def test_split_messages_cost_nothing_once_they_are_read() -> None:
    record = message(2, (message(6, message(2, b"") + message(2, b"")) * 100))
    columns = Columns(LAYOUT)
    body = message(1, message(2, record * 2_000))
    assert otlp_protobuf(body, PLAN, [columns], constants={}, arrival_ns=ARRIVAL_NS).rows == 2_000
    scope = message(2, message(1, b"") + message(1, b"") + RECORD)
    body = message(1, scope * 50_000)
    assert otlp_protobuf(body, PLAN, [columns], constants={}, arrival_ns=ARRIVAL_NS).rows == 50_000


def test_a_text_that_is_repaired_is_measured_repaired_before_it_is_repeated() -> None:
    layout = (("url", "String"), ("body", "String"))
    plan = OtlpPlan([(layout, {"url": "resource_schema_url", "body": "body"})])
    columns = Columns(layout)
    body = message(1, message(3, b"\xff" * 30_000) + message(2, RECORD * 100))
    # As sent a hundred of them would fit.
    with pytest.raises(TooLarge):
        otlp_protobuf(body, plan, [columns], constants={}, arrival_ns=ARRIVAL_NS, column_bytes_max=4_000_000)
    assert otlp_protobuf(body, plan, [columns], constants={}, arrival_ns=ARRIVAL_NS, column_bytes_max=9_100_000).rows
    rows = read_block(columns.native()).table()
    assert [row["url"] for row in rows] == ["\ufffd" * 30_000] * 100


@pytest.mark.parametrize("records", [99, 100])
def test_few_large_entries_meet_the_limit_as_soon_as_many_small_ones(records: int) -> None:
    plan = EntryPlan([(LAYOUT, [("m", "text", "body", "")], {})])
    columns = Columns(LAYOUT)
    body = b"[" + b",".join([b'{"m":"' + b"x" * 10_000 + b'"}'] * 20 + [b'"malformed']) + b"]"
    # Not having been read to its end, the body is too large and not malformed.
    with pytest.raises(TooLarge):
        entries(body, plan, [columns], constants={}, arrival_ns=ARRIVAL_NS, column_bytes_max=records * 1_000)


@pytest.mark.parametrize(
    ("type_", "fitting", "beyond"),
    [("Int16", -32_768, 32_768), ("UInt16", 65_535, 65_536), ("UInt32", 2**32 - 1, 2**32), ("Int32", 5, -(2**31) - 1)],
)
@pytest.mark.parametrize("kind", ["int_value", "double_value", "string_value"])
def test_an_integer_of_a_genai_event_that_does_not_fit_its_column_is_none(
    type_: str, fitting: int, beyond: int, kind: str
) -> None:
    layout = (("n", type_),)
    plan = OtlpPlan([(LAYOUT, FEEDS), (layout, {"n": "attribute:gen_ai.n"})], genai=[1])
    request = ExportLogsServiceRequest()
    scope = request.resource_logs.add().scope_logs.add()
    for number in (fitting, beyond):
        value = {"int_value": number, "double_value": float(number), "string_value": str(number)}[kind]
        record = scope.log_records.add(event_name="gen_ai.x")
        setattr(record.attributes.add(key="gen_ai.n").value, kind, value)
    events = Columns(layout)
    otlp_protobuf(request.SerializeToString(), plan, [Columns(LAYOUT), events], constants={}, arrival_ns=ARRIVAL_NS)
    assert [row["n"] for row in read_block(events.native()).table()] == [fitting, 0]


@pytest.mark.parametrize("behind", [b"", b'"x":"' + b"\\n" * 250_000 + b'",', b'"x":"\\u0041",'])
def test_a_name_that_comes_again_and_again_is_searched_for_once(behind: bytes) -> None:
    body = b"{" + b'"api_key":1,' * 40_000 + behind + b'"api_key":"last"}'
    before = time.process_time()
    assert json_member(body, b"api_key") == b"last"
    assert json_member(body[:-1] + b',"logs":[]}', b"api_key") == b"last"
    assert time.process_time() - before < SECONDS_MAX
