"""Projects, keys and tokens: made, listed, revoked; the secret given out once and kept nowhere."""

from __future__ import annotations

import hashlib
import re
import uuid
from typing import Any

import pytest

from gateway.tenants.errors import AlreadyThere, Missing, NotAcceptable
from gateway.tenants.minting import CHECKSUM_CHARS, is_damaged, mint
from gateway.tenants.pat_store import PatStore
from gateway.tenants.postgres import ControlStore, KeyFeed
from gateway.tenants.records import Plan

ALPHANUMERIC_40 = "[0-9A-Za-z]{40}"


FORMS = [
    ("loguro", "server", "lg_"),
    ("loguro", "browser", "lgb_"),
    ("proliferate", "server", "pk_"),
    ("proliferate", "browser", "pk_"),
    ("streamlogia", "server", "ls_app_live_"),
    ("brokle", "server", "bk_"),
    ("otlp", "server", "otlp_"),
    ("sixth", "server", "sixth_"),
]


async def test_a_key_has_the_form_its_dialects_clients_expect(store: ControlStore) -> None:
    for dialect, kind, prefix in FORMS:
        origins = ["http://localhost:3000"] if kind == "browser" else []
        record, secret = await store.create_key("demo", kind=kind, dialect=dialect, name="n", origins=origins)
        assert re.fullmatch(prefix + ALPHANUMERIC_40, secret), dialect
        assert (record.dialect, record.kind, record.project_slug) == (dialect, kind, "demo")
        assert record.revoked_at is None
        assert list(record.origins) == origins


def test_minted_keys_differ_and_carry_a_checksum_that_finds_every_single_slip() -> None:
    secrets = {mint("bk_") for _ in range(1000)}
    assert len(secrets) == 1000
    for secret in list(secrets)[:20]:
        assert not is_damaged(secret)
        for place in range(3, len(secret)):
            slip = secret[:place] + ("a" if secret[place] != "a" else "b") + secret[place + 1 :]
            assert is_damaged(slip)


def test_every_letter_of_the_random_part_comes_from_the_given_source() -> None:
    secret = mint("lg_", lambda alphabet: alphabet[-1])
    assert secret.startswith("lg_" + "z" * 34)
    assert len(secret) == 3 + 34 + CHECKSUM_CHARS


async def test_only_the_digest_is_stored(store: ControlStore, sql: Any) -> None:
    record, secret = await store.create_key("demo", kind="server", dialect="otlp", name="n")
    token, token_secret = await PatStore(store).create("laptop")
    rows = await sql("SELECT id, sha256, keys::text AS everything FROM keys")
    assert [(str(row["id"]), row["sha256"]) for row in rows] == [(record.id, hashlib.sha256(secret.encode()).digest())]
    assert secret not in rows[0]["everything"]
    rows = await sql("SELECT id, sha256, t::text AS everything FROM personal_access_tokens AS t")
    assert [(str(row["id"]), row["sha256"]) for row in rows] == [
        (token.id, hashlib.sha256(token_secret.encode()).digest())
    ]
    assert re.fullmatch("pat_" + ALPHANUMERIC_40, token_secret)
    assert token_secret not in rows[0]["everything"]


async def test_records_do_not_show_secrets(store: ControlStore, dsn: str) -> None:
    record, secret = await store.create_key("demo", kind="server", dialect="otlp", name="n")
    token, token_secret = await PatStore(store).create("laptop")
    feed = await KeyFeed.connect(dsn, lambda: None, listen=False, connect_timeout_s=5, command_timeout_s=5)
    table = await feed.load()
    feed.close()
    shown = repr([record, token, table, vars(store), await store.list_keys()])
    for hidden in (secret, token_secret, hashlib.sha256(secret.encode()).hexdigest()):
        assert hidden not in shown
        assert hidden[-20:] not in shown


async def test_projects_and_keys_are_listed_oldest_first(store: ControlStore) -> None:
    assert [project.slug for project in await store.list_projects()] == ["demo", "other"]
    made = [
        (await store.create_key(slug, kind="server", dialect="otlp", name=name))[0]
        for slug, name in (("demo", "a"), ("other", "b"), ("demo", "c"))
    ]
    assert await store.list_keys() == made
    assert await store.list_keys("demo") == [made[0], made[2]]
    assert await store.revoke_key(made[0].id)
    assert [(record.name, record.revoked_at is None) for record in await store.list_keys("demo")] == [
        ("a", False),
        ("c", True),
    ]


async def test_a_key_is_revoked_once(store: ControlStore) -> None:
    record, _ = await store.create_key("demo", kind="server", dialect="otlp", name="n")
    assert await store.revoke_key(record.id)
    assert not await store.revoke_key(record.id)
    assert not await store.revoke_key(str(uuid.uuid4()))
    assert not await store.revoke_key("no such thing")


async def test_what_is_taken_or_not_there_is_said_so(store: ControlStore) -> None:
    with pytest.raises(AlreadyThere, match="'demo'"):
        await store.create_project("demo")
    for slug in ("nowhere", "no\x00where", "\ud800"):
        with pytest.raises(Missing, match="there is no project"):
            await store.create_key(slug, kind="server", dialect="otlp")
        with pytest.raises(Missing, match="there is no project"):
            await store.list_keys(slug)


SENSELESS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "mobile"}, "server, browser"),
    ({"dialect": "OTLP; --"}, "name of a dialect"),
    ({"name": "x" * 201}, "at most 200"),
    ({"name": "a\x00b"}, "printable"),
    ({"origins": ["https://a.example"]}, "belong to browser keys"),
    ({"kind": "browser"}, "needs the origins"),
    ({"kind": "browser", "origins": ["https://a.example", "*"]}, r"not an origin: '\*'"),
    ({"kind": "browser", "origins": ["null"]}, "not an origin"),
    ({"kind": "browser", "origins": ["https://a.example/path"]}, "without a path"),
]


async def test_a_key_that_makes_no_sense_is_refused(store: ControlStore) -> None:
    for arguments, said in SENSELESS:
        with pytest.raises(NotAcceptable, match=said):
            await store.create_key("demo", **{"kind": "server", "dialect": "loguro", **arguments})
    assert await store.list_keys() == []


async def test_origins_are_stored_in_their_one_spelling(store: ControlStore) -> None:
    record, _ = await store.create_key(
        "demo", kind="browser", dialect="loguro", origins=[" HTTPS://App.Example.com:443/ ", "https://app.example.com"]
    )
    assert record.origins == ("https://app.example.com",)


async def test_every_change_of_keys_is_counted(store: ControlStore, dsn: str, sql: Any) -> None:
    feed = await KeyFeed.connect(dsn, lambda: None, listen=False, connect_timeout_s=5, command_timeout_s=5)
    try:
        numbers = [await feed.change()]
        record, _ = await store.create_key("demo", kind="server", dialect="otlp")
        numbers.append(await feed.change())
        await store.revoke_key(record.id)
        numbers.append(await feed.change())
        for statement in (
            "UPDATE projects SET slug = 'renamed' WHERE slug = 'demo'",
            "UPDATE plans SET monthly_records = 5 WHERE name = 'unlimited'",
            "DELETE FROM keys",
            "TRUNCATE keys",
        ):
            await sql(statement)
            numbers.append(await feed.change())
        assert numbers == sorted(set(numbers))
    finally:
        feed.close()


async def test_a_project_is_on_the_unlimited_plan_until_it_is_set(store: ControlStore) -> None:
    project = (await store.list_projects())[0]
    assert (project.plan, project.active, project.monthly_records, project.used_records) == ("unlimited", True, None, 0)
    assert await store.list_plans() == [Plan("unlimited", None, None)]


async def test_what_is_set_for_a_project_goes_before_its_plan(store: ControlStore) -> None:
    assert await store.set_plan("small", monthly_records=1_000) == Plan("small", 1_000, None)
    assert await store.set_plan("small", requests_per_minute=60) == Plan("small", 1_000, 60)
    project = await store.set_project("demo", plan="small")
    assert (project.plan, project.monthly_records) == ("small", 1_000)
    assert (await store.set_project("demo", monthly_records=5)).monthly_records == 5
    assert (await store.set_project("demo", active=False)).monthly_records == 5
    assert (await store.set_project("demo", monthly_records=0)).monthly_records == 1_000
    assert project.durability == ""
    assert (await store.set_project("demo", durability="stored")).durability == "stored"
    assert (await store.set_project("demo", plan="small")).durability == "stored"
    assert (await store.set_project("demo", durability="")).durability == ""
    assert await store.set_plan("small", monthly_records=0) == Plan("small", None, 60)
    listed = {project.slug: project for project in await store.list_projects()}
    assert (listed["demo"].plan, listed["demo"].monthly_records, listed["demo"].active) == ("small", None, False)
    assert (listed["other"].plan, listed["other"].active) == ("unlimited", True)


async def test_a_keys_rate_is_its_own_or_its_plans(store: ControlStore) -> None:
    await store.set_plan("small", requests_per_minute=60)
    await store.set_project("demo", plan="small")
    record, _ = await store.create_key("demo", kind="server", dialect="otlp")
    assert record.requests_per_minute == 60
    assert (await store.set_key(record.id, requests_per_minute=7)).requests_per_minute == 7
    assert [key.requests_per_minute for key in await store.list_keys()] == [7]
    assert (await store.set_key(record.id, requests_per_minute=0)).requests_per_minute == 60


async def test_limits_that_make_no_sense_are_refused(store: ControlStore) -> None:
    record, _ = await store.create_key("demo", kind="server", dialect="otlp")
    for number in (-1, 2**31):
        with pytest.raises(NotAcceptable, match="number from 1 to"):
            await store.set_key(record.id, requests_per_minute=number)
        with pytest.raises(NotAcceptable, match="number from 1 to"):
            await store.create_key("demo", kind="server", dialect="otlp", requests_per_minute=number)
    for number in (-1, 2**63):
        with pytest.raises(NotAcceptable, match="number from 1 to"):
            await store.set_project("demo", monthly_records=number)
        with pytest.raises(NotAcceptable, match="number from 1 to"):
            await store.set_plan("small", monthly_records=number)
    for name in ("", "Small", "unlimited", "a" * 64):
        with pytest.raises(NotAcceptable, match="plan's name"):
            await store.set_plan(name, monthly_records=5)
    for plan in ("nowhere", "no\x00where"):
        with pytest.raises(Missing, match="there is no plan"):
            await store.set_project("demo", plan=plan)
    with pytest.raises(Missing, match="there is no project"):
        await store.set_project("nowhere", active=True)
    await store.revoke_key(record.id)
    for key_id in (record.id, str(uuid.uuid4()), "no such thing"):
        with pytest.raises(Missing, match="no live key"):
            await store.set_key(key_id, requests_per_minute=5)
