"""The query and control API: what people ask for with a personal access token, beside what senders post.

Each family of paths declares its ``ApiRoute``s; here is what they share: the token, the body under a
cap, and that every refusal is worded as its family words errors. A token comes as
``Authorization: Bearer pat_...``. Nothing of a body or a token is ever logged.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from gateway.config import Limits
from gateway.dialects.dialect import Reply, refusal_headers
from gateway.errors import Failed, Invalid, MethodNotAllowed, WeirError
from gateway.http import body
from gateway.http.admission import Admission
from gateway.http.body import Deadlines, Incoming
from gateway.http.routes import match
from gateway.http.surprise import without_its_text
from gateway.tenants.records import PatRecord

log = logging.getLogger(__name__)

BODY_BYTES_MAX = 1 << 20
_JSON = "application/json"


class Tokens(Protocol):
    """Who holds a token; ``gateway.tenants.pats.Pats``."""

    async def check(self, token: str | None) -> PatRecord:
        """Raises Unauthorized, KeysUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A request whose token is good. ``headers`` is looked up by lower-case names.

    ``query``: the parameters of the address; of one sent twice the last, ``query_all`` has them all.
    ``body``: decompressed, at most ``BODY_BYTES_MAX``.
    """

    method: str
    path: str
    path_values: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    pat: PatRecord
    query_pairs: tuple[tuple[str, str], ...] = ()

    def query_all(self, name: str) -> list[str]:
        """Every value of a parameter, as sent."""
        return [value for found, value in self.query_pairs if found == name]


@dataclass(frozen=True, slots=True)
class ApiRoute:
    """One method and path. A segment ``{name}`` of ``pattern`` matches any one segment.

    ``handler`` may raise a WeirError, which ``error_body`` words.
    """

    method: str
    pattern: str
    handler: Callable[[ApiRequest], Awaitable[Reply]]
    error_body: Callable[[WeirError], dict[str, Any]]


class Api:
    """All routes. Where several match a path, the first one counts that takes the method."""

    def __init__(self, routes: Sequence[ApiRoute], tokens: Tokens, *, limits: Limits, admission: Admission) -> None:
        self._routes = [(route.pattern.split("/"), route) for route in routes]
        self._tokens = tokens
        self._deadlines = Deadlines(limits.body_timeout_ms / 1e3, limits.body_bytes_per_s_min)
        self._admission = admission

    async def answer(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]],
        headers: Mapping[str, str],
        incoming: Incoming,
    ) -> Reply | None:
        """The reply, or None when no route has this path. Never raises but for cancellation."""
        matching = self._matching(path)
        if not matching:
            return None
        route, values = next((found for found in matching if found[0].method == method), matching[0])
        try:
            _check_method(method, tuple(dict.fromkeys(found.method for found, _ in matching)))
            # Tokens are looked up in Postgres: those who wait for that must not take the place of senders.
            with self._admission.admit(incoming.declared_bytes or 0, stranger=True) as ticket:
                pat = await self._tokens.check(_token(headers))
                ticket.is_known()
                content = await self._read(headers, incoming, ticket.hold)
                request = ApiRequest(method, path, values, dict(query), headers, content, pat, tuple(query))
                return await route.handler(request)
        except WeirError as error:
            log.debug("refused: %s", error.log, extra={"path": route.pattern, "why": error.reason})
            return _refusal(route, error)
        except Exception as surprise:
            log.error(  # noqa: TRY400 - its text may quote the request
                "a request failed for a reason nobody foresaw",
                extra={"path": route.pattern, **without_its_text(surprise)},
            )
            return _refusal(route, Failed("the gateway could not answer this: send it again later", retry_after_s=1))

    async def _read(self, headers: Mapping[str, str], incoming: Incoming, hold: Callable[[int], None]) -> bytes:
        encoding = body.encoding_of(headers)
        sent = await body.read(incoming, bytes_max=BODY_BYTES_MAX, deadlines=self._deadlines, hold=hold)
        return await body.inflate(sent, encoding, bytes_max=BODY_BYTES_MAX, hold=hold)

    def _matching(self, path: str) -> list[tuple[ApiRoute, dict[str, str]]]:
        segments = path.split("/")
        found = [(route, match(pattern, segments)) for pattern, route in self._routes]
        return [(route, values) for route, values in found if values is not None]


def in_details(part: str) -> Callable[[WeirError], dict[str, Any]]:
    """Words errors as ``{"detail": ...}``: a text, or of a member of a request's ``part`` a list, as FastAPI does."""

    def error_body(error: WeirError) -> dict[str, Any]:
        if isinstance(error, Invalid) and error.field:
            return {"detail": [{"type": "value_error", "loc": [part, error.field], "msg": str(error)}]}
        return {"detail": str(error)}

    return error_body


def json_reply(status: int, value: object) -> Reply:
    """``value`` as JSON."""
    return Reply(status, msgspec.json.encode(value), _JSON)


def _check_method(method: str, allow: tuple[str, ...]) -> None:
    if method not in allow:
        raise MethodNotAllowed(f"this path takes {' and '.join(allow)}", allow=allow)


def _refusal(route: ApiRoute, error: WeirError) -> Reply:
    return Reply(error.status, msgspec.json.encode(route.error_body(error)), _JSON, refusal_headers(error))


def _token(headers: Mapping[str, str]) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    token = token.strip()
    # What is not ASCII was never given out.
    return token if scheme.lower() == "bearer" and token and token.isascii() else None
