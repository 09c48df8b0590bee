"""How often a key may be used: a token bucket each.

A key of 10,000 requests a minute has a bucket that holds 10,000 tokens and gets 166.7 new ones a second;
a request takes one, a batch is one request. So a sender may send its whole minute at once, and again a
minute later; over any longer time it gets its rate. (A minute that begins with a full bucket therefore
lets up to twice the rate through, as with every bucket that does not refuse such a burst.)

The clients of some dialects never send again what was refused, and their vendors have no such limit;
``by_dialect`` gives their keys a rate of their own, so that it is a guard and not a loss.

Buckets are in memory that all workers of a gateway share, so that a key has its rate in sum however its
connections are spread, and over a worker's end. A bucket is one number: the moment at which it is full
again, and taking from it is one compiled step that all processes may do at once. What is not in the
future says nothing, so buckets are let go of without being told to.

Several gateways behind one address have buckets of their own each: divide the setting.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Set
from hashlib import blake2b

from gateway._native import take_tokens
from gateway.errors import RateLimited
from gateway.tenants.records import KeyRecord, KeyTable

Headers = tuple[tuple[str, str], ...]

WINDOW_S = 60
_WINDOW_NS = WINDOW_S * 1_000_000_000
# From when on a sender is told what it has left.
LOW = 0.2

BUCKETS = 1 << 17
"""Of keys that are in use at the same time; far more than keys in the gateway's memory. 2 MiB."""
_MEMORY_BYTES = BUCKETS * 16
_NEIGHBOURS = 32


def shared_buckets() -> int:
    """A descriptor of memory for ``Buckets``, all buckets full; for this process and those that inherit it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("weir-rates")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, _MEMORY_BYTES)
    return descriptor


class Buckets:
    """Token buckets by name. ``shared`` is what ``shared_buckets`` gave; None: nobody shares.

    ``now_ns`` must not step back, and be the same for all who share.
    """

    def __init__(self, shared: int | None = None, *, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._now_ns = now_ns
        # In pairs: whose bucket, and when it is full.
        self._cells = memoryview(mmap.mmap(-1 if shared is None else shared, _MEMORY_BYTES)).cast("q")
        self._places: dict[str, tuple[int, int, int]] = {}  # name -> its place, what is written there, its rate

    def __len__(self) -> int:
        """Of how many names this process knows the place."""
        return len(self._places)

    def take(self, name: str, per_minute: int, burst: int, cost: int = 1) -> tuple[float, float]:
        """Takes ``cost`` from a bucket that holds ``burst``. Returns the seconds to wait, and what is left.

        0 seconds when it was taken, else nothing was. A microsecond or two.
        """
        place = self._place(name, per_minute)
        each_ns = _WINDOW_NS / per_minute
        return take_tokens(self._cells, place + 1, self._now_ns(), each_ns=each_ns, burst=burst, cost=cost)

    def forget(self, names: Iterable[str]) -> None:
        """Lets go of them; they are full from then on."""
        for name in names:
            place, whose, _ = self._places.pop(name)
            if self._cells[place] == whose:
                self._cells[place + 1] = 0

    @property
    def names(self) -> Set[str]:
        """Those whose places this process knows."""
        return self._places.keys()

    def _place(self, name: str, per_minute: int) -> int:
        """Where the bucket is: first whose it is, then when it is full. A name with another rate has another one."""
        cells = self._cells
        known = self._places.get(name)
        if known is not None and known[2] == per_minute and cells[known[0]] == known[1]:
            return known[0]
        digest = blake2b(f"{per_minute} {name}".encode(), digest_size=8).digest()
        whose = int.from_bytes(digest, "little", signed=True)
        near = [(whose + step) % BUCKETS * 2 for step in range(_NEIGHBOURS)]
        place = next((place for place in near if cells[place] == whose), -1)
        if place < 0:
            # The one that is full, or will be first. Should another process take it for another name in this
            # moment, one of the two finds a stranger's there at its next request, and comes here again.
            place = min(near, key=lambda place: cells[place + 1])
            cells[place + 1] = 0
            cells[place] = whose
        if len(self._places) >= BUCKETS:
            self._places.clear()  # they are found again
        self._places[name] = place, whose, per_minute
        return place


class Rates:
    """Those of keys. ``requests_per_minute`` is for keys that have none of their own, ``by_dialect`` goes before it.

    ``shared`` and ``now_ns`` are as of ``Buckets``.
    """

    def __init__(
        self,
        requests_per_minute: int,
        *,
        by_dialect: Mapping[str, int] | None = None,
        shared: int | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._default = requests_per_minute
        self._by_dialect = dict(by_dialect or {})
        self._buckets = Buckets(shared, now_ns=now_ns)

    def __len__(self) -> int:
        """Of how many keys this process knows the bucket."""
        return len(self._buckets)

    def take(self, key: KeyRecord) -> Headers:
        """Counts a request; returns the headers its reply is to carry, whatever it will be. A microsecond or two.

        RateLimited when it is one too many: then it is not counted.
        """
        limit = key.requests_per_minute or self._by_dialect.get(key.dialect, self._default)
        wait_s, left = self._buckets.take(key.id, limit, limit)
        if not wait_s:
            return () if left >= limit * LOW else _headers(limit, left)
        error = RateLimited(
            f"More than {limit} requests a minute with this key. Send the same again later, "
            "and more records in a request: a batch is one request.",
            log=f"rate: key {key.id} over {limit} requests a minute",
            retry_after_s=math.ceil(wait_s),
        )
        error.notices = _headers(limit, left)
        raise error

    def keep(self, table: KeyTable) -> None:
        """Lets go of buckets of keys that are gone, once there are more buckets than keys."""
        if len(self._buckets) > len(table.live):
            self._buckets.forget(self._buckets.names - {record.id for record in table.live.values()})


def _headers(limit: int, left: float) -> Headers:
    """As in draft-ietf-httpapi-ratelimit-headers: the policy, what is left, in how many seconds it is whole."""
    whole_in_s = math.ceil((limit - left) * WINDOW_S / limit)
    return (
        ("RateLimit-Policy", f'"key";q={limit};w={WINDOW_S}'),
        ("RateLimit", f'"key";r={int(left)};t={whole_in_s}'),
    )
