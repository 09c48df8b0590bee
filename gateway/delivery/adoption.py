"""The spools of slots that no worker has: taken over by one that starts."""

from __future__ import annotations

import logging
import os

from gateway.delivery.deadletter import DeadLetters, DeadLettersBusy
from gateway.delivery.disk import Disk
from gateway.delivery.frames import FrameNumbers, SlotTaken, lock_slot, slot_place
from gateway.delivery.keyfiles import found_files
from gateway.delivery.segments import SegmentName, found_segments

log = logging.getLogger(__name__)


def adopt(numbers: FrameNumbers, slot: int, disk: Disk | None = None) -> int:
    """Move what another slot's spool holds into this slot's, before that is opened. Returns how many segments.

    A slot that a process has open keeps its own, and one whose dead letters are being replayed. Nothing is
    copied, and a crash leaves each segment in one of the two places, in an order that holds: what speaks of a
    segment has a higher ordinal than it, and dead letters go before their frames. The keys of frames that are gone
    come along.
    """
    place = slot_place(numbers.place.parent, slot)
    if not place.is_dir():
        return 0
    try:
        lock = lock_slot(place)
    except SlotTaken:
        return 0
    try:
        disk = disk or Disk()
        ours_dead, theirs_dead = (DeadLetters(each, bytes_max=0, disk=disk) for each in (numbers.place, place))
        try:
            ours_dead.take_over(theirs_dead)
        except DeadLettersBusy:
            return 0
        orphans = found_segments(place)
        ours = found_segments(numbers.place)
        ordinal = ours[-1][0].ordinal + 1 if ours else 1
        for _, path in found_files(place):
            path.rename(numbers.place / path.name)
        for shift, (name, path) in enumerate(orphans):
            path.rename(numbers.place / SegmentName(ordinal + shift, name.id).file)
        for directory in (numbers.place, place):
            disk.sync_directory(directory)
    finally:
        os.close(lock)
    if orphans:
        log.info("spool: slot %d takes over %d segments of slot %d", numbers.slot, len(orphans), slot)
    return len(orphans)
