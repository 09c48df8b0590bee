"""Whatever stands in a parameter of Streamlogia's reads is a value and nothing else: the answer is the model's."""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest

from gateway.reading.streamlogia import (
    COLUMNS,
    Wanted,
    find_text,
    groups_text,
    page_text,
    series_text,
    stats_text,
    total_text,
)
from tests.reading.rig import Project
from tests.reading.test_hostile_values import PIECES, hostile
from tests.reading.test_streamlogia import NOON_NS, Row, messages, path, read, send

SCOPES = ("one", "some", "all")
WINDOW = (("from", "2025-01-15T00:00:00Z"), ("to", "2025-01-16T00:00:00Z"))


@pytest.fixture(scope="module")
def written(house: Any) -> tuple[Project, list[Row]]:
    """A project whose every text is hostile; another has the very same rows."""
    texts = [text for text in hostile(11)[:120] if text.strip()]
    rows = [
        Row(f"{number} {text} end", "INFO", text, NOON_NS, (text, "b"), {f"k{text}": text, "same": text})
        for number, text in enumerate(texts)
    ]
    project, twin = house.project("hostile-streamlogia"), house.project("hostile-streamlogia-twin")
    for owner in (twin, project):
        send(owner, rows)
    return project, rows


def found(project: Project, *parameters: tuple[str, str]) -> list[str]:
    return sorted(messages(read(project, *parameters, ("limit", 1000), ("total", "none"))["logs"]))


def of_model(rows: Sequence[Row], *parameters: tuple[str, str]) -> list[str]:
    return sorted(row.message for row in rows if row.is_found(parameters))


@pytest.mark.parametrize("name", ["q", "source", "tag", "meta.same"])
def test_a_filter_finds_what_the_model_finds(written: tuple[Project, list[Row]], name: str) -> None:
    project, rows = written
    there = [row.source for row in rows[::4]]
    for value in [*PIECES, *hostile(12)[len(PIECES) :: 4], *there]:
        assert found(project, (name, value)) == of_model(rows, (name, value)), (name, value)
    assert any(of_model(rows, (name, value)) for value in there), "the model has to find something"


def test_a_field_of_meta_is_found_by_just_its_name(written: tuple[Project, list[Row]]) -> None:
    project, rows = written
    for row in rows[::3]:
        pair = (f"meta.k{row.source}", row.source)
        assert found(project, pair) == of_model(rows, pair) != []
    for name in PIECES[::2]:
        assert found(project, (f"meta.{name}", "x")) == []


def test_groups_are_those_of_the_model(written: tuple[Project, list[Row]]) -> None:
    project, rows = written
    for group_by, keys in (
        ("source", Counter(row.source for row in rows)),
        ("meta.same", Counter(row.meta["same"] for row in rows)),
    ):
        groups = read(project, *WINDOW, ("groupBy", group_by), ("limit", 500), rest="/aggregate")["groups"]
        assert Counter({group["key"]: group["count"] for group in groups}) == keys
    for name in PIECES[::3]:
        answer = read(project, *WINDOW, ("groupBy", f"meta.{name}"), rest="/aggregate")
        assert answer["groups"] == [{"key": "", "count": len(rows)}]


@pytest.mark.parametrize(
    ("rest", "name"),
    [
        *product([""], ["level", "limit", "cursor", "total", "from", "to", "source_type"]),
        *product(["/export"], ["format", "maxRows"]),
        *product(["/timeseries"], ["interval", "from"]),
        *product(["/aggregate"], ["groupBy", "limit"]),
    ],
)
def test_what_is_no_value_of_a_parameter_is_refused_by_its_name(
    written: tuple[Project, list[Row]], rest: str, name: str
) -> None:
    project, _ = written
    refused = 0
    for value in [*hostile(13)[::3], *(f"{piece}1" for piece in PIECES)]:
        status, reply = project.house.get(path(project, rest), (name, value))
        if status == 200:  # nothing but commas, or a number
            assert value.isdecimal() or not value.replace(",", "").strip(), (name, value)
        else:
            assert (status, reply["details"][0]["field"]) == (400, name), value
            refused += 1
    assert refused > len(PIECES)


def test_a_cursor_that_is_a_forgery_is_400_or_a_place(written: tuple[Project, list[Row]]) -> None:
    project, _ = written
    good = read(project, ("limit", 1))["nextCursor"]
    decoded = json.loads(base64.urlsafe_b64decode(good + "=="))
    forgeries: list[Any] = [[], None, 1, {}, {"ts": decoded["ts"]}, {**decoded, "ts": 1}, {**decoded, "id": None}]
    forgeries += [
        {**decoded, "ts": text}
        for text in (*PIECES, "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+23:59", "2099-01-01T00:00:00Z")
    ]
    forgeries += [
        {**decoded, "id": text} for text in (*PIECES, "7d3c1c0e-5a39-4f0e-9a57-6a3b2d5d9f11", "{" + decoded["id"])
    ]
    statuses = set()
    for forgery in forgeries:
        cursor = base64.urlsafe_b64encode(json.dumps(forgery).encode()).decode()
        status, reply = project.house.get(path(project), ("cursor", cursor))
        assert status == 200 or reply["details"][0]["field"] == "cursor", (forgery, reply)
        statuses.add(status)
    assert statuses == {200, 400}, "a time far away is a place"


def test_a_name_of_a_parameter_and_a_path_are_no_way_in(written: tuple[Project, list[Row]]) -> None:
    project, rows = written
    for name in (*PIECES, "readonly", "max_execution_time", "param_search", "query", "database", "project_ids"):
        status, reply = project.house.get(path(project), (name, "1"))
        assert (status, reply["details"][0]["field"]) == (400, name)
        status, reply = project.house.get("/v1/query/logs", ("projectId", f"x{name}"))
        assert (status, reply["code"]) == (404, "not_found")
    for value in PIECES[::2]:
        segment = urllib.parse.quote(value, safe="")
        assert project.house.ask(f"/v1/projects/{segment}/logs")[0] == 404
        assert project.house.ask(f"{path(project)}/x{segment}")[0] in (400, 404)
    assert len(found(project)) == len(rows)


def test_there_are_so_many_statements_and_no_more() -> None:
    texts = {page_text("weir", scope) for scope in SCOPES} | {stats_text("weir", scope) for scope in SCOPES}
    texts |= {series_text("weir", scope) for scope in SCOPES}
    texts |= {total_text("weir", scope, exact=exact) for scope in SCOPES for exact in (False, True)}
    texts |= {find_text("weir", scope, by_identity=by) for scope in SCOPES for by in (False, True)}
    texts |= {groups_text("weir", scope, group_by) for scope in SCOPES for group_by in (*COLUMNS, "meta")}
    assert len(texts) == 33
    assert {Wanted(ids).scope for ids in ((), ("a",), ("a", "b"))} == set(SCOPES)
    assert all(
        text.startswith("SELECT ") and "SETTINGS readonly = 1, max_execution_time = 10" in text for text in texts
    )
