"""The control plane in Postgres: every SQL statement of it but those of datasets. The only file that imports asyncpg.

``ControlStore`` is for people: projects, plans, keys and tokens are made and listed here, migrations
run here. ``KeyFeed`` is for ``keys.py``: one connection on which it reads all keys and hears of
changes. ``UsageFeed`` is for ``quotas.py``: what was used is told there, and leases are taken.
Nothing on a request's path waits for any of them.

When Postgres is away, refuses us or does not answer in time, everything here raises
``StoreUnavailable``. No text of an error holds a secret, a digest or the connection string.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import asyncpg

from gateway.tenants.errors import AlreadyThere, ControlError, MigrationError, Missing, NotAcceptable, StoreUnavailable
from gateway.tenants.minting import digest_of, mint, prefix_of
from gateway.tenants.origins import normal_origin
from gateway.tenants.records import DEFAULT_PLAN, KeyRecord, KeyTable, Plan, Project, Settled, Share

logger = logging.getLogger(__name__)

KINDS = ("server", "browser")
NAME_CHARS_MAX = 200
CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 10.0
MIGRATION_TIMEOUT_S = 300.0
CLOSE_TIMEOUT_S = 2.0
CONNECTIONS_MAX = 4
# What Postgres can hold: integer and bigint.
RATE_MAX, RECORDS_MAX = 2**31 - 1, 2**63 - 1
# Two migrations wait for each other on this number; anything does that no one else on the server uses.
MIGRATION_LOCK = 0x57656972
KEY_CHANNEL = "weir_key_changes"
# Keys are turned into records this many at a time, so that reading 50,000 never holds up the loop.
LOAD_ROWS = 500

# In the source tree, else where an installed package puts its data files.
MIGRATION_DIRECTORIES = (
    Path(__file__).resolve().parents[2] / "config" / "postgres",
    Path(sys.prefix) / "share" / "weir" / "postgres",
)
_MIGRATION_NAME = re.compile(r"(?P<number>[0-9]{4})_[a-z0-9_]+\.sql", re.ASCII)
_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
_DIALECT = re.compile(r"[a-z][a-z0-9]{0,31}", re.ASCII)


_KEY_COLUMNS = """
    SELECT keys.id, keys.project_id, projects.slug AS project_slug, keys.kind, keys.dialect, keys.name,
           keys.origins, keys.created_at, keys.revoked_at, keys.sha256, projects.active,
           coalesce(keys.requests_per_minute, plans.requests_per_minute) AS requests_per_minute,
           coalesce(projects.monthly_records, plans.monthly_records) AS monthly_records,
           projects.genai_content_bytes, coalesce(projects.durability, '') AS durability
    FROM keys JOIN projects ON projects.id = keys.project_id JOIN plans ON plans.name = projects.plan
"""
_LOAD_KEYS = _KEY_COLUMNS
_LIST_KEYS = _KEY_COLUMNS + "WHERE $1::text IS NULL OR projects.slug = $1 ORDER BY keys.created_at, keys.id"
_READ_CHANGE = "SELECT number FROM key_changes"
_READ_KEY = _KEY_COLUMNS + "WHERE keys.id = $1"
_CREATE_PROJECT = "INSERT INTO projects (slug, name) VALUES ($1, $2)"
_PROJECTS = """
    SELECT projects.id, slug, projects.name, created_at, plan, active,
           coalesce(projects.monthly_records, plans.monthly_records) AS monthly_records,
           coalesce(usage.records, 0) AS used_records, genai_content_bytes,
           coalesce(durability, '') AS durability
    FROM projects JOIN plans ON plans.name = projects.plan LEFT JOIN usage ON usage.project_id = projects.id
         AND usage.month = date_trunc('month', now() AT TIME ZONE 'UTC')
"""
_READ_PROJECT = _PROJECTS + "WHERE slug = $1"
_FIND_PROJECT = _PROJECTS + "WHERE slug = $1 OR projects.id::text = $1 ORDER BY slug = $1 LIMIT 1"
_LIST_PROJECTS = _PROJECTS + "ORDER BY created_at, projects.id"
# NULL leaves a setting as it is; 0 takes it away, so that the plan's or the gateway's holds.
_SET_PROJECT = """
    UPDATE projects SET plan = coalesce($2, plan), active = coalesce($4, active),
           monthly_records = nullif(coalesce($3::bigint, monthly_records), 0),
           genai_content_bytes = CASE WHEN $5::integer IS NULL THEN genai_content_bytes
                                      WHEN $5 < 0 THEN NULL ELSE $5 END,
           durability = nullif(coalesce($6::text, durability), '')
    WHERE slug = $1
"""
_SET_KEY = "UPDATE keys SET requests_per_minute = nullif($2::integer, 0) WHERE id = $1 AND revoked_at IS NULL"
_SET_PLAN = """
    INSERT INTO plans (name, monthly_records, requests_per_minute)
    VALUES ($1, nullif($2::bigint, 0), nullif($3::integer, 0))
    ON CONFLICT (name) DO UPDATE SET
        monthly_records = CASE WHEN $2 IS NULL THEN plans.monthly_records ELSE EXCLUDED.monthly_records END,
        requests_per_minute = CASE WHEN $3 IS NULL THEN plans.requests_per_minute ELSE EXCLUDED.requests_per_minute END
    RETURNING name, monthly_records, requests_per_minute
"""
_LIST_PLANS = "SELECT name, monthly_records, requests_per_minute FROM plans ORDER BY name"
_SETTLE = """
    SELECT share.place, settled.total, settled.lease, settled.is_last
    FROM unnest($1::uuid[], $2::date[], $3::uuid[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
         WITH ORDINALITY AS share (project_id, month, instance, used, settled, quota, wanted, place)
    CROSS JOIN LATERAL settle_usage(share.project_id, share.month, share.instance, share.used, share.settled,
                                    share.quota, share.wanted, $8::interval) AS settled
"""
_READ_USAGE = "SELECT project_id, records FROM usage WHERE month = $1"
_HAS_PROJECT = "SELECT EXISTS (SELECT FROM projects WHERE slug = $1)"
_CREATE_KEY = """
    INSERT INTO keys (project_id, sha256, kind, dialect, name, origins, requests_per_minute)
    SELECT projects.id, $2, $3, $4, $5, $6, nullif($7::integer, 0) FROM projects WHERE slug = $1
    RETURNING id
"""
_REVOKE_KEY = "UPDATE keys SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL RETURNING id"
_HAS_LEDGER = "SELECT to_regclass('schema_migrations') IS NOT NULL"
_READ_LEDGER = "SELECT name, sha256 FROM schema_migrations"
_CREATE_LEDGER = """
    CREATE TABLE IF NOT EXISTS schema_migrations (
        name text PRIMARY KEY, sha256 bytea NOT NULL, applied_at timestamptz NOT NULL DEFAULT now()
    )
"""
_WRITE_LEDGER = "INSERT INTO schema_migrations (name, sha256) VALUES ($1, $2)"
_LOCK_MIGRATIONS = "SELECT pg_advisory_xact_lock($1)"


@dataclass(frozen=True, slots=True)
class Migration:
    """One SQL file. ``sha256`` is of its text with Unix line ends, so a checkout's settings do not matter."""

    name: str
    sql: str = field(repr=False)
    sha256: bytes = field(repr=False)


def read_migrations(directory: Path | None = None) -> list[Migration]:
    """The migration files in order. MigrationError when there are none, or a file is named wrongly."""
    candidates = (directory,) if directory else MIGRATION_DIRECTORIES
    found = next((paths for path in candidates if (paths := sorted(path.glob("*.sql")))), None)
    if found is None:
        raise MigrationError(f"no migrations (*.sql) in {' or '.join(map(str, candidates))}: install the package again")
    migrations, numbers = [], set()
    for path in found:
        parts = _MIGRATION_NAME.fullmatch(path.name)
        if parts is None or parts["number"] in numbers:
            raise MigrationError(f"{path}: a migration is named NNNN_what_it_does.sql, each number once")
        numbers.add(parts["number"])
        sql = path.read_bytes().replace(b"\r\n", b"\n")
        migrations.append(Migration(path.name, sql.decode(), hashlib.sha256(sql).digest()))
    return migrations


class ControlStore:
    """Projects, keys and tokens in Postgres. Connects anew by itself when a connection was lost."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    @classmethod
    async def connect(
        cls, dsn: str, *, command_timeout_s: float = COMMAND_TIMEOUT_S, at_once: bool = True
    ) -> ControlStore:
        """Opens a small pool to ``dsn`` (``postgresql://...``). StoreUnavailable when it cannot.

        Not ``at_once``: it connects when it is first used, so Postgres may be away now.
        """
        with _translated():
            pool = await asyncpg.create_pool(
                dsn,
                min_size=1 if at_once else 0,
                max_size=CONNECTIONS_MAX,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=command_timeout_s,
                server_settings={"application_name": "weir control"},
            )
        return cls(pool)

    async def close(self) -> None:
        """Closes all connections; those of a Postgres that hangs are cut."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def migrate(self, *, dry_run: bool = False, directory: Path | None = None) -> list[str]:
        """Applies what is pending, all of it or nothing, and returns its names; with ``dry_run`` only the names.

        Any number of instances may do this at once; one works, the others wait and find nothing to
        do. MigrationError names an applied file that has changed since, or the file that failed.
        A migration that this version does not have (a newer one ran) is left alone.
        """
        migrations = read_migrations(directory)
        async with self.transaction(readonly=dry_run) as connection:
            if dry_run:
                ledger_exists = await connection.fetchval(_HAS_LEDGER)
            else:
                # Waiting for another instance's migrations is no hang.
                await connection.execute(_LOCK_MIGRATIONS, MIGRATION_LOCK, timeout=MIGRATION_TIMEOUT_S)
                await connection.execute(_CREATE_LEDGER)
                ledger_exists = True
            applied = (
                {row["name"]: row["sha256"] for row in await connection.fetch(_READ_LEDGER)} if ledger_exists else {}
            )
            pending = _pending(migrations, applied)
            for migration in () if dry_run else pending:
                await _apply(connection, migration)
        return [migration.name for migration in pending]

    async def create_project(self, slug: str, name: str = "") -> Project:
        """A new project. AlreadyThere when the slug is taken."""
        if not _SLUG.fullmatch(slug):
            raise NotAcceptable("a project's slug is 1 to 63 of a-z, 0-9 and -, not beginning with -")
        check_name(name)
        try:
            async with self.connection() as connection:
                await connection.execute(_CREATE_PROJECT, slug, name or slug)
                row = await connection.fetchrow(_READ_PROJECT, slug)
        except asyncpg.UniqueViolationError:
            raise AlreadyThere(f"there is a project {slug!r} already") from None
        return _project(row)

    async def list_projects(self) -> list[Project]:
        """All projects, oldest first."""
        async with self.connection() as connection:
            return [_project(row) for row in await connection.fetch(_LIST_PROJECTS)]

    async def find_project(self, name: str) -> Project | None:
        """The project with this id, else with this slug, else None. An id is written as a slug may be."""
        async with self.connection() as connection:
            row = await connection.fetchrow(_FIND_PROJECT, name) if _SLUG.fullmatch(name) else None
        return _project(row) if row else None

    async def set_project(
        self,
        slug: str,
        *,
        plan: str | None = None,
        monthly_records: int | None = None,
        active: bool | None = None,
        genai_content_bytes: int | None = None,
        durability: str | None = None,
    ) -> Project:
        """Changes what is not None. ``monthly_records`` 0: what the plan says; ``genai_content_bytes`` -1: all.

        ``durability``: memory, os, disk, stored, or empty for what the gateway's settings say.

        Missing: no such project or plan.
        """
        _check_project(slug)
        _check_number("a month's records", monthly_records, RECORDS_MAX)
        if plan is not None and not _SLUG.fullmatch(plan):
            raise Missing(f"there is no plan {plan!r}")
        try:
            async with self.connection() as connection:
                await connection.execute(
                    _SET_PROJECT, slug, plan, monthly_records, active, genai_content_bytes, durability
                )
                row = await connection.fetchrow(_READ_PROJECT, slug)
        except asyncpg.ForeignKeyViolationError:
            raise Missing(f"there is no plan {plan!r}; `weir plans set` makes one") from None
        if row is None:
            raise Missing(f"there is no project {slug!r}")
        return _project(row)

    async def set_plan(
        self, name: str, *, monthly_records: int | None = None, requests_per_minute: int | None = None
    ) -> Plan:
        """Makes a plan, or changes what is not None. 0: no limit of records; the gateway's rate."""
        if not _SLUG.fullmatch(name) or name == DEFAULT_PLAN:
            raise NotAcceptable(f"a plan's name is 1 to 63 of a-z, 0-9 and -; {DEFAULT_PLAN!r} stays as it is")
        _check_number("a month's records", monthly_records, RECORDS_MAX)
        _check_number("requests a minute", requests_per_minute, RATE_MAX)
        async with self.connection() as connection:
            return _plan(await connection.fetchrow(_SET_PLAN, name, monthly_records, requests_per_minute))

    async def list_plans(self) -> list[Plan]:
        """All plans, by name."""
        async with self.connection() as connection:
            return [_plan(row) for row in await connection.fetch(_LIST_PLANS)]

    async def create_key(
        self,
        project_slug: str,
        *,
        kind: str,
        dialect: str,
        name: str = "",
        origins: Sequence[str] = (),
        requests_per_minute: int | None = None,
    ) -> tuple[KeyRecord, str]:
        """A new key and its secret, which is given out here and never again: only its SHA-256 is stored.

        A browser key needs the origins it may be used from, a server key has none. The dialect is
        any dialect's name; that there is one by that name is for the caller to check. Without
        ``requests_per_minute`` (or with 0) the plan's or the gateway's rate holds. Missing when there
        is no such project.
        """
        allowed = _check_key(kind, dialect, name, origins)
        _check_number("requests a minute", requests_per_minute, RATE_MAX)
        _check_project(project_slug)
        secret = mint(prefix_of(dialect, kind))
        async with self.connection() as connection:
            settings = (digest_of(secret), kind, dialect, name or dialect, allowed, requests_per_minute)
            key_id = await connection.fetchval(_CREATE_KEY, project_slug, *settings)
            if key_id is None:
                raise Missing(f"there is no project {project_slug!r}")
            return _key(await connection.fetchrow(_READ_KEY, key_id)), secret

    async def set_key(self, key_id: str, *, requests_per_minute: int) -> KeyRecord:
        """Changes a live key's rate; 0: the plan's or the gateway's. Missing when there is no such live key."""
        _check_number("requests a minute", requests_per_minute, RATE_MAX)
        identity = uuid_of(key_id)
        async with self.connection() as connection:
            done = identity and await connection.execute(_SET_KEY, identity, requests_per_minute)
            if done != "UPDATE 1":
                raise Missing(f"there is no live key {key_id}; `weir keys list` shows their ids")
            return _key(await connection.fetchrow(_READ_KEY, identity))

    async def list_keys(self, project_slug: str | None = None) -> list[KeyRecord]:
        """The keys of a project, or of all, revoked ones too, oldest first. Missing when there is no such project."""
        if project_slug is not None:
            _check_project(project_slug)
        async with self.connection() as connection:
            if project_slug is not None and not await connection.fetchval(_HAS_PROJECT, project_slug):
                raise Missing(f"there is no project {project_slug!r}")
            return [_key(row) for row in await connection.fetch(_LIST_KEYS, project_slug)]

    async def revoke_key(self, key_id: str) -> bool:
        """Revokes for ever; every gateway that reaches Postgres obeys within a second. False: no such live key."""
        identity = uuid_of(key_id)
        if identity is None:
            return False
        async with self.connection() as connection:
            return await connection.fetchval(_REVOKE_KEY, identity) is not None

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """A connection of the pool, for the statements of datasets.py and pat_store.py."""
        with _translated():
            async with self._pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
                with _cut_short(connection):
                    yield connection

    @asynccontextmanager
    async def transaction(self, *, readonly: bool = False) -> AsyncIterator[Any]:
        """The same within a transaction: all is done, or nothing."""
        async with self.connection() as connection, connection.transaction(readonly=readonly):
            with _cut_short(connection):
                yield connection


class KeyFeed:
    """One connection over which the keys are read and changes of them are heard."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @classmethod
    async def connect(
        cls,
        dsn: str,
        on_change: Callable[[], None],
        *,
        listen: bool,
        connect_timeout_s: float,
        command_timeout_s: float,
    ) -> KeyFeed:
        """Connects; ``on_change`` is then called at each NOTIFY (if ``listen``) and when the connection is lost."""
        with _translated():
            connection = await asyncpg.connect(
                dsn,
                timeout=connect_timeout_s,
                command_timeout=command_timeout_s,
                server_settings={"application_name": "weir keys"},
            )
            feed = cls(connection)
            try:
                connection.add_termination_listener(lambda _: on_change())
                if listen:
                    await connection.add_listener(KEY_CHANNEL, lambda *_: on_change())
            except BaseException:
                feed.close()
                raise
        return feed

    async def change(self) -> int:
        """The number of the last change of keys: the same number, the same keys."""
        with _translated():
            return int(await self._connection.fetchval(_READ_CHANGE))

    async def load(self) -> KeyTable:
        """All keys as of one moment. 50,000 take about half a second, a millisecond or two at a time."""
        live: dict[bytes, KeyRecord] = {}
        revoked: list[bytes] = []
        with _translated():
            async with self._connection.transaction(isolation="repeatable_read", readonly=True):
                with _cut_short(self._connection):
                    change = int(await self._connection.fetchval(_READ_CHANGE))
                    async for row in self._connection.cursor(_LOAD_KEYS, prefetch=LOAD_ROWS):
                        if row["revoked_at"] is None:
                            live[row["sha256"]] = _key(row)
                        else:
                            revoked.append(row["sha256"])
        return KeyTable(change, live, frozenset(revoked))

    def close(self) -> None:
        """Cuts the connection at once: a polite goodbye can hang."""
        with suppress(Exception):
            self._connection.terminate()


class UsageFeed:
    """One connection over which instances tell what was used and take leases."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @classmethod
    async def connect(cls, dsn: str, *, connect_timeout_s: float, command_timeout_s: float) -> UsageFeed:
        with _translated():
            return cls(
                await asyncpg.connect(
                    dsn,
                    timeout=connect_timeout_s,
                    command_timeout=command_timeout_s,
                    server_settings={"application_name": "weir usage"},
                )
            )

    async def settle(self, shares: Sequence[Share], *, lease_s: float) -> list[Settled | None]:
        """Tells ``shares``, all or none, and takes leases for ``lease_s``; None for a project that is not there.

        May be asked again when no answer came: what was told already is not counted twice.
        """
        # In one order everywhere, so that instances never wait for each other's locks in a circle.
        order = sorted(range(len(shares)), key=lambda place: (shares[place].project_id, shares[place].month))
        columns = zip(*(_share(shares[place]) for place in order), strict=True)
        settled: list[Settled | None] = [None] * len(shares)
        with _translated():
            for row in await self._connection.fetch(_SETTLE, *columns, timedelta(seconds=lease_s)):
                settled[order[row["place"] - 1]] = Settled(row["total"], row["lease"], row["is_last"])
        return settled

    async def totals(self, month: date) -> dict[str, int]:
        """What each project has used in a month, as far as it was told."""
        with _translated():
            rows = await self._connection.fetch(_READ_USAGE, month)
        return {str(row["project_id"]): row["records"] for row in rows}

    def close(self) -> None:
        """Cuts the connection at once."""
        with suppress(Exception):
            self._connection.terminate()


@contextmanager
def _translated() -> Iterator[None]:
    """Trouble with the store itself becomes StoreUnavailable; a refused statement stays what it is."""
    try:
        yield
    except (asyncpg.IntegrityConstraintViolationError, ControlError):
        raise
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # Whatever went wrong on the way out: who is told otherwise would go on for ever.
            raise asyncio.CancelledError from None
        raise StoreUnavailable(_trouble(error)) from None


def _trouble(error: Exception) -> str:
    if isinstance(error, asyncpg.PostgresError):
        return f"Postgres refused: {error} (SQLSTATE {error.sqlstate})"
    # Where a question hangs in a transaction, that it cannot be ended is what is said last.
    if isinstance(error, TimeoutError) or isinstance(error.__context__, TimeoutError):
        return "Postgres did not answer in time"
    if isinstance(error, OSError):
        return f"Postgres cannot be reached: {error.strerror or error}"
    # Its text may quote the connection string with its password.
    return (
        f"no connection to Postgres ({type(error).__name__}); "
        "check postgres.dsn: postgresql://user:password@host:port/database"
    )


@contextmanager
def _cut_short(connection: Any) -> Iterator[None]:
    """Who is cancelled, or out of time, cuts the connection at once: its polite end may hang as well."""
    try:
        yield
    except (asyncio.CancelledError, TimeoutError):
        connection.terminate()
        raise


def _pending(migrations: Sequence[Migration], applied: dict[str, bytes]) -> list[Migration]:
    for migration in migrations:
        if applied.get(migration.name, migration.sha256) != migration.sha256:
            raise MigrationError(
                f"{migration.name} has changed since it was applied to this database: put it back as it was, "
                "and put the change into a new file with the next number"
            )
    for name in sorted(applied.keys() - {migration.name for migration in migrations}):
        logger.warning("the database has migration %s, which this version does not know", name)
    return [migration for migration in migrations if migration.name not in applied]


async def _apply(connection: Any, migration: Migration) -> None:
    try:
        await connection.execute(migration.sql, timeout=MIGRATION_TIMEOUT_S)
    except asyncpg.PostgresError as error:
        raise MigrationError(f"{migration.name} failed and nothing was changed: {error}") from None
    await connection.execute(_WRITE_LEDGER, migration.name, migration.sha256)
    logger.info("applied migration %s", migration.name)


def _check_project(slug: str) -> None:
    # What is no slug never was one; some of it Postgres could not even be asked for (NUL).
    if not _SLUG.fullmatch(slug):
        raise Missing(f"there is no project {slug!r}")


def check_name(name: str) -> None:
    """Raises NotAcceptable when it is no name for people."""
    if len(name) > NAME_CHARS_MAX or not name.isprintable():
        raise NotAcceptable(f"a name is at most {NAME_CHARS_MAX} printable characters")


def _check_key(kind: str, dialect: str, name: str, origins: Sequence[str]) -> list[str]:
    """The origins in their one spelling, or NotAcceptable."""
    if kind not in KINDS:
        raise NotAcceptable(f"a key's kind is one of {', '.join(KINDS)}")
    if not _DIALECT.fullmatch(dialect):
        raise NotAcceptable("a key's dialect is the name of a dialect, such as loguro or otlp")
    check_name(name)
    if kind == "server" and origins:
        raise NotAcceptable("origins belong to browser keys: leave them out, or make the key's kind browser")
    if kind == "browser" and not origins:
        raise NotAcceptable("a browser key needs the origins it may be used from, such as https://app.example.com")
    allowed = {origin: normal_origin(origin.strip()) for origin in origins}
    wrong = [origin for origin, normal in allowed.items() if normal is None]
    if wrong:
        raise NotAcceptable(
            f"not an origin: {', '.join(map(repr, wrong))}; an origin is scheme://host or scheme://host:port, "
            "without a path, and never * or null"
        )
    return sorted({normal for normal in allowed.values() if normal})


def _check_number(what: str, number: int | None, most: int) -> None:
    if number is not None and not 0 <= number <= most:
        raise NotAcceptable(f"{what} are a number from 1 to {most}, or 0 for what holds without it")


def uuid_of(text: str) -> uuid.UUID | None:
    """The id it spells, None when it is none."""
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def _share(share: Share) -> tuple[Any, ...]:
    return (
        uuid.UUID(share.project_id), share.month, share.instance, share.used, share.settled, share.quota, share.wanted
    )  # fmt: skip


def _project(row: Any) -> Project:
    return Project(**{**row, "id": str(row["id"])})


def _plan(row: Any) -> Plan:
    return Plan(row["name"], row["monthly_records"], row["requests_per_minute"])


def _key(row: Any) -> KeyRecord:
    return KeyRecord(
        id=str(row["id"]),
        # Shared by all keys of a project and by their rows.
        project_id=sys.intern(str(row["project_id"])),
        project_slug=sys.intern(row["project_slug"]),
        kind=sys.intern(row["kind"]),
        dialect=sys.intern(row["dialect"]),
        name=row["name"],
        origins=tuple(row["origins"]),
        created_at=row["created_at"],
        revoked_at=row["revoked_at"],
        requests_per_minute=row["requests_per_minute"],
        active=row["active"],
        monthly_records=row["monthly_records"],
        genai_content_bytes=row["genai_content_bytes"],
        durability=sys.intern(row["durability"]),
    )
