"""The rows of GenAI events are what the rules say: compared with the reference on any request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from gateway import _native
from gateway.errors import Malformed
from gateway.schema import GENAI_EVENTS, OTEL_LOGS
from tests.property import strategies
from tests.property.compiled import CONSTANTS, Outcome, outcome, table_of
from tests.property.messages import (
    ABSENT,
    AnyValue,
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
from tests.reference import genai, otlp, otlp_json
from tests.reference.otlp import oracle_silent

PLAN = _native.OtlpPlan([(table.layout, table.feeds) for table in (OTEL_LOGS, GENAI_EVENTS)], genai=[1])
PLAIN = Style(0)
MALFORMED = Outcome(error="Malformed")
TIMES: dict[str, Any] = {
    "arrival_ns": strategies.ARRIVAL_NS,
    "time_min_ns": strategies.TIME_MIN_NS,
    "time_max_ns": strategies.TIME_MAX_NS,
}


# Both sides.


def compiled(body: bytes, *, json: bool, content_bytes_max: int | None = None) -> tuple[Outcome, Outcome]:
    """The log rows with the counts, and the rows of events."""
    logs, events = _native.Columns(OTEL_LOGS.layout), _native.Columns(GENAI_EVENTS.layout)
    decode = _native.otlp_json if json else _native.otlp_protobuf
    try:
        decoded = decode(
            body,
            PLAN,
            [logs, events],
            constants=CONSTANTS,
            **TIMES,
            content_bytes_max=content_bytes_max,
        )
    except Malformed:
        assert logs.rows == events.rows == 0
        return MALFORMED, MALFORMED
    assert decoded.outputs == (logs.rows, events.rows)
    assert decoded.rows == logs.rows
    counts = list(decoded.rejected.items()), decoded.attributes_cut, decoded.timestamps_clamped
    return outcome(table_of(logs), *counts), outcome(table_of(events), [], 0, 0)


def reference(body: bytes, *, json: bool, content_bytes_max: int | None = None) -> tuple[Outcome, Outcome]:
    """What the rules make of it."""
    decode = otlp_json.decode_json if json else otlp.decode_protobuf
    try:
        logs = decode(body, constants=CONSTANTS, **TIMES)
    except Malformed:
        return MALFORMED, MALFORMED
    events = genai.decode(body, json=json, constants=CONSTANTS, **TIMES)
    if content_bytes_max is not None:
        logs.rows = [genai.cut_log(row, content_bytes_max) for row in logs.rows]
        events = [genai.cut_event(row, content_bytes_max) for row in events]
    counts = list(logs.rejected.items()), logs.attributes_cut, logs.timestamps_clamped
    return outcome(otlp.to_table_rows(logs, OTEL_LOGS), *counts), outcome(events, [], 0, 0)


# What senders may send.

NAMES = (
    *genai.MESSAGES, genai.CHOICE, "gen_ai.content.prompt", "gen_ai.content.completion",
    "gen_ai.client.inference.operation.details", "gen_ai.evaluation.result", "gen_ai.client.operation.exception",
    "gen_ai.", "gen_ai.anything", "gen_ai.choices", "gen_ai.user.messages",
)  # fmt: skip
NEARLY = (
    "gen_ai", "event.gen_ai", "event.event.gen_ai.choice", "events.gen_ai.choice", "xgen_ai.choice", "GEN_AI.choice",
    "event.", "", "gen_ai\0.choice",
)  # fmt: skip
names: SearchStrategy[bytes] = st.one_of(
    st.sampled_from(NAMES), st.sampled_from(NAMES).map("event.".__add__), st.sampled_from(NEARLY)
).map(str.encode)
KEYS = tuple(
    key.encode()
    for keys in (
        *genai.TEXTS.values(), *genai.COUNTS.values(), *genai.NUMBERS.values(), genai.SEED, genai.STREAM,
        genai.CONTENT, ("event.name", "finish_reason", "gen_ai.response.finish_reason", "gen_ai"),
    )
    for key in keys
)  # fmt: skip
NUMERALS = (
    "0", "-0", "7", "-7", "007", "+7", " 7", "7 ", "7.0", "7.5", "-7.0", "70e-1", "7e2", "7E+2", ".5", "5.", "1_000",
    "18446744073709551615", "18446744073709551616", "9223372036854775807", "9223372036854775808",
    "-9223372036854775808", "-9223372036854775809", "1e19", "1e20", "1e400", "1e-400", "-1e999999999999", "0.1",
    "123456789012345678901234567890", "0x10", "NaN", "Infinity", "-Infinity", "true", "", "-", "e", "7\0", "٧",
)  # fmt: skip
numbers: SearchStrategy[AnyValue] = st.one_of(
    st.sampled_from(NUMERALS).map(lambda text: Text(text.encode())),
    st.integers(0, 1 << 65).map(lambda number: Text(b"%d" % number)),
    st.floats(allow_nan=False).map(lambda number: Text(repr(number).encode())),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.sampled_from((2.0**63, -(2.0**63), 2.0**64, 2.0**64 - 2048, 2.0**63 - 1024, -0.0, 0.5, -1.0, 1e300, 4096.0)),
    st.floats(),
    st.booleans(),
)
bodies: SearchStrategy[AnyValue] = st.one_of(
    strategies.values,
    st.lists(
        st.tuples(
            st.sampled_from((b"finish_reason", b"index", b"message", b"content", b"role", b"finish_reason\xff")),
            strategies.values_or_absent,
        ),
        max_size=5,
    ).map(lambda entries: Pairs(tuple(entries))),
)


@st.composite
def attribute_lists(draw: st.DrawFn, name: bytes) -> Entries:
    """Attributes that mean something to events among others; a name for one now and then."""
    known = st.tuples(st.sampled_from(KEYS), st.one_of(numbers, strategies.values_or_absent))
    entries = draw(st.lists(known, max_size=12))
    if draw(st.booleans()):
        entries.append((b"event.name", Text(name)))
    others = draw(st.one_of(st.just(()), strategies.entry_lists()))
    return (*entries, *others) if draw(st.booleans()) else (*others, *entries)


@st.composite
def event_records(draw: st.DrawFn) -> Record:
    """A record that may be an event: by its event name, by an attribute, by both or by none."""
    record = draw(strategies.records)
    attributes = draw(attribute_lists(draw(names)))
    name = draw(st.one_of(names, st.just(b"")))
    return replace(record, event_name=name, attributes=attributes, body=draw(st.one_of(bodies, st.just(ABSENT))))


requests: SearchStrategy[tuple[ResourceLogs, ...]] = st.lists(
    st.lists(st.lists(event_records(), max_size=3), max_size=2), max_size=2
).map(
    lambda groups: tuple(
        ResourceLogs(
            attributes=((b"user.id", Text(b"of the resource")),),
            scopes=tuple(ScopeLogs(records=tuple(records), name=b"scope") for records in scopes),
        )
        for scopes in groups
    )
)


def one(**fields: object) -> bytes:
    """A request of one record, in protobuf."""
    return protobuf((ResourceLogs(scopes=(ScopeLogs(records=(Record(**fields),)),)),), PLAIN)  # type: ignore[arg-type]


def event(**fields: object) -> otlp.Row | None:
    """The only event of a request of one record, without what the columns hold by default."""
    found, expected = compiled(one(**fields), json=False), reference(one(**fields), json=False)
    assert found == expected
    columns = _native.Columns(GENAI_EVENTS.layout)
    _native.otlp_protobuf(
        one(**fields),
        PLAN,
        [_native.Columns(OTEL_LOGS.layout), columns],
        constants={},
        arrival_ns=strategies.ARRIVAL_NS,
    )
    rows = table_of(columns)
    if not rows:
        return None
    (row,) = rows
    return {name: cell for name, cell in row.items() if cell not in ("", None) and name not in ("Timestamp", *IDENTITY)}


IDENTITY = ("SpoolFrame", "SpoolRow")


# The same events.


@given(requests, strategies.styles)
def test_protobuf_gives_the_events_of_the_reference(request: Sequence[ResourceLogs], style: Style) -> None:
    body = protobuf(request, style)
    assert compiled(body, json=False) == reference(body, json=False)


@given(requests, strategies.styles)
def test_json_gives_the_events_of_the_reference(request: Sequence[ResourceLogs], style: Style) -> None:
    body = document(request, style)
    assert compiled(body, json=True) == reference(body, json=True)


@given(strategies.mutations(st.builds(protobuf, requests, strategies.styles)))
def test_mutated_protobuf_gives_the_events_of_the_reference(body: bytes) -> None:
    found = compiled(body, json=False)
    assume(not oracle_silent(body))
    assert found == reference(body, json=False)


@given(strategies.mutations(st.builds(document, requests, strategies.styles)))
def test_mutated_json_gives_the_events_of_the_reference(body: bytes) -> None:
    assert compiled(body, json=True) == reference(body, json=True)


@given(st.sampled_from(sorted(genai.COUNTS.items())), numbers)
@example(("MaxTokens", ("gen_ai.request.max_tokens",)), Text(b"18446744073709551615"))
@example(("MaxTokens", ("gen_ai.request.max_tokens",)), 2.0**64)
def test_a_number_is_read_as_the_reference_reads_it(column: tuple[str, tuple[str, ...]], value: AnyValue) -> None:
    keys = (*column[1], *genai.NUMBERS["Temperature"], *genai.SEED, *genai.STREAM)
    found = event(event_name=b"gen_ai.choice", attributes=tuple((key.encode(), value) for key in keys))
    assert found is not None
    assert found["EventName"] == "gen_ai.choice"


@given(requests, st.sampled_from((0, 1, 2, 3, 7, 20)), st.booleans())
def test_no_more_content_is_kept_than_the_project_keeps(
    request: Sequence[ResourceLogs], content_bytes_max: int, json: bool
) -> None:
    body = (document if json else protobuf)(request, PLAIN)
    found = compiled(body, json=json, content_bytes_max=content_bytes_max)
    assert found == reference(body, json=json, content_bytes_max=content_bytes_max)


# Claims, one by one.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prefix", ["", "event."])
def test_an_event_may_be_named_in_either_place_with_or_without_event_in_front(name: str, prefix: str) -> None:
    expected = {"EventName": name}
    assert event(event_name=(prefix + name).encode()) == expected
    assert event(attributes=((b"event.name", Text((prefix + name).encode())),)) == expected


@pytest.mark.parametrize("name", NEARLY)
def test_what_is_only_nearly_an_events_name_makes_none(name: str) -> None:
    assert event(event_name=name.encode(), attributes=((b"gen_ai.request.model", Text(b"gpt-4")),)) is None


def test_attributes_alone_never_make_an_event() -> None:
    assert event(attributes=tuple((key, Text(b"gpt-4")) for key in KEYS if key != b"event.name")) is None


def test_the_field_goes_before_the_attribute_in_naming_an_event() -> None:
    attributes = ((b"event.name", Text(b"gen_ai.choice")),)
    assert event(event_name=b"checkout", attributes=attributes) is None
    assert event(event_name=b"gen_ai.user.message", attributes=attributes) == {"EventName": "gen_ai.user.message"}


@pytest.mark.parametrize("name", [*genai.MESSAGES, genai.CHOICE])
def test_the_body_of_a_message_is_input_and_that_of_a_choice_output(name: str) -> None:
    found = event(event_name=name.encode(), body=Pairs(((b"content", Text(b"hi")), (b"finish_reason", Text(b"stop")))))
    assert found is not None
    text = '{"content":"hi","finish_reason":"stop"}'
    if name == genai.CHOICE:
        assert found == {"EventName": name, "OutputMessages": text, "FinishReasons": '["stop"]'}
    else:
        assert found == {"EventName": name, "InputMessages": text}


def test_the_first_attribute_present_counts_even_when_it_does_not_fit() -> None:
    attributes = ((b"gen_ai.usage.input_tokens", Text(b"many")), (b"gen_ai.usage.prompt_tokens", 7))
    assert event(event_name=b"gen_ai.x", attributes=attributes) == {"EventName": "gen_ai.x"}
    assert event(event_name=b"gen_ai.x", attributes=attributes[1:]) == {"EventName": "gen_ai.x", "InputTokens": 7}


@pytest.mark.parametrize("at", [127, 128])
def test_attributes_past_the_128th_do_not_count(at: int) -> None:
    attributes = (*((b"k%d" % index, index) for index in range(at)), (b"gen_ai.request.model", Text(b"gpt-4")))
    found = event(event_name=b"gen_ai.x", attributes=attributes)
    assert found == {"EventName": "gen_ai.x", **({"RequestModel": "gpt-4"} if at < 128 else {})}


def test_a_rejected_record_is_no_event_either() -> None:
    deep: AnyValue = Text(b"x")
    for _ in range(40):
        deep = (deep,)
    assert event(event_name=b"gen_ai.choice", body=deep) is None
