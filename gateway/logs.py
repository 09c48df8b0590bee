"""The gateway's own log: JSON lines for machines, short lines for a person at a terminal.

What is repeated is told once and then summed up: an outage must not fill a disk. Whoever logs passes
``extra={"dialect": ..., "status": ...}``; those become members of the JSON. Never a key, never a body.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import TextIO

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

REPEATS_MAX = 10
"""Lines of one kind within a window before they are only counted."""
WINDOW_S = 10.0
_KINDS_MAX = 1000


def configure(level: str, form: str, stream: TextIO = sys.stderr, *, worker: int | None = None) -> None:
    """Sends every log to ``stream``, at ``level``, as ``form``: json, text, or auto (text on a terminal).

    ``worker`` is added to every line, where there are several.
    """
    handler = logging.StreamHandler(stream)
    as_text = form == "text" or (form == "auto" and stream.isatty())
    handler.setFormatter(TextLines() if as_text else JsonLines())
    handler.addFilter(Repeats())
    if worker is not None:
        handler.addFilter(Named(worker))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Their debug and info lines are about themselves, and may quote a request.
    for noisy in ("asyncio", "aiohttp", "asyncpg", "aiochclient"):
        logging.getLogger(noisy).setLevel("WARNING")


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _PLAIN}


class JsonLines(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, and what the caller added."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextLines(logging.Formatter):
    """``12:00:00 level message key=value``, with the traceback below where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        extras = "".join(f" {name}={value}" for name, value in _extras(record).items())
        line = f"{clock} {record.levelname.lower():<7} {record.getMessage()}{extras}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class Named(logging.Filter):
    """Says which worker it was."""

    def __init__(self, worker: int) -> None:
        super().__init__()
        self._worker = worker

    def filter(self, record: logging.LogRecord) -> bool:
        record.worker = self._worker
        return True


class Repeats(logging.Filter):
    """Lets ``REPEATS_MAX`` lines of a kind through in ``WINDOW_S``; the next line after that says how many were not.

    A kind is a logger, a level and a message before its arguments are filled in.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[tuple[str, int, str], list[float]] = {}  # kind -> [window began, lines in it]

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._clock()
        kind = (record.name, record.levelno, str(record.msg))
        began, lines = self._kinds.get(kind, (now, 0.0))
        if now - began >= WINDOW_S:
            if lines > REPEATS_MAX:
                record.msg = f"{record.getMessage()} (and {int(lines) - REPEATS_MAX} like it before)"
                record.args = ()
            began, lines = now, 0.0
        if len(self._kinds) >= _KINDS_MAX:
            self._kinds.clear()
        self._kinds[kind] = [began, lines + 1]
        return lines < REPEATS_MAX
