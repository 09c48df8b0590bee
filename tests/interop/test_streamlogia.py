"""``streamlogia`` 0.4.0, untouched: what it was given to log is in ClickHouse once, and it saw no error."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.interop.environments import SENDERS, python_with
from tests.interop.rig import RECORDS, Project, send

pytestmark = pytest.mark.interop

LEVELS = (("DEBUG", 5), ("INFO", 9), ("WARN", 13), ("ERROR", 17))


@pytest.fixture(scope="session")
def python() -> Path:
    return python_with("streamlogia")


def sent(python: Path, project: Project, scenario: str, **task: Any) -> tuple[list[str], Any]:
    """What the client's error callback was called with, and what ``ingest`` returned."""
    task = {"url": project.weir.url, "project": project.id, **task}
    if "key" not in task:
        task["key"] = project.key("streamlogia")
    report = send([str(python), str(SENDERS / "streamlogia_sender.py")], {**task, "scenario": scenario})
    return report["errors"], report.get("answer")


def seen(row: Mapping[str, Any]) -> tuple[str, int, str, str]:
    return row["SeverityText"], row["SeverityNumber"], row["ServiceName"], row["Body"]


@pytest.mark.parametrize(("batch_size", "count"), [(100, RECORDS), (1, min(200, RECORDS))])
def test_every_record_of_the_client_is_stored_once(python: Path, project: Project, batch_size: int, count: int) -> None:
    began_ns = time.time_ns()
    errors, _ = sent(python, project, "by_client", count=count, batch_size=batch_size)
    rows = project.rows()
    assert errors == []
    assert len(rows) == count
    assert len({str(uuid.UUID(row["RecordId"])) for row in rows}) == count
    by_number = sorted(rows, key=lambda row: int(row["LogAttributes"]["number"]))
    for number, row in enumerate(by_number):
        level, severity = LEVELS[number % 4]
        assert seen(row) == (level, severity, "orders", f"record {number} ✓")
        tags = json.loads(row["LogAttributes"].pop("tags", "[]"))
        assert tags == (["orders", str(number)] if number % 3 else [])
        assert row["LogAttributes"] == {
            "project.id": project.id,
            "number": str(number),
            "order.id": f"o-{number}",
            "order.lines": f"[1,{number}]",
            "paid": "true" if number % 2 == 0 else "false",
        }
        assert began_ns <= row["Timestamp"] <= row["ObservedTimestamp"] <= time.time_ns()
        assert row["Dialect"] == "streamlogia"
    times = [row["Timestamp"] for row in by_number]
    assert times == sorted(times), "each has the moment at which it was logged"


def test_the_logging_handler_wired_by_init(python: Path, project: Project) -> None:
    errors, _ = sent(python, project, "by_handler")
    rows = project.rows()
    assert errors == []
    assert [seen(row)[:3] for row in rows] == [
        ("DEBUG", 5, "worker"),
        ("WARN", 13, "worker"),
        ("ERROR", 17, "worker"),
        ("INFO", 9, "worker"),
        ("ERROR", 17, "worker"),
    ]
    assert [row["Body"] for row in rows[:4]] == [
        "looking for bolts",
        "few left",
        "none left",
        "between the levels",
    ]
    assert rows[0]["LogAttributes"]["sku"] == "7"
    assert rows[4]["Body"].startswith("could not sell\nTraceback (most recent call last):\n")
    assert rows[4]["LogAttributes"]["exception"].endswith("'no price for ünïcode'\n")


@pytest.mark.parametrize("framework", ["by_flask", "by_asgi"])
def test_the_middleware_logs_every_request_of_an_application(python: Path, project: Project, framework: str) -> None:
    errors, _ = sent(python, project, framework)
    rows = project.rows()
    assert errors == []
    assert [(*seen(row)[:3], row["Body"].rpartition(" (")[0]) for row in rows] == [
        ("INFO", 9, "payments", "POST /pay 201"),
        ("WARN", 13, "payments", "GET /nowhere 404"),
        ("ERROR", 17, "payments", "GET /broken 503"),
    ]
    for row, request_id in zip(rows, ("req-1", None, None), strict=True):
        method, path, status = row["Body"].split()[:3]
        attributes = row["LogAttributes"]
        assert attributes.pop("tags", "[]") == "[]"
        assert row["Body"].endswith(f"({attributes.pop('duration_ms')}ms)")
        expected = {
            "project.id": project.id,
            "method": method,
            "path": path,
            "status": status,
            "user_agent": "interop/1",
            "ip": "127.0.0.1",
        }
        assert attributes == expected | ({"request_id": request_id} if request_id else {})


def test_the_ids_it_is_given_are_the_rows_in_order(python: Path, project: Project) -> None:
    entries = [
        {
            "projectId": project.id,
            "level": "INFO",
            "message": f"entry {number}",
            "source": "by hand",
            "timestamp": f"2026-11-0{number + 1}T10:00:00.123456+02:00",
        }
        for number in range(5)
    ]
    errors, answer = sent(python, project, "by_hand", entries=entries)
    rows = project.rows()
    assert errors == []
    assert answer == {"ingested": 5, "ids": [row["RecordId"] for row in rows]}
    assert [row["Body"] for row in rows] == [entry["message"] for entry in entries]
    assert [row["Timestamp"] % 86_400_000_000_000 for row in rows] == [8 * 3_600_000_000_000 + 123_456_000] * 5


def test_what_only_python_puts_into_json_is_kept(python: Path, project: Project) -> None:
    errors, _ = sent(python, project, "odd")
    odd, after = project.rows()
    assert errors == []
    assert (odd["Body"], after["Body"]) == ("odd \ufffd and \0", "after")
    attributes = odd["LogAttributes"]
    assert json.loads(attributes.pop("tags")) == ["\ufffd"]
    assert attributes == {
        "project.id": project.id,
        "nan": "NaN",
        "infinity": "Infinity",
        "below": '["-Infinity",-0.0]',
        "huge": str(2**80),
        "tiny": "1e-300",
        "none": "",
        "surrogate": "\ufffd",
        "nul": "a\0b",
        "": "no name",
    }


def test_a_wrong_key_calls_the_error_callback_and_stores_nothing(python: Path, project: Project) -> None:
    errors, _ = sent(python, project, "by_client", count=10, batch_size=5, key="ls_app_live_nobody")
    assert [error[:19] for error in errors] == ["HTTPError: HTTP Err"] * 2
    assert all("401" in error for error in errors)
    assert project.rows() == []


def test_a_request_over_the_limit_calls_the_error_callback_with_413(python: Path, project: Project) -> None:
    errors, _ = sent(python, project, "large", bytes=11 << 20)
    assert ["413" in error for error in errors] == [True]
    assert project.rows() == []


def test_a_bad_entry_is_refused_with_all_that_came_with_it(python: Path, project: Project) -> None:
    good = {"projectId": project.id, "level": "INFO", "message": "good", "source": "s"}
    errors, answer = sent(python, project, "by_hand", entries=[good, {**good, "level": "LOUD"}])
    assert answer is None
    assert ["400" in error for error in errors] == [True]
    assert project.rows() == []


def test_a_gateway_that_is_not_there_calls_the_error_callback(python: Path, project: Project) -> None:
    errors, _ = sent(python, project, "by_client", count=4, batch_size=4, url="http://127.0.0.1:1")
    assert [error.startswith("URLError") for error in errors] == [True]


def test_what_is_refused_for_its_rate_calls_the_error_callback_and_the_rest_is_stored(
    python: Path, project: Project
) -> None:
    key = project.key("streamlogia", requests_per_minute=60)
    errors, _ = sent(python, project, "by_client", count=100, batch_size=1, key=key)
    assert 0 < len(errors) < 100
    assert all("429" in error for error in errors)
    assert len(project.rows()) == 100 - len(errors)


def test_what_a_full_gateway_refuses_calls_the_error_callback(python: Path, narrow_project: Project) -> None:
    key = narrow_project.key("streamlogia")
    with narrow_project.weir.full(key):
        errors, _ = sent(python, narrow_project, "by_client", count=10, batch_size=10, key=key)
    assert ["503" in error for error in errors] == [True]
    assert narrow_project.rows() == []
