"""/api/v1/projects/{project_id}/alerts: alerts are made, listed and deleted, and what is wrong is named."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.errors import GatewayError
from gateway.http import alerts
from gateway.tenants.errors import StoreUnavailable
from tests.datasets.rig import House, Project

ADDRESS = "https://hooks.example.com/T0/secret"
LEAST: dict[str, Any] = {"name": "Errors", "webhook_url": ADDRESS, "levels": ["error"]}


def path(project: Project) -> str:
    return f"/api/v1/projects/{project.slug}/alerts"


def make(project: Project, **members: Any) -> tuple[int, Any]:
    return project.house.ask("POST", path(project), {**LEAST, **members}, token=project.house.token)


def listed(project: Project) -> list[dict[str, Any]]:
    status, body = project.house.ask("GET", path(project), token=project.house.token)
    assert status == 200, body
    found: list[dict[str, Any]] = body["alerts"]
    return found


def test_an_alert_is_made_listed_and_deleted(project: Project, other: Project) -> None:
    status, body = make(
        project,
        levels=["WARNING", "critical", "fatal"],
        contains="time-out",
        context={"key": "service", "value": "shop"},
        cooldown_s=60,
        enabled=False,
    )
    assert status == 201
    [alert] = listed(project)
    assert body == {"alert": alert}
    made_at = datetime.fromisoformat(alert.pop("created_at"))
    assert abs(datetime.now(UTC) - made_at) < timedelta(minutes=1)
    number = alert.pop("id")
    assert alert.pop("project_id")
    assert alert == {
        "name": "Errors",
        "levels": ["warn", "fatal"],
        "contains": "time-out",
        "context": {"key": "service", "value": "shop"},
        "timeout_s": None,
        "cooldown_s": 60,
        "webhook_url": ADDRESS,
        "enabled": False,
        "last_fired_at": None,
        "last_outcome": None,
    }
    assert listed(other) == []
    delete = ("DELETE", f"{path(project)}/{number}")
    token = project.house.token
    assert project.house.ask("DELETE", f"{path(other)}/{number}", token=token)[0] == 404
    assert project.house.ask(*delete, token=token) == (200, {"success": True})
    assert project.house.ask(*delete, token=token)[0] == 404
    assert listed(project) == []


def test_what_is_not_said_has_a_default(project: Project) -> None:
    _, body = make(project)
    assert (body["alert"]["cooldown_s"], body["alert"]["enabled"], body["alert"]["context"]) == (300, True, None)
    _, body = make(project, levels=["Heartbeat"])
    assert (body["alert"]["levels"], body["alert"]["timeout_s"]) == (["heartbeat"], 120)
    _, body = make(project, levels=["heartbeat"], timeout_s=300)
    assert body["alert"]["timeout_s"] == 300


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("name", ""),
        ("name", "x" * 201),
        ("name", "a\nb"),
        ("name", "  "),
        ("name", 7),
        ("webhook_url", "http://127.0.0.2/"),
        ("webhook_url", "https://example.com/"),
        ("webhook_url", "hooks.example.com"),
        ("webhook_url", "https://u:p@hooks.example.com/"),
        ("webhook_url", ADDRESS + "x" * 2000),
        ("levels", ["loud"]),
        ("levels", ["heartbeat", "error"]),
        ("levels", "error"),
        ("levels", []),
        ("contains", "x" * 1001),
        ("contains", "a\0b"),
        ("context", {"key": "a\0", "value": "b"}),
        ("context.key", {"key": "", "value": "b"}),
        ("context.value", {"key": "a", "value": 404}),
        ("context", {"key": "a", "value": "b", "more": 1}),
        ("timeout_s", 119),
        ("timeout_s", 301),
        ("timeout_s", 120),
        ("cooldown_s", 0),
        ("cooldown_s", 604_801),
        ("cooldown_s", 1.5),
        ("enabled", "yes"),
    ],
)
def test_a_member_that_is_wrong_is_named(project: Project, member: str, value: Any) -> None:
    status, body = make(project, **{member.partition(".")[0]: value})
    assert (status, body["detail"][0]["loc"]) == (400, ["body", member])
    assert listed(project) == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"name": "\\ud800"}', b"\xff", b'{"name":"a","hook":1}'])
def test_a_body_that_is_no_alert_is_refused(project: Project, body: bytes) -> None:
    status, answer = project.house.ask("POST", path(project), body, token=project.house.token)
    assert (status, list(answer)) == (400, ["detail"])


def test_who_may_not_and_where_there_is_nothing(house: House, project: Project) -> None:
    assert house.ask("GET", path(project), token=None)[0] == 401
    assert house.ask("POST", path(project), LEAST, token=project.key)[0] == 401
    assert house.ask("POST", "/api/v1/projects/nowhere/alerts", LEAST, token=house.token)[0] == 404
    for wrong in ("x", "0", "-1", "99999999999", "2147483648"):
        assert house.ask("DELETE", f"{path(project)}/{wrong}", token=house.token)[0] == 404
    assert house.ask("PUT", path(project), LEAST, token=house.token)[0] == 405


def test_there_are_so_many_and_no_more(project: Project) -> None:
    for _ in range(100):
        assert make(project, enabled=False)[0] == 201
    status, body = make(project)
    assert (status, "100 alerts" in body["detail"]) == (409, True)


def test_while_postgres_is_away_the_answer_is_503() -> None:
    with pytest.raises(GatewayError) as caught, alerts._refusals():
        raise StoreUnavailable("secret words about Postgres")
    assert json.dumps(alerts.error_body(caught.value)) == '{"detail": "Alerts temporarily unavailable"}'


def test_what_postgres_keeps_fits_into_it(project: Project) -> None:
    """The largest of everything at once, in characters of four bytes."""
    large = "\U0001f525"
    status, body = make(
        project,
        name=large * 200,
        contains=large * 1000,
        context={"key": large * 200, "value": large * 1000},
        webhook_url=ADDRESS + "x" * (2000 - len(ADDRESS)),
    )
    assert status == 201
    assert listed(project) == [body["alert"]]
