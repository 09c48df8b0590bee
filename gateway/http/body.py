"""A request's body: read under a cap and a deadline, decompressed under a cap on what comes out.

Nothing here trusts what a sender declares: a declared length over the cap is refused before anything
is read, an undeclared one is counted, and a bomb ends at the cap after at most one step more.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass

import zstandard
from isal import isal_zlib

from gateway.errors import Malformed, TooLarge, TooSlow, UnsupportedMedia

GZIP_MEMBERS_MAX = 16
"""Members of a gzip body, and frames of a zstd body: each costs a set-up that its few bytes do not pay for."""
ZSTD_WINDOW_BYTES_MAX = 8 << 20
"""What RFC 8878 asks every decoder to support; more is memory the sender chooses and we pay."""

# Its stub declares an instance where there is a class.
_IsalError: type[Exception] = isal_zlib.error  # type: ignore[assignment]

_STEP_OUT = 1 << 20
_STEP_IN = 64 << 10
# A zstd block of four bytes may stand for 128 KiB and zstandard has no cap on a step's output, so
# what goes in at a time bounds what comes out: 128 blocks, 16 MiB.
_ZSTD_STEP_IN = 512


@dataclass(frozen=True, slots=True)
class Incoming:
    """A body on its way: ``declared_bytes`` is the Content-Length, None when it is chunked.

    ``chunk`` waits for the next bytes, ``b""`` at the end; raises Disconnected, Malformed (framing).
    """

    declared_bytes: int | None
    chunk: Callable[[], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Deadlines:
    """``whole_s`` for all of a body; after ``grace_s`` it must have come at ``bytes_per_s_min`` (0: any) on average."""

    whole_s: float
    bytes_per_s_min: int
    grace_s: float = 5.0

    def after(self, body_bytes: int) -> float:
        """Seconds from the start by which more must have come than ``body_bytes``."""
        if not self.bytes_per_s_min:
            return self.whole_s
        return min(self.whole_s, self.grace_s + body_bytes / self.bytes_per_s_min)


async def read(incoming: Incoming, *, bytes_max: int, deadlines: Deadlines, hold: Callable[[int], None]) -> bytes:
    """The body as sent. ``hold`` is told how many bytes are here and may refuse more.

    Raises TooLarge, TooSlow, Disconnected, Malformed, and what ``hold`` raises.
    """
    check_declared(incoming, bytes_max)
    began_s = asyncio.get_running_loop().time()
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout_at(began_s + deadlines.after(0)) as deadline:
            while chunk := await incoming.chunk():
                size += len(chunk)
                if size > bytes_max:
                    raise _too_large_as_sent(bytes_max)
                hold(size)
                chunks.append(chunk)
                deadline.reschedule(began_s + deadlines.after(size))
    except TimeoutError:
        raise TooSlow(
            f"the body did not arrive in time: {size} bytes came; all of it must within {deadlines.whole_s:g} s, "
            f"at {deadlines.bytes_per_s_min} bytes a second at least"
        ) from None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def check_declared(incoming: Incoming, bytes_max: int) -> None:
    """Raises TooLarge when the declared length is over the cap, before a byte is read."""
    if incoming.declared_bytes is not None and incoming.declared_bytes > bytes_max:
        raise _too_large_as_sent(bytes_max)


def encoding_of(headers: Mapping[str, str]) -> str:
    """``""`` (identity), ``gzip``, ``deflate`` or ``zstd``. Raises UnsupportedMedia for anything else."""
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return ""
    if encoding == "x-gzip":
        return "gzip"
    if encoding not in ("gzip", "deflate", "zstd"):
        raise UnsupportedMedia(
            "this Content-Encoding is not taken here: send the body plain, or with one of gzip, deflate, zstd"
        )
    return encoding


async def inflate(body: bytes, encoding: str, *, bytes_max: int, hold: Callable[[int], None]) -> bytes:
    """The body decompressed; other requests get their turn between its steps of a mebibyte.

    Raises Malformed (not that encoding, cut short, or followed by other bytes), TooLarge over
    ``bytes_max``, and what ``hold`` raises when it is told how many bytes there are, both forms together.
    """
    if not encoding:
        if len(body) > bytes_max:
            raise _too_large_inflated(bytes_max)
        return body
    # Grown step by step: joining many pieces at the end would hold up others as long as all of this.
    content = io.BytesIO()
    size = turn_at = 0
    for piece in _zstd(body) if encoding == "zstd" else _zlib(body, encoding):
        size += len(piece)
        if size > bytes_max:
            raise _too_large_inflated(bytes_max)
        hold(len(body) + size)
        content.write(piece)
        if size >= turn_at + _STEP_OUT:
            turn_at = size
            await asyncio.sleep(0)
    return content.getvalue()


def _zlib(body: bytes, encoding: str) -> Iterator[bytes]:
    """Gzip (RFC 1952) members one after the other, or one zlib stream (RFC 1950)."""
    members_max = GZIP_MEMBERS_MAX if encoding == "gzip" else 1
    at = 0
    for _ in range(members_max):
        stream = isal_zlib.decompressobj(wbits=31 if encoding == "gzip" else 15)
        while not stream.eof:
            tail = body[at : at + _STEP_IN]
            at += len(tail)
            try:
                piece = stream.decompress(tail, _STEP_OUT)
                while piece:
                    yield piece
                    piece = b"" if stream.eof else stream.decompress(stream.unconsumed_tail, _STEP_OUT)
            except _IsalError:
                raise _not(encoding) from None
            if not tail and not stream.eof:
                raise _cut_short(encoding)
        at -= len(stream.unused_data)
        if at == len(body):
            return
    if members_max > 1 and body.startswith(b"\x1f\x8b", at):
        raise Malformed(f"the gzip body has more than {GZIP_MEMBERS_MAX} members: send it as one")
    raise _followed(encoding)


def _zstd(body: bytes) -> Iterator[bytes]:
    """Zstandard frames (RFC 8878) one after the other."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
    at = 0
    for _ in range(GZIP_MEMBERS_MAX):
        try:
            window_bytes = zstandard.get_frame_parameters(body[at : at + 32]).window_size
            if window_bytes > ZSTD_WINDOW_BYTES_MAX:
                raise TooLarge(
                    f"the zstd window is over {ZSTD_WINDOW_BYTES_MAX} bytes: compress at a lower level, without --long"
                )
            frame = decompressor.decompressobj()
            while not frame.eof:
                tail = body[at : at + _ZSTD_STEP_IN]
                at += len(tail)
                if not tail:
                    raise _cut_short("zstd")
                if piece := frame.decompress(tail):
                    yield piece
        except zstandard.ZstdError:
            raise _not("zstd") from None
        at -= len(frame.unused_data)
        if at == len(body):
            return
    raise Malformed(f"the zstd body has more than {GZIP_MEMBERS_MAX} frames: send it as one")


def _too_large_as_sent(bytes_max: int) -> TooLarge:
    return TooLarge(f"the body is over {bytes_max} bytes: send fewer records at a time")


def _too_large_inflated(bytes_max: int) -> TooLarge:
    return TooLarge(f"the body is over {bytes_max} bytes once decompressed: send fewer records at a time")


def _not(encoding: str) -> Malformed:
    return Malformed(f"the body is not {encoding}, or was damaged on its way: check Content-Encoding")


def _cut_short(encoding: str) -> Malformed:
    return Malformed(f"the {encoding} body ends before its stream does: it was cut short")


def _followed(encoding: str) -> Malformed:
    return Malformed(f"the {encoding} stream is followed by other bytes")
