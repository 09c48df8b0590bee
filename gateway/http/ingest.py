"""The story of a request: admit, authorize, read, decode, append, acknowledge.

It is told over plain values, so that whoever owns the socket can call it. What it relies on is named
by the protocols below: a gate that knows keys, a delivery that takes rows. Whatever happens, the
sender gets one reply, in its dialect; a refusal leaves no row behind.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from gateway.config import Limits
from gateway.delivery.idempotency import Claim, Claims, UnderWay
from gateway.dialects import NEVER_RETRYING
from gateway.dialects.dialect import Context, Dialect, Outcome, Reply, Request, Rows
from gateway.dialects.ulid import ulid
from gateway.errors import Draining, Failed, WeirError
from gateway.http import body, idempotency, request_log
from gateway.http.admission import Admission, Ticket
from gateway.http.body import Deadlines, Incoming
from gateway.http.routes import Route
from gateway.http.surprise import without_its_text
from gateway.metrics import Metrics

log = logging.getLogger(__name__)

_MOVED_ROWS_LIVE_S = 86_400
"""A row older than the retention is moved to where it has this long to be seen: at the very edge it would be
acknowledged and then expire before anyone could."""

_COLUMN_BYTES_ALWAYS = 8 << 20
_COLUMN_BYTES_PER_BODY_BYTE = 28
"""What the rows of a body may come to, within limits.column_bytes_max. Rows of honest senders come to about their
body; a resource of 5 KB with records of 200 bytes to this. More is a body made to be dear, and is refused early."""

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


Headers = tuple[tuple[str, str], ...]
Decode = Callable[[Request, bytes, Context, Rows], Outcome]


class Tenant(Protocol):
    """Whose rows these are; ``gateway.tenants.gate.Tenant``."""

    @property
    def project_id(self) -> str: ...
    @property
    def key_id(self) -> str: ...
    @property
    def genai_content_bytes(self) -> int | None:
        """How much the project keeps of what GenAI events were told and answered; None is all."""
        ...

    @property
    def durability(self) -> str:
        """What a 2xx means for its rows; empty: as the settings say."""
        ...

    @property
    def notices(self) -> Headers:
        """What any reply to this request says: how much of the rate is left, when it is little."""
        ...


class Gate(Protocol):
    """Who is asking, and may they; ``gateway.tenants.gate.Gate``."""

    def authorize(self, key: str | None, origin: str | None) -> Tenant:
        """Raises Unauthorized, OriginRefused, SubscriptionRequired, RateLimited, KeysUnavailable."""
        ...

    def count(self, project_id: str, records: int) -> Headers:
        """Counts records that were accepted; returns what the reply says of the quota."""
        ...

    def allows_origin(self, origin: str) -> bool:
        """Whether some browser key may be used from this origin."""
        ...


class Receipt(Protocol):
    """A promise about appended rows."""

    async def wait(self) -> object:
        """Returns when the rows are as safe as a 2xx says. Raises GatewayError when they will not be."""
        ...

    @property
    def durability(self) -> str:
        """How safe they are, once ``wait`` has returned: memory, os, disk or stored."""
        ...


class OpenRows(Rows, Protocol):
    """The rows of one request, until they are committed or taken back."""

    @property
    def tables(self) -> int:
        """Of how many tables ``columns`` was called."""
        ...

    def rollback(self) -> None:
        """Take back what was written, for it to be written once more."""
        ...

    async def cut(self) -> None:
        """What there is to do between writing and ``commit``."""
        ...

    def commit(self, *claims: Claims) -> Receipt:
        """What the claims say is kept already is taken back."""
        ...


class Delivery(Protocol):
    """Where rows go; ``gateway.delivery``. Leaving ``rows`` without a commit takes back what was written."""

    def check(self, project_id: str, declared_bytes: int, *, retries: bool) -> None:
        """Raises Overloaded when there would be no room for a body of this size."""
        ...

    def rows(self, project_id: str, expected_bytes: int, durability: str) -> AbstractContextManager[OpenRows]:
        """Raises Overloaded when ``expected_bytes`` do not fit."""
        ...

    def rows_apart(self, project_id: str, expected_bytes: int, durability: str) -> AbstractContextManager[OpenRows]:
        """The same for a large request."""
        ...

    def claim(self, project_id: str, path: str, key: str, body: bytes) -> Claim:
        """Raises KeyReused when the key was used for another body, UnderWay when that is being stored."""
        ...

    def claim_records(self, uids: bytes, tables: int) -> Claims:
        """Raises UnderWay when one of them is being stored."""
        ...


@dataclass(frozen=True, slots=True)
class Ingest:
    """What the story needs besides the request. ``retention_s``: how far in the past a row may lie."""

    gate: Gate
    delivery: Delivery
    admission: Admission
    limits: Limits
    metrics: Metrics
    retention_s: float
    now_ns: Callable[[], int] = time.time_ns
    monotonic_s: Callable[[], float] = time.monotonic
    mint_request_id: Callable[[], str] = lambda: ulid(time.time_ns())


@dataclass(slots=True)
class _Learnt:
    """What comes out while a request is told, however it ends. ``notices`` are headers of any reply to it.

    ``refused``: the reason and the log's text. Not the error: its traceback would keep the body alive.
    """

    tenant: Tenant | None = None
    notices: list[tuple[str, str]] = field(default_factory=list)
    refused: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class _Taken:
    """A request whose rows are appended. ``request`` has the ids of its idempotency key."""

    request: Request
    outcome: Outcome
    receipt: Receipt
    is_repeated: bool = False

    @property
    def repeated(self) -> int:
        """Records that were there already."""
        return self.outcome.rows if self.is_repeated else self.outcome.repeated


async def ingest(
    house: Ingest, route: Route, method: str, path: str, headers: Mapping[str, str], incoming: Incoming
) -> Reply:
    """One request, from its headers to its reply. ``headers`` is looked up by lower-case names.

    ``route`` is what the routes found for the path. Never raises but for cancellation.
    """
    began_s = house.monotonic_s()
    dialect = route.dialect_for(method, headers)
    request = _request(house, route, method, path, headers)
    house.metrics.requests_received.add(1, dialect.name)
    learnt = _Learnt()
    try:
        reply = await _story(house, route, dialect, request, incoming, learnt)
        house.metrics.requests_accepted.add(1, dialect.name)
    except asyncio.CancelledError:
        # Only a stop that has run out of time does this. Nobody gets the reply, but the sums must hold.
        house.metrics.requests_refused.add(1, dialect.name, Draining.reason)
        raise
    except WeirError as error:
        reply = _refusal(house, dialect, request, error, learnt)
    except Exception as surprise:
        reply = _refusal(house, dialect, request, _failed(surprise, dialect, request), learnt)
    duration_s = house.monotonic_s() - began_s
    house.metrics.request_seconds.observe(duration_s, dialect.name)
    request_log.tell(request, dialect, learnt.tenant, reply.status, duration_s, learnt.refused)
    own = (*learnt.notices, ("X-Request-Id", request.request_id))
    return Reply(reply.status, reply.body, reply.media_type, reply.headers + own)


async def _story(
    house: Ingest,
    route: Route,
    dialect: Dialect,
    request: Request,
    incoming: Incoming,
    learnt: _Learnt,
) -> Reply:
    """The reply to a request that is accepted."""
    route.check_method(request.method)
    limits, origin = dialect.limits, request.headers.get("origin")

    # Admit: what cannot be taken is refused before it is read.
    encoding = body.encoding_of(request.headers)
    body.check_declared(incoming, limits.body_bytes_max)
    is_stranger = dialect.body_key is not None
    with house.admission.admit(incoming.declared_bytes or 0, stranger=is_stranger) as ticket:
        # Authorize, unless the key may be in the body.
        key = dialect.header_key(request.headers)
        if dialect.body_key is None:
            tenant = _authorize(house.gate, key, origin, ticket, learnt)
            _check_room(house, dialect, tenant, incoming)

        # Read.
        deadlines = Deadlines(house.limits.body_timeout_ms / 1e3, house.limits.body_bytes_per_s_min)
        sent = await body.read(incoming, bytes_max=limits.body_bytes_max, deadlines=deadlines, hold=ticket.hold)
        house.metrics.body_bytes.add(len(sent), dialect.name)
        content = await body.inflate(sent, encoding, bytes_max=limits.inflated_bytes_max, hold=ticket.hold)
        if dialect.body_key is not None:
            tenant = _authorize(house.gate, dialect.body_key(content) or key, origin, ticket, learnt)

        # Decode and append, or leave nothing behind; nothing is appended twice under one idempotency key.
        taken = await _append(house, dialect, request, content, tenant)

        # The rows hold all the body said: let it go before waiting.
        del sent, content
        ticket.release()

        # Acknowledge.
        await taken.receipt.wait()
        _count(house.metrics, dialect.name, taken)
        if taken.outcome.rows:
            learnt.notices.append(("X-Durability", taken.receipt.durability))
        if taken.is_repeated:
            learnt.notices.append(idempotency.REPLAYED)
        learnt.notices += house.gate.count(tenant.project_id, taken.outcome.rows - taken.repeated)
    return dialect.accepted(taken.request, taken.outcome)


def _authorize(gate: Gate, key: str | None, origin: str | None, ticket: Ticket, learnt: _Learnt) -> Tenant:
    """Whose request it is, if there is a place for one more of theirs."""
    tenant = learnt.tenant = gate.authorize(key, origin)
    learnt.notices += tenant.notices
    ticket.belongs_to(tenant.project_id)
    return tenant


def _check_room(house: Ingest, dialect: Dialect, tenant: Tenant, incoming: Incoming) -> None:
    """Refuse what there is no room for before its body is read. Who never comes back is refused last."""
    declared_bytes = incoming.declared_bytes or 0
    house.delivery.check(tenant.project_id, declared_bytes, retries=dialect.name not in NEVER_RETRYING)


async def _append(house: Ingest, dialect: Dialect, request: Request, content: bytes, tenant: Tenant) -> _Taken:
    """Decode a body into rows and commit them. While the same is being stored for another request, wait for that."""
    key = idempotency.sent_key(request.headers)
    context = _context(house, tenant, request, len(content))
    pauses_s = idempotency.pauses_s()
    while True:
        try:
            if key is None:
                return _Taken(request, *await _write(house, dialect, request, content, tenant, context))
            with house.delivery.claim(tenant.project_id, request.path, key, content) as claim:
                named = idempotency.with_ids(request, claim.digest, claim.first_s)
                written = await _write(house, dialect, named, content, tenant, context, claim)
                return _Taken(named, *written, is_repeated=claim.is_repeated)
        except UnderWay:
            pause_s = next(pauses_s, None)
            if pause_s is None:
                raise
        await asyncio.sleep(pause_s)


async def _write(
    house: Ingest, dialect: Dialect, request: Request, content: bytes, tenant: Tenant, context: Context, *claims: Claim
) -> tuple[Outcome, Receipt]:
    """A large body is decoded by a thread into columns of its own, for others not to wait meanwhile.

    Of a small one nothing is awaited before the commit: its columns are shared with the project's other requests.
    """
    is_large = len(content) > house.limits.inline_bytes_max
    open_rows = house.delivery.rows_apart if is_large else house.delivery.rows
    decode = partial(_in_a_thread if is_large else _here, dialect.decode, request, content)
    with open_rows(tenant.project_id, len(content), tenant.durability) as rows:
        outcome = await decode(context, rows)
        if not outcome.uids:
            await rows.cut()
            return outcome, rows.commit(*claims)
        with house.delivery.claim_records(outcome.uids, rows.tables) as records:
            if records.some_are_kept:
                rows.rollback()
                outcome = await decode(replace(context, known=records.known), rows)
            await rows.cut()
            return outcome, rows.commit(*claims, records)


async def _here(decode: Decode, request: Request, content: bytes, context: Context, rows: Rows) -> Outcome:
    return decode(request, content, context, rows)


async def _in_a_thread(decode: Decode, request: Request, content: bytes, context: Context, rows: Rows) -> Outcome:
    return await asyncio.to_thread(decode, request, content, context, rows)


def _request(house: Ingest, route: Route, method: str, path: str, headers: Mapping[str, str]) -> Request:
    sent_id = sent_request_id(headers)
    return Request(
        method=method,
        path=path,
        path_values=route.values,
        headers=headers,
        media_type=headers.get("content-type", "").partition(";")[0].strip().lower(),
        arrival_ns=house.now_ns(),
        request_id=sent_id or house.mint_request_id(),
        request_id_sent=bool(sent_id),
    )


def sent_request_id(headers: Mapping[str, str]) -> str:
    """The sender's X-Request-Id where it is one: what cannot be echoed in a header is not."""
    sent_id = headers.get("x-request-id", "")
    return sent_id if _REQUEST_ID.fullmatch(sent_id) else ""


def _context(house: Ingest, tenant: Tenant, request: Request, body_bytes: int) -> Context:
    back_s = house.retention_s - min(_MOVED_ROWS_LIVE_S, house.retention_s / 2)
    return Context(
        project_id=tenant.project_id,
        time_min_ns=max(0, request.arrival_ns - int(back_s * 1e9)),
        time_max_ns=request.arrival_ns + house.limits.timestamp_ahead_ms_max * 1_000_000,
        column_bytes_max=min(
            house.limits.column_bytes_max, max(_COLUMN_BYTES_ALWAYS, _COLUMN_BYTES_PER_BODY_BYTE * body_bytes)
        ),
        content_bytes_max=tenant.genai_content_bytes,
    )


def _count(metrics: Metrics, dialect: str, taken: _Taken) -> None:
    outcome, repeated = taken.outcome, taken.repeated
    metrics.records_received.add(outcome.rows + outcome.rejections, dialect)
    metrics.records_accepted.add(outcome.rows - repeated, dialect)
    if repeated:
        metrics.records_repeated.add(repeated, dialect)
    if taken.is_repeated:
        metrics.requests_repeated.add(1, dialect)
    for reason, records in outcome.rejected.items():
        metrics.records_rejected.add(records, dialect, reason)
    metrics.attributes_cut.add(outcome.attributes_cut, dialect)
    metrics.timestamps_clamped.add(outcome.timestamps_clamped, dialect)


def _refusal(house: Ingest, dialect: Dialect, request: Request, error: WeirError, learnt: _Learnt) -> Reply:
    house.metrics.requests_refused.add(1, dialect.name, error.reason)
    learnt.refused = error.reason, error.log
    learnt.notices += error.notices
    return dialect.refused(request, error)


def _failed(surprise: Exception, dialect: Dialect, request: Request) -> Failed:
    log.error(
        "a request failed for a reason nobody foresaw",
        extra={"request_id": request.request_id, "dialect": dialect.name, **without_its_text(surprise)},
    )
    return Failed("the gateway could not take this request: send it again later", retry_after_s=1)
