"""One gateway for all senders; every test has a project of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interop.rig import Project, Weir


def running(gateway: Weir) -> Iterator[Weir]:
    try:
        gateway.start()
        yield gateway
    finally:
        exit_code = gateway.stop()
    assert exit_code == 0


@pytest.fixture(scope="session")
def weir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weir]:
    yield from running(Weir(tmp_path_factory.mktemp("interop") / "data"))


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weir]:
    """A gateway that takes one request at a time, and waits for its body as long as that may take."""
    narrow = {"limits__requests_in_flight_max": "1", "limits__body_bytes_per_s_min": "0"}
    yield from running(Weir(tmp_path_factory.mktemp("narrow") / "data", **narrow))


@pytest.fixture
def project(weir: Weir) -> Project:
    return weir.project()


@pytest.fixture
def narrow_project(narrow: Weir) -> Project:
    return narrow.project()
