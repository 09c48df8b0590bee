"""Pages of other origins: what a browser may send here and lets its page read (Fetch standard, CORS protocol).

A browser asks before it posts, without the key: it is told yes where some browser key may be used from
that origin, and the request itself then shows its key to the gate, which compares with that key's own
list. Answers to such an origin may be read by the page, refusals too: a refusal that the page cannot
read tells its author nothing. Never ``*``, and never for ``null``, which any sandboxed frame may claim.

We decided:
* An origin that no browser key allows is refused with 403 when it asks, and its posts are answered
  without these headers: the browser then hides the answer from the page.
* Asking is answered before anything else, on every path of the ingest port, so that a page that posts
  to a wrong path can read the 404. It is no request to ingest, and is not counted as one.
* While the key store is away, the origins are those last known, as the keys are.
* GET and HEAD, which only probes use, are the same for everyone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import msgspec

from gateway.dialects.dialect import Reply
from gateway.http.routes import Route

METHODS = "POST, OPTIONS"
ALLOWED_HEADERS = (
    "authorization, content-type, content-encoding, x-api-key, x-request-id, traceparent, tracestate, idempotency-key"
)
EXPOSED_HEADERS = (
    "Retry-After, X-Quota-Warning, X-Request-Id, X-Durability, Idempotent-Replayed, RateLimit, RateLimit-Policy, "
    "X-Dropped-Reason"
)
MAX_AGE_S = 7200
"""What Chromium caps it at."""

_VARY = ("Vary", "Origin")
_NOBODY = msgspec.json.encode({"error": "no browser key may be used from this origin: create one that names it"})


class Origins(Protocol):
    """Which origins some browser key may be used from; ``gateway.tenants.gate.Gate``."""

    def allows_origin(self, origin: str) -> bool: ...


def answer_options(origins: Origins, route: Route | None, headers: Mapping[str, str]) -> Reply | None:
    """The answer to OPTIONS on ``route``; None where there is no route and no browser is asking."""
    origin = headers.get("origin")
    if origin is not None and "access-control-request-method" in headers:
        return _preflight(origins, origin)
    if route is None:
        return None
    allow = ", ".join(dict.fromkeys((*route.methods, "OPTIONS")))
    return Reply(204, headers=(("Allow", allow),))


def readable(reply: Reply, origins: Origins, origin: str) -> Reply:
    """The reply to a request from ``origin``, with the headers that let a page there read it, where it may."""
    if not _allowed(origins, origin):
        return replace(reply, headers=(*reply.headers, _VARY))
    granted = (
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Expose-Headers", EXPOSED_HEADERS),
        _VARY,
    )
    return replace(reply, headers=(*reply.headers, *granted))


def _preflight(origins: Origins, origin: str) -> Reply:
    if not _allowed(origins, origin):
        return Reply(403, _NOBODY, "application/json", (_VARY,))
    granted = (
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Allow-Methods", METHODS),
        ("Access-Control-Allow-Headers", ALLOWED_HEADERS),
        ("Access-Control-Max-Age", str(MAX_AGE_S)),
        _VARY,
    )
    return Reply(204, headers=granted)


def _allowed(origins: Origins, origin: str) -> bool:
    # The header is repeated as it came, since browsers compare it byte by byte. Theirs is always ASCII.
    return origin.isascii() and origins.allows_origin(origin)
