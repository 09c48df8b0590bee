"""Stops, kills and outages: what was accepted is there afterwards, once, and nothing is left running."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest

from tests.end_to_end.conftest import NewGateway
from tests.end_to_end.gateway_process import GatewayProcess, command_line, poll

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes through /proc")


class Load:
    """Threads that post small batches until told to stop; ``accepted`` has the id of every record with a 2xx."""

    def __init__(self, gateway: GatewayProcess, threads: int = 3) -> None:
        self._gateway = gateway
        self._key = gateway.demo["keys"]["loguro"]
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._post, args=(number,)) for number in range(threads)]
        self.accepted: list[str] = []
        self.refused = 0
        for thread in self._threads:
            thread.start()

    def _post(self, number: int) -> None:
        sent = 0
        while not self._done.is_set():
            ids = [f"{number}-{sent + offset}" for offset in range(10)]
            sent += len(ids)
            body = json.dumps([{"message": "load", "context": {"id": id_}} for id_ in ids]).encode()
            try:
                status = self._gateway.post("/batch", body, self._key)
            except OSError:  # it is gone, or its listen.json is
                self.refused += 1
                continue
            if status == 202:
                self.accepted.extend(ids)
            else:
                self.refused += 1

    def stop(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(60)


def stored_ids(gateway: GatewayProcess) -> list[str]:
    return [row["id"] for row in gateway.query("SELECT LogAttributes['id'] AS id FROM otel_logs WHERE Body = 'load'")]


def still_running(below: Mapping[int, str]) -> dict[int, str]:
    """Those of ``below`` that have not ended, as they are called now."""
    return {pid: called for pid in below if (called := command_line(pid))}


def assert_stored_once(gateway: GatewayProcess, accepted: list[str]) -> None:
    """Every accepted record is there and none twice. One without an answer may be there as well."""
    found = stored_ids(gateway)
    assert len(found) == len(set(found)), "stored twice"
    assert set(accepted) <= set(found), (
        f"{len(set(accepted) - set(found))} of {len(accepted)} accepted records are lost"
    )


@contextmanager
def obeyed(number: signal.Signals) -> Iterator[None]:
    """What is started here does not inherit that a signal is ignored: the suite may run under nohup, or behind an &."""
    before = signal.signal(number, signal.SIG_DFL) if signal.getsignal(number) == signal.SIG_IGN else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_under_load_loses_nothing_and_leaves_no_process(new_gateway: NewGateway, number: signal.Signals) -> None:
    with obeyed(number):
        gateway = new_gateway().start()
    demo = gateway.demo
    load = Load(gateway)
    try:
        poll(lambda: len(load.accepted) >= 500, within_s=30, what="there is load")
        below = gateway.descendants()
        assert len(below) >= 3  # ClickHouse, the guard, Postgres
        code, seconds = gateway.stop(number)
    finally:
        load.stop()
    assert code == 0, gateway.log()
    assert seconds < 10
    assert still_running(below) == {}
    assert not (gateway.data_dir / "listen.json").exists()
    assert not (gateway.data_dir / "postgres.dsn").exists()

    gateway.start()
    assert_stored_once(gateway, load.accepted)
    assert gateway.demo == demo
    assert "curl" not in gateway.told, "keys are printed once"
    assert gateway.post("/", b'{"message":"after"}', demo["keys"]["loguro"]) == 202


@pytest.mark.parametrize("delay_ms", ["0", "300"])
def test_a_stop_meets_no_sender_on_a_kept_connection_with_a_reset(new_gateway: NewGateway, delay_ms: str) -> None:
    """Each posts on one connection until an answer closes it, then on a new one, until nobody listens any more."""
    gateway = new_gateway(WEIR__SHUTDOWN__DELAY_MS=delay_ms).start()
    address, key = gateway.listen["ingest"][0], gateway.demo["keys"]["loguro"]
    statuses: list[int] = []
    troubles: list[str] = []

    def sender() -> None:
        connection = HTTPConnection(address, timeout=20)
        while True:
            try:
                connection.connect()
            except ConnectionRefusedError:
                return
            closes = False
            while not closes:
                try:
                    connection.request("POST", "/", b'{"message":"kept"}', {"Authorization": f"Bearer {key}"})
                    answer = connection.getresponse()
                    answer.read()
                except (OSError, HTTPException) as trouble:
                    troubles.append(repr(trouble))
                    return
                statuses.append(answer.status)
                closes = answer.headers["Connection"] == "close"
            connection.close()

    senders = [threading.Thread(target=sender) for _ in range(8)]
    for one in senders:
        one.start()
    poll(lambda: len(statuses) >= 200, within_s=30, what="there is load")
    code, _ = gateway.stop()
    for one in senders:
        one.join(30)
    assert (code, troubles, set(statuses)) == (0, [], {202}), gateway.log()
    gateway.start()
    assert gateway.count("Body = 'kept'") == len(statuses)


def test_clickhouse_killed_under_load_comes_back_and_nothing_accepted_is_missing(new_gateway: NewGateway) -> None:
    gateway = new_gateway().start()
    load = Load(gateway)
    try:
        for kill in range(1, 4):
            goal = len(load.accepted) + 300
            poll(lambda goal=goal: len(load.accepted) >= goal, within_s=30, what="there is load")  # type: ignore[misc]
            [clickhouse] = [pid for pid, called in gateway.descendants().items() if "clickhouse_server" in called]
            os.kill(clickhouse, signal.SIGKILL)
            poll(
                lambda kill=kill: gateway.metric("weir_clickhouse_restarts_total") == kill,  # type: ignore[misc]
                within_s=20,
                what="ClickHouse is back",
            )
    finally:
        load.stop()
    poll(lambda: gateway.metric("weir_rows_buffered") == 0, within_s=30, what="everything is stored")
    assert load.refused == 0, "accepting does not depend on ClickHouse"
    assert_stored_once(gateway, load.accepted)
    assert sorted(stored_ids(gateway)) == sorted(load.accepted)


def test_a_killed_gateway_takes_its_engines_with_it_and_the_next_one_starts(new_gateway: NewGateway) -> None:
    gateway = new_gateway().start()
    key = gateway.demo["keys"]["loguro"]
    assert gateway.post("/", b'{"message":"before"}', key) == 202
    poll(lambda: gateway.count() == 1, within_s=10, what="it is stored")
    below = gateway.descendants()
    gateway.kill()
    poll(lambda: not still_running(below), within_s=20, what="its engines are gone")
    (gateway.data_dir / "listen.json").unlink()  # what it could not remove must not be taken for the next one's
    gateway.start()
    assert gateway.count() == 1
    assert gateway.post("/", b'{"message":"after"}', key) == 202


def test_a_management_command_without_a_gateway_uses_the_same_keys(new_gateway: NewGateway) -> None:
    gateway = new_gateway()
    made = gateway.command("projects", "create", "early")
    assert made.returncode == 0, made.stderr
    key = json.loads(gateway.command("keys", "create", "--project", "early", "--dialect", "loguro", "--json").stdout)
    gateway.start()
    assert not (gateway.data_dir / "demo.json").exists(), "a store with a project is no first start"
    assert gateway.post("/", b'{"message":"early"}', key["secret"]) == 202


def test_a_stopping_gateway_says_so_and_goes_on_accepting_for_the_delay(new_gateway: NewGateway) -> None:
    gateway = new_gateway(WEIR__SHUTDOWN__DELAY_MS="1500", WEIR__SHUTDOWN__FLUSH_MS_MAX="4000").start()
    key = gateway.demo["keys"]["loguro"]
    listen = gateway.listen
    assert gateway.request("/readyz", None, {}, at="admin")[0] == 200
    kept = HTTPConnection(listen["ingest"][0], timeout=10)

    def post_on_the_kept_connection() -> tuple[int, str | None]:
        kept.request("POST", "/", b'{"message":"kept"}', {"Authorization": f"Bearer {key}"})
        answer = kept.getresponse()
        answer.read()
        return answer.status, answer.headers["Connection"]

    assert post_on_the_kept_connection() == (202, None)
    ended: list[tuple[int, float]] = []
    stopping = threading.Thread(target=lambda: ended.append(gateway.stop()))
    stopping.start()
    poll(lambda: gateway.request("/readyz", None, {}, at="admin")[0] == 503, within_s=1, what="it is not ready")
    assert gateway.listen == listen
    assert gateway.post("/", b'{"message":"late, and accepted"}', key) == 202
    # It was not closed under its sender, and is after an answer that says so.
    assert post_on_the_kept_connection() == (202, "close")
    kept.close()
    stopping.join(20)
    assert [code for code, _ in ended] == [0]
    gateway.start()
    assert gateway.count("Body = 'late, and accepted'") == 1


@pytest.mark.parametrize("engines", [1, 2, 3])
def test_a_stop_while_it_is_starting_leaves_no_process(new_gateway: NewGateway, engines: int) -> None:
    gateway = new_gateway().launch()
    below = poll(lambda: len(found := gateway.descendants()) >= engines and found, within_s=20, what="it is starting")
    code, seconds = gateway.stop()
    assert (code, seconds < 10) == (0, True), gateway.log()
    poll(lambda: not still_running(below), within_s=10, what="what it had begun ends too")
    gateway.start()
    assert gateway.post("/", b'{"message":"after"}', gateway.demo["keys"]["loguro"]) == 202
