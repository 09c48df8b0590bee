"""Quotas: right across instances within one per cent, and no request that waits for Postgres or is lost to it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import SubscriptionRequired
from gateway.tenants.gate import Gate
from gateway.tenants.postgres import ControlStore, UsageFeed
from gateway.tenants.quotas import LEASE_S, Quotas
from gateway.tenants.rates import Rates
from gateway.tenants.records import Share

MakeQuotas = Callable[..., Awaitable[Quotas]]
NEVER_S = 3600.0


class Calendar:
    """Wall-clock seconds that stand where a test has put them."""

    def __init__(self, *moment: int) -> None:
        self.now = datetime(*moment, tzinfo=UTC).timestamp()  # type: ignore[misc,arg-type]

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def make_quotas(dsn: str) -> AsyncIterator[MakeQuotas]:
    """Starts a Quotas on the test's database (or another ``dsn``) and stops it in the end."""
    made: list[Quotas] = []

    async def make(other_dsn: str = "", **settings: Any) -> Quotas:
        settings.setdefault("kept_path", None)
        settings.setdefault("settle_s", 0.02)
        settings.setdefault("retry_max_s", 0.1)
        quotas = Quotas(other_dsn or dsn, **settings)
        made.append(quotas)
        await quotas.start()
        return quotas

    yield make
    for quotas in made:
        await quotas.stop()


@pytest.fixture
async def project_id(store: ControlStore) -> str:
    return (await store.list_projects())[0].id


def is_spent(quotas: Quotas, project_id: str, quota: int | None) -> bool:
    try:
        quotas.check(project_id, quota)
    except SubscriptionRequired:
        return True
    return False


def send(quotas: Quotas, project_id: str, quota: int | None, records: int) -> int:
    """One request; returns how many records of it were accepted."""
    if is_spent(quotas, project_id, quota):
        return 0
    quotas.count(project_id, records)
    return records


async def used(store: ControlStore, slug: str = "demo") -> int:
    return next(project.used_records for project in await store.list_projects() if project.slug == slug)


class Turns:
    """How often Postgres was told something: ``begun`` and ``answered``, by all instances of a test."""

    def __init__(self) -> None:
        self.begun = self.answered = 0

    async def are_over(self, send_all: Callable[[], int], *, turns: int = 12, within_s: float = 30.0) -> int:
        """Sends until so many turns have passed in which nothing was accepted; returns how much was before."""
        accepted, last = 0, self.answered
        async with asyncio.timeout(within_s):
            while self.answered < last + turns:
                if one := send_all():
                    accepted, last = accepted + one, self.answered
                await asyncio.sleep(0.0005)
        return accepted


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    """Counts; all else is as it is."""
    counted, real = Turns(), UsageFeed.settle

    async def settle(self: UsageFeed, shares: Any, **settings: Any) -> Any:
        counted.begun += 1
        answer = await real(self, shares, **settings)
        counted.answered += 1
        return answer

    monkeypatch.setattr(UsageFeed, "settle", settle)
    return counted


async def send_until_refused(turns: Turns, quotas: list[Quotas], project_id: str, quota: int, records: int) -> int:
    """Requests to all instances in turn until all refuse, and go on to; returns the records accepted.

    However busy the machine is, no more than a quarter of a per cent of the quota arrives at an instance
    while Postgres answers it once: a month's quota is not sent in a second.
    """

    def send_all() -> int:
        if any(one.unsettled_records > quota // 400 and one.store_failures == 0 for one in quotas):
            return 0
        return sum(send(one, project_id, quota, records) for one in quotas)

    return await turns.are_over(send_all)


async def test_what_was_counted_is_in_the_store_a_turn_later(
    store: ControlStore, project_id: str, make_quotas: MakeQuotas, until: Any
) -> None:
    quotas = await make_quotas()
    assert send(quotas, project_id, None, 70) == 70
    assert send(quotas, project_id, None, 7) == 7
    await until(lambda: quotas.unsettled_records == 0)
    assert await used(store) == 77
    assert await used(store, "other") == 0


@pytest.mark.parametrize(("quota", "records"), [(100_000, 100), (1_000_000, 2_000), (10_000, 7)])
async def test_two_instances_together_accept_the_quota_within_one_per_cent(
    store: ControlStore, project_id: str, make_quotas: MakeQuotas, turns: Turns, until: Any, quota: int, records: int
) -> None:
    quotas = [await make_quotas(), await make_quotas()]
    accepted = await send_until_refused(turns, quotas, project_id, quota, records)
    # Each instance lets the request through that crosses the line.
    assert quota * 0.99 <= accepted <= quota * 1.01 + len(quotas) * records
    await until(lambda: all(one.unsettled_records == 0 for one in quotas))
    assert await used(store) == accepted


async def test_two_gates_with_keys_and_quotas_of_their_own_accept_the_projects_quota(
    store: ControlStore, project_id: str, make_keys: Any, make_quotas: MakeQuotas, turns: Turns
) -> None:
    await store.set_project("demo", monthly_records=20_000)
    _, secret = await store.create_key("demo", kind="server", dialect="otlp")
    quotas = [await make_quotas(), await make_quotas()]
    gates = [Gate(await make_keys(), Rates(10**9), one) for one in quotas]

    def send_all() -> int:
        if any(one.unsettled_records > 50 for one in quotas):
            return 0
        accepted = 0
        for gate in gates:
            with suppress(SubscriptionRequired):
                gate.count(gate.authorize(secret, None).project_id, 10)
                accepted += 10
        return accepted

    accepted = await turns.are_over(send_all)
    assert 19_800 <= accepted <= 20_200


async def test_control_instances_that_do_not_share_accept_the_quota_each(
    store: ControlStore, project_id: str, make_quotas: MakeQuotas
) -> None:
    quotas = [await make_quotas("postgresql://nobody@127.0.0.1:1/none") for _ in range(2)]
    assert sum(send(one, project_id, 10_000, 100) for one in quotas for _ in range(200)) == 20_000


async def test_one_busy_instance_may_use_what_idle_ones_gave_back(
    store: ControlStore, project_id: str, make_quotas: MakeQuotas, turns: Turns
) -> None:
    quota = 100_000
    busy, *idle = [await make_quotas() for _ in range(4)]
    accepted = sum(send(one, project_id, quota, 10) for one in idle)
    accepted += await send_until_refused(turns, [busy], project_id, quota, 100)
    assert quota <= accepted <= quota + 100


async def test_the_crossing_request_is_accepted_and_the_next_refused_until_the_month_ends(
    store: ControlStore, project_id: str, make_quotas: MakeQuotas, until: Any
) -> None:
    calendar = Calendar(2026, 12, 31, 23, 59, 59)
    quotas = await make_quotas(clock=calendar)
    assert send(quotas, project_id, 1_000, 999) == 999
    assert send(quotas, project_id, 1_000, 50) == 50
    with pytest.raises(SubscriptionRequired, match=r"1000 records a month is spent\..*2027-01-01T00:00:00Z"):
        quotas.check(project_id, 1_000)
    calendar.now += 1
    assert send(quotas, project_id, 1_000, 20) == 20
    await until(lambda: quotas.unsettled_records == 0)
    feed = await UsageFeed.connect(quotas._dsn, connect_timeout_s=5, command_timeout_s=5)
    totals = [await feed.totals(date(2026, 12, 1)), await feed.totals(date(2027, 1, 1))]
    feed.close()
    assert totals == [{project_id: 1_049}, {project_id: 20}]
    # A clock that is put back finds what it left.
    calendar.now -= 1
    assert is_spent(quotas, project_id, 1_000)


async def test_a_quota_that_was_spent_before_the_start_refuses_the_first_request(
    store: ControlStore, project_id: str, make_quotas: MakeQuotas
) -> None:
    first = await make_quotas()
    assert send(first, project_id, 500, 500) == 500
    await first.stop()
    assert is_spent(await make_quotas(), project_id, 500)
    assert not is_spent(await make_quotas(), project_id, 501)


async def test_a_larger_quota_takes_effect_at_once_and_a_smaller_one_too(
    store: ControlStore, project_id: str, make_quotas: MakeQuotas, until: Any
) -> None:
    quotas = await make_quotas()
    send(quotas, project_id, 100, 100)
    await until(lambda: quotas.unsettled_records == 0)
    assert is_spent(quotas, project_id, 100)
    assert not is_spent(quotas, project_id, 200)
    assert is_spent(quotas, project_id, 50)
    assert not is_spent(quotas, project_id, None)


async def test_the_percentage_is_of_what_all_have_used(
    store: ControlStore, project_id: str, make_quotas: MakeQuotas, until: Any
) -> None:
    one, other = await make_quotas(), await make_quotas()
    assert not is_spent(one, project_id, 1_000)
    assert one.count(project_id, 500) == 50
    await until(lambda: one.unsettled_records == 0)
    send(other, project_id, 1_000, 1)
    await until(lambda: other.count(project_id, 0) == 50)
    assert other.count(project_id, 300) == 80
    assert one.count(project_id, 0) == 50 or one.count(project_id, 0) == 80


@pytest.mark.parametrize("fault", ["cut", "hang"])
async def test_without_postgres_requests_are_accepted_and_counted_later(
    store: ControlStore, project_id: str, make_quotas: MakeQuotas, proxy: Any, until: Any, fault: str
) -> None:
    through = await proxy.start()
    quotas = await make_quotas(through, command_timeout_s=0.2, connect_timeout_s=0.2)
    assert send(quotas, project_id, 10_000, 100) == 100
    await until(lambda: quotas.unsettled_records == 0)
    if fault == "cut":
        await proxy.cut()
    else:
        proxy.hang()
    longest_s, accepted = 0.0, 100

    def sent_until_it_is_noticed() -> bool:
        nonlocal longest_s, accepted
        if quotas.store_failures:
            return True
        began = time.thread_time()  # of the processor: how busy the machine is does not matter
        assert send(quotas, project_id, 10_000, 1) == 1
        longest_s = max(longest_s, time.thread_time() - began)
        accepted += 1
        return False

    await until(sent_until_it_is_noticed, within_s=5)
    assert accepted > 100
    assert longest_s < 0.01
    assert await used(store) < accepted  # control: it really was away
    # What was left is still all there is.
    while one := send(quotas, project_id, 10_000, 1):
        accepted += one
    assert accepted == 10_000
    proxy.heal()
    await until(lambda: quotas.unsettled_records == 0, within_s=5)
    assert await used(store) == accepted
    assert is_spent(quotas, project_id, 10_000)


async def test_a_slow_postgres_delays_the_telling_and_nothing_else(
    store: ControlStore, project_id: str, make_quotas: MakeQuotas, turns: Turns, proxy: Any, until: Any
) -> None:
    quotas = await make_quotas(await proxy.start())
    accepted = 0
    for _ in range(5):
        proxy.hang()
        accepted += sum(send(quotas, project_id, 1_000_000, 10) for _ in range(20))
        await until(lambda: turns.begun > turns.answered)
        assert quotas.unsettled_records > 0  # control
        proxy.heal()
    await until(lambda: quotas.unsettled_records == 0)
    assert accepted == 1_000
    assert await used(store) == 1_000
    assert quotas.store_failures == 0


async def test_an_answer_that_is_lost_counts_nothing_twice(
    store: ControlStore, project_id: str, make_quotas: MakeQuotas, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    quotas = await make_quotas()
    real, lost = UsageFeed.settle, 0

    async def settle(self: UsageFeed, shares: Any, **settings: Any) -> Any:
        nonlocal lost
        answer = await real(self, shares, **settings)
        if shares and lost < 5:
            lost += 1
            raise TimeoutError
        return answer

    monkeypatch.setattr(UsageFeed, "settle", settle)
    sent = 0

    def sent_until_five_are_lost() -> bool:
        nonlocal sent
        if lost < 5:
            sent += send(quotas, project_id, 100_000, 3)
        return lost == 5

    await until(sent_until_five_are_lost, within_s=5)
    await until(lambda: quotas.unsettled_records == 0, within_s=5)
    assert await used(store) == sent


async def test_what_could_not_be_told_before_a_restart_is_told_after_it(
    store: ControlStore, project_id: str, make_quotas: MakeQuotas, proxy: Any, tmp_path: Path, until: Any
) -> None:
    through, path = await proxy.start(), tmp_path / "usage"
    first = await make_quotas(through, kept_path=path)
    send(first, project_id, 1_000, 300)
    await until(lambda: first.unsettled_records == 0)
    await proxy.cut()
    send(first, project_id, 1_000, 400)
    began = time.monotonic()
    await first.stop()
    assert time.monotonic() - began < 2  # and not the time-outs of Postgres
    # A second life, also without Postgres: it knows what was used.
    second = await make_quotas(through, kept_path=path)
    assert second.count(project_id, 0) == 0
    assert not is_spent(second, project_id, 1_000)
    assert second.count(project_id, 100) == 80
    await second.stop()
    assert is_spent(await make_quotas(through, kept_path=path), project_id, 800)
    # Control: without the file it does not.
    assert not is_spent(await make_quotas(through), project_id, 800)
    proxy.heal()
    third = await make_quotas(kept_path=path)
    await until(lambda: third.unsettled_records == 0)
    assert await used(store) == 800


async def test_a_file_that_is_older_than_what_was_told_counts_nothing_twice(
    store: ControlStore, project_id: str, make_quotas: MakeQuotas, proxy: Any, tmp_path: Path, until: Any
) -> None:
    through, path = await proxy.start(), tmp_path / "usage"
    await proxy.cut()
    first = await make_quotas(through, kept_path=path)
    send(first, project_id, None, 400)
    await first._write(path)
    old = path.read_bytes()
    proxy.heal()
    send(first, project_id, None, 5)
    await until(lambda: first.unsettled_records == 0, within_s=5)
    await first.stop()
    path.write_bytes(old)  # as after a crash
    second = await make_quotas(kept_path=path)
    await until(lambda: second.unsettled_records == 0)
    assert await used(store) == 405


async def test_what_could_not_be_told_survives_a_kill(
    store: ControlStore, project_id: str, make_quotas: MakeQuotas, proxy: Any, tmp_path: Path, until: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("gateway.tenants.quotas.KEEP_AWAY_S", 0.02)
    through, path = await proxy.start(), tmp_path / "usage"
    await proxy.cut()
    killed = await make_quotas(through, kept_path=path)
    send(killed, project_id, None, 400)
    await until(lambda: path.exists() and b",400," in path.read_bytes())
    copy = tmp_path / "as after a kill"
    copy.write_bytes(path.read_bytes())
    heir = await make_quotas(kept_path=copy)
    await until(lambda: heir.unsettled_records == 0)
    assert await used(store) == 400


async def test_a_damaged_file_stops_nothing(
    project_id: str, make_quotas: MakeQuotas, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "usage"
    path.write_bytes(b"weir-usage 1 0000\n[")
    quotas = await make_quotas(kept_path=path)
    assert "usage file" in caplog.text
    assert send(quotas, project_id, 10, 5) == 5


async def test_the_lease_of_a_process_that_died_is_kept_from_the_others_until_it_expires(
    store: ControlStore, project_id: str, dsn: str, sql: Any, make_quotas: MakeQuotas
) -> None:
    quotas = await make_quotas()
    month, dead = quotas._month, quotas._instance
    feed = await UsageFeed.connect(dsn, connect_timeout_s=5, command_timeout_s=5)
    share = Share(project_id, month, dead, used=10, settled=0, quota=1_000, wanted=900)
    assert [(one.total, one.lease, one.is_last) for one in await feed.settle([share], lease_s=LEASE_S) if one] == [
        (10, 900, False)
    ]
    other = Share(project_id, month, uuid.uuid4(), used=0, settled=0, quota=1_000, wanted=500)
    settled = (await feed.settle([other], lease_s=LEASE_S))[0]
    assert settled is not None
    assert (settled.total, settled.lease, settled.is_last) == (10, 90, True)
    await sql("UPDATE usage_shares SET expires_at = now() - interval '1 second' WHERE instance = $1", dead)
    settled = (await feed.settle([other], lease_s=LEASE_S))[0]
    feed.close()
    assert settled is not None
    assert (settled.total, settled.lease, settled.is_last) == (10, 500, False)


async def test_many_projects_are_told_in_one_turn_by_instances_that_work_at_once(
    store: ControlStore, sql: Any, make_quotas: MakeQuotas, until: Any
) -> None:
    await sql("INSERT INTO projects (slug, name) SELECT 'p' || n, 'n' FROM generate_series(1, 1200) AS n")
    ids = [project.id for project in await store.list_projects()]
    quotas = [await make_quotas(), await make_quotas()]
    for one in quotas:
        for project_id in ids:
            send(one, project_id, 1_000_000, 3)
    await until(lambda: all(one.unsettled_records == 0 for one in quotas), within_s=10)
    assert {project.used_records for project in await store.list_projects()} == {6}
    assert [one.store_failures for one in quotas] == [0, 0]


async def test_a_project_that_is_gone_holds_up_nobody(
    store: ControlStore, project_id: str, make_quotas: MakeQuotas, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    quotas = await make_quotas()
    send(quotas, "00000000-0000-4000-8000-000000000000", 10, 5)
    send(quotas, project_id, 10, 5)
    await until(lambda: quotas.unsettled_records == 0)
    assert await used(store) == 5
    assert "there is no such project" in caplog.text


async def test_missing_tables_are_trouble_with_the_store_and_not_with_the_sender(
    empty_dsn: str, make_quotas: MakeQuotas
) -> None:
    quotas = await make_quotas(empty_dsn)
    assert quotas.store_failures >= 1
    assert send(quotas, "00000000-0000-4000-8000-000000000000", 10, 5) == 5


async def test_a_stop_tells_everything_and_gives_back_the_leases(
    store: ControlStore, project_id: str, sql: Any, make_quotas: MakeQuotas
) -> None:
    quotas = await make_quotas(settle_s=NEVER_S)
    send(quotas, project_id, 100_000, 77)
    await quotas.stop()
    assert await used(store) == 77
    assert [row["leased"] for row in await sql("SELECT leased FROM usage_shares")] == [0]


async def test_checking_and_counting_cost_next_to_nothing(project_id: str) -> None:
    quotas, rounds = Quotas("", kept_path=None), 20_000
    began = time.thread_time()
    for _ in range(rounds):
        quotas.check(project_id, 10**12)
        quotas.count(project_id, 100)
    assert (time.thread_time() - began) / rounds < 20e-6
