"""``/api/datasets/{slug}``: Loguro's datasets are made, given a schema and queried here (logu.ro/docs, Datasets).

    GET, POST      /api/datasets/{slug}               the project's datasets; a new one: {name, description}
    PATCH, DELETE  /api/datasets/{slug}/{id}          its name and description; forget it
    GET, POST      /api/datasets/{slug}/{id}/schema   its schema, registered once
    POST           /api/datasets/{slug}/{id}/query    its records, selected and aggregated
    GET, POST      /api/datasets/{slug}/schema        the same for the project's default dataset,
    POST           /api/datasets/{slug}/query         which is made when its schema is registered

Registering makes the table ``dataset_<id>``, and records are taken from then on. A deleted dataset
takes no records and answers no queries from then on; its table, with its rows, stays for an operator
to drop, because records accepted before may still be on their way there.

Errors are ``{"error": "<text>"}``: 404 for what is not there, 409 for a second schema, 400 for a body
that is not as it must be, 503 while Postgres or ClickHouse is away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from gateway.datasets import fields, query
from gateway.datasets.catalog import NO_DATASET, NO_SCHEMA, Catalog, id_of
from gateway.delivery.answers import DeliveryError
from gateway.delivery.clickhouse import ClickHouse
from gateway.dialects.dialect import Reply
from gateway.errors import Conflict, Failed, GatewayError, Invalid, Malformed, NotFound, WeirError
from gateway.http.api import ApiRequest, ApiRoute, json_reply
from gateway.tenants.datasets import DatasetStore
from gateway.tenants.errors import AlreadyThere, ControlError, Missing, NotAcceptable
from gateway.tenants.records import DatasetRecord

logger = logging.getLogger(__name__)

_Shape = TypeVar("_Shape")
_VERSION = 1
_RETRY_AFTER_S = 2


class _Create(msgspec.Struct, frozen=True):
    name: str
    description: str | None = None


class _Change(msgspec.Struct, frozen=True):
    name: str | None = None
    description: str | None = None


def routes(
    store: DatasetStore,
    catalog: Catalog,
    clickhouse: ClickHouse,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> list[ApiRoute]:
    """The routes above."""
    api = _Datasets(store, catalog, clickhouse, now)
    return [
        ApiRoute(method, f"/api/datasets/{{slug}}{path}", handler, error_body)
        for method, path, handler in (
            ("GET", "", api.list),
            ("POST", "", api.create),
            ("GET", "/schema", api.schema),
            ("POST", "/schema", api.register),
            ("POST", "/query", api.query),
            ("GET", "/{id}", api.read),
            ("PATCH", "/{id}", api.change),
            ("DELETE", "/{id}", api.delete),
            ("GET", "/{id}/schema", api.schema),
            ("POST", "/{id}/schema", api.register),
            ("POST", "/{id}/query", api.query),
        )
    ]


def error_body(error: WeirError) -> dict[str, Any]:
    """Loguro's words for any refusal."""
    return {"error": str(error)}


@dataclass(frozen=True, slots=True)
class _Datasets:
    _store: DatasetStore
    _catalog: Catalog
    _clickhouse: ClickHouse
    _now: Callable[[], datetime]

    async def list(self, request: ApiRequest) -> Reply:
        with _refusals():
            found = await self._store.list(request.path_values["slug"])
        return json_reply(200, {"datasets": [_dataset(dataset) for dataset in found]})

    async def read(self, request: ApiRequest) -> Reply:
        return json_reply(200, {"dataset": _dataset(await self._find(request))})

    async def create(self, request: ApiRequest) -> Reply:
        asked = _parsed(request.body, _Create)
        with _refusals():
            made = await self._store.create(request.path_values["slug"], asked.name, asked.description or "")
        await self._refresh()
        return json_reply(201, {"dataset": _dataset(made)})

    async def change(self, request: ApiRequest) -> Reply:
        asked = _parsed(request.body, _Change)
        with _refusals():
            changed = await self._store.rename(
                request.path_values["slug"], _id(request), name=asked.name, description=asked.description
            )
        return json_reply(200, {"dataset": _dataset(changed)})

    async def delete(self, request: ApiRequest) -> Reply:
        with _refusals():
            await self._store.delete(request.path_values["slug"], _id(request))
        await self._refresh()
        return json_reply(200, {"success": True})

    async def schema(self, request: ApiRequest) -> Reply:
        found = await self._find(request)
        _fields(found)
        return json_reply(200, {"dataset": _dataset(found), "schema": _schema(found)})

    async def register(self, request: ApiRequest) -> Reply:
        declared = fields.parse(request.body)

        async def make_table(dataset_id: int) -> None:
            await self._make_table(dataset_id, declared)

        with _refusals():
            registered = await self._store.set_schema(
                request.path_values["slug"], _id_or_default(request), declared, make_table
            )
        await self._refresh()
        await self._catalog.seen_by_all()
        return json_reply(201, {"dataset": _dataset(registered), "schema": _schema(registered)})

    async def query(self, request: ApiRequest) -> Reply:
        asked = query.parse(request.body)
        found = await self._find(request)
        compiled = query.compile_query(asked, found.id, _fields(found), now=self._now())
        with _refusals():
            rows = await self._clickhouse.query(compiled.sql, compiled.parameters)
        named = {"id": found.id, "name": found.name, "slug": found.slug}
        return json_reply(200, {"rows": compiled.answer(rows), "dataset": named})

    async def _find(self, request: ApiRequest) -> DatasetRecord:
        with _refusals():
            return await self._store.read(request.path_values["slug"], _id_or_default(request))

    async def _make_table(self, dataset_id: int, declared: fields.Fields) -> None:
        """Creates the table anew: what a registration that failed half-way left behind has no rows."""
        table = fields.table(dataset_id, declared)
        where = f"`{self._clickhouse.database}`.`{table.name}`"
        there = await self._clickhouse.query(
            "SELECT name FROM system.tables WHERE database = {database:String} AND name = {table:String}",
            {"database": self._clickhouse.database, "table": table.name},
        )
        if there:
            rows = await self._clickhouse.query(f"SELECT count() AS rows FROM {where}")  # noqa: S608 - named by us
            if rows[0]["rows"]:
                # Postgres was set back and gives out ids again: those rows are another dataset's.
                raise Failed(
                    f"the table {table.name} is there already and holds rows: the operator has to move it away"
                )
            await self._clickhouse.execute(f"DROP TABLE {where}")
        await self._clickhouse.create_tables([table], retention_days=0)

    async def _refresh(self) -> None:
        """A change takes effect here at once; where that fails, at the next poll."""
        try:
            await self._catalog.refresh()
        except ControlError as error:
            logger.warning("a change of datasets takes effect when Postgres answers: %s", error)


@contextmanager
def _refusals() -> Iterator[None]:
    """The errors of the rooms below, by whose fault they are."""
    try:
        yield
    except Missing as error:
        raise NotFound(str(error)) from None
    except AlreadyThere as error:
        raise Conflict(str(error)) from None
    except NotAcceptable as error:
        raise Invalid(str(error)) from None
    except (ControlError, DeliveryError) as error:
        raise GatewayError(
            "the store cannot be asked at the moment: send the same again later",
            log=f"datasets: {error}",
            retry_after_s=_RETRY_AFTER_S,
        ) from None


def _parsed(body: bytes, shape: type[_Shape]) -> _Shape:
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        raise Invalid(
            f"the body is not as it must be: {error}", log="a dataset's description is not acceptable"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Malformed("the body is not JSON") from None


def _id(request: ApiRequest) -> int:
    number = id_of(request.path_values["id"])
    if number is None:
        raise NotFound(NO_DATASET)
    return number


def _id_or_default(request: ApiRequest) -> int | None:
    return _id(request) if "id" in request.path_values else None


def _fields(dataset: DatasetRecord) -> fields.Fields:
    if dataset.fields is None:
        raise NotFound(NO_SCHEMA)
    return dataset.fields


def _schema(dataset: DatasetRecord) -> dict[str, Any] | None:
    return None if dataset.fields is None else {"version": _VERSION, "fields": dict(dataset.fields)}


def _dataset(dataset: DatasetRecord) -> dict[str, Any]:
    return {
        "id": dataset.id,
        "name": dataset.name,
        "slug": dataset.slug,
        "description": dataset.description,
        "schema": _schema(dataset),
        "isDefault": dataset.is_default,
        "status": "pending_schema" if dataset.fields is None else "active",
    }
