"""Datasets in Postgres: what they are called, and their schemas, which are set once.

Every SQL statement about datasets is here; the connections are the control store's. The errors are
the store's too: Missing, AlreadyThere, NotAcceptable, StoreUnavailable.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from gateway.tenants.errors import AlreadyThere, Missing, NotAcceptable
from gateway.tenants.postgres import ControlStore
from gateway.tenants.records import DatasetRecord

NO_PROJECT = "Project not found"
NO_DATASET = "Dataset not found"
NO_SCHEMA = "Dataset schema not found"
PER_PROJECT_MAX = 100
NAME_CHARS_MAX = 200
DESCRIPTION_CHARS_MAX = 2_000
_SLUG_CHARS_MAX = 60
_DEFAULT_NAME = "Default"
_PROJECT_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)

_COLUMNS = """
    datasets.id, datasets.project_id, datasets.slug, datasets.name, datasets.description, datasets.is_default,
    datasets.schema, datasets.created_at
"""
_ALL = f"SELECT {_COLUMNS} FROM datasets ORDER BY id"  # noqa: S608 - the text above
_CHANGE = "SELECT number FROM dataset_changes"
_PROJECT = "SELECT id FROM projects WHERE slug = $1"
# One after the other in a project, so that none passes the limit or takes another's slug.
_LOCK_PROJECT = _PROJECT + " FOR UPDATE"
_LIST = f"SELECT {_COLUMNS} FROM datasets WHERE project_id = $1 ORDER BY id"  # noqa: S608
# Without an id it is the default one.
_WHICH = "project_id = $1 AND CASE WHEN $2::integer IS NULL THEN is_default ELSE id = $2 END"
_READ = f"SELECT {_COLUMNS} FROM datasets WHERE {_WHICH}"  # noqa: S608
_LOCK = _READ + " FOR UPDATE"
_CREATE = f"""
    INSERT INTO datasets (project_id, slug, name, description, is_default) VALUES ($1, $2, $3, $4, $5)
    RETURNING {_COLUMNS}
"""  # noqa: S608
_CHANGE_TEXT = f"""
    UPDATE datasets SET name = coalesce($3, name), description = coalesce($4, description) WHERE {_WHICH}
    RETURNING {_COLUMNS}
"""  # noqa: S608
_SET_SCHEMA = f"UPDATE datasets SET schema = $3::jsonb WHERE {_WHICH} RETURNING {_COLUMNS}"  # noqa: S608
_DELETE = f"DELETE FROM datasets WHERE {_WHICH} RETURNING id"  # noqa: S608


class DatasetStore:
    """The datasets of a control store. ``dataset_id`` None means the project's default dataset."""

    def __init__(self, store: ControlStore) -> None:
        self._store = store

    async def change(self) -> int:
        """The number of the last change of datasets: the same number, the same datasets."""
        async with self._store.connection() as connection:
            return int(await connection.fetchval(_CHANGE))

    async def all(self) -> list[DatasetRecord]:
        """The datasets of all projects."""
        async with self._store.connection() as connection:
            return [_dataset(row) for row in await connection.fetch(_ALL)]

    async def list(self, project_slug: str) -> list[DatasetRecord]:
        """A project's datasets, oldest first."""
        async with self._store.connection() as connection:
            project_id = await _project(connection, project_slug)
            return [_dataset(row) for row in await connection.fetch(_LIST, project_id)]

    async def read(self, project_slug: str, dataset_id: int | None) -> DatasetRecord:
        """One dataset. Missing: no such project or dataset, or no default one."""
        async with self._store.connection() as connection:
            project_id = await _project(connection, project_slug)
            return _dataset(_there(await connection.fetchrow(_READ, project_id, dataset_id), dataset_id))

    async def create(self, project_slug: str, name: str, description: str = "") -> DatasetRecord:
        """A new dataset without a schema; its slug is made from its name."""
        _check_name(name)
        _check_description(description)
        return await self._create(project_slug, name, description, is_default=False)

    async def rename(
        self, project_slug: str, dataset_id: int, *, name: str | None = None, description: str | None = None
    ) -> DatasetRecord:
        """Changes what is not None. The slug stays."""
        if name is not None:
            _check_name(name)
        if description is not None:
            _check_description(description)
        async with self._store.connection() as connection:
            project_id = await _project(connection, project_slug)
            row = await connection.fetchrow(_CHANGE_TEXT, project_id, dataset_id, name, description)
            return _dataset(_there(row, dataset_id))

    async def delete(self, project_slug: str, dataset_id: int) -> None:
        """Forgets a dataset for good; its id is never given out again."""
        async with self._store.connection() as connection:
            project_id = await _project(connection, project_slug)
            _there(await connection.fetchrow(_DELETE, project_id, dataset_id), dataset_id)

    async def set_schema(
        self,
        project_slug: str,
        dataset_id: int | None,
        fields: Sequence[tuple[str, str]],
        make_table: Callable[[int], Awaitable[None]],
    ) -> DatasetRecord:
        """Registers the schema once and for all; a default dataset that is not there yet is made.

        ``make_table`` is called while nobody else can register for this dataset, and before anyone can
        see the schema; what it raises undoes the registration. AlreadyThere when there is a schema.
        """
        if dataset_id is None:
            await self._make_default(project_slug)
        async with self._store.transaction() as connection:
            project_id = await _project(connection, project_slug)
            found = _dataset(_there(await connection.fetchrow(_LOCK, project_id, dataset_id), dataset_id))
            if found.fields is not None:
                raise AlreadyThere("the dataset has a schema already, and a schema never changes: create a new dataset")
            await make_table(found.id)
            return _dataset(await connection.fetchrow(_SET_SCHEMA, project_id, found.id, json.dumps(fields)))

    async def _make_default(self, project_slug: str) -> None:
        if not any(dataset.is_default for dataset in await self.list(project_slug)):
            await self._create(project_slug, _DEFAULT_NAME, "", is_default=True)

    async def _create(self, project_slug: str, name: str, description: str, *, is_default: bool) -> DatasetRecord:
        async with self._store.transaction() as connection:
            project_id = await _project(connection, project_slug, _LOCK_PROJECT)
            there = [_dataset(row) for row in await connection.fetch(_LIST, project_id)]
            default = next((dataset for dataset in there if dataset.is_default), None)
            if is_default and default is not None:
                return default
            if len(there) >= PER_PROJECT_MAX:
                raise AlreadyThere(f"the project has {PER_PROJECT_MAX} datasets, which is the most: delete one first")
            slug = _free_slug(name, {dataset.slug for dataset in there})
            return _dataset(await connection.fetchrow(_CREATE, project_id, slug, name, description, is_default))


async def _project(connection: Any, slug: str, sql: str = _PROJECT) -> Any:
    # What is no slug never was one; some of it Postgres could not even be asked for (NUL).
    project_id = await connection.fetchval(sql, slug) if _PROJECT_SLUG.fullmatch(slug) else None
    if project_id is None:
        raise Missing(NO_PROJECT)
    return project_id


def _there(row: Any, dataset_id: int | None) -> Any:
    if row is None:
        raise Missing(NO_SCHEMA if dataset_id is None else NO_DATASET)
    return row


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= NAME_CHARS_MAX or not name.isprintable() or not name.strip():
        raise NotAcceptable(f"name must be from 1 to {NAME_CHARS_MAX} printable characters")


def _check_description(description: str) -> None:
    shown = description.replace("\n", "").replace("\r", "").replace("\t", "")
    if len(description) > DESCRIPTION_CHARS_MAX or not shown.isprintable():
        raise NotAcceptable(f"description must be at most {DESCRIPTION_CHARS_MAX} printable characters")


def _free_slug(name: str, taken: set[str]) -> str:
    """``Paid orders`` is paid-orders; where that is taken paid-orders-2, and so on."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:_SLUG_CHARS_MAX].strip("-") or "dataset"
    numbered = (f"{slug}-{number}" for number in range(2, len(taken) + 3))
    return slug if slug not in taken else next(free for free in numbered if free not in taken)


def _dataset(row: Any) -> DatasetRecord:
    fields = row["schema"]
    return DatasetRecord(
        id=row["id"],
        project_id=str(row["project_id"]),
        slug=row["slug"],
        name=row["name"],
        description=row["description"],
        is_default=row["is_default"],
        created_at=row["created_at"],
        fields=None if fields is None else tuple((name, type_) for name, type_ in json.loads(fields)),
    )
