"""``brokle`` 0.4.0 with OpenTelemetry's logging handler, untouched, on the newest OpenTelemetry and on the oldest."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.interop.environments import SENDERS, python_with
from tests.interop.rig import RECORDS, Project, poll, send

pytestmark = pytest.mark.interop

NEWEST, OLDEST = "brokle", "brokle-otel-1.30"
LEVELS = {
    NEWEST: (("DEBUG", 5), ("INFO", 9), ("WARN", 13), ("ERROR", 17), ("FATAL", 21)),
    OLDEST: (("DEBUG", 5), ("INFO", 9), ("WARN", 13), ("ERROR", 17), ("CRITICAL", 21)),
}
PLACE = {
    NEWEST: {"code.file.path": "file", "code.function.name": "function", "code.line.number": "line"},
    OLDEST: {"code.filepath": "file", "code.function": "function", "code.lineno": "line"},
}


@pytest.fixture(params=[NEWEST, OLDEST])
def environment(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def sent(environment: str, project: Project, scenario: str, compression: str = "none", **task: Any) -> dict[str, Any]:
    """The sender's report: what it logged, and what the packages complained about."""
    task = {"url": project.weir.url, "scenario": scenario, **task}
    if "key" not in task:
        task["key"] = project.key("brokle")
    command = [str(python_with(environment)), str(SENDERS / "brokle_sender.py")]
    return send(
        command,
        task,
        OTEL_SERVICE_NAME="interop",
        OTEL_RESOURCE_ATTRIBUTES="service.version=4.5",
        OTEL_EXPORTER_OTLP_COMPRESSION=compression,
    )


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_every_record_is_stored_once_with_every_field(environment: str, project: Project, compression: str) -> None:
    report = sent(environment, project, "many", compression, count=RECORDS)
    rows = project.rows(order="toUInt64OrZero(LogAttributes['number'])")
    assert (report["complaints"], report["known"]) == ([], True)
    assert len(rows) == RECORDS
    spans = iter(report["spans"])
    for number, (row, record) in enumerate(zip(rows, report["records"], strict=True)):
        assert row["Body"] == f"record {number} ✓"
        assert (row["SeverityText"], row["SeverityNumber"]) == LEVELS[environment][number % 5]
        assert row["Timestamp"] == record["time"]
        assert row["LogAttributes"] == {
            "number": str(number),
            "price": json.dumps(number / 4),
            "paid": "false" if number % 2 else "true",
            "tags": f'["a","{number}"]',
            **{name: str(record[what]) for name, what in PLACE[environment].items()},
        }
        assert [row["TraceId"], row["SpanId"]] == (["", ""] if number % 2 else next(spans))
        assert (row["ServiceName"], row["ScopeName"], row["Dialect"]) == ("interop", "shop", "brokle")
        assert row["ResourceAttributes"]["service.version"] == "4.5"
        assert row["ResourceAttributes"]["telemetry.sdk.language"] == "python"


def test_bodies_that_are_no_text_are_kept_as_text(environment: str, project: Project) -> None:
    report = sent(environment, project, "odd")
    bodies = [row["Body"] for row in project.rows()]
    assert bodies[:4] == ["42", "true", "", "1e+300"]
    failed = next(row for row in project.rows() if row["Body"] == "failed")
    assert (failed["SeverityText"], failed["LogAttributes"]["exception.type"]) == ("ERROR", "KeyError")
    assert "Traceback" in failed["LogAttributes"]["exception.stacktrace"]
    assert '["a",1]' in bodies
    assert "AP8=" in bodies
    assert report["complaints"] == []


def test_a_call_of_a_model_is_a_log_and_an_event(environment: str, project: Project) -> None:
    report = sent(environment, project, "genai")
    assert report["complaints"] == []
    assert [row["Body"] for row in project.rows()] == ["a model was called", "no event"]
    [event] = project.rows("genai_events")
    assert {name: event[name] for name in ("EventName", "OperationName", "ProviderName", "RequestModel")} == {
        "EventName": "gen_ai.client.inference.operation.details",
        "OperationName": "chat",
        "ProviderName": "openai",
        "RequestModel": "gpt-4",
    }
    assert (event["InputTokens"], event["OutputTokens"], event["Temperature"]) == (150, 42, 0.5)


def test_a_wrong_key_is_refused_at_once_and_said_so(environment: str, project: Project) -> None:
    began_s = time.monotonic()
    report = sent(environment, project, "many", count=10, key="bk_" + "0" * 40)
    assert time.monotonic() - began_s < 20, "it does not try again"
    assert report["known"] is False
    assert any("401" in complaint for complaint in report["complaints"])
    assert project.rows() == []


def test_a_request_over_the_limit_is_dropped_at_once_and_said_so(environment: str, project: Project) -> None:
    began_s = time.monotonic()
    [complaint] = sent(environment, project, "large", bytes=11 << 20)["complaints"]
    assert time.monotonic() - began_s < 20, "it does not try again"
    assert "413" in complaint
    assert project.rows() == []


def test_too_many_requests_are_sent_again_by_the_newest_and_dropped_by_the_oldest(
    environment: str, project: Project
) -> None:
    weir, count = project.weir, 5
    key = project.key("brokle", requests_per_minute=60)
    with ThreadPoolExecutor(1) as pool:
        refused = weir.refused("rate", "brokle")
        weir.spend(key)
        sending = pool.submit(sent, environment, project, "one_by_one", count=count, key=key)
        while weir.refused("rate", "brokle") == refused and not sending.done():
            weir.spend(key)
        complaints = sending.result()["complaints"]
    lost = [complaint for complaint in complaints if "Transient" not in complaint]
    rows = project.rows()
    assert len({row["Body"] for row in rows}) == len(rows) == count - len(lost)
    assert weir.refused("rate", "brokle") > refused
    assert bool(lost) == (environment == OLDEST)
    assert all("429" in complaint for complaint in lost)


def test_what_a_full_gateway_refuses_is_sent_again_by_both(environment: str, narrow_project: Project) -> None:
    weir, count = narrow_project.weir, 5
    key = narrow_project.key("brokle")
    with ThreadPoolExecutor(1) as pool:
        with weir.full(key):
            refused = weir.refused("overloaded", "brokle")
            sending = pool.submit(sent, environment, narrow_project, "one_by_one", count=count, key=key)
            poll(lambda: weir.refused("overloaded", "brokle") > refused, "it is refused")
        complaints = sending.result()["complaints"]
    assert [row["Body"] for row in narrow_project.rows()] == [f"record {number}" for number in range(count)]
    assert complaints
    assert all("Transient" in complaint for complaint in complaints)
