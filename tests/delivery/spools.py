"""Spools alone, and as a kill leaves them."""

from __future__ import annotations

import shutil
from pathlib import Path

from gateway.delivery.block import Block
from gateway.delivery.disk import Disk
from gateway.delivery.frames import FrameNumbers
from gateway.delivery.spool import Spool


def killed(alive: Path, to: Path) -> Path:
    """What a kill -9 at this moment would leave of a slot's directory; the locks are not copied."""
    shutil.copytree(alive, to)
    return to


def opened(directory: Path, disk: Disk | None = None) -> tuple[FrameNumbers, Spool]:
    """A spool alone."""
    numbers = FrameNumbers(directory)
    spool = Spool(numbers, segment_bytes=1 << 20, reserve_bytes=1 << 16, audit_s=100.0, disk=disk)
    return numbers, spool


def refused(block: Block, error: OSError) -> None:
    raise error
