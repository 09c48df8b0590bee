"""A body is read and decompressed under its caps, whatever its sender declares or sends."""

from __future__ import annotations

import asyncio
import gzip
import random
import zlib

import pytest
import zstandard

from gateway.errors import Malformed, Overloaded, TooLarge, TooSlow, UnsupportedMedia
from gateway.http import body
from gateway.http.body import Deadlines, Incoming
from tests.unit.http.fakes import incoming

PATIENT = Deadlines(whole_s=30, bytes_per_s_min=1024)


def free(size: int) -> None:
    """Holds anything."""


async def read(source: Incoming, bytes_max: int = 100, deadlines: Deadlines = PATIENT) -> bytes:
    return await body.read(source, bytes_max=bytes_max, deadlines=deadlines, hold=free)


async def inflate(data: bytes, encoding: str, bytes_max: int = 1 << 20) -> bytes:
    return await body.inflate(data, encoding, bytes_max=bytes_max, hold=free)


def deflated(data: bytes, encoding: str) -> bytes:
    if encoding == "zstd":
        return zstandard.ZstdCompressor().compress(data)
    return gzip.compress(data) if encoding == "gzip" else zlib.compress(data)


ENCODINGS = ("gzip", "deflate", "zstd")
TEXT = random.Random(7).choices(b"abcdefgh \n", k=300_000)
SAMPLES = (b"", b"x", bytes(TEXT), bytes(3_000_000), random.Random(8).randbytes(200_000))


async def test_chunks_are_joined() -> None:
    assert await read(incoming([b"ab", b"cd", b"e"])) == b"abcde"
    assert await read(incoming([])) == b""


async def test_a_declared_length_over_the_cap_is_refused_before_anything_is_read() -> None:
    async def chunk() -> bytes:
        raise AssertionError("it was read")

    with pytest.raises(TooLarge):
        await read(Incoming(101, chunk))


async def test_an_undeclared_length_is_counted() -> None:
    assert await read(incoming([b"x" * 60, b"y" * 40], declared=False)) == b"x" * 60 + b"y" * 40
    with pytest.raises(TooLarge):
        await read(incoming([b"x" * 60, b"y" * 41], declared=False))


async def test_what_does_not_fit_the_budget_is_refused_while_it_is_read() -> None:
    def hold(size: int) -> None:
        if size > 10:
            raise Overloaded("full")

    with pytest.raises(Overloaded):
        await body.read(incoming([b"x" * 8, b"y" * 8]), bytes_max=100, deadlines=PATIENT, hold=hold)


async def test_a_sender_that_stalls_is_cut_off_at_the_deadline() -> None:
    async def chunk() -> bytes:
        await asyncio.Event().wait()
        return b""

    with pytest.raises(TooSlow):
        await read(Incoming(10, chunk), deadlines=Deadlines(whole_s=0.01, bytes_per_s_min=0))
    with pytest.raises(TooSlow):
        await read(Incoming(10, chunk), deadlines=Deadlines(whole_s=60, bytes_per_s_min=1024, grace_s=0.01))


def test_each_kibibyte_buys_a_second_up_to_the_whole() -> None:
    deadlines = Deadlines(whole_s=30, bytes_per_s_min=1024, grace_s=5)
    assert [deadlines.after(size) for size in (0, 1024, 10 * 1024, 1 << 20)] == [5, 6, 15, 30]
    assert Deadlines(whole_s=30, bytes_per_s_min=0).after(0) == 30


@pytest.mark.parametrize(
    ("sent", "expected"),
    [("", ""), ("identity", ""), ("GZIP", "gzip"), (" x-gzip ", "gzip"), ("deflate", "deflate"), ("zstd", "zstd")],
)
def test_encodings_taken(sent: str, expected: str) -> None:
    assert body.encoding_of({"content-encoding": sent}) == expected


@pytest.mark.parametrize("sent", ["br", "gzip, gzip", "gzip;q=1", "snappy"])
def test_encodings_refused(sent: str) -> None:
    with pytest.raises(UnsupportedMedia):
        body.encoding_of({"content-encoding": sent})


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("data", SAMPLES, ids=("empty", "one", "text", "zeros", "noise"))
async def test_inflating_gives_back_what_was_deflated(encoding: str, data: bytes) -> None:
    assert await inflate(deflated(data, encoding), encoding, len(data)) == data


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_byte_over_the_cap_is_refused(encoding: str) -> None:
    data = bytes(TEXT)
    with pytest.raises(TooLarge):
        await inflate(deflated(data, encoding), encoding, len(data) - 1)


async def test_a_plain_body_has_the_same_cap() -> None:
    assert await inflate(b"1234", "", 4) == b"1234"
    with pytest.raises(TooLarge):
        await inflate(b"12345", "", 4)


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_bomb_ends_at_the_cap(encoding: str) -> None:
    bomb = deflated(bytes(64 << 20), encoding)
    seen: list[int] = []
    with pytest.raises(TooLarge):
        await body.inflate(bomb, encoding, bytes_max=1 << 20, hold=seen.append)
    assert max(seen, default=0) <= len(bomb) + (1 << 20)


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_stream_cut_short_anywhere_is_malformed(encoding: str) -> None:
    whole = deflated(b"some text, some more text, some text" * 3, encoding)
    for end in range(len(whole)):
        with pytest.raises(Malformed):
            await inflate(whole[:end], encoding)
    assert await inflate(whole, encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_other_bytes_behind_the_stream_are_malformed(encoding: str) -> None:
    for behind in (b"x", b"\0" * 32, b"trailing garbage " * 10):
        with pytest.raises(Malformed):
            await inflate(deflated(b"text", encoding) + behind, encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_what_is_not_the_encoding_is_malformed(encoding: str) -> None:
    for data in (b"junk", b'{"level":"info"}' * 100, bytes(100)):
        with pytest.raises(Malformed):
            await inflate(data, encoding)


async def test_a_damaged_gzip_body_is_malformed() -> None:
    whole = gzip.compress(bytes(TEXT))
    for place in (len(whole) // 2, len(whole) - 6, len(whole) - 2):  # the data, its checksum, its length
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        with pytest.raises(Malformed):
            await inflate(bytes(damaged), "gzip")


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_at_most_sixteen_members_are_taken(encoding: str) -> None:
    assert await inflate(deflated(b"ab", encoding) * 16, encoding) == b"ab" * 16
    with pytest.raises(Malformed, match="16"):
        await inflate(deflated(b"ab", encoding) * 17, encoding)


async def test_a_zstd_window_over_the_limit_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    wide = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(TooLarge, match="window"):
        await inflate(wide.compress(b"x" * 1000) + wide.flush(), "zstd")


async def test_others_get_their_turn_while_a_large_body_is_inflated() -> None:
    loop = asyncio.get_running_loop()
    turns, over = 0, False

    def count() -> None:
        nonlocal turns
        turns += 1
        if not over:
            loop.call_soon(count)

    loop.call_soon(count)
    await inflate(deflated(bytes(8 << 20), "gzip"), "gzip", 8 << 20)
    over = True
    assert turns >= 7
