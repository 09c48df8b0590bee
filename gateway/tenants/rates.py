"""How often a key may be used: a token bucket each.

A key of 10,000 requests a minute has a bucket that holds 10,000 tokens and gets 166.7 new ones a second;
a request takes one, a batch is one request. So a sender may send its whole minute at once, and again a
minute later; over any longer time it gets its rate. (A minute that begins with a full bucket therefore
lets up to twice the rate through, as with every bucket that does not refuse such a burst.)

The clients of some dialects never send again what was refused, and their vendors have no such limit;
``by_dialect`` gives their keys a rate of their own, so that it is a guard and not a loss.

Buckets are in this process's memory: with several processes a sender that spreads over all of them has
as many buckets. Set the rate accordingly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from gateway._native import Bucket
from gateway.errors import RateLimited
from gateway.tenants.records import KeyRecord, KeyTable

Headers = tuple[tuple[str, str], ...]

WINDOW_S = 60
# From when on a sender is told what it has left.
LOW = 0.2


class Rates:
    """The buckets. ``requests_per_minute`` is for keys that have none of their own, ``by_dialect`` goes before it.

    ``now_ns`` must not step back.
    """

    def __init__(
        self,
        requests_per_minute: int,
        *,
        by_dialect: Mapping[str, int] | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._default = requests_per_minute
        self._by_dialect = dict(by_dialect or {})
        self._now_ns = now_ns
        self._buckets: dict[str, tuple[int, Bucket]] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: KeyRecord) -> Headers:
        """Counts a request; returns the headers its reply is to carry, whatever it will be. Under a microsecond.

        RateLimited when it is one too many: then it is not counted.
        """
        now_ns = self._now_ns()
        limit, bucket = self._buckets.get(key.id) or (0, None)
        wanted = key.requests_per_minute or self._by_dialect.get(key.dialect, self._default)
        if bucket is None or limit != wanted:
            limit, bucket = wanted, Bucket(wanted / WINDOW_S, wanted, now_ns)
            self._buckets[key.id] = limit, bucket
        wait_s = bucket.take(1.0, now_ns)
        if wait_s == 0.0:
            left = bucket.level(now_ns)
            return () if left >= limit * LOW else _headers(limit, left)
        error = RateLimited(
            f"More than {limit} requests a minute with this key. Send the same again later, "
            "and more records in a request: a batch is one request.",
            log=f"rate: key {key.id} over {limit} requests a minute",
            retry_after_s=math.ceil(wait_s),
        )
        error.notices = _headers(limit, bucket.level(now_ns))
        raise error

    def keep(self, table: KeyTable) -> None:
        """Lets go of buckets of keys that are gone, once there are more buckets than keys."""
        if len(self._buckets) > len(table.live):
            live = {record.id for record in table.live.values()}
            self._buckets = {key_id: bucket for key_id, bucket in self._buckets.items() if key_id in live}


def _headers(limit: int, left: float) -> Headers:
    """As in draft-ietf-httpapi-ratelimit-headers: the policy, what is left, in how many seconds it is whole."""
    whole_in_s = math.ceil((limit - left) * WINDOW_S / limit)
    return (
        ("RateLimit-Policy", f'"key";q={limit};w={WINDOW_S}'),
        ("RateLimit", f'"key";r={int(left)};t={whole_in_s}'),
    )
