"""What Streamlogia's dashboard and the scripts of its users read (docs.streamlogia.com; the vendor's public server).

    GET /v1/projects/{project_id}/logs               a page of logs, newest first, with a cursor to the next
    GET /v1/projects/{project_id}/logs/{log_id}      one of them
    GET /v1/projects/{project_id}/logs/stats         how many of each level
    GET /v1/projects/{project_id}/logs/timeseries    the same over time
    GET /v1/projects/{project_id}/logs/aggregate     how many of each level, source, source type or member of meta
    GET /v1/projects/{project_id}/logs/export        up to 100,000 of them as NDJSON or CSV
    GET /v1/query/projects                           the projects there are
    GET /v1/query/logs, /logs/export, /logs/{log_id}, /stats    the same of the projects in projectId, else of all

The latter are limited to 120 requests a minute for each token, 240 at once; an export counts as 20. A project is
named by its id or its slug. Errors are the dialect's, ``{"error", "code", "message", "details"?}``: 400 names the
parameter. See docs/reading.md.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from gateway.dialects.dialect import Reply, refusal_headers
from gateway.dialects.streamlogia import CODES
from gateway.errors import Invalid, NotFound, RateLimited, WeirError
from gateway.http import reads
from gateway.http.api import ApiRequest, ApiRoute, json_reply
from gateway.http.budgets import Buckets, Budgets
from gateway.http.parts import PartsReply
from gateway.http.reads import asked, known, project_named, projects_away, text_of
from gateway.http.streamlogia_export import FORMATS, MEDIA_TYPES, ROWS_MAX, SLOW, Exports
from gateway.reading.logs import LIMIT_MAX, TIME_MAX_NS, TIME_MIN_NS
from gateway.reading.streamlogia import (
    BUCKETS_MAX,
    COLUMNS,
    LEVEL_NAMED,
    LEVELS,
    SOURCE_TYPES,
    Bucket,
    Entry,
    Group,
    Place,
    StreamlogiaReader,
    Wanted,
    bucket_numbers,
    rfc3339,
    rfc3339_ns,
)
from gateway.tenants.errors import StoreUnavailable
from gateway.tenants.records import Project

T = TypeVar("T")

PROJECTS_MAX = 50
EXPORT_COST = 20

_VALUES_MAX = 20
_MINUTE_NS = 60 * 10**9
_DAY_NS = 1440 * _MINUTE_NS
_SHORT_NS = 120 * _MINUTE_NS
_INTERVALS_S = {"1m": 60, "5m": 300, "15m": 900, "1h": 3600, "6h": 21_600, "1d": 86_400}
_TOTALS = ("bounded", "none", "exact")
_POSITIVE = re.compile(r"0*[1-9][0-9]{0,18}", re.ASCII)

_WINDOW = ("from", "to")
_KINDS = ("level", "source_type")
_FILTERS = (*_WINDOW, *_KINDS, "q", "search", "source", "tag")
_PAGE = ("limit", "cursor", "total")
_LISTS = ("level", "tag", "projectId")
_META = "meta."


class Projects(reads.Projects, Protocol):
    """Who owns rows; ``gateway.tenants.postgres.ControlStore``."""

    async def list_projects(self) -> list[Project]:
        """All of them. Raises StoreUnavailable."""
        ...


class _Page(msgspec.Struct, frozen=True, rename="camel"):
    logs: list[Entry]
    next_cursor: str | None
    total_is_exact: bool
    total: int | UnsetType = UNSET


class _Series(msgspec.Struct, frozen=True):
    interval: str
    from_: str = msgspec.field(name="from")
    to: str
    buckets: list[Bucket]


class _Groups(msgspec.Struct, frozen=True):
    group_by: str = msgspec.field(name="groupBy")
    from_: str = msgspec.field(name="from")
    to: str
    groups: list[Group]


Answer = Callable[[ApiRequest, tuple[str, ...]], Awaitable[Reply]]
"""Answers a request about these projects; none are all."""


def routes(
    reader: StreamlogiaReader,
    projects: Projects,
    buckets: Buckets,
    *,
    now_ns: Callable[[], int] = time.time_ns,
    monotonic_ns: Callable[[], int] = time.monotonic_ns,
) -> list[ApiRoute]:
    """All paths; where two match, the first counts. ``buckets`` hold what each token may still ask."""
    answers = _Answers(reader, now_ns, monotonic_ns)
    scopes = _Scopes(projects, Budgets(buckets, per_minute=120, burst=240))
    project = "/v1/projects/{project_id}/logs"
    handlers = {
        project: scopes.one(answers.logs),
        f"{project}/stats": scopes.one(answers.stats),
        f"{project}/timeseries": scopes.one(answers.series),
        f"{project}/aggregate": scopes.one(answers.groups),
        f"{project}/export": scopes.one(answers.export),
        f"{project}/{{log_id}}": scopes.one(answers.log),
        "/v1/query/projects": scopes.metered(scopes.projects),
        "/v1/query/logs": scopes.some(answers.logs),
        "/v1/query/logs/export": scopes.some(answers.export, cost=EXPORT_COST),
        "/v1/query/logs/{log_id}": scopes.some(answers.log),
        "/v1/query/stats": scopes.some(answers.stats, exactly_one=True),
    }
    return [ApiRoute("GET", path, handler, error_body) for path, handler in handlers.items()]


def error_body(error: WeirError) -> dict[str, Any]:
    """``{"error", "code", "message"}`` as the server words errors; ``details`` names a parameter."""
    code = CODES.get(error.status, "internal")
    body: dict[str, Any] = {"error": code, "code": code, "message": str(error)}
    if isinstance(error, Invalid) and error.field:
        body["details"] = [{"field": error.field, "message": str(error)}]
    return body


class _Scopes:
    """Which projects a request is about, and whether its token may ask again already."""

    def __init__(self, projects: Projects, budgets: Budgets) -> None:
        self._projects = projects
        self._budgets = budgets

    def one(self, answer: Answer) -> Callable[[ApiRequest], Awaitable[Reply]]:
        """Of the project in the path."""

        async def handler(request: ApiRequest) -> Reply:
            project = await project_named(self._projects, request.path_values["project_id"])
            return await answer(request, (project.id,))

        return handler

    def some(
        self, answer: Answer, *, cost: int = 1, exactly_one: bool = False
    ) -> Callable[[ApiRequest], Awaitable[Reply]]:
        """Of the projects in ``projectId``, metered."""

        async def handler(request: ApiRequest) -> Reply:
            names = dict.fromkeys(_words(",".join(request.query_all("projectId"))))
            if len(names) > PROJECTS_MAX:
                raise Invalid(f"projectId may name at most {PROJECTS_MAX} projects", field="projectId")
            if exactly_one and len(names) != 1:
                raise Invalid("stats needs exactly one projectId", field="projectId")
            found = [(await project_named(self._projects, name)).id for name in names]
            others = tuple((name, value) for name, value in request.query_pairs if name != "projectId")
            return await answer(replace(request, query_pairs=others), tuple(dict.fromkeys(found)))

        return self.metered(handler, cost)

    def metered(
        self, handler: Callable[[ApiRequest], Awaitable[Reply]], cost: int = 1
    ) -> Callable[[ApiRequest], Awaitable[Reply]]:
        """Counts against the token's budget; every answer says what is left of it."""

        async def metered(request: ApiRequest) -> Reply:
            wait_s, headers = self._budgets.take(request.pat.id, cost)
            try:
                if wait_s:
                    raise RateLimited(
                        "query API rate limit exceeded", log="rate: a token over its rate", retry_after_s=wait_s
                    )
                reply = await handler(request)
            except WeirError as error:
                reply = replace(json_reply(error.status, error_body(error)), headers=refusal_headers(error))
            return replace(reply, headers=(*reply.headers, *headers))

        return metered

    async def projects(self, request: ApiRequest) -> Reply:
        known(request.query_pairs, ())
        try:
            found = await self._projects.list_projects()
        except StoreUnavailable as error:
            raise projects_away(error) from None
        return json_reply(200, {"projects": [{"id": project.id, "name": project.name} for project in found]})


class _Answers:
    def __init__(self, reader: StreamlogiaReader, now_ns: Callable[[], int], monotonic_ns: Callable[[], int]) -> None:
        self._reader = reader
        self._exports = Exports(reader, monotonic_ns)
        self._now_ns = now_ns

    async def logs(self, request: ApiRequest, project_ids: tuple[str, ...]) -> Reply:
        wanted, values = filters(request.query_pairs, project_ids, (*_FILTERS, *_PAGE))
        limit, place, total = _limit("limit", values, 100, LIMIT_MAX), _place(values), _total(values)
        page = _asked(self._reader.page(wanted, limit, place))
        if total == "none":
            entries, last = await page
            return json_reply(200, _Page(entries, last and last.cursor, False))
        counting = _asked(self._reader.total(wanted, exact=total == "exact"))
        (entries, last), (count, is_exact) = await asyncio.gather(page, counting)
        return json_reply(200, _Page(entries, last and last.cursor, is_exact, count))

    async def log(self, request: ApiRequest, project_ids: tuple[str, ...]) -> Reply:
        known(request.query_pairs, ())
        try:
            log_id = str(uuid.UUID(request.path_values["log_id"]))
        except ValueError:
            raise Invalid("the id of a log is a UUID", field="log_id") from None
        found = await _asked(self._reader.find(Wanted(project_ids), log_id))
        if found is None:
            raise NotFound("There is no log with this id, or it was stored too long ago.")
        return json_reply(200, found)

    async def stats(self, request: ApiRequest, project_ids: tuple[str, ...]) -> Reply:
        wanted, _ = filters(request.query_pairs, project_ids, (*_WINDOW, "source_type"))
        return json_reply(200, await _asked(self._reader.stats(wanted)))

    async def series(self, request: ApiRequest, project_ids: tuple[str, ...]) -> Reply:
        wanted, values = self._within_window(request, project_ids, (*_WINDOW, *_KINDS, "interval"))
        interval = _one_of("interval", values, tuple(_INTERVALS_S), "1h")
        step_s = _INTERVALS_S[interval]
        if interval.endswith("m") and wanted.to_ns - wanted.from_ns >= _SHORT_NS:
            raise Invalid(f"an interval of {interval} is for at most two hours: widen it", field="interval")
        if len(bucket_numbers(wanted.from_ns, wanted.to_ns, step_s)) > BUCKETS_MAX:
            raise Invalid(f"these are more than {BUCKETS_MAX} buckets: widen the interval", field="interval")
        buckets = await _asked(self._reader.series(wanted, step_s))
        return json_reply(200, _Series(interval, rfc3339(wanted.from_ns), rfc3339(wanted.to_ns + 1), buckets))

    async def groups(self, request: ApiRequest, project_ids: tuple[str, ...]) -> Reply:
        wanted, values = self._within_window(request, project_ids, (*_WINDOW, *_KINDS, "groupBy", "limit"))
        asked_by = values.get("groupBy", "") or "level"
        group_by, _, field = asked_by.partition(".")
        if asked_by not in COLUMNS and not (group_by == "meta" and field):
            raise Invalid("groupBy must be level, source, source_type, or meta.<field>", field="groupBy")
        limit = _limit("limit", values, 50, 500)
        groups = await _asked(self._reader.groups(wanted, group_by, text_of("groupBy", field), limit))
        return json_reply(200, _Groups(asked_by, rfc3339(wanted.from_ns), rfc3339(wanted.to_ns + 1), groups))

    def _within_window(
        self, request: ApiRequest, project_ids: tuple[str, ...], names: Sequence[str]
    ) -> tuple[Wanted, dict[str, str]]:
        """Filters whose times have defaults, the last 24 hours; ``to`` is not included here."""
        wanted, values = filters(request.query_pairs, project_ids, names)
        to_ns = wanted.to_ns if values.get("to") else self._now_ns()
        from_ns = wanted.from_ns if values.get("from") else max(to_ns - _DAY_NS, TIME_MIN_NS)
        if from_ns >= to_ns:
            raise Invalid("from must be before to", field="from")
        return replace(wanted, from_ns=from_ns, to_ns=to_ns - 1), values

    async def export(self, request: ApiRequest, project_ids: tuple[str, ...]) -> Reply:
        # Limit and total have no say, and are taken so that the address of a page serves as one of an export.
        wanted, values = filters(request.query_pairs, project_ids, (*_FILTERS, *_PAGE, "format", "maxRows"))
        _limit("limit", values, 100, LIMIT_MAX)
        _total(values)
        kind = FORMATS[_one_of("format", values, tuple(FORMATS), "ndjson")]
        rows_max = _limit("maxRows", values, ROWS_MAX, ROWS_MAX)
        name = f"logs-{project_ids[0]}" if len(project_ids) == 1 else "logs"
        headers = (
            ("Content-Disposition", f'attachment; filename="{name}.{kind}"'),
            ("X-Export-Row-Limit", str(rows_max)),
            ("Cache-Control", "no-store"),
        )
        parts = await self._exports.begin(wanted, _place(values), rows_max, kind)
        return PartsReply(200, media_type=MEDIA_TYPES[kind], headers=headers, parts=parts)


def filters(
    sent: Sequence[tuple[str, str]], project_ids: tuple[str, ...], names: Sequence[str]
) -> tuple[Wanted, dict[str, str]]:
    """The filters among the parameters, and all of these by name. ``names`` are those there are.

    Members of meta may be asked for where a source may. Raises Invalid, which names the one that is wrong.
    """
    has_meta = "source" in names
    members = [(name, value) for name, value in sent if has_meta and name.startswith(_META)]
    values = known([(name, value) for name, value in sent if not (has_meta and name.startswith(_META))], names, _LISTS)
    if values.get("q") and values.get("search"):
        raise Invalid("q and search are two names of one parameter: send one of them", field="q")
    wanted = Wanted(
        project_ids=project_ids,
        levels=_levels(values.get("level", "")),
        search=text_of("search", values.get("q") or values.get("search", "")),
        source=text_of("source", values.get("source", "")),
        tags=_few("tag", _words(values.get("tag", ""))),
        meta=_meta(members),
        source_type=_one_of("source_type", values, SOURCE_TYPES, ""),
        from_ns=_time_ns("from", values, TIME_MIN_NS),
        to_ns=_time_ns("to", values, TIME_MAX_NS),
    )
    if wanted.from_ns > wanted.to_ns:
        raise Invalid("from must not be after to", field="from")
    return wanted, values


def _meta(members: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """By name the text to be there; an empty one filters nothing, like that of every filter."""
    wanted: dict[str, str] = {}
    for parameter, value in members:
        name = text_of(_META, parameter.removeprefix(_META))
        if not name or name in wanted:
            raise Invalid("meta.<field> names a field, each once", field=_META)
        wanted[name] = text_of(_META, value)
    return tuple((name, value) for name, value in _few(_META, tuple(wanted.items())) if value)


def _few(name: str, values: tuple[T, ...]) -> tuple[T, ...]:
    if len(values) > _VALUES_MAX:
        raise Invalid(f"{name} may be there at most {_VALUES_MAX} times", field=name)
    return values


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for part in text.split(",") if (word := part.strip())))


def _levels(text: str) -> tuple[str, ...]:
    words = [word.lower() for word in _words(text)]
    if not all(word in LEVEL_NAMED for word in words):
        raise Invalid(f"level must be some of {', '.join(LEVELS)}", field="level")
    return tuple(sorted({LEVEL_NAMED[word] for word in words}))


def _time_ns(name: str, values: Mapping[str, str], default_ns: int) -> int:
    """One outside 1970 to 2099, where no row is, is that edge."""
    text = values.get(name, "")
    try:
        return min(max(rfc3339_ns(text), TIME_MIN_NS), TIME_MAX_NS) if text else default_ns
    except ValueError:
        raise Invalid(f"{name} must be a time in RFC 3339, such as 2025-01-15T00:00:00Z", field=name) from None


def _limit(name: str, values: Mapping[str, str], default: int, most: int) -> int:
    """A positive number; of one above ``most`` that."""
    text = values.get(name, "")
    if not text:
        return default
    if not _POSITIVE.fullmatch(text):
        raise Invalid(f"{name} must be a positive whole number", field=name)
    return min(int(text), most)


def _one_of(name: str, values: Mapping[str, str], words: Sequence[str], default: str) -> str:
    word = values.get(name, "") or default
    if word and word not in words:
        raise Invalid(f"{name} must be one of {', '.join(words)}", field=name)
    return word


def _total(values: Mapping[str, str]) -> str:
    return _one_of("total", values, _TOTALS, "bounded")


def _place(values: Mapping[str, str]) -> Place | None:
    text = values.get("cursor", "")
    try:
        return Place.of_cursor(text) if text else None
    except ValueError:
        raise Invalid("cursor must be the nextCursor of a page", field="cursor") from None


def _asked(answer: Awaitable[T]) -> Awaitable[T]:
    return asked(answer, SLOW)
