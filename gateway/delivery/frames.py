"""Frame numbers and insert tokens: identities that are never given twice.

Every cut block is a frame, and its number is written into each of its rows. The spool's segments
have numbers of the same kind. From the top bit:

    gateway 14 | slot 6 | epoch 18 | sequence 26

The gateway number is the low 14 bits of an identity minted at random, once per data directory. A
slot is one worker's; its epoch grows at each open and whenever the sequence is used up, and is on
disk (file and directory synced) before the first number of it is given out. So a number does not
depend on a clock, and a crash costs at most the rest of an epoch. When the epochs are used up, or
the file that holds them is damaged, a new identity is minted: numbers may be wasted, never reused.

Files: ``DIRECTORY/gateway`` (16 hex digits) and ``DIRECTORY/slot-NN/epoch`` (identity and epoch as
text); ``slot-NN/lock`` is locked for as long as the slot is open.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

GATEWAY_BITS, SLOT_BITS, EPOCH_BITS, SEQUENCE_BITS = 14, 6, 18, 26
GATEWAY_MASK = (1 << GATEWAY_BITS) - 1


class SlotTaken(OSError):
    """Another process has this slot of this data directory open."""


class FrameNumbers:
    """The frame numbers of one slot of one data directory.

    ``mint`` gives the 64 random bits of a new identity. Raises SlotTaken when the slot is open
    elsewhere, OSError when the directory cannot be written.
    """

    def __init__(
        self, directory: Path, *, slot: int = 0, mint: Callable[[], int] = lambda: secrets.randbits(64)
    ) -> None:
        if not 0 <= slot < 1 << SLOT_BITS:
            raise ValueError(f"slot {slot}: a data directory has slots 0 to {(1 << SLOT_BITS) - 1}")
        self.slot = slot
        self._mint = mint
        self._directory = directory
        self._place = slot_place(directory, slot)
        self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = lock_slot(self._place)
        try:
            self._identity, self.epoch = self._grown()
        except BaseException:
            os.close(self._lock)
            raise
        self._next = self._base()
        self._end = self._next + (1 << SEQUENCE_BITS)
        self._batch = 0
        self._counting = threading.Lock()

    @property
    def place(self) -> Path:
        """The slot's directory."""
        return self._place

    @property
    def gateway(self) -> str:
        """The gateway's identity as text, 16 hex digits."""
        return f"{self._identity:016x}"

    @property
    def upcoming(self) -> int:
        """What ``next`` gives next, unless a new epoch begins there: then that is larger."""
        return self._next

    def next(self) -> int:
        """A number that was never given before."""
        with self._counting:
            if self._next == self._end:
                self._identity, self.epoch = self._grown()
                self._next = self._base()
                self._end = self._next + (1 << SEQUENCE_BITS)
            number = self._next
            self._next = number + 1
            return number

    def token(self) -> str:
        """A deduplication token that was never given before: gateway, epoch, slot, batch."""
        self._batch += 1
        return f"{self.gateway}-{self.epoch}-{self.slot}-{self._batch}"

    def close(self) -> None:
        """Let the slot go. The next open starts a new epoch."""
        os.close(self._lock)

    def _base(self) -> int:
        gateway = self._identity & GATEWAY_MASK
        return ((gateway << SLOT_BITS | self.slot) << EPOCH_BITS | self.epoch) << SEQUENCE_BITS

    def _grown(self) -> tuple[int, int]:
        """The next (identity, epoch), on disk before it is returned. One slot at a time, or each minted its own."""
        turn = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(turn, fcntl.LOCK_EX)
            return self._grown_alone()
        finally:
            os.close(turn)

    def _grown_alone(self) -> tuple[int, int]:
        identity = _read(self._directory / "gateway", r"([0-9a-f]{16})\n")
        held = self._place / "epoch"
        before = _read(held, r"([0-9a-f]{16}) ([0-9a-f]{1,5})\n")
        damaged = before is None and held.exists()
        used_up = before is not None and before[1] + 1 >= 1 << EPOCH_BITS
        if identity is None or ((damaged or used_up) and (before is None or before[0] == identity[0])):
            identity = [self._minted({known[0] & GATEWAY_MASK for known in (identity, before) if known})]
            _write(self._directory / "gateway", f"{identity[0]:016x}\n")
        # Another slot may have minted a new identity meanwhile: its epochs start afresh here too.
        epoch = before[1] + 1 if before is not None and before[0] == identity[0] else 1
        _write(held, f"{identity[0]:016x} {epoch:x}\n")
        return identity[0], epoch

    def _minted(self, used: set[int]) -> int:
        """A new identity whose gateway number is none of ``used``: those have given out numbers."""
        identity = self._mint()
        while identity & GATEWAY_MASK in used:
            identity = self._mint()
        return identity


def is_open(directory: Path, slot: int) -> bool:
    """Whether some process has this slot open at this moment."""
    try:
        os.close(lock_slot(slot_place(directory, slot)))
    except SlotTaken:
        return True
    except FileNotFoundError:
        pass
    return False


def slot_place(directory: Path, slot: int) -> Path:
    """A slot's directory."""
    return directory / f"slot-{slot:02d}"


def lock_slot(place: Path) -> int:
    """Take a slot for this process until the descriptor is closed. Raises SlotTaken."""
    descriptor = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SlotTaken(f"{place} is in use by another process; give each its own data directory") from None
    return descriptor


def _read(path: Path, pattern: str) -> list[int] | None:
    """The hex numbers in a file, or None when it is missing or is not what we wrote."""
    try:
        found = re.fullmatch(pattern, path.read_text("ascii"))
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return [int(group, 16) for group in found.groups()] if found else None


def _write(path: Path, text: str) -> None:
    """Put ``text`` at ``path`` so that after a power cut there is the old text or the new, never less."""
    draft = path.with_suffix(f".{os.getpid()}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        left = text.encode("ascii")
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    draft.rename(path)
    # The names on the way down may be new as well, and are lost with power if not synced.
    for directory in (path.parent, path.parent.parent):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
