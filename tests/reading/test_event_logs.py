"""GET /api/v1/events/{event_id}/logs: what led up to an error."""

from __future__ import annotations

from tests.reading.rig import House, Project

NOON = 1_736_942_400
FIVE_MINUTES = 300


def test_an_error_finds_the_logs_of_its_trace_in_their_order(project: Project, other: Project) -> None:
    steps = {"clicked": -3, "validated": -2, "warned": -1, "reported": 1}
    project.send([{"timestamp": NOON + at, "message": step, "trace_id": "t1"} for step, at in steps.items()])
    project.send([{"timestamp": NOON, "message": "another trace", "trace_id": "t2"}])
    other.send([{"timestamp": NOON, "message": "another project", "trace_id": "t1"}])
    event_id = project.fail(timestamp=NOON, trace_id="t1", event_id="event-in-order")
    status, page = project.house.get(f"/api/v1/events/{event_id}/logs")
    assert (status, [log["message"] for log in page["logs"]]) == (200, list(steps))
    assert (page["total"], page["has_more"]) == (4, False)


def test_five_minutes_before_and_after_are_included(project: Project) -> None:
    for at in (-FIVE_MINUTES - 1, -FIVE_MINUTES, FIVE_MINUTES, FIVE_MINUTES + 1):
        project.send([{"timestamp": NOON + at, "message": str(at), "trace_id": "t"}])
    event_id = project.fail(timestamp=NOON, trace_id="t", event_id="event-at-noon")
    _, page = project.house.get(f"/api/v1/events/{event_id}/logs")
    assert [log["message"] for log in page["logs"]] == ["-300", "300"]


def test_the_newest_of_an_id_counts(project: Project) -> None:
    project.send([{"timestamp": NOON, "message": trace, "trace_id": trace} for trace in ("old", "new")])
    project.fail(timestamp=NOON, trace_id="new", event_id="twice")
    project.fail(timestamp=NOON - 10, trace_id="old", event_id="twice")
    _, page = project.house.get("/api/v1/events/twice/logs")
    assert [log["message"] for log in page["logs"]] == ["new"]


def test_an_error_without_a_trace_has_no_logs(project: Project) -> None:
    project.send([{"timestamp": NOON, "message": "without a trace"}])
    event_id = project.fail(timestamp=NOON)
    status, page = project.house.get(f"/api/v1/events/{event_id}/logs")
    assert (status, page) == (200, {"logs": [], "total": 0, "has_more": False})


def test_an_event_that_is_not_there_is_404(house: House) -> None:
    status, reply = house.get("/api/v1/events/no-such-event/logs")
    assert (status, list(reply)) == (404, ["detail"])


def test_many_logs_come_in_pages(project: Project) -> None:
    project.send([{"timestamp": NOON, "message": str(number), "trace_id": "t"} for number in range(30)])
    event_id = project.fail(timestamp=NOON, trace_id="t", event_id="event-of-many")
    path = f"/api/v1/events/{event_id}/logs"
    _, whole = project.house.get(path)
    _, page = project.house.get(path, ("limit", "10"), ("offset", "15"))
    assert (page["logs"], page["total"], page["has_more"]) == (whole["logs"][15:25], 30, True)
    status, reply = project.house.get(path, ("limit", "0"))
    assert (status, reply["detail"][0]["loc"]) == (422, ["query", "limit"])
