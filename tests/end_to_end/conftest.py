"""One gateway for the tests that leave it as it was, and a maker for those that do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.gateway_process import GatewayProcess

NewGateway = Callable[..., GatewayProcess]


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway after its first start, with engines of its own."""
    process = GatewayProcess(tmp_path_factory.mktemp("shared") / "var")
    try:
        yield process.start()
    finally:
        process.kill()


@pytest.fixture
def new_gateway(tmp_path: Path) -> Iterator[NewGateway]:
    """Makes gateways, not yet started, that this test may stop, kill and break."""
    made: list[GatewayProcess] = []

    def make(name: str = "var", **environ: str) -> GatewayProcess:
        made.append(GatewayProcess(tmp_path / name, **environ))
        return made[-1]

    yield make
    for process in made:
        process.kill()
