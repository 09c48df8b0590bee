"""A program instrumented with the OpenTelemetry SDK, configured by OTEL_* alone, as a user's would be.

    sdk_sender.py protobuf|json FIRST COUNT

Emits records FIRST .. FIRST + COUNT - 1 and ends when the exporter has flushed them; fails when it could not.
"""

from __future__ import annotations

import sys

from opentelemetry._logs import SeverityNumber
from opentelemetry.exporter.otlp.json.http._log_exporter import OTLPLogExporter as JsonExporter
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as ProtobufExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource

from tests.end_to_end.records import attributes


def main(encoding: str, first: int, count: int) -> int:
    exporter = JsonExporter() if encoding == "json" else ProtobufExporter()
    provider = LoggerProvider(Resource({"service.name": f"sdk-{encoding}", "service.version": "1.2.3"}))
    # A queue that holds all: this tests the gateway, not how the SDK drops when it is full.
    processor = BatchLogRecordProcessor(
        exporter, schedule_delay_millis=50, max_queue_size=count + 1, max_export_batch_size=min(512, count)
    )
    provider.add_log_record_processor(processor)
    logger = provider.get_logger("end-to-end", "4.5")
    for number in range(first, first + count):
        logger.emit(
            timestamp=1_700_000_000_000_000_000 + number,
            severity_number=SeverityNumber.WARN,
            severity_text="warning",
            body=f"record {number}",
            attributes=attributes(number),
        )
    flushed = provider.force_flush(60_000)
    provider.shutdown()
    return 0 if flushed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
