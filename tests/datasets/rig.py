"""A running gateway, and projects with a key, a token and datasets in it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.support.gateway import Gateway
from tests.support.projects import make_project

Answer = tuple[int, Any]


class House:
    """``gateway`` is started; ``token`` is the demo's."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.token: str = gateway.demo["pat"]

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Status and parsed answer. ``body``: bytes as they are, anything else as JSON."""
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(f"http://{self.gateway.ingest[0]}{path}", content, sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def project(self, slug: str) -> Project:
        """A new project, when the gateway knows its key."""
        return Project(self, slug, make_project(self.gateway, slug, "loguro").key)


@dataclass(frozen=True)
class Project:
    """``control`` asks with the token, below ``/api/datasets/{slug}``; ``send`` with the project's key."""

    house: House
    slug: str
    key: str

    def control(self, method: str, path: str = "", body: object = None) -> Answer:
        return self.house.ask(method, f"/api/datasets/{self.slug}{path}", body, token=self.house.token)

    def send(self, path: str, body: object, **headers: str) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.house.ask("POST", path, body, token=self.key, headers=sent)

    def dataset(self, fields: Mapping[str, str], name: str = "Orders") -> int:
        """A new dataset with a schema; its id."""
        status, created = self.control("POST", "", {"name": name})
        assert status == 201, created
        number: int = created["dataset"]["id"]
        status, registered = self.control("POST", f"/{number}/schema", {"fields": fields})
        assert status == 201, registered
        return number

    def rows(self, number: int, query: Mapping[str, object] | None = None) -> list[dict[str, Any]]:
        """The rows a query gives when everything sent is stored."""
        self.house.gateway.wait_until_stored()
        status, answer = self.control("POST", f"/{number}/query", query or {})
        assert status == 200, answer
        found: list[dict[str, Any]] = answer["rows"]
        return found
