"""Refuse early, and a few, when rows wait too long for the disk: CoDel (RFC 8289) at the door.

What counts is not how much waits but for how long: a burst that is gone within the interval is nothing.
When every row of an interval has waited longer than the target, one request is refused, and the next ones
at ever shorter intervals until rows wait less. So senders slow down while there is still room, instead of
all being refused when there is none. Who is refused is one of those who make the others wait: a project that
has at least an equal part of the bytes that do.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable

TARGET_S = 0.2
"""Syncs take milliseconds; senders give up after seconds."""
INTERVAL_S = 0.5


class Congestion:
    """How long blocks wait between their first row and the disk. Blocks are kept in the order they were cut."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting: deque[float] = deque()
        self._bytes: Counter[str] = Counter()
        self._above_since: float | None = None
        self._refused = 0
        self._next = 0.0

    def enter(self, since: float, project_id: str, data_bytes: int) -> None:
        """A block of a project was cut; its first row came at ``since``."""
        self._waiting.append(since)
        self._bytes[project_id] += data_bytes

    def leave(self, project_id: str, data_bytes: int) -> None:
        """The oldest block, of this project, is kept or never will be."""
        self._bytes[project_id] -= data_bytes
        if not self._bytes[project_id]:
            del self._bytes[project_id]
        waited = self._clock() - self._waiting.popleft()
        if waited < TARGET_S:
            self._above_since = None
            self._refused = 0

    def is_clear(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    def refuses(self, project_id: str) -> bool:
        """Whether to refuse the request of a project that is there now."""
        now = self._clock()
        if self._waiting and now - self._waiting[0] >= TARGET_S and self._above_since is None:
            self._above_since = now
        if self._above_since is None or now - self._above_since < INTERVAL_S:
            return False
        if self._refused and now < self._next:
            return False
        mine = self._bytes[project_id]
        if not mine or mine * len(self._bytes) < self._bytes.total():
            return False
        self._refused += 1
        self._next = now + INTERVAL_S / math.sqrt(self._refused)
        return True
