"""Projects of a running gateway, made as its operators make them: by the control store."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.tenants.postgres import ControlStore
from tests.support.gateway import Gateway

KEY_S = 10.0
_POLL_S = 0.01


@dataclass(frozen=True)
class Made:
    """A project and its server key."""

    id: str
    slug: str
    key: str


@contextmanager
def running(data_dir: Path, **settings: str) -> Iterator[Gateway]:
    """A gateway that is stopped at the end."""
    gateway = Gateway(data_dir, **settings)
    try:
        gateway.start()
        yield gateway
    finally:
        gateway.stop()


def make_project(gateway: Gateway, slug: str, dialect: str) -> Made:
    """A new project with a key for the dialect, when the gateway knows it."""
    made = asyncio.run(_make(gateway.dsn, slug, dialect))
    deadline = time.monotonic() + KEY_S
    while not _is_known(gateway, made.key):
        assert time.monotonic() < deadline, "a new key has to be known within a second"
        time.sleep(_POLL_S)
    return made


async def _make(dsn: str, slug: str, dialect: str) -> Made:
    store = await ControlStore.connect(dsn)
    try:
        project = await store.create_project(slug)
        return Made(project.id, slug, (await store.create_key(slug, kind="server", dialect=dialect))[1])
    finally:
        await store.close()


def _is_known(gateway: Gateway, key: str) -> bool:
    """Whether a request without a body is refused for something else than its key."""
    request = urllib.request.Request(f"http://{gateway.ingest[0]}/", b"", {"X-API-Key": key})
    try:
        with urllib.request.urlopen(request, timeout=30):
            return True
    except urllib.error.HTTPError as error:
        with error:
            return error.code != 401
