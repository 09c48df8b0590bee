"""Disk is given back, and what is moved is neither lost nor there twice."""

from __future__ import annotations

import asyncio
import errno
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.delivery.block import Block, Durability
from gateway.delivery.compaction import Compaction
from gateway.delivery.disk import Disk
from gateway.delivery.ledger import Segment
from gateway.delivery.segments import Frame
from gateway.delivery.spool import Spool
from gateway.delivery.walk import Backlog
from tests.delivery.disks import Medium, Recording, failing
from tests.delivery.rig import until
from tests.delivery.spools import killed, opened, refused
from tests.delivery.test_restarts_of_both import found


async def test_a_block_that_was_done_and_is_written_again_is_found_after_a_kill(tmp_path: Path) -> None:
    """ClickHouse took it and lost it, and all of that in one segment."""

    numbers, spool = opened(tmp_path / "a")
    spool.start()
    await spool.recover()
    block = Block("things", "p", numbers.next(), 10, b"a block", 0.0, durability=Durability.DISK)
    kept: list[Block] = []
    spool.append(block, kept.append, refused)
    await until(lambda: len(kept) == 1, "it is kept")
    spool.done("things", [block])
    spool.revive(block, kept.append)
    await until(lambda: len(kept) == 2, "it is kept again")
    numbers_after, after = opened(killed(tmp_path / "a", tmp_path / "b"))
    backlog, _ = await after.recover()
    assert backlog.rows == {("p", "things"): 10}
    spool.drop(block)
    assert [found.data for found in await spool.load("things", 1 << 20)] == [b"a block"]
    await spool.stop()
    numbers.close()
    numbers_after.close()


@pytest.mark.parametrize("suspect", [False, True])
async def test_rows_that_wait_in_one_file_do_not_keep_all_later_ones(tmp_path: Path, suspect: bool) -> None:
    """Much of the first is left, and each of the others speaks of the one before it."""
    numbers, spool = opened(tmp_path / "a")
    spool.start()
    await spool.recover()
    kept: list[Block] = []

    async def append(size: int) -> Block:
        block = Block("things", "p", numbers.next(), 1, bytes(size), 0.0, durability=Durability.DISK, suspect=suspect)
        spool.append(block, kept.append, refused)
        await until(lambda: block in kept, "it is kept")
        return block

    waits, last = await append(400_000), await append(600_000)
    for _ in range(10):
        block = await append(1_000_000)
        spool.done("things", [last])
        last = block
    spool.done("things", [last])
    while True:
        spool.sweep(math.inf)
        if not await spool.compact():
            break
    await until(lambda: len(list(numbers.place.glob("*.seg"))) <= 2, "what nobody needs is given back")
    assert list(spool.ledger.held) == [waits.frame]
    await spool.stop()
    numbers_after, after = opened(killed(tmp_path / "a", tmp_path / "b"))
    backlog, _ = await after.recover()
    assert backlog.frames == 1
    (copy,) = await after.load("things", 1 << 20)
    assert (copy.frame, copy.suspect) == (waits.frame, suspect), "a copy goes under the token of its SEAL as before"
    numbers.close()
    numbers_after.close()


async def test_a_copy_that_could_not_be_synced_of_a_block_that_is_done_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is done while it is copied, and the copy is there all the same."""
    disk = Recording()
    async with sparse(tmp_path / "a", monkeypatch, disk) as (spool, block):
        async with copying(spool, disk):
            spool.done("things", [block])
            disk.fails = failing("sync", errno.EIO)
        await spool.stop()
        after, backlog = await recovered(killed(tmp_path / "a", tmp_path / "b"))
        assert backlog.frames == 1, "the block that was not done"
        assert after.ledger.live_bytes > 900_000


async def test_that_a_copy_is_done_outlives_the_power_as_the_copy_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would be inserted once more, in another batch, which nobody sealed."""
    disk = Medium()
    async with sparse(tmp_path / "a", monkeypatch, disk) as (spool, block):
        async with copying(spool, disk):
            spool.done("things", [block])
        last = Block("things", "q", block.frame + 9, 3, b"a block", 0.0, durability=Durability.OS)
        kept: list[Block] = []
        spool.append(last, kept.append, refused)
        await until(lambda: kept == [last], "what was said before it is written")
        (tmp_path / "b").mkdir()
        assert block.frame in disk.after_a_power_cut(tmp_path / "b" / "slot-00")
        _, backlog = await recovered(tmp_path / "b")
        assert backlog.rows["p", "things"] == 3, "of the block that was not done"


@pytest.mark.parametrize(
    ("settle", "rows", "letters"),
    [
        (lambda spool, block: spool.done("things", [block]), 3, False),
        (lambda spool, block: spool.skip("things", [block], rows=2), 2, True),
        (lambda spool, block: spool.skip("things", [block]), 0, False),
    ],
    ids=["stored", "stored beside a dead letter", "not stored"],
)
async def test_what_became_of_a_block_is_true_of_its_copy(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settle: Callable[[Spool, Block], None],
    rows: int,
    letters: bool,
) -> None:
    """It was settled between being read and being written: what was stored of it is looked after, and no more."""
    read_live, loop = Compaction._read_live, asyncio.get_running_loop()

    async with sparse(tmp_path / "a", monkeypatch, Recording()) as (spool, block):

        def read_and_settle(compaction: Compaction, segment: Segment) -> list[tuple[Frame, bytes]]:
            live = read_live(compaction, segment)
            loop.call_soon_threadsafe(settle, spool, block)
            return live

        monkeypatch.setattr(Compaction, "_read_live", read_and_settle)
        assert await spool.compact()
        await spool.stop()
        done = await found(killed(tmp_path / "a", tmp_path / "b"))
        assert {each for each in done if each[0] == block.frame} == ({(block.frame, rows, letters)} if rows else set())
        _, backlog = await recovered(tmp_path / "b")
        assert backlog.frames == 1, "the block that was not settled"


@asynccontextmanager
async def sparse(directory: Path, monkeypatch: pytest.MonkeyPatch, disk: Disk) -> AsyncIterator[tuple[Spool, Block]]:
    """A spool with little left in its first segment, and what that is."""
    monkeypatch.setattr("gateway.delivery.compaction.SPARSE_SEGMENTS_MIN", 0)
    numbers, spool = opened(directory, disk)
    spool.start()
    await spool.recover()
    sizes = (900_000, 10, 900_000)
    blocks = [Block("things", "p", numbers.next(), 3, bytes(size), 0.0, durability=Durability.DISK) for size in sizes]
    kept: list[Block] = []
    for block in blocks:
        spool.append(block, kept.append, refused)
    await until(lambda: len(kept) == 3, "they are kept")
    spool.done("things", blocks[:1])
    try:
        yield spool, blocks[1]
    finally:
        await spool.stop()
        numbers.close()


@asynccontextmanager
async def copying(spool: Spool, disk: Recording) -> AsyncIterator[None]:
    """A copy is written and not synced yet; behind this it is."""
    disk.go.clear()
    disk.held.clear()
    compacting = asyncio.create_task(spool.compact())
    try:
        await until(disk.held.is_set, "the copy is being synced")
        yield
    finally:
        disk.go.set()
    assert await compacting


async def recovered(directory: Path) -> tuple[Spool, Backlog]:
    """What a start makes of it, and what it finds to be delivered."""
    numbers, spool = opened(directory)
    backlog, _ = await spool.recover()
    numbers.close()
    return spool, backlog
