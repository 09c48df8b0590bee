"""One gateway for all senders; every test has a project of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interop.rig import Project, Weir


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "interop: the vendors' own packages and a browser against a running gateway")


@pytest.fixture(scope="session")
def weir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weir]:
    running = Weir(tmp_path_factory.mktemp("interop") / "data")
    try:
        running.start()
        yield running
    finally:
        exit_code = running.stop()
    assert exit_code == 0


@pytest.fixture
def project(weir: Weir) -> Project:
    return weir.project()
