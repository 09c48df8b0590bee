"""A running gateway with some projects and a token, and requests to it."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from email.message import Message
from typing import Any

from tests.support.gateway import Gateway
from tests.support.projects import make_project


class House:
    """``gateway`` is started; ``token`` is good; ``project`` makes another project."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.token: str = gateway.demo["pat"]

    def project(self, slug: str) -> Project:
        """A new project with a key of its own, that the gateway knows."""
        made = make_project(self.gateway, slug, "proliferate")
        return Project(self, made.id, made.slug, made.key)

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
