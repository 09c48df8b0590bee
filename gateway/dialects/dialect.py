"""The contract of a dialect: bytes and headers in, rows and replies out.

A dialect knows no keys, queues or databases. It declares its routes and limits, says where the key
is, decodes a body into open columns, and words its replies. ``http/ingest.py`` does everything
else, once, for all of them. ``docs/decisions/0001-dialect-contract.md`` shows how each wire fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from secrets import token_bytes
from typing import Protocol, TypedDict

from gateway._native import Columns, Decoded
from gateway.config import DialectLimits
from gateway.errors import MethodNotAllowed, RateLimited, WeirError


@dataclass(frozen=True, slots=True)
class Request:
    """What a dialect may know of a request.

    ``path`` as sent, without the query; ``path_values`` what its route's ``{name}`` segments held.
    ``headers`` is looked up by lower-case names; of a header sent twice, the first. ``media_type`` is
    the content type in lower case without parameters, empty when none was sent. ``arrival_ns`` is
    wall-clock nanoseconds. ``request_id`` is the sender's ``X-Request-Id`` (at most 128 visible ASCII
    characters) or one minted by us; then ``request_id_sent`` is false. ``mint`` gives so many bytes for ids of ours,
    and ``minted_ns`` the time in them: by chance and of now, or the same again for a repeated Idempotency-Key.
    """

    method: str
    path: str
    path_values: Mapping[str, str]
    headers: Mapping[str, str]
    media_type: str
    arrival_ns: int
    request_id: str
    request_id_sent: bool
    mint: Callable[[int], bytes] = token_bytes
    minted_ns: int = 0


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


class Bounds(TypedDict):
    """Arguments that all of the compiled decoders take."""

    arrival_ns: int
    time_min_ns: int
    time_max_ns: int
    column_bytes_max: int


@dataclass(frozen=True, slots=True)
class Context:
    """What decoding needs besides the request: whose rows they are, and the limits of time and size.

    Times outside [``time_min_ns``, ``time_max_ns``] are moved to its edge. ``column_bytes_max`` is
    what the rows of the request may grow the columns by; more is TooLarge.
    ``content_bytes_max``: how much the project keeps of what GenAI events were told and answered;
    None is all of it. ``known``: the records of this request that are not to be written, as the compiled decoder
    takes them.
    """

    project_id: str
    time_min_ns: int
    time_max_ns: int
    column_bytes_max: int
    content_bytes_max: int | None = None
    known: bytes = b""

    def bounds(self, arrival_ns: int) -> Bounds:
        """What every decoder is told of time and size."""
        return Bounds(
            arrival_ns=arrival_ns,
            time_min_ns=self.time_min_ns,
            time_max_ns=self.time_max_ns,
            column_bytes_max=self.column_bytes_max,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a request's records came to.

    ``rows``: records stored. ``events``: how many of them are GenAI events too. ``rejected``: records
    that were not stored, by reason; ``message`` says where the first is and what to change. ``state``
    is the dialect's own: what ``accepted`` needs and only ``decode`` knows (ids, an event count). ``uids``: of
    the records that have a log.record.uid, ``repeated``: how many of ``rows`` were not written, for the context knew
    them.
    """

    rows: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    message: str = ""
    attributes_cut: int = 0
    timestamps_clamped: int = 0
    events: int = 0
    state: object = None
    uids: bytes = b""
    repeated: int = 0

    @classmethod
    def of(cls, decoded: Decoded, state: object = None) -> Outcome:
        """What the compiled decoder counted."""
        return cls(
            rows=decoded.rows,
            rejected=decoded.rejected,
            message=decoded.message,
            attributes_cut=decoded.attributes_cut,
            timestamps_clamped=decoded.timestamps_clamped,
            events=sum(decoded.outputs[1:]),
            state=state,
            uids=decoded.uids,
            repeated=decoded.repeated,
        )

    @property
    def rejections(self) -> int:
        return sum(self.rejected.values())


def bearer_or_api_key(headers: Mapping[str, str]) -> str | None:
    """The key as ``Authorization: Bearer K`` or ``X-API-Key: K``, whichever is there.

    What is not ASCII cannot be a key anybody issued, and is no key.
    """
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        key = headers.get("x-api-key", "")
    key = key.strip()
    return key if key and key.isascii() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One wire. A file may declare several of one name, for paths that answer differently.

    ``routes``: (method, path) pairs it answers; a path segment ``{name}`` matches any one segment.
    Two dialects may name the same pair; the first in the registry whose ``claims`` accepts the key
    in the headers answers (Brokle before plain OTLP on /v1/logs).
    ``limits``: bytes of a body as sent and once decompressed.
    ``decode``: writes rows and says what came of them, or raises a WeirError; then whatever was
    written since ``Rows.columns`` is taken back. Called once, with the whole body, decompressed.
    ``accepted`` and ``refused`` word the replies, for a request that got as far as its path.
    ``header_key``: the key as sent in the headers, or None.
    ``body_key``: where the key is in the body (Proliferate); a key there goes before one in the
    headers. None for the others.
    """

    name: str
    routes: tuple[tuple[str, str], ...]
    limits: DialectLimits
    decode: Callable[[Request, bytes, Context, Rows], Outcome]
    accepted: Callable[[Request, Outcome], Reply]
    refused: Callable[[Request, WeirError], Reply]
    header_key: Callable[[Mapping[str, str]], str | None] = bearer_or_api_key
    body_key: Callable[[bytes], str | None] | None = None
    claims: Callable[[str | None], bool] = field(default=lambda key: True)


RETRY_AFTER_S = 1
"""The wait we ask for when the error knows none: exporters have a budget of about ten seconds in all."""


def refusal_headers(error: WeirError) -> tuple[tuple[str, str], ...]:
    """The headers HTTP wants with an error, in every dialect: Retry-After in whole seconds, Allow."""
    if isinstance(error, MethodNotAllowed):
        return (("Allow", ", ".join(error.allow)),)
    if error.status == 503 or isinstance(error, RateLimited):
        wait_s = RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
        return (("Retry-After", str(max(1, wait_s))),)
    return ()
