"""Disk is given back, and what is moved is neither lost nor there twice."""

from __future__ import annotations

import asyncio
import errno
import math
from pathlib import Path

import pytest

from gateway.delivery.block import Block, Durability
from tests.delivery.disks import Recording, failing
from tests.delivery.rig import until
from tests.delivery.spools import killed, opened, refused


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
    monkeypatch.setattr("gateway.delivery.compaction.SPARSE_SEGMENTS_MIN", 0)
    disk = Recording()
    numbers, spool = opened(tmp_path / "a", disk)
    spool.start()
    await spool.recover()
    sizes = (900_000, 10, 900_000)
    blocks = [Block("things", "p", numbers.next(), 1, bytes(size), 0.0, durability=Durability.DISK) for size in sizes]
    kept: list[Block] = []
    for block in blocks:
        spool.append(block, kept.append, refused)
    await until(lambda: len(kept) == 3, "they are kept")
    spool.done("things", blocks[:1])
    disk.go.clear()
    disk.held.clear()
    compacting = asyncio.create_task(spool.compact())
    await until(disk.held.is_set, "the copy is being synced")
    spool.done("things", blocks[1:2])
    disk.fails = failing("sync", errno.EIO)
    disk.go.set()
    assert await compacting
    await spool.stop()
    numbers_after, after = opened(killed(tmp_path / "a", tmp_path / "b"))
    backlog, _ = await after.recover()
    assert backlog.frames == 1, "the block that was not done"
    assert after.ledger.live_bytes > 900_000
    numbers.close()
    numbers_after.close()
