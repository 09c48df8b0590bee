"""GET /api/v1/projects/{project_id}/logs: what it finds, page by page, and what it refuses."""

from __future__ import annotations

import json
import urllib.parse
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.reading.rig import House, Project

# As the vendor's page has it, but for the project.
DOCUMENTED_QUERY = """
GET /api/v1/projects/{project_id}/logs?
  levels=error,warn&
  search=database&
  start_time=2025-01-15T00:00:00Z&
  end_time=2025-01-15T23:59:59Z&
  limit=100
"""
DOCUMENTED_LOG = {
    "timestamp": "2025-01-15T10:30:00.123Z",
    "level": "error",
    "message": "Database connection failed",
    "template": "Database connection failed: {error}",
    "attributes": {"error": "timeout"},
    "trace_id": "trace_abc123",
    "span_id": "span_xyz789",
    "user_id": "user_123",
    "account_id": "acct_456",
    "logger_name": "db.pool",
    "file_path": "src/db/pool.py",
    "line_number": 42,
    "function_name": "connect",
}
NOON = 1_736_942_400
LEVELS = ("trace", "debug", "info", "warn", "error", "fatal")


def sent(log: dict[str, Any]) -> dict[str, Any]:
    """The log that is read back as ``log``."""
    entry = {name: value for name, value in log.items() if name not in ("user_id", "account_id")}
    seconds = datetime.fromisoformat(log["timestamp"]).timestamp()
    return {**entry, "timestamp": seconds, "user": {"id": log["user_id"]}, "account": {"id": log["account_id"]}}


@pytest.fixture
def numbered(project: Project) -> Project:
    """Twelve logs, a second apart, of every level twice; messages are their numbers."""
    project.send(
        [
            {
                "timestamp": NOON + number,
                "level": LEVELS[number % 6],
                "message": str(number),
                "trace_id": f"trace_{number % 3}",
            }
            for number in range(12)
        ]
    )
    return project


def test_the_documented_query_finds_the_documented_log(house: House, project: Project, other: Project) -> None:
    near = {**DOCUMENTED_LOG, "message": "no such word"}
    project.send([sent(log) for log in (DOCUMENTED_LOG, near, {**DOCUMENTED_LOG, "level": "info"})])
    other.send([sent(DOCUMENTED_LOG)])
    address = "".join(line.strip() for line in DOCUMENTED_QUERY.splitlines()).removeprefix("GET ")
    status, page, headers = house.ask(address.format(project_id=project.id))
    assert status == 200
    assert page == {"logs": [DOCUMENTED_LOG], "total": 1, "has_more": False}
    assert list(page["logs"][0]) == list(DOCUMENTED_LOG)
    assert headers["Content-Type"] == "application/json"


def test_a_project_is_named_by_its_slug_too(numbered: Project) -> None:
    status, page = numbered.house.get(f"/api/v1/projects/{numbered.slug}/logs")
    assert (status, page) == (200, numbered.read())


def test_an_id_names_its_project_even_when_another_has_it_as_its_slug(numbered: Project) -> None:
    numbered.house.project(numbered.id)
    assert numbered.read()["total"] == 12


def test_newest_come_first(numbered: Project) -> None:
    assert numbered.messages() == [str(number) for number in reversed(range(12))]


@pytest.mark.parametrize("level", range(6), ids=LEVELS)
def test_levels_are_found_by_name(numbered: Project, level: int) -> None:
    found = numbered.read(levels=LEVELS[level].upper())
    assert [(log["message"], log["level"]) for log in found["logs"]] == [
        (str(level + 6), LEVELS[level]),
        (str(level), LEVELS[level]),
    ]
    assert found["total"] == 2


def test_several_levels_their_aliases_and_repeated_parameters_add_up(numbered: Project) -> None:
    assert numbered.messages(levels="warning, critical,") == ["11", "9", "5", "3"]
    _, page = numbered.house.get(numbered.path, ("levels", "warn"), ("levels", "fatal"))
    assert [log["message"] for log in page["logs"]] == ["11", "9", "5", "3"]


def test_a_trace_is_found_by_its_whole_id(numbered: Project) -> None:
    assert numbered.messages(trace_id="trace_1") == ["10", "7", "4", "1"]
    assert numbered.messages(trace_id="trace_") == []
    assert numbered.messages(trace_id="TRACE_1") == []


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("DATABASE", True),
        ("base conn", True),
        ("straße öffnen ЖУК", True),
        ("connection database", False),
        ("%", False),
        ("data_ase", False),
    ],
)
def test_search_is_part_of_the_message_in_any_case(project: Project, search: str, found: bool) -> None:
    project.send([{"message": "Database connection failed: Straße Öffnen жук"}])
    assert bool(project.messages(search=search)) is found


def test_both_ends_of_the_time_are_included_to_the_millisecond(numbered: Project) -> None:
    inside = {"start_time": "2025-01-15T12:00:03.000Z", "end_time": "2025-01-15T13:00:05+01:00"}
    assert numbered.messages(**inside) == ["5", "4", "3"]
    assert numbered.messages(start_time="2025-01-15T12:00:10.001Z") == ["11"]
    assert numbered.messages(end_time="2025-01-15T12:00:00.999") == ["0"]
    # What an answer shows is found again, though more digits were stored.
    numbered.send([{"timestamp": "2025-01-15T12:00:20.123456789Z", "message": "fine"}])
    shown = numbered.read(limit=1)["logs"][0]["timestamp"]
    assert numbered.messages(start_time=shown, end_time=shown) == ["fine"]


def test_an_offset_whose_plus_became_a_space_is_understood(numbered: Project) -> None:
    status, page, _ = numbered.house.ask(f"{numbered.path}?start_time=2025-01-15T14:00:10+02:00")
    assert (status, page["total"]) == (200, 2)


def test_pages_meet_without_gap_or_overlap(project: Project) -> None:
    # All of one moment: their order still has to be the same each time.
    project.send([{"timestamp": NOON, "message": str(number)} for number in range(250)])
    whole, pages, offset = project.read(limit=1000), [], 0
    while True:
        page = project.read(limit=100, offset=offset)
        assert page["total"] == 250
        pages += page["logs"]
        offset += len(page["logs"])
        assert page["has_more"] is (offset < 250)
        if not page["has_more"]:
            break
    assert pages == whole["logs"]
    assert sorted(int(log["message"]) for log in pages) == list(range(250))
    assert len(project.read()["logs"]) == 100
    assert project.read(offset=10_000) == {"logs": [], "total": 250, "has_more": False}


def test_the_last_full_page_has_no_more(numbered: Project) -> None:
    assert numbered.read(limit=6, offset=6)["has_more"] is False
    assert numbered.read(limit=6, offset=5)["has_more"] is True


def test_filters_hold_together(numbered: Project) -> None:
    found = numbered.read(levels="info,error", trace_id="trace_2", search="8", end_time="2025-01-15T12:00:08Z")
    assert ([log["message"] for log in found["logs"]], found["total"]) == (["8"], 1)


def test_what_a_log_does_not_have_is_null(project: Project) -> None:
    project.send([{"message": "bare", "timestamp": NOON}])
    (log,) = project.read()["logs"]
    there = {"timestamp": "2025-01-15T12:00:00.000Z", "message": "bare", "attributes": {}}
    assert log == {**dict.fromkeys(DOCUMENTED_LOG), **there}


def test_attributes_come_back_as_they_were_sent_where_that_can_be_told(project: Project) -> None:
    attributes = {
        "text": "a", "empty": "", "count": 3, "negative": -7, "ratio": 0.25, "yes": True, "no": False,
        "version": "1.10", "padded": "007", "snowflake": "12345678901234567890", "plus": "+1", "word": "NaN",
        "nested": {"deep": {"er": 1}}, "list": [1, "b"],
    }  # fmt: skip
    project.send([{"message": "m", "attributes": attributes, "user": {"id": "12", "email": "a@b.example"}}])
    (log,) = project.read()["logs"]
    flat = {name: value for name, value in attributes.items() if name not in ("nested", "list")}
    assert log["attributes"] == {**flat, "nested.deep.er": 1, "list": '[1,"b"]', "user.email": "a@b.example"}
    assert log["user_id"] == "12"


def test_a_line_that_is_no_number_stays_an_attribute(project: Project) -> None:
    project.send([{"message": "m", "line_number": "above"}])
    (log,) = project.read()["logs"]
    assert (log["line_number"], log["attributes"]) == (None, {"code.line.number": "above"})


def test_rows_of_every_dialect_are_found(house: House, project: Project) -> None:
    otlp = {
        "resourceLogs": [{"scopeLogs": [{"scope": {"name": "shop.cart"}, "logRecords": [
            {"severityNumber": 18, "severityText": "Severe", "body": {"stringValue": "from otlp"},
             "traceId": "0af7651916cd43dd8448eb211c80319c", "spanId": "00f067aa0ba902b7",
             "attributes": [{"key": "code.function", "value": {"stringValue": "add"}},
                            {"key": "n", "value": {"intValue": "5"}}]},
            {"severityText": "ERROR", "body": {"stringValue": "from otlp, by its word"}},
        ]}]}]
    }  # fmt: skip
    for path, entry in (
        ("/v1/logs", otlp),
        ("/", {"level": "critical", "message": "from loguro"}),
        ("/v1/ingest", [{"level": "ERROR", "message": "from streamlogia", "source": "s"}]),
        ("/v1/ndjson", {"level": "err", "message": "from ndjson"}),
        ("/v1/ndjson", {"level": "info", "message": "from elsewhere"}),
    ):
        house.post(path, json.dumps(entry).encode(), project.key)
    project.send([{"level": "error", "message": "from proliferate"}])
    found = {log["message"]: log for log in project.read(levels="error,fatal", search="FROM ")["logs"]}
    assert {message: log["level"] for message, log in found.items()} == {
        "from otlp": "error",
        "from otlp, by its word": "error",
        "from loguro": "fatal",
        "from streamlogia": "error",
        "from ndjson": "error",
        "from proliferate": "error",
    }
    assert found["from otlp"]["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert found["from otlp"]["logger_name"] == "shop.cart"
    assert (found["from otlp"]["function_name"], found["from otlp"]["attributes"]) == ("add", {"n": 5})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("levels", "error,loud"),
        ("limit", "0"),
        ("limit", "1001"),
        ("limit", "-1"),
        ("limit", "1e2"),
        ("limit", "٣"),
        ("limit", ""),
        ("offset", "-1"),
        ("offset", "10001"),
        ("offset", "9" * 5000),
        ("start_time", "yesterday"),
        ("start_time", "1736942400"),
        ("end_time", "2025-02-30T00:00:00Z"),
        ("search", "x" * 1001),
        ("trace_id", "x" * 1001),
        ("level", "error"),
    ],
)
def test_a_value_that_is_not_acceptable_is_named(project: Project, name: str, value: str) -> None:
    status, reply = project.house.get(project.path, (name, value))
    (problem,) = reply["detail"]
    assert (status, problem["loc"]) == (422, ["query", name])
    assert problem["msg"]


@pytest.mark.parametrize(
    ("name", "value"), [("limit", "1"), ("limit", "1000"), ("offset", "10000"), ("search", "x" * 1000)]
)
def test_the_bounds_themselves_are_acceptable(project: Project, name: str, value: str) -> None:
    assert project.house.get(project.path, (name, value))[0] == 200


def test_a_parameter_that_is_twice_and_times_the_wrong_way_round_are_refused(project: Project) -> None:
    for parameters, name in (
        ([("search", "a"), ("search", "b")], "search"),
        ([("start_time", "2025-01-15T12:00:01Z"), ("end_time", "2025-01-15T12:00:00Z")], "start_time"),
    ):
        status, reply = project.house.get(project.path, *parameters)
        assert (status, reply["detail"][0]["loc"]) == (422, ["query", name])


@pytest.mark.parametrize("name", ["nobody", "7d3c1c0e-5a39-4f0e-9a57-6a3b2d5d9f11", "a b", "%00", "ä", "x" * 500])
def test_a_project_that_is_not_there_is_404(house: House, name: str) -> None:
    status, reply, _ = house.ask(f"/api/v1/projects/{urllib.parse.quote(name, safe='%')}/logs")
    assert (status, list(reply)) == (404, ["detail"])


@pytest.mark.parametrize("token", ["", "pat_unknown", "pk_something"])
def test_without_a_good_token_nothing_is_told(project: Project, token: str) -> None:
    for path in (project.path, "/api/v1/projects/nobody/logs", "/api/v1/events/x/logs"):
        status, reply = project.house.get(path, token=token)
        assert (status, list(reply)) == (401, ["detail"])


def test_a_key_that_sends_cannot_read(project: Project) -> None:
    assert project.house.get(project.path, token=project.key)[0] == 401


def test_times_are_told_in_utc_with_milliseconds(numbered: Project) -> None:
    times = [log["timestamp"] for log in numbered.read()["logs"]]
    assert times == [
        datetime.fromtimestamp(NOON + number, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        for number in reversed(range(12))
    ]
