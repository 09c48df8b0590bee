"""What a project wants to be told of, and where.

    GET, POST  /api/v1/projects/{project_id}/alerts        its alerts; a new one
    DELETE     /api/v1/projects/{project_id}/alerts/{id}   forget one

    name         what it is called                    webhook_url  where word of it is sent, POST with JSON
    levels       any of them; ["heartbeat"] alone: told when none came for timeout_s (120 to 300 seconds)
    contains     part of the message, in any case     context      {"key", "value"} of an attribute, both text
    cooldown_s   silence after it fired, 300          enabled      true

All conditions that are given must hold, and one must be given. Errors are ``{"detail": ...}``: 400 names the member,
409 says that there are as many alerts as there may be, otherwise as of the reads. See docs/alerts.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gateway.alerts.webhook import URL_CHARS_MAX, NotAllowed, checked
from gateway.dialects.dialect import Reply
from gateway.errors import Conflict, GatewayError, Invalid, Malformed, NotFound
from gateway.http.api import ApiRequest, ApiRoute, in_details, json_reply
from gateway.http.reads import Projects, project_named
from gateway.reading.logs import LEVEL_OF, LEVELS
from gateway.reading.matches import HEARTBEAT
from gateway.reading.status import TIMEOUT_S_MAX, TIMEOUT_S_MIN
from gateway.tenants.alerts import AlertStore
from gateway.tenants.errors import AlreadyThere, StoreUnavailable
from gateway.tenants.records import AlertRecord, Project

NAME_CHARS_MAX, TEXT_CHARS_MAX, KEY_CHARS_MAX = 200, 1000, 200
COOLDOWN_S_MAX = 7 * 86_400
_RETRY_AFTER_S = 2
_MEMBER = re.compile(r"`\$\.(?P<member>[a-z_.]+)")
_ID = re.compile(r"[0-9]{1,10}", re.ASCII)


class _Context(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: Annotated[str, Meta(min_length=1, max_length=KEY_CHARS_MAX)]
    value: Annotated[str, Meta(min_length=1, max_length=TEXT_CHARS_MAX)]


class _Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
    webhook_url: Annotated[str, Meta(min_length=1, max_length=URL_CHARS_MAX)]
    levels: Annotated[list[str], Meta(max_length=len(LEVEL_OF))] = []
    contains: Annotated[str, Meta(max_length=TEXT_CHARS_MAX)] = ""
    context: _Context | None = None
    timeout_s: Annotated[int, Meta(ge=TIMEOUT_S_MIN, le=TIMEOUT_S_MAX)] | None = None
    cooldown_s: Annotated[int, Meta(ge=1, le=COOLDOWN_S_MAX)] = 300
    enabled: bool = True


def routes(store: AlertStore, projects: Projects, hosts: Sequence[str]) -> list[ApiRoute]:
    """The routes above. ``hosts``: ``alerts.webhook_hosts``."""
    api = _Alerts(store, projects, hosts)
    path = "/api/v1/projects/{project_id}/alerts"
    return [
        ApiRoute("GET", path, api.list, error_body),
        ApiRoute("POST", path, api.create, error_body),
        ApiRoute("DELETE", path + "/{id}", api.delete, error_body),
    ]


error_body = in_details("body")


@dataclass(frozen=True, slots=True)
class _Alerts:
    _store: AlertStore
    _projects: Projects
    _hosts: Sequence[str]

    async def list(self, request: ApiRequest) -> Reply:
        project = await self._project(request)
        with _refusals():
            found = await self._store.list(project.id)
        return json_reply(200, {"alerts": [_shown(alert) for alert in found]})

    async def create(self, request: ApiRequest) -> Reply:
        asked = parse(request.body)
        _check_url(asked.webhook_url, self._hosts)
        levels = _levels(asked)
        project = await self._project(request)
        with _refusals():
            made = await self._store.create(
                project.id,
                name=asked.name,
                webhook_url=asked.webhook_url,
                levels=levels,
                contains=asked.contains,
                context_key=asked.context.key if asked.context else "",
                context_value=asked.context.value if asked.context else "",
                timeout_s=(asked.timeout_s or TIMEOUT_S_MIN) if levels == (HEARTBEAT,) else None,
                cooldown_s=asked.cooldown_s,
                enabled=asked.enabled,
            )
        return json_reply(201, {"alert": _shown(made)})

    async def delete(self, request: ApiRequest) -> Reply:
        project = await self._project(request)
        number = request.path_values["id"]
        with _refusals():
            done = _ID.fullmatch(number) and await self._store.delete(project.id, int(number))
        if not done:
            raise NotFound("The project has no alert with this id.")
        return json_reply(200, {"success": True})

    async def _project(self, request: ApiRequest) -> Project:
        return await project_named(self._projects, request.path_values["project_id"])


def parse(body: bytes) -> _Asked:
    """What a new alert shall be. Raises Malformed, Invalid."""
    try:
        asked = msgspec.json.decode(body, type=_Asked)
    except msgspec.ValidationError as error:
        found = _MEMBER.search(str(error))
        raise _invalid(found["member"] if found else "", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Malformed("the body is not JSON") from None
    if not asked.name.isprintable() or not asked.name.strip():
        raise _invalid("name", "name must be of printable characters")
    for member, text in (("contains", asked.contains), ("context", _text(asked.context))):
        if "\0" in text:
            raise _invalid(member, f"{member} must not hold the character NUL")
    if not asked.levels and not asked.contains and not asked.context:
        raise _invalid("levels", "give at least one of levels, contains and context: else every log would match")
    return asked


def _levels(asked: _Asked) -> tuple[str, ...]:
    """The levels by their one name, in order. Raises Invalid."""
    words = {word.strip().lower() for word in asked.levels}
    if words == {HEARTBEAT}:
        return (HEARTBEAT,)
    if HEARTBEAT in words:
        raise _invalid("levels", "heartbeat stands alone in levels: such an alert fires when none came, others on logs")
    if asked.timeout_s is not None:
        raise _invalid("timeout_s", 'timeout_s is for alerts with levels ["heartbeat"]')
    if not words <= LEVEL_OF.keys():
        raise _invalid("levels", f"levels must be some of {', '.join(LEVELS)}, or heartbeat alone")
    wanted = {LEVEL_OF[word] for word in words}
    return tuple(level for level in LEVELS if level in wanted)


def _check_url(url: str, hosts: Sequence[str]) -> None:
    try:
        checked(url, hosts)
    except NotAllowed as error:
        raise _invalid("webhook_url", f"webhook_url cannot be called: {error}") from None


def _text(context: _Context | None) -> str:
    return context.key + context.value if context else ""


def _invalid(member: str, message: str) -> Invalid:
    # The message may quote the body: it is the asker's, not our log's.
    return Invalid(message, field=member or None, log="an alert is not acceptable")


@contextmanager
def _refusals() -> Iterator[None]:
    """The store's errors, by whose fault they are."""
    try:
        yield
    except AlreadyThere as error:
        raise Conflict(str(error)) from None
    except StoreUnavailable as error:
        raise GatewayError(
            "Alerts temporarily unavailable", log=f"alerts: {error}", retry_after_s=_RETRY_AFTER_S
        ) from None


def _shown(alert: AlertRecord) -> dict[str, Any]:
    context = {"key": alert.context_key, "value": alert.context_value} if alert.context_key else None
    return {
        "id": alert.id,
        "project_id": alert.project_id,
        "name": alert.name,
        "levels": alert.levels,
        "contains": alert.contains,
        "context": context,
        "timeout_s": alert.timeout_s,
        "cooldown_s": alert.cooldown_s,
        "webhook_url": alert.webhook_url,
        "enabled": alert.enabled,
        "created_at": alert.created_at,
        "last_fired_at": alert.last_fired_at,
        "last_outcome": alert.last_outcome or None,
    }
