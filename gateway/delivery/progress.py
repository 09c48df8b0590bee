"""Which accepted rows are not stored yet, counted for those who wait for a flush.

Every flush draws a line at the frame number that comes next; it is over when nothing below its line
is left. Frame numbers of one opening only grow; those of earlier lives count as below every line.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right

from gateway.delivery.frames import FrameNumbers


class Progress:
    """Counts blocks between the lines that flushes have drawn. Belongs to one event loop."""

    def __init__(self, frames: FrameNumbers) -> None:
        self._frames = frames
        self._first = frames.upcoming
        self._lines: list[int] = []
        self._counts = [0]
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for a flush: then nothing should wait for company."""
        return bool(self._waiting)

    def add(self, frame: int) -> None:
        """A block was cut."""
        self._counts[self._between(frame)] += 1

    def add_old(self, frames: int) -> None:
        """So many blocks were found from earlier lives."""
        self._counts[0] += frames

    def settle(self, frame: int) -> None:
        """Nothing is left to do for a block."""
        self._counts[self._between(frame)] -= 1
        self._tell()

    async def flush(self) -> None:
        """Return when every block that was cut before the call is settled."""
        line = self._frames.upcoming
        if not self._lines or self._lines[-1] < line:
            self._lines.append(line)
            self._counts.append(0)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((line, waiter))
        self._tell()
        try:
            await waiter
        finally:
            self._waiting = [other for other in self._waiting if other[1] is not waiter]

    def _between(self, frame: int) -> int:
        is_ours = self._first <= frame < self._frames.upcoming
        return bisect_right(self._lines, frame) if is_ours else 0

    def _tell(self) -> None:
        passed = -1
        while self._lines and not self._counts[0]:
            passed = self._lines.pop(0)
            del self._counts[0]
        for line, waiter in self._waiting:
            if line <= passed and not waiter.done():
                waiter.set_result(None)
