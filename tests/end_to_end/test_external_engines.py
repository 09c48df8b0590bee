"""Engines somebody else runs: here those of a first gateway, given to a second one by address."""

from __future__ import annotations

import json

from tests.end_to_end.conftest import NewGateway
from tests.end_to_end.gateway_process import GatewayProcess, free_port, poll


def borrowing(gateway: GatewayProcess, new_gateway: NewGateway, **environ: str) -> GatewayProcess:
    dsn = (gateway.data_dir / "postgres.dsn").read_text().strip()
    engines = {"WEIR__CLICKHOUSE__URL": gateway.listen["clickhouse"], "WEIR__POSTGRES__DSN": dsn}
    return new_gateway("second", **(engines | environ))


def test_an_external_clickhouse_without_tables_is_named_and_migrated(
    gateway: GatewayProcess, new_gateway: NewGateway
) -> None:
    second = borrowing(gateway, new_gateway, WEIR__CLICKHOUSE__DATABASE="elsewhere")
    refused = second.command("serve")
    assert refused.returncode == 1
    assert "database elsewhere is not there: run `weir migrate`" in refused.stderr
    assert "database elsewhere is not there" in second.command("migrate", "--dry-run").stdout
    assert second.command("migrate").returncode == 0
    assert json.loads(second.command("check", "--connect", "--json").stdout)["problems"] == []

    gateway.execute("DROP TABLE elsewhere.genai_events")
    refused = second.command("serve")
    assert (refused.returncode, "table elsewhere.genai_events is not there" in refused.stderr) == (1, True)
    gateway.execute("ALTER TABLE elsewhere.otel_logs DROP COLUMN EventName")
    gateway.execute("ALTER TABLE elsewhere.otel_logs RESET SETTING non_replicated_deduplication_window")
    problems = json.loads(second.command("check", "--connect", "--json").stdout)["problems"]
    assert len(problems) == 3
    assert "elsewhere.otel_logs has no column EventName String" in " ".join(problems)
    migrated = second.command("migrate")
    assert migrated.returncode == 0, migrated.stderr
    assert second.command("migrate").stdout == "Everything is there.\n"

    second.start()
    assert not (second.data_dir / "demo.json").exists(), "somebody else's control store gets no demo project"
    engines = [called for called in second.descendants().values() if "gateway.workers" not in called]
    assert engines == [], "it runs none of its own"
    assert second.post("/", b'{"message":"through the second"}', gateway.demo["keys"]["loguro"]) == 202
    poll(
        lambda: gateway.query("SELECT count() AS rows FROM elsewhere.otel_logs") == [{"rows": 1}],
        within_s=10,
        what="the row is in the other database",
    )
    assert second.stop()[0] == 0


def test_no_secret_of_an_external_engine_is_printed(gateway: GatewayProcess, new_gateway: NewGateway) -> None:
    second = borrowing(gateway, new_gateway, WEIR__ADMIN__TOKEN="canary-token")
    password = (gateway.data_dir / "postgres.dsn").read_text().split(":")[2].partition("@")[0]
    printed = second.command("config", "print").stdout + second.command("config", "print", "--json").stdout
    assert "postgresql://" in printed
    assert password not in printed
    assert "canary" not in printed


def test_a_wrong_postgres_is_refused_in_words(new_gateway: NewGateway) -> None:
    gateway = new_gateway(WEIR__POSTGRES__DSN="postgresql://nobody:canary@127.0.0.1:1/none")
    answer = gateway.command("keys", "list")
    assert answer.returncode == 1
    assert answer.stderr.startswith("weir: ")
    assert "canary" not in answer.stderr


def test_rows_wait_for_an_external_clickhouse_that_is_away_at_the_start(
    gateway: GatewayProcess, new_gateway: NewGateway
) -> None:
    port = free_port()
    second = borrowing(gateway, new_gateway, WEIR__CLICKHOUSE__URL=f"http://127.0.0.1:{port}").start()
    assert second.request("/readyz", None, {}, at="admin")[0] == 200
    assert second.post("/", b'{"message":"early"}', gateway.demo["keys"]["loguro"]) == 202
    late = new_gateway("late", WEIR__CLICKHOUSE__EMBEDDED_PORT=str(port)).start()
    assert late.listen["clickhouse"] == second.listen["clickhouse"]
    # It may have met the server between its start and its tables; then the table is parked for up to 30 s.
    poll(lambda: late.count("Body = 'early'") == 1, within_s=45, what="the row that waited is stored")


def test_a_stop_that_cannot_store_rows_says_how_many_wait_and_the_next_start_stores_them(
    gateway: GatewayProcess, new_gateway: NewGateway
) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    second = borrowing(gateway, new_gateway, WEIR__CLICKHOUSE__URL=away, WEIR__SHUTDOWN__FLUSH_MS_MAX="300").start()
    body = b'[{"message":"waits"},{"message":"waits"}]'
    assert second.post("/batch", body, gateway.demo["keys"]["loguro"]) == 202
    code, seconds = second.stop()
    assert (code, seconds < 10) == (0, True)
    assert "2 accepted rows wait in the spool" in second.log()
    second.environ["WEIR__CLICKHOUSE__URL"] = gateway.listen["clickhouse"]
    second.start()
    poll(lambda: gateway.count("Body = 'waits'") == 2, within_s=30, what="they are stored")


def test_known_keys_outlive_a_restart_without_postgres(new_gateway: NewGateway) -> None:
    first = new_gateway("first").start()
    key = first.demo["keys"]["loguro"]
    second = borrowing(first, new_gateway).start()
    assert second.post("/", b'{"message":"with postgres"}', key) == 202
    assert second.post("/", b"{}", "unknown") == 401
    assert second.stop()[0] == 0
    assert first.stop()[0] == 0
    second.start()
    assert second.post("/", b'{"message":"without postgres"}', key) == 202
    assert second.post("/", b"{}", "unknown") == 503, "a 401 would tell a sender with a new key to drop"
