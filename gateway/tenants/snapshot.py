"""The keys on disk: digests and records, never a key, so that a restart needs no Postgres.

One line names the format and the SHA-256 of the rest; the rest is lines of JSON, some hundred keys to
a line::

    weir-keys 1 4f1c...
    {"as_of":1760000000.5,"change":17}
    {"live":[["<base64 of a digest>",{...}],...],"revoked":["<base64>",...]}

The file is replaced whole, after its bytes have reached the disk, and readable by its owner alone.
A file that is damaged, or of a format from the future, is left out with a warning: it is a help, never
a reason not to start.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec

from gateway.tenants.records import KeyRecord, KeyTable

logger = logging.getLogger(__name__)

_MAGIC = b"weir-keys 1 "
# No write takes this long: an unfinished file of this age belongs to nobody.
UNFINISHED_MAX_S = 600.0
KEYS_A_LINE = 500


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``table`` equalled the store at ``as_of``, wall-clock seconds."""

    as_of: float
    table: KeyTable


class _Moment(msgspec.Struct, frozen=True):
    as_of: float
    change: int


class _Part(msgspec.Struct, frozen=True):
    live: list[tuple[bytes, KeyRecord]] = []
    revoked: list[bytes] = []


def write(path: Path, snapshot: Snapshot) -> None:
    """Replaces the file, all or nothing, durably. OSError when it cannot; the old one is then still there."""
    replace(path, _MAGIC, b"\n".join(_lines(snapshot)))


def replace(path: Path, magic: bytes, content: bytes) -> None:
    """The same for any content: ``magic`` and the digest of the content go before it."""
    head = magic + hashlib.sha256(content).hexdigest().encode() + b"\n"
    # Processes may share a snapshot, each with a name of its own for what it has not finished.
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            file.write(head)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(path: Path) -> Snapshot | None:
    """The snapshot, or None when there is none or it cannot be trusted (which is logged)."""
    content = content_of(path, _MAGIC, "key snapshot")
    if content is None:
        return None
    try:
        return _parse(content)
    except (msgspec.MsgspecError, ValueError):
        logger.warning("key snapshot %s ignored: its content is not what this version writes", path)
        return None


def content_of(path: Path, magic: bytes, what: str) -> bytes | None:
    """What was given to ``replace``, or None when there is no such file or it cannot be trusted (which is logged)."""
    _tidy(path)
    try:
        head, _, content = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("%s %s ignored: %s", what, path, error.strerror)
        return None
    if head != magic + hashlib.sha256(content).hexdigest().encode():
        logger.warning("%s %s ignored: damaged, or of another version", what, path)
        return None
    return content


def _lines(snapshot: Snapshot) -> Iterator[bytes]:
    # In parts, because encoding does not let go of the interpreter: all of 50,000 keys at once would
    # hold up every request for 40 ms.
    table = snapshot.table
    yield msgspec.json.encode(_Moment(snapshot.as_of, table.change))
    live = iter(list(table.live.items()))
    while part := list(islice(live, KEYS_A_LINE)):
        yield msgspec.json.encode(_Part(live=part))
    revoked = iter(table.revoked)
    while digests := list(islice(revoked, KEYS_A_LINE)):
        yield msgspec.json.encode(_Part(revoked=digests))


def _parse(content: bytes) -> Snapshot:
    first, *lines = content.split(b"\n")
    moment = msgspec.json.decode(first, type=_Moment)
    parts = [msgspec.json.decode(line, type=_Part) for line in lines]
    live = {digest: record for part in parts for digest, record in part.live}
    revoked = frozenset(digest for part in parts for digest in part.revoked)
    return Snapshot(moment.as_of, KeyTable(moment.change, live, revoked))


def _tidy(path: Path) -> None:
    """Removes what processes that were killed while writing have left behind."""
    for unfinished in path.parent.glob(f"{path.name}.*.new"):
        with suppress(OSError):
            if time.time() - unfinished.stat().st_mtime > UNFINISHED_MAX_S:
                unfinished.unlink()
