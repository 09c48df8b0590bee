"""One gateway for the room, and a new project for each test."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.datasets.rig import House, Project
from tests.support.projects import running

_NUMBERS = count(1)


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    # The default retention: datasets must keep what logs would not.
    with running(tmp_path_factory.mktemp("datasets") / "var") as gateway:
        yield House(gateway)


@pytest.fixture
def project(house: House) -> Project:
    """A project without datasets."""
    return house.project(f"shop-{next(_NUMBERS)}")


@pytest.fixture
def other(house: House) -> Project:
    """Another one."""
    return house.project(f"other-{next(_NUMBERS)}")


@pytest.fixture(scope="session")
def strict(house: House) -> Project:
    """A project for tests that only read, or are only refused."""
    return house.project("strict")
