"""A frame number or a token is never given twice, whatever happens to the process and its files."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.delivery import frames as module
from gateway.delivery.frames import EPOCH_BITS, FrameNumbers, SlotTaken


def opened(
    directory: Path, count: int = 3, *, slot: int = 0, mint: Callable[[], int] = lambda: secrets.randbits(64)
) -> tuple[list[int], list[str]]:
    """Open, take some numbers and tokens, and close."""
    frames = FrameNumbers(directory, slot=slot, mint=mint)
    try:
        return [frames.next() for _ in range(count)], [frames.token() for _ in range(count)]
    finally:
        frames.close()


def test_a_number_holds_gateway_slot_epoch_and_sequence(tmp_path: Path) -> None:
    frames = FrameNumbers(tmp_path, slot=5, mint=lambda: 0xABCD_0000_0000_1234)
    assert frames.gateway == "abcd000000001234"
    frames.next()
    assert frames.next() == 0x1234 << 50 | 5 << 44 | 1 << 26 | 1
    assert (frames.token(), frames.token()) == ("abcd000000001234-1-5-1", "abcd000000001234-1-5-2")
    frames.close()


def test_no_number_comes_twice_over_many_opens_and_slots(tmp_path: Path) -> None:
    numbers: list[int] = []
    tokens: list[str] = []
    for turn in range(30):
        more_numbers, more_tokens = opened(tmp_path, slot=turn % 3)
        numbers += more_numbers
        tokens += more_tokens
    assert len(set(numbers)) == len(numbers)
    assert len(set(tokens)) == len(tokens)
    assert max(numbers) < 1 << 64


def test_a_used_up_sequence_goes_on_in_a_new_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEQUENCE_BITS", 3)
    numbers, _ = opened(tmp_path, 100)
    more, _ = opened(tmp_path, 100)
    assert len({*numbers, *more}) == 200


def test_used_up_epochs_go_on_under_a_new_identity(tmp_path: Path) -> None:
    first, _ = opened(tmp_path)
    identity = (tmp_path / "gateway").read_text().strip()
    (tmp_path / "slot-00" / "epoch").write_text(f"{identity} {(1 << EPOCH_BITS) - 1:x}\n")
    second, _ = opened(tmp_path)
    assert (tmp_path / "gateway").read_text().strip() != identity
    assert first[0] >> 50 != second[0] >> 50


@pytest.mark.parametrize("damage", ["", "rubbish", "\xff\x00", "0" * 16])
@pytest.mark.parametrize("file", ["gateway", "slot-00/epoch"])
def test_a_damaged_file_costs_an_identity_and_no_number(tmp_path: Path, file: str, damage: str) -> None:
    numbers, tokens = opened(tmp_path)
    (tmp_path / file).write_text(damage, encoding="latin-1")
    more_numbers, more_tokens = opened(tmp_path)
    assert len({*numbers, *more_numbers}) == 6
    assert len({*tokens, *more_tokens}) == 6


def test_a_lost_identity_is_minted_with_another_number(tmp_path: Path) -> None:
    minted = iter([7, 7 | 1 << 40, 8])
    first, _ = opened(tmp_path, mint=lambda: next(minted))
    (tmp_path / "gateway").unlink()
    second, _ = opened(tmp_path, mint=lambda: next(minted))
    assert (first[0] >> 50, second[0] >> 50) == (7, 8)


def test_another_slot_follows_a_new_identity(tmp_path: Path) -> None:
    numbers, _ = opened(tmp_path, slot=1)
    (tmp_path / "gateway").write_text("rubbish")
    for slot in (0, 1):
        numbers += opened(tmp_path, slot=slot)[0]
    assert len(set(numbers)) == len(numbers)
    assert len({number >> 50 for number in numbers[3:]}) == 1


def test_a_slot_is_open_once(tmp_path: Path) -> None:
    frames = FrameNumbers(tmp_path)
    with pytest.raises(SlotTaken, match="slot-00 is in use"):
        FrameNumbers(tmp_path)
    opened(tmp_path, slot=1)
    frames.close()
    opened(tmp_path)


def test_an_epoch_is_synced_with_its_directory_before_its_first_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def recording(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording)
    FrameNumbers(tmp_path / "new").close()
    place = str(tmp_path / "new" / "slot-00")
    assert synced.index(next(path for path in synced if path.startswith(f"{place}/epoch"))) < synced.index(place)
    assert str(tmp_path / "new") in synced


def test_without_a_place_to_write_nothing_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        FrameNumbers(tmp_path)
    monkeypatch.undo()
    opened(tmp_path)


def test_slots_that_open_at_once_have_one_identity(tmp_path: Path) -> None:
    """Workers of a first start: each would mint its own, and what one knows would be another's."""
    slots = 8
    together = threading.Barrier(slots)

    def opened(slot: int) -> str:
        together.wait(10)
        numbers = FrameNumbers(tmp_path, slot=slot)
        numbers.close()
        return numbers.gateway

    with ThreadPoolExecutor(slots) as pool:
        identities = set(pool.map(opened, range(slots)))
    assert identities == {(tmp_path / "gateway").read_text().strip()}
