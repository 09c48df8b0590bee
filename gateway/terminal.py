"""How long work is shown to a person: a bar on a terminal, lines elsewhere, and nothing where it is short."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

FIRST_S = 0.5
"""Shorter work is not shown."""
BAR_S, LINE_S = 0.1, 5.0
"""Between two looks of a bar, and two lines."""
BAR_CELLS = 40


class Progress:
    """Shows how far ``what`` has come, on ``stream``. ``clock`` gives seconds that never go back."""

    def __init__(self, what: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._stream = stream
        self._clock = clock
        self._next = clock() + FIRST_S
        self._shown = False

    def show(self, done: int, of: int) -> None:
        """So much is done."""
        if self._clock() < self._next:
            return
        part = done / of if of else 1.0
        if self._stream.isatty():
            bar = "#" * int(part * BAR_CELLS)
            self._stream.write(f"\r{self._what} [{bar:<{BAR_CELLS}}] {part:4.0%}")
            self._next = self._clock() + BAR_S
        else:
            self._stream.write(f"{self._what}: {part:.0%}\n")
            self._next = self._clock() + LINE_S
        self._stream.flush()
        self._shown = True

    def end(self) -> None:
        """Take the bar away."""
        if self._shown and self._stream.isatty():
            self._stream.write("\r\x1b[K")
            self._stream.flush()
