"""The gateway's own log: what a line holds, and that an outage does not fill a disk."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from gateway import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where the root logger writes to, for one test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:], root.level = handlers, level


def test_a_line_is_json_with_what_the_caller_added(stream: io.StringIO) -> None:
    logs.configure("info", "auto", stream)
    logging.getLogger("weir.test").warning("%d rows wait", 3, extra={"table": "otel_logs"})
    logging.getLogger("weir.test").debug("too quiet")
    [line] = [json.loads(text) for text in stream.getvalue().splitlines()]
    assert line.pop("time").endswith("Z")
    assert line == {"level": "warning", "logger": "weir.test", "message": "3 rows wait", "table": "otel_logs"}


def test_a_person_gets_a_short_line(stream: io.StringIO) -> None:
    logs.configure("info", "text", stream)
    logging.getLogger("weir.test").error("no", extra={"status": 503})
    assert stream.getvalue()[8:] == " error   no status=503\n"


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_traceback_stays_with_its_line(stream: io.StringIO, form: str) -> None:
    logs.configure("info", form, stream)
    try:
        int("why")
    except ValueError:
        logging.getLogger("weir.test").exception("failed")
    assert "ValueError: invalid literal" in stream.getvalue()


def test_repeats_are_counted_and_summed_up() -> None:
    now = [0.0]
    repeats = logs.Repeats(clock=lambda: now[0])

    def passes(number: int) -> str | None:
        record = logging.makeLogRecord({"name": "a", "levelno": 40, "msg": "row %d", "args": (number,)})
        return record.getMessage() if repeats.filter(record) else None

    through = [passes(number) for number in range(100)]
    assert through[: logs.REPEATS_MAX] == [f"row {number}" for number in range(logs.REPEATS_MAX)]
    assert through[logs.REPEATS_MAX :] == [None] * (100 - logs.REPEATS_MAX)
    now[0] += logs.WINDOW_S
    assert passes(100) == f"row 100 (and {100 - logs.REPEATS_MAX} like it before)"
    assert passes(101) == "row 101"


def test_another_kind_is_not_held_back() -> None:
    repeats = logs.Repeats(clock=lambda: 0.0)
    for kind in range(2 * logs._KINDS_MAX):
        assert repeats.filter(logging.makeLogRecord({"name": "a", "msg": f"kind {kind}"}))
    assert len(repeats._kinds) <= logs._KINDS_MAX
