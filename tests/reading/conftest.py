"""One gateway for the room, that takes times as old as the documents' examples."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.reading.rig import House, Project
from tests.support.projects import running

_NUMBERS = count(1)


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with running(tmp_path_factory.mktemp("reading") / "var", clickhouse__retention_days="20000") as gateway:
        yield House(gateway)


@pytest.fixture
def project(house: House) -> Project:
    """A project without rows."""
    return house.project(f"project-{next(_NUMBERS)}")


@pytest.fixture
def other(house: House) -> Project:
    """Another one."""
    return house.project(f"other-{next(_NUMBERS)}")
