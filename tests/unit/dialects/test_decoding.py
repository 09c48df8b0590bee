"""What wire cases cannot show: ids that are given, names that are configured, and reasons that fit into a header."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from gateway import schema
from gateway._native import Columns
from gateway.config import CountedLimits, DialectLimits, Ndjson
from gateway.dialects import loguro, ndjson, proliferate, streamlogia
from gateway.dialects.dialect import Context, Dialect, Outcome, Request
from gateway.errors import Invalid, Malformed

REQUEST = Request("POST", "/", {}, {}, "", 1_700_000_000_000_000_000, "id", False)
CONTEXT = Context("project", 0, 1 << 62, 1 << 24)
FIRST_ID = bytes.fromhex("0123456789abcdef8123456789abcdff")


class Tables:
    """The columns of every table, open."""

    def __init__(self) -> None:
        self.open = {table.name: Columns(table.layout) for table in schema.TABLES}

    def columns(self, table: str) -> Columns:
        return self.open[table]

    def holds(self, text: str) -> bool:
        return any(text.encode() in columns.native() for columns in self.open.values())


def test_ids_of_streamlogia_are_counted_up_from_the_one_that_was_minted() -> None:
    entry = {"level": "INFO", "message": "m", "source": "s"}
    tables = Tables()
    body = json.dumps([entry] * 3).encode()
    outcome = streamlogia.decode(replace(REQUEST, mint=lambda length: FIRST_ID), body, CONTEXT, tables)
    said = json.loads(streamlogia.accepted(REQUEST, outcome).body)
    assert said == {
        "ingested": 3,
        "ids": [
            "01234567-89ab-4def-8123-456789abcdff",
            "01234567-89ab-4def-8123-456789abce00",
            "01234567-89ab-4def-8123-456789abce01",
        ],
    }
    assert all(tables.holds(id_) for id_ in said["ids"])


def ndjson_with(**names: str) -> Dialect:
    return ndjson.dialect(DialectLimits(), Ndjson(**names))


def test_members_of_ndjson_are_called_what_the_settings_say() -> None:
    tables = Tables()
    line = b'{"@timestamp":"2024-01-01T00:00:00Z","severity":"warn","msg":"hello","app":"shop","message":"kept"}'
    dialect = ndjson_with(time="@timestamp", level="severity", message="msg", service="app", trace_id="", span_id="")
    outcome = dialect.decode(REQUEST, line, CONTEXT, tables)
    assert (outcome.rows, outcome.rejected) == (1, {})
    assert [name for name in ("message", "msg", "severity") if tables.holds(name)] == ["message"]


def test_a_line_of_ndjson_that_has_no_time_gets_that_of_arrival_when_none_is_configured() -> None:
    tables = Tables()
    outcome = ndjson_with(time="").decode(REQUEST, b'{"timestamp":"yesterday"}', CONTEXT, tables)
    assert outcome.rows == 1
    assert tables.holds("yesterday")


@pytest.mark.parametrize("field", ["lévél", "a\r\nSet-Cookie: b", "\ud800", "x" * 4000])
def test_the_reason_why_an_entry_was_dropped_is_plain_text_whatever_was_sent(field: str) -> None:
    entries: list[Any] = [{"level": field, "message": "m"}, {field: 1}, field, {"message": "m", "timestamp": field}]
    for entry in entries:
        logs, errors = proliferate.dialects(CountedLimits())
        outcome = logs.decode(REQUEST, json.dumps({"logs": [entry]}).encode(), CONTEXT, Tables())
        assert_reason_is_plain(logs, outcome)
        event = {"exception": {"type": field}, "timestamp": field}
        outcome = errors.decode(REQUEST, json.dumps([event, entry]).encode(), CONTEXT, Tables())
        assert_reason_is_plain(errors, outcome)


def assert_reason_is_plain(dialect: Dialect, outcome: Outcome) -> None:
    assert outcome.rejections
    reason = dict(dialect.accepted(REQUEST, outcome).headers)["X-Dropped-Reason"]
    assert reason.isascii()
    assert reason.isprintable()
    assert len(reason) < 200


def test_an_error_event_keeps_everything_but_the_key() -> None:
    _, errors = proliferate.dialects(CountedLimits())
    for api_key in ('"pk_secret"', '{"pk_secret":1}', '["pk_secret"]'):
        tables = Tables()
        event = f'"api_key":{api_key},"exception":{{"type":"T","odd":[1.50]}},"more":{{"a":123456789012345678901}}'
        errors.decode(REQUEST, f"{{{event}}}".encode(), CONTEXT, tables)
        assert tables.holds('{"more":{"a":123456789012345678901},"exception":{"odd":[1.50]}}')
        assert not tables.holds("pk_secret")


@pytest.mark.parametrize(
    ("body", "key"),
    [
        (b'{"api_key":"a"}', "a"),
        (b' [ {"message":"m","api_key":"a"}, {"api_key":"b"}]', "a"),
        (b'[{"api_key":"a","value":NaN}]', "a"),
        (b'[{"value":"\xff","api_key":"a"},{"value":Infinity}]', "a"),
        (b'[{"message":"m"},{"api_key":"b"}]', None),
        (b'[[{"api_key":"a"}]]', None),
        (b'["api_key","a"]', None),
        (b"[]", None),
        (b"[", None),
    ],
)
def test_the_key_of_error_events_is_the_first_ones_however_the_rest_is_written(body: bytes, key: str | None) -> None:
    assert proliferate.error_key(body) == key


@pytest.mark.parametrize(
    "body",
    [
        b'{"exception":{}, "event_id":"\xff"}',
        b'{"message":"\xff\xfe"}',
        b'{"message":"m", "\xd8":1}',
        b'[{"message":"a\x01b"}]',
        b'{"message":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"message":1e999999}',
        b'{"\\ud800":NaN,"message":"m"}',
        b'{"message":' + b"1" * 10_000 + b"}",
        b"\xef\xbb\xbf{}",
        b"[[]]",
        b"",
    ],
)
def test_an_odd_error_event_is_stored_or_refused_and_nothing_else(body: bytes) -> None:
    _, errors = proliferate.dialects(CountedLimits())
    assert proliferate.error_key(body) is None
    try:
        reply = errors.accepted(REQUEST, errors.decode(REQUEST, body, CONTEXT, Tables()))
    except (Invalid, Malformed) as error:
        reply = errors.refused(REQUEST, error)
    assert reply.status in (202, 422)


@pytest.mark.parametrize(
    ("body", "read"),
    [
        (b'{"a":1} // one', b'{"a":1}       '),
        (b'{"a": // "b":1,\n2}', b'{"a":          \n2}'),
        (b'{"a":"// no","b":"\\"// no"} // "', b'{"a":"// no","b":"\\"// no"}     '),
        (b'{"a":1} / / /', b'{"a":1} / / /'),
        (b'"no end // no', b'"no end // no'),
        (b'"no end \\', b'"no end \\'),
    ],
)
def test_a_comment_is_read_as_spaces_and_a_string_as_it_is(body: bytes, read: bytes) -> None:
    assert loguro.without_comments(body) == read


@pytest.mark.parametrize("body", [b'"' * 500_001, b'"' + b'\\"' * 250_000, b"/" * 500_001, b"//\n" * 200_000])
def test_comments_are_searched_for_once(body: bytes) -> None:
    before = time.process_time()
    assert len(loguro.without_comments(body)) == len(body)
    assert time.process_time() - before < 5.0
