"""A request with a key is stored once, however often it is sent, whoever takes it, and whatever dies in between."""

from __future__ import annotations

import asyncio
import errno
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.delivery.adoption import adopt
from gateway.delivery.disk import Disk
from gateway.delivery.frames import FrameNumbers
from gateway.delivery.idempotency import Claim, Idempotency, UnderWay, mark_read, shared_keys
from gateway.delivery.keyfiles import FILES_MAX, KeyFiles, found_files
from gateway.delivery.segments import KEY_BYTES, VOID, Frame, Kind, SegmentReader, found_segments
from gateway.errors import KeyReused, Overloaded
from tests.delivery.conftest import OpenRig
from tests.delivery.disks import Recording, failing
from tests.delivery.rig import Engine, Rig, answered, rig, until, until_it
from tests.delivery.spools import killed
from tests.delivery.things import numbered, things, write

AWAY = [answered(503)] * 1_000_000
Sends = Callable[[Rig, str, Sequence[int]], Awaitable[bool]]


class Clock:
    """Seconds since 1970 that stand still."""

    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(
    clock: Clock, shared: int | None = None, *, slots: Sequence[int] = (0,), keys_max: int = 1_000
) -> Idempotency:
    return Idempotency(shared, slots=slots, keys_max=keys_max, keep_s=3_600.0, wall=clock)


@pytest.fixture
def keys(clock: Clock) -> Idempotency:
    keys = opened(clock)
    keys.all_found()
    return keys


def claimed(keys: Idempotency, key: str = "a", body: bytes = b"body", project: str = "p") -> Claim:
    return keys.claim(project, "/v1/logs", key, body)


def entry(claim: Claim) -> bytes:
    """What the block of a request with rows for one table carries."""
    return claim.entries(0, 1)


# The keys alone ------------------------------------------------------------------------------------


def test_a_kept_key_is_repeated_and_a_refused_one_is_free(keys: Idempotency) -> None:
    with claimed(keys) as first:
        keys.kept(entry(first))
    assert not first.is_repeated
    with claimed(keys) as again:
        assert again.is_repeated
        assert (again.digest, again.first_s) == (first.digest, first.first_s)
    with claimed(keys, "b") as refused:
        keys.refused(entry(refused))
    with claimed(keys, "b") as free:
        assert not free.is_repeated


def test_a_claim_that_stored_nothing_is_given_back(keys: Idempotency) -> None:
    for _ in range(3):
        with pytest.raises(RuntimeError), claimed(keys):
            raise RuntimeError("not decoded")
    with claimed(keys) as claim:
        assert not claim.is_repeated


def test_who_finds_a_key_claimed_is_told_to_try_again(keys: Idempotency) -> None:
    with claimed(keys) as first:
        entries = entry(first)
    with pytest.raises(UnderWay, match="under way"):
        claimed(keys)
    keys.kept(entries)
    assert claimed(keys).is_repeated


def test_a_key_is_of_one_project_path_and_body(keys: Idempotency) -> None:
    with claimed(keys) as first:
        keys.kept(entry(first))
    with pytest.raises(KeyReused, match="another body"):
        claimed(keys, body=b"another")
    with claimed(keys, project="q", body=b"another") as other:
        assert not other.is_repeated
    with keys.claim("p", "/other", "a", b"another") as elsewhere:
        assert not elsewhere.is_repeated


def test_of_two_tables_only_what_is_missing_is_stored_again(keys: Idempotency) -> None:
    with claimed(keys) as first:
        events, logs = (first.entries(part, 2) for part in range(2))
    keys.refused(logs)
    with pytest.raises(UnderWay):
        claimed(keys)  # of the other nobody knows yet
    keys.kept(events)
    with claimed(keys) as again:
        assert not again.is_repeated
        assert [again.has(part) for part in range(2)] == [True, False]
        assert [bool(again.entries(part, 2)) for part in range(2)] == [False, True]


def test_a_table_without_rows_is_not_waited_for(keys: Idempotency) -> None:
    with claimed(keys) as first:
        first.without_rows(1, 2)
        keys.kept(first.entries(0, 2))
    assert claimed(keys).is_repeated


def test_a_key_is_forgotten_when_its_time_is_over(keys: Idempotency, clock: Clock) -> None:
    with claimed(keys) as first:
        keys.kept(entry(first))
    clock.now += 3_599
    assert (claimed(keys)).is_repeated
    clock.now += 2
    with claimed(keys, body=b"another") as again:
        assert not again.is_repeated


def test_when_there_is_no_room_the_oldest_kept_keys_go_and_no_claimed_one(clock: Clock) -> None:
    keys = opened(clock, keys_max=1)  # one bucket
    keys.all_found()
    entries = []
    for number in range(16):
        clock.now += 1
        entries.append(entry(claimed(keys, str(number))))
    with pytest.raises(UnderWay):
        claimed(keys, "one more")
    for each in entries[1:]:
        keys.kept(each)
    claimed(keys, "one more")
    assert keys.displaced == 1
    with pytest.raises(UnderWay):
        claimed(keys, "0")  # is under way still
    assert (claimed(keys, "2")).is_repeated
    assert not (claimed(keys, "1")).is_repeated, "it was the oldest"


def test_nothing_is_known_before_every_spool_is_read(clock: Clock) -> None:
    shared = shared_keys(1_000, [0, 1, 5])
    first, second = opened(clock, shared, slots=(0,)), opened(clock, shared, slots=(1,))
    first.all_found()
    with pytest.raises(UnderWay):
        claimed(first)
    second.all_found()
    with pytest.raises(UnderWay):
        claimed(first)
    mark_read(shared, 5)
    claimed(first)


def test_what_a_killed_worker_had_claimed_is_decided_by_its_spool(clock: Clock) -> None:
    shared = shared_keys(1_000, [])
    killed, other = opened(clock, shared, slots=(3,)), opened(clock, shared, slots=(4,))
    on_disk = entry(claimed(killed, "on disk"))
    claimed(killed, "lost")
    with pytest.raises(UnderWay):
        claimed(other, "lost")
    after = opened(clock, shared, slots=(3,))
    with pytest.raises(UnderWay):
        claimed(other, "lost")
    mine = claimed(after, "mine")
    after.found(on_disk)
    after.all_found()
    assert (claimed(other, "on disk")).is_repeated
    assert not (claimed(other, "lost")).is_repeated
    with pytest.raises(UnderWay):
        claimed(other, "mine")
    after.kept(entry(mine))
    assert (claimed(other, "mine")).is_repeated


_RACER = """
import asyncio, fcntl, sys
from gateway.delivery.idempotency import Idempotency
if sys.argv[2] == "unlocked":
    fcntl.lockf = lambda *_: None
async def race():
    keys = Idempotency(int(sys.argv[1]), slots=(int(sys.argv[3]),), keys_max=0, keep_s=3600.0)
    sys.stdout.write("ready\\n"); sys.stdout.flush(); sys.stdin.readline()
    mine = []
    for number in range(20_000):
        with keys._locked():
            what, _ = keys._cells.claim(number.to_bytes(16, "little") + bytes(16), **keys._now())
        if what == "ours":
            mine.append(number)
    print(*mine)
asyncio.run(race())
"""


def raced(how: str) -> Counter[int]:
    """By how many of three processes each key was claimed."""
    shared = shared_keys(200_000, [])
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, str(shared), how, str(slot)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(shared,),
            text=True,
        )
        for slot in range(3)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    return Counter(int(line) for racer in racers for line in racer.communicate(timeout=60)[0].split())


def test_of_several_processes_one_has_a_key() -> None:
    assert raced("locked") == dict.fromkeys(range(20_000), 1)


def test_without_the_lock_several_have_it() -> None:
    """The positive control."""
    assert any(max(raced("unlocked").values()) > 1 for _ in range(10))


# Through the delivery ------------------------------------------------------------------------------


async def claim_of(rig: Rig, key: str, numbers: Sequence[int]) -> Claim:
    """The claim of a request, once the spool is looked through."""
    await rig.delivery._spool.recovered.wait()
    return rig.delivery.claim("p", "/v1/logs", key, repr(list(numbers)).encode())


async def send(rig: Rig, key: str, numbers: Sequence[int], tables: Sequence[str] = ("things",)) -> bool:
    """One request with a key, acknowledged; whether it was a repeated one."""
    with await claim_of(rig, key, numbers) as claim, rig.delivery.rows("p", 64 * len(numbers) * len(tables)) as rows:
        for table in tables:
            write(rows.columns(table), numbered(numbers))
        receipt = rows.commit(claim)
    await receipt.wait()
    return claim.is_repeated


async def send_apart(rig: Rig, key: str, numbers: Sequence[int]) -> bool:
    """The same as a large request, in columns of its own."""
    with await claim_of(rig, key, numbers) as claim, rig.delivery.rows_apart("p", 64 * len(numbers)) as rows:
        write(rows.columns("things"), numbered(numbers))
        await rows.cut()
        receipt = rows.commit(claim)
    await receipt.wait()
    return claim.is_repeated


@pytest.mark.parametrize("sends", [send, send_apart])
async def test_a_repeated_request_is_acknowledged_and_stored_once(open_rig: OpenRig, sends: Sends) -> None:
    async with open_rig() as rig:
        assert [await sends(rig, "a", range(100)) for _ in range(3)] == [False, True, True]
        assert not await sends(rig, "b", range(100, 110))
        await rig.flush()
        assert await rig.stored() == list(range(110))
        rig.check_counters()
        assert rig.held_bytes() == 0


async def test_many_requests_with_keys_share_frames(open_rig: OpenRig) -> None:
    async with open_rig(block_age_ms=50.0) as rig:
        requests = 300
        outcomes = await asyncio.gather(*(send(rig, str(number), [number]) for number in range(requests)))
        assert not any(outcomes)
        await rig.flush()
        assert await rig.stored() == list(range(requests))
        shared = frames_with_keys(rig.frames.place)
        assert sum(shared) == requests
        assert max(shared) > 1


def frames_with_keys(place: Path) -> list[int]:
    """How many keys each frame has."""
    found = []
    for name, path in found_segments(place):
        with SegmentReader(path, name) as reader:
            found += [frame.keys_bytes // KEY_BYTES for frame in reader.frames() if isinstance(frame, Frame)]
    return [keys for keys in found if keys]


async def sent_again(rig: Rig, key: str, numbers: Sequence[int]) -> bool:
    """As ``send``, once what became of the one before is known: an answer may be here a moment earlier."""
    repeated = False

    async def taken() -> bool:
        nonlocal repeated
        with suppress(UnderWay):
            repeated = await send(rig, key, numbers)
            return True
        return False

    await until_it(taken, "it is not under way any more")
    return repeated


async def test_a_request_that_is_refused_may_be_sent_again(engine: Engine, tmp_path: Path) -> None:
    """And after a restart too: what was written of it for nothing stands for nothing."""
    disk = Recording()
    async with rig(engine, tmp_path / "a", disk=disk) as before:
        disk.fails = failing("sync", errno.EIO, times=1)
        with pytest.raises(Overloaded):
            await send(before, "a", range(100))
        copy = await copied_once(before, tmp_path)
        assert not await sent_again(before, "a", range(100))
        await before.flush()
        assert await before.stored() == list(range(100))
    async with rig(engine, copy) as after:
        assert not await send(after, "a", range(100))
        await after.flush()
        assert await after.stored() == list(range(100))


async def copied_once(rig: Rig, tmp_path: Path) -> Path:
    """The spool once it says that a frame was never promised."""

    def is_said() -> bool:
        for name, path in found_segments(rig.frames.place):
            with SegmentReader(path, name) as reader:
                said = [reader.members(frame) for frame in reader.frames() if isinstance(frame, Frame)]
                if any(one and one[0] == VOID for one in said):
                    return True
        return False

    await until(is_said, "it is said")
    return killed(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("sends", [send, send_apart])
async def test_after_a_kill_a_request_that_was_kept_is_known(engine: Engine, tmp_path: Path, sends: Sends) -> None:
    async with rig(engine, tmp_path / "a", plan=AWAY) as before:
        await sends(before, "a", range(100))
        copy = killed(tmp_path / "a", tmp_path / "b")
        async with rig(engine, copy, database=before.direct.database) as after:
            assert await sends(after, "a", range(100))
            with pytest.raises(KeyReused):
                await sends(after, "a", range(99))
            await after.flush()
            assert await after.stored() == list(range(100))


async def test_without_keys_in_frames_it_is_stored_twice(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The positive control."""
    monkeypatch.setattr(SegmentReader, "keys", lambda reader, frame: b"")
    async with rig(engine, tmp_path / "a", plan=AWAY) as before:
        await send(before, "a", range(100))
        copy = killed(tmp_path / "a", tmp_path / "b")
        async with rig(engine, copy, database=before.direct.database) as after:
            assert not await send(after, "a", range(100))
            await after.flush()
            assert len(await after.stored()) == 200


async def test_a_key_outlives_its_segment_and_its_slot(engine: Engine, tmp_path: Path) -> None:
    async with rig(engine, tmp_path / "a", audit_ms=0.0, segment_bytes=64 << 10) as before:
        await send(before, "a", range(100))
        place = before.frames.place
        await before.flush()
        number = 100
        while not found_files(place):
            await send(before, str(number), range(number, number + 100))
            await before.flush()
            number += 100
        assert await send(before, "a", range(100))
        copy = killed(tmp_path / "a", tmp_path / "b")
        other = FrameNumbers(tmp_path / "b", slot=7)
        adopt(other, 0)
        other.close()
        other.place.rename(copy / "slot-00.new")
        shutil.rmtree(copy / "slot-00")
        (copy / "slot-00.new").rename(copy / "slot-00")
        assert len(found_files(copy / "slot-00")) == 1
        async with rig(engine, copy, database=before.direct.database) as after:
            assert await send(after, "a", range(100))
            await after.flush()
            assert await after.stored() == list(range(number))


async def test_a_frame_that_the_power_tore_leaves_no_key(engine: Engine, tmp_path: Path) -> None:
    """Nobody was promised it, and a key that stood for it would keep its sender from storing it."""
    async with rig(engine, tmp_path / "a", plan=AWAY) as before:
        await send(before, "whole", range(50))
        await send(before, "torn", range(50, 100))
        copy = killed(tmp_path / "a", tmp_path / "b")
        [(name, path)] = found_segments(copy / "slot-00")
        with SegmentReader(path, name) as reader:
            keyed = [frame for frame in reader.frames() if isinstance(frame, Frame) and frame.keys_bytes]
        with path.open("r+b") as file:
            file.seek(keyed[1].payload_at + 8)
            file.write(bytes(4))
        async with rig(engine, copy, database=before.direct.database) as after:
            assert await send(after, "whole", range(50))
            assert not await send(after, "torn", range(50, 100))
            await after.flush()
            assert await after.stored() == list(range(100))


async def test_where_a_crash_left_one_table_of_two_the_other_is_stored_again(engine: Engine, tmp_path: Path) -> None:
    both = (things(), things("others"))
    async with rig(engine, tmp_path / "a", tables=both, plan=AWAY) as before:
        await send(before, "a", range(50), ["things", "others"])
        copy = killed(tmp_path / "a", tmp_path / "b")
        [(name, path)] = found_segments(copy / "slot-00")
        with SegmentReader(path, name) as reader:
            found = [frame for frame in reader.frames() if isinstance(frame, Frame)]
        frames = [frame for frame in found if frame.kind == Kind.DATA]
        assert len(frames) == 2, "one for each table"
        with path.open("r+b") as file:
            file.seek(frames[1].place.offset)
            file.write(bytes(frames[1].place.bytes))
        async with rig(engine, copy, tables=both, database=before.direct.database) as after:
            assert not await send(after, "a", range(50), ["things", "others"])
            assert await send(after, "a", range(50), ["things", "others"])
            await after.flush()
            assert await after.stored("things") == await after.stored("others") == list(range(50))


# Their files ---------------------------------------------------------------------------------------


def test_key_files_are_made_one_and_go_with_their_time(keys: Idempotency, clock: Clock, tmp_path: Path) -> None:
    files = KeyFiles(tmp_path, Disk(), keys, iter(range(1_000)).__next__)
    for number in range(FILES_MAX + 1):
        clock.now += 1
        with claimed(keys, str(number)) as claim:
            entries = entry(claim)
            keys.kept(entries)
        files.keep(entries)
    assert len(found_files(tmp_path)) == 1
    later = opened(clock)
    KeyFiles(tmp_path, Disk(), later, iter(range(1_000)).__next__).load()
    later.all_found()
    for number in range(FILES_MAX + 1):
        assert (claimed(later, str(number))).is_repeated
    clock.now += 3_602
    files.keep(b"")
    assert found_files(tmp_path) == []


def test_key_files_that_cannot_be_removed_do_not_grow(keys: Idempotency, clock: Clock, tmp_path: Path) -> None:
    """Each is made one with all the others again and again."""
    disk = Recording()
    disk.fails = failing("remove", errno.EIO, times=10_000)
    files = KeyFiles(tmp_path, disk, keys, iter(range(1_000)).__next__)
    many = 8 * FILES_MAX
    for number in range(many):
        with claimed(keys, str(number)) as claim:
            entries = entry(claim)
            keys.kept(entries)
        files.keep(entries)
    assert disk.count("remove") > 1
    sizes = [path.stat().st_size for _, path in found_files(tmp_path)]
    assert sum(sizes) <= 2 * many * (len(entries) + 12), "each key twice at most, and what is around them"


@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_of_a_damaged_key_file_nothing_is_believed(
    keys: Idempotency, clock: Clock, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    with claimed(keys) as claim:
        entries = entry(claim)
        keys.kept(entries)
    KeyFiles(tmp_path, Disk(), keys, iter(range(1_000)).__next__).keep(entries)
    [(_, path)] = found_files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-5], "flipped": whole[:9] + b"\1" + whole[10:], "empty": b""}[how])
    later = opened(clock)
    KeyFiles(tmp_path, Disk(), later, iter(range(1_000)).__next__).load()
    later.all_found()
    assert "is damaged" in caplog.text
    assert not (claimed(later)).is_repeated


async def test_a_read_that_fails_once_forgets_no_key(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    class FailingOnce(SegmentReader):
        def keys(self, frame: Frame) -> bytes:
            tried.append(frame.number)
            if len(tried) == 1:
                raise OSError(errno.EIO, "no")
            return super().keys(frame)

    async with rig(engine, tmp_path / "a", audit_ms=0.0, segment_bytes=64 << 10) as before:
        await send(before, "a", range(100))
        number, place = 100, before.frames.place
        monkeypatch.setattr("gateway.delivery.keyfiles.SegmentReader", FailingOnce)
        while not found_files(place):
            await send(before, str(number), range(number, number + 100))
            await before.flush()
            number += 100
        assert tried[0] == tried[1], "it was tried again"
        copy = killed(tmp_path / "a", tmp_path / "b")
        async with rig(engine, copy, database=before.direct.database) as after:
            assert await send(after, "a", range(100))


async def test_a_segment_stays_until_its_keys_are_written(engine: Engine, tmp_path: Path) -> None:
    disk = Recording()
    async with rig(engine, tmp_path / "a", audit_ms=0.0, segment_bytes=64 << 10, disk=disk) as it:
        disk.fails = lambda what, name: OSError(errno.EIO, "no") if (what, name[-5:]) == ("create", ".keys") else None
        await send(it, "a", range(100))
        place = it.frames.place
        [(_, first)] = found_segments(place)
        number = 100
        while ("create", "keys") not in {(what, name[-4:]) for what, name in disk.done}:
            await send(it, str(number), range(number, number + 100))
            await it.flush()
            number += 100
        assert first.exists()
        disk.fails = lambda what, name: None
        while first.exists():
            await send(it, str(number), range(number, number + 100))
            await it.flush()
            number += 100
        assert found_files(place)
