"""Whatever stands in a parameter is a value and nothing else: answers equal those of a model in Python."""

from __future__ import annotations

import os
import urllib.parse
from itertools import islice, product
from random import Random
from typing import Any

import pytest

from gateway.reading.logs import count_text, event_text, page_text
from tests.reading.rig import House, Project

TRIES = int(os.environ.get("WEIR_EXAMPLES", "60"))
PIECES = (
    "'", '"', "`", "\\", "\\'", "''", "--", "/*", "*/", ";", "#", "%", "_", "*", "\\N", "\\0", "\0", "\n", "\r\n", "\t",
    "\b", "{search:String}", "{project_id:String}", "{limit:UInt32}", "$1", "%s", "{}", "[", "]", "(", ")", "=", ",",
    "' OR 1=1 --", "') OR ('1'='1", "\\' OR 1=1 -- ", "; DROP TABLE otel_logs", "' UNION ALL SELECT * FROM system.one",
    "FORMAT Null", "SETTINGS readonly = 0", "sleep(3)", "ß", "жук", "😀", "\u2028", "\ufffd", "null", "NaN", "true",
    "0", " ", "a",
)  # fmt: skip


def hostile(seed: int) -> list[str]:
    """Every piece, then as many of two to four pieces as there are tries."""
    random = Random(seed)
    mixed = ("".join(random.choices(PIECES, k=random.randint(2, 4))) for _ in range(TRIES))
    return [*PIECES, *mixed]


def messages(page: Any) -> list[str]:
    return sorted(log["message"] for log in page["logs"])


@pytest.fixture(scope="module")
def written(house: House) -> tuple[Project, list[dict[str, Any]]]:
    """A project, and its logs as sent; another project has the very same."""
    texts = [text + "end" for text in islice(hostile(1), 150)]
    logs = [{"message": f"A {text}", "trace_id": text, "level": "info"} for text in texts]
    project, twin = house.project("hostile"), house.project("hostile-twin")
    for owner in (twin, project):
        owner.send(logs)
    return project, logs


def test_search_finds_what_the_model_finds(written: tuple[Project, list[dict[str, Any]]]) -> None:
    project, logs = written
    found = 0
    for search in hostile(2):
        page = project.read(search=search, limit=1000)
        wanted = [log["message"] for log in logs if search.lower() in log["message"].lower()]
        assert (messages(page), page["total"]) == (sorted(wanted), len(wanted)), repr(search)
        found += len(wanted)
    assert found > len(logs), "the model has to find something, or nothing was claimed"


def test_a_trace_is_the_one_the_model_finds(written: tuple[Project, list[dict[str, Any]]]) -> None:
    project, logs = written
    for trace_id in [*hostile(3), *(log["trace_id"] for log in logs)]:
        page = project.read(trace_id=trace_id, limit=1000)
        wanted = [log["message"] for log in logs if log["trace_id"] == trace_id]
        assert (messages(page), page["total"]) == (sorted(wanted), len(wanted)), repr(trace_id)


@pytest.mark.parametrize("name", ["levels", "start_time", "end_time", "limit", "offset"])
def test_what_is_no_value_of_a_parameter_is_refused_by_its_name(
    written: tuple[Project, list[dict[str, Any]]], name: str
) -> None:
    project, logs = written
    for value in hostile(4):
        status, reply = project.house.get(project.path, (name, value))
        if status == 200:  # no level at all, and 0 as an offset
            assert value.isdecimal() or not value.replace(",", "").strip(), (name, value)
            assert reply["total"] == len(logs)
        else:
            assert (status, reply["detail"][0]["loc"]) == (422, ["query", name]), (name, value)


def test_a_name_of_a_parameter_is_no_way_in(written: tuple[Project, list[dict[str, Any]]]) -> None:
    project, _ = written
    for name in (*PIECES, "readonly", "max_execution_time", "param_search", "query", "database"):
        status, reply = project.house.get(project.path, (name, "1"))
        assert (status, reply["detail"][0]["loc"]) == (422, ["query", name])


def test_no_path_leads_elsewhere(written: tuple[Project, list[dict[str, Any]]]) -> None:
    project, logs = written
    for value in hostile(5):
        segment = urllib.parse.quote(value, safe="")
        for path in (f"/api/v1/projects/{segment}/logs", f"/api/v1/events/{segment}/logs"):
            status, _, _ = project.house.ask(path)
            assert status == 404, (path, value)
    assert project.read()["total"] == len(logs)


def test_an_event_is_found_by_just_its_id(written: tuple[Project, list[dict[str, Any]]]) -> None:
    project, _ = written
    # aiohttp takes an encoded slash for a slash, so an id that has one is no segment.
    ids = [f"id {text}" for text in hostile(6)[: len(PIECES)] if "/" not in text]
    for event_id in ids:
        project.fail(event_id=event_id)
    for event_id in ids:
        status, page, _ = project.house.ask(f"/api/v1/events/{urllib.parse.quote(event_id, safe='')}/logs")
        assert (status, page["logs"]) == (200, []), repr(event_id)


def test_there_are_so_many_statements_and_no_more() -> None:
    flags = list(product((False, True), repeat=3))
    texts = {count_text("weir", levels=a, search=b, trace_id=c) for a, b, c in flags}
    for oldest_first in (False, True):
        texts |= {page_text("weir", levels=a, search=b, trace_id=c, oldest_first=oldest_first) for a, b, c in flags}
    texts.add(event_text("weir"))
    assert len(texts) == 25
    assert all(
        text.startswith("SELECT ") and "SETTINGS readonly = 1, max_execution_time = 10" in text for text in texts
    )
