"""The rate of a key: its whole minute at once, then no more than its share; and what the sender is told."""

from __future__ import annotations

import math
import os
from datetime import UTC, datetime

import pytest

from gateway.errors import RateLimited
from gateway.tenants.rates import Rates, shared_buckets
from gateway.tenants.records import KeyRecord, KeyTable

SECOND_NS = 1_000_000_000


class Nanoseconds:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 7 * SECOND_NS

    def __call__(self) -> int:
        return self.now

    def pass_s(self, seconds: float) -> None:
        self.now += int(seconds * SECOND_NS)


def key(name: str = "a", requests_per_minute: int | None = None, dialect: str = "otlp") -> KeyRecord:
    return KeyRecord(
        id=name, project_id="p", project_slug="demo", kind="server", dialect=dialect, name=name, origins=(),
        created_at=datetime(2026, 1, 1, tzinfo=UTC), revoked_at=None, requests_per_minute=requests_per_minute,
    )  # fmt: skip


def taken(rates: Rates, record: KeyRecord, attempts: int) -> int:
    """How many of so many requests at this moment are let through."""
    through = 0
    for _ in range(attempts):
        try:
            rates.take(record)
        except RateLimited:
            continue
        through += 1
    return through


@pytest.fixture
def clock() -> Nanoseconds:
    return Nanoseconds()


def test_a_whole_minute_may_be_sent_in_its_first_second(clock: Nanoseconds) -> None:
    rates = Rates(10_000, now_ns=clock)
    for _ in range(5):
        assert taken(rates, key(), 9_999) == 9_999
        clock.pass_s(60)


def test_the_request_after_the_last_is_refused_and_told_how_long_to_wait(clock: Nanoseconds) -> None:
    rates = Rates(10_000, now_ns=clock)
    assert taken(rates, key(), 10_001) == 10_000
    with pytest.raises(RateLimited, match="More than 10000 requests a minute") as caught:
        rates.take(key())
    assert caught.value.retry_after_s == 1
    clock.pass_s(1)
    assert taken(rates, key(), 1_000) == 166


@pytest.mark.parametrize("limit", [1, 2, 7, 60, 61, 999, 10_000])
def test_after_the_wait_it_asked_for_a_request_is_taken_and_a_second_earlier_not(
    clock: Nanoseconds, limit: int
) -> None:
    rates = Rates(limit, now_ns=clock)
    assert taken(rates, key(), limit) == limit
    with pytest.raises(RateLimited) as caught:
        rates.take(key())
    wait_s = caught.value.retry_after_s
    assert wait_s == math.ceil(60 / limit)
    if wait_s > 1:
        clock.pass_s(wait_s - 1)
        assert taken(rates, key(), 1) == 0
        clock.pass_s(1)
    else:
        clock.pass_s(wait_s)
    assert taken(rates, key(), 1) == 1


def test_refused_requests_cost_nothing(clock: Nanoseconds) -> None:
    rates = Rates(60, now_ns=clock)
    assert taken(rates, key(), 10_000) == 60
    clock.pass_s(10)
    assert taken(rates, key(), 10_000) == 10


def test_over_hours_a_key_gets_its_rate(clock: Nanoseconds) -> None:
    rates, through = Rates(600, now_ns=clock), 0
    for _ in range(2 * 3600):
        through += taken(rates, key(), 15)
        clock.pass_s(1)
    assert through == pytest.approx(600 * 121, abs=11)


def test_keys_have_buckets_and_rates_of_their_own(clock: Nanoseconds) -> None:
    rates = Rates(100, now_ns=clock)
    assert taken(rates, key("a"), 200) == 100
    assert taken(rates, key("b", 5), 200) == 5
    assert taken(rates, key("c", 150), 200) == 150


def test_keys_of_dialects_whose_clients_never_retry_have_another_rate(clock: Nanoseconds) -> None:
    rates = Rates(100, by_dialect={"streamlogia": 150}, now_ns=clock)
    assert taken(rates, key("a", dialect="streamlogia"), 200) == 150
    assert taken(rates, key("b", dialect="loguro"), 200) == 100
    assert taken(rates, key("c", 5, dialect="streamlogia"), 200) == 5


def test_a_changed_rate_holds_at_once(clock: Nanoseconds) -> None:
    rates = Rates(100, now_ns=clock)
    assert taken(rates, key(), 100) == 100
    assert taken(rates, key(requests_per_minute=5), 200) == 5
    assert taken(rates, key(requests_per_minute=300), 400) == 300


def test_a_sender_is_told_when_less_than_a_fifth_is_left(clock: Nanoseconds) -> None:
    rates = Rates(10, now_ns=clock)
    told = [dict(rates.take(key())).get("RateLimit", "") for _ in range(10)]
    assert told == ["", "", "", "", "", "", "", "", '"key";r=1;t=54', '"key";r=0;t=60']
    clock.pass_s(6)
    assert rates.take(key()) == (("RateLimit-Policy", '"key";q=10;w=60'), ("RateLimit", '"key";r=0;t=60'))
    with pytest.raises(RateLimited) as caught:
        rates.take(key())
    assert caught.value.notices == (("RateLimit-Policy", '"key";q=10;w=60'), ("RateLimit", '"key";r=0;t=60'))
    clock.pass_s(60)
    assert rates.take(key()) == ()


def test_buckets_go_with_their_keys_and_live_ones_stay_as_they_are(clock: Nanoseconds) -> None:
    rates = Rates(10, now_ns=clock)
    for number in range(100):
        taken(rates, key(str(number)), 10)
    live = {bytes([number]): key(str(number)) for number in range(3)}
    rates.keep(KeyTable(1, live, frozenset()))
    assert len(rates) == 3
    assert taken(rates, key("2"), 1) == 0
    assert taken(rates, key("50"), 1) == 1


def test_those_who_share_give_a_key_its_rate_once_and_keep_it_when_one_of_them_ends(clock: Nanoseconds) -> None:
    shared = shared_buckets()
    try:
        one, other = Rates(100, shared=shared, now_ns=clock), Rates(100, shared=shared, now_ns=clock)
        assert taken(one, key(), 30) + taken(other, key(), 200) == 100
        del one
        successor = Rates(100, shared=shared, now_ns=clock)
        assert taken(successor, key(), 200) == 0
        clock.pass_s(6)
        assert taken(other, key(), 5) + taken(successor, key(), 200) == 10
        # The control: by itself each would have given it all.
        assert taken(Rates(100, now_ns=clock), key(), 200) == 100
    finally:
        os.close(shared)


def test_more_keys_than_neighbours_of_a_place_do_not_take_each_others_rate(clock: Nanoseconds) -> None:
    rates = Rates(10, now_ns=clock)
    names = [str(number) for number in range(5_000)]
    assert {taken(rates, key(name), 11) for name in names} == {10}
    assert {taken(rates, key(name), 1) for name in names} == {0}
