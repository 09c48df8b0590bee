"""The compressions of ClickHouse's HTTP interface.

Two, independent of each other: the HTTP content encodings (gzip, deflate, zstd, lz4), and with
``decompress=1`` or ``compress=1`` ClickHouse's own block framing, block after block:

    16 bytes  CityHash128 (version 1.0.2) of everything that follows in the block
     1 byte   method: 0x82 LZ4, 0x90 ZSTD, 0x02 none
     4 bytes  size of the header from here on (9) plus compressed bytes, little endian
     4 bytes  size of the uncompressed bytes, little endian
     n bytes  compressed bytes

Source: ClickHouse, src/Compression/CompressedReadBufferBase.cpp and CompressionInfo.h.
"""

from __future__ import annotations

import struct
import zlib
from typing import Protocol

import lz4.block
import lz4.frame
import zstandard

from gateway._native import block_checksum

BLOCK_BYTES_MAX = 1 << 30
"""ClickHouse refuses larger blocks too (DBMS_MAX_COMPRESSED_SIZE)."""
BLOCK_BYTES_OUT = 1 << 20
CHECKSUM_BYTES = 16
HEADER = struct.Struct("<BII")
METHOD_NONE, METHOD_LZ4, METHOD_ZSTD = 0x02, 0x82, 0x90


class Undecodable(ValueError):
    """The bytes are not in their encoding, or it is not known here. ``code`` is ClickHouse's error number."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Decoder(Protocol):
    """Bytes in, bytes out; ``finish`` raises when the input stopped in the middle."""

    def feed(self, chunk: bytes) -> bytes: ...
    def finish(self) -> None: ...


class BlockDecoder:
    """ClickHouse's block framing, checksums verified. Holds at most one block."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, chunk: bytes) -> bytes:
        held = self._held
        held += chunk
        out: list[bytes] = []
        at = 0
        while len(held) - at >= CHECKSUM_BYTES + HEADER.size:
            method, size, plain_size = HEADER.unpack_from(held, at + CHECKSUM_BYTES)
            if not HEADER.size <= size <= BLOCK_BYTES_MAX or plain_size > BLOCK_BYTES_MAX:
                raise Undecodable(432 if size < HEADER.size else 39, "not a compressed block: its sizes are impossible")
            end = at + CHECKSUM_BYTES + size
            if len(held) < end:
                break
            out.append(decode_block(bytes(held[at:end]), method, plain_size))
            at = end
        del held[:at]
        return b"".join(out)

    def finish(self) -> None:
        if self._held:
            raise Undecodable(33, "the body ends in the middle of a compressed block")


def decode_block(block: bytes, method: int, plain_size: int) -> bytes:
    """One whole block, checksum first."""
    if block_checksum(block[CHECKSUM_BYTES:]) != block[:CHECKSUM_BYTES]:
        raise Undecodable(40, "Checksum doesn't match: corrupted data in a compressed block")
    compressed = block[CHECKSUM_BYTES + HEADER.size :]
    try:
        if method == METHOD_LZ4:
            plain: bytes = lz4.block.decompress(compressed, uncompressed_size=plain_size)
        elif method == METHOD_ZSTD:
            plain = zstandard.ZstdDecompressor().decompress(compressed, max_output_size=plain_size)
        elif method == METHOD_NONE:
            plain = compressed
        else:
            raise Undecodable(432, f"Unknown codec family code: {method:#x}; LZ4, ZSTD and none are supported here")
    except (lz4.block.LZ4BlockError, zstandard.ZstdError) as error:
        raise Undecodable(271, f"Cannot decompress a block: {error}") from error
    if len(plain) != plain_size:
        raise Undecodable(271, "Cannot decompress a block: its size is not the one its header gives")
    return plain


def encode_blocks(plain: bytes) -> bytes:
    """The block framing, LZ4, in blocks of a mebibyte; Undecodable where its checksum cannot be computed."""
    out: list[bytes] = []
    for start in range(0, len(plain), BLOCK_BYTES_OUT):
        part = plain[start : start + BLOCK_BYTES_OUT]
        compressed = lz4.block.compress(part, store_size=False)
        block = HEADER.pack(METHOD_LZ4, HEADER.size + len(compressed), len(part)) + compressed
        out += (block_checksum(block), block)
    return b"".join(out)


class ZlibDecoder:
    """gzip (several members too) and deflate."""

    def __init__(self) -> None:
        self._decompress = zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._begun = False

    def feed(self, chunk: bytes) -> bytes:
        out: list[bytes] = []
        while chunk:
            if self._decompress.eof:
                self._decompress = zlib.decompressobj(zlib.MAX_WBITS | 32)
            self._begun = True
            try:
                out.append(self._decompress.decompress(chunk))
            except zlib.error as error:
                raise Undecodable(354, f"the body is not gzip or deflate: {error}") from error
            chunk = self._decompress.unused_data
        return b"".join(out)

    def finish(self) -> None:
        if self._begun and not self._decompress.eof:
            raise Undecodable(354, "the gzip or deflate body ends too early")


class ZstdDecoder:
    """Zstandard frames, one after another."""

    def __init__(self) -> None:
        self._decompress = zstandard.ZstdDecompressor().decompressobj()
        self._begun = False

    def feed(self, chunk: bytes) -> bytes:
        out: list[bytes] = []
        while chunk:
            if self._decompress.eof:
                self._decompress = zstandard.ZstdDecompressor().decompressobj()
            self._begun = True
            try:
                out.append(self._decompress.decompress(chunk))
            except zstandard.ZstdError as error:
                raise Undecodable(561, f"the body is not zstd: {error}") from error
            chunk = self._decompress.unused_data
        return b"".join(out)

    def finish(self) -> None:
        if self._begun and not self._decompress.eof:
            raise Undecodable(561, "the zstd body ends too early")


class Lz4Decoder:
    """LZ4 frames, one after another."""

    def __init__(self) -> None:
        self._decompress = lz4.frame.LZ4FrameDecompressor()
        self._begun = False

    def feed(self, chunk: bytes) -> bytes:
        out: list[bytes] = []
        while chunk:
            if self._decompress.eof:
                self._decompress = lz4.frame.LZ4FrameDecompressor()
            self._begun = True
            try:
                out.append(self._decompress.decompress(chunk))
            except RuntimeError as error:
                raise Undecodable(618, f"the body is not an LZ4 frame: {error}") from error
            chunk = self._decompress.unused_data or b""
        return b"".join(out)

    def finish(self) -> None:
        if self._begun and not self._decompress.eof:
            raise Undecodable(618, "the LZ4 body ends too early")


def content_decoder(encoding: str) -> Decoder | None:
    """The decoder of a Content-Encoding, None for no encoding; raises Undecodable for an unknown one."""
    match encoding.strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip" | "deflate":
            return ZlibDecoder()
        case "zstd":
            return ZstdDecoder()
        case "lz4":
            return Lz4Decoder()
    raise Undecodable(89, f"Content-Encoding {encoding[:40]!r} is not supported; use gzip, deflate, zstd or lz4")


def accepted_encoding(accept: str) -> str | None:
    """The best encoding an Accept-Encoding header allows, None for none."""
    offered = {part.split(";")[0].strip().lower() for part in accept.split(",")}
    return next((name for name in ("zstd", "lz4", "gzip", "deflate") if name in offered), None)


def content_encode(plain: bytes, encoding: str) -> bytes:
    """A whole body in an encoding that ``accepted_encoding`` chose."""
    match encoding:
        case "zstd":
            return zstandard.ZstdCompressor(level=1).compress(plain)
        case "lz4":
            return bytes(lz4.frame.compress(plain))
        case "gzip":
            compress = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
            return compress.compress(plain) + compress.flush()
    return zlib.compress(plain, 1)
