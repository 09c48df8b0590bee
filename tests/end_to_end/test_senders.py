"""Real OpenTelemetry programs, configured by their environment alone, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gateway.delivery.frames import GATEWAY_BITS, GATEWAY_MASK
from gateway.schema import TABLES
from tests.end_to_end.gateway_process import ROOT, GatewayProcess, poll
from tests.end_to_end.records import stored

SENDERS = 2
RECORDS_EACH = 2_000


def sender(gateway: GatewayProcess, encoding: str, first: int, count: int) -> subprocess.Popen[bytes]:
    environ = gateway.environ | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{gateway.listen['ingest'][1]}",
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-api-key={gateway.demo['keys']['loguro']}",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
    }
    arguments = [sys.executable, "-m", "tests.end_to_end.sdk_sender", encoding, str(first), str(count)]
    return subprocess.Popen(arguments, env=environ, cwd=ROOT)


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
def test_every_record_of_the_sdk_arrives_once_with_its_attributes_equal(gateway: GatewayProcess, encoding: str) -> None:
    running = [sender(gateway, encoding, first * RECORDS_EACH, RECORDS_EACH) for first in range(SENDERS)]
    assert [process.wait(120) for process in running] == [0] * SENDERS
    total = SENDERS * RECORDS_EACH
    where = f"ServiceName = 'sdk-{encoding}'"
    poll(lambda: gateway.count(where) >= total, within_s=5, what="all rows are stored")
    rows = gateway.query(
        "SELECT toUnixTimestamp64Nano(Timestamp) AS time, Body, SeverityText, SeverityNumber, ScopeName, ScopeVersion, "
        f"LogAttributes, ResourceAttributes['service.version'] AS version FROM otel_logs WHERE {where} ORDER BY time"
    )
    assert len(rows) == total
    for number, row in enumerate(rows):
        assert row["time"] == 1_700_000_000_000_000_000 + number
        assert row["Body"] == f"record {number}"
        assert (row["SeverityText"], row["SeverityNumber"]) == ("warning", 13)
        assert (row["ScopeName"], row["ScopeVersion"], row["version"]) == ("end-to-end", "4.5", "1.2.3")
        assert row["LogAttributes"] == stored(number)


def test_the_counts_add_up(gateway: GatewayProcess) -> None:
    key = gateway.demo["keys"]["loguro"]
    gateway.post("/", b'{"message":"counted"}', key)
    gateway.post("/", b"{", key)
    gateway.post("/v1/logs", b'{"resourceLogs":[]}', "unknown-key")
    poll(lambda: gateway.metric("weir_rows_buffered") == 0, within_s=10, what="nothing is buffered")
    received = gateway.metric("weir_requests_received_total")
    assert received == gateway.metric("weir_requests_accepted_total") + gateway.metric("weir_requests_refused_total")
    records = gateway.metric("weir_records_received_total")
    assert records == sum(gateway.metric(f"weir_records_{how}_total") for how in ("accepted", "rejected", "repeated"))
    # Other gateways have borrowed its ClickHouse; rows say in their frames whose they are.
    own = int((gateway.data_dir / "spool" / "gateway").read_text(), 16) & GATEWAY_MASK
    ours = f"bitShiftRight(SpoolFrame, {64 - GATEWAY_BITS}) = {own}"
    there = sum(gateway.count(ours, table=table.name) for table in TABLES)
    assert gateway.metric("weir_rows_accepted_total") == gateway.metric("weir_rows_stored_total") == there
