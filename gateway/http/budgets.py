"""How often a token may query, where a dialect limits that: a bucket for each token, and headers that tell of it.

Buckets are in this process's memory, and a token without one has a full one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from gateway._native import Bucket

BUCKETS_MAX = 1024

Headers = tuple[tuple[str, str], ...]


class Budgets:
    """``per_minute`` new requests a minute, at most ``burst`` at once. ``now_ns`` must not step back."""

    def __init__(self, *, per_minute: int, burst: int, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._per_minute = per_minute
        self._burst = burst
        self._now_ns = now_ns
        self._buckets: dict[str, Bucket] = {}

    def take(self, token_id: str, cost: int) -> tuple[int, Headers]:
        """How many whole seconds too early the request is, 0 when it counts; and the headers of its answer.

        ``X-RateLimit-Limit`` is requests a minute, ``-Remaining`` what is left at once, ``-Reset`` the seconds until
        all is there again.
        """
        now_ns = self._now_ns()
        bucket = self._buckets.get(token_id)
        if bucket is None:
            self._make_room(now_ns)
            bucket = self._buckets[token_id] = Bucket(self._per_minute / 60, self._burst, now_ns)
        wait_s = bucket.take(cost, now_ns)
        left = bucket.level(now_ns)
        headers = (
            ("X-RateLimit-Limit", str(self._per_minute)),
            ("X-RateLimit-Remaining", str(int(left))),
            ("X-RateLimit-Reset", str(math.ceil((self._burst - left) * 60 / self._per_minute))),
        )
        return math.ceil(wait_s), headers

    def _make_room(self, now_ns: int) -> None:
        """Lets go of buckets that are full, which loses nothing; failing that, of the oldest."""
        if len(self._buckets) >= BUCKETS_MAX:
            used = {name: bucket for name, bucket in self._buckets.items() if bucket.level(now_ns) < self._burst}
            if len(used) >= BUCKETS_MAX:
                del used[next(iter(used))]
            self._buckets = used
