"""Entries are kept in order and safe when they are said to be, whatever the disk does."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.delivery import writer as module
from gateway.delivery.disk import Disk
from gateway.delivery.segments import ROOM_BYTES, Kind, Place, segment_name
from gateway.delivery.writer import RESERVE, Entry, Left, Opened, Writer
from tests.delivery.disks import Medium, Recording, Small, failing, frames
from tests.delivery.rig import until

SEGMENT_BYTES = 256 << 10
RESERVE_BYTES = 128 << 10


@dataclass
class Told:
    """What became of an entry."""

    place: Place | None = None
    error: OSError | None = None
    segment: int | None = None
    times: int = 0

    @property
    def ended(self) -> bool:
        return self.times > 0


@dataclass
class Bench:
    """A writer, and what it told."""

    writer: Writer
    directory: Path
    told: list[Opened | Left] = field(default_factory=list)
    entries: list[Told] = field(default_factory=list)
    order: list[int] = field(default_factory=list)

    def append(self, payload: bytes = b"a block", kind: Kind = Kind.DATA, **more: Any) -> Told:
        """Line an entry up; its number is how many came before."""
        number, told = len(self.entries), Told()
        self.entries.append(told)

        def kept(place: Place) -> None:
            told.place, told.times = place, told.times + 1
            self.order.append(number)

        def failed(error: OSError, segment: int | None) -> None:
            told.error, told.segment, told.times = error, segment, told.times + 1

        self.writer.append(Entry(kind, payload, more.pop("kept", kept), failed, number=number, **more))
        return told

    async def end(self, *entries: Told) -> None:
        """Wait until these, or all, have ended."""
        await until(lambda: all(told.ended for told in entries or self.entries), "every entry ends")

    def files(self) -> list[Path]:
        return sorted(path for path in self.directory.iterdir() if segment_name(path))


def made(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    return directory


async def hold(disk: Recording, bench: Bench) -> Told:
    """Stop at the sync of one entry, so that what comes next gathers in one group."""
    disk.go.clear()
    disk.held.clear()
    first = bench.append()
    await until(disk.held.is_set, "the disk is held")
    return first


@asynccontextmanager
async def writing(
    directory: Path, disk: Disk | None = None, *, start: bool = True, make: Callable[..., Writer] = Writer
) -> AsyncIterator[Bench]:
    told: list[Opened | Left] = []
    writer = make(
        made(directory),
        slot=0,
        ordinal=1,
        segment_id=itertools.count(100).__next__,
        segment_bytes=SEGMENT_BYTES,
        reserve_bytes=RESERVE_BYTES,
        tell=told.append,
        wall=lambda: 1.79e9,
        disk=disk or Disk(),
    )
    bench = Bench(writer, directory, told)
    if start:
        writer.start()
    try:
        yield bench
    finally:
        await writer.stop()


# As it should be ----------------------------------------------------------------------------------


async def test_entries_are_kept_in_order_and_are_where_they_are_said_to_be(tmp_path: Path) -> None:
    async with writing(tmp_path) as bench:
        for number in range(500):
            bench.append(b"x" * (number * 7), table="things", project_id=f"p{number % 3}", rows=number)
        await bench.end()
        assert bench.order == list(range(500))
    found = frames(tmp_path)
    assert {number: frame.place for number, frame in found.items()} == {
        number: told.place for number, told in enumerate(bench.entries)
    }
    assert [found[number].rows for number in range(500)] == list(range(500))


async def test_segments_are_filled_one_after_the_other_and_give_back_what_they_do_not_need(tmp_path: Path) -> None:
    async with writing(tmp_path) as bench:
        for _ in range(20):
            bench.append(bytes(60_000))
        bench.append(bytes(2 * SEGMENT_BYTES))
        await bench.end()
    places = [told.place for told in bench.entries if told.place]
    assert len(places) == 21
    assert [place.segment for place in places] == sorted(place.segment for place in places)
    assert len({place.segment for place in places}) == 6, "four frames in each, and the large one in its own"
    opened = [what.name.id for what in bench.told if isinstance(what, Opened)]
    left = {what.segment: what.bytes for what in bench.told if isinstance(what, Left)}
    assert opened == list(left)
    for path in bench.files():
        name = segment_name(path)
        assert name is not None
        assert path.stat().st_size == left[name.id]
        assert path.stat().st_mode & 0o777 == 0o600


async def test_while_the_disk_syncs_the_next_group_gathers(tmp_path: Path) -> None:
    disk = Recording()
    async with writing(tmp_path, disk) as bench:
        await hold(disk, bench)
        for _ in range(1_000):
            bench.append()
        disk.go.set()
        await bench.end()
        assert disk.count("sync") == 2


async def test_a_group_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_BYTES_MAX", 10_000)
    disk = Recording()
    async with writing(tmp_path, disk) as bench:
        await hold(disk, bench)
        for _ in range(100):
            bench.append(bytes(1_000))
        disk.go.set()
        await bench.end()
        assert disk.count("sync") == 11


async def test_stopping_writes_what_is_lined_up(tmp_path: Path) -> None:
    async with writing(tmp_path, start=False) as bench:
        for _ in range(100):
            bench.append()
        bench.writer.start()
    await bench.end()
    assert len(frames(tmp_path)) == 100


async def test_what_need_not_be_synced_is_synced_when_its_segment_is_left(tmp_path: Path) -> None:
    disk = Medium()
    early: list[int] = []
    async with writing(tmp_path / "a", disk) as bench:
        await bench.end(bench.append(synced=False, written=lambda: early.append(disk.count("sync"))))
        assert early == [0]
        assert disk.count("sync") == 0
        assert disk.after_a_power_cut(tmp_path / "b") == {}
    assert list(disk.after_a_power_cut(tmp_path / "c")) == [0]


async def test_a_file_is_removed_only_after_what_was_lined_up_before(tmp_path: Path) -> None:
    disk = Recording()
    async with writing(tmp_path, disk) as bench:
        (tmp_path / "old.seg").touch()
        await hold(disk, bench)
        bench.append(kind=Kind.SKIP)
        bench.writer.remove(tmp_path / "old.seg", lambda: None)
        assert (tmp_path / "old.seg").exists()
        disk.go.set()
        await until(lambda: not (tmp_path / "old.seg").exists(), "the file is removed")
        await bench.end()
        done = [what for what, name in disk.done if name != RESERVE]
    assert done.index("remove") > [index for index, what in enumerate(done) if what == "sync"][1]
    assert done[done.index("remove") + 1] == "sync directory"


async def test_a_copy_goes_to_another_segment_than_its_original(tmp_path: Path) -> None:
    """Or whatever was said of the original, by segment and number, would be said of the copy."""
    disk = Recording()
    async with writing(tmp_path, disk) as bench:
        first = await hold(disk, bench)
        disk.go.set()
        await bench.end()
        assert first.place is not None
        await hold(disk, bench)
        before, copy, behind = bench.append(), bench.append(origin=first.place.segment), bench.append()
        disk.go.set()
        await bench.end()
        segments = [told.place.segment for told in (before, copy, behind) if told.place]
        assert segments == [first.place.segment, first.place.segment + 1, first.place.segment + 1]


# A power cut --------------------------------------------------------------------------------------


async def test_what_was_kept_is_there_after_a_power_cut(tmp_path: Path) -> None:
    disk = Medium()
    async with writing(tmp_path / "a", disk) as bench:
        for turn in range(60):
            await bench.end(bench.append(bytes(20_000)))
            after = disk.after_a_power_cut(tmp_path / f"b{turn}")
            assert list(after) == list(range(turn + 1))
        assert len(bench.files()) > 3


@pytest.mark.parametrize("forgotten", ["sync", "sync_directory", "sync_file"])
async def test_without_any_of_the_syncs_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    """The positive control. A header that was not synced of its own comes with the first frame's sync."""
    disk = Medium()
    async with writing(tmp_path / "a", disk) as bench:
        monkeypatch.setattr(disk, forgotten, lambda _: None)
        await bench.end(bench.append())
        monkeypatch.undo()
        left = disk.after_a_power_cut(tmp_path / "b")
    assert list(left) == ([0] if forgotten == "sync_file" else [])


async def test_a_new_segment_is_on_the_medium_before_anything_in_it_is_kept(tmp_path: Path) -> None:
    disk = Recording()
    async with writing(tmp_path, disk) as bench:
        await bench.end(bench.append())
        done = [what for what, name in disk.done if name != RESERVE]
    assert done[:6] == ["create", "write", "sync file", "sync directory", "write", "sync"]


# Failed writes and syncs --------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["sync", "write"])
async def test_a_failure_fails_its_whole_group_and_the_file_is_never_touched_again(tmp_path: Path, what: str) -> None:
    disk = Medium()
    async with writing(tmp_path / "a", disk) as bench:
        first = await hold(disk, bench)
        group = [bench.append(kind=kind) for kind in (Kind.DATA, Kind.SEAL, Kind.DATA, Kind.DONE)]
        # One more write and sync, of the entry that is held, comes before the group's.
        disk.fails = failing(what, errno.EIO, after=1 if what == "sync" else 0)
        disk.go.set()
        await bench.end()
        assert first.place is not None
        hurt = first.place.segment
        for told in group:
            assert told.place is None
            assert told.error is not None
            assert (told.error.errno, told.segment, told.times) == (errno.EIO, hurt, 1)
        assert bench.writer.failures == 1
        assert bench.told[-1] == Left(hurt, SEGMENT_BYTES)
        later = bench.append()
        await bench.end()
        assert later.place is not None
        assert later.place.segment != hurt
        await until(lambda: bench.writer.failures == 0, "the failure is over")
    name = bench.files()[0].name
    of_it = [done for done, where in disk.done if where == name]
    assert of_it[of_it.index(what, 4) :][-1] == "close"
    assert of_it[-2:] == [what, "close"], "after the failure it is closed and nothing else"
    assert set(disk.after_a_power_cut(tmp_path / "b")) >= {0, 5}


@pytest.mark.parametrize("payload_bytes", [*range(SEGMENT_BYTES - 320, SEGMENT_BYTES, 8), 5 * SEGMENT_BYTES])
async def test_a_file_that_was_not_left_in_order_ends_with_room(tmp_path: Path, payload_bytes: int) -> None:
    """However full it is: by the room one sees that the memory may hold of it what the medium does not."""
    disk = Recording()
    async with writing(tmp_path, disk) as bench:
        disk.fails = failing("sync", errno.EIO, times=1)
        bench.append(b"x" * payload_bytes)
        await bench.end()
        assert bench.entries[0].error is not None
    hurt = bench.files()[0].read_bytes()
    assert b"x" * payload_bytes in hurt
    assert hurt[-ROOM_BYTES:] == bytes(ROOM_BYTES)


class Stubborn(Writer):
    """What must not be: a writer that syncs the same file again after a failure."""

    def _write_some(self, entries: list[Entry]) -> list[Entry]:
        try:
            return super()._write_some(entries)
        except OSError:
            active = self._active
            assert active is not None
            self._disk.sync(active.descriptor)
            place = Place(active.name.id, 0, 0)
            self._call(module._kept, entries, [place] * len(entries))
            return []


async def test_a_writer_that_syncs_again_would_keep_what_is_not_there(tmp_path: Path) -> None:
    """The positive control: the second sync succeeds, and the frame is not on the medium."""
    disk = Medium()
    async with writing(tmp_path / "a", disk, make=Stubborn) as bench:
        await bench.end(bench.append())
        disk.fails = failing("sync", errno.EIO)
        lost = bench.append()
        await bench.end()
        assert lost.place is not None
        assert list(disk.after_a_power_cut(tmp_path / "b")) == [0]


async def test_failures_are_counted_until_one_group_is_kept(tmp_path: Path) -> None:
    disk = Recording()
    disk.fails = failing("sync", errno.EIO, times=3)
    async with writing(tmp_path, disk) as bench:
        for failures in (1, 2, 3):
            await bench.end(bench.append())
            assert bench.writer.failures == failures
        await bench.end(bench.append())
        await until(lambda: bench.writer.failures == 0, "the failures are over")
    assert [told.place is not None for told in bench.entries] == [False, False, False, True]
    assert len(bench.files()) == 4


@pytest.mark.parametrize("what", ["write", "sync file", "sync directory"])
async def test_a_segment_that_cannot_be_made_leaves_no_file_and_no_doubt(tmp_path: Path, what: str) -> None:
    disk = Recording()
    async with writing(tmp_path, disk) as bench:
        await until(lambda: (tmp_path / RESERVE).exists(), "the reserve is there")
        disk.fails = failing(what, errno.EIO, times=100)
        told = bench.append()
        await bench.end()
        assert told.segment is None, "no file can hold it"
        assert bench.files() == []
        disk.fails = lambda what, name: None
        await bench.end(bench.append())
        assert len(bench.files()) == 1


@pytest.mark.parametrize("at_most", [1, 7, 48, 4096])
async def test_short_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_most: int) -> None:
    pwritev = os.pwritev

    def short(descriptor: int, buffers: Sequence[bytes], offset: int) -> int:
        first = next(buffer for buffer in buffers if len(buffer))
        return pwritev(descriptor, [bytes(first[:at_most])], offset)

    async with writing(tmp_path) as bench:
        monkeypatch.setattr(os, "pwritev", short)
        for number in range(40):
            bench.append(bytes([number]) * number * 20)
        await bench.end()
        monkeypatch.undo()
    assert list(frames(tmp_path)) == list(range(40))


async def test_a_fault_of_ours_fails_its_group_and_the_writer_goes_on(tmp_path: Path) -> None:
    async with writing(tmp_path) as bench:
        await bench.end(bench.append())
        told = bench.append(project_id="p" * 256)
        await bench.end()
        assert told.error is not None
        assert "a fault in the gateway" in str(told.error)
        await bench.end(bench.append())
        assert bench.entries[-1].place is not None


async def test_an_entry_whose_end_cannot_be_told_keeps_no_other_waiting(tmp_path: Path) -> None:
    def stumbles(place: Place) -> None:
        raise LookupError

    disk = Recording()
    async with writing(tmp_path, disk) as bench:
        await hold(disk, bench)
        bench.append(kept=stumbles)
        others = [bench.append(), bench.append()]
        disk.go.set()
        await bench.end(*others)
        assert all(told.place for told in others)


# A full disk --------------------------------------------------------------------------------------


async def filled(bench: Bench) -> None:
    """Append blocks until one fails."""
    while True:
        told = bench.append(bytes(30_000))
        await bench.end(told)
        if told.error is not None:
            assert told.error.errno == errno.ENOSPC
            return


async def test_on_a_full_disk_blocks_fail_and_what_drains_it_is_kept(tmp_path: Path) -> None:
    disk = Small(tmp_path, 4 * SEGMENT_BYTES)
    async with writing(tmp_path, disk) as bench:
        await filled(bench)
        # Each is more than half of a small segment, so that each needs one of its own.
        vital = [bench.append(bytes(40_000), kind) for kind in (Kind.SEAL, Kind.DONE)]
        await bench.end()
        assert [told.error for told in vital] == [None, None]
        assert not (tmp_path / RESERVE).exists()
        # There is room for small blocks now, and it is not for them.
        blocks = [bench.append() for _ in range(50)]
        await bench.end()
        assert [told.place for told in blocks] == [None] * 50
        assert bench.writer.failures > 0


async def test_without_a_reserve_what_drains_it_is_not_kept(tmp_path: Path) -> None:
    """The positive control: others have taken as much."""
    disk = Small(tmp_path, 4 * SEGMENT_BYTES)
    async with writing(tmp_path, disk) as bench:
        await filled(bench)
        disk.size -= RESERVE_BYTES + 200_000
        vital = bench.append(bytes(40_000), Kind.SEAL)
        await bench.end()
        assert vital.error is not None
        assert vital.error.errno == errno.ENOSPC


async def test_blocks_do_not_take_the_room_that_the_reserve_made(tmp_path: Path) -> None:
    disk = Small(tmp_path, 4 * SEGMENT_BYTES)
    async with writing(tmp_path, disk) as bench:
        await filled(bench)
        await bench.end(bench.append(bytes(100), Kind.SEAL))
        # A little of everything, again and again, as traffic goes on and the backlog drains.
        vital = []
        for _ in range(300):
            vital.append(bench.append(bytes(100), Kind.DONE))
            await bench.end(bench.append(bytes(30_000)), vital[-1])
        assert [told.error for told in vital] == [None] * 300


async def test_if_they_did_the_drain_would_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive control: blocks that may be written without a reserve."""
    disk = Small(tmp_path, 4 * SEGMENT_BYTES)
    async with writing(tmp_path, disk) as bench:
        await filled(bench)
        await bench.end(bench.append(bytes(100), Kind.SEAL))
        monkeypatch.setattr(bench.writer, "_keep_reserve", lambda: True)
        monkeypatch.setattr(module, "PAUSE_MAX_S", 0.001)
        vital = []
        for _ in range(20):
            vital.append(bench.append(bytes(100), Kind.DONE))
            await bench.end(bench.append(bytes(30_000)), vital[-1])
        assert any(told.error for told in vital)


async def test_when_room_comes_back_the_reserve_does_and_blocks_are_kept(tmp_path: Path) -> None:
    disk = Small(tmp_path, 4 * SEGMENT_BYTES)
    async with writing(tmp_path, disk) as bench:
        await filled(bench)
        await bench.end(bench.append(kind=Kind.DONE))
        assert not (tmp_path / RESERVE).exists()
        bench.writer.remove(bench.files()[0], lambda: None)
        await until(lambda: (tmp_path / RESERVE).exists(), "the reserve is back")
        told = bench.append()
        await bench.end()
        assert told.place is not None
        await until(lambda: bench.writer.failures == 0, "the failures are over")


async def test_a_disk_with_little_room_gets_smaller_segments(tmp_path: Path) -> None:
    disk = Small(tmp_path, RESERVE_BYTES + 200_000)
    async with writing(tmp_path, disk) as bench:
        told = bench.append()
        await bench.end()
        assert told.place is not None
        (opened,) = (what for what in bench.told if isinstance(what, Opened))
        assert opened.bytes < SEGMENT_BYTES


async def test_a_start_without_any_room_serves_what_needs_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Small(tmp_path, 0)
    async with writing(tmp_path, disk) as bench:
        blocks = [bench.append() for _ in range(20)]
        await bench.end()
        assert all(told.error and told.error.errno == errno.ENOSPC for told in blocks)
        disk.size = 4 * SEGMENT_BYTES
        told = bench.append()
        await bench.end()
        assert told.place is not None
    assert len([record for record in caplog.records if "no room for a reserve" in record.message]) == 1


async def test_many_tasks_at_once_are_all_answered(tmp_path: Path) -> None:
    """Faults come and go under load; every entry ends once, and what was kept is there."""
    disk = Medium()
    turns = itertools.count(1)

    def fails(what: str, name: str) -> OSError | None:
        if what in ("sync", "write") and next(turns) % 7 == 0:
            return OSError(errno.EIO, "now and then")
        return None

    async with writing(tmp_path / "a", disk) as bench:
        disk.fails = fails

        async def sender() -> None:
            for _ in range(10):
                await bench.end(bench.append(bytes(500)))

        await asyncio.gather(*(sender() for _ in range(20)))
    assert [told.times for told in bench.entries] == [1] * 200
    there = disk.after_a_power_cut(tmp_path / "b")
    kept = {number for number, told in enumerate(bench.entries) if told.place}
    assert kept <= set(there)
    assert 0 < len(kept) < 200
