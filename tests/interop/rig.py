"""A running gateway that senders are pointed at, with a project for each test."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gateway.tenants.postgres import ControlStore
from tests.support.gateway import Gateway

Changed = TypeVar("Changed")

RECORDS = int(os.environ.get("WEIR_INTEROP_RECORDS", "2000"))
"""How many records each sender is given to send; ``make interop`` asks for many more."""
SENDER_S = 240.0


class Weir(Gateway):
    """The gateway, and what its operator does with it."""

    def __init__(self, data_dir: Path, **settings: str) -> None:
        super().__init__(data_dir, **settings)
        self._projects = 0

    @property
    def url(self) -> str:
        return f"http://{self.ingest[0]}"

    def manage(self, change: Callable[[ControlStore], Coroutine[Any, Any, Changed]]) -> Changed:
        """What ``weir projects`` and ``weir keys`` do, without a process for each."""

        async def connected() -> Changed:
            store = await ControlStore.connect((self._data_dir / "postgres.dsn").read_text().strip())
            try:
                return await change(store)
            finally:
                await store.close()

        return asyncio.run(connected())

    @contextmanager
    def full(self, key: str) -> Iterator[None]:
        """While open, the one request this gateway may have in flight is in flight: any other is 503."""
        host, _, port = self.ingest[0].rpartition(":")
        head = f"POST / HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {key}\r\nContent-Length: 9\r\n\r\n"
        with socket.create_connection((host, int(port)), 10) as unfinished:
            unfinished.sendall(head.encode())
            bearer = {"Authorization": f"Bearer {key}"}
            poll(lambda: post(f"{self.url}/", b"{", bearer)[0] == 503, "the gateway is full")
            yield

    def refused(self, reason: str, dialect: str) -> float:
        """How many requests of a dialect were refused for this reason so far."""
        return self.metrics().get(f'weir_requests_refused_total{{dialect="{dialect}",reason="{reason}"}}', 0.0)

    def spend(self, key: str) -> None:
        """Sends requests of Loguro's with this key until there are too many for its rate."""
        poll(lambda: post(f"{self.url}/", b"{", {"Authorization": f"Bearer {key}"})[0] == 429, "the rate is spent")

    def project(self) -> Project:
        """A new project, without keys or rows."""
        self._projects += 1
        slug = f"interop-{self._projects}"
        return Project(self, slug, self.manage(lambda store: store.create_project(slug)).id)


@dataclass(frozen=True)
class Project:
    """Whose rows a test looks at."""

    weir: Weir
    slug: str
    id: str

    def key(self, dialect: str, *, origins: Sequence[str] = (), requests_per_minute: int | None = None) -> str:
        """The secret of a new key, once the gateway knows it; a browser key when it has origins."""
        _, secret = self.weir.manage(
            lambda store: store.create_key(
                self.slug,
                kind="browser" if origins else "server",
                dialect=dialect,
                origins=origins,
                requests_per_minute=requests_per_minute,
            )
        )
        headers = {"Authorization": f"Bearer {secret}"} | ({"Origin": origins[0]} if origins else {})
        poll(lambda: post(f"{self.weir.url}/", b"{", headers)[0] != 401, "the gateway knows the new key")
        return secret

    def rows(self, table: str = "otel_logs", order: str = "Timestamp, SpoolFrame, SpoolRow") -> list[dict[str, Any]]:
        """Everything accepted for this project, once it is stored; times in nanoseconds."""
        self.weir.wait_until_stored()
        observed = "toInt64(toUnixTimestamp64Nano(ObservedTimestamp)) AS ObservedTimestamp,"
        return self.weir.query(
            f"SELECT * EXCEPT (SpoolFrame, SpoolRow) REPLACE ({observed if table == 'otel_logs' else ''} "
            f"toInt64(toUnixTimestamp64Nano(Timestamp)) AS Timestamp) FROM {table} "
            f"WHERE ProjectId = '{self.id}' ORDER BY {order}",
            {"output_format_json_quote_64bit_integers": "0"},
        )


def poll(condition: Callable[[], bool], what: str, within_s: float = 30.0) -> None:
    """Returns when it holds. Fails, saying ``what`` was waited for."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.005)


def post(url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """Status and body of the answer."""
    request = urllib.request.Request(url, body, dict(headers), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def send(command: Sequence[str], task: Mapping[str, Any], **environ: str) -> dict[str, Any]:
    """Runs a sender: its task goes in as JSON, what it logged and what went wrong comes back as JSON."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "STREAMLOGIA_", "BROKLE_", "PROLIFERATE_", "PYTHON", "WEIR"))
    }
    done = subprocess.run(
        command, input=json.dumps(task), env={**clean, **environ}, cwd="/", capture_output=True, text=True,
        timeout=SENDER_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report
