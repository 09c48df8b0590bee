"""GET /api/v1/projects/{project_id}/status: heartbeats by arrival, rates of errors, and what they come to."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Any

import pytest

from gateway.delivery.clickhouse import ClickHouse
from gateway.reading.logs import LogReader
from gateway.reading.status import AHEAD_S, REMEMBERED_S, SERVICES_MAX, Status, StatusReader, judged, status_text
from tests.reading.rig import House, Project

NS = 10**9


def beat(**context: str) -> dict[str, Any]:
    return {"level": "heartbeat", "message": "alive", "context": context}


def entries(level: str, count: int, **context: str) -> list[dict[str, Any]]:
    return [{"level": level, "message": f"{level} {number}", "context": context} for number in range(count)]


async def later(project: Project, seconds: float, timeout_s: int = 120) -> Status:
    """The project's status as it will be in ``seconds``, should nothing more come."""
    clickhouse = ClickHouse(project.house.gateway.clickhouse)
    await clickhouse.start()
    try:
        reader = LogReader(clickhouse.query, clickhouse.database)
        ahead_ns = int(seconds * NS)
        status = StatusReader(reader.ask, clickhouse.database, now_ns=lambda: time.time_ns() + ahead_ns)
        return await status.status(project.id, timeout_s)
    finally:
        await clickhouse.close()


def path(project: Project) -> str:
    return f"/api/v1/projects/{project.id}/status"


def now_status(project: Project) -> Any:
    code, status = project.house.get(path(project))
    assert code == 200, status
    return status


@pytest.mark.parametrize(
    ("errors", "logs", "expected"),
    [
        (0, 0, "operational"),
        (0, 9, "operational"),
        (99, 1000, "operational"),
        (1, 10, "degraded"),
        (399, 1000, "degraded"),
        (2, 5, "incident"),
        (7, 7, "incident"),
    ],
)
def test_the_bands_of_the_error_rate(errors: int, logs: int, expected: str) -> None:
    now_ns = 10**18
    assert judged(0, errors, logs, now_ns=now_ns, timeout_s=120) == expected
    assert judged(now_ns - 120 * NS, errors, logs, now_ns=now_ns, timeout_s=120) == expected


@pytest.mark.parametrize("timeout_s", [120, 300])
def test_a_late_heartbeat_degrades_and_after_twice_the_timeout_it_is_down(timeout_s: int) -> None:
    now_ns = 10**18
    ages = {age: judged(now_ns - age * NS, 0, 9, now_ns=now_ns, timeout_s=timeout_s) for age in range(1000)}
    assert {ages[age] for age in range(timeout_s + 1)} == {"operational"}
    assert {ages[age] for age in range(timeout_s + 1, 2 * timeout_s + 1)} == {"degraded"}
    assert {ages[age] for age in range(2 * timeout_s + 1, 1000)} == {"down"}


def test_a_project_without_logs_is_operational(project: Project) -> None:
    status = now_status(project)
    assert time.time() - 60 < _seconds(status.pop("checked_at")) < time.time() + 60
    assert status == {
        "project_id": project.id,
        "status": "operational",
        "timeout_s": 120,
        "last_heartbeat": None,
        "errors": 0,
        "logs": 0,
        "error_rate": 0.0,
        "services": [],
        "has_more": False,
    }


def test_without_heartbeats_the_error_rate_decides_alone(project: Project) -> None:
    project.send([{"message": "ok", "level": "info"}] * 8 + [{"message": "no", "level": "error"}])
    assert (now_status(project)["status"], now_status(project)["logs"]) == ("degraded", 9)
    project.send([{"message": "no", "level": "fatal"}] * 5)
    status = now_status(project)
    assert (status["status"], status["errors"], status["logs"]) == ("incident", 6, 14)
    assert status["error_rate"] == pytest.approx(6 / 14)


def test_services_are_judged_apart_and_the_project_over_all(project: Project) -> None:
    project.enter(
        [
            beat(service="shop"),
            beat(service="cart"),
            *entries("info", 9, service="shop"),
            *entries("critical", 4, service="cart"),
            *entries("info", 5, service="cart"),
            *entries("debug", 40),
        ]
    )
    status = now_status(project)
    assert (status["status"], status["errors"], status["logs"]) == ("operational", 4, 58)
    assert status["last_heartbeat"] is not None
    found = {
        service["service"]: (service["status"], service["errors"], service["logs"]) for service in status["services"]
    }
    assert found == {"shop": ("operational", 0, 9), "cart": ("incident", 4, 9), None: ("operational", 0, 40)}
    # Those that send heartbeats come first.
    assert status["services"][-1]["service"] is None


def test_the_services_of_other_dialects_are_services_too(project: Project) -> None:
    line = b'{"level": "error", "message": "no", "service": "billing"}'
    project.house.post("/v1/ndjson", line, project.key)
    assert [service["service"] for service in now_status(project)["services"]] == ["billing"]


def test_a_heartbeat_counts_by_its_arrival_whatever_time_it_bears(project: Project) -> None:
    project.enter([{**beat(), "timestamp": "2023-01-31T12:00:00Z"}])
    status = now_status(project)
    assert status["status"] == "operational"
    assert abs(_seconds(status["last_heartbeat"]) - time.time()) < 60


async def test_time_alone_makes_a_silent_service_late_and_then_down(project: Project) -> None:
    project.enter([beat(service="shop")])
    found = [await later(project, seconds) for seconds in (0, 130, 250)]
    assert [status.status for status in found] == ["operational", "degraded", "down"]
    assert (await later(project, 250, timeout_s=300)).status == "operational"
    assert (await later(project, 250)).services[0].status == "down"


async def test_one_late_service_makes_a_beating_project_degraded_at_most(project: Project) -> None:
    project.enter([beat(service="shop"), beat(service="cart")])
    _beat_ahead(project, "cart", 500)
    status = await later(project, 500)
    assert [(service.service, service.status) for service in status.services] == [
        ("shop", "down"),
        ("cart", "operational"),
    ]
    assert status.status == "degraded"


async def test_logs_of_before_half_an_hour_and_heartbeats_of_before_a_day_are_forgotten(project: Project) -> None:
    project.enter([beat(service="shop"), *entries("error", 3, service="shop")])
    assert (await later(project, 1790)).errors == 3
    after = await later(project, 1830)
    assert (after.errors, after.logs, after.status) == (0, 0, "down")
    forgotten = await later(project, REMEMBERED_S + 30)
    assert (forgotten.status, forgotten.services) == ("operational", [])


async def test_what_claims_to_arrive_in_the_future_vouches_for_nothing(project: Project) -> None:
    project.enter([beat()])
    assert (await later(project, -AHEAD_S / 2)).last_heartbeat is not None
    assert (await later(project, -AHEAD_S - 30)).last_heartbeat is None


def test_other_projects_are_not_seen(project: Project, other: Project) -> None:
    other.enter([beat(), *entries("error", 3)])
    assert (now_status(project)["logs"], now_status(project)["last_heartbeat"]) == (0, None)


def test_there_are_so_many_services_and_no_more_in_one_answer(project: Project) -> None:
    lines = [f'{{"message": "m", "service": "s{number}"}}' for number in range(SERVICES_MAX + 1)]
    project.house.post("/v1/ndjson", "\n".join(lines).encode(), project.key)
    status = now_status(project)
    assert (len(status["services"]), status["has_more"], status["logs"]) == (SERVICES_MAX, True, SERVICES_MAX + 1)


@pytest.mark.parametrize("wrong", ["119", "301", "2m", "", "120.0", "-120", "1e2", "٣٠٠"])
def test_a_timeout_that_is_none_is_named(project: Project, wrong: str) -> None:
    status, body = project.house.get(path(project), ("timeout_s", wrong))
    assert (status, body["detail"][0]["loc"]) == (400, ["query", "timeout_s"])


def test_what_is_not_a_parameter_or_is_there_twice_is_refused(house: House, project: Project) -> None:
    assert house.get(path(project), ("timeout", "120"))[0] == 400
    assert house.get(path(project), ("timeout_s", "120"), ("timeout_s", "121"))[0] == 400
    assert house.get(path(project), ("timeout_s", "300"))[0] == 200


def test_who_may_not_ask_and_what_is_not_there(house: House, project: Project) -> None:
    assert house.get(path(project), token="")[0] == 401
    assert house.get(path(project), token=project.key)[0] == 401
    assert house.get("/api/v1/projects/nowhere/status")[0] == 404
    assert house.get(f"/api/v1/projects/{project.slug}/status")[0] == 200


def test_it_is_one_bounded_statement_that_may_only_read() -> None:
    text = status_text("weir")
    assert text.startswith("SELECT ")
    assert "SETTINGS readonly = 1, max_execution_time = 10" in text


def _seconds(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp()


def _beat_ahead(project: Project, service: str, ahead_s: int) -> None:
    """A heartbeat over OTLP, whose senders may say when a record was first seen."""
    record = {
        "eventName": "heartbeat",
        "observedTimeUnixNano": str(time.time_ns() + ahead_s * NS),
        "attributes": [{"key": "service", "value": {"stringValue": service}}],
    }
    body = json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}).encode()
    project.house.post("/v1/logs", body, project.key)
