"""The contract of a dialect: bytes and headers in, rows and replies out.

A dialect knows no keys, queues or databases. It declares its routes and limits, says where the key
is, decodes a body into open columns, and words its replies. ``http/ingest.py`` does everything
else, once, for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from gateway._native import Columns, Decoded
from gateway.errors import WeirError


@dataclass(frozen=True, slots=True)
class Request:
    """What a dialect may know of a request. ``headers`` has lower-case names.

    ``media_type`` is the lower-case content type without parameters, ``arrival_ns`` wall-clock
    nanoseconds, ``request_id`` the sender's ``X-Request-Id`` or one minted by us (then
    ``request_id_sent`` is false).
    """

    method: str
    path: str
    headers: Mapping[str, str]
    media_type: str
    arrival_ns: int
    request_id: str
    request_id_sent: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer, whole."""

    status: int
    body: bytes = b""
    media_type: str = ""
    headers: tuple[tuple[str, str], ...] = ()


class Rows(Protocol):
    """Where a dialect's rows go: the one seam between what understands formats and what moves rows."""

    def columns(self, table: str) -> Columns:
        """The open columns of a table, marked: what is written after this call can be taken back."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """What decoding needs besides the bytes: constants of the request and the limits of time and size."""

    project_id: str
    dialect: str
    time_min_ns: int
    time_max_ns: int
    column_bytes_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One wire.

    ``routes``: (method, path) pairs it answers. Two dialects may name the same pair; the first in
    the registry whose ``claims`` accepts the key answers (Brokle before plain OTLP on /v1/logs).
    ``body_bytes_max``: as sent. ``inflated_bytes_max``: after decompression.
    ``header_key``: the key as sent in the headers, or None. ``body_key``: where the key is in the
    body (Proliferate); None for the others.
    ``decode``: writes rows or raises a SenderError, and then has written nothing that a rollback
    does not take back. ``state`` it returns beside the counts (ids, ...) goes to ``accepted``.
    ``accepted`` and ``refused`` word the replies.
    """

    name: str
    routes: tuple[tuple[str, str], ...]
    body_bytes_max: int
    inflated_bytes_max: int
    decode: Callable[[Request, bytes, Context, Rows], Decoded]
    accepted: Callable[[Request, Decoded], Reply]
    refused: Callable[[Request, WeirError], Reply]
    header_key: Callable[[Mapping[str, str]], str | None]
    body_key: Callable[[bytes], str | None] | None = None
    claims: Callable[[str | None], bool] = field(default=lambda key: True)


def bearer_or_api_key(headers: Mapping[str, str]) -> str | None:
    """The key as ``Authorization: Bearer K`` or ``X-API-Key: K``, whichever is there."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key", "").strip() or None
