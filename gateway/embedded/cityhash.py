"""CityHash128 as ClickHouse's block framing uses it (CityHash 1.0.2), where something provides it.

With the package ``clickhouse-cityhash`` installed every checksum is verified. Without it ``AVAILABLE``
is false: checksums of received blocks are not verified, and framed responses are refused.
"""

from __future__ import annotations

try:
    from clickhouse_cityhash.cityhash import CityHash128
except ImportError:  # only the extra "test" asks for it
    CityHash128 = None

AVAILABLE: bool = CityHash128 is not None


def city_hash_128(data: bytes) -> bytes:
    """The 16 bytes that precede a compressed block."""
    value: int = CityHash128(data)
    # The package puts the first word into the upper half of its number; each is little endian on the wire.
    first, second = value >> 64, value & 0xFFFFFFFFFFFFFFFF
    return first.to_bytes(8, "little") + second.to_bytes(8, "little")
