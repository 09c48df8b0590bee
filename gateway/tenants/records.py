"""What the control plane keeps, as values: projects, plans, keys, tokens, and what was used."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import date, datetime

import msgspec

DEFAULT_PLAN = "unlimited"


class Project(msgspec.Struct, frozen=True):
    """Who owns rows. ``slug`` names it in commands and addresses, ``id`` (a UUID) in the tables.

    ``monthly_records``: its quota, its own or its plan's; None: unlimited. ``used_records``: what it
    has sent in this calendar month (UTC). Nothing is accepted for a project that is not ``active``.
    ``genai_content_bytes``: how much is kept of what GenAI events were told and answered; None: all.
    ``durability``: what a 2xx means for its rows (memory, os, disk, stored); empty: as the gateway's settings say.
    """

    id: str
    slug: str
    name: str
    created_at: datetime
    plan: str = DEFAULT_PLAN
    active: bool = True
    monthly_records: int | None = None
    used_records: int = 0
    genai_content_bytes: int | None = None
    durability: str = ""


class Plan(msgspec.Struct, frozen=True):
    """What the projects on it may send. None: no limit of records; the gateway's rate."""

    name: str
    monthly_records: int | None
    requests_per_minute: int | None


class KeyRecord(msgspec.Struct, frozen=True, gc=False):
    """A key without its secret, which nobody has but the sender. ``origins`` only of a browser key.

    ``requests_per_minute``: its own or its plan's; None: the gateway's. ``active``,
    ``monthly_records``, ``genai_content_bytes`` and ``durability`` are its project's. A snapshot of
    before there were quotas has none of them.
    """

    id: str
    project_id: str
    project_slug: str
    kind: str
    dialect: str
    name: str
    origins: tuple[str, ...]
    created_at: datetime
    revoked_at: datetime | None
    requests_per_minute: int | None = None
    active: bool = True
    monthly_records: int | None = None
    genai_content_bytes: int | None = None
    durability: str = ""


class PatRecord(msgspec.Struct, frozen=True):
    """A personal access token without its secret."""

    id: str
    name: str
    created_at: datetime
    revoked_at: datetime | None = None


class DatasetRecord(msgspec.Struct, frozen=True):
    """A typed event table of a project. ``fields``: (name, type) as declared; None: no schema yet."""

    id: int
    project_id: str
    slug: str
    name: str
    description: str
    is_default: bool
    created_at: datetime
    fields: tuple[tuple[str, str], ...] | None


class AlertRecord(msgspec.Struct, frozen=True):
    """What a project wants to be told of: logs for which all of it holds; empty texts and no levels always hold.

    ``levels``: names of levels, or ``heartbeat`` alone: then it is told that none came for ``timeout_s``,
    which other alerts do not have. ``cooldown_s``: for how long after ``last_fired_at`` nothing is told.
    ``last_outcome``: what became of telling it, empty before.
    """

    id: int
    project_id: str
    project_slug: str
    name: str
    levels: tuple[str, ...]
    contains: str
    context_key: str
    context_value: str
    timeout_s: int | None
    cooldown_s: int
    webhook_url: str
    enabled: bool
    created_at: datetime
    last_fired_at: datetime | None
    last_outcome: str


@dataclass(frozen=True, slots=True)
class KeyTable:
    """All keys at one moment. ``change`` is the number of the last change in it.

    ``live`` maps a key's SHA-256 to its record; ``revoked`` holds the digests of the others.
    """

    change: int
    live: dict[bytes, KeyRecord] = field(repr=False)
    revoked: frozenset[bytes] = field(repr=False)

    def __len__(self) -> int:
        return len(self.live) + len(self.revoked)


@dataclass(frozen=True, slots=True)
class Share:
    """What one instance has to tell of a project's month. Sums since the instance began.

    ``used`` is told, ``settled`` was told and answered before. ``quota`` None: unlimited. ``wanted``:
    how many records more it would like to accept before it asks again.
    """

    project_id: str
    month: date
    instance: uuid.UUID
    used: int
    settled: int
    quota: int | None
    wanted: int


@dataclass(frozen=True, slots=True)
class Settled:
    """``total``: what all instances have used. ``lease``: how much more one may; ``is_last``: nothing is left then."""

    total: int
    lease: int
    is_last: bool
