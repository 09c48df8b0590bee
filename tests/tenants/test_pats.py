"""Personal access tokens: found by their digest, refused when they are none, and never a 401 for an outage."""

from __future__ import annotations

import logging

import pytest

from gateway.errors import KeysUnavailable, Unauthorized
from gateway.tenants.minting import PAT_PREFIX, mint
from gateway.tenants.pats import REMEMBERED_MAX, REMEMBERED_S, Pats
from gateway.tenants.postgres import ControlStore, StoreUnavailable
from gateway.tenants.records import PatRecord
from tests.tenants.conftest import Sql


class Time:
    """Seconds that a test moves."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Away:
    """A store that cannot be asked, and counts how often it was."""

    asked = 0

    async def find_pat(self, sha256: bytes) -> PatRecord | None:
        self.asked += 1
        raise StoreUnavailable("away")


class Nobody:
    """A store without tokens."""

    asked = 0

    async def find_pat(self, sha256: bytes) -> PatRecord | None:
        self.asked += 1
        return None


async def test_a_token_is_who_it_was_made_for(store: ControlStore) -> None:
    record, secret = await store.create_pat("ada")
    assert await Pats(store).check(secret) == record


async def test_a_revoked_token_works_for_as_long_as_answers_are_remembered(store: ControlStore, sql: Sql) -> None:
    _, secret = await store.create_pat("ada")
    time = Time()
    pats = Pats(store, monotonic_s=time)
    await pats.check(secret)
    await sql("UPDATE personal_access_tokens SET revoked_at = now()")
    await pats.check(secret)
    time.now_s += REMEMBERED_S
    with pytest.raises(Unauthorized):
        await pats.check(secret)


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
    assert len(pats._remembered) <= REMEMBERED_MAX


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
