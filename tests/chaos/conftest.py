"""Engines for the folder, and a seed that can be given: WEIR_CHAOS_SEED."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.chaos.gateway import World


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("chaos")) as started:
        yield started


@pytest.fixture
def world(engines: World) -> Iterator[World]:
    """ClickHouse and Postgres for the folder, up before each test; it has gateways of its own."""
    yield engines
    engines.clickhouse.become("up")


@pytest.fixture
def seed() -> str:
    """Printed, and shown when the test fails; WEIR_CHAOS_SEED replays it."""
    chosen = os.environ.get("WEIR_CHAOS_SEED") or str(random.randrange(10**6))
    print(f"WEIR_CHAOS_SEED={chosen}")
    return chosen
