"""Errors and messages by ``proliferate-ai`` 0.1; run in its own environment. A task in, a report out."""

import json
import logging
import sys
import time
import traceback
from typing import Any

import proliferate  # type: ignore[import-not-found]

task = json.load(sys.stdin)
events: list[dict[str, Any]] = []
complaints: list[str] = []


class Complaints(logging.Handler):
    """The package tells a failure to its own logger only."""

    def emit(self, record: logging.LogRecord) -> None:
        complaints.append(record.getMessage())


class Declined(Exception):
    pass


def fail(number: int) -> None:
    raise Declined(f"error {number} ✓")


logger = logging.getLogger("proliferate")
logger.setLevel(logging.DEBUG)
proliferate.init(endpoint=task["url"], api_key=task["key"], environment="interop", release="v7")
logger.addHandler(Complaints(logging.DEBUG))
proliferate.set_user({"id": "u-1", "email": "user@example.com"})
proliferate.set_account({"id": "a-1", "name": "Acme"})
proliferate.set_tag("total", 99.5)
for number in range(task["count"]):
    began = time.time_ns()
    text = {"value": f"error {number} ✓", "stack": ""}
    if number % 3 == 2:
        event_id = proliferate.capture_message(text["value"], level="warning", extra={"number": number})
    else:
        try:
            fail(number)
        except Declined as error:
            event_id = proliferate.capture_exception(error, extra={"number": number})
            text["stack"] = traceback.format_exc()
    events.append({"id": event_id, "began": began, "ended": time.time_ns(), **text})
print(json.dumps({"events": events, "complaints": complaints}))
