"""A request with an Idempotency-Key is stored once over HTTP: in every dialect, and through kills."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import NewGateway
from tests.end_to_end.gateway_process import GatewayProcess, descendants_of, poll

OTLP = {"resourceLogs": [{"scopeLogs": [{"logRecords": [{"body": {"stringValue": "BODY"}}]}]}]}
WIRES: dict[str, tuple[str, str, Any]] = {
    "otlp": ("loguro", "/v1/logs", OTLP),
    "loguro": ("loguro", "/batch", [{"message": "BODY"}]),
    "streamlogia": ("streamlogia", "/v1/ingest", [{"level": "INFO", "message": "BODY", "source": "s"}]),
    "brokle": ("brokle", "/v1/logs", OTLP),
    "proliferate": ("proliferate", "/api/v1/logs/batch", {"logs": [{"message": "BODY", "level": "info"}]}),
    "ndjson": ("loguro", "/v1/ndjson", {"message": "BODY"}),
}
"""Key, path and a body with one record."""


def send(gateway: GatewayProcess, wire: str, text: str, key: str) -> tuple[int, Any, dict[str, str]]:
    """Status, body and headers, the request's id left out."""
    whose, path, shape = WIRES[wire]
    body = json.dumps(shape).replace("BODY", text).encode()
    headers = {
        "Authorization": f"Bearer {gateway.demo['keys'][whose]}",
        "Content-Type": "application/json",
        "Idempotency-Key": key,
        "X-Request-Id": "the-same",
    }
    request = urllib.request.Request(f"http://{gateway.listen['ingest'][0]}{path}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)


@pytest.mark.parametrize("wire", WIRES)
def test_in_every_dialect_the_second_answer_is_the_first_and_nothing_is_stored(
    gateway: GatewayProcess, wire: str
) -> None:
    text = f"once over {wire}"
    before = gateway.metric("weir_requests_repeated_total")
    first, second = send(gateway, wire, text, f"{wire} 1"), send(gateway, wire, text, f"{wire} 1")
    assert first[0] // 100 == 2
    assert second[0] == first[0]
    if wire == "brokle":  # its envelope says when it answered
        assert json.loads(second[1])["data"] == json.loads(first[1])["data"]
    else:
        assert second[1] == first[1]
    assert "Idempotent-Replayed" not in first[2]
    assert second[2]["Idempotent-Replayed"] == "true"
    assert gateway.metric("weir_requests_repeated_total") == before + 1
    assert send(gateway, wire, text, f"{wire} 2")[0] == first[0], "another key is another request"
    poll(lambda: gateway.count(f"Body = '{text}'") >= 2, within_s=20, what="both are stored")
    assert gateway.count(f"Body = '{text}'") == 2


@pytest.mark.parametrize(
    ("wire", "says"),
    [
        ("otlp", lambda body: body["code"] == 3 and "Idempotency-Key" in body["message"]),
        ("loguro", lambda body: "Idempotency-Key" in body["error"]),
        ("streamlogia", lambda body: body["code"] == "unprocessable_entity" and "Idempotency-Key" in body["message"]),
        ("brokle", lambda body: body["error"]["code"] == "UNPROCESSABLE_ENTITY_ERROR"),
        ("proliferate", lambda body: "Idempotency-Key" in body["detail"]),
        ("ndjson", lambda body: "Idempotency-Key" in json.dumps(body)),
    ],
)
def test_a_key_for_another_body_is_refused_in_the_dialect_s_words(
    gateway: GatewayProcess, wire: str, says: Any
) -> None:
    assert send(gateway, wire, "a body", "reused")[0] // 100 == 2
    status, body, _ = send(gateway, wire, "another body", "reused")
    assert status == 422
    assert says(json.loads(body)), body


def test_a_key_that_is_none_is_refused(gateway: GatewayProcess) -> None:
    status, body, _ = send(gateway, "loguro", "no key", "x" * 256)
    assert status == 400
    assert "Idempotency-Key" in json.loads(body)["error"]


def otlp(*records: tuple[str, str], event: str = "") -> bytes:
    """A request with records of (body, uid)."""
    written = [
        {
            "body": {"stringValue": text},
            "attributes": [{"key": "log.record.uid", "value": {"stringValue": uid}}],
            "eventName": event,
        }
        for text, uid in records
    ]
    return json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": written}]}]}).encode()


def test_a_record_with_a_uid_is_stored_once_in_whichever_batch_it_comes(gateway: GatewayProcess) -> None:
    key = gateway.demo["keys"]["loguro"]
    before, events = gateway.metric("weir_records_repeated_total"), gateway.count(table="genai_events")
    batches = [
        otlp(("uid", "u1"), ("uid", "u2")),
        otlp(("uid", "u2"), ("uid", "u3"), ("uid", "u3")),
        otlp(("uid", "u1"), ("uid", "u2"), ("uid", "u3")),
        otlp(*[("uid", f"u{number}") for number in range(1, 6_000)]),  # so large that it is decoded apart
    ]
    for batch in batches:
        assert gateway.post("/v1/logs", batch, key) == 200
    poll(lambda: gateway.count("Body = 'uid'") >= 5_999, within_s=20, what="all are stored")
    assert gateway.count("Body = 'uid'") == 5_999
    assert gateway.metric("weir_records_repeated_total") == before + 2 + 3 + 3
    assert gateway.post("/v1/logs", otlp(("uid of an event", "u1"), event="gen_ai.user.message"), key) == 200
    assert gateway.count("Body = 'uid of an event'") == 0, "the uid counts, not the text"
    assert gateway.count(table="genai_events") == events


def test_a_genai_event_with_a_uid_is_one_row_of_each_table(gateway: GatewayProcess) -> None:
    key = gateway.demo["keys"]["loguro"]
    body = otlp(("an event", "e1"), ("an event", "e2"), event="gen_ai.user.message")
    before = gateway.count(table="genai_events")
    for _ in range(3):
        assert gateway.post("/v1/logs", body, key) == 200
    poll(lambda: gateway.count("Body = 'an event'") >= 2, within_s=20, what="they are stored")
    poll(lambda: gateway.count(table="genai_events") >= before + 2, within_s=20, what="their events are stored")
    assert (gateway.count("Body = 'an event'"), gateway.count(table="genai_events")) == (2, before + 2)


class Stubborn:
    """Threads that send each request, with a key of its own or without, until it is answered with a 2xx.

    ``how``: with a "key" for each request, a "uid" for each record, or "without".
    """

    def __init__(self, gateway: GatewayProcess, how: str, threads: int = 4) -> None:
        self._gateway, self._how = gateway, how
        self._key = gateway.demo["keys"]["loguro"]
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._send_all, args=(number,)) for number in range(threads)]
        self.sent: list[str] = []
        self.again = 0
        for thread in self._threads:
            thread.start()

    def _send_all(self, number: int) -> None:
        count = 0
        while not self._done.is_set():
            ids = [f"{number}-{count + offset}" for offset in range(5)]
            count += len(ids)
            body = json.dumps([{"message": "stubborn", "context": {"id": id_}} for id_ in ids]).encode()
            if self._how == "uid":
                body = otlp(*(("stubborn", id_) for id_ in ids))
            headers = {"Idempotency-Key": ids[0]} if self._how == "key" else {}
            deadline = time.monotonic() + 60
            while self._status(body, headers) // 100 != 2:
                assert time.monotonic() < deadline
                self.again += 1
            self.sent += ids

    def _status(self, body: bytes, headers: dict[str, str]) -> int:
        try:
            path = "/v1/logs" if self._how == "uid" else "/batch"
            return self._gateway.post(path, body, self._key, **headers)
        except OSError:  # it is gone, or its listen.json is
            return 0

    def stop(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(90)


def killed_under_load(gateway: GatewayProcess, kills: int, how: str) -> tuple[list[str], list[str]]:
    """(ids of all that was sent, ids of all that is stored) after workers, and once everything, were killed."""
    gateway.start()
    load = Stubborn(gateway, how)
    for kill in range(kills):
        accepted = len(load.sent)
        poll(lambda least=accepted + 200: len(load.sent) > least, within_s=60, what="it accepts")  # type: ignore[misc]
        workers = gateway.workers()
        if kill == kills // 2:
            below = list(descendants_of(gateway.pid))
            gateway.kill()
            for pid in below:
                _kill(pid)
            gateway.start()
        else:
            _kill(workers[kill % len(workers)])
    load.stop()
    poll(lambda: set(load.sent) <= set(stored(gateway)), within_s=60, what="all is stored")
    gateway.stop()
    gateway.start()
    return load.sent, stored(gateway)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def stored(gateway: GatewayProcess) -> list[str]:
    id_ = "if(RecordId = '', LogAttributes['id'], RecordId)"
    found = gateway.query(f"SELECT {id_} AS id FROM otel_logs WHERE Body = 'stubborn'")
    return [row["id"] for row in found]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes through /proc")
@pytest.mark.parametrize("how", ["key", "uid"])
def test_senders_that_insist_through_kills_have_each_record_stored_once(new_gateway: NewGateway, how: str) -> None:
    sent, found = killed_under_load(new_gateway(WEIR__WORKERS="2"), 4, how)
    assert len(found) == len(set(found)), f"{len(found) - len(set(found))} of {len(found)} are stored twice"
    assert set(sent) == set(found)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes through /proc")
def test_without_keys_they_have_some_twice(new_gateway: NewGateway) -> None:
    """The positive control."""

    def doubled(attempt: int) -> int:
        _, found = killed_under_load(new_gateway(f"var{attempt}", WEIR__WORKERS="2"), 6, "without")
        return len(found) - len(set(found))

    assert any(doubled(attempt) for attempt in range(5)), "the kills hit nothing"
