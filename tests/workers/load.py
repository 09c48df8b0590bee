"""Senders that never stop, and see everything that happens to them."""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tests.end_to_end.gateway_process import GatewayProcess, poll


class Load:
    """Threads that post batches of ten until told to stop; half of them on a connection that they keep.

    ``accepted`` has the id of every record with a 2xx; ``answers`` counts statuses; ``troubles`` counts
    what is no answer, by the name of the exception: ConnectionRefusedError, ConnectionResetError,
    RemoteDisconnected (closed without an answer) and so on. ``demo``: the keys, if not the gateway's own.
    """

    def __init__(self, gateway: GatewayProcess, demo: Mapping[str, Any] | None = None, senders: int = 4) -> None:
        keys = (demo or gateway.demo)["keys"]
        self._address = gateway.listen["ingest"][0]
        self._headers = {
            "Authorization": f"Bearer {keys['loguro']}",
            "Content-Type": "application/json",
        }
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(senders)]
        self.accepted: list[str] = []
        self.answers: Counter[int] = Counter()
        self.troubles: Counter[str] = Counter()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.reach(200)
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(60)

    def reach(self, more: int) -> None:
        """Returns when so many more records were accepted."""
        goal = len(self.accepted) + more
        poll(lambda: len(self.accepted) >= goal, within_s=60, what=f"there is load: {self.answers}, {self.troubles}")

    def _send(self, number: int) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=30)
        sent = 0
        while not self._done.is_set():
            ids = [f"{number}-{sent + offset}" for offset in range(10)]
            sent += len(ids)
            body = json.dumps([{"message": "load", "context": {"id": id_}} for id_ in ids])
            try:
                connection.request("POST", "/batch", body, self._headers)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.troubles[type(error).__name__] += 1
                connection.close()
                continue
            self.answers[answer.status] += 1
            if answer.status == 202:
                self.accepted.extend(ids)
            if number % 2:
                connection.close()
        connection.close()


def assert_stored_once(gateway: GatewayProcess, load: Load, within_s: float = 60) -> None:
    """Every accepted record is there, and none twice."""
    sql = "SELECT LogAttributes['id'] AS id FROM otel_logs WHERE Body = 'load'"
    wanted, found = set(load.accepted), [""]

    def is_there() -> bool:
        found[:] = [row["id"] for row in gateway.query(sql)]
        return wanted <= set(found) and gateway.metric("weir_rows_buffered") == 0

    poll(is_there, within_s=within_s, what=f"{len(wanted)} records are stored")
    assert len(found) == len(set(found)), "stored twice"
