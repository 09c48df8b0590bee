"""A sender that gives each request an Idempotency-Key and sends it again: whatever happens, each is stored once."""

from __future__ import annotations

import http.client
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from tests.chaos import oracle
from tests.chaos.gateway import Gateway, World, poll

AGAIN_S = 30.0
PAUSE_S = 0.02
SPELLS = 2
"""So many spells' requests are sent again: what one fault made forgotten may be of the spell before."""


class Keyed:
    """Sends in spells, one request after the other, each a row of its own; ``name`` is in every row."""

    def __init__(self, world: World, gateway: Gateway, name: str) -> None:
        self._world = world
        self._gateway = gateway
        self._name = f"keyed-{name}"
        self._key = json.loads(world.keys_path.read_text())["loguro"]
        self._next = 0
        self._spells: list[int] = []

    @contextmanager
    def sending(self) -> Iterator[None]:
        """One spell."""
        over = threading.Event()
        thread = threading.Thread(target=self._send_until, args=(over,), name=self._name)
        self._spells.append(self._next)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def send_again(self) -> None:
        """Send what was sent lately once more, until it is accepted; it counts as there before the next check."""
        for number in self._lately():
            poll(lambda number=number: self._post(number) == 202, AGAIN_S, f"{self._name} {number} is accepted")  # type: ignore[misc]
        before = self._world.rows_before
        before["otel_logs"] = before.get("otel_logs", 0) + self._next - self._spells[-1]

    def wrong(self) -> str:
        """Which of those are not stored exactly once, in words; empty when there are none. When all is drained."""
        sql = (
            "SELECT toUInt64(splitByChar(' ', Body)[2]), count() FROM otel_logs"
            f" WHERE startsWith(Body, '{self._name} ') GROUP BY 1 FORMAT TSV"
        )
        lines = (line.split() for line in oracle.ask(self._world.clickhouse.url, sql).splitlines())
        counts = {int(number): int(count) for number, count in lines}
        wrong = {number: counts.get(number, 0) for number in self._lately() if counts.get(number, 0) != 1}
        if not wrong:
            return ""
        some = ", ".join(f"{number} {count} times" for number, count in list(wrong.items())[:5])
        return f"{len(wrong)} of {len(self._lately())} requests with a key are not stored once: {some}"

    def _lately(self) -> range:
        """The requests of the last spells."""
        return range(self._spells[-SPELLS:][0], self._next)

    def _send_until(self, over: threading.Event) -> None:
        while not over.wait(PAUSE_S):
            self._next += 1
            self._post(self._next - 1)

    def _post(self, number: int) -> int:
        """The status; 0 when there is no answer."""
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        headers["Idempotency-Key"] = f"{self._name}-{number}"
        body = json.dumps({"message": f"{self._name} {number}"}).encode()
        request = urllib.request.Request(f"http://{self._gateway.ingest}/", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except (OSError, http.client.HTTPException):
            return 0
