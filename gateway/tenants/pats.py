"""Personal access tokens: who may read and control, as opposed to send.

A token is looked up by its SHA-256 in Postgres when it is used. An answer is remembered for
``REMEMBERED_S``, so a revoked token works for that long at most, and a new one that was tried too
early is unknown for as long. However many use one token at once, Postgres is asked once; what was cut
or mistyped it is not asked about at all. Tokens that are good and those that are not are remembered
apart, a bounded number of each: whoever tries many makes nobody else's be looked up again.

Control and queries may wait for Postgres; records never do.

Tokens are account-wide, and this gateway is one account: any valid token may see and change every
project of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from gateway.errors import KeysUnavailable, Unauthorized
from gateway.tenants.errors import StoreUnavailable
from gateway.tenants.minting import PAT_PREFIX, digest_of, is_damaged
from gateway.tenants.records import PatRecord

REMEMBERED_S = 0.5
REMEMBERED_MAX = 1024
# Nothing longer is one of ours, so nothing longer is hashed.
TOKEN_CHARS_MAX = 256
RETRY_AFTER_S = 2

_HINT = f"Send a personal access token as Authorization: Bearer {PAT_PREFIX}...; `weir pat create` makes one."


class Store(Protocol):
    """Where tokens are kept; ``gateway.tenants.pat_store.PatStore``."""

    async def find(self, sha256: bytes) -> PatRecord | None:
        """The token with this digest, None when there is none or it is revoked. Raises StoreUnavailable."""
        ...


class Pats:
    """The tokens of a control store. ``monotonic_s`` must not step back."""

    def __init__(self, store: Store, *, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._monotonic_s = monotonic_s
        # Digest -> (remembered until, record), the oldest first.
        self._good: dict[bytes, tuple[float, PatRecord | None]] = {}
        self._unknown: dict[bytes, tuple[float, PatRecord | None]] = {}
        self._asking: dict[bytes, asyncio.Task[PatRecord | None]] = {}

    async def check(self, token: str | None) -> PatRecord:
        """The record of a token. Raises Unauthorized, and KeysUnavailable when Postgres cannot be asked."""
        if token is None:
            raise Unauthorized(f"There is no token. {_HINT}", log="no token")
        if not token.startswith(PAT_PREFIX) or len(token) > TOKEN_CHARS_MAX:
            raise Unauthorized(f"This is not a personal access token. {_HINT}", log="not a token")
        if is_damaged(token):
            raise Unauthorized(
                "The token's checksum does not fit: it was probably cut or mistyped. Copy it whole.",
                log="a token whose checksum does not fit",
            )
        record = await self._find(digest_of(token))
        if record is None:
            raise Unauthorized(f"The token is unknown or was revoked. {_HINT}", log="unknown or revoked token")
        return record

    async def _find(self, digest: bytes) -> PatRecord | None:
        now_s = self._monotonic_s()
        known = self._good.get(digest) or self._unknown.get(digest)
        if known is not None and known[0] > now_s:
            return known[1]
        asking = self._asking.get(digest)
        if asking is None:
            asking = self._asking[digest] = asyncio.create_task(self._ask(digest, now_s + REMEMBERED_S))
            asking.add_done_callback(lambda _: self._asking.pop(digest))
        # Whoever asked first may go away; the others still want to know.
        return await asyncio.shield(asking)

    async def _ask(self, digest: bytes, until_s: float) -> PatRecord | None:
        try:
            record = await self._store.find(digest)
        except StoreUnavailable:
            raise KeysUnavailable(
                "The token cannot be checked at the moment. Send the same again later.",
                log="tokens: the control store cannot be asked",
                retry_after_s=RETRY_AFTER_S,
            ) from None
        self._good.pop(digest, None)
        self._unknown.pop(digest, None)
        answers = self._unknown if record is None else self._good
        if len(answers) >= REMEMBERED_MAX:
            del answers[next(iter(answers))]
        answers[digest] = until_s, record
        return record
