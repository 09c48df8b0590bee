"""Logs by the ``brokle`` package and OpenTelemetry's handler; run in its own environment. A task in, a report out."""

import json
import logging
import sys
import warnings
from typing import Any

import brokle  # type: ignore[import-not-found]
from opentelemetry.sdk._logs import LoggingHandler

FLUSH_EVERY = 1_000
"""Well below the 2,048 records that the batch processor holds; more are dropped before they are sent."""

warnings.simplefilter("ignore", DeprecationWarning)
task = json.load(sys.stdin)
complaints: list[str] = []
records: list[dict[str, Any]] = []
report: dict[str, Any] = {"complaints": complaints, "records": records}


class Complaints(logging.Handler):
    """What the packages have to say about the export."""

    def emit(self, record: logging.LogRecord) -> None:
        complaints.append(f"{record.name}: {record.getMessage()}")


class Remember(logging.Handler):
    """The moment and the place of what was logged, which only the record knows."""

    def emit(self, record: logging.LogRecord) -> None:
        place = {"file": record.pathname, "function": record.funcName, "line": record.lineno}
        records.append({"time": int(record.created * 1e9), **place})


def application() -> tuple[Any, logging.Logger]:
    client = brokle.Brokle(
        api_key=task["key"], base_url=task["url"], logs_enabled=True, release="v7", environment="interop", timeout=10
    )
    # What the vendor's documents leave to the application: nothing is sent without it.
    handler = LoggingHandler(logger_provider=client._logger_provider.provider)
    logger = logging.getLogger("shop")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.handlers = [Remember(), handler]
    return client, logger


def many() -> None:
    """Every level, each type of attribute, half of them inside a span."""
    client, logger = application()
    levels = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
    report["spans"] = []
    for number in range(task["count"]):
        extra = {"number": number, "price": number / 4, "paid": number % 2 == 0, "tags": ["a", str(number)]}
        if number % 2:
            logger.log(levels[number % 5], "record %d ✓", number, extra=extra)
        else:
            with client.start_as_current_span(f"span {number}") as span:
                logger.log(levels[number % 5], "record %d ✓", number, extra=extra)
                context = span.get_span_context()
                report["spans"].append([f"{context.trace_id:032x}", f"{context.span_id:016x}"])
        if number % FLUSH_EVERY == FLUSH_EVERY - 1:
            client.flush()
    report["known"] = client.auth_check()
    client.shutdown()


def one_by_one() -> None:
    """Each record in a request of its own."""
    client, logger = application()
    for number in range(task["count"]):
        logger.info("record %d", number)
        client.flush()
    client.shutdown()


def large() -> None:
    """One record over the limit of a request."""
    client, logger = application()
    logger.info("x" * task["bytes"])
    client.shutdown()


def odd() -> None:
    """Bodies that are no text, and an exception."""
    client, logger = application()
    for body in (42, True, None, 1e300, ["a", 1], b"\x00\xff"):
        logger.info(body)
    try:
        dict[str, str]()["nothing here"]
    except KeyError:
        logger.exception("failed")
    client.shutdown()


def genai() -> None:
    """An event of a model's call, as an instrumentation emits it."""
    client, logger = application()
    extra = {
        "event.name": "gen_ai.client.inference.operation.details",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4",
        "gen_ai.usage.input_tokens": 150,
        "gen_ai.usage.output_tokens": 42,
        "gen_ai.request.temperature": 0.5,
    }
    logger.info("a model was called", extra=extra)
    logger.info("no event", extra={"gen_ai.request.model": "gpt-4"})
    client.shutdown()


for name in ("opentelemetry", "brokle"):
    logging.getLogger(name).addHandler(Complaints(logging.WARNING))
    logging.getLogger(name).propagate = False
{scenario.__name__: scenario for scenario in (many, one_by_one, large, odd, genai)}[task["scenario"]]()
print(json.dumps(report))
