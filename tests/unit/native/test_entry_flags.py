"""The flags of an entry plan's rules that make it stricter, or more lenient."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway._native import Columns, Decoded, EntryPlan, entries
from gateway.errors import Invalid
from tests.reference.native_block import read_block

LAYOUT = (
    ("at", "DateTime64(9)"),
    ("level", "LowCardinality(String)"),
    ("number", "UInt8"),
    ("event", "String"),
    ("map", "Map(LowCardinality(String), String)"),
)
FEEDS = {"number": "severity_number", "event": "event_name", "map": "attributes"}
ARRIVAL_NS = 1_700_000_000_000_000_000


def decoded(entry: dict[str, Any], *rules: tuple[str, str, str, str]) -> tuple[dict[str, Any], Decoded]:
    columns = Columns(LAYOUT)
    plan = EntryPlan([(LAYOUT, rules, FEEDS)])
    result = entries(json.dumps(entry).encode(), plan, [columns], constants={}, arrival_ns=ARRIVAL_NS)
    (row,) = read_block(columns.native()).table()
    return row, result


@pytest.mark.parametrize(
    ("flags", "sent", "text", "number"),
    [
        ("lenient", {"l": "Warn"}, "Warn", 13),
        ("lenient", {"l": "loud"}, "loud", 0),
        ("lenient", {"l": 30}, "30", 0),
        ("lenient", {"l": ""}, "", 0),
        ("lenient", {"l": None}, "", 0),
        ("lenient", {}, "", 0),
        ("default=INFO", {}, "INFO", 9),
        ("default=INFO", {"l": None}, "INFO", 9),
        ("default=INFO", {"l": "error"}, "error", 17),
        ("default=INFO lenient", {"l": "loud"}, "INFO", 9),
        ("default=INFO lenient", {"l": ""}, "INFO", 9),
        ("default=INFO lenient", {"l": [1]}, "INFO", 9),
        ("default=INFO lenient", {"l": "DEBUG"}, "DEBUG", 5),
    ],
)
def test_a_level_that_is_none_is_kept_or_is_the_default(
    flags: str, sent: dict[str, Any], text: str, number: int
) -> None:
    row, _ = decoded(sent, ("l", f"level {flags}", "level", ""))
    assert (row["level"], row["number"]) == (text, number)


def test_a_level_that_is_none_is_refused_without_leniency_also_beside_a_default() -> None:
    for flags in ("", " default=INFO"):
        with pytest.raises(Invalid):
            decoded({"l": "loud"}, ("l", f"level{flags}", "level", ""))


@pytest.mark.parametrize("sent", ["yesterday", True, {"a": 1}, [1]])
@pytest.mark.parametrize("kind", ["time", "timestamp"])
def test_a_time_that_is_none_is_that_of_arrival_and_kept_as_it_was(kind: str, sent: Any) -> None:
    row, result = decoded({"t": sent, "l": "info"}, ("t", f"{kind} lenient", "at", ""), ("l", "level", "level", ""))
    assert row["at"] == ARRIVAL_NS
    assert row["map"] == {"weir.timestamp": sent if isinstance(sent, str) else json.dumps(sent).replace(" ", "")}
    assert result.timestamps_clamped == 1


def test_a_time_that_is_one_is_taken_where_others_are_forgiven() -> None:
    row, result = decoded({"t": "2024-01-01T00:00:00Z"}, ("t", "time lenient", "at", ""))
    assert (row["at"], row["map"], result.timestamps_clamped) == (1_704_067_200_000_000_000, {}, 0)


@pytest.mark.parametrize("sent", ["7d3c1c0e-5a39-4f0e-9a57-6a3b2d5d9f11", "7D3C1C0E-5A39-4F0E-9A57-6A3B2D5D9F11", None])
def test_a_uuid_is_taken(sent: str | None) -> None:
    row, _ = decoded({"id": sent}, ("id", "attribute uuid", "map", "id"))
    assert row["map"] == ({"id": sent} if sent else {})


@pytest.mark.parametrize(
    "sent",
    [
        "", "demo", 7, [], "7d3c1c0e5a394f0e9a576a3b2d5d9f11", "7d3c1c0e-5a39-4f0e-9a57-6a3b2d5d9f1",
        "7d3c1c0e-5a39-4f0e-9a57-6a3b2d5d9f1g", "7d3c1c0e-5a39-4f0e-9a5786a3b2d5d9f11", "x" * 36,
    ],
)  # fmt: skip
def test_what_is_no_uuid_is_refused(sent: Any) -> None:
    with pytest.raises(Invalid, match="id must be a UUID"):
        decoded({"id": sent}, ("id", "attribute uuid", "map", "id"))


def test_an_array_is_one() -> None:
    rule = ("tags", "attribute array", "map", "tags")
    assert decoded({"tags": ["a", 1]}, rule)[0]["map"] == {"tags": '["a",1]'}
    assert decoded({"tags": None}, rule)[0]["map"] == {}
    for wrong in ("a", {"a": 1}, 1):
        with pytest.raises(Invalid, match="tags must be an array"):
            decoded({"tags": wrong}, rule)


@pytest.mark.parametrize(
    "rule",
    [
        ("a", "text lenient", "event", ""),
        ("a", "level uuid", "level", ""),
        ("a", "text array", "event", ""),
        ("a", "level default=loud", "level", ""),
        ("a", "level default=heartbeat", "level", ""),
        ("a", "int default=1", "number", ""),
    ],
)
def test_a_flag_where_it_means_nothing_is_a_mistake(rule: tuple[str, str, str, str]) -> None:
    with pytest.raises(ValueError, match="rule for 'a'"):
        EntryPlan([(LAYOUT, [rule], FEEDS)])


@pytest.mark.parametrize(
    ("rules", "feeds", "wrong"),
    [
        ([("a", "level", "level", ""), ("b", "level", "other", "")], {}, "two rules for it"),
        ([("a", "level", "level", ""), ("b", "int", "number", "")], FEEDS, "the level's number too"),
        ([("a", "text", "level", "")], {"level": "project_id"}, "is the request's"),
        ([("a", "text", "other", "")], {"other": "dialect"}, "is the request's"),
        ([("../a", "attributes", "map", "")], {}, "a text or an attribute"),
        ([("../a", "time", "at", "")], {}, "a text or an attribute"),
        ([("../in", "text", "level", "")], {}, "holds the entries"),
        ([("a", "text", "level", ""), ("b", "text", "level", "")], {}, "two rules"),
    ],
)
def test_a_plan_that_would_write_a_column_twice_or_read_what_is_not_there_is_refused(
    rules: list[tuple[str, str, str, str]], feeds: dict[str, str], wrong: str
) -> None:
    with pytest.raises(ValueError, match=wrong):
        EntryPlan([((*LAYOUT, ("other", "String")), rules, feeds)], member="in")
