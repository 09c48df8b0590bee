"""The gate: a key and an origin in, a tenant or the right refusal out."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import KeysUnavailable, OriginRefused, Unauthorized
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
