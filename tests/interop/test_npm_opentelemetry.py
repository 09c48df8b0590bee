"""OpenTelemetry's log exporters from npm, JSON and protobuf, in a real Node."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.interop.environments import SENDERS, node_modules
from tests.interop.rig import RECORDS, Project, poll, send

MISSING = [tool for tool in ("node", "npm") if not shutil.which(tool)]
pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} not installed: apt-get install nodejs npm"),
]

LEVELS = (("DEBUG", 5), ("INFO", 9), ("WARN", 13), ("ERROR", 17), ("FATAL", 21))


@pytest.fixture(scope="session")
def packages() -> Path:
    return node_modules()


def sent(packages: Path, project: Project, **task: Any) -> dict[str, Any]:
    """What the packages complained about, and the result of each export: 0 for success."""
    task = {"url": project.weir.url, "flushEvery": 1_000, "compression": "none", **task}
    if "key" not in task:
        task["key"] = project.key("otlp")
    return send(["node", str(SENDERS / "opentelemetry_sender.cjs")], task, NODE_PATH=str(packages))


@pytest.mark.parametrize(("encoding", "compression"), [("http", "none"), ("proto", "none"), ("proto", "gzip")])
def test_every_record_is_stored_once_with_every_field(
    packages: Path, project: Project, encoding: str, compression: str
) -> None:
    report = sent(packages, project, encoding=encoding, compression=compression, count=RECORDS)
    rows = project.rows()
    assert (report["complaints"], set(report["exported"])) == ([], {0})
    assert len(rows) == RECORDS
    for number, row in enumerate(rows):
        assert row["Timestamp"] == 1_700_000_000_000_000_000 + number
        assert row["Body"] == f"record {number} ✓"
        assert (row["SeverityText"], row["SeverityNumber"]) == LEVELS[number % 5]
        attributes = row["LogAttributes"]
        price = attributes.pop("price")
        assert json.loads(price) == number / 4
        assert attributes == {
            "number": str(number),
            "paid": "false" if number % 2 else "true",
            "tags": f'["a","{number}"]',
            "deep": '{"er":[1,null]}',
        }
        assert (row["ServiceName"], row["ResourceAttributes"]["service.version"]) == ("interop-node", "4.5")
        assert (row["ScopeName"], row["ScopeVersion"], row["Dialect"]) == ("interop", "1.2.3", "otlp")


@pytest.mark.parametrize("encoding", ["http", "proto"])
def test_a_wrong_key_fails_the_export_at_once(packages: Path, project: Project, encoding: str) -> None:
    began_s = time.monotonic()
    report = sent(packages, project, encoding=encoding, count=10, key="nobody")
    assert time.monotonic() - began_s < 7, "it does not try again"
    assert set(report["exported"]) == {1}
    assert project.rows() == []


def test_too_many_requests_are_sent_again(packages: Path, project: Project) -> None:
    weir, count = project.weir, 5
    key = project.key("otlp", requests_per_minute=60)
    with ThreadPoolExecutor(1) as pool:
        refused = weir.refused("rate", "otlp")
        weir.spend(key)
        sending = pool.submit(sent, packages, project, encoding="proto", count=count, flushEvery=1, key=key)
        while weir.refused("rate", "otlp") == refused and not sending.done():
            weir.spend(key)
        report = sending.result()
    assert weir.refused("rate", "otlp") > refused
    assert (report["complaints"], report["exported"]) == ([], [0] * count)
    assert [row["Body"] for row in project.rows()] == [f"record {number} ✓" for number in range(count)]


@pytest.mark.parametrize("encoding", ["http", "proto"])
def test_what_a_full_gateway_refuses_is_sent_again(packages: Path, narrow_project: Project, encoding: str) -> None:
    weir, count = narrow_project.weir, 5
    key = narrow_project.key("otlp")
    with ThreadPoolExecutor(1) as pool:
        with weir.full(key):
            refused = weir.refused("overloaded", "otlp")
            sending = pool.submit(sent, packages, narrow_project, encoding=encoding, count=count, flushEvery=1, key=key)
            poll(lambda: weir.refused("overloaded", "otlp") > refused, "it is refused")
        report = sending.result()
    assert (report["complaints"], report["exported"]) == ([], [0] * count)
    assert [row["Body"] for row in narrow_project.rows()] == [f"record {number} ✓" for number in range(count)]
