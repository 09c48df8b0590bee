"""What earlier lives left is understood as it was meant, wherever they were stopped."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gateway.delivery.frames import EPOCH_BITS, SEQUENCE_BITS
from gateway.delivery.quarantine import Quarantine
from gateway.delivery.segments import HEADER_BYTES, KEY_BYTES, Kind, Member, Place, SegmentName, header, listed
from gateway.delivery.walk import Walk, walk_segments
from gateway.delivery.writer import Writer
from tests.delivery.disks import Recording, failing
from tests.delivery.rig import until
from tests.delivery.segment_files import Spec, segment

OLD, NEW, NEWEST = SegmentName(1, 100), SegmentName(2, 200), SegmentName(3, 300)


def walked(directory: Path, *segments: tuple[SegmentName, list[Spec]], damaged: Place | None = None) -> Walk:
    """What a walk over these segments says; ``damaged``: a frame whose last bytes are not as they were."""
    found = []
    for name, specs in segments:
        data, places = segment(specs, name)
        image = bytearray(data)
        for place in places:
            if damaged is not None and (place.segment, place.offset) == (damaged.segment, damaged.offset):
                image[place.offset + place.bytes - 8] ^= 1
        path = directory / name.file
        path.write_bytes(image)
        found.append((name, path))
    return walk_segments(found, Quarantine(directory), lambda path: None, OLD.id)


def data(number: int, origin: int = 0) -> Spec:
    return Spec(Kind.DATA, b"a block of 24 bytes.....", number, "things", "p", 3, origin=origin)


def seal(*members: Member) -> Spec:
    return Spec(Kind.SEAL, listed(members, "00c0ffee12345678-1-0-1"), table="things")


def members(walk: Walk) -> tuple[Member, ...]:
    (sealed,) = walk.seals.values()
    return sealed.members


def test_a_batch_sealed_copied_and_sealed_again_in_one_segment_means_the_copy(tmp_path: Path) -> None:
    walk = walked(
        tmp_path,
        (OLD, [data(7)]),
        (NEW, [seal((OLD.id, 7)), data(7, OLD.id), seal((NEW.id, 7))]),
    )
    assert members(walk) == ((NEW.id, 7),)
    assert walk.frames == {NEW.id: 1}


def test_a_seal_that_names_the_original_means_a_copy_that_was_not_known_to_be_kept(tmp_path: Path) -> None:
    """Its sync had failed, so the batch was sealed with the original; but it is there."""
    walk = walked(tmp_path, (OLD, [data(7)]), (NEW, [data(7, OLD.id)]), (NEWEST, [seal((OLD.id, 7))]))
    assert members(walk) == ((NEW.id, 7),)
    assert walk.frames == {NEW.id: 1}


def test_of_two_copies_the_newest_counts(tmp_path: Path) -> None:
    walk = walked(tmp_path, (OLD, [data(7)]), (NEW, [data(7, OLD.id)]), (NEWEST, [data(7, OLD.id)]))
    assert walk.frames == {NEWEST.id: 1}


def test_a_damaged_copy_takes_the_place_of_nothing(tmp_path: Path) -> None:
    """The power was cut before it was synced: its head is there and its payload is not."""
    _, (place,) = segment([data(7, OLD.id)], NEW)
    walk = walked(tmp_path, (OLD, [data(7)]), (NEW, [data(7, OLD.id)]), damaged=place)
    assert walk.frames == {OLD.id: 1}
    assert walk.settled == {NEW.id: {7}}


def slot_segment(slot: int, ordinal: int) -> SegmentName:
    return SegmentName(ordinal, (slot << SEQUENCE_BITS + EPOCH_BITS) + ordinal)


def done(*members: Member, at_ms: int, safe_ms: int = 0) -> Spec:
    return Spec(Kind.DONE, listed(members), safe_ms, "things", at_ms=at_ms)


@pytest.mark.parametrize(
    ("slots", "looked_after"),
    [((0, 0, 0), set()), ((1, 1, 1), set()), ((1, 1, 0), set()), ((1, 0, 1), {7}), ((1, 2, 1), {7}), ((1, 1, 2), {7})],
    ids=["ours", "of one that was taken over", "ours over it", "in our care", "in another's care", "another's"],
)
def test_what_a_slot_says_to_be_safe_is_what_was_in_its_care(
    tmp_path: Path, slots: tuple[int, int, int], looked_after: set[int]
) -> None:
    """The oldest of three segments has a frame that was done, the newest says when all was safe."""
    first, second, third = (slot_segment(slot, at) for at, slot in enumerate(slots, 1))
    walk = walked(
        tmp_path,
        (first, [data(7), done((first.id, 7), at_ms=1_000_000)]),
        (second, [data(8)]),
        (third, [done(at_ms=2_000_000, safe_ms=1_500_000)]),
    )
    assert {frame for frames in walk.done.values() for frame in frames[1::3]} == looked_after


def test_what_was_done_behind_that_is_looked_after(tmp_path: Path) -> None:
    walk = walked(tmp_path, (OLD, [data(7), done((OLD.id, 7), at_ms=2_000_000, safe_ms=1_500_000)]))
    assert {(*of, *frames) for of, frames in walk.done.items()} == {("things", 2_000, False, OLD.id, 7, 3)}


async def test_a_file_that_cannot_be_removed_keeps_those_that_speak_of_it(tmp_path: Path) -> None:
    """Else it would come back at the next start, and nobody would know that it is done with."""
    disk = Recording()
    writer = Writer(
        tmp_path,
        slot=0,
        ordinal=1,
        segment_id=lambda: 1,
        segment_bytes=1 << 16,
        reserve_bytes=1 << 12,
        tell=lambda what: None,
        wall=lambda: 0.0,
        disk=disk,
    )
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for path in (first, second, third):
        path.write_bytes(b"")
    disk.fails = failing("remove", errno.EIO, times=2)
    writer.start()
    writer.remove(first, lambda: None)
    writer.remove(second, lambda: None)
    await until(lambda: disk.count("remove") == 2, "both were tried")
    assert first.exists()
    assert second.exists()
    writer.remove(third, lambda: None)
    await writer.stop()
    assert [name for what, name in disk.done if what == "remove"] == ["first", "first", "first", "second", "third"]
    assert not any(path.exists() for path in (first, second, third))


def test_what_is_written_ends_with_the_last_frame_though_that_ends_with_zeros(tmp_path: Path) -> None:
    specs = [data(7), Spec(Kind.DATA, b"a block" + bytes(3_000), 8, "things", "p", 3)]
    image, places = segment(specs, OLD, room_bytes=1 << 20)
    (tmp_path / OLD.file).write_bytes(image)
    walk = walk_segments([(OLD, tmp_path / OLD.file)], Quarantine(tmp_path), lambda path: None, OLD.id)
    assert walk.written == {OLD.id: places[-1].offset + places[-1].bytes}


def test_what_is_written_ends_with_what_is_torn(tmp_path: Path) -> None:
    image, places = segment([data(7), data(8)], OLD, room_bytes=1 << 20)
    torn = bytearray(image)
    torn[places[1].offset : places[1].offset + 8] = bytes(8)
    (tmp_path / OLD.file).write_bytes(torn)
    walk = walk_segments([(OLD, tmp_path / OLD.file)], Quarantine(tmp_path), lambda path: None, OLD.id)
    assert places[1].offset < walk.written[OLD.id] <= places[1].offset + places[1].bytes


def test_zeros_that_are_damage_are_not_taken_for_room(tmp_path: Path) -> None:
    """They are not cut away, so that every start sees them."""
    image, places = segment([data(7), data(8)], OLD)
    hurt = header(OLD, 0, 1 << 16) + image[HEADER_BYTES : places[1].offset] + bytes(places[1].bytes)
    (tmp_path / OLD.file).write_bytes(hurt)
    quarantine = Quarantine(tmp_path)
    walk = walk_segments([(OLD, tmp_path / OLD.file)], quarantine, lambda path: None, OLD.id)
    assert (walk.written, quarantine.damaged_bytes) == ({OLD.id: len(hurt)}, places[1].bytes)


@pytest.mark.parametrize("room_bytes", [0, 1 << 12])
def test_a_segment_that_cannot_be_read_to_its_end_counts_once_when_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_bytes: int
) -> None:
    specs = [data(7), Spec(Kind.DATA, b"a block", 8, "things", "p", 3, keys=bytes(KEY_BYTES))]
    path = tmp_path / OLD.file
    path.write_bytes(segment(specs, OLD, room_bytes=room_bytes)[0])
    reads = Reads(monkeypatch)

    def said() -> tuple[object, ...]:
        reads.count = 0
        walk = walk_segments([(OLD, path)], Quarantine(tmp_path), lambda _: None, OLD.id)
        return walk.frames, walk.live_bytes, walk.rows, walk.project_bytes, walk.unread, walk.keys, walk.unreadable

    expected = said()
    assert expected[0] == {OLD.id: 2}
    for nth in range(1, reads.count + 1):
        reads.fails = nth
        assert said() == expected


class Reads:
    """Reads of a disk that fails at the ``fails``-th of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = self.fails = 0
        self._read = os.pread
        monkeypatch.setattr("gateway.delivery.segments.os.pread", self._fail_or_read)
        monkeypatch.setattr("gateway.delivery.walk.PAUSE_S", 0.0)

    def _fail_or_read(self, descriptor: int, size: int, offset: int) -> bytes:
        self.count += 1
        if self.count == self.fails:
            raise OSError(errno.EIO, "Input/output error")
        return self._read(descriptor, size, offset)
