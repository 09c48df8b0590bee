"""A Postgres that lets everybody in and then says no word keeps nobody from going: not even a cancellation is lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.datasets.catalog import Catalog
from gateway.tenants.datasets import DatasetStore
from gateway.tenants.keys import Keys
from gateway.tenants.postgres import ControlStore

GONE_S = 3.0
"""A polite end would wait for at least five."""
FIRST_QUESTION, IN_A_TRANSACTION = b"dataset_changes", b"key_changes"


async def hanging(proxy: Any, until: Any) -> None:
    await until(lambda: proxy.is_hanging)


def running(name: str) -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == name]


async def test_who_follows_the_datasets_stops(proxy: Any, until: Any) -> None:
    proxy.hang_at = FIRST_QUESTION
    store = await ControlStore.connect(await proxy.start())
    datasets = DatasetStore(store)
    catalog = Catalog(datasets.change, datasets.all, lambda _: None, poll_s=0.01)
    starting = asyncio.create_task(catalog.start())
    await hanging(proxy, until)
    assert len(running("datasets refresh")) == 1, "it waits for an answer"
    async with asyncio.timeout(GONE_S):
        starting.cancel()
        await catalog.stop()
        await store.close()
    assert (running("datasets refresh"), proxy.is_hanging) == ([], True)


async def test_who_follows_the_keys_stops(proxy: Any, until: Any) -> None:
    proxy.hang_at = IN_A_TRANSACTION
    keys = Keys(await proxy.start(), snapshot_path=None, listen=False)
    starting = asyncio.create_task(keys.start())
    await hanging(proxy, until)
    assert len(running("keys refresh")) == 1, "it waits for an answer"
    async with asyncio.timeout(GONE_S):
        starting.cancel()
        await keys.stop()
    assert (running("keys refresh"), proxy.is_hanging) == ([], True)


@pytest.mark.parametrize("hangs_at", [b"BEGIN", b"to_regclass"], ids=["first question", "in a transaction"])
async def test_who_has_a_second_to_look_goes_on_after_it(proxy: Any, hangs_at: bytes) -> None:
    store = await ControlStore.connect(await proxy.start())
    proxy.hang_at = hangs_at
    async with asyncio.timeout(GONE_S):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await store.migrate(dry_run=True)
        await store.close()
    assert proxy.is_hanging
