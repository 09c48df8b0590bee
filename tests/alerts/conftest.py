"""One gateway for the room, that looks ten times a second and may call this machine."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.alerts.receiver import Receiver, receiving
from tests.datasets.rig import House, Project
from tests.support.projects import running

_NUMBERS = count(1)


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    settings = {"alerts__interval_ms": "100", "alerts__webhook_hosts": "127.0.0.1,hooks.example.com"}
    with running(tmp_path_factory.mktemp("alerts") / "var", **settings) as gateway:
        yield House(gateway)


@pytest.fixture
def project(house: House) -> Project:
    """A project without alerts."""
    return house.project(f"alerts-{next(_NUMBERS)}")


@pytest.fixture
def other(house: House) -> Project:
    """Another one."""
    return house.project(f"other-{next(_NUMBERS)}")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A webhook's receiving end."""
    with receiving() as receiver:
        yield receiver
