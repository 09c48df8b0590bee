"""Errors by ``proliferate-ai`` 0.2; run in its own environment. A task in, a report out."""

import json
import logging
import sys
import threading
import time
import traceback
from typing import Any

import proliferate  # type: ignore[import-not-found]

QUEUE = 50
"""Half of what the package holds; more are dropped before they are sent."""

task = json.load(sys.stdin)
events: list[dict[str, Any]] = []
answers: list[str] = []


class Answers(logging.Handler):
    """The package tells nobody what it was answered; the HTTP client that it uses logs it."""

    def emit(self, record: logging.LogRecord) -> None:
        answers.append(record.getMessage().partition("HTTP/1.1 ")[2].rstrip('"'))


def fail(number: int) -> None:
    raise ValueError(f"error {number} ✓ \0")


logging.getLogger("httpx").addHandler(Answers())
logging.getLogger("httpx").setLevel(logging.INFO)
proliferate.init(api_key=task["key"], endpoint=task["url"], release="v7", environment="interop")
for number in range(task["count"]):
    with proliferate.push_scope() as scope:
        if number % 2:
            scope.set_user(id=f"u-{number}", email="user@example.com")
            scope.set_tag("feature", "checkout")
        try:
            fail(number)
        except ValueError as error:
            event = {"began": time.time_ns(), "id": proliferate.capture_exception(error), "ended": time.time_ns()}
            text = {"value": str(error), "stack": traceback.format_exc()}
            events.append({**event, **text, "trace": scope.propagation_context.trace_id})
    if number % QUEUE == QUEUE - 1:
        proliferate.flush(30)
if task.get("uncaught"):
    thread = threading.Thread(target=fail, args=(-1,))
    thread.start()
    thread.join()
proliferate.flush(30)
proliferate.close()
print(json.dumps({"events": events, "answers": answers}))
