from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from gateway.embedded.clickhouse import EmbeddedClickHouse
from tests.delivery.rig import Engine, Rig, rig

OpenRig = Callable[..., AbstractAsyncContextManager[Rig]]


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One real engine for the folder, kept running by a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="engine", daemon=True)
    thread.start()
    embedded = EmbeddedClickHouse(tmp_path_factory.mktemp("engine"), port=0)
    asyncio.run_coroutine_threadsafe(embedded.start(), loop).result(60)
    yield embedded
    asyncio.run_coroutine_threadsafe(embedded.stop(), loop).result(20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def open_rig(engine: Engine, tmp_path: Path) -> OpenRig:
    """Opens a rig with settings of its own."""
    return partial(rig, engine, tmp_path)


@pytest_asyncio.fixture
async def plain(open_rig: OpenRig) -> AsyncIterator[Rig]:
    """A rig with the usual settings."""
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(open_rig())
