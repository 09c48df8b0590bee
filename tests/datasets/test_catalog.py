"""The datasets in memory: what holds while the store is away, and when a change is seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from gateway.datasets.catalog import Catalog
from gateway.errors import GatewayError, NotFound

FIELDS = (("word", "string"),)
WAIT_S = 5.0
POLL_S = 0.005


@dataclass(frozen=True)
class Dataset:
    id: int
    project_id: str = "shop"
    is_default: bool = False
    fields: tuple[tuple[str, str], ...] | None = FIELDS


@dataclass
class Store:
    """What Postgres would say; ``away``: nothing."""

    datasets: list[Dataset] = field(default_factory=list)
    number: int = 1
    away: bool = False
    loads: int = 0
    tables: list[str] = field(default_factory=list)

    async def change(self) -> int:
        if self.away:
            raise OSError("away")
        return self.number

    async def load(self) -> list[Dataset]:
        self.loads += 1
        return list(self.datasets)

    def put(self, *datasets: Dataset) -> None:
        self.datasets = list(datasets)
        self.number += 1


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def catalog(store: Store) -> AsyncIterator[Catalog]:
    catalog = Catalog(store.change, store.load, lambda table: store.tables.append(table.name), poll_s=POLL_S)
    yield catalog
    await catalog.stop()


async def until_found(catalog: Catalog, dataset_id: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                catalog.find("shop", dataset_id)
            except (NotFound, GatewayError):
                await asyncio.sleep(POLL_S)
            else:
                return


async def test_before_the_store_has_answered_nobody_is_told_that_a_dataset_is_not_there(
    store: Store, catalog: Catalog
) -> None:
    store.put(Dataset(1))
    store.away = True
    await catalog.start()
    for dataset_id in ("1", "2", "x", None):
        with pytest.raises(GatewayError):
            catalog.find("shop", dataset_id)
    store.away = False
    await until_found(catalog, "1")


async def test_what_is_known_holds_while_the_store_is_away(store: Store, catalog: Catalog) -> None:
    store.put(Dataset(1))
    await catalog.start()
    store.away = True
    with pytest.raises(OSError, match="away"):
        await catalog.refresh()
    assert catalog.find("shop", "1").table == "dataset_1"


async def test_a_change_made_elsewhere_is_seen_at_the_next_look(store: Store, catalog: Catalog) -> None:
    await catalog.start()
    with pytest.raises(NotFound, match="Dataset not found"):
        catalog.find("shop", "1")
    store.put(Dataset(1))
    await until_found(catalog, "1")


async def test_without_a_change_nothing_is_read_again_and_a_table_is_told_of_once(
    store: Store, catalog: Catalog
) -> None:
    store.put(Dataset(1))
    await catalog.start()
    await catalog.refresh()
    assert (store.loads, store.tables) == (1, ["dataset_1"])
    store.put(Dataset(1), Dataset(2))
    await catalog.refresh()
    store.put(Dataset(2))
    await catalog.refresh()
    assert store.tables == ["dataset_1", "dataset_2"]
    with pytest.raises(NotFound, match="Dataset not found"):
        catalog.find("shop", "1")


async def test_only_a_projects_own_datasets_with_a_schema_are_found(store: Store, catalog: Catalog) -> None:
    store.put(Dataset(1, fields=None, is_default=True), Dataset(2, project_id="other", is_default=True))
    await catalog.start()
    for dataset_id in ("1", None):
        with pytest.raises(NotFound, match="Dataset schema not found"):
            catalog.find("shop", dataset_id)
    with pytest.raises(NotFound, match="Dataset not found"):
        catalog.find("shop", "2")
    assert catalog.find("other", None).table == "dataset_2"
