"""How fast bytes leave, and so when there will be room again."""

from __future__ import annotations

import math
from collections.abc import Callable

RETRY_AFTER_MIN_S, RETRY_AFTER_MAX_S = 1, 10


class Drain:
    """How fast bytes leave, over the last second or two."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._start = clock()
        self._now_bytes = self._before_bytes = 0
        self._before_s = 0.0

    def add(self, released: int) -> None:
        """So many bytes have left."""
        passed = self._clock() - self._start
        if passed >= 1.0:
            self._before_bytes, self._before_s = self._now_bytes, passed
            self._now_bytes, self._start = 0, self._start + passed
        self._now_bytes += released

    def seconds(self, wanted: int) -> int:
        """Whole seconds until ``wanted`` bytes have left at this rate, within the bounds of a Retry-After."""
        passed = self._clock() - self._start + self._before_s
        rate = (self._now_bytes + self._before_bytes) / max(passed, 0.001)
        if rate <= 0:
            return RETRY_AFTER_MAX_S
        return max(RETRY_AFTER_MIN_S, min(RETRY_AFTER_MAX_S, math.ceil(wanted / rate)))
