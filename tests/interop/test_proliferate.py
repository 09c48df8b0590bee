"""``proliferate-ai`` 0.2.2 and 0.1.0, untouched: they send errors, and each is in ``error_events`` once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.interop.environments import SENDERS, python_with
from tests.interop.rig import RECORDS, Project, send

pytestmark = pytest.mark.interop

ERRORS = RECORDS // 4
"""Fewer: each is a request of its own."""


def sent_by_0_2(project: Project, **task: Any) -> dict[str, Any]:
    task = {"url": project.weir.url, **task}
    if "key" not in task:
        task["key"] = project.key("proliferate")
    return send([str(python_with("proliferate-0.2")), str(SENDERS / "proliferate_0_2_sender.py")], task)


def sent_by_0_1(project: Project, **task: Any) -> dict[str, Any]:
    task = {"url": f"{project.weir.url}/api/v1/errors", **task}
    if "key" not in task:
        task["key"] = project.key("proliferate")
    return send([str(python_with("proliferate-0.1")), str(SENDERS / "proliferate_0_1_sender.py")], task)


@pytest.mark.parametrize(("base", "count"), [("", ERRORS), ("/api", 50)])
def test_every_error_of_0_2_is_stored_once_with_every_field(project: Project, base: str, count: int) -> None:
    report = sent_by_0_2(project, url=project.weir.url + base, count=count, uncaught=True)
    assert report["answers"] == ["202 Accepted"] * (count + 1)
    *rows, uncaught = project.rows("error_events")
    assert (uncaught["Value"], uncaught["Handled"]) == ("error -1 ✓ \0", 0)
    for number, (row, event) in enumerate(zip(rows, report["events"], strict=True)):
        assert (row["EventId"], row["TraceId"]) == (event["id"], event["trace"])
        assert (row["Type"], row["Value"], row["Stack"]) == ("ValueError", event["value"], event["stack"])
        assert (row["Handled"], row["Platform"]) == (1, "python")
        assert (row["Environment"], row["Release"]) == ("interop", "v7")
        assert event["began"] // 1_000 * 1_000 <= row["Timestamp"] <= event["ended"]
        context = json.loads(row["Context"])
        assert len(context["session_id"]) == 32
        found = context.get("context")
        user = {"id": f"u-{number}", "email": "user@example.com", "username": None, "ip_address": None}
        assert found == ({"user": user, "tags": {"feature": "checkout"}} if number % 2 else None)


def test_every_error_and_message_of_0_1_is_stored_once_with_every_field(project: Project) -> None:
    report = sent_by_0_1(project, count=ERRORS)
    assert report["complaints"] == []
    ping, *rows = project.rows("error_events")
    assert ping["Value"] == "proliferate-sdk-init"
    for number, (row, event) in enumerate(zip(rows, report["events"], strict=True)):
        message = number % 3 == 2
        assert row["EventId"] == event["id"]
        assert (row["Type"], row["Value"]) == ("message" if message else "__main__.Declined", event["value"])
        assert row["Stack"] == event["stack"]
        assert (row["Environment"], row["Release"]) == ("interop", "v7")
        assert event["began"] // 1_000 * 1_000 <= row["Timestamp"] <= event["ended"]
        context = json.loads(row["Context"])
        assert context["user"] == {"id": "u-1", "email": "user@example.com"}
        assert context["account"] == {"id": "a-1", "name": "Acme"}
        assert context["extra"] == {"tags": {"total": 99.5}, "number": number}
        assert context["level"] == ("warning" if message else "error")
        assert "api_key" not in row["Context"]


def test_a_wrong_key_is_401_in_both_and_stores_nothing(project: Project) -> None:
    assert sent_by_0_2(project, count=3, key="pk_nobody")["answers"] == ["401 Unauthorized"] * 3
    complaints = sent_by_0_1(project, count=3, key="pk_nobody")["complaints"]
    assert complaints == ["Failed to send event: HTTP Error 401: Unauthorized"] * 3
    assert project.rows("error_events") == []


def test_a_full_gateway_is_503_to_both_and_neither_waits(narrow_project: Project) -> None:
    key = narrow_project.key("proliferate")
    with narrow_project.weir.full(key):
        assert sent_by_0_2(narrow_project, count=3, key=key)["answers"] == ["503 Service Unavailable"] * 3
        complaints = sent_by_0_1(narrow_project, count=3, key=key)["complaints"]
    assert complaints == ["Failed to send event: HTTP Error 503: Service Unavailable"] * 3
    assert narrow_project.rows("error_events") == []


def test_an_application_goes_on_when_there_is_no_gateway(project: Project) -> None:
    assert sent_by_0_2(project, count=3, url="http://127.0.0.1:1")["answers"] == []
    complaints = sent_by_0_1(project, count=2, url="http://127.0.0.1:1/api/v1/errors")["complaints"]
    assert ["refused" in complaint for complaint in complaints] == [True, True]
