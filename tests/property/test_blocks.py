"""The blocks are ClickHouse's own format: an independent reader and ClickHouse itself find the rows in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import _native
from gateway.schema import GENAI_EVENTS, OTEL_LOGS
from tests.property import strategies
from tests.property.clickhouse_rows import ClickHouseRows
from tests.property.compiled import decode_otlp, of_every_record, reference_entries, reference_otlp
from tests.property.messages import Record, ResourceLogs, ScopeLogs, Style, Text, protobuf
from tests.property.test_entries import DATASET, NUMBERS
from tests.reference.entries import Output
from tests.reference.native_block import read_block, read_blocks, uncompress

PLAIN = Style(0)
FRAME = OTEL_LOGS.layout.index(("SpoolFrame", "UInt64"))
ROW = OTEL_LOGS.layout.index(("SpoolRow", "UInt32"))


@pytest.fixture(scope="module")
def clickhouse() -> Iterator[ClickHouseRows]:
    with ClickHouseRows() as rows:
        yield rows


def texts_of(native: bytes) -> tuple[str, ...]:
    """The rows of a Native stream, each as text: NaN is equal to itself."""
    return tuple(repr(row) for block in read_blocks(native) for row in block.table())


# ClickHouse reads them.


@given(st.lists(strategies.requests, max_size=3))
def test_otlp_rows_read_back_by_clickhouse_are_the_rows_of_the_reference(
    clickhouse: ClickHouseRows, requests: list[Sequence[ResourceLogs]]
) -> None:
    columns = _native.Columns(OTEL_LOGS.layout)
    expected: tuple[str, ...] = ()
    for request in requests:
        body = protobuf(request, PLAIN)
        decode_otlp(columns, body)
        expected += reference_otlp(body).rows
    assert texts_of(clickhouse.stored(OTEL_LOGS.layout, columns.native())) == expected


@pytest.mark.parametrize("output", [DATASET, NUMBERS], ids=["dataset", "numbers"])
@given(data=st.data())
def test_typed_rows_read_back_by_clickhouse_are_the_rows_of_the_reference(
    clickhouse: ClickHouseRows, output: Output, data: st.DataObject
) -> None:
    body = data.draw(strategies.entry_bodies(output.rules))
    expected = reference_entries(body, [output])[0]
    if expected.error:
        return
    columns = _native.Columns(output.layout)
    _insert(output, columns, body)
    # ClickHouse may tell another NaN or zero apart; the reference has none of those.
    assert texts_of(clickhouse.stored(output.layout, columns.native())) == expected.rows


def test_a_dictionary_of_more_than_a_byte_or_two_can_index_is_read_by_clickhouse(clickhouse: ClickHouseRows) -> None:
    layout = (("l", "LowCardinality(String)"), ("m", "Map(LowCardinality(String), String)"))
    output = Output(
        layout=layout, rules=(("l", "text", "l", ""), ("m", "attributes", "m", "")), feeds={"m": "attributes"}
    )
    for count in (1, 255, 256, 257, 65_535, 65_536, 65_537):
        columns = _native.Columns(layout)
        entries = b",".join(b'{"l":"v%d","m":{"k%d":"x","same":"y"}}' % (index, index) for index in range(count))
        _insert(output, columns, b"[" + entries + b"]")
        expected = [{"l": f"v{index}", "m": {f"k{index}": "x", "same": "y"}} for index in range(count)]
        native = columns.native()
        assert read_block(native).table() == expected
        assert [row for block in read_blocks(clickhouse.stored(layout, native)) for row in block.table()] == expected


def test_clickhouse_refuses_a_block_that_is_not_right(clickhouse: ClickHouseRows) -> None:
    """So that the tests above can fail."""
    columns = _native.Columns(OTEL_LOGS.layout)
    decode_otlp(columns, protobuf(_records(3), PLAIN))
    with pytest.raises(ValueError, match=r"rows|read|data"):
        clickhouse.stored(OTEL_LOGS.layout, columns.native()[:-9])


def _insert(output: Output, columns: _native.Columns, body: bytes) -> None:
    _native.entries(
        body,
        _native.EntryPlan([(output.layout, output.rules, output.feeds)]),
        [columns],
        constants={},
        arrival_ns=strategies.ARRIVAL_NS,
        time_min_ns=strategies.TIME_MIN_NS,
        time_max_ns=strategies.TIME_MAX_NS,
    )


def _records(count: int) -> tuple[ResourceLogs, ...]:
    records = tuple(
        Record(time_ns=strategies.ARRIVAL_NS, body=Text(b"%d" % index), attributes=((b"k", index),))
        for index in range(count)
    )
    return (ResourceLogs(scopes=(ScopeLogs(records=records),)),)


# Cut into frames.


@pytest.mark.parametrize("compression", ["lz4", "none"])
@given(requests=st.lists(strategies.requests, min_size=1, max_size=3))
def test_a_cut_block_holds_the_rows_and_their_identity_and_empties_the_columns(
    compression: str, requests: list[Sequence[ResourceLogs]]
) -> None:
    columns = _native.Columns(OTEL_LOGS.layout)
    for frame, request in enumerate(requests, start=(1 << 64) - 5):
        body = protobuf(request, PLAIN)
        decode_otlp(columns, body)
        plain = read_blocks(columns.native())
        rows = [row for block in plain for row in block.table()]
        assert len(rows) == columns.rows
        if not rows:
            continue
        cut = columns.cut(frame=frame, frame_column=FRAME, row_column=ROW, compression=compression)
        found = read_block(uncompress(cut)).table()
        assert columns.rows == 0
        assert [repr(row) for row in found] == [
            repr({**row, "SpoolFrame": frame, "SpoolRow": number}) for number, row in enumerate(rows)
        ]
        # What is written afterwards owes nothing to what was there.
        decode_otlp(columns, body)
        assert texts_of(columns.native()) == reference_otlp(body).rows
        columns.clear()
        assert columns.rows == 0


@pytest.mark.parametrize("compression", ["lz4", "none"])
def test_a_block_of_many_mebibytes_is_cut_into_frames_that_all_hold(compression: str) -> None:
    columns = _native.Columns(OTEL_LOGS.layout)
    body = protobuf(_records(20_000), PLAIN)
    decode_otlp(columns, body)
    expected = columns.native()
    cut = columns.cut(frame=0, frame_column=FRAME, row_column=-1, compression=compression)
    assert uncompress(cut) == expected


@pytest.mark.parametrize("compression", ["lz4", "none"])
def test_a_flipped_bit_in_a_cut_block_is_noticed(compression: str) -> None:
    columns = _native.Columns(OTEL_LOGS.layout)
    decode_otlp(columns, protobuf(_records(3), PLAIN))
    cut = bytearray(columns.cut(frame=1, frame_column=FRAME, row_column=ROW, compression=compression))
    cut[-1] ^= 1
    with pytest.raises(AssertionError, match="checksum"):
        uncompress(bytes(cut))


def test_two_tables_cut_apart_keep_apart() -> None:
    first, second = _native.Columns(OTEL_LOGS.layout), _native.Columns(GENAI_EVENTS.layout)
    plan = _native.OtlpPlan([(table.layout, of_every_record(table)) for table in (OTEL_LOGS, GENAI_EVENTS)])
    body = protobuf(_records(5), PLAIN)
    _native.otlp_protobuf(body, plan, [first, second], constants={}, arrival_ns=strategies.ARRIVAL_NS)
    before = second.native()
    first.cut(frame=1, frame_column=FRAME, row_column=ROW, compression="lz4")
    assert first.rows == 0
    assert second.native() == before
