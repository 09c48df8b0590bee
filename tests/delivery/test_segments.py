"""A segment is read as it was written, and whatever becomes of its bytes, nothing else is read from it."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway._native import crc32c
from gateway.delivery.segments import (
    FRAME_MAGIC,
    HEAD_BYTES,
    HEADER_BYTES,
    ROOM_BYTES,
    Damage,
    ForeignSegment,
    Frame,
    Kind,
    Place,
    SegmentName,
    SegmentReader,
    framed_bytes,
    header,
    header_fault,
    listed,
    members_of,
    segment_name,
)
from tests.delivery.segment_files import (
    AT_MS,
    GOLDEN,
    GOLDEN_1,
    GOLDEN_2,
    GOLDEN_ROOM_BYTES,
    NAME,
    Spec,
    frame_bytes,
    segment,
)

GOLDEN_FILES = {version: Path(__file__).parent / "golden" / f"version-{version}" / NAME.file for version in (1, 2, 3)}
MIB = 1 << 20


def noise(length: int, seed: int) -> bytes:
    """Bytes that say nothing; cheaper than drawing them one by one."""
    return hashlib.shake_128(seed.to_bytes(8, "little")).digest(length)


lengths = st.one_of(st.integers(0, 300), st.integers(4000, 9000))
names = st.one_of(
    st.sampled_from(["", "otel_logs", "7b0c3f1e", "t" * 255]), st.text(st.characters(codec="utf-8"), max_size=9)
)
numbers = st.one_of(st.integers(0, 9), st.integers(0, (1 << 64) - 1))
specs = st.builds(
    Spec,
    st.sampled_from(Kind),
    st.builds(noise, lengths, st.integers(0, 999)),
    numbers,
    names,
    names,
    st.integers(0, (1 << 32) - 1),
    numbers,
    numbers,
    st.just(b""),
    st.booleans(),
)
thorough = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@contextmanager
def reader(directory: Path, image: bytes, name: SegmentName = NAME) -> Iterator[SegmentReader]:
    path = directory / name.file
    path.write_bytes(image)
    with SegmentReader(path, name) as opened:
        yield opened


def read(directory: Path, image: bytes, name: SegmentName = NAME) -> tuple[list[tuple[Frame, bytes]], list[Damage]]:
    """(frames with their payloads, damage) of a file, everything checked."""
    frames: list[tuple[Frame, bytes]] = []
    damage: list[Damage] = []
    with reader(directory, image, name) as opened:
        for found in opened.frames(whole=True):
            if isinstance(found, Damage):
                damage.append(found)
            else:
                payload = opened.payload(found)
                assert payload is not None
                frames.append((found, payload))
    return frames, damage


def spec_of(frame: Frame, payload: bytes, keys: bytes = b"") -> Spec:
    return Spec(
        frame.kind,
        payload,
        frame.number,
        frame.table,
        frame.project_id,
        frame.rows,
        frame.at_ms,
        frame.origin,
        keys,
        frame.suspect,
    )


def check_covers(image: bytes, frames: list[tuple[Frame, bytes]], damage: list[Damage]) -> None:
    """Frames and damage do not overlap, and what is neither is zeros at the end."""
    at = HEADER_BYTES
    places = [frame.place for frame, _ in frames] + [found.place for found in damage]
    for place in sorted(places, key=lambda place: place.offset):
        assert place.offset >= at
        assert not image[at : place.offset].strip(b"\0")
        assert place.bytes > 0
        at = place.offset + place.bytes
    assert at <= max(len(image), HEADER_BYTES)
    assert not image[at:].strip(b"\0")


# As it was written --------------------------------------------------------------------------------


@given(st.lists(specs, max_size=12), st.integers(0, 5000))
@thorough
def test_what_was_written_is_read(tmp_path: Path, written: list[Spec], room_bytes: int) -> None:
    image, places = segment(written, room_bytes=room_bytes)
    frames, damage = read(tmp_path, image)
    assert [spec_of(*found) for found in frames] == written
    assert [frame.place for frame, _ in frames] == places
    assert damage == []
    assert [framed_bytes(len(spec.payload), spec.table, spec.project_id) for spec in written] == [
        place.bytes for place in places
    ]


@given(
    st.lists(st.tuples(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1)), max_size=50),
    st.text(st.characters(codec="ascii"), max_size=255),
)
def test_the_frames_of_a_batch_are_read_as_written(members: list[tuple[int, int]], token: str) -> None:
    assert members_of(listed(members, token)) == (token, members)


@given(st.binary(max_size=80))
@thorough
def test_a_list_of_frames_that_is_none_is_no_crash(tmp_path: Path, payload: bytes) -> None:
    try:
        members_of(payload)
        is_list = True
    except ValueError:
        is_list = False
    image, _ = segment([Spec(Kind.SEAL, payload)])
    with reader(tmp_path, image) as opened:
        (found,) = opened.frames()
        assert isinstance(found, Frame)
        assert (opened.members(found) is not None) == is_list


def test_a_file_s_name_is_its_identity(tmp_path: Path) -> None:
    assert NAME.file == "0000000007-00c0ffee12345678.seg"
    assert segment_name(tmp_path / NAME.file) == NAME
    for other in ("reserve", "0000000007-00c0ffee12345678.seg~", "7-3-1.seg", "lock"):
        assert segment_name(tmp_path / other) is None


def test_a_header_s_fault_is_said_in_words() -> None:
    good = header(NAME, AT_MS)
    assert header_fault(NAME, good) == ""
    assert header_fault(NAME, good[:63]) == "its header is damaged"
    assert header_fault(NAME, b"X" + good[1:]) == "its header is damaged"

    def signed(start: bytes) -> bytes:
        return start + struct.pack("<I", crc32c(start))

    assert header_fault(NAME, signed(b"WEIRSPY\n" + good[8:60])) == "it is not a segment of a spool"
    with pytest.raises(ForeignSegment, match="version 4"):
        header_fault(NAME, signed(good[:8] + b"\4" + good[9:60]))
    assert header_fault(NAME, signed(good[:8] + b"\1" + good[9:60])) == ""
    assert header_fault(replace(NAME, id=8), good) == "it is another segment under this name"
    assert header_fault(replace(NAME, ordinal=8), good) == "", "it may be moved to another directory"


# The golden file ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "digest"),
    [
        (1, "8fe524ed1d6d6b7c97cf73111314005e642a4387b2251fec3baf086866ae28e8"),
        (2, "a01a45fd9be5dce839951f82fdc9a1fab683530ac68a19fd70c596e92606657a"),
        (3, "8a1fffbdb0a89defe5651f816cd0c4a449e08da7ff9317dcb4242cd17f740c92"),
    ],
)
def test_the_golden_segments_are_those_that_were_released(version: int, digest: str) -> None:
    assert hashlib.sha256(GOLDEN_FILES[version].read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(("version", "golden"), [(1, GOLDEN_1), (2, GOLDEN_2), (3, GOLDEN)])
def test_the_golden_segments_are_read_for_ever(version: int, golden: tuple[Spec, ...]) -> None:
    with SegmentReader(GOLDEN_FILES[version], NAME) as opened:
        assert opened.header_fault() == ""
        found = list(opened.frames(whole=True))
        frames = [frame for frame in found if isinstance(frame, Frame)]
        assert frames == found
        assert [spec_of(frame, opened.payload(frame) or b"", opened.keys(frame)) for frame in frames] == list(golden)
        assert opened.members(frames[3]) == ("00c0ffee12345678-3-5-1", [(NAME.id, 2), (NAME.id, (1 << 64) - 1)])
        assert opened.members(frames[4]) == ("", [(NAME.id, 2), (NAME.id, (1 << 64) - 1)])


def test_the_golden_segment_s_bytes_are_where_the_format_says() -> None:
    image = GOLDEN_FILES[3].read_bytes()
    assert image[:8] == b"WEIRSPL\n"
    assert struct.unpack_from("<IIQQ", image, 8) == (3, 0, 0x00C0_FFEE_1234_5678, 1_790_000_000_789)
    assert image[32:60] == bytes(28)
    assert struct.unpack_from("<I", image, 60)[0] == crc32c(image[:60])
    seed = crc32c(struct.pack("<QQ", 0x00C0_FFEE_1234_5678, 64))
    assert image[64:68] == b"\xf5WF\n"
    assert struct.unpack_from("<I", image, 68)[0] == crc32c(image[72 : 64 + 48 + 9 + 36], seed)
    assert struct.unpack_from("<I", image, 72)[0] == crc32c(b"a block", seed)
    assert struct.unpack_from("<IBBBBIQQQ", image, 76) == (7, 1, 9, 36, 0, 3, (1 << 64) - 1, 1_790_000_000_123, 0)
    assert image[112:164] == b"otel_logs7b0c3f1e-8c9c-4a87-9f0e-0c6a4ab4f0d1a block"
    assert image[164:168] == bytes(4)
    assert image[168:172] == b"\xf5WF\n"


def test_version_3_is_still_written_as_it_was() -> None:
    assert segment(GOLDEN, room_bytes=GOLDEN_ROOM_BYTES)[0] == GOLDEN_FILES[3].read_bytes()


def test_a_key_that_is_damaged_damages_its_frame(tmp_path: Path) -> None:
    keyed = replace(ONE, keys=bytes(range(64)))
    image = bytearray(segment([keyed, ONE])[0])
    at = image.index(keyed.keys)
    assert [spec_of(*found) for found in read(tmp_path, bytes(image))[0]] == [replace(keyed, keys=b""), ONE]
    image[at + 40] ^= 1
    frames, damage = read(tmp_path, bytes(image))
    assert [spec_of(*found) for found in frames] == [ONE]
    assert [found.place.offset for found in damage] == [HEADER_BYTES]


# Frames of another place --------------------------------------------------------------------------

ONE = Spec(Kind.DATA, b"a block of one table", 42, "otel_logs", "p", 1, 1_790_000_000_000)


@pytest.mark.parametrize(
    "of",
    [
        pytest.param(lambda: frame_bytes(ONE, HEADER_BYTES + 8), id="another offset"),
        pytest.param(lambda: frame_bytes(ONE, HEADER_BYTES, replace(NAME, id=8)), id="another segment"),
    ],
)
def test_a_frame_of_another_place_does_not_pass(tmp_path: Path, of: Callable[[], bytes]) -> None:
    strange = of()
    frames, damage = read(tmp_path, header(NAME, AT_MS) + strange)
    assert frames == []
    assert [found.place.offset for found in damage] == [HEADER_BYTES]


def test_at_its_own_place_the_same_frame_passes(tmp_path: Path) -> None:
    """The positive control."""
    frames, damage = read(tmp_path, header(NAME, AT_MS) + frame_bytes(ONE, HEADER_BYTES))
    assert [spec_of(*found) for found in frames] == [ONE]
    assert damage == []


# Damage -------------------------------------------------------------------------------------------


def struck(image: bytes, draw: st.DataObject) -> bytes:
    """The image after one fault of a disk."""
    what = draw.draw(st.sampled_from(["flip", "zeros", "ones", "garbage", "cut", "swap", "lie", "magics"]))
    at = draw.draw(st.integers(0, max(0, len(image) - 1)))
    length = draw.draw(st.sampled_from([1, 8, 48, 512, 4096]))
    end = min(len(image), at + length)
    if what == "flip":
        return image[:at] + bytes((image[at] ^ 1 << draw.draw(st.integers(0, 7)),)) + image[at + 1 :]
    if what == "zeros":
        return image[:at] + bytes(end - at) + image[end:]
    if what == "ones":
        return image[:at] + b"\xff" * (end - at) + image[end:]
    if what == "garbage":
        return image[:at] + noise(end - at, draw.draw(st.integers(0, 999))) + image[end:]
    if what == "magics":
        return image[:at] + (FRAME_MAGIC * length)[: end - at] + image[end:]
    if what == "cut":
        return image[:at]
    heads = [match for match in range(0, len(image), 8) if image.startswith(FRAME_MAGIC, match)]
    if what == "lie" and heads:
        head = draw.draw(st.sampled_from(heads))
        return image[: head + 12] + draw.draw(st.binary(min_size=4, max_size=4)) + image[head + 16 :]
    other = draw.draw(st.integers(0, max(0, len(image) - 1)))
    low, high = sorted((at, other))
    length = min(length, high - low, len(image) - high)
    if not length:
        return image
    return (
        image[:low] + image[high:][:length] + image[low + length : high] + image[low:][:length] + image[high + length :]
    )


@given(st.data(), st.lists(specs, min_size=1, max_size=12), st.integers(1, 3), st.sampled_from([0, 4096]))
@settings(thorough, max_examples=500)
def test_damage_costs_what_it_hit_and_nothing_else(
    tmp_path: Path, data: st.DataObject, written: list[Spec], blows: int, room_bytes: int
) -> None:
    whole, places = segment(written, room_bytes=room_bytes)
    image = whole
    for _ in range(blows):
        if image:
            image = struck(image, data)
    frames, damage = read(tmp_path, image)
    check_covers(image, frames, damage)
    was = {place.offset: (place, spec) for place, spec in zip(places, written, strict=True)}
    for frame, payload in frames:
        assert was[frame.place.offset] == (frame.place, spec_of(frame, payload)), "a frame that was not written here"
    seen = {frame.place.offset for frame, _ in frames}
    for place in places:
        start, end = place.offset, place.offset + place.bytes
        if image[start:end] == whole[start:end]:
            assert start in seen, "a whole frame was not read"
        elif image[start:end].strip(b"\0") or any(other > start for other in seen):
            hit = any(found.place.offset < end and found.place.offset + found.place.bytes > start for found in damage)
            assert hit or start in seen, "a damaged frame was not told"


@given(st.binary(max_size=3000))
@thorough
def test_garbage_is_damage(tmp_path: Path, garbage: bytes) -> None:
    frames, damage = read(tmp_path, garbage)
    assert frames == []
    check_covers(garbage, frames, damage)


def test_a_zeroed_frame_between_others_is_damage(tmp_path: Path) -> None:
    image, places = segment([ONE] * 5)
    hurt = places[2]
    image = image[: hurt.offset] + bytes(hurt.bytes) + image[hurt.offset + hurt.bytes :]
    frames, damage = read(tmp_path, image)
    assert [frame.place for frame, _ in frames] == [places[0], places[1], places[3], places[4]]
    assert damage == [Damage(hurt)]


@pytest.mark.parametrize("zeroed", [1, 2, 3])
@pytest.mark.parametrize(
    ("made_with", "room_bytes", "is_seen"),
    [(1 << 16, 0, True), (1 << 16, ROOM_BYTES, True), (0, 0, False)],
    ids=["left in order", "cut at a start", "of before"],
)
def test_frames_that_are_zeroed_up_to_the_end_of_a_file_that_was_cut_are_damage(
    tmp_path: Path, zeroed: int, made_with: int, room_bytes: int, is_seen: bool
) -> None:
    image, places = segment([Spec(Kind.DATA, b"a block" * 20, number) for number in range(3)], room_bytes=room_bytes)
    at = places[-zeroed].offset
    hurt = header(NAME, AT_MS, made_with) + image[HEADER_BYTES:at] + bytes(len(image) - at)
    frames, damage = read(tmp_path, hurt)
    assert [frame.number for frame, _ in frames] == list(range(3 - zeroed))
    assert damage == [Damage(Place(NAME.id, at, len(image) - at))] * is_seen


@pytest.mark.parametrize("room_bytes", [0, ROOM_BYTES, 1 << 12])
def test_the_room_of_a_file_is_no_damage(tmp_path: Path, room_bytes: int) -> None:
    image, places = segment([Spec(Kind.DATA, b"a block", number) for number in range(3)], room_bytes=room_bytes)
    made_with = len(image) if room_bytes > ROOM_BYTES else 1 << 16
    frames, damage = read(tmp_path, header(NAME, AT_MS, made_with) + image[HEADER_BYTES:])
    assert ([frame.place for frame, _ in frames], damage) == (places, [])


def test_a_damaged_payload_costs_its_frame_even_before_a_damaged_head(tmp_path: Path) -> None:
    image, places = segment([replace(ONE, payload=bytes(1000)), ONE, ONE])
    hurt = bytearray(image)
    hurt[places[0].offset + 500] ^= 1
    hurt[places[1].offset] ^= 1
    frames, damage = read(tmp_path, bytes(hurt))
    assert [frame.place for frame, _ in frames] == [places[2]]
    assert damage == [Damage(places[0]), Damage(places[1])]


def test_by_heads_alone_a_damaged_payload_is_met_when_it_is_read(tmp_path: Path) -> None:
    image, places = segment([ONE, ONE, ONE])
    hurt = bytearray(image)
    hurt[places[1].offset + places[1].bytes - 10] ^= 1
    with reader(tmp_path, bytes(hurt)) as opened:
        found = list(opened.frames())
        assert [frame.place for frame in found] == places
        payloads = [opened.payload(frame) for frame in found if isinstance(frame, Frame)]
    assert payloads == [ONE.payload, None, ONE.payload]


def test_names_that_are_no_text_are_damage(tmp_path: Path) -> None:
    frame = bytearray(frame_bytes(ONE, HEADER_BYTES))
    frame[HEAD_BYTES] = 0xFF
    names_end = HEAD_BYTES + len(ONE.table) + len(ONE.project_id)
    frame[4:8] = struct.pack("<I", crc32c(bytes(frame[8:names_end]), NAME.seed(HEADER_BYTES)))
    frames, damage = read(tmp_path, header(NAME, AT_MS) + bytes(frame))
    assert (frames, [found.place.offset for found in damage]) == ([], [HEADER_BYTES])


# Hostile bytes ------------------------------------------------------------------------------------


def lying_heads() -> bytes:
    """Heads that pass, each with a payload that is said to reach the end and does not pass."""
    image = bytearray(header(NAME, AT_MS))
    while len(image) < MIB:
        offset = len(image)
        claimed = MIB - offset - HEAD_BYTES
        rest = struct.pack("<IIBBBxIQQI4x", 1, max(0, claimed), Kind.DATA, 0, 0, 1, offset, 0, 0)
        image += FRAME_MAGIC + struct.pack("<I", crc32c(rest, NAME.seed(offset))) + rest
    return bytes(image[:MIB])


def hidden(image: bytes) -> bytes:
    """The same behind a first frame that does not pass."""
    return image[:HEADER_BYTES] + b"?" + image[HEADER_BYTES + 1 :]


def every_other_one() -> bytes:
    """Small frames, every other one damaged."""
    count = (MIB - HEADER_BYTES) // framed_bytes(0)
    image, places = segment([Spec(Kind.DONE, b"")] * count)
    hurt = bytearray(image)
    for place in places[::2]:
        hurt[place.offset] ^= 1
    return bytes(hurt)


def plausible() -> bytes:
    """As many heads as can overlap, right but for their CRC."""
    unit = FRAME_MAGIC + bytes(4) + FRAME_MAGIC + bytes(4) + b"\1" + bytes(15)
    return header(NAME, AT_MS) + (unit * (MIB // len(unit) + 1))[: MIB - HEADER_BYTES]


HOSTILE: dict[str, Callable[[], bytes]] = {
    "heads that claim all the rest": lying_heads,
    "the same, searched for": lambda: hidden(lying_heads()),
    "every other frame damaged": every_other_one,
    "a magic everywhere": lambda: header(NAME, AT_MS) + (FRAME_MAGIC + bytes(4)) * ((MIB - HEADER_BYTES) // 8),
    "plausible heads everywhere": plausible,
    "zeros and a last byte": lambda: header(NAME, AT_MS) + bytes(MIB - HEADER_BYTES - 1) + b"!",
    "ones": lambda: b"\xff" * MIB,
    "random": lambda: hashlib.shake_128(b"seed").digest(MIB),
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_mebibyte_of_hostile_bytes_is_read_a_bounded_number_of_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, whole: bool
) -> None:
    image = HOSTILE[name]()
    reads: list[int] = []
    pread = os.pread

    def counted(descriptor: int, length: int, offset: int) -> bytes:
        piece = pread(descriptor, length, offset)
        reads.append(len(piece))
        return piece

    with reader(tmp_path, image) as opened:
        monkeypatch.setattr(os, "pread", counted)
        for found in opened.frames(whole=whole):
            if isinstance(found, Frame) and whole:
                opened.payload(found)
    assert len(reads) <= len(image) / 8
    # A head is read with room for its names, every 16 bytes at the most.
    assert sum(reads) <= 40 * len(image)


@given(st.data(), st.integers(1, 4))
@thorough
def test_hostile_bytes_between_frames_do_not_hide_them(tmp_path: Path, data: st.DataObject, parts: int) -> None:
    image = bytearray(header(NAME, AT_MS))
    places = []
    for _ in range(parts):
        pieces = st.sampled_from([FRAME_MAGIC, FRAME_MAGIC + bytes(4), b"\xff", b"\1", frame_bytes(ONE, 0)[:60]])
        image += b"".join(data.draw(st.lists(pieces, max_size=40)))
        image += bytes(-len(image) % 8)
        frame = frame_bytes(ONE, len(image))
        places.append(Place(NAME.id, len(image), len(frame)))
        image += frame
    frames, damage = read(tmp_path, bytes(image))
    assert [frame.place for frame, _ in frames] == places
    check_covers(bytes(image), frames, damage)
