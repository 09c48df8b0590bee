"""The gate: a key and an origin in, a tenant or the right refusal out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.errors import (
    KeysUnavailable,
    OriginRefused,
    RateLimited,
    SubscriptionRequired,
    Unauthorized,
    WeirError,
)
from gateway.tenants.gate import Gate, Tenant
from gateway.tenants.keys import Keys
from gateway.tenants.postgres import ControlStore
from gateway.tenants.quotas import Quotas
from gateway.tenants.rates import Rates


def gate_of(keys: Keys) -> Gate:
    return Gate(keys, Rates(10_000), Quotas("", kept_path=None))


ALLOWED = ["http://localhost:3000", "https://app.example.com", "http://[::1]:8080"]


async def test_a_server_key_is_its_projects_tenant_from_anywhere(store: ControlStore, make_keys: Any) -> None:
    record, secret = await store.create_key("demo", kind="server", dialect="brokle")
    gate = gate_of(await make_keys())
    tenant = Tenant(record.project_id, "demo", record.id, "brokle", "server")
    for origin in (None, "https://anywhere.example", "null", "\ud800"):
        assert gate.authorize(secret, origin) == tenant


@pytest.mark.parametrize("key", [None, ""])
async def test_no_key_is_told_where_to_put_one(make_keys: Any, key: str | None) -> None:
    with pytest.raises(Unauthorized, match="Authorization: Bearer <key>"):
        gate_of(await make_keys()).authorize(key, None)


async def test_unknown_and_revoked_keys_are_refused_without_being_repeated(store: ControlStore, make_keys: Any) -> None:
    record, revoked = await store.create_key("demo", kind="server", dialect="otlp")
    await store.revoke_key(record.id)
    _, good = await store.create_key("demo", kind="server", dialect="otlp")
    mistyped = good[:-1] + ("a" if good[-1] != "a" else "b")
    gate = gate_of(await make_keys())
    for key, said in ((revoked, "copied whole"), ("canary-garbage", "copied whole"), (mistyped, "cut or mistyped")):
        with pytest.raises(Unauthorized, match=said) as caught:
            gate.authorize(key, None)
        assert key not in str(caught.value) + caught.value.log + repr(caught.value)
    assert gate.authorize(good, None).kind == "server"


async def test_a_key_that_cannot_be_checked_is_not_refused(make_keys: Any, empty_dsn: str) -> None:
    with pytest.raises(KeysUnavailable) as caught:
        gate_of(await make_keys(empty_dsn)).authorize("canary-unknown", None)
    assert caught.value.retry_after_s
    assert "canary" not in str(caught.value) + caught.value.log


ON_THE_LIST = [
    "http://localhost:3000", "HTTP://LOCALHOST:3000", "https://app.example.com", "https://app.example.com:443",
    "https://App.Example.Com", "http://[::1]:8080", "http://[0:0::1]:8080",
]  # fmt: skip
NOT_ON_THE_LIST = [
    "", "null", "http://localhost", "https://localhost:3000", "http://localhost:3001", "http://localhost:30000",
    "http://app.example.com", "https://app.example.com:444", "https://example.com", "https://x.app.example.com",
    "https://app.example.com.evil.example", "https://app.example.com@evil.example", "http://[::2]:8080",
    "http://[::1]", "https://app.example.com/path", "https://app.example.com, null", "*", "canary\r\nSet-Cookie: x",
]  # fmt: skip


async def test_a_browser_key_works_from_the_origins_on_its_list_and_nowhere_else(
    store: ControlStore, make_keys: Any
) -> None:
    _, secret = await store.create_key("demo", kind="browser", dialect="loguro", origins=ALLOWED)
    gate = gate_of(await make_keys())
    for origin in ON_THE_LIST:
        assert gate.authorize(secret, origin).kind == "browser", origin
        assert gate.allows_origin(origin), origin
    for origin in NOT_ON_THE_LIST:
        with pytest.raises(OriginRefused, match="list") as caught:
            gate.authorize(secret, origin)
        assert not gate.allows_origin(origin), origin
        shown = str(caught.value) + caught.value.log
        assert not any(hidden in shown for hidden in (secret, "canary", "\n")), origin


async def test_a_browser_key_without_an_origin_is_refused(store: ControlStore, make_keys: Any) -> None:
    _, secret = await store.create_key("demo", kind="browser", dialect="loguro", origins=ALLOWED)
    with pytest.raises(OriginRefused, match="no Origin header"):
        gate_of(await make_keys()).authorize(secret, None)


async def test_an_origin_is_one_keys_and_not_everyones(store: ControlStore, make_keys: Any) -> None:
    _, one = await store.create_key("demo", kind="browser", dialect="loguro", origins=["https://one.example"])
    other, _ = await store.create_key("other", kind="browser", dialect="loguro", origins=["https://other.example"])
    keys = await make_keys()
    gate = gate_of(keys)
    assert gate.allows_origin("https://other.example")
    with pytest.raises(OriginRefused):
        gate.authorize(one, "https://other.example")
    await store.revoke_key(other.id)
    await keys.catch_up()
    assert not gate.allows_origin("https://other.example")
    assert gate.allows_origin("https://one.example")


def refusal(gate: Gate, secret: str) -> WeirError | None:
    """Why a request would be refused, or None."""
    try:
        gate.authorize(secret, None)
    except WeirError as error:
        return error
    return None


async def test_an_inactive_project_is_refused_at_once_and_taken_again_when_it_is_active(
    store: ControlStore, make_keys: Any, until: Any
) -> None:
    _, secret = await store.create_key("demo", kind="server", dialect="loguro")
    _, others = await store.create_key("other", kind="server", dialect="loguro")
    gate = gate_of(await make_keys())
    assert gate.authorize(secret, None).durability == ""
    await store.set_project("demo", durability="memory")
    await until(lambda: gate.authorize(secret, None).durability == "memory")
    await store.set_project("demo", active=False)
    await until(lambda: isinstance(refusal(gate, secret), SubscriptionRequired))
    assert refusal(gate, others) is None
    await store.set_project("demo", active=True)
    await until(lambda: refusal(gate, secret) is None)


async def test_a_keys_own_rate_goes_before_its_plans_and_that_before_the_gateways(
    store: ControlStore, make_keys: Any
) -> None:
    await store.set_plan("small", requests_per_minute=3)
    await store.set_project("other", plan="small")
    secrets = {
        30: (await store.create_key("demo", kind="server", dialect="otlp"))[1],
        3: (await store.create_key("other", kind="server", dialect="otlp"))[1],
        5: (await store.create_key("other", kind="server", dialect="otlp", requests_per_minute=5))[1],
    }
    gate = Gate(await make_keys(), Rates(30, now_ns=lambda: 1), Quotas("", kept_path=None))
    for limit, secret in secrets.items():
        assert [refusal(gate, secret) is None for _ in range(limit + 2)] == [True] * limit + [False] * 2
        error = refusal(gate, secret)
        assert isinstance(error, RateLimited)
        assert dict(error.notices)["RateLimit-Policy"] == f'"key";q={limit};w=60'
        assert error.retry_after_s == -(-60 // limit)


async def test_a_changed_rate_takes_effect_within_a_second(store: ControlStore, make_keys: Any, until: Any) -> None:
    record, secret = await store.create_key("demo", kind="server", dialect="otlp", requests_per_minute=1)
    gate = gate_of(await make_keys())
    assert refusal(gate, secret) is None
    assert isinstance(refusal(gate, secret), RateLimited)
    await store.set_key(record.id, requests_per_minute=0)
    await until(lambda: refusal(gate, secret) is None)


async def test_a_spent_quota_is_refused_and_warned_of_from_four_fifths_on(store: ControlStore, make_keys: Any) -> None:
    await store.set_project("demo", monthly_records=1000)
    record, secret = await store.create_key("demo", kind="server", dialect="loguro")
    gate = gate_of(await make_keys())
    warned = []
    for records in (790, 9, 1, 100, 99, 50):
        assert refusal(gate, secret) is None
        warned.append(dict(gate.count(record.project_id, records)).get("X-Quota-Warning"))
    assert warned == [None, None, "80", "90", "99", "104"]
    error = refusal(gate, secret)
    assert isinstance(error, SubscriptionRequired)
    assert "1000 records a month is spent" in str(error)


async def test_a_project_without_a_quota_never_meets_one(store: ControlStore, make_keys: Any) -> None:
    record, secret = await store.create_key("demo", kind="server", dialect="loguro")
    gate = gate_of(await make_keys())
    for _ in range(3):
        assert refusal(gate, secret) is None
        assert gate.count(record.project_id, 10**15) == ()


async def test_limits_hold_over_a_restart_without_postgres(
    store: ControlStore, make_keys: Any, proxy: Any, tmp_path: Path
) -> None:
    through, path = await proxy.start(), tmp_path / "keys"
    await store.set_project("demo", monthly_records=10)
    await store.set_project("other", active=False)
    record, secret = await store.create_key("demo", kind="server", dialect="otlp", requests_per_minute=2)
    _, inactive = await store.create_key("other", kind="server", dialect="otlp")
    await (await make_keys(through, snapshot_path=path)).stop()
    await proxy.cut()
    gate = gate_of(await make_keys(through, snapshot_path=path))
    assert isinstance(refusal(gate, inactive), SubscriptionRequired)
    assert refusal(gate, secret) is None
    assert refusal(gate, secret) is None
    assert isinstance(refusal(gate, secret), RateLimited)
    gate.count(record.project_id, 10)
    assert isinstance(refusal(gate, secret), SubscriptionRequired)


async def test_buckets_do_not_outnumber_the_keys(store: ControlStore, make_keys: Any) -> None:
    rates = Rates(10)
    keys = await make_keys(on_table=rates.keep)
    gate = Gate(keys, rates, Quotas("", kept_path=None))
    for _ in range(5):
        record, secret = await store.create_key("demo", kind="server", dialect="otlp")
        await keys.catch_up()
        gate.authorize(secret, None)
        await store.revoke_key(record.id)
        await keys.catch_up()
        assert len(rates) <= len(keys)
