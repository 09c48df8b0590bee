"""How often a token may query, where a dialect limits that, and the headers that tell of it."""

from __future__ import annotations

import math
from typing import Protocol

Headers = tuple[tuple[str, str], ...]


class Buckets(Protocol):
    """Token buckets by name; ``gateway.tenants.rates.Buckets``."""

    def take(self, name: str, per_minute: int, burst: int, cost: int = 1) -> tuple[float, float]:
        """The seconds to wait, 0 when it was taken, and what is left."""
        ...


class Budgets:
    """``per_minute`` new requests a minute for each token, at most ``burst`` at once."""

    def __init__(self, buckets: Buckets, *, per_minute: int, burst: int) -> None:
        self._buckets = buckets
        self._per_minute = per_minute
        self._burst = burst

    def take(self, token_id: str, cost: int) -> tuple[int, Headers]:
        """How many whole seconds too early the request is, 0 when it counts; and the headers of its answer.

        ``X-RateLimit-Limit`` is requests a minute, ``-Remaining`` what is left at once, ``-Reset`` the seconds until
        all is there again.
        """
        wait_s, left = self._buckets.take(f"query {token_id}", self._per_minute, self._burst, cost)
        headers = (
            ("X-RateLimit-Limit", str(self._per_minute)),
            ("X-RateLimit-Remaining", str(int(left))),
            ("X-RateLimit-Reset", str(math.ceil((self._burst - left) * 60 / self._per_minute))),
        )
        return math.ceil(wait_s), headers
