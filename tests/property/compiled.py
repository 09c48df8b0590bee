"""The compiled decoders and their reference, each brought to the same plain outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gateway import _native
from gateway.errors import Invalid, Malformed
from gateway.schema import OTEL_LOGS, SOURCES, Table
from tests.property.strategies import ARRIVAL_NS, TIME_MAX_NS, TIME_MIN_NS
from tests.reference import entries, otlp, otlp_json
from tests.reference.native_block import read_blocks

CONSTANTS = {"project_id": "project-1", "dialect": "otlp"}


def of_every_record(table: Table) -> dict[str, str]:
    """The table's feeds that every record has: without those that only GenAI events have."""
    return {name: source for name, source in table.feeds.items() if source in SOURCES}


OTLP_PLAN = _native.OtlpPlan([(OTEL_LOGS.layout, OTEL_LOGS.feeds)])


@dataclass(frozen=True)
class Outcome:
    """What a body came to: the name of the error, or rows (as text: NaN is equal to itself) and counts."""

    error: str = ""
    rows: tuple[str, ...] = ()
    rejected: tuple[tuple[str, int], ...] = ()
    attributes_cut: int = 0
    timestamps_clamped: int = 0


def outcome(
    rows: Sequence[otlp.Row], rejected: Sequence[tuple[str, int]], attributes_cut: int, timestamps_clamped: int
) -> Outcome:
    return Outcome(
        rows=tuple(repr(row) for row in rows),
        rejected=tuple(sorted(rejected)),
        attributes_cut=attributes_cut,
        timestamps_clamped=timestamps_clamped,
    )


# OTLP.


def decode_otlp(columns: _native.Columns, body: bytes, *, json: bool = False) -> _native.Decoded:
    """Decode into open columns of ``otel_logs``."""
    decode = _native.otlp_json if json else _native.otlp_protobuf
    return decode(
        body,
        OTLP_PLAN,
        [columns],
        constants=CONSTANTS,
        arrival_ns=ARRIVAL_NS,
        time_min_ns=TIME_MIN_NS,
        time_max_ns=TIME_MAX_NS,
    )


def compiled_otlp(body: bytes, *, json: bool = False) -> Outcome:
    """What the compiled decoder makes of a body, read back from the block it wrote."""
    columns = _native.Columns(OTEL_LOGS.layout)
    try:
        decoded = decode_otlp(columns, body, json=json)
    except Malformed:
        assert columns.rows == 0
        return Outcome(error="Malformed")
    rows = table_of(columns)
    assert decoded.rows == len(rows) == columns.rows
    assert bool(decoded.message) == bool(decoded.rejected)
    return outcome(rows, list(decoded.rejected.items()), decoded.attributes_cut, decoded.timestamps_clamped)


def reference_otlp(body: bytes, *, json: bool = False, table: Table = OTEL_LOGS) -> Outcome:
    """What the rules make of it."""
    decode = otlp_json.decode_json if json else otlp.decode_protobuf
    try:
        result = decode(
            body, constants=CONSTANTS, arrival_ns=ARRIVAL_NS, time_min_ns=TIME_MIN_NS, time_max_ns=TIME_MAX_NS
        )
    except Malformed:
        return Outcome(error="Malformed")
    rows = otlp.to_table_rows(result, table)
    return outcome(rows, list(result.rejected.items()), result.attributes_cut, result.timestamps_clamped)


def table_of(columns: _native.Columns) -> list[otlp.Row]:
    """The rows of open columns, as their block says."""
    blocks = read_blocks(columns.native())
    for block in blocks:
        assert tuple((name, type_) for name, type_, _ in block.columns) == columns.layout
    return [row for block in blocks for row in block.table()]


# Entries.


def compiled_entries(
    body: bytes, outputs: Sequence[entries.Output], *, unknown: str = "ignore", nan_literals: bool = False
) -> list[Outcome]:
    """What the compiled decoder makes of entries: an outcome for each output."""
    plan = _native.EntryPlan([(output.layout, output.rules, output.feeds) for output in outputs], unknown=unknown)
    open_columns = [_native.Columns(output.layout) for output in outputs]
    try:
        decoded = _native.entries(
            body,
            plan,
            open_columns,
            constants=CONSTANTS,
            arrival_ns=ARRIVAL_NS,
            time_min_ns=TIME_MIN_NS,
            time_max_ns=TIME_MAX_NS,
            nan_literals=nan_literals,
        )
    except (Malformed, Invalid) as error:
        assert not any(columns.rows for columns in open_columns)
        return [Outcome(error=type(error).__name__)] * len(outputs)
    return [
        outcome(table_of(columns), [], decoded.attributes_cut, decoded.timestamps_clamped) for columns in open_columns
    ]


def reference_entries(
    body: bytes, outputs: Sequence[entries.Output], *, unknown: str = "ignore", nan_literals: bool = False
) -> list[Outcome]:
    """What the rules make of them. What was cut and clamped is counted over all outputs."""
    request = entries.Request(CONSTANTS, ARRIVAL_NS, TIME_MIN_NS, TIME_MAX_NS)
    try:
        results = [
            entries.decode_entries(body, output, request, unknown=unknown, nan_literals=nan_literals)
            for output in outputs
        ]
    except (Malformed, Invalid) as error:
        return [Outcome(error=type(error).__name__)] * len(outputs)
    cut = sum(result.attributes_cut for result in results)
    clamped = sum(result.timestamps_clamped for result in results)
    return [outcome(result.rows, [], cut, clamped) for result in results]


def bytes_left_by(decode: Callable[[], Any], columns: _native.Columns) -> tuple[bytes, bytes, bool]:
    """(block before, block after, whether it was refused) of a decode into columns that may hold rows."""
    before = columns.native()
    try:
        decode()
    except (Malformed, Invalid):
        return before, columns.native(), True
    return before, columns.native(), False
