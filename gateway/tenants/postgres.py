"""The control plane in Postgres: every SQL statement of it. The only file that imports asyncpg.

``ControlStore`` is for people: projects, keys and tokens are made and listed here, migrations run
here. ``KeyFeed`` is for ``keys.py``: one connection on which it reads all keys and hears of changes.
Nothing on a request's path waits for either.

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
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from gateway.tenants.minting import PAT_PREFIX, digest_of, mint, prefix_of
from gateway.tenants.origins import normal_origin

logger = logging.getLogger(__name__)

KINDS = ("server", "browser")
NAME_CHARS_MAX = 200
CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 10.0
MIGRATION_TIMEOUT_S = 300.0
CLOSE_TIMEOUT_S = 2.0
CONNECTIONS_MAX = 4
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


class ControlError(Exception):
    """The control plane cannot do what was asked. The text is for a person: what is wrong, what to do."""


class StoreUnavailable(ControlError):
    """Postgres is away, refused us or did not answer in time. Trying again later may help."""


class NotAcceptable(ControlError):
    """An argument is not one this can take."""


class AlreadyThere(ControlError):
    """The name is taken."""


class Missing(ControlError):
    """There is nothing by that name."""


class MigrationError(ControlError):
    """The migration files and the database do not agree."""


class Project(msgspec.Struct, frozen=True):
    """Who owns rows. ``slug`` names it in commands and addresses, ``id`` (a UUID) in the tables."""

    id: str
    slug: str
    name: str
    created_at: datetime


class KeyRecord(msgspec.Struct, frozen=True, gc=False):
    """A key without its secret, which nobody has but the sender. ``origins`` only of a browser key."""

    id: str
    project_id: str
    project_slug: str
    kind: str
    dialect: str
    name: str
    origins: tuple[str, ...]
    created_at: datetime
    revoked_at: datetime | None


class PatRecord(msgspec.Struct, frozen=True):
    """A personal access token without its secret."""

    id: str
    name: str
    created_at: datetime


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


_KEY_COLUMNS = """
    SELECT keys.id, keys.project_id, projects.slug AS project_slug, keys.kind, keys.dialect, keys.name,
           keys.origins, keys.created_at, keys.revoked_at, keys.sha256
    FROM keys JOIN projects ON projects.id = keys.project_id
"""
_LOAD_KEYS = _KEY_COLUMNS
_LIST_KEYS = _KEY_COLUMNS + "WHERE $1::text IS NULL OR projects.slug = $1 ORDER BY keys.created_at, keys.id"
_READ_CHANGE = "SELECT number FROM key_changes"
_CREATE_PROJECT = "INSERT INTO projects (slug, name) VALUES ($1, $2) RETURNING id, slug, name, created_at"
_LIST_PROJECTS = "SELECT id, slug, name, created_at FROM projects ORDER BY created_at, id"
_HAS_PROJECT = "SELECT EXISTS (SELECT FROM projects WHERE slug = $1)"
_CREATE_KEY = """
    INSERT INTO keys (project_id, sha256, kind, dialect, name, origins)
    SELECT projects.id, $2, $3, $4, $5, $6 FROM projects WHERE slug = $1
    RETURNING id, project_id, $1::text AS project_slug, kind, dialect, name, origins, created_at, revoked_at
"""
_REVOKE_KEY = "UPDATE keys SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL RETURNING id"
_CREATE_PAT = "INSERT INTO personal_access_tokens (sha256, name) VALUES ($1, $2) RETURNING id, name, created_at"
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
    async def connect(cls, dsn: str, *, command_timeout_s: float = COMMAND_TIMEOUT_S) -> ControlStore:
        """Opens a small pool to ``dsn`` (``postgresql://...``). StoreUnavailable when it cannot."""
        with _translated():
            pool = await asyncpg.create_pool(
                dsn,
                min_size=1,
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
        async with self._connection() as connection, connection.transaction(readonly=dry_run):
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
        _check_name(name)
        try:
            async with self._connection() as connection:
                row = await connection.fetchrow(_CREATE_PROJECT, slug, name or slug)
        except asyncpg.UniqueViolationError:
            raise AlreadyThere(f"there is a project {slug!r} already") from None
        return _project(row)

    async def list_projects(self) -> list[Project]:
        """All projects, oldest first."""
        async with self._connection() as connection:
            return [_project(row) for row in await connection.fetch(_LIST_PROJECTS)]

    async def create_key(
        self, project_slug: str, *, kind: str, dialect: str, name: str = "", origins: Sequence[str] = ()
    ) -> tuple[KeyRecord, str]:
        """A new key and its secret, which is given out here and never again: only its SHA-256 is stored.

        A browser key needs the origins it may be used from, a server key has none. The dialect is
        any dialect's name; that there is one by that name is for the caller to check. Missing when
        there is no such project.
        """
        allowed = _check_key(kind, dialect, name, origins)
        _check_project(project_slug)
        secret = mint(prefix_of(dialect, kind))
        async with self._connection() as connection:
            row = await connection.fetchrow(
                _CREATE_KEY, project_slug, digest_of(secret), kind, dialect, name or dialect, allowed
            )
        if row is None:
            raise Missing(f"there is no project {project_slug!r}")
        return _key(row), secret

    async def list_keys(self, project_slug: str | None = None) -> list[KeyRecord]:
        """The keys of a project, or of all, revoked ones too, oldest first. Missing when there is no such project."""
        if project_slug is not None:
            _check_project(project_slug)
        async with self._connection() as connection:
            if project_slug is not None and not await connection.fetchval(_HAS_PROJECT, project_slug):
                raise Missing(f"there is no project {project_slug!r}")
            return [_key(row) for row in await connection.fetch(_LIST_KEYS, project_slug)]

    async def revoke_key(self, key_id: str) -> bool:
        """Revokes for ever; every gateway that reaches Postgres obeys within a second. False: no such live key."""
        try:
            identity = uuid.UUID(key_id)
        except ValueError:
            return False
        async with self._connection() as connection:
            return await connection.fetchval(_REVOKE_KEY, identity) is not None

    async def create_pat(self, name: str) -> tuple[PatRecord, str]:
        """A new personal access token and its secret, which is given out here and never again."""
        _check_name(name)
        secret = mint(PAT_PREFIX)
        async with self._connection() as connection:
            row = await connection.fetchrow(_CREATE_PAT, digest_of(secret), name)
        return PatRecord(str(row["id"]), row["name"], row["created_at"]), secret

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        with _translated():
            async with self._pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
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


@contextmanager
def _translated() -> Iterator[None]:
    """Trouble with the store itself becomes StoreUnavailable; a refused statement stays what it is."""
    try:
        yield
    except (asyncpg.IntegrityConstraintViolationError, ControlError):
        raise
    except asyncpg.PostgresError as error:
        raise StoreUnavailable(f"Postgres refused: {error} (SQLSTATE {error.sqlstate})") from None
    except TimeoutError:
        raise StoreUnavailable("Postgres did not answer in time") from None
    except OSError as error:
        raise StoreUnavailable(f"Postgres cannot be reached: {error.strerror or error}") from None
    except (asyncpg.InterfaceError, ValueError) as error:
        # Their texts may quote the connection string with its password.
        raise StoreUnavailable(
            f"no connection to Postgres ({type(error).__name__}); check postgres.dsn: postgresql://user:password@host:port/database"
        ) from None


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


def _check_name(name: str) -> None:
    if len(name) > NAME_CHARS_MAX or not name.isprintable():
        raise NotAcceptable(f"a name is at most {NAME_CHARS_MAX} printable characters")


def _check_key(kind: str, dialect: str, name: str, origins: Sequence[str]) -> list[str]:
    """The origins in their one spelling, or NotAcceptable."""
    if kind not in KINDS:
        raise NotAcceptable(f"a key's kind is one of {', '.join(KINDS)}")
    if not _DIALECT.fullmatch(dialect):
        raise NotAcceptable("a key's dialect is the name of a dialect, such as loguro or otlp")
    _check_name(name)
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


def _project(row: Any) -> Project:
    return Project(str(row["id"]), row["slug"], row["name"], row["created_at"])


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
    )
