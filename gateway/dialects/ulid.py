"""ULIDs: ids of 26 letters that sort by their time (github.com/ulid/spec)."""

from __future__ import annotations

import secrets
from collections.abc import Callable

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LENGTH = 26
_RANDOM_BYTES = 10


def ulid(time_ns: int, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """48 bits of milliseconds since 1970 and 80 random ones, five to a letter, the highest first."""
    number = time_ns // 1_000_000 << 8 * _RANDOM_BYTES | int.from_bytes(random_bytes(_RANDOM_BYTES), "big")
    return "".join(_CROCKFORD[number >> 5 * place & 31] for place in reversed(range(_LENGTH)))
