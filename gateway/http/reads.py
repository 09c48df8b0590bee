"""What Proliferate's dashboard and its users read: the logs of a project, and those around an error.

    GET /api/v1/projects/{project_id}/logs    a page of logs, newest first
    GET /api/v1/events/{event_id}/logs        the logs of an error's trace within five minutes of it, oldest first

A project is named by its id or its slug. Errors are ``{"detail": ...}``: 422 names the parameter, 401 says what
is wrong with the token, 404 what is not there, 503 that the same may succeed later. See docs/reading.md.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

from gateway.delivery.answers import MEMORY_LIMIT, AnswerTooLarge, DeliveryError
from gateway.dialects.dialect import Reply
from gateway.errors import GatewayError, Invalid, NotFound
from gateway.http.api import ApiRequest, ApiRoute, in_details, json_reply
from gateway.reading.logs import (
    LEVEL_OF,
    LEVELS,
    LIMIT_MAX,
    OFFSET_MAX,
    TIME_MAX_NS,
    TIME_MIN_NS,
    Filters,
    LogReader,
    TooMany,
)
from gateway.tenants.errors import StoreUnavailable
from gateway.tenants.records import Project

log = logging.getLogger(__name__)

T = TypeVar("T")

_TEXT_CHARS_MAX = 1000
_NAME_CHARS_MAX = 64
_RETRY_AFTER_S = 1
_WHOLE = re.compile(r"[0-9]{1,9}", re.ASCII)
# A + in an address is a space; nobody means one before an offset.
_OFFSET_WITH_A_SPACE = re.compile(r"(?<=T)(.*) (?=[0-9]{2}:?[0-9]{2}$)", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_TIMEOUT_EXCEEDED, _TOO_MANY_ROWS_OR_BYTES = 159, 396
_AWAY = "Log storage temporarily unavailable"


class Projects(Protocol):
    """Who owns rows; ``gateway.tenants.postgres.ControlStore``."""

    async def find_project(self, name: str) -> Project | None:
        """The project with this id or slug. Raises StoreUnavailable."""
        ...


def routes(reader: LogReader, projects: Projects) -> list[ApiRoute]:
    """Both paths."""
    reads = _Reads(reader, projects)
    return [
        ApiRoute("GET", "/api/v1/projects/{project_id}/logs", reads.project_logs, error_body),
        ApiRoute("GET", "/api/v1/events/{event_id}/logs", reads.event_logs, error_body),
    ]


error_body = in_details("query")


class _Reads:
    def __init__(self, reader: LogReader, projects: Projects) -> None:
        self._reader = reader
        self._projects = projects

    async def project_logs(self, request: ApiRequest) -> Reply:
        try:
            wanted = filters(request.query_pairs)
            project = await project_named(self._projects, request.path_values["project_id"])
            return json_reply(200, await asked(self._reader.logs(project.id, wanted)))
        except Invalid as error:
            return json_reply(422, error_body(error))

    async def event_logs(self, request: ApiRequest) -> Reply:
        try:
            wanted = part(request.query_pairs)
            event = await asked(self._reader.event(request.path_values["event_id"]))
            if event is None:
                raise NotFound("There is no error event with this id, or it was stored too long ago.")
            return json_reply(200, await asked(self._reader.around(event, wanted)))
        except Invalid as error:
            return json_reply(422, error_body(error))


async def project_named(projects: Projects, name: str) -> Project:
    """The project with this id or slug. Raises NotFound, GatewayError."""
    try:
        project = await projects.find_project(name)
    except StoreUnavailable as error:
        raise projects_away(error) from None
    if project is None:
        raise NotFound("There is no project with this id or slug; `weir projects list` shows them.")
    return project


def projects_away(error: StoreUnavailable) -> GatewayError:
    """What is told while Postgres is away."""
    return GatewayError("Projects temporarily unavailable", log=f"projects: {error}", retry_after_s=_RETRY_AFTER_S)


class TooMuch(Invalid):
    """The answer would be larger than one answer may be."""


async def asked(
    answer: Awaitable[T],
    slow: str = "The query takes too long: ask for less time between start_time and end_time",
) -> T:
    """What the store answers. Raises GatewayError when it does not, TooMuch when that was too much to ask.

    ``slow`` is told when it takes too long, or too much memory.
    """
    try:
        return await answer
    except TooMany:
        raise GatewayError(
            "Too many queries at once", log="reading: too many queries at once", retry_after_s=_RETRY_AFTER_S
        ) from None
    except DeliveryError as error:
        if error.code in (_TIMEOUT_EXCEEDED, MEMORY_LIMIT):
            raise GatewayError(slow, log="reading: a query took too long", retry_after_s=_RETRY_AFTER_S) from None
        if isinstance(error, AnswerTooLarge) or error.code == _TOO_MANY_ROWS_OR_BYTES:
            raise TooMuch("so many logs are too large for one answer: ask for fewer", field="limit") from None
        log.warning("logs cannot be read: %s", error)
        raise GatewayError(_AWAY, log=f"reading: {error}", retry_after_s=_RETRY_AFTER_S) from None


def filters(sent: Sequence[tuple[str, str]]) -> Filters:
    """The parameters of a query for logs. Raises Invalid, which names the one that is wrong."""
    values = known(sent, ("levels", "search", "trace_id", "start_time", "end_time", "limit", "offset"))
    start_ns = time_ns("start_time", values.get("start_time", ""), TIME_MIN_NS)
    end_ns = time_ns("end_time", values.get("end_time", ""), TIME_MAX_NS)
    if start_ns > end_ns:
        raise Invalid("start_time must not be after end_time", field="start_time")
    return Filters(
        levels=_levels(values.get("levels", "")),
        search=text_of("search", values.get("search", "")),
        trace_id=text_of("trace_id", values.get("trace_id", "")),
        start_ns=start_ns,
        end_ns=end_ns,
        limit=whole("limit", values.get("limit", "100"), 1, LIMIT_MAX),
        offset=whole("offset", values.get("offset", "0"), 0, OFFSET_MAX),
    )


def part(sent: Sequence[tuple[str, str]]) -> Filters:
    """The same of a query for the logs around an error: as many as there may be, unless asked otherwise."""
    values = known(sent, ("limit", "offset"))
    return Filters(
        limit=whole("limit", values.get("limit", str(LIMIT_MAX)), 1, LIMIT_MAX),
        offset=whole("offset", values.get("offset", "0"), 0, OFFSET_MAX),
    )


def time_ns(name: str, text: str, default_ns: int) -> int:
    """An ISO 8601 time as nanoseconds since 1970; without an offset it is UTC; empty is the default."""
    if not text:
        return default_ns
    try:
        moment = datetime.fromisoformat(_OFFSET_WITH_A_SPACE.sub(r"\1+", text))
        since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    except (ValueError, OverflowError):
        raise Invalid(f"{name} must be a time in ISO 8601, such as 2025-01-15T00:00:00Z", field=name) from None
    return since // _MICROSECOND * 1000


def known(sent: Sequence[tuple[str, str]], names: Sequence[str], lists: Sequence[str] = ("levels",)) -> dict[str, str]:
    """The parameters, each once: a filter that is misspelt or twice must not find more than was asked for.

    Those in ``lists`` may come several times; then there are commas between their values.
    """
    values: dict[str, str] = {}
    for name, value in sent:
        if name not in names:
            raise Invalid(
                f"there is no such parameter; there are {', '.join(names) or 'none'}", field=name[:_NAME_CHARS_MAX]
            )
        if name in values and name not in lists:
            raise Invalid(f"{name} is there twice", field=name)
        values[name] = f"{values[name]},{value}" if name in values else value
    return values


def _levels(text: str) -> frozenset[str]:
    words = [word for part in text.split(",") if (word := part.strip().lower())]
    if not all(word in LEVEL_OF for word in words):
        raise Invalid(f"levels must be some of {', '.join(LEVELS)}, with commas between them", field="levels")
    return frozenset(LEVEL_OF[word] for word in words)


def text_of(name: str, text: str) -> str:
    """A parameter's text. Raises Invalid when it is longer than any may be."""
    if len(text) > _TEXT_CHARS_MAX:
        raise Invalid(f"{name} must have at most {_TEXT_CHARS_MAX} characters", field=name)
    return text


def whole(name: str, text: str, least: int, most: int) -> int:
    """A parameter's whole number. Raises Invalid naming it."""
    if not _WHOLE.fullmatch(text) or not least <= int(text) <= most:
        raise Invalid(f"{name} must be a whole number from {least} to {most}", field=name)
    return int(text)
