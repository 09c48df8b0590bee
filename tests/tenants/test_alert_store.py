"""Alerts in Postgres: kept as they were made, so many and no more, evaluated by one and fired by one."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from gateway.alerts.evaluator import Evaluator
from gateway.metrics import Metrics
from gateway.reading.matches import Found
from gateway.tenants import alerts
from gateway.tenants.alerts import AlertStore
from gateway.tenants.errors import AlreadyThere
from gateway.tenants.postgres import ControlStore

NOW = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
MADE: dict[str, Any] = {
    "name": "Überlast",
    "webhook_url": "https://example.com/hook",
    "levels": ("error", "fatal"),
    "contains": 'it\'s "down"; DROP TABLE alerts; --',
    "context_key": "service",
    "context_value": "shop",
    "cooldown_s": 60,
}

Sql = Callable[..., Awaitable[Any]]


@pytest.fixture
def kept(store: ControlStore) -> AlertStore:
    return AlertStore(store)


@pytest.fixture
async def demo(store: ControlStore) -> str:
    return await project_id(store, "demo")


async def project_id(store: ControlStore, slug: str) -> str:
    project = await store.find_project(slug)
    assert project
    return project.id


async def test_an_alert_is_kept_as_it_was_made(kept: AlertStore, demo: str) -> None:
    made = await kept.create(demo, **MADE)
    assert {name: getattr(made, name) for name in MADE} == MADE
    assert (made.project_id, made.project_slug, made.enabled, made.timeout_s) == (demo, "demo", True, None)
    assert (made.last_fired_at, made.last_outcome) == (None, "")
    assert await kept.list(demo) == [made]


async def test_a_project_has_its_own_and_deletes_only_those(store: ControlStore, kept: AlertStore, demo: str) -> None:
    made = await kept.create(demo, **MADE)
    other = await project_id(store, "other")
    assert await kept.list(other) == []
    assert not await kept.delete(other, made.id)
    assert not await kept.delete(demo, made.id + 1)
    assert not await kept.delete(demo, 2**40)
    assert await kept.delete(demo, made.id)
    assert not await kept.delete(demo, made.id)


async def test_a_project_has_so_many_and_no_more(kept: AlertStore, demo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "PER_PROJECT_MAX", 3)
    done = await asyncio.gather(*(kept.create(demo, **MADE) for _ in range(6)), return_exceptions=True)
    assert sorted(type(one).__name__ for one in done) == ["AlertRecord"] * 3 + ["AlreadyThere"] * 3


async def test_all_projects_have_so_many_together(kept: AlertStore, demo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "IN_ALL_MAX", 1)
    await kept.create(demo, **MADE)
    with pytest.raises(AlreadyThere, match="all projects"):
        await kept.create(demo, **MADE)


async def test_of_all_instances_one_evaluates_until_it_leaves(kept: AlertStore, demo: str) -> None:
    made = await kept.create(demo, **MADE)
    await kept.create(demo, **{**MADE, "enabled": False})
    instances = [uuid.uuid4() for _ in range(4)]
    found = await asyncio.gather(*(kept.watched(instance, 60) for instance in instances))
    [leader] = [instance for instance, alerts_found in zip(instances, found, strict=True) if alerts_found is not None]
    assert [alerts_found for alerts_found in found if alerts_found is not None] == [[made]]
    assert await kept.watched(leader, 60) == [made]
    others = [instance for instance in instances if instance != leader]
    await kept.leave(others[0])
    assert await kept.watched(others[0], 60) is None
    await kept.leave(leader)
    assert await kept.watched(others[0], 60) == [made]
    assert await kept.watched(leader, 60) is None


async def test_an_instance_that_does_not_come_back_is_replaced(kept: AlertStore, sql: Sql) -> None:
    gone, other = uuid.uuid4(), uuid.uuid4()
    assert await kept.watched(gone, 60) == []
    assert await kept.watched(other, 60) is None
    await sql("UPDATE alert_watch SET expires_at = now() - interval '1 second'")
    assert await kept.watched(other, 60) == []
    assert await kept.watched(gone, 60) is None


async def test_a_postgres_that_hangs_does_not_hold_up_a_stop(proxy: Any, until: Any) -> None:
    async def unasked(*_: object) -> Found:
        raise AssertionError("without an answer of Postgres nothing is looked for")

    store = await ControlStore.connect(await proxy.start(), command_timeout_s=30)
    evaluator = Evaluator(
        AlertStore(store),
        unasked,
        lambda *_: None,
        unstored_s=lambda: 0.0,
        metrics=Metrics(),
        interval_s=0.01,
    )
    try:
        proxy.hang()
        evaluator.start()
        await until(lambda: not store._pool.get_idle_size(), within_s=10)  # it asks
        began = time.monotonic()
        await evaluator.stop()
        assert time.monotonic() - began < 5
    finally:
        await store.close()


async def test_of_many_that_saw_the_same_one_fires(kept: AlertStore, demo: str) -> None:
    made = await kept.create(demo, **MADE)
    moments = [NOW + timedelta(microseconds=number) for number in range(8)]
    assert sorted(await asyncio.gather(*(kept.fire(made, at) for at in moments))) == [False] * 7 + [True]
    [fired] = await kept.list(demo)
    assert fired.last_fired_at in moments
    # From what it is now it can be fired again, once; from what it was not.
    assert not await kept.fire(made, NOW + timedelta(hours=1))
    assert await kept.fire(fired, NOW + timedelta(hours=1))
    assert not await kept.fire(fired, NOW + timedelta(hours=1))


async def test_what_is_gone_or_switched_off_does_not_fire(kept: AlertStore, demo: str, sql: Sql) -> None:
    made = await kept.create(demo, **MADE)
    await sql("UPDATE alerts SET enabled = false")
    assert not await kept.fire(made, NOW)
    await kept.delete(demo, made.id)
    assert not await kept.fire(made, NOW)


async def test_the_outcome_of_an_old_firing_does_not_hide_the_new_one(kept: AlertStore, demo: str) -> None:
    made = await kept.create(demo, **MADE)
    assert await kept.fire(made, NOW)
    await kept.tell(made.id, NOW, "delivered")
    first = msgspec.structs.replace(made, last_fired_at=NOW, last_outcome="delivered")
    assert await kept.list(demo) == [first]
    later = NOW + timedelta(hours=1)
    assert await kept.fire(first, later)
    await kept.tell(made.id, NOW, "answered 500")
    [again] = await kept.list(demo)
    assert (again.last_fired_at, again.last_outcome) == (later, "")
