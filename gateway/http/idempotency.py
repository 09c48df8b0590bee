"""The ``Idempotency-Key`` header: a name that a sender gives one request, however often it has to send it.

After draft-ietf-httpapi-idempotency-key-header: the same key with another body is 422. Where the draft says 409 to a
request whose first is under way, that is waited for, and then 503: senders of logs drop what is answered 409. The
draft's quotes are taken as part of the key, and may be left away. A reply that repeats one says so as Stripe does.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from hashlib import shake_256

from gateway.dialects.dialect import Request
from gateway.errors import Invalid

WAIT_S, PAUSE_FIRST_S, PAUSE_MAX_S = 5.0, 0.005, 0.25
"""For a request or record that another one is storing; then the sender is asked to come again."""
REPLAYED = ("Idempotent-Replayed", "true")
_KEY = re.compile(r"[\x20-\x7e]{1,255}")


def sent_key(headers: Mapping[str, str]) -> str | None:
    """The key of a request, None when it has none. Raises Invalid."""
    key = headers.get("idempotency-key")
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise Invalid("the header Idempotency-Key must be 1 to 255 printable ASCII characters")
    return key


def with_ids(request: Request, digest: bytes, first_s: int) -> Request:
    """The request with ids of ours that are the same each time it is sent."""
    minted = 0

    def mint(length: int) -> bytes:
        nonlocal minted
        minted += 1
        return shake_256(digest + minted.to_bytes(4, "big")).digest(length)

    return replace(request, mint=mint, minted_ns=first_s * 1_000_000_000)


def pauses_s(clock: Callable[[], float] = time.monotonic) -> Iterator[float]:
    """How long to wait before each new try: it may cost a decoding, so ever longer."""
    ends_s, pause_s = clock() + WAIT_S, PAUSE_FIRST_S
    while clock() < ends_s:
        yield pause_s
        pause_s = min(2 * pause_s, PAUSE_MAX_S)
