"""How a key is made and recognised: its letters, its checksum, its digest.

A key is a prefix, 34 random characters (202 bits) and 6 characters of checksum, all from 0-9A-Za-z::

    lg_ 0123456789abcdefghijABCDEFGHIJ0123 4Bz01x
    |   |                                  CRC-32 of all before it, base 62
    |   random
    which dialect's client it is meant for

So every key is its prefix and exactly 40 alphanumeric characters, which is what Brokle's clients
insist on for theirs (and ``bk_`` has exactly one underscore, which they count).

The checksum serves people and secret scanners: a key that was cut or mistyped is told from one that
was revoked. It is never the reason for a refusal, because keys that were made elsewhere and whose
digests were put into the table by hand need not have one: a key without a valid checksum is simply
one that is not in memory. Personal access tokens are made here only, and are looked up in Postgres:
one whose checksum does not fit is refused unasked.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from collections.abc import Callable

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
RANDOM_CHARS = 34
CHECKSUM_CHARS = 6
# Nothing longer is a key (a signed token from elsewhere is 1-2 KiB), so nothing longer is hashed:
# one dialect carries its key in the body, where a sender could put a megabyte.
KEY_CHARS_MAX = 4096

PAT_PREFIX = "pat_"
# What the vendors' clients expect. A dialect that is not here gets its own name as the prefix.
_PREFIXES = {
    ("loguro", "server"): "lg_",
    ("loguro", "browser"): "lgb_",
    ("proliferate", "server"): "pk_",
    ("proliferate", "browser"): "pk_",
    ("streamlogia", "server"): "ls_app_live_",
    ("streamlogia", "browser"): "ls_app_live_",
    ("brokle", "server"): "bk_",
    ("brokle", "browser"): "bk_",
}
_MINTED = re.compile(r"[a-z][a-z_]*_[0-9A-Za-z]{40}", re.ASCII)


def prefix_of(dialect: str, kind: str) -> str:
    """What a key of this dialect and kind begins with."""
    return _PREFIXES.get((dialect, kind), f"{dialect}_")


def mint(prefix: str, choice: Callable[[str], str] = secrets.choice) -> str:
    """A new secret. ``choice`` picks one character and must be unpredictable outside tests."""
    body = prefix + "".join(choice(ALPHABET) for _ in range(RANDOM_CHARS))
    return body + _checksum(body)


def digest_of(secret: str) -> bytes:
    """SHA-256 of a secret: all that is ever stored or compared. Takes any text a header can hold."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def is_damaged(secret: str) -> bool:
    """Whether it looks like a key of ours whose checksum does not fit: cut, mistyped or made elsewhere."""
    return bool(_MINTED.fullmatch(secret)) and _checksum(secret[:-CHECKSUM_CHARS]) != secret[-CHECKSUM_CHARS:]


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode("ascii"))
    letters = ""
    for _ in range(CHECKSUM_CHARS):
        number, rest = divmod(number, len(ALPHABET))
        letters = ALPHABET[rest] + letters
    return letters
