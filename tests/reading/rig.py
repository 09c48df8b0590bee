"""A running gateway with some projects and a token, and requests to it."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from email.message import Message
from pathlib import Path
from typing import Any

from gateway.tenants.pat_store import PatStore
from gateway.tenants.postgres import ControlStore
from tests.support.gateway import Gateway

KEY_S = 10.0


class House:
    """``gateway`` is started; ``token`` is good; ``project`` makes another project."""

    def __init__(self, gateway: Gateway, data_dir: Path) -> None:
        self.gateway = gateway
        self._dsn = (data_dir / "postgres.dsn").read_text().strip()
        self.token = asyncio.run(self._make_token())

    def project(self, slug: str) -> Project:
        """A new project with a key of its own, that the gateway knows."""
        project = asyncio.run(self._make_project(slug))
        deadline = time.monotonic() + KEY_S
        while not self._knows(project.key):
            assert time.monotonic() < deadline, "a new key has to be known within a second"
            time.sleep(0.01)
        return project

    def get(self, path: str, *parameters: tuple[str, str], token: str | None = None) -> tuple[int, Any]:
        """Status and body. An empty ``token`` sends none."""
        address = path + ("?" + urllib.parse.urlencode(parameters) if parameters else "")
        status, body, _ = self.ask(address, token)
        return status, body

    def ask(self, address: str, token: str | None = None) -> tuple[int, Any, Message]:
        """The same with the reply's headers; ``address`` as it stands in the request."""
        token = self.token if token is None else token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"http://{self.gateway.ingest[0]}{address}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error), error.headers

    def post(self, path: str, body: bytes, key: str) -> Any:
        """What was answered with a 2xx, after the rows are stored."""
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{self.gateway.ingest[0]}{path}", body, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            reply = json.load(answer)
        self.gateway.wait_until_stored()
        return reply

    def _knows(self, key: str) -> bool:
        address = f"http://{self.gateway.ingest[0]}/api/v1/logs/batch"
        request = urllib.request.Request(address, b"{}", {"X-API-Key": key})
        try:
            with urllib.request.urlopen(request, timeout=30):
                return True
        except urllib.error.HTTPError as error:
            with error:
                return error.code != 401

    async def _make_token(self) -> str:
        store = await ControlStore.connect(self._dsn)
        try:
            return (await PatStore(store).create("a test"))[1]
        finally:
            await store.close()

    async def _make_project(self, slug: str) -> Project:
        store = await ControlStore.connect(self._dsn)
        try:
            project = await store.create_project(slug)
            _, key = await store.create_key(slug, kind="server", dialect="proliferate")
        finally:
            await store.close()
        return Project(self, project.id, slug, key)


class Project:
    """A project of the house."""

    def __init__(self, house: House, project_id: str, slug: str, key: str) -> None:
        self.house = house
        self.id = project_id
        self.slug = slug
        self.key = key

    @property
    def path(self) -> str:
        """Where its logs are read."""
        return f"/api/v1/projects/{self.id}/logs"

    def send(self, logs: Sequence[Mapping[str, Any]]) -> None:
        """Sends logs as Proliferate does; returns when they are stored."""
        for first in range(0, len(logs), 100):
            some = logs[first : first + 100]
            body = json.dumps({"api_key": self.key, "logs": some}).encode()
            reply = self.house.post("/api/v1/logs/batch", body, self.key)
            assert reply == {"accepted": len(some), "dropped": 0}

    def enter(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Sends entries as Loguro's senders do; returns when they are stored."""
        self.house.post("/batch", json.dumps(entries).encode(), self.key)

    def fail(self, **event: object) -> str:
        """Sends an error event; its id, when it is stored."""
        body = json.dumps({"exception": {"type": "ValueError", "value": "no"}, **event}).encode()
        return str(self.house.post("/api/v1/errors", body, self.key)["event_id"])

    def read(self, **parameters: object) -> Any:
        """A page of its logs."""
        status, page = self.house.get(self.path, *((name, str(value)) for name, value in parameters.items()))
        assert status == 200, page
        return page

    def messages(self, **parameters: object) -> list[str]:
        """The messages of a page of its logs."""
        return [log["message"] for log in self.read(**parameters)["logs"]]
