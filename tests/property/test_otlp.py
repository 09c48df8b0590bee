"""The compiled OTLP decoders do what the rules say: compared with the reference on any bytes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from gateway import _native
from gateway.errors import Malformed, TooLarge
from gateway.schema import ERROR_EVENTS, GENAI_EVENTS, OTEL_LOGS
from tests.property import strategies
from tests.property.compiled import (
    CONSTANTS,
    Outcome,
    bytes_left_by,
    compiled_otlp,
    decode_otlp,
    of_every_record,
    outcome,
    reference_otlp,
    table_of,
)
from tests.property.messages import (
    ABSENT,
    Entries,
    Pairs,
    Record,
    ResourceLogs,
    ScopeLogs,
    Style,
    Text,
    document,
    protobuf,
)
from tests.reference.otlp import oracle_silent

PLAIN = Style(0)
EXAMPLE = (
    ResourceLogs(
        attributes=((b"service.name", Text(b"checkout")), (b"host", Text("h\u00f6st".encode()))),
        schema_url=b"https://example.test/1",
        scopes=(
            ScopeLogs(
                name=b"logger",
                attributes=((b"scope", (1, 2.5, None)),),
                records=(
                    Record(
                        time_ns=strategies.ARRIVAL_NS,
                        severity_number=9,
                        body=Text(b"hello"),
                        attributes=((b"a", True), (b"b", Pairs(((b"c", b"\x00\xff"), (b"d", ABSENT))))),
                        trace_id=bytes(range(16)),
                        span_id=bytes(range(8)),
                        event_name=b"event",
                    ),
                    Record(severity_text=b"\xffodd", attributes=((b"a", float("nan")), (b"a", float("-inf")))),
                ),
            ),
        ),
    ),
)
"""A request with something of everything."""


def nested(depth: int) -> Pairs:
    """A value whose innermost one has this depth."""
    value = Pairs(((b"k", Text(b"v")),))
    for _ in range(depth - 2):
        value = Pairs(((b"k", value),))
    return value


def one(record: Record) -> tuple[ResourceLogs, ...]:
    return (ResourceLogs(scopes=(ScopeLogs(records=(record,)),)),)


# The same rows and the same rejections.


@given(strategies.protobuf_bodies)
@example(b"")
@example(protobuf(EXAMPLE, PLAIN))
def test_protobuf_gives_the_rows_and_rejections_of_the_reference(body: bytes) -> None:
    assert compiled_otlp(body) == reference_otlp(body)


@given(strategies.mutations(strategies.protobuf_bodies))
def test_mutated_protobuf_is_malformed_or_rows_just_as_for_the_reference(body: bytes) -> None:
    found = compiled_otlp(body)
    assume(not oracle_silent(body))
    assert found == reference_otlp(body)


@given(st.binary(max_size=80))
@example(b"\x0a\x00")
@example(b"\x00\x00")
@example(b"\x0b\x0c")
@example(b"\x13\x00\x00\x14")
@example(b"\x0c")
@example(b"\xff" * 10)
@example(b"\xff" * 11)
def test_random_bytes_are_malformed_or_rows_just_as_for_the_reference(body: bytes) -> None:
    found = compiled_otlp(body)
    assume(not oracle_silent(body))
    assert found == reference_otlp(body)


@given(strategies.json_bodies)
@example(document(EXAMPLE, PLAIN))
def test_json_gives_the_rows_and_rejections_of_the_reference(body: bytes) -> None:
    assert compiled_otlp(body, json=True) == reference_otlp(body, json=True)


@given(strategies.mutations(strategies.json_bodies))
def test_mutated_json_is_malformed_or_rows_just_as_for_the_reference(body: bytes) -> None:
    assert compiled_otlp(body, json=True) == reference_otlp(body, json=True)


@given(strategies.requests, strategies.styles, strategies.styles)
@example(EXAMPLE, Style(1), Style(2))
def test_json_and_protobuf_of_one_message_give_the_same_rows(
    request: Sequence[ResourceLogs], protobuf_style: Style, json_style: Style
) -> None:
    plain = compiled_otlp(protobuf(request, PLAIN))
    assert not plain.error
    assert compiled_otlp(protobuf(request, protobuf_style)) == plain
    assert compiled_otlp(document(request, json_style), json=True) == plain


@given(strategies.long_texts, strategies.long_texts)
def test_long_values_are_cut_at_a_character_and_counted(value: bytes, other: bytes) -> None:
    attributes = ((b"event.name", Text(value)), (b"log.record.uid", Text(other)), (b"list", (Text(value),)))
    request = (
        ResourceLogs(
            attributes=((b"service.name", Text(value)),),
            scopes=(ScopeLogs(attributes=attributes, records=(Record(body=Text(value), attributes=attributes),)),),
        ),
    )
    for json in (False, True):
        body = document(request, PLAIN) if json else protobuf(request, PLAIN)
        assert compiled_otlp(body, json=json) == reference_otlp(body, json=json)


@pytest.mark.parametrize("count", [127, 128, 129, 140])
def test_the_first_128_attributes_are_kept(count: int) -> None:
    attributes: Entries = (*((b"k%d" % index, index) for index in range(count - 1)), (b"log.record.uid", Text(b"id")))
    body = protobuf(one(Record(attributes=attributes)), PLAIN)
    found = compiled_otlp(body)
    assert found == reference_otlp(body)
    assert found.attributes_cut == max(0, count - 128)
    assert ("'RecordId': 'id'" in found.rows[0]) == (count <= 128)


@pytest.mark.parametrize("json", [False, True], ids=["protobuf", "json"])
@pytest.mark.parametrize("depth", [2, 31, 32, 33, 40])
def test_a_record_with_a_value_deeper_than_32_is_rejected(depth: int, json: bool) -> None:
    for record in (Record(body=nested(depth)), Record(attributes=((b"a", nested(depth)),))):
        request = (ResourceLogs(scopes=(ScopeLogs(records=(Record(), record, Record())),)),)
        body = (document if json else protobuf)(request, PLAIN)
        found = compiled_otlp(body, json=json)
        assert found == reference_otlp(body, json=json)
        assert found.rejected == ((("depth", 1),) if depth > 32 else ())
        assert len(found.rows) == (2 if depth > 32 else 3)


def test_a_value_nested_five_thousand_deep_rejects_its_record_and_no_other() -> None:
    body = protobuf(one(Record(severity_number=9)), PLAIN)
    value = b""
    for _ in range(5_000):
        value = _block(5, _block(1, value))
    deep = _block(1, _block(2, _block(2, _block(5, value))))
    found = compiled_otlp(body + deep)
    assert found.rejected == (("depth", 1),)
    assert found.rows == compiled_otlp(body).rows


def _block(number: int, content: bytes) -> bytes:
    length, size = b"", len(content)
    while size > 0x7F:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


@pytest.mark.parametrize("depth", [1, 99, 100])
def test_groups_are_skipped_a_hundred_deep(depth: int) -> None:
    assert compiled_otlp(b"\x13" * depth + b"\x14" * depth) == Outcome()


def test_groups_deeper_than_a_hundred_are_malformed() -> None:
    assert compiled_otlp(b"\x13" * 101 + b"\x14" * 101) == Outcome(error="Malformed")


@pytest.mark.parametrize("json", [False, True], ids=["protobuf", "json"])
def test_a_record_over_a_mebibyte_is_rejected_and_its_neighbours_are_stored(json: bool) -> None:
    for size in (1 << 20) - 200, (1 << 20) + 200:
        request = (ResourceLogs(scopes=(ScopeLogs(records=(Record(), Record(body=Text(b"x" * size)), Record())),)),)
        body = (document if json else protobuf)(request, PLAIN)
        found = compiled_otlp(body, json=json)
        assert found == reference_otlp(body, json=json)
        assert found.rejected == ((("size", 1),) if size > 1 << 20 else ())


@pytest.mark.parametrize(("record_bytes", "rejected"), [(1 << 20, ()), ((1 << 20) + 1, (("size", 1),))])
def test_the_size_of_a_record_is_its_length_on_the_wire(
    record_bytes: int, rejected: tuple[tuple[str, int], ...]
) -> None:
    record = _block(13, b"x" * (record_bytes - 4))
    assert len(record) == record_bytes
    body = _block(1, _block(2, _block(2, record)))
    assert compiled_otlp(body) == reference_otlp(body)
    assert compiled_otlp(body).rejected == rejected


# Nothing is left behind.


@pytest.mark.parametrize("json", [False, True], ids=["protobuf", "json"])
@pytest.mark.parametrize("style", [PLAIN, Style(7), Style(8)], ids=["plain", "odd", "odder"])
def test_a_body_cut_at_any_offset_leaves_nothing_behind(style: Style, json: bool) -> None:
    body = (document if json else protobuf)(EXAMPLE, style)
    columns = _native.Columns(OTEL_LOGS.layout)
    decode_otlp(columns, protobuf(EXAMPLE, PLAIN))
    refused_any = False
    for end in range(len(body)):
        cut = body[:end]
        columns.mark()
        before, after, refused = bytes_left_by(lambda cut=cut: decode_otlp(columns, cut, json=json), columns)  # type: ignore[misc]
        refused_any |= refused
        if refused:
            assert after == before
        columns.rollback()
        assert columns.native() == before
        assert refused == bool(reference_otlp(cut, json=json).error)
    assert refused_any


@given(strategies.requests, st.one_of(strategies.mutations(strategies.protobuf_bodies), st.binary(max_size=40)))
def test_a_refused_request_leaves_the_rows_before_it_byte_equal(request: Sequence[ResourceLogs], body: bytes) -> None:
    columns = _native.Columns(OTEL_LOGS.layout)
    decode_otlp(columns, protobuf(request, PLAIN))
    bytes_before = columns.bytes
    before, after, refused = bytes_left_by(lambda: decode_otlp(columns, body), columns)
    if refused:
        assert after == before
        assert columns.bytes == bytes_before


@given(strategies.requests, strategies.requests, strategies.requests)
def test_rolled_back_rows_are_gone_and_later_ones_are_right(
    first: Sequence[ResourceLogs], second: Sequence[ResourceLogs], third: Sequence[ResourceLogs]
) -> None:
    columns = _native.Columns(OTEL_LOGS.layout)
    decode_otlp(columns, protobuf(first, PLAIN))
    before = columns.native()
    columns.mark()
    decode_otlp(columns, protobuf(second, PLAIN))
    columns.rollback()
    assert columns.native() == before
    decode_otlp(columns, protobuf(third, PLAIN))
    expected = reference_otlp(protobuf(first, PLAIN)).rows + reference_otlp(protobuf(third, PLAIN)).rows
    assert tuple(repr(row) for row in table_of(columns)) == expected


def test_a_request_whose_columns_grow_too_much_is_refused_and_leaves_nothing() -> None:
    columns = _native.Columns(OTEL_LOGS.layout)
    decode_otlp(columns, protobuf(EXAMPLE, PLAIN))
    before = columns.native()
    plan = _native.OtlpPlan([(OTEL_LOGS.layout, OTEL_LOGS.feeds)])
    for decode, body in (
        (_native.otlp_protobuf, protobuf(EXAMPLE * 50, PLAIN)),
        (_native.otlp_json, document(EXAMPLE * 50, PLAIN)),
    ):
        with pytest.raises(TooLarge):
            decode(body, plan, [columns], constants=CONSTANTS, arrival_ns=0, column_bytes_max=2_000)
        assert columns.native() == before


# Several tables.


@given(strategies.protobuf_bodies)
@example(protobuf(EXAMPLE, PLAIN))
def test_one_request_feeds_several_tables(body: bytes) -> None:
    tables = (OTEL_LOGS, GENAI_EVENTS, ERROR_EVENTS)
    plan = _native.OtlpPlan([(table.layout, of_every_record(table)) for table in tables])
    outputs = [_native.Columns(table.layout) for table in tables]
    decoded = _native.otlp_protobuf(
        body,
        plan,
        outputs,
        constants=CONSTANTS,
        arrival_ns=strategies.ARRIVAL_NS,
        time_min_ns=strategies.TIME_MIN_NS,
        time_max_ns=strategies.TIME_MAX_NS,
    )
    for table, columns in zip(tables, outputs, strict=True):
        found = outcome(
            table_of(columns), list(decoded.rejected.items()), decoded.attributes_cut, decoded.timestamps_clamped
        )
        assert found == reference_otlp(body, table=table)


def test_a_refused_request_leaves_none_of_its_tables_touched() -> None:
    tables = (OTEL_LOGS, GENAI_EVENTS)
    plan = _native.OtlpPlan([(table.layout, of_every_record(table)) for table in tables])
    outputs = [_native.Columns(table.layout) for table in tables]
    body = protobuf(EXAMPLE, PLAIN)
    _native.otlp_protobuf(body, plan, outputs, constants=CONSTANTS, arrival_ns=strategies.ARRIVAL_NS)
    before = [columns.native() for columns in outputs]
    with pytest.raises(Malformed):
        _native.otlp_protobuf(body + b"\x0a", plan, outputs, constants=CONSTANTS, arrival_ns=strategies.ARRIVAL_NS)
    assert [columns.native() for columns in outputs] == before


@pytest.mark.parametrize(
    "record",
    [
        _block(5, b"\x32\x01\x01" + b"\x10\x01"),
        _block(5, _block(5, b"\xff") + _block(1, b"x")),
        _block(5, _block(6, _block(1, b"\x0a\x05")) + _block(1, b"x")),
        _block(6, _block(1, b"k") + _block(2, _block(5, b"\x01")) + _block(2, _block(1, b"x"))),
    ],
    ids=["map-then-boolean", "array-then-string", "map-entry-then-string", "attribute-value-twice"],
)
def test_a_broken_member_is_malformed_even_where_another_one_wins(record: bytes) -> None:
    body = _block(1, _block(2, _block(2, record)))
    assert reference_otlp(body) == Outcome(error="Malformed")
    assert compiled_otlp(body) == Outcome(error="Malformed")
