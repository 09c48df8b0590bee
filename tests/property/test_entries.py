"""Flat JSON entries become the rows that a plan's rules say: compared with the reference."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway import _native
from gateway.errors import Invalid, Malformed
from gateway.schema import OTEL_LOGS
from tests.property import strategies
from tests.property.compiled import Outcome, compiled_entries, reference_entries
from tests.reference.entries import Output

FED = ("observed_time", "severity_number", "event_name", "attributes", "project_id", "dialect")
LOGS = Output(
    layout=OTEL_LOGS.layout,
    rules=(
        ("timestamp", "time", "Timestamp", ""),
        ("level", "level", "SeverityText", ""),
        ("message", "text required", "Body", ""),
        ("trace", "string", "TraceId", ""),
        ("logger", "text nonempty", "ScopeName", ""),
        ("context", "attributes", "LogAttributes", ""),
        ("labels", "attributes", "ResourceAttributes", "label."),
        ("user.id", "attribute", "LogAttributes", "user.id"),
    ),
    feeds={column: source for column, source in OTEL_LOGS.feeds.items() if source in FED},
)
DATASET = Output(
    layout=(
        ("timestamp", "DateTime64(9)"),
        ("name", "String"),
        ("value", "Float64"),
        ("ok", "Bool"),
        ("at", "DateTime64(9)"),
        ("context", "String"),
        ("SpoolFrame", "UInt64"),
        ("SpoolRow", "UInt32"),
    ),
    rules=(
        ("timestamp", "time", "timestamp", ""),
        ("name", "string required", "name", ""),
        ("value", "number required", "value", ""),
        ("ok", "boolean required", "ok", ""),
        ("at", "timestamp required", "at", ""),
        ("context", "object", "context", ""),
    ),
    feeds={"SpoolFrame": "frame", "SpoolRow": "row"},
)
INTEGERS = tuple(f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))
NUMBERS = Output(
    layout=tuple((f"{type_}?" if "(" in type_ else type_, type_) for type_ in (
        *INTEGERS, *(f"Nullable({type_})" for type_ in INTEGERS),
        "Float32", "Float64", "Bool", "Nullable(Float32)", "Nullable(Float64)", "Nullable(Bool)", "Nullable(String)",
        "DateTime64(0)", "DateTime64(3)", "DateTime64(6)", "DateTime64(9)",
    )),
    rules=(
        *((type_, "int", type_, "") for type_ in INTEGERS),
        *((type_, "int", f"Nullable({type_})?", "") for type_ in INTEGERS),
        ("Float32", "number", "Float32", ""),
        ("Float32", "number", "Nullable(Float32)?", ""),
        ("Float64", "number", "Float64", ""),
        ("Float64", "number", "Nullable(Float64)?", ""),
        ("Bool", "boolean", "Bool", ""),
        ("Bool", "boolean", "Nullable(Bool)?", ""),
        ("String", "text", "Nullable(String)?", ""),
        ("zero", "time", "DateTime64(0)?", ""),
        ("three", "time", "DateTime64(3)?", ""),
        ("six", "time", "DateTime64(6)?", ""),
        ("nine", "time", "DateTime64(9)?", ""),
    ),
    feeds={},
)  # fmt: skip
"""Every type a number or a time may be kept in."""
STRANGERS = strategies.json_strings


def body_of(output: Output, unknown: st.SearchStrategy[bytes] | None = None) -> st.SearchStrategy[bytes]:
    return strategies.entry_bodies(output.rules, unknown)


def assert_as_the_reference(
    body: bytes, *outputs: Output, unknown: str = "ignore", nan_literals: bool = False
) -> list[Outcome]:
    found = compiled_entries(body, outputs, unknown=unknown, nan_literals=nan_literals)
    expected = reference_entries(body, outputs, unknown=unknown, nan_literals=nan_literals)
    if expected[0].error == "Malformed" and found[0].error:
        # Of a body that is not JSON the decoder may first meet an entry it does not take.
        return expected
    assert found == expected
    return expected


@given(body_of(LOGS, STRANGERS), st.sampled_from(("ignore", "LogAttributes")))
@example(b"[]", "ignore")
@example(b"", "ignore")
@example(b" ", "ignore")
@example(b"[{}]", "ignore")
@example(b"{}", "ignore")
@example(b"null", "ignore")
@example(b"[[]]", "ignore")
@example(b"[null]", "ignore")
@example(b'{"message":"x"}{"message":"y"}', "ignore")
@example(b'[{"message":"x"},]', "ignore")
@example(b'\xef\xbb\xbf{"message":"x"}', "ignore")
@example(b'{"message":"x","level":"HEARTBEAT"}', "ignore")
@example(b'{"message":["a",1.50,{"b":null,"b":1e5}]}', "ignore")
@example(b'{"message":1,"context":{"a":{"b":{},"c":[]},"a.b":1,"d":null}}', "ignore")
@example(b'{"message":1,"other":{"a":{"b":2}},"null":null}', "LogAttributes")
def test_log_entries_become_the_rows_of_the_reference(body: bytes, unknown: str) -> None:
    assert_as_the_reference(body, LOGS, unknown=unknown)


@given(body_of(LOGS, STRANGERS))
def test_members_without_a_rule_are_refused_where_the_plan_says_so(body: bytes) -> None:
    assert_as_the_reference(body, LOGS, unknown="reject")


@given(body_of(DATASET))
@example(
    b'{"timestamp":1795298400.5,"name":"n","value":1.5,"ok":true,"at":"2026-11-21T22:00:00Z","context":{"a":[1.0]}}'
)
def test_a_table_known_only_at_run_time_takes_its_typed_entries(body: bytes) -> None:
    assert_as_the_reference(body, DATASET, unknown="reject")


@given(body_of(NUMBERS))
def test_numbers_and_times_keep_their_value_in_every_type(body: bytes) -> None:
    assert_as_the_reference(body, NUMBERS)


@pytest.mark.parametrize("type_", INTEGERS)
@given(number=st.integers(-(1 << 65), 1 << 65))
def test_an_integer_is_kept_or_refused_by_the_range_of_its_type(type_: str, number: int) -> None:
    output = Output(layout=(("n", type_),), rules=(("n", "int", "n", ""),), feeds={})
    for near in (number, number % (1 << 9) - (1 << 8), number % (1 << 17) - (1 << 16), number % (1 << 33) - (1 << 32)):
        assert_as_the_reference(b'{"n":%d}' % near, output)


@given(strategies.mutations(body_of(LOGS, STRANGERS)))
def test_mutated_entries_are_refused_or_rows_just_as_for_the_reference(body: bytes) -> None:
    assert_as_the_reference(body, LOGS)


@given(strategies.mutations(body_of(DATASET)))
def test_mutated_typed_entries_are_refused_or_rows_just_as_for_the_reference(body: bytes) -> None:
    assert_as_the_reference(body, DATASET, unknown="reject")


@given(st.one_of(strategies.moments(), strategies.mutations(strategies.moments())))
def test_a_moment_is_read_as_the_reference_reads_it(written: bytes) -> None:
    output = Output(layout=(("t", "DateTime64(9)"),), rules=(("t", "timestamp", "t", ""),), feeds={})
    assert_as_the_reference(b'{"t":' + written + b"}", output)


@given(strategies.epoch_seconds)
def test_epoch_seconds_are_read_exactly(written: bytes) -> None:
    output = Output(
        layout=(("t", "DateTime64(9)"), ("m", "Map(LowCardinality(String), String)")),
        rules=(("t", "time", "t", ""),),
        feeds={"m": "attributes"},
    )
    assert_as_the_reference(b'{"t":' + written + b"}", output)


@given(strategies.json_strings, strategies.json_numbers)
def test_one_entry_feeds_several_tables(text: bytes, number: bytes) -> None:
    first = Output(layout=(("a", "String"),), rules=(("text", "text", "a", ""),), feeds={})
    second = Output(
        layout=(("p", "LowCardinality(String)"), ("n", "Float64"), ("a", "String")),
        rules=(("number", "number", "n", ""), ("text", "json", "a", "")),
        feeds={"p": "project_id"},
    )
    assert_as_the_reference(b'[{"text":' + text + b',"number":' + number + b"}]", first, second)


@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"-Infinity"])
def test_nan_literals_are_read_only_where_the_plan_allows_them(literal: bytes) -> None:
    body = b'{"message":%b,"context":{"a":%b,"b":[%b]},"trace":"x"}' % (literal, literal, literal)
    assert assert_as_the_reference(body, LOGS) == [Outcome(error="Malformed")]
    assert not assert_as_the_reference(body, LOGS, nan_literals=True)[0].error
    numbers = Output(layout=(("n", "Float64"),), rules=(("n", "number", "n", ""),), feeds={})
    assert_as_the_reference(b'{"n":%b}' % literal, numbers, nan_literals=True)


@pytest.mark.parametrize("depth", [1, 63, 64, 65, 5_000])
def test_entries_nest_at_most_64_deep(depth: int) -> None:
    for body in (b'{"message":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}", b"[" * depth + b"]" * depth):
        found = compiled_entries(body, [LOGS])
        if depth > 64:
            assert found == [Outcome(error="Malformed")]
    found = compiled_entries(b'{"message":' + b"[" * (depth - 1) + b"]" * (depth - 1 or 0) + b"}", [LOGS])
    assert bool(found[0].error) == (depth > 64 or depth == 1)


def test_the_first_128_attributes_of_an_entry_are_kept_over_all_its_members() -> None:
    context = b",".join(b'"k%d":%d' % (index, index) for index in range(130))
    found = assert_as_the_reference(b'{"message":"x","user.id":7,"context":{' + context + b"}}", LOGS)
    assert found[0].attributes_cut == 3


def test_one_bad_entry_refuses_all_and_leaves_nothing() -> None:
    good = b'{"message":"good","context":{"a":1}}'
    plan = _native.EntryPlan([(LOGS.layout, LOGS.rules, LOGS.feeds)], unknown="ignore")
    columns = _native.Columns(LOGS.layout)
    _native.entries(good, plan, [columns], constants={}, arrival_ns=strategies.ARRIVAL_NS)
    before = columns.native()
    for bad, error in ((b'{"level":"info"}', Invalid), (b'{"message":', Malformed), (b"7", Invalid)):
        with pytest.raises(error):
            _native.entries(
                b"[" + good + b"," + bad + b"]", plan, [columns], constants={}, arrival_ns=strategies.ARRIVAL_NS
            )
        assert columns.native() == before


def test_entries_cut_at_any_offset_are_refused_and_leave_nothing() -> None:
    body = (
        '[{"timestamp":"2026-11-21T22:00:00.5Z","level":"info","message":"h\\u00e9 \\ud83d\\ude00 é","context":'
        '{"a":[1,2.50,null],"b":{"c":true}},"labels":{"x":"y"}},{"message":"x","timestamp":1795298400.25}]'
    ).encode()
    assert not assert_as_the_reference(body, LOGS)[0].error
    plan = _native.EntryPlan([(LOGS.layout, LOGS.rules, LOGS.feeds)])
    columns = _native.Columns(LOGS.layout)
    _native.entries(body, plan, [columns], constants={}, arrival_ns=strategies.ARRIVAL_NS)
    before = columns.native()
    for end in range(len(body)):
        with pytest.raises((Malformed, Invalid)):
            _native.entries(body[:end], plan, [columns], constants={}, arrival_ns=strategies.ARRIVAL_NS)
        assert columns.native() == before


@pytest.mark.parametrize(
    "written",
    ["0000-01-01T00:00:00Z", "2026-11-21T22:00Z", "2026-11-21", "2026-11-21T22:00:00+1", "2026-11-21T22:00:00+01:",
     "2026-11-21T22:00:00", "2026-11-21T22:00:00.Z", "2026-11-21T24:00:00Z", "2026-02-29T00:00:00Z", ""],
)  # fmt: skip
def test_what_is_no_time_is_refused(written: str) -> None:
    output = Output(layout=(("t", "DateTime64(9)"),), rules=(("t", "timestamp", "t", ""),), feeds={})
    assert assert_as_the_reference(b'{"t":"%s"}' % written.encode(), output) == [Outcome(error="Invalid")]


@pytest.mark.parametrize(
    "written",
    [
        b'"0001-01-01T00:00:00Z"',
        b'"2026-11-21T22:00:00,5Z"',
        b'"2026-11-21T22:00:00+0100"',
        b'"2026-11-21T22:00:00-01"',
        b'"9999-12-31T23:59:59Z"',
        b'"2026-11-21T21:59:60.5Z"',
        b"1795298400000",
        b"1795298400000.5",
        b"1795298400000000",
        b"1795298400000000000",
        b"99999999999",
        b"100000000000",
        b"-1e12",
        b"1e30",
    ],
)
def test_a_moment_in_any_spelling_is_stored_or_clamped_and_kept(written: bytes) -> None:
    output = Output(
        layout=(("t", "DateTime64(9)"), ("m", "Map(LowCardinality(String), String)")),
        rules=(("t", "time", "t", ""), ("m", "attributes", "m", "")),
        feeds={"m": "attributes"},
    )
    assert_as_the_reference(b'{"t":' + written + b',"m":{"weir.timestamp":"a lie","b":1}}', output)


@pytest.mark.parametrize(
    "members", [b'"a":{"b":1},"a":2', b'"a":2,"a":{"b":1}', b'"a":{"b":1},"\\u0061":{"c":2}', b'"a":1,"b":2,"a":3']
)
def test_of_an_unknown_member_that_comes_twice_the_last_one_stays(members: bytes) -> None:
    assert not assert_as_the_reference(b'{"message":"x",' + members + b"}", LOGS, unknown="LogAttributes")[0].error
