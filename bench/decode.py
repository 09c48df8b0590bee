"""What decoding costs on one core: OTLP protobuf -> columns -> sealed block, beside memcpy and upb.

    python bench/decode.py [--rounds N] [--json]

The OTLP body: one request of 1,000 records, about 350 bytes and 8 attributes each, all different; the JSON
dialects: batches of 100 with about the same content, by the plans the dialects use. A block is sealed:
identified, encoded, and with lz4 compressed and checksummed as ClickHouse receives it. Figures
are medians of the rounds; each round times every case once, in turn, so that a slow moment of the
machine hits all of them. Ratios are what to quote.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from gateway import _native
from gateway.dialects import loguro, proliferate, streamlogia
from gateway.schema import OTEL_LOGS

RECORDS = 1000
BATCH = 100
NOW_NS = 1_790_000_000_000_000_000
CONSTANTS = {"project_id": "7b0c3f1e-8c9c-4a87-9f0e-0c6a4ab4f0d1", "dialect": "otlp"}


def text(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def otlp_request(records: int, seed: int = 1) -> ExportLogsServiceRequest:
    """A request as an SDK would send it: one resource, one scope, no two records alike."""
    draw = random.Random(seed)
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add()
    resource.resource.attributes.extend(
        [text("service.name", "checkout"), text("service.version", "4.2.1"), text("host.name", "node-17")]
    )
    scope = resource.scope_logs.add()
    scope.scope.name = "checkout.payment"
    paths = [f"/api/v2/orders/{name}" for name in ("create", "pay", "cancel", "refund", "list", "export")]
    for number in range(records):
        record = scope.log_records.add()
        record.time_unix_nano = NOW_NS + number * 1_000_003
        record.observed_time_unix_nano = record.time_unix_nano + 1_500
        record.severity_number = draw.choice((5, 9, 9, 9, 13, 17))
        record.severity_text = {5: "DEBUG", 9: "INFO", 13: "WARN", 17: "ERROR"}[record.severity_number]
        words = " ".join(
            draw.choice(("order", "payment", "accepted", "card", "retry", "user", "token")) for _ in range(9)
        )
        record.body.string_value = f"{words} {draw.getrandbits(80):x}"
        record.trace_id = draw.randbytes(16)
        record.span_id = draw.randbytes(8)
        record.flags = 1
        record.attributes.extend(
            [
                text("http.request.method", draw.choice(("GET", "POST", "PUT"))),
                text("url.path", draw.choice(paths)),
                KeyValue(key="http.response.status_code", value=AnyValue(int_value=draw.choice((200, 201, 404, 500)))),
                KeyValue(key="duration_ms", value=AnyValue(double_value=round(draw.random() * 250, 3))),
                text("user.id", f"user_{draw.randrange(100_000)}"),
                text("order.id", f"ord_{draw.getrandbits(48):012x}"),
                KeyValue(key="cached", value=AnyValue(bool_value=draw.random() < 0.3)),
                text("code.function.name", draw.choice(("charge", "authorize", "capture"))),
            ]
        )
    return request


def otlp_json(request: ExportLogsServiceRequest) -> bytes:
    """The same message as OTLP/JSON, as the exporters write it."""

    def value(any_value: AnyValue) -> dict[str, object]:
        values: dict[str, dict[str, object]] = {
            "string_value": {"stringValue": any_value.string_value},
            "int_value": {"intValue": str(any_value.int_value)},
            "double_value": {"doubleValue": any_value.double_value},
            "bool_value": {"boolValue": any_value.bool_value},
        }
        return values[str(any_value.WhichOneof("value"))]

    def attributes(pairs: object) -> list[dict[str, object]]:
        return [{"key": pair.key, "value": value(pair.value)} for pair in pairs]  # type: ignore[attr-defined]

    return json.dumps(
        {
            "resourceLogs": [
                {
                    "resource": {"attributes": attributes(resource.resource.attributes)},
                    "scopeLogs": [
                        {
                            "scope": {"name": scope.scope.name},
                            "logRecords": [
                                {
                                    "timeUnixNano": str(record.time_unix_nano),
                                    "observedTimeUnixNano": str(record.observed_time_unix_nano),
                                    "severityNumber": record.severity_number,
                                    "severityText": record.severity_text,
                                    "body": value(record.body),
                                    "traceId": record.trace_id.hex(),
                                    "spanId": record.span_id.hex(),
                                    "flags": record.flags,
                                    "attributes": attributes(record.attributes),
                                }
                                for record in scope.log_records
                            ],
                        }
                        for scope in resource.scope_logs
                    ],
                }
                for resource in request.resource_logs
            ]
        },
        separators=(",", ":"),
    ).encode()


def flat(request: ExportLogsServiceRequest) -> list[dict[str, object]]:
    """The first hundred records as flat entries: level, message and attributes."""
    kinds = {"string_value": str, "int_value": int, "double_value": float, "bool_value": bool}
    found = []
    for record in request.resource_logs[0].scope_logs[0].log_records[:BATCH]:
        attributes = {}
        for pair in record.attributes:
            kind = str(pair.value.WhichOneof("value"))
            attributes[pair.key] = kinds[kind](getattr(pair.value, kind))
        found.append(
            {"level": record.severity_text.lower(), "message": record.body.string_value, "attributes": attributes}
        )
    return found


def json_batches(request: ExportLogsServiceRequest) -> dict[str, bytes]:
    """About the same content as each JSON dialect's senders write it."""
    loguro, proliferate, streamlogia = [], [], []
    for entry in flat(request):
        level, message, attributes = entry["level"], entry["message"], entry["attributes"]
        loguro.append(
            {"level": level, "message": message, "timestamp": "2026-09-21T12:26:40.123456Z", "context": attributes}
        )
        proliferate.append(
            {
                "timestamp": 1789993600.123,
                "level": level,
                "message": message,
                "template": "{what} accepted",
                "attributes": attributes,
                "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
                "logger_name": "checkout.payment",
                "file_path": "src/checkout/payment.py",
                "line_number": 42,
                "function_name": "charge",
            }
        )
        streamlogia.append(
            {
                "projectId": CONSTANTS["project_id"],
                "level": str(level).upper(),
                "message": message,
                "source": "checkout",
                "timestamp": "2026-09-21T12:26:40.123456+00:00",
                "tags": ["orders"],
                "meta": attributes,
            }
        )
    return {
        "loguro": json.dumps(loguro).encode(),
        "proliferate": json.dumps({"api_key": "pk_x", "environment": "production", "logs": proliferate}).encode(),
        "streamlogia": json.dumps(streamlogia).encode(),
    }


Case = tuple[int, int, Callable[[], object]]
"""Records, body bytes, what to time."""


def decoders(request: ExportLogsServiceRequest, columns: _native.Columns) -> dict[str, Case]:
    """Each wire's body into the columns."""
    records = sum(len(scope.log_records) for resource in request.resource_logs for scope in resource.scope_logs)
    body, body_json = request.SerializeToString(), otlp_json(request)
    batches = json_batches(otlp_request(BATCH))
    plan = _native.OtlpPlan([(OTEL_LOGS.layout, OTEL_LOGS.feeds)])
    first_id = bytes(16)

    def otlp(decode: Callable[..., object], sent: bytes) -> Case:
        return records, len(sent), lambda: decode(sent, plan, [columns], constants=CONSTANTS, arrival_ns=NOW_NS)

    def entries(dialect: str, entry_plan: _native.EntryPlan, **more: Any) -> Case:
        batch = batches[dialect]

        def run() -> object:
            return _native.entries(
                batch, entry_plan, [columns], constants=CONSTANTS, arrival_ns=NOW_NS, nan_literals=True, **more
            )

        return BATCH, len(batch), run

    return {
        "otlp protobuf": otlp(_native.otlp_protobuf, body),
        "otlp json": otlp(_native.otlp_json, body_json),
        "loguro": entries("loguro", loguro.PLAN),
        "proliferate": entries("proliferate", proliferate.LOG_PLAN, partial=True, entries_max=BATCH),
        "streamlogia": entries("streamlogia", streamlogia.PLAN, problems_max=100, record_id=first_id),
    }


def cases(records: int) -> dict[str, Case]:
    """What is measured, by name."""
    request = otlp_request(records)
    body = request.SerializeToString()
    columns = _native.Columns(OTEL_LOGS.layout)
    names = [column.name for column in OTEL_LOGS.columns]
    frame, row = names.index("SpoolFrame"), names.index("SpoolRow")

    def columns_only(decode: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            decode()
            columns.clear()

        return run

    def block(decode: Callable[[], object], compression: str) -> Callable[[], None]:
        def run() -> None:
            decode()
            columns.cut(frame=1, frame_column=frame, row_column=row, compression=compression)

        return run

    target = bytearray(len(body))

    def copy() -> None:
        target[:] = body

    table: dict[str, Case] = {
        "memcpy of the body": (records, len(body), copy),
        "upb: parse into objects": (records, len(body), lambda: ExportLogsServiceRequest.FromString(body)),
    }
    for name, (count, size, decode) in decoders(request, columns).items():
        table[f"{name} -> columns"] = (count, size, columns_only(decode))
        if name == "otlp protobuf":
            table[f"{name} -> block"] = (count, size, block(decode, "none"))
        table[f"{name} -> block, lz4"] = (count, size, block(decode, "lz4"))
    return table


def measure(rounds: int, records: int = RECORDS) -> list[dict[str, object]]:
    """Median seconds of each case as rows of figures."""
    table = cases(records)
    timings: dict[str, list[float]] = {name: [] for name in table}
    for _, _, run in table.values():
        run()
    for _ in range(rounds):
        for name, (_, _, run) in table.items():
            start = time.perf_counter()
            run()
            timings[name].append(time.perf_counter() - start)
    rows = []
    copied = statistics.median(timings["memcpy of the body"])
    upb = statistics.median(timings["upb: parse into objects"]) / records
    for name, (count, size, _) in table.items():
        median = statistics.median(timings[name])
        rows.append(
            {
                "case": name,
                "logs_per_second": round(count / median),
                "ns_per_log": round(median / count * 1e9, 1),
                "bytes_per_log": round(size / count),
                "MB_per_second": round(size / median / 1e6),
                "times_memcpy": round(median / count / (copied / records), 1),
                "of_upb": round(median / count / upb, 2),
                "min_ns": round(min(timings[name]) / count * 1e9, 1),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    arguments = parser.parse_args()
    rows = measure(arguments.rounds, arguments.records)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'':36}{'logs/s':>12}{'ns/log':>10}{'min':>9}{'B/log':>7}{'MB/s':>8}{'x memcpy':>10}{'x upb':>8}")
    for row in rows:
        print(
            f"{row['case']:36}{row['logs_per_second']:>12,}{row['ns_per_log']:>10}{row['min_ns']:>9}"
            f"{row['bytes_per_log']:>7}{row['MB_per_second']:>8,}{row['times_memcpy']:>10}{row['of_upb']:>8}"
        )


if __name__ == "__main__":
    main()
