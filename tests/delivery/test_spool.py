"""What was acknowledged is on disk, survives the process, and reaches ClickHouse once."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway._native import crc32c
from gateway.delivery.adoption import adopt
from gateway.delivery.block import Block, Durability
from gateway.delivery.disk import Disk
from gateway.delivery.frames import FrameNumbers
from gateway.delivery.ledger import Ledger
from gateway.delivery.segments import Frame, Kind, Place, SegmentName, SegmentReader, header, segment_name
from gateway.errors import Overloaded
from tests.delivery.conftest import OpenRig
from tests.delivery.disks import Recording, failing
from tests.delivery.rig import UNDER_WAY_S, Engine, Rig, answered, rig, until, until_it
from tests.delivery.spools import killed, opened, refused
from tests.delivery.things import numbered, things, write
from tests.support.proxy import Fault

REQUEST_BYTES = 20_000
AWAY = [answered(503)] * 1_000_000


async def kept(rig: Rig, numbers: Sequence[int], **how: object) -> None:
    """Send, and wait for the receipt."""
    await rig.send(numbers, **how).wait()  # type: ignore[arg-type]


async def test_what_was_acknowledged_before_a_kill_is_delivered_after_it(engine: Engine, tmp_path: Path) -> None:
    async with rig(engine, tmp_path / "a", plan=AWAY) as before:
        for start in range(0, 5_000, 100):
            await kept(before, range(start, start + 100), project=f"p{start % 700}")
        copy = killed(tmp_path / "a", tmp_path / "b")
        async with rig(engine, copy, database=before.direct.database) as after:
            await after.flush()
            assert await after.stored() == list(range(5_000))
            assert after.metrics.rows_recovered.values == {("things",): 5_000}
            after.check_counters()
            await kept(after, range(5_000, 5_100))
            await after.flush()
            assert await after.stored() == list(range(5_100))


async def test_without_the_spool_they_are_lost(engine: Engine, tmp_path: Path) -> None:
    """The positive control: what is promised memory alone is not there after a kill."""
    async with rig(engine, tmp_path / "a", plan=AWAY, durability=Durability.MEMORY, disk=Refusing()) as before:
        await kept(before, range(100))
        copy = killed(tmp_path / "a", tmp_path / "b")
        async with rig(engine, copy, database=before.direct.database) as after:
            await after.flush()
            assert await after.stored() == []


async def test_a_kill_between_an_insert_and_its_answer_doubles_nothing(engine: Engine, tmp_path: Path) -> None:
    """The insert was committed, the answer never came: after the restart the same token is sent, and counted."""
    async with rig(engine, tmp_path / "a", plan=[Fault("swallow")] * 100) as before:
        await kept(before, range(1_000))
        await until_it(lambda: has_stored(before, 1_000), "the insert is committed")
        copy = killed(tmp_path / "a", tmp_path / "b")
        async with rig(engine, copy, database=before.direct.database) as after:
            await after.flush()
            assert await after.stored() == list(range(1_000))


async def test_with_a_new_token_after_the_kill_they_are_doubled(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The positive control: the same, with SEALs that nobody heeds."""
    monkeypatch.setattr(Ledger, "is_open", lambda ledger, sealed: False)
    async with rig(engine, tmp_path / "a", plan=[Fault("swallow")] * 100) as before:
        await kept(before, range(1_000))
        await until_it(lambda: has_stored(before, 1_000), "the insert is committed")
        copy = killed(tmp_path / "a", tmp_path / "b")
        async with rig(engine, copy, database=before.direct.database) as after:
            await after.flush()
            assert len(await after.stored()) == 2_000


async def test_stored_rows_are_not_delivered_again(engine: Engine, tmp_path: Path) -> None:
    async with rig(engine, tmp_path / "a", audit_ms=60_000.0) as before:
        await kept(before, range(1_000))
        await before.flush()
        await before.delivery.stop(5.0)
        copy = killed(tmp_path / "a", tmp_path / "b")
        async with rig(engine, copy, database=before.direct.database) as after:
            await after.flush()
            assert after.metrics.rows_recovered.values == {}
            assert after.proxy.seen == 0, "nothing was asked"


async def test_the_room_that_a_crash_has_left_is_given_back(engine: Engine, tmp_path: Path) -> None:
    """Or crash after crash would fill the disk, and each start read all of it."""
    database, directory = "", tmp_path / "0"
    for crash in range(5):
        async with rig(engine, directory, plan=AWAY, segment_bytes=1 << 20, database=database) as before:
            await before.delivery._spool.recovered.wait()
            await kept(before, range(100 * crash, 100 * crash + 100))
            database = before.direct.database
            sizes = sorted(path.stat().st_size for path in before.frames.place.glob("*.seg"))
            assert len(sizes) == crash + 1
            assert sizes[-1] == 1 << 20, "the one that is written"
            assert all(size < 16 << 10 for size in sizes[:-1]), sizes
            assert before.delivery._spool.described()["disk_bytes"] == sum(sizes)
            directory = killed(directory, tmp_path / str(crash + 1))
    async with rig(engine, directory, database=database) as after:
        await after.flush()
        assert await after.stored() == list(range(500))
        after.check_counters()


async def test_over_its_memory_rows_stay_on_disk_and_arrive_all_the_same(open_rig: OpenRig) -> None:
    async with open_rig(ring_bytes_max=1 << 20, block_bytes=8 << 10, batch_bytes=64 << 10, plan=AWAY) as rig:
        sent = 0
        while rig.delivery.buffers()["spool"]["bytes"] < 4 << 20:  # type: ignore[index]
            await kept(rig, range(sent, sent + 200), body=f"a thing {sent * 7919} that is long enough " * 4)
            sent += 200
            assert rig.held_bytes() <= 1 << 20
        rig.check_counters()
        rig.proxy.plan.clear()
        await rig.flush()
        assert await rig.stored() == list(range(sent))
        rig.check_counters()
        await until(lambda: rig.held_bytes() == 0, "everything is released")


async def test_what_is_loaded_leaves_room_for_what_is_sent(open_rig: OpenRig) -> None:
    """A batch may be as large as the ring; what is loaded while ClickHouse is away stays for as long as that lasts."""
    async with open_rig(shards=1, ring_bytes_max=1 << 20, block_bytes=8 << 10, batch_bytes=1 << 20, plan=AWAY) as rig:
        [ring] = rig.delivery._rings
        for held in (0, 300 << 10, 700 << 10, 900 << 10):
            ring.held_bytes += held
            assert held + max(0, rig.delivery._wanted_bytes("things")) <= max(held, 768 << 10)
            ring.held_bytes -= held
        assert rig.delivery._wanted_bytes("things") == 768 << 10


async def test_segments_go_when_their_rows_are_stored(open_rig: OpenRig) -> None:
    async with open_rig(segment_bytes=64 << 10) as rig:
        for start in range(0, 20_000, 200):
            await kept(rig, range(start, start + 200), body=f"{start * 7919:x} " * 20)
        await rig.flush()
        place = rig.frames.place
        await until(lambda: len(list(place.glob("*.seg"))) <= 1, "only the active segment is left")
        assert await rig.stored() == list(range(20_000))


async def test_a_full_spool_refuses_first_who_takes_most_and_recovers(open_rig: OpenRig) -> None:
    async with open_rig(spool_bytes_max=1 << 20, segment_bytes=64 << 10, batch_bytes=64 << 10, plan=AWAY) as rig:
        sent = 0
        while welcome(rig, "loud"):
            await kept(rig, range(sent, sent + 10), project="loud", body=noise(sent))
            sent += 10
        await kept(rig, range(sent, sent + 10), project="quiet")
        with pytest.raises(Overloaded) as refusal:
            rig.delivery.rows("loud", REQUEST_BYTES)
        assert refusal.value.retry_after_s
        rig.proxy.plan.clear()
        await rig.flush()
        assert await rig.stored() == list(range(sent + 10))
        await until(lambda: welcome(rig, "loud"), "there is room again")


@pytest.mark.parametrize("level", list(Durability))
async def test_a_receipt_waits_for_what_was_promised(open_rig: OpenRig, level: Durability) -> None:
    disk = Gated()
    async with open_rig(disk=disk, durability=level, plan=[answered(503)] * 3, insert_timeout_s=1.0) as rig:
        disk.holds = {Durability.OS: "write", Durability.DISK: "sync"}.get(level, "")
        receipt = rig.send(range(10))
        waiting = asyncio.ensure_future(receipt.wait())
        if level in (Durability.OS, Durability.DISK):
            await until(disk.is_held, "the disk is asked")
            assert not waiting.done()
            disk.let_go()
        elif level == Durability.STORED:
            await until(lambda: rig.proxy.seen > 0, "the insert is under way")
            assert not waiting.done()
        await waiting
        assert receipt.durability == level.word


async def test_a_receipt_for_stored_rows_says_disk_when_storing_takes_too_long(open_rig: OpenRig) -> None:
    async with open_rig(durability=Durability.STORED, stored_ms_max=30.0, plan=AWAY) as rig:
        receipt = rig.send(range(10))
        await receipt.wait()
        assert receipt.durability == "disk"
        rig.proxy.plan.clear()
        await rig.flush()


async def test_what_cannot_be_synced_is_refused_and_never_delivered(engine: Engine, tmp_path: Path) -> None:
    disk = Failing()
    async with rig(engine, tmp_path / "a", disk=disk) as before:
        await kept(before, range(100))
        await before.flush()
        for start in (100, 200):
            disk.fails = 1
            with pytest.raises(Overloaded):
                await kept(before, range(start, start + 100))
        await kept(before, range(300, 400))
        await before.flush()
        expected = [*range(100), *range(300, 400)]
        assert await before.stored() == expected
        before.check_counters()
        assert before.metrics.rows_refused.values == {("things",): 200}
        await before.delivery.stop(5.0)
        copy = killed(tmp_path / "a", tmp_path / "b")
        async with rig(engine, copy, database=before.direct.database) as after:
            await after.flush()
            assert await after.stored() == expected
    assert disk.touched_after_failure == 0


async def test_a_damaged_frame_is_lost_alone_and_counted(engine: Engine, tmp_path: Path) -> None:
    async with rig(engine, tmp_path / "a", plan=AWAY) as before:
        for start in range(0, 1_000, 100):
            await kept(before, range(start, start + 100))
        copy = killed(tmp_path / "a", tmp_path / "b")
        segment = next(copy.rglob("*.seg"))
        data = bytearray(segment.read_bytes())
        at = data_starts(segment)[3] + 80
        data[at] ^= 0x10
        segment.write_bytes(data)
        async with rig(engine, copy, database=before.direct.database) as after:
            await after.flush()
            stored = await after.stored()
            assert len(stored) == 900
            assert set(range(1_000)) - set(stored) == set(range(300, 400))
            assert after.metrics.rows_damaged.values == {("things",): 100}
            after.check_counters()
            assert list(copy.rglob("quarantine/*"))


async def test_rows_whose_later_seal_is_damaged_are_not_doubled_under_the_earlier_one(
    engine: Engine, tmp_path: Path
) -> None:
    """Nothing came of the first token, so they were inserted under another one; and all that was said of it is gone."""
    async with rig(engine, tmp_path / "a", plan=AWAY) as before:
        await kept(before, range(1_000))
        await until(lambda: bool(seals(before.frames.place)), "it is sealed")
        sealed, database = killed(tmp_path / "a", tmp_path / "b"), before.direct.database
        later = shutil.copytree(sealed, tmp_path / "c")
        for path, place in seals(later):
            struck(path, place.offset + 4)
        async with rig(engine, later, database=database) as under_another_token:
            await under_another_token.flush()
            assert await under_another_token.stored() == list(range(1_000))
        for path, place in seals(sealed):
            struck(path, place.offset + place.bytes)  # what stood behind it
        async with rig(engine, sealed, database=database) as after:
            await after.flush()
            assert await after.stored() == list(range(1_000))


async def test_where_a_part_is_there_the_rest_is_inserted_when_nothing_can_be_under_way(
    engine: Engine, tmp_path: Path
) -> None:
    """Under a new token, so a rest of the old one must not come after it."""
    async with rig(engine, tmp_path / "a", plan=AWAY) as before:
        await kept(before, range(1_000))
        await until(lambda: bool(seals(before.frames.place)), "it is sealed")
        sealed = killed(tmp_path / "a", tmp_path / "b")
        for path, place in seals(sealed):
            struck(path, place.offset + place.bytes)
        part = shutil.copytree(sealed, tmp_path / "c")
        async with rig(engine, part, database=before.direct.database) as first:
            await first.flush()
        await before.run(
            f"ALTER TABLE `{before.direct.database}`.things DELETE WHERE Number < 300 SETTINGS mutations_sync = 2"
        )
        began = time.monotonic()
        async with rig(engine, sealed, database=before.direct.database) as after:
            await after.flush()
            assert await after.stored() == list(range(1_000))
        assert time.monotonic() - began >= UNDER_WAY_S


def seals(directory: Path) -> list[tuple[Path, Place]]:
    """Where the SEALs below a directory are."""
    found = []
    for path in directory.rglob("*.seg"):
        name = segment_name(path)
        assert name is not None
        with SegmentReader(path, name) as reader:
            frames = [one for one in reader.frames() if isinstance(one, Frame)]
            found += [(path, frame.place) for frame in frames if frame.kind == Kind.SEAL]
    return found


def struck(path: Path, at: int) -> None:
    """One bit of a file is another one."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


async def test_a_parked_table_does_not_keep_the_disk_of_the_others(engine: Engine, tmp_path: Path) -> None:
    both = (things(), things("others"))
    async with rig(engine, tmp_path / "a", tables=both, segment_bytes=64 << 10) as rig_:
        await rig_.run(f"DROP TABLE `{rig_.direct.database}`.others")
        for start in range(0, 1_000, 5):
            await kept(rig_, range(start, start + 5), body=noise(start))
            await kept(rig_, [start], table="others", project=f"p{start % 7}")
        copy = tmp_path / "b"
        # What is stored behind the copy's back would be stored by both.
        await until(lambda: rig_.metrics.rows_stored.values.get(("things",)) == 1_000, "the others are stored")
        await until(lambda: files(rig_) <= 8, "what the parked rows do not need is given back")
        killed(tmp_path / "a", copy)
        await rig_.delivery.stop(0.0)
        await rig_.direct.create_tables(both, retention_days=0)
        async with rig(engine, copy, tables=both, database=rig_.direct.database) as after:
            await after.flush()
            assert await after.stored() == list(range(1_000))
            assert await after.stored("others") == list(range(0, 1_000, 5))
            after.check_counters()


async def test_without_compaction_it_would(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive control."""
    monkeypatch.setattr("gateway.delivery.compaction.SPARSE_SEGMENTS_MIN", 1 << 30)
    both = (things(), things("others"))
    async with rig(engine, tmp_path / "a", tables=both, segment_bytes=64 << 10) as rig_:
        await rig_.run(f"DROP TABLE `{rig_.direct.database}`.others")
        for start in range(0, 1_000, 5):
            await kept(rig_, range(start, start + 5), body=noise(start))
            await kept(rig_, [start], table="others")
        await until(lambda: rig_.metrics.rows_stored.values.get(("things",)) == 1_000, "the others are stored")
        assert files(rig_) > 8


async def test_a_segment_of_a_later_version_is_left_alone(engine: Engine, tmp_path: Path) -> None:
    """Its rows wait for a Weir that can read them; those of the others arrive."""
    async with rig(engine, tmp_path / "a", plan=AWAY) as before:
        await kept(before, range(100))
        copy = killed(tmp_path / "a", tmp_path / "b")
    place = copy / "slot-00"
    strange = place / SegmentName(9, 9).file
    start = header(SegmentName(9, 9), 0)
    start = start[:8] + b"\xff" + start[9:60]
    strange.write_bytes(start + crc32c(start).to_bytes(4, "little") + b"whatever" * 100)
    whole = strange.read_bytes()
    async with rig(engine, copy) as after:
        await after.flush()
        assert await after.stored() == list(range(100))
        await until(lambda: files(after) <= 2, "what is delivered is given back")
        assert strange.read_bytes() == whole


async def test_rows_of_a_table_that_comes_later_wait_for_it(engine: Engine, tmp_path: Path) -> None:
    both = (things(), things("others"))
    async with rig(engine, tmp_path / "a", tables=both, plan=AWAY) as before:
        await kept(before, range(100), table="others")
        copy = killed(tmp_path / "a", tmp_path / "b")
        async with rig(engine, copy, database=before.direct.database) as after:
            await until(lambda: bool(after.metrics.rows_recovered.values), "the spool is looked through")
            after.delivery.add_table(both[1])
            await after.flush()
            assert await after.stored("others") == list(range(100))


async def test_a_slot_nobody_works_on_is_adopted(engine: Engine, tmp_path: Path) -> None:
    async with rig(engine, tmp_path / "a", plan=[Fault("swallow")] * 100) as before:
        await kept(before, range(1_000))
        await until_it(lambda: has_stored(before, 1_000), "the insert is committed")
        killed(tmp_path / "a", tmp_path / "b")
        orphan = tmp_path / "b" / "slot-00"
        orphan.rename(tmp_path / "b" / "slot-03")
        numbers = FrameNumbers(tmp_path / "b")
        assert adopt(numbers, 3) == 1
        assert adopt(numbers, 7) == 0, "there is no such slot"
        numbers.close()
        async with rig(engine, tmp_path / "b", database=before.direct.database) as after:
            await after.flush()
            assert await after.stored() == list(range(1_000))
            assert after.metrics.rows_recovered.values == {("things",): 1_000}
            after.check_counters()


def test_a_slot_somebody_works_on_is_not(tmp_path: Path) -> None:
    other, numbers = FrameNumbers(tmp_path, slot=1), FrameNumbers(tmp_path)
    (other.place / SegmentName(1, other.next()).file).write_bytes(b"")
    assert adopt(numbers, 1) == 0
    other.close()
    assert adopt(numbers, 1) == 1
    numbers.close()


def noise(seed: int) -> str:
    """A text that hardly compresses."""
    return random.Random(seed).randbytes(4_000).hex()


def files(rig: Rig) -> int:
    """Segments of a rig's spool."""
    return len(list(rig.frames.place.glob("*.seg")))


def data_starts(segment: Path) -> list[int]:
    """Where the blocks of a segment are."""
    name = segment_name(segment)
    assert name is not None
    with SegmentReader(segment, name) as reader:
        found = reader.frames()
        return [each.place.offset for each in found if isinstance(each, Frame) and each.kind == Kind.DATA]


class Refusing(Disk):
    """A disk without room."""

    def create(self, path: Path, size: int) -> int:
        raise OSError(errno.ENOSPC, "no room", str(path))


class Gated(Disk):
    """A disk that holds up writes or syncs until it is let go."""

    def __init__(self) -> None:
        self.holds = ""
        self._held = threading.Event()
        self._gate = threading.Event()

    def write(self, descriptor: int, buffers: Sequence[bytes], offset: int) -> None:
        self._pass("write")
        super().write(descriptor, buffers, offset)

    def sync(self, descriptor: int) -> None:
        self._pass("sync")
        super().sync(descriptor)

    def is_held(self) -> bool:
        return self._held.is_set()

    def let_go(self) -> None:
        self.holds = ""
        self._gate.set()

    def _pass(self, what: str) -> None:
        if self.holds == what:
            self._held.set()
            self._gate.wait(20.0)


class Failing(Disk):
    """A disk whose next ``fails`` syncs of data fail, and which remembers what is done to a file after that."""

    def __init__(self) -> None:
        self.fails = 0
        self.touched_after_failure = 0
        self._failed: set[int] = set()
        self._written = 0

    def create(self, path: Path, size: int) -> int:
        descriptor = super().create(path, size)
        self._failed.discard(descriptor)
        return descriptor

    def write(self, descriptor: int, buffers: Sequence[bytes], offset: int) -> None:
        self.touched_after_failure += descriptor in self._failed
        self._written = sum(map(len, buffers))
        super().write(descriptor, buffers, offset)

    def sync(self, descriptor: int) -> None:
        self.touched_after_failure += descriptor in self._failed
        if self.fails and self._written > 600:
            self.fails -= 1
            self._failed.add(descriptor)
            raise OSError(errno.EIO, "the disk has failed")
        super().sync(descriptor)


async def has_stored(rig: Rig, rows: int) -> bool:
    return len(await rig.stored()) == rows


def welcome(rig: Rig, project: str) -> bool:
    try:
        with rig.delivery.rows(project, REQUEST_BYTES):
            return True
    except Overloaded:
        return False


@pytest.mark.parametrize("failed", ["first", "second"])
async def test_a_request_for_two_tables_is_refused_for_both_or_stored_in_both(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed: str
) -> None:
    """One of its blocks cannot be synced: where the other is kept already it is written again."""
    monkeypatch.setattr("gateway.delivery.writer.GROUP_BYTES_MAX", 1)
    monkeypatch.setattr("gateway.delivery.spool.AGAIN_S", 0.01)
    disk = Recording()
    async with rig(engine, tmp_path / "a", tables=(things(), things("others")), disk=disk) as rig_:
        disk.go.clear()
        before = rig_.send([0])
        await until(disk.held.is_set, "the disk is held")
        try:
            with rig_.delivery.rows("p", 1_000) as rows:
                for table in ("things", "others"):
                    write(rows.columns(table), numbered([1]))
                receipt = rows.commit()
            await until(lambda: not any(uncut(rig_).values()), "they are cut")
            disk.fails = failing("sync", errno.EIO, after=1 if failed == "first" else 2)
        finally:
            disk.go.set()
        await before.wait()
        if failed == "first":
            with pytest.raises(Overloaded):
                await receipt.wait()
            await until(lambda: rig_.metrics.rows_refused.values == {("things",): 1, ("others",): 1}, "both are")
        else:
            await receipt.wait()
        await rig_.flush()
        there = [1] if failed == "second" else []
        assert (await rig_.stored(), await rig_.stored("others")) == ([0, *there], there)
        rig_.check_counters()
        await rig_.delivery.stop(5.0)
        async with rig(
            engine, killed(tmp_path / "a", tmp_path / "b"), tables=(things(), things("others")), plan=AWAY
        ) as after:
            await until(after.delivery._spool.recovered.is_set, "the spool is looked through")
            assert after.metrics.rows_recovered.values == {}


async def test_rows_that_were_promised_no_sync_outlive_one_that_fails(engine: Engine, tmp_path: Path) -> None:
    """They were acknowledged when they were written, in one group with rows that are refused when the sync fails."""
    disk = Recording()
    async with rig(engine, tmp_path, disk=disk) as rig_:
        disk.go.clear()
        first = rig_.send([0])
        await until(disk.held.is_set, "the disk is held")
        try:
            synced = rig_.send([1], project="synced")
            with rig_.delivery.rows("written", 64, "os") as rows:
                write(rows.columns("things"), numbered([2]))
                written = rows.commit()
            await until(lambda: not any(uncut(rig_).values()), "they are cut")
            disk.fails = failing("sync", errno.EIO, after=1)
        finally:
            disk.go.set()
        await first.wait()
        await written.wait()
        with pytest.raises(Overloaded):
            await synced.wait()
        await rig_.flush()
        assert await rig_.stored() == [0, 2]
        assert rig_.metrics.rows_refused.values == {("things",): 1}
        rig_.check_counters()


def uncut(rig: Rig) -> dict[str, int]:
    """Rows that are not cut yet, per table."""
    shards: Any = rig.delivery.buffers()["shards"]
    return {table: rows for shard in shards for table, rows in shard["rows_open"].items()}


async def test_a_segment_that_cannot_be_read_keeps_no_other_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers, spool = opened(tmp_path / "a")
    spool.start()
    await spool.recover()
    blocks = [Block("things", "p", numbers.next(), 1, bytes(700_000), 0.0) for _ in range(4)]
    kept: list[Block] = []
    for block in blocks:
        spool.append(block, kept.append, refused)
    await until(lambda: len(kept) == 4, "they are kept")
    numbers_after, after = opened(killed(tmp_path / "a", tmp_path / "b"))
    await after.recover()
    pread, bad = os.pread, sorted((tmp_path / "b").rglob("*.seg"))[0].stat()

    def on_a_bad_disk(descriptor: int, length: int, offset: int) -> bytes:
        if os.path.samestat(os.fstat(descriptor), bad):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", on_a_bad_disk)
    assert [block.frame for block in await after.load("things", 8 << 20)] == [block.frame for block in blocks[1:]]
    assert await after.load("things", 8 << 20) == []
    monkeypatch.undo()
    assert [block.frame for block in await after.load("things", 8 << 20)] == [blocks[0].frame]
    await spool.stop()
    numbers.close()
    numbers_after.close()
