"""Several processes on one address: their deaths, their stops, their successors, and what they share."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest

from gateway.workers.left import UNSEEN_S
from tests.end_to_end.conftest import NewGateway
from tests.end_to_end.gateway_process import GatewayProcess, command_line, free_port, name_of, poll
from tests.workers.load import Load, assert_stored_once

CONNECTIONS = 16
"""So many that the kernel gives some of them to either worker."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes through /proc")


def several(new_gateway: NewGateway, workers: int, **environ: str) -> GatewayProcess:
    # No test sends so much, on no machine.
    return new_gateway(WEIR__WORKERS=str(workers), WEIR__KEYS__REQUESTS_PER_MINUTE="1000000000", **environ).start()


def by_worker(gateway: GatewayProcess, name: str) -> dict[str, float]:
    """The sum of a metric of each worker."""
    _, text = gateway.request("/metrics", None, {}, at="admin")
    found: dict[str, float] = {}
    for worker, value in re.findall(rf'^{name}{{.*?worker="(\d+)".*}} (\S+)$', text.decode(), re.MULTILINE):
        found[worker] = found.get(worker, 0.0) + float(value)
    return found


def last_status(sender: http.client.HTTPConnection) -> int:
    """Of the answer; the connection is closed."""
    with closing(sender), sender.getresponse() as answer:
        return answer.status


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_killed_under_load_is_replaced_and_nothing_accepted_is_lost(
    new_gateway: NewGateway, workers: int
) -> None:
    gateway = several(new_gateway, workers)
    with Load(gateway) as load:
        for kill in range(1, 4):
            victim = gateway.workers()[0]
            os.kill(victim, signal.SIGKILL)
            poll(
                lambda victim=victim: victim not in (there := gateway.workers()) and len(there) == workers,  # type: ignore[misc]
                within_s=20,
                what="another worker is there",
            )
            load.reach(300)
            assert gateway.metric("weir_worker_restarts_total") == kill
    # The control: what was on a connection of a killed worker was cut, and these senders saw it.
    assert sum(load.troubles.values()) > 0
    # Who connected meanwhile has waited.
    assert load.troubles["ConnectionRefusedError"] == 0
    assert set(load.answers) == {202}
    assert_stored_once(gateway, load)
    assert gateway.stop()[0] == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_are_replaced_under_load_without_a_refused_or_reset_connection(
    new_gateway: NewGateway, workers: int
) -> None:
    gateway = several(new_gateway, workers)
    with Load(gateway) as load:
        for _ in range(2):
            before = set(gateway.workers())
            os.kill(gateway.pid, signal.SIGUSR2)
            poll(
                lambda before=before: not before & set(there := gateway.workers()) and len(there) == workers,  # type: ignore[misc]
                within_s=60,
                what="all workers are new",
            )
            load.reach(200)
    assert (load.troubles, set(load.answers)) == ({}, {202})
    assert gateway.metric("weir_worker_restarts_total") == 0, "no worker has died"
    assert gateway.metric("weir_records_accepted_total") == len(load.accepted), "counts outlive those who counted"
    assert_stored_once(gateway, load)
    assert gateway.stop()[0] == 0


def test_a_stop_stores_what_every_worker_has_and_leaves_no_process(new_gateway: NewGateway) -> None:
    gateway = several(new_gateway, 2)
    with Load(gateway) as load:
        below = gateway.descendants()
        code, seconds = gateway.stop()
    assert (code, seconds < 10) == (0, True), gateway.log()
    assert "everything accepted is in ClickHouse" in gateway.log()
    assert [pid for pid in below if command_line(pid)] == []
    assert load.troubles["ConnectionResetError"] == load.troubles["RemoteDisconnected"] == 0
    gateway.start()
    assert_stored_once(gateway, load)


def test_a_killed_supervisor_leaves_no_process_and_its_successor_starts_at_once(new_gateway: NewGateway) -> None:
    gateway = several(new_gateway, 2)
    with Load(gateway) as load:
        below = gateway.descendants()
        gateway.kill()
        (gateway.data_dir / "listen.json").unlink()
    gateway.start()
    poll(lambda: not [pid for pid in below if command_line(pid)], within_s=20, what="the others are gone")
    assert gateway.post("/", b'{"message":"after"}', gateway.demo["keys"]["loguro"]) == 202
    assert load.accepted


def test_a_worker_that_is_asked_to_end_by_somebody_else_is_replaced(new_gateway: NewGateway) -> None:
    gateway = several(new_gateway, 2)
    with Load(gateway) as load:
        victim = gateway.workers()[0]
        os.kill(victim, signal.SIGTERM)
        poll(
            lambda: victim not in (there := gateway.workers()) and len(there) == 2,
            within_s=20,
            what="another worker is there",
        )
        load.reach(200)
    assert (load.troubles, set(load.answers)) == ({}, {202})
    assert_stored_once(gateway, load)


def test_who_connected_to_a_worker_that_is_starting_is_answered_when_the_gateway_stops(new_gateway: NewGateway) -> None:
    gateway = several(new_gateway, 2)
    poll(lambda: "weir-shell" in map(name_of, gateway.descendants()), within_s=20, what="one waits to be the next")
    asked = gateway.workers()[0]
    os.kill(asked, signal.SIGTERM)
    poll(lambda: asked not in gateway.workers(), within_s=20, what="it has ended")
    senders = [http.client.HTTPConnection(gateway.listen["ingest"][0], timeout=10) for _ in range(CONNECTIONS)]
    headers = {"Authorization": f"Bearer {gateway.demo['keys']['loguro']}", "Content-Type": "application/json"}
    for sender in senders:
        sender.request("POST", "/", b'{"message":"first come"}', headers)
    code, _ = gateway.stop()
    assert code == 0, gateway.log()
    assert [last_status(sender) for sender in senders] == [202] * CONNECTIONS


def test_the_metrics_of_two_workers_add_up(new_gateway: NewGateway) -> None:
    gateway = several(new_gateway, 2)
    with Load(gateway, senders=8) as load:
        poll(
            lambda: len(by_worker(gateway, "weir_requests_received_total")) == 2,
            within_s=20,
            what="both workers get requests",
        )
    poll(lambda: gateway.metric("weir_rows_buffered") == 0, within_s=20, what="everything is stored")
    assert by_worker(gateway, "weir_worker_answers") == {"0": 1, "1": 1}
    assert sum(by_worker(gateway, "weir_records_accepted_total").values()) == len(load.accepted)
    assert by_worker(gateway, "weir_rows_accepted_total") == by_worker(gateway, "weir_rows_stored_total")
    assert by_worker(gateway, "weir_request_seconds_count") == by_worker(gateway, "weir_requests_received_total")
    status, text = gateway.request("/readyz?verbose", None, {}, at="admin")
    assert (status, b"[+] workers ok" in text) == (200, True)


def test_one_worker_needs_no_label(new_gateway: NewGateway) -> None:
    gateway = several(new_gateway, 1)
    assert gateway.post("/", b'{"message":"one"}', gateway.demo["keys"]["loguro"]) == 202
    _, text = gateway.request("/metrics", None, {}, at="admin")
    assert 'weir_requests_accepted_total{dialect="loguro"} 1.0' in text.decode()


def test_a_key_has_its_rate_in_all_workers_together(new_gateway: NewGateway) -> None:
    gateway = several(new_gateway, 2)
    made = gateway.command(
        "keys", "create", "--project", "demo", "--dialect", "loguro", "--requests-per-minute", "60", "--json"
    )
    key = json.loads(made.stdout)["secret"]
    poll(lambda: gateway.post("/", b'{"message":"rate"}', key) == 202, within_s=5, what="the key is known")
    began = time.monotonic()
    accepted = 1 + sum(gateway.post("/", b'{"message":"rate"}', key) == 202 for _ in range(200))
    refilled = time.monotonic() - began + 5
    assert 60 <= accepted <= 61 + refilled
    # The control: both have taken part, so with buckets of their own there would have been up to 120.
    received = by_worker(gateway, "weir_requests_received_total")
    assert min(received["0"], received["1"]) > 61 + refilled - accepted


def test_a_schema_that_was_answered_is_known_to_every_worker(new_gateway: NewGateway) -> None:
    gateway = several(new_gateway, 2)
    token, key = (
        {"Authorization": f"Bearer {secret}"} for secret in (gateway.demo["pat"], gateway.demo["keys"]["loguro"])
    )
    record = b'{"timestamp":"2026-06-10T10:58:00Z","context":{},"country":"RO"}'
    gateway.request("/api/datasets/demo", b'{"name":"Orders"}', token)
    assert gateway.request("/api/datasets/demo/1/schema", b'{"country":"string"}', token)[0] == 201
    assert {gateway.request("/datasets/1", record, key)[0] for _ in range(20)} == {202}
    received = by_worker(gateway, "weir_requests_received_total")
    assert min(received["0"], received["1"]) > 0, "both were asked"


def test_a_second_gateway_is_told_that_the_port_is_taken(new_gateway: NewGateway) -> None:
    gateway = several(new_gateway, 2)
    second = new_gateway("second", WEIR__WORKERS="2", WEIR__INGEST__LISTEN=gateway.listen["ingest"][0])
    refused = second.command("serve")
    assert refused.returncode == 1
    assert f"cannot listen on {gateway.listen['ingest'][0]}" in refused.stderr


def test_a_request_under_way_is_answered_by_the_worker_that_is_replaced(new_gateway: NewGateway) -> None:
    gateway = several(new_gateway, 1)
    before = gateway.workers()
    connection = http.client.HTTPConnection(gateway.listen["ingest"][0], timeout=30)
    body = b'{"message":"slow"}'
    connection.putrequest("POST", "/")
    connection.putheader("Authorization", f"Bearer {gateway.demo['keys']['loguro']}")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body[:5])
    os.kill(gateway.pid, signal.SIGUSR2)
    poll(lambda: set(gateway.workers()) - set(before), within_s=20, what="the new one is there")
    poll(lambda: gateway.post("/", b"{}", "unknown") == 401, within_s=20, what="the new one answers")
    assert set(before) <= set(gateway.workers()), "the old one waits for its request"
    connection.send(body[5:])
    assert connection.getresponse().status == 202
    poll(lambda: not set(before) & set(gateway.workers()), within_s=20, what="the old one is gone")
    connection.close()


def test_workers_are_replaced_by_such_with_the_settings_of_now_or_not_at_all(
    new_gateway: NewGateway, tmp_path: Path
) -> None:
    settings = tmp_path / "weir.toml"
    settings.write_text("[keys]\nrequests_per_minute = 1000\n")
    gateway = new_gateway()
    gateway.arguments = ("--config", str(settings))
    key = gateway.start().demo["keys"]["loguro"]
    assert [gateway.post("/", b'{"message":"a"}', key) for _ in range(4)] == [202] * 4

    settings.write_text("[keys]\nrequests_per_minute = 3\n[clickhouse]\nretention_days = 30\n")
    before = gateway.workers()
    os.kill(gateway.pid, signal.SIGUSR2)
    poll(lambda: not set(before) & set(gateway.workers()), within_s=30, what="the worker is new")
    assert [gateway.post("/", b'{"message":"a"}', key) for _ in range(4)] == [202, 202, 202, 429]
    assert "these settings take effect with the next start: clickhouse" in gateway.log()

    settings.write_text("")
    before = gateway.workers()
    os.kill(gateway.pid, signal.SIGUSR2)
    poll(lambda: "weir.toml: is empty" in gateway.log(), within_s=10, what="the empty file is refused")
    assert gateway.workers() == before
    assert gateway.stop()[0] == 0


def away(new_gateway: NewGateway, first: GatewayProcess, port: int, workers: int) -> GatewayProcess:
    """A gateway on the Postgres of ``first`` and a ClickHouse at a port where there is none yet."""
    return new_gateway(
        "second",
        WEIR__WORKERS=str(workers),
        WEIR__KEYS__REQUESTS_PER_MINUTE="1000000000",
        WEIR__CLICKHOUSE__URL=f"http://127.0.0.1:{port}",
        WEIR__POSTGRES__DSN=(first.data_dir / "postgres.dsn").read_text().strip(),
        WEIR__SHUTDOWN__FLUSH_MS_MAX="300",
    )


def slots_with_segments(gateway: GatewayProcess) -> set[str]:
    return {path.parent.name for path in (gateway.data_dir / "spool").glob("slot-*/*.seg")}


def test_fewer_workers_store_what_more_of_them_have_left(new_gateway: NewGateway) -> None:
    first = new_gateway("first").start()
    second = away(new_gateway, first, free_port(), 2).start()
    with Load(second, first.demo, senders=8) as load:
        poll(
            lambda: len(by_worker(second, "weir_requests_accepted_total")) == 2, within_s=20, what="both have something"
        )
    assert second.stop()[0] == 0
    assert slots_with_segments(second) == {"slot-00", "slot-01"}
    second.environ |= {"WEIR__WORKERS": "1", "WEIR__CLICKHOUSE__URL": first.listen["clickhouse"]}
    second.start()
    assert_stored_once(second, load)


def test_what_clickhouse_loses_of_a_worker_that_was_replaced_is_counted_and_inserted_again(
    new_gateway: NewGateway,
) -> None:
    gateway = several(new_gateway, 1)
    with Load(gateway) as load:
        pass
    poll(lambda: gateway.metric("weir_rows_buffered") == 0, within_s=20, what="everything is stored")
    poll(
        lambda: gateway.query("SELECT uptime() AS seconds")[0]["seconds"] > UNSEEN_S + 1,
        within_s=20,
        what="the worker has seen ClickHouse run, so that not this start is what counts",
    )
    before = set(gateway.workers())
    os.kill(gateway.pid, signal.SIGUSR2)
    poll(lambda: "worker 0 is replaced" in gateway.log(), within_s=60, what="the worker is new")
    assert slots_with_segments(gateway) == {"slot-00"}, "the new one knows nothing of it"
    after = set(gateway.workers())
    assert not before & after
    # As a machine's death may have it.
    gateway.execute("TRUNCATE TABLE otel_logs")
    [clickhouse] = [pid for pid, called in gateway.descendants().items() if "clickhouse_server" in called]
    os.kill(clickhouse, signal.SIGKILL)
    poll(lambda: gateway.metric("weir_clickhouse_restarts_total") == 1, within_s=20, what="ClickHouse is back")
    assert gateway.count() == 0, "the control: they were lost"
    assert_stored_once(gateway, load, within_s=120)
    poll(lambda: not after & set(gateway.workers()), within_s=20, what="the one that counted it has taken over")
    assert gateway.log().count("ClickHouse has started anew since a worker was replaced") == 1


def test_what_a_replaced_worker_could_not_store_is_taken_over(new_gateway: NewGateway) -> None:
    port = free_port()
    first = new_gateway("first").start()
    second = away(new_gateway, first, port, 1).start()
    with Load(second, first.demo) as load:
        before = second.workers()
        os.kill(second.pid, signal.SIGUSR2)
        poll(lambda: not set(before) & set(second.workers()), within_s=60, what="the worker is new")
    assert slots_with_segments(second) == {"slot-00", "slot-01"}
    assert "wait in the spool" in second.log()
    # Its tables are first's: a ClickHouse of the same schema, later at that port.
    new_gateway("late", WEIR__CLICKHOUSE__EMBEDDED_PORT=str(port)).start()
    assert_stored_once(second, load, within_s=120)
