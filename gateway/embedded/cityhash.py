"""CityHash128 as ClickHouse's block framing uses it (CityHash 1.0.2)."""

from __future__ import annotations

from clickhouse_cityhash.cityhash import CityHash128


def city_hash_128(data: bytes) -> bytes:
    """The 16 bytes that precede a compressed block: low word, then high word, each little endian."""
    value: int = CityHash128(data)
    high, low = value >> 64, value & 0xFFFFFFFFFFFFFFFF
    return low.to_bytes(8, "little") + high.to_bytes(8, "little")
