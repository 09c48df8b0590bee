"""The checksum of the spool's frames is CRC-32C, whichever way it is computed."""

from __future__ import annotations

import random

import pytest

from gateway._native import crc32c

RFC3720 = {
    # RFC 3720, appendix B.4
    bytes(32): 0x8A9136AA,
    b"\xff" * 32: 0x62A8AB43,
    bytes(range(32)): 0x46DD794E,
    bytes(reversed(range(32))): 0x113FDB5C,
    bytes.fromhex(
        "01c000000000000000000000000000001400000000000400000000140000001828000000000000000200000000000000"
    ): 0xD9963A56,
    # the check value of the catalogues
    b"123456789": 0xE3069283,
    b"": 0,
}
both_ways = pytest.mark.parametrize("instruction", [True, False])


def bit_by_bit(data: bytes) -> int:
    """The definition."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0)
    return remainder ^ 0xFFFFFFFF


@both_ways
@pytest.mark.parametrize("data", RFC3720, ids=lambda data: f"{len(data)} bytes {data[:2].hex()}")
def test_the_published_examples(data: bytes, instruction: bool) -> None:
    assert crc32c(data, instruction=instruction) == RFC3720[data]


@both_ways
def test_it_is_the_definition_at_every_length_and_alignment(instruction: bool) -> None:
    data = random.Random(1).randbytes(80)
    for start in range(9):
        for end in range(start, len(data)):
            assert crc32c(memoryview(data)[start:end], instruction=instruction) == bit_by_bit(data[start:end])


@both_ways
def test_a_checksum_goes_on_where_another_ended(instruction: bool) -> None:
    data = random.Random(2).randbytes(20_000)
    whole = crc32c(data)
    for cut in (0, 1, 7, 4095, 4097, 19_999, 20_000):
        assert crc32c(data[cut:], crc32c(data[:cut]), instruction=instruction) == whole


@pytest.mark.parametrize("of", [bytes, bytearray, memoryview])
def test_it_takes_whatever_holds_bytes(of: type) -> None:
    assert crc32c(of(b"123456789")) == 0xE3069283


def test_it_takes_nothing_else() -> None:
    with pytest.raises(TypeError):
        crc32c("123456789")  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        crc32c(memoryview(b"123456789")[::2])
    for seed in (-1, 1 << 32):
        with pytest.raises(OverflowError):
            crc32c(b"", seed)
