"""What may be asked of a dataset, what is answered, and that a query is never more than a query."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.datasets.rig import Project

FIELDS = {"country": "string", "amount": "number", "active": "boolean", "at": "timestamp"}
RANGE = {"from": "2026-06-10T00:00:00Z", "to": "2026-06-10T23:59:59Z"}
ROWS = [
    ("2026-06-10T01:00:00Z", "RO", 10, True, "2020-01-01T00:00:00Z"),
    ("2026-06-10T02:00:00Z", "RO", 20.5, False, "2021-01-01T00:00:00Z"),
    ("2026-06-10T03:00:00Z", "US", -5, True, "2022-01-01T00:00:00.25Z"),
    ("2026-06-11T03:00:00Z", "US", 1000, True, "2022-01-01T00:00:00Z"),
]


def when(field: str, op: str, value: object) -> dict[str, object]:
    """A condition."""
    return {"field": field, "op": op, "value": value}


EVIL = (
    "'",
    "`",
    "\\",
    "a'; DROP TABLE otel_logs; --",
    "1) OR (1=1",
    "{p0:String}",
    "%s",
    "$1",
    "a\nb",
    "\x00",
    "\ud800",
    "country`, (SELECT 1) AS `x",
    "SpoolFrame",
    "__traceId",
    "context",
    "*",
    "count()",
    "",
)


@pytest.fixture(scope="module")
def number(strict: Project) -> int:
    number = strict.dataset(FIELDS)
    names = ("timestamp", *FIELDS)
    records = [{**dict(zip(names, row, strict=True)), "context": {"a": 1}} for row in ROWS]
    assert strict.send(f"/datasets/{number}/batch", records)[0] == 202
    strict.house.gateway.wait_until_stored()
    return number


def ask(strict: Project, number: int, **query: Any) -> tuple[int, Any]:
    return strict.control("POST", f"/{number}/query", {"range": RANGE, **query})


def counted(strict: Project, number: int, *where: dict[str, Any]) -> int:
    status, answer = ask(strict, number, where=list(where))
    assert status == 200, answer
    return int(answer["rows"][0]["count"])


@pytest.mark.parametrize(
    ("field", "op", "value", "rows"),
    [
        ("country", "=", "RO", 2),
        ("country", "!=", "RO", 1),
        ("country", ">", "RO", 1),
        ("country", ">=", "RO", 3),
        ("country", "<", "US", 2),
        ("country", "<=", "US", 3),
        ("country", "in", ["US", "DE"], 1),
        ("amount", "=", 20.5, 1),
        ("amount", "!=", 10, 2),
        ("amount", ">", 10, 1),
        ("amount", ">=", 10, 2),
        ("amount", "<", 0, 1),
        ("amount", "<=", -5, 1),
        ("amount", "in", [10, -5], 2),
        ("active", "=", True, 2),
        ("active", "=", False, 1),
        ("active", "!=", True, 1),
        ("active", "in", [True, False], 3),
        ("at", "=", "2022-01-01T02:00:00.25+02:00", 1),
        ("at", "<", "2022-01-01T00:00:00Z", 2),
        ("at", "in", ["2020-01-01T00:00:00Z"], 1),
        ("timestamp", ">", "2026-06-10T01:30:00Z", 2),
    ],
)
def test_every_operator_on_every_type(
    strict: Project, number: int, field: str, op: str, value: object, rows: int
) -> None:
    assert counted(strict, number, {"field": field, "op": op, "value": value}) == rows


def test_conditions_must_all_hold(strict: Project, number: int) -> None:
    both = (when("country", "=", "RO"), {"field": "active", "op": "=", "value": True})
    assert counted(strict, number, *both) == 1


@pytest.mark.parametrize(
    ("selected", "row"),
    [
        ({"aggregate": "count"}, {"count": "3"}),
        ({"aggregate": "count", "field": "country", "as": "n"}, {"n": "3"}),
        ({"aggregate": "sum", "field": "amount"}, {"sum_amount": 25.5}),
        ({"aggregate": "avg", "field": "amount"}, {"avg_amount": 8.5}),
        ({"aggregate": "min", "field": "amount", "as": "least"}, {"least": -5}),
        ({"aggregate": "max", "field": "country"}, {"max_country": "US"}),
        ({"aggregate": "min", "field": "at"}, {"min_at": "2020-01-01T00:00:00Z"}),
        ({"aggregate": "max", "field": "timestamp"}, {"max_timestamp": "2026-06-10T03:00:00Z"}),
        ({"aggregate": "uniq", "field": "country"}, {"uniq_country": "2"}),
    ],
)
def test_every_aggregate(strict: Project, number: int, selected: dict[str, str], row: dict[str, Any]) -> None:
    assert ask(strict, number, select=[selected])[1]["rows"] == [row]


def test_of_nothing_counts_and_sums_are_zero_and_the_rest_is_null(strict: Project, number: int) -> None:
    nothing = [when("country", "=", "nowhere")]
    select = [
        {"aggregate": name, "field": "amount", "as": name} for name in ("count", "sum", "avg", "min", "max", "uniq")
    ]
    row = {"count": "0", "sum": 0, "avg": None, "min": None, "max": None, "uniq": "0"}
    assert ask(strict, number, where=nothing, select=select)[1]["rows"] == [row]


def test_groups_and_their_order(strict: Project, number: int) -> None:
    by_country = [{"country": "RO", "count": "2"}, {"country": "US", "count": "1"}]
    assert ask(strict, number, groupBy=["country"])[1]["rows"] == by_country
    order = [{"field": "count", "direction": "asc"}]
    assert ask(strict, number, groupBy=["country"], orderBy=order)[1]["rows"] == by_country[::-1]
    order = [{"field": "country", "direction": "desc"}]
    assert ask(strict, number, groupBy=["country"], orderBy=order, limit=1)[1]["rows"] == by_country[1:]
    select = [{"field": "active"}]
    assert ask(strict, number, groupBy=["active"], select=select)[1]["rows"] == [{"active": False}, {"active": True}]


def test_records_come_newest_first_or_in_the_order_asked_for(strict: Project, number: int) -> None:
    select = [{"field": "amount", "as": "value"}]
    assert [row["value"] for row in ask(strict, number, select=select)[1]["rows"]] == [-5, 20.5, 10]
    order = [{"field": "active"}, {"field": "value", "direction": "desc"}]
    assert [row["value"] for row in ask(strict, number, select=select, orderBy=order)[1]["rows"]] == [20.5, 10, -5]


def test_without_anything_it_is_the_number_of_records_of_seven_days(project: Project) -> None:
    number = project.dataset({"word": "string"})
    now_s = time.time()
    ages_s = (60, 6.9 * 86_400, 7.1 * 86_400, -3_600)
    times = [time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s - age_s)) for age_s in ages_s]
    assert project.send(f"/datasets/{number}", [{"timestamp": t, "context": {}, "word": "x"} for t in times])[0] == 202
    assert project.rows(number) == [{"count": "2"}]
    assert project.control("POST", f"/{number}/query", b"")[1]["rows"] == [{"count": "2"}]
    assert project.rows(number, {"range": {"from": times[2]}}) == [{"count": "3"}]
    assert project.rows(number, {"range": {"to": times[1]}}) == [{"count": "2"}]


def test_the_limit_is_a_hundred_and_never_over_a_thousand(project: Project) -> None:
    number = project.dataset({"amount": "number"})
    records = [{"timestamp": "2026-06-10T00:00:00Z", "context": {}, "amount": amount} for amount in range(1_100)]
    assert project.send(f"/datasets/{number}/batch", records)[0] == 202
    query: dict[str, object] = {"range": RANGE, "select": [{"field": "amount"}], "orderBy": [{"field": "amount"}]}
    assert [row["amount"] for row in project.rows(number, query)] == list(range(100))
    assert len(project.rows(number, {**query, "limit": 7})) == 7
    assert len(project.rows(number, {**query, "limit": 5_000})) == 1_000


WRONG: list[dict[str, Any]] = [
    {"select": [{"field": "context"}]},
    {"groupBy": ["context"]},
    {"orderBy": [{"field": "context"}]},
    {"where": [when("context", "=", "x")]},
    {"select": [{"aggregate": "uniq", "field": "context"}]},
    {"select": [{"aggregate": "count", "field": "context"}]},
    {"select": [{"field": "country"}, {"aggregate": "count"}]},
    {"select": [{"field": "country"}, {"aggregate": "count"}], "groupBy": ["active"]},
    {"select": [{"field": "country"}], "groupBy": ["active"]},
    {"orderBy": [{"field": "amount"}]},
    {"select": [{"aggregate": "sum", "field": "country"}]},
    {"select": [{"aggregate": "avg", "field": "at"}]},
    {"select": [{"aggregate": "min", "field": "active"}]},
    {"select": [{"aggregate": "sum"}]},
    {"select": [{}]},
    {"select": [{"aggregate": "median", "field": "amount"}]},
    {"select": "country"},
    {"select": [{"raw": "1"}]},
    {"select": [{"field": "country"}, {"field": "country"}]},
    {"select": [{"field": "amount"}] * 65},
    {"limit": 0},
    {"limit": -1},
    {"limit": "10"},
    {"limit": 1.5},
    {"sql": "SELECT 1"},
    {"having": []},
    {"range": {"from": "yesterday"}},
    {"range": {"from": 5}},
    {"range": {"since": "x"}},
    {"range": []},
    {"range": {"from": "2026-06-11T00:00:00Z", "to": "2026-06-10T00:00:00Z"}},
    {"range": {"from": "2026-06-31T00:00:00Z"}},
    {"range": {"from": "0001-01-01T00:00:00+23:59"}},
    {"where": [when("amount", "like", 1)]},
    {"where": [{"field": "amount", "op": "="}]},
    {"where": [when("amount", "=", "1")]},
    {"where": [when("amount", "=", True)]},
    {"where": [when("amount", "=", None)]},
    {"where": [when("amount", "=", 10**400)]},
    {"where": [when("country", "=", 1)]},
    {"where": [when("country", "=", ["RO"])]},
    {"where": [when("country", "in", "RO")]},
    {"where": [when("country", "in", [])]},
    {"where": [when("country", "in", ["RO"] * 101)]},
    {"where": [when("country", "=", "x" * 4_097)]},
    {"where": [when("country", "=", "x" * 4_096)] * 17},
    {"where": [when("active", ">", True)]},
    {"where": [when("active", "=", 1)]},
    {"where": [when("at", "=", 5)]},
    {"where": [when("at", "=", "2026")]},
    {"where": [when("amount", "=", 1)] * 65},
    {"where": {"field": "amount"}},
    {"orderBy": [{"field": "count", "direction": "up"}]},
    {"orderBy": ["count"]},
]


@pytest.mark.parametrize("query", WRONG, ids=[str(query)[:60] for query in WRONG])
def test_what_cannot_be_asked_is_refused(strict: Project, number: int, query: dict[str, Any]) -> None:
    status, answer = ask(strict, number, **query)
    assert (status, list(answer)) == (400, ["error"]), answer


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"5", b'"SELECT 1"', b'{"limit":"\xff"}', b"\x00"])
def test_what_is_no_query_is_refused(strict: Project, number: int, body: bytes) -> None:
    assert strict.control("POST", f"/{number}/query", body)[0] == 400


@pytest.mark.parametrize("evil", EVIL)
def test_names_are_only_those_of_the_schema(strict: Project, number: int, evil: str) -> None:
    queries: list[dict[str, Any]] = [
        {"select": [{"field": evil}]}, {"select": [{"aggregate": "max", "field": evil}]},
        {"select": [{"aggregate": evil, "field": "amount"}]}, {"groupBy": [evil]}, {"orderBy": [{"field": evil}]},
        {"orderBy": [{"field": "count", "direction": evil}]}, {"where": [{"field": evil, "op": "=", "value": 1}]},
        {"where": [{"field": "amount", "op": evil, "value": 1}]}, {"range": {"from": evil}}, {"limit": evil},
    ]  # fmt: skip
    if evil not in ("SpoolFrame", "context"):  # which are good names for a column of the answer
        queries.append({"select": [{"aggregate": "count", "as": evil}]} if evil else {"limit": ""})
    for query in queries:
        assert ask(strict, number, **query)[0] == 400, query


@pytest.mark.parametrize("evil", [text for text in EVIL if text != "\ud800"])
def test_a_value_is_only_a_value(strict: Project, number: int, evil: str) -> None:
    for op in ("=", "in"):
        value = [evil, evil] if op == "in" else evil
        assert counted(strict, number, {"field": "country", "op": op, "value": value}) == 0
    assert counted(strict, number, {"field": "country", "op": "!=", "value": evil}) == 3


def test_a_lone_surrogate_is_refused(strict: Project, number: int) -> None:
    body = b'{"where":[{"field":"country","op":"=","value":"\\ud800"}]}'
    assert strict.control("POST", f"/{number}/query", body)[0] == 400


def test_as_much_as_a_query_may_hold(strict: Project, number: int) -> None:
    assert counted(strict, number, *[when("country", "!=", "'" * 4_096)] * 16) == 3
    amounts = [float(place) for place in range(99)]
    assert counted(strict, number, *[when("amount", "in", amounts)] * 2) == 1
    assert ask(strict, number, where=[when("amount", "in", amounts)] * 3)[0] == 400
