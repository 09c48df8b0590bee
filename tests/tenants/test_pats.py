"""Personal access tokens: found by their digest, refused when they are none, and never a 401 for an outage."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

import pytest

from gateway.errors import KeysUnavailable, Unauthorized
from gateway.tenants.errors import StoreUnavailable
from gateway.tenants.minting import PAT_PREFIX, mint
from gateway.tenants.pat_store import PatStore
from gateway.tenants.pats import REMEMBERED_MAX, REMEMBERED_S, Pats
from gateway.tenants.postgres import ControlStore
from gateway.tenants.records import PatRecord


class Time:
    """Seconds that a test moves."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Away:
    """A store that cannot be asked, and counts how often it was."""

    asked = 0

    async def find(self, sha256: bytes) -> PatRecord | None:
        self.asked += 1
        raise StoreUnavailable("away")


class Nobody:
    """A store without tokens."""

    asked = 0

    async def find(self, sha256: bytes) -> PatRecord | None:
        self.asked += 1
        return None


class Slow:
    """A store that knows every token, once ``answers`` is set, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked, self.is_asked, self.answers = 0, asyncio.Event(), asyncio.Event()

    async def find(self, sha256: bytes) -> PatRecord | None:
        self.asked += 1
        self.is_asked.set()
        await self.answers.wait()
        return PatRecord("id", "name", datetime.fromtimestamp(0, UTC))


async def test_a_token_is_who_it_was_made_for(store: ControlStore) -> None:
    tokens = PatStore(store)
    record, secret = await tokens.create("ada")
    assert await Pats(tokens).check(secret) == record


async def test_a_revoked_token_works_for_as_long_as_answers_are_remembered(store: ControlStore) -> None:
    tokens, time = PatStore(store), Time()
    record, secret = await tokens.create("ada")
    pats = Pats(tokens, monotonic_s=time)
    await pats.check(secret)
    assert await tokens.revoke(record.id)
    await pats.check(secret)
    time.now_s += REMEMBERED_S
    with pytest.raises(Unauthorized):
        await pats.check(secret)
    assert REMEMBERED_S < 1


async def test_tokens_are_listed_with_when_they_were_revoked_and_revoked_once(store: ControlStore) -> None:
    tokens = PatStore(store)
    (ada, _), (bob, _) = await tokens.create("ada"), await tokens.create("bob")
    assert await tokens.revoke(ada.id)
    for nobody in (ada.id, "no id", "00000000-0000-0000-0000-000000000000"):
        assert not await tokens.revoke(nobody)
    first, second = await tokens.all()
    assert (first.id, first.name, first.revoked_at is None) == (ada.id, "ada", False)
    assert second == bob


async def test_however_many_use_a_token_at_once_the_store_is_asked_once() -> None:
    store, secret = Slow(), mint(PAT_PREFIX)
    pats = Pats(store, monotonic_s=Time())
    asking = [asyncio.create_task(pats.check(secret)) for _ in range(50)]
    await asyncio.wait_for(store.is_asked.wait(), 5)
    # That the first of them goes away is no answer for the others.
    asking.pop(0).cancel()
    store.answers.set()
    assert [record.name for record in await asyncio.gather(*asking)] == ["name"] * 49
    assert store.asked == 1
    assert not pats._asking


async def test_a_token_that_was_cut_or_mistyped_is_refused_without_asking() -> None:
    store, secret = Nobody(), mint(PAT_PREFIX)
    pats = Pats(store, monotonic_s=Time())
    slip = secret[:-1] + ("a" if secret[-1] != "a" else "b")
    with pytest.raises(Unauthorized, match="checksum"):
        await pats.check(slip)
    assert store.asked == 0


async def test_trying_many_tokens_forgets_none_that_is_good() -> None:
    class OneGood(Nobody):
        async def find(self, sha256: bytes) -> PatRecord | None:
            self.asked += 1
            return PatRecord("id", "name", datetime.fromtimestamp(0, UTC)) if self.asked == 1 else None

    store, secret = OneGood(), mint(PAT_PREFIX)
    pats = Pats(store, monotonic_s=Time())
    await pats.check(secret)
    for number in range(REMEMBERED_MAX + 10):
        with pytest.raises(Unauthorized):
            await pats.check(f"pat_{number}")
    asked = store.asked
    assert (await pats.check(secret)).name == "name"
    assert store.asked == asked


async def test_what_is_no_token_is_refused_without_asking_and_unknown_ones_are_asked_for_once() -> None:
    store = Nobody()
    pats = Pats(store, monotonic_s=Time())
    for token in (None, "", "lg_" + "a" * 40, "pat_" + "a" * 5_000, "PAT_" + "a" * 40):
        with pytest.raises(Unauthorized):
            await pats.check(token)
    assert store.asked == 0
    unknown = mint(PAT_PREFIX)
    for _ in range(3):
        with pytest.raises(Unauthorized):
            await pats.check(unknown)
    assert store.asked == 1


async def test_what_is_remembered_is_bounded() -> None:
    pats = Pats(Nobody(), monotonic_s=Time())
    for number in range(REMEMBERED_MAX + 10):
        with pytest.raises(Unauthorized):
            await pats.check(f"pat_{number}")
    assert len(pats._unknown) == REMEMBERED_MAX


async def test_while_the_store_is_away_it_is_503_and_nothing_is_remembered(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    store, secret = Away(), mint(PAT_PREFIX)
    pats = Pats(store, monotonic_s=Time())
    for _ in range(2):
        with pytest.raises(KeysUnavailable) as refused:
            await pats.check(secret)
        assert secret not in str(refused.value) + refused.value.log
    assert store.asked == 2
    assert secret not in caplog.text
