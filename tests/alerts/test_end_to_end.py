"""From a log that is sent to a webhook that is called, with real engines and a running gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from gateway.alerts.alerts import Alerts
from gateway.delivery.clickhouse import ClickHouse
from gateway.metrics import Metrics
from gateway.reading.matches import Found, MatchReader, match_text
from gateway.tenants.alerts import AlertStore
from gateway.tenants.postgres import ControlStore
from gateway.tenants.records import AlertRecord
from tests.alerts.receiver import Receiver
from tests.datasets.rig import House, Project

PATIENCE_S = 20.0
STEP = timedelta(seconds=20)
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def make(project: Project, receiver: Receiver, **members: Any) -> dict[str, Any]:
    body = {"name": "An alert", "webhook_url": receiver.url, **members}
    status, answer = project.house.ask(
        "POST", f"/api/v1/projects/{project.slug}/alerts", body, token=project.house.token
    )
    assert status == 201, answer
    made: dict[str, Any] = answer["alert"]
    return made


def alerts_of(project: Project) -> list[dict[str, Any]]:
    status, answer = project.house.ask("GET", f"/api/v1/projects/{project.slug}/alerts", token=project.house.token)
    assert status == 200
    found: list[dict[str, Any]] = answer["alerts"]
    return found


def send(project: Project, *entries: dict[str, Any]) -> None:
    assert project.send("/batch", list(entries))[0] == 202
    project.house.gateway.wait_until_stored()


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_log_that_matches_calls_the_webhook_once(project: Project, other: Project, receiver: Receiver) -> None:
    alert = make(project, receiver, levels=["error"], contains="TIMEOUT", context={"key": "order.id", "value": "42"})
    context = {"service": "shop", "order": {"id": 42}}
    good: dict[str, Any] = {"level": "error", "message": "Payment timeout " + "x" * 2000, "context": context}
    # None of these is all of it.
    send(other, good)
    send(project, {**good, "level": "info"}, {**good, "message": "no"}, {**good, "context": {"order": {"id": 43}}})
    send(project, good, good)
    until(lambda: receiver.got)
    [(path, _, body)] = receiver.got
    fired_at, found_at = (datetime.fromisoformat(text) for text in (body.pop("fired_at"), body["first"].pop("time")))
    assert timedelta(0) <= fired_at - found_at < timedelta(minutes=1)
    message = good["message"][:1000]
    assert (path, body) == (
        "/hook",
        {
            "project": {"id": alert["project_id"], "slug": project.slug},
            "alert": {"id": alert["id"], "name": "An alert", "kind": "match"},
            "count": 2,
            "first": {"level": "error", "message": message, "service": "shop"},
            "text": f"An alert ({project.slug}): 2 logs, first: {message}",
        },
    )
    until(lambda: alerts_of(project)[0]["last_outcome"] == "delivered")
    assert alerts_of(project)[0]["last_fired_at"]
    # The cool-down is on; another alert shows that looking goes on.
    send(project, good)
    make(project, receiver, levels=["error"], name="A second one")
    send(project, good)
    until(lambda: len(receiver.got) == 2)
    assert receiver.got[1][2]["alert"]["name"] == "A second one"


def test_after_the_cooldown_it_is_told_again(project: Project, receiver: Receiver) -> None:
    make(project, receiver, levels=["fatal"], cooldown_s=1)
    entry = {"level": "critical", "message": "down"}
    send(project, entry)
    until(lambda: receiver.got)

    def told_again() -> bool:
        send(project, entry)
        return len(receiver.got) > 1

    until(told_again)
    first, second = (datetime.fromisoformat(body["fired_at"]) for _, _, body in receiver.got[:2])
    assert second - first >= timedelta(seconds=1)


def test_a_webhook_that_fails_is_shown_as_failed(project: Project, receiver: Receiver) -> None:
    receiver.statuses[:] = [404]
    make(project, receiver, contains="boom")
    send(project, {"level": "info", "message": "Boom!"})
    until(lambda: alerts_of(project)[0]["last_outcome"])
    assert alerts_of(project)[0]["last_outcome"] == "answered 404"
    assert len(receiver.got) == 1


def test_an_alert_that_is_deleted_or_off_calls_nobody(project: Project, receiver: Receiver) -> None:
    gone = make(project, receiver, levels=["error"], name="gone")
    make(project, receiver, levels=["error"], name="off", enabled=False)
    token, where = project.house.token, f"/api/v1/projects/{project.slug}/alerts/{gone['id']}"
    assert project.house.ask("DELETE", where, token=token)[0] == 200
    make(project, receiver, levels=["error"], name="on")
    send(project, {"level": "error", "message": "no"})
    until(lambda: receiver.got)
    assert [body["alert"]["name"] for _, _, body in receiver.got] == ["on"]


def test_what_is_done_is_counted(house: House, project: Project, receiver: Receiver) -> None:
    before = house.gateway.metrics()
    make(project, receiver, levels=["error"])
    send(project, {"level": "error", "message": "no"})
    until(lambda: receiver.got)
    until(lambda: house.gateway.metrics().get('weir_alert_webhooks_total{outcome="delivered"}', 0) > 0)
    after = house.gateway.metrics()
    assert after["weir_alerts_fired_total"] > before["weir_alerts_fired_total"]
    assert after['weir_alert_evaluations_total{outcome="good"}'] > 0


class Apart:
    """Alerts on a control store of their own and the gateway's ClickHouse, with a clock that is ahead by ``ahead``."""

    def __init__(self, store: ControlStore, clickhouse: ClickHouse) -> None:
        self.ahead = timedelta(0)
        self.store = AlertStore(store)
        self.matches = MatchReader(clickhouse.query, clickhouse.database)
        self.metrics = Metrics()

    def alerts(self) -> Alerts:
        return Alerts(
            self.store,
            self.matches.find,
            hosts=["127.0.0.1"],
            interval_s=3600,
            unstored_s=lambda: 0.0,
            metrics=self.metrics,
            now=lambda: datetime.now(UTC) + self.ahead,
        )

    async def until_told(self, project_id: str) -> None:
        """Until what came of the only alert's webhook is kept."""
        async with asyncio.timeout(PATIENCE_S):
            while not (await self.store.list(project_id))[0].last_outcome:  # noqa: ASYNC110 - Postgres is asked
                await asyncio.sleep(0.01)


@pytest.fixture
async def apart(house: House) -> AsyncIterator[Apart]:
    server = urlsplit(house.gateway.dsn)
    connection = await asyncpg.connect(server.geturl())
    await connection.execute("DROP DATABASE IF EXISTS apart WITH (FORCE)")
    await connection.execute("CREATE DATABASE apart")
    await connection.close()
    store = await ControlStore.connect(server._replace(path="/apart").geturl())
    await store.migrate()
    clickhouse = ClickHouse(house.gateway.clickhouse)
    await clickhouse.start()
    try:
        yield Apart(store, clickhouse)
    finally:
        await clickhouse.close()
        await store.close()


async def kept_apart(apart: Apart, project: Project, receiver: Receiver, **members: Any) -> AlertRecord:
    """An alert of the same project in the other store."""
    real = project.house.ask("GET", f"/api/v1/projects/{project.slug}/status", token=project.house.token)[1]
    async with apart.store._store.connection() as connection:
        await connection.execute(
            "INSERT INTO projects (id, slug, name) VALUES ($1, $2, $2) ON CONFLICT DO NOTHING",
            real["project_id"],
            project.slug,
        )
    return await apart.store.create(real["project_id"], name="An alert", webhook_url=receiver.url, **members)


async def test_heartbeats_that_stay_away_call_the_webhook(apart: Apart, project: Project, receiver: Receiver) -> None:
    alert = await kept_apart(
        apart, project, receiver,
        levels=("heartbeat",), timeout_s=120, context_key="service", context_value="shop", cooldown_s=3600,
    )  # fmt: skip
    alerts = apart.alerts()
    await alerts.start()
    try:
        while apart.ahead < timedelta(seconds=100):
            await alerts.evaluator.look()
            apart.ahead += STEP
        # Another service's, which therefore does not count.
        send(project, {"level": "heartbeat", "message": "alive", "context": {"service": "cart"}})
        await alerts.evaluator.look()
        assert receiver.got == []
        apart.ahead += 2 * STEP
        await alerts.evaluator.look()
        await apart.until_told(alert.project_id)
    finally:
        await alerts.stop()
    [(_, _, body)] = receiver.got
    assert (body["alert"]["kind"], body["count"], body["first"]) == ("absence", 0, None)
    assert body["text"] == f"An alert ({project.slug}): no heartbeat for 120 seconds"


async def test_a_heartbeat_that_comes_keeps_the_alert_silent_whatever_time_it_bears(
    apart: Apart, project: Project, receiver: Receiver
) -> None:
    await kept_apart(apart, project, receiver, levels=("heartbeat",), timeout_s=120)
    send(project, {"level": "heartbeat", "message": "alive", "timestamp": "2024-01-31T12:00:00Z"})
    alerts = apart.alerts()
    await alerts.start()
    try:
        for _ in range(6):
            await alerts.evaluator.look()
            apart.ahead += STEP
        assert apart.metrics.alerts_fired.total() == 0
        for _ in range(2):
            await alerts.evaluator.look()
            apart.ahead += STEP
        assert apart.metrics.alerts_fired.total() == 1
    finally:
        await alerts.stop()


async def test_two_gateways_on_one_store_tell_once(apart: Apart, project: Project, receiver: Receiver) -> None:
    await kept_apart(apart, project, receiver, levels=("error",))
    send(project, {"level": "error", "message": "no"})
    several = [apart.alerts() for _ in range(4)]
    for alerts in several:
        await alerts.start()
    await asyncio.gather(*(alerts.evaluator.look() for alerts in several for _ in range(3)))
    for alerts in several:
        await alerts.stop()
    assert apart.metrics.alerts_fired.total() == 1


@pytest.mark.parametrize(
    "text", ["it's", 'a "b"', "a\\b", "100%", "a_b", "{x}", "tab\there", "new\nline", "日本 🔥", "\\'"]
)
async def test_every_text_is_looked_for_as_it_is(apart: Apart, project: Project, receiver: Receiver, text: str) -> None:
    alert = await kept_apart(apart, project, receiver, contains=text, context_key=text, context_value=text)
    send(project, {"message": f"<{text}>", "context": {text: text}}, {"message": "x", "context": {text: text}})
    found: Found = await apart.matches.find(alert, LONG_AGO, datetime.now(UTC) + STEP)
    assert found.count == 1
    assert found.first
    assert found.first.message == f"<{text}>"


async def test_the_service_is_found_wherever_it_is_named(apart: Apart, project: Project, receiver: Receiver) -> None:
    alert = await kept_apart(apart, project, receiver, context_key="service", context_value="shop")
    send(project, {"message": "loguro", "context": {"service": "shop"}})
    assert project.send("/v1/ndjson", b'{"message": "ndjson", "service": "shop"}')[0] == 200
    assert project.send("/v1/ndjson", b'{"message": "other", "service": "shopping"}')[0] == 200
    project.house.gateway.wait_until_stored()
    found = await apart.matches.find(alert, LONG_AGO, datetime.now(UTC) + STEP)
    assert found.count == 2


def test_there_are_twelve_statements_which_may_only_read() -> None:
    flags = [(h, a, b, c) for h in (False, True) for a in (False, True) for b in (False, True) for c in (False, True)]
    texts = {
        match_text("weir", heartbeats=h, levels=a, contains=b, context=c) for h, a, b, c in flags if not h or not a
    }
    assert len(texts) == 12
    assert all(text.startswith("SELECT ") and "SETTINGS readonly = 1" in text for text in texts)
