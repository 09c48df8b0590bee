"""Buffers hold what they may and no more, whole requests or nothing, and say when to come back."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from gateway._native import Columns
from gateway.delivery import Settings
from gateway.delivery.batch import TURN_BYTES, Queue
from gateway.delivery.block import Block
from gateway.delivery.ring import SMALL_BYTES, SMALL_SPARE_MAX
from gateway.errors import Draining, Overloaded, TooLarge
from tests.delivery.conftest import OpenRig
from tests.delivery.rig import Rig, answered, until
from tests.delivery.things import THINGS, numbered, things, write
from tests.support.proxy import Fault


def full(rig: Rig, numbers: int = 500) -> int:
    """Send requests until one is refused; returns how many numbers were accepted."""
    start = len(rig.sent)
    while True:
        try:
            rig.send(range(len(rig.sent), len(rig.sent) + numbers))
        except Overloaded as error:
            refusal = error
            break
    assert refusal.retry_after_s is not None
    assert 1 <= refusal.retry_after_s <= 10
    return len(rig.sent) - start


async def test_full_rings_refuse_and_go_on_once_the_server_is_back(open_rig: OpenRig) -> None:
    async with open_rig(ring_bytes_max=300_000, block_bytes=30_000, batch_bytes=50_000) as rig:
        rig.proxy.plan.extend([answered(503)] * 1_000_000)
        for _ in range(20):
            full(rig)
            assert rig.held_bytes() <= 300_000
            rig.check_counters()
            await until(lambda: not rig.rows_open(), "all blocks are cut, which makes room")
        assert len(rig.sent) > 1000
        rig.proxy.plan.clear()
        await rig.flush()
        rig.send(range(len(rig.sent), len(rig.sent) + 100))
        await rig.flush()
        assert await rig.stored() == list(range(len(rig.sent)))
        assert rig.held_bytes() == 0


async def test_without_the_bound_the_rings_would_hold_more(open_rig: OpenRig) -> None:
    """The positive control: the same load against a larger ring goes over the bound above."""
    async with open_rig(ring_bytes_max=3_000_000, block_bytes=30_000) as rig:
        rig.proxy.plan.extend([answered(503)] * 1_000_000)
        full(rig)
        assert rig.held_bytes() > 300_000
        rig.proxy.plan.clear()


async def test_a_request_that_never_fits_is_too_large(plain: Rig) -> None:
    with pytest.raises(TooLarge), plain.delivery.rows("p", 9 << 20):
        pass
    assert plain.held_bytes() == 0


async def test_a_request_that_comes_to_more_than_it_said_is_taken_back(open_rig: OpenRig) -> None:
    async with open_rig(ring_bytes_max=300_000, block_bytes=70_000) as rig:
        rig.send(range(10))
        before = rig.held_bytes()
        with rig.delivery.rows("p", 100) as rows:
            columns = rows.columns("things")
            untouched = columns.native()
            write(columns, numbered(range(20_000)))
            with pytest.raises(TooLarge):
                rows.commit()
        assert columns.native() == untouched
        assert rig.held_bytes() == before
        rig.check_counters()
        await rig.flush()
        assert await rig.stored() == list(range(10))


async def test_the_wait_is_estimated_from_how_fast_the_ring_drains(open_rig: OpenRig) -> None:
    now = 100.0
    async with open_rig(ring_bytes_max=1_000_000, block_bytes=30_000, clock=lambda: now) as rig:
        ring = rig.delivery._rings[0]
        with rig.delivery.rows("p", 1_000_000):
            assert _refused(rig, 1000) == 10, "nothing has ever left: nobody knows, so long"
        ring._drain.add(400_000)
        now += 2.0
        with rig.delivery.rows("p", 1_000_000):
            assert _refused(rig, 1000) == 1
            assert _refused(rig, 1_000_000) == 5, "1 MB at 200 kB/s"
        now += 1000.0
        with rig.delivery.rows("p", 1_000_000):
            assert _refused(rig, 1_000_000) == 10, "it has stalled"


def _refused(rig: Rig, expected_bytes: int) -> int | None:
    with pytest.raises(Overloaded) as caught, rig.delivery.rows("q", expected_bytes):
        pass
    return caught.value.retry_after_s


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, KeyboardInterrupt])
async def test_whatever_breaks_a_request_leaves_the_columns_byte_equal(plain: Rig, error: type[BaseException]) -> None:
    plain.send(range(10))
    before = plain.held_bytes()
    with pytest.raises(error), plain.delivery.rows("p", 5000) as rows:  # noqa: PT012 - it is the body that breaks
        columns = rows.columns("things")
        untouched = columns.native()
        write(columns, numbered(range(90, 100)), body="never seen")
        assert columns.native() != untouched
        raise error
    assert columns.native() == untouched
    assert plain.held_bytes() == before
    plain.check_counters()
    await plain.flush()
    assert await plain.stored() == list(range(10))


async def test_a_request_left_without_commit_leaves_nothing(plain: Rig) -> None:
    with plain.delivery.rows("p", 5000) as rows:
        write(rows.columns("things"), numbered(range(10)))
    assert plain.held_bytes() == 0
    await plain.flush()
    assert await plain.stored() == []


async def test_one_request_feeds_several_tables_or_none(open_rig: OpenRig) -> None:
    async with open_rig(tables=(THINGS, things("others"))) as rig:
        for keep in (True, False):
            with rig.delivery.rows("p", 5000) as rows:
                write(rows.columns("things"), numbered(range(10)))
                write(rows.columns("others"), numbered(range(5)))
                assert rows.columns("things").rows == (10 if keep else 20)
                if keep:
                    rows.commit()
        await rig.flush()
        assert (await rig.stored(), await rig.stored("others")) == (list(range(10)), list(range(5)))


async def test_two_requests_cannot_write_into_the_same_columns_at_once(plain: Rig) -> None:
    with plain.delivery.rows("p", 100) as first, plain.delivery.rows("p", 100) as second:
        first.columns("things")
        with pytest.raises(RuntimeError, match="at once"):
            second.columns("things")
        write(first.columns("things"), numbered(range(3)))
        first.commit()
        write(second.columns("things"), numbered(range(3, 6)))
        second.commit()
    await plain.flush()
    assert await plain.stored() == list(range(6))


async def test_columns_held_over_the_timer_are_not_cut_under_the_request(plain: Rig) -> None:
    """It is a fault of the caller to await here; still nothing half-written may go out."""
    with plain.delivery.rows("p", 100) as rows:
        write(rows.columns("things"), numbered(range(3)))
        plain.send(range(3, 6), project="q")
        await until(lambda: len(plain.frames.given) > 0, "the other project's columns are cut")
        assert rows.columns("things").rows == 3
    await plain.flush()
    assert await plain.stored() == [3, 4, 5]


async def test_a_large_request_writes_apart_and_arrives_whole(plain: Rig) -> None:
    plain.send(range(10))
    with plain.delivery.rows_apart("p", 100_000) as rows:
        await asyncio.to_thread(lambda: write(rows.columns("things"), numbered(range(100, 5_000))))
        plain.send(range(10, 20))  # meanwhile: the columns are not shared
        await rows.cut()
        receipt = rows.commit()
    await receipt.wait()
    plain.check_counters()
    await plain.flush()
    assert await plain.stored() == [*range(20), *range(100, 5_000)]
    assert plain.held_bytes() == 0


async def test_a_large_request_without_commit_leaves_nothing(plain: Rig) -> None:
    with plain.delivery.rows_apart("p", 100_000) as rows:
        await asyncio.to_thread(lambda: write(rows.columns("things"), numbered(range(100))))
        await rows.cut()
    assert plain.held_bytes() == 0
    plain.check_counters()
    await plain.flush()
    assert await plain.stored() == []


async def test_a_table_nobody_declared_is_a_fault(plain: Rig) -> None:
    with pytest.raises(LookupError, match="nobodys"), plain.delivery.rows("p", 100) as rows:
        rows.columns("nobodys")


async def test_open_columns_and_spares_are_bounded(open_rig: OpenRig) -> None:
    async with open_rig(open_columns_max=8, spare_columns_max=4) as rig:
        ring = rig.delivery._rings[0]
        for number in range(100):
            rig.send([number], project=f"p{number}")
            assert len(ring._open) <= 8
        await rig.flush()
        assert len(ring._open) == 0
        stock = rig.delivery._stocks["things"]
        assert len(stock._spare) <= SMALL_SPARE_MAX
        for grown_to_bytes, spares in ((SMALL_BYTES + 1, 4), (SMALL_BYTES, SMALL_SPARE_MAX)):
            stock._spare.clear()
            for _ in range(2 * SMALL_SPARE_MAX):
                stock.give(Columns(THINGS.layout), grown_to_bytes)
            assert len(stock._spare) == spares
        assert not rig.delivery._flushers[0]._queues["things"].blocks
        assert await rig.stored() == list(range(100))


async def test_rows_that_cannot_be_cut_now_are_cut_later(plain: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [OSError("no space for a new epoch")] * 3
    number = plain.frames.next

    def failing() -> int:
        if failures:
            raise failures.pop()
        return number()

    monkeypatch.setattr(plain.frames, "next", failing)
    plain.send(range(10))
    await plain.flush()
    assert not failures
    assert await plain.stored() == list(range(10))
    plain.check_counters()


async def test_a_stop_says_what_waits_in_the_spool(open_rig: OpenRig, caplog: pytest.LogCaptureFixture) -> None:
    async with open_rig() as rig:
        rig.proxy.plan.extend([Fault("half_open")] * 10)
        rig.send(range(123))
        with caplog.at_level(logging.WARNING):
            assert await rig.delivery.stop(0.05) == {}
        assert "things: 123 rows wait in the spool" in caplog.text
        with pytest.raises(Draining):
            rig.delivery.rows("p", 1)
        rig.check_counters()


async def test_a_stop_stores_what_was_accepted(open_rig: OpenRig) -> None:
    async with open_rig(batch_age_ms=60_000.0, block_age_ms=60_000.0) as rig:
        rig.send(range(100))
        assert await rig.delivery.stop(5.0) == {}
        assert await rig.stored() == list(range(100))


async def test_a_flush_waits_for_what_was_accepted_and_not_for_what_comes_after(open_rig: OpenRig) -> None:
    async with open_rig(shards=4, batch_age_ms=60_000.0, block_age_ms=60_000.0) as rig:
        for start in range(0, 1000, 10):
            rig.send(range(start, start + 10), project=f"p{start}")
        await rig.flush()
        assert await rig.stored() == list(range(1000))
        rig.send(range(1000, 1010))
        assert await rig.stored() == list(range(1000))
        rig.check_counters()


def test_projects_take_turns_in_a_batch() -> None:
    queue = Queue(THINGS)
    for frame in range(100):
        queue.add(Block("things", "loud", frame, 10, b"x", float(frame)))
    queue.add(Block("things", "quiet", 100, 10, b"x", 100.0))
    taken = queue.take(40, 1 << 20)
    assert [block.frame for block in taken] == [0, 100, 1, 2]
    assert (queue.rows, queue.data_bytes, queue.since) == (970, 97, 3.0)
    assert list(queue.blocks) == ["loud"], "a project without blocks is forgotten"


def test_a_project_with_giant_blocks_gets_no_more_bytes_than_the_others() -> None:
    queue = Queue(THINGS)
    for number in range(100):
        queue.add(Block("things", "giant", number, 1, bytes(10 * TURN_BYTES), 0.0))
        for project in ("a", "b"):
            for part in range(10):
                queue.add(Block("things", project, 1_000 + 10 * number + part, 1, bytes(TURN_BYTES), 0.0))
    taken_bytes = dict.fromkeys(("giant", "a", "b"), 0)
    for _ in range(20):
        for block in queue.take(1 << 30, 40 * TURN_BYTES):
            taken_bytes[block.project_id] += len(block.data)
    assert max(taken_bytes.values()) - min(taken_bytes.values()) <= 2 * 10 * TURN_BYTES, taken_bytes


def test_a_project_alone_waits_for_nobody() -> None:
    queue = Queue(THINGS)
    for number in range(3):
        queue.add(Block("things", "giant", number, 1, bytes(100 * TURN_BYTES), 0.0))
    assert [block.frame for block in queue.take(1 << 30, 1 << 30)] == [0, 1, 2]


def test_a_block_larger_than_a_batch_goes_alone() -> None:
    queue = Queue(THINGS)
    queue.add(Block("things", "p", 1, 1000, b"x" * 1000, 0.0))
    queue.add(Block("things", "p", 2, 1, b"x", 0.0))
    assert [block.frame for block in queue.take(10, 10)] == [1]
    assert [block.frame for block in queue.take(10, 10)] == [2]
    assert queue.take(10, 10) == []


@pytest.mark.parametrize("wrong", [{"shards": 0}, {"ring_bytes_max": 1 << 18}, {"retry_first_ms": -1}])
def test_settings_that_cannot_work_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"delivery.{next(iter(wrong))}"):
        Settings(**wrong)
