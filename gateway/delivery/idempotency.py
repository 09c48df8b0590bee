"""Requests that are stored once however often they are sent: those with an ``Idempotency-Key``.

A sender that got no answer cannot know whether its rows were taken. With a key that it made for this request
it sends the same again until there is an answer, and the rows are there once. Never is a hash of the content
taken for a key: two records may be equal and still be two. Of the content only a checksum is remembered, to tell
a key that is used for something else.

A request claims its key before it is decoded:

    nobody has it -> claimed -> its rows are kept      -> kept, for ``keep_s``
                           '--> its rows are refused   -> nobody has it
                           '--> its process is killed  -> looked up in what the spool holds, by who opens it next

Who finds a key claimed comes again soon, and who finds it kept is answered as the first was, without storing anything.
The rows of a request stand in one block per table. Such a part has a bit each, and a block carries the keys of
its requests into its frame: so rows and keys are on disk both or neither, whatever is torn, and where a crash
left one part of two, the other alone is stored again.

Records that have a ``log.record.uid`` are claimed the same way, one by one, once they are decoded. Where some are kept
already the request is taken back and decoded once more without them.

The keys are in memory that all workers share, in buckets of 16, guarded by a lock that the system lets go of
with the process. A bucket that is full forgets its oldest kept key. Those of frames that are gone are in the
files of ``keyfiles.py``.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from types import TracebackType
from typing import Self, TypedDict

from gateway._native import KeyCells, crc32c
from gateway.delivery.frames import SLOT_BITS
from gateway.delivery.segments import KEY_BYTES
from gateway.errors import KeyReused, Overloaded

SLOTS = 1 << SLOT_BITS
KEYS_MAX, KEEP_S = 1_000_000, 86_400.0

_ENTRY = struct.Struct("<16sIIBB6x")
"""digest, seconds since 1970, checksum, which part, of how many; as the cells give it back: which parts are kept."""
_PART_AT, _ALL_KEPT = 24, 0xFF
_BUCKET_BYTES = 16 * 32
_HEAD_BYTES = 4096
_LIVES_AT, _OVER_AT = SLOTS, SLOTS + 4 * SLOTS
_LIFE = struct.Struct("<I")
_UNREAD, _READ = 1, 2
_AT_ONCE = 256


def shared_keys(keys_max: int, unread: Collection[int]) -> int:
    """A descriptor of memory for ``Idempotency``, for this process and those that inherit it.

    ``unread``: slots whose spools have to be read before it is known who has which key.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("weir-keys")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, _memory_bytes(keys_max))
    for slot in unread:
        os.pwrite(descriptor, bytes([_UNREAD]), slot)
    return descriptor


def mark_read(shared: int, slot: int) -> None:
    """There is nothing in the spool of this slot any more."""
    os.pwrite(shared, bytes([_READ]), slot)


def _memory_bytes(keys_max: int) -> int:
    """Half as many cells again as keys: buckets fill unevenly."""
    return _HEAD_BYTES + (keys_max * 3 // 2 * KEY_BYTES // _BUCKET_BYTES + 1) * _BUCKET_BYTES


class _Now(TypedDict):
    """What the cells have to be told of each time."""

    who: int
    now_s: int
    keep_s: int


class Claims:
    """The right to store what stands under some keys; a context manager.

    ``known``: an entry for each, with the parts that are kept already. Parts are a request's tables, in the order
    in which they are opened.
    """

    __slots__ = ("_handed_over", "_keys", "known")

    def __init__(self, keys: Idempotency, known: bytes) -> None:
        self.known = known
        self._handed_over = False
        self._keys = keys

    @property
    def some_are_kept(self) -> bool:
        """Whether something is kept already, or some key comes twice."""
        return any(self.known[_PART_AT::KEY_BYTES])

    def has(self, part: int) -> bool:
        """Whether all rows of a part are kept already."""
        return False

    def entries(self, part: int, parts: int) -> bytes:
        """What the block of a part carries; from now on its fate is the claims'."""
        self._handed_over = True
        return self._keys.missing(self.known, part, parts)

    def without_rows(self, part: int, parts: int) -> None:
        """A part has no rows, or none that are not kept already: nothing is left to be kept of it."""
        self._keys.kept(self.entries(part, parts))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._handed_over:
            self._keys.release(self.known)


class Claim(Claims):
    """That of one request under its key.

    ``digest`` and ``first_s`` (seconds since 1970) are the same each time the request is sent.
    """

    __slots__ = ("_kept", "digest", "first_s")

    def __init__(self, keys: Idempotency, known: bytes) -> None:
        super().__init__(keys, known)
        self.digest, self.first_s, _, self._kept, _ = _ENTRY.unpack(known)

    @property
    def is_repeated(self) -> bool:
        """Whether all of its rows are kept already."""
        return bool(self._kept == _ALL_KEPT)

    def has(self, part: int) -> bool:
        return bool(self._kept >> part & 1)


class UnderWay(Overloaded):
    """Another request with the same key or records is being stored, or nothing is known yet: to be tried again."""


class Idempotency:
    """The keys as one worker sees them. ``shared`` is what ``shared_keys`` gave; None: nobody shares.

    ``slots``: this worker's own, and those that it takes over. ``keys_max``: of memory that nobody shares. ``wall``
    gives seconds since 1970.
    """

    def __init__(
        self,
        shared: int | None,
        *,
        slots: Sequence[int],
        keys_max: int = KEYS_MAX,
        keep_s: float = KEEP_S,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._descriptor = shared_keys(keys_max, slots) if shared is None else os.dup(shared)
        weakref.finalize(self, os.close, self._descriptor)
        self._memory = mmap.mmap(self._descriptor, 0)
        self._cells = KeyCells(self._memory)
        self._slots = slots
        self._slot = slot = slots[0]
        self._keep_s = int(keep_s)
        self._wall = wall
        self._threads = threading.Lock()
        with self._locked():
            self._life = self._number(_LIVES_AT, slot) + 1
            _LIFE.pack_into(self._memory, _LIVES_AT + 4 * slot, self._life)
        self._who = self._life << SLOT_BITS | slot

    def claim(self, project_id: str, path: str, key: str, body: bytes) -> Claim:
        """Claim a key of a project for a request to a path. 10 microseconds when nobody has it.

        Raises KeyReused when it was used for another body, UnderWay when that request is being stored.
        """
        digest = blake2b("\0".join((project_id, path, key)).encode(), digest_size=16).digest()
        return Claim(self, self._claimed(_ENTRY.pack(digest, 0, crc32c(body), 0, 0)))

    def claim_records(self, uids: bytes, parts: int) -> Claims:
        """Claim records by entries of their uids, with rows for so many tables. Raises UnderWay."""
        return Claims(self, self._claimed(uids, parts))

    def missing(self, known: bytes, part: int, parts: int) -> bytes:
        """The entries of a part that is not kept."""
        return self._cells.missing(known, part=part, parts=parts)

    def kept(self, entries: bytes) -> None:
        """The blocks that carry these entries are as safe as was promised."""
        with self._locked():
            self._cells.keep(entries, **self._now())

    def refused(self, entries: bytes) -> None:
        """They are not, and never will be."""
        with self._locked():
            self._cells.refuse(entries, who=self._who)

    def release(self, entries: bytes) -> None:
        """Nothing is stored under claims."""
        with self._locked():
            self._cells.release(entries, who=self._who)

    def found(self, entries: bytes) -> None:
        """The spool holds the rows that these entries are of, from before; in a thread."""
        step = _AT_ONCE * KEY_BYTES
        for start in range(0, len(entries), step):
            self.kept(entries[start : start + step])

    def all_found(self) -> None:
        """Our spools have been looked through: what their earlier lives claimed is over."""
        with self._locked():
            for slot in self._slots:
                over = self._life - 1 if slot == self._slot else self._number(_LIVES_AT, slot)
                _LIFE.pack_into(self._memory, _OVER_AT + 4 * slot, over)
                self._memory[slot] = _READ

    def still_kept(self, entries: bytes) -> bytes:
        """Those of ``entries`` that are to outlive their frames; in a thread."""
        with self._locked():
            return self._cells.still_kept(entries, now_s=int(self._wall()), keep_s=self._keep_s)

    @property
    def displaced(self) -> int:
        """Keys that had to make room for others before their time."""
        return self._cells.displaced

    def is_over(self, newest_s: int) -> bool:
        """Whether keys from this moment, in seconds since 1970, are forgotten."""
        return newest_s < self._wall() - self._keep_s

    def _claimed(self, entries: bytes, parts: int = 0) -> bytes:
        """The entries with what is kept of them, all being ours now."""
        with self._locked():
            if self._is_unread():
                raise UnderWay("what was stored before the start is being looked through; send the same again later")
            what, known = self._cells.claim(entries, parts=parts, **self._now())
        if what == "reused":
            raise KeyReused("this Idempotency-Key was used for another body; make a new one for each request")
        if what == "claimed":
            raise UnderWay("the same request or record is under way; send the same again later")
        return known

    def _now(self) -> _Now:
        return {"who": self._who, "now_s": int(self._wall()), "keep_s": self._keep_s}

    @contextmanager
    def _locked(self) -> Generator[None]:
        """Alone among the threads and processes. The system lets go for one that is killed."""
        with self._threads:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def _is_unread(self) -> bool:
        """Whether some spool has not been looked through since the gateway started."""
        return self._memory.find(bytes([_UNREAD]), 0, SLOTS) >= 0

    def _number(self, at: int, slot: int) -> int:
        number: int = _LIFE.unpack_from(self._memory, at + 4 * slot)[0]
        return number
