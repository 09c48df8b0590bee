"""OpenTelemetry's log exporters from npm, JSON and protobuf, in a real Node."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.interop.environments import SENDERS, node_modules
from tests.interop.rig import RECORDS, Project, send

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
    task = {"url": project.weir.url, "key": project.key("otlp"), **task}
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
    report = sent(packages, project, encoding=encoding, compression="none", count=10, key="nobody")
    assert time.monotonic() - began_s < 7, "it does not try again"
    assert set(report["exported"]) == {1}
    assert project.rows() == []
