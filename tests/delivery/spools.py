"""Spools alone, and as a kill leaves them."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path

from gateway.delivery.block import Block
from gateway.delivery.disk import Disk
from gateway.delivery.frames import FrameNumbers
from gateway.delivery.spool import Spool

COPIED_S = 20.0


def killed(alive: Path, to: Path) -> Path:
    """What a kill -9 at this moment would leave of a slot's directory; the locks are not copied.

    Called on the loop, so that the writer has no more to do than what is lined up: once that is done, a copy is of
    one moment.
    """
    deadline = time.monotonic() + COPIED_S
    while time.monotonic() < deadline:
        before = _looks(alive)
        with suppress(shutil.Error):  # some file was removed meanwhile
            shutil.copytree(alive, to)
            if _looks(alive) == before:
                return to
        shutil.rmtree(to, ignore_errors=True)
    raise AssertionError(f"{alive} never stands still")


def _looks(directory: Path) -> dict[Path, tuple[int, int]]:
    """Its files, their sizes and when they were changed."""
    found = {}
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            found[path] = (status.st_size, status.st_mtime_ns)
    return found


def opened(directory: Path, disk: Disk | None = None) -> tuple[FrameNumbers, Spool]:
    """A spool alone."""
    numbers = FrameNumbers(directory)
    spool = Spool(numbers, segment_bytes=1 << 20, reserve_bytes=1 << 16, audit_s=100.0, disk=disk)
    return numbers, spool


def refused(block: Block, error: OSError) -> None:
    raise error
