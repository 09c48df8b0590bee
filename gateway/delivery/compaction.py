"""Give back the disk of segments in which little is left.

Rows that wait for long - their table is parked - would hold a file each, and with it all files that speak
of it, and of those. So what is left in such a file is copied to the newest. A copy names the segment it comes
from and takes the place of the frame there; it and its origin are never both alive, whenever the power goes.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from gateway.delivery.ledger import Ledger, Segment
from gateway.delivery.seals import Sealed
from gateway.delivery.segments import Frame, Kind, Place, SegmentReader
from gateway.delivery.writer import Entry

log = logging.getLogger(__name__)

SPARSE_SEGMENTS_MIN = 4
"""So many segments' worth of disk is lost to what is settled before any is compacted,"""
SPARSE_PART = 0.25
"""and only those of which less than this part is left, the segments that would be gone with them included."""


class Compaction:
    """The compaction of one spool, one segment at a time.

    ``append`` lines up an entry for the writer, ``say`` says what became of frames, ``seal`` writes a SEAL again.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        segment_bytes: int,
        append: Callable[[Entry], None],
        say: Callable[..., None],
        seal: Callable[[Sealed], Awaitable[None]],
    ) -> None:
        self._ledger = ledger
        self._segment_bytes = segment_bytes
        self._append = append
        self._say = say
        self._seal = seal
        self._copied = 0
        self._settled: dict[int, tuple[Kind, int]] = {}

    def settled(self, segment: int, frame: int, kind: Kind, rows: int) -> None:
        """A frame was settled; if it is being copied, the same is to be said of its copy."""
        if segment == self._copied:
            self._settled[frame] = kind, rows

    async def run(self) -> bool:
        """Compact one segment, if there is one worth it; false when there was none. Not beside a ``load``."""
        segment = self._sparse()
        if segment is None:
            return False
        unread, segment.unread = segment.unread, {}
        moved: dict[int, int] = {}
        self._copied, self._settled = segment.name.id, {}
        try:
            await self._copy(segment, await asyncio.to_thread(self._read_live, segment), moved)
        except OSError as error:
            log.warning("spool: %s could not be copied: %s", segment.name.file, error.strerror)
            for table, offset in unread.items():
                segment.unread[table] = min(offset, segment.unread.get(table, offset))
            segment.stuck = True
        for sealed in self._ledger.follow(moved, segment.name.id):
            if sealed.token in self._ledger.sealed:  # it may be done meanwhile
                try:
                    await self._seal(sealed)
                except OSError as error:
                    # The one before still holds: it means the copies. As long as it is needed its file stays.
                    log.warning("spool: a batch could not be sealed again: %s", error.strerror)
        return True

    def _sparse(self) -> Segment | None:
        """The oldest segment that is worth it."""
        ledger = self._ledger
        if ledger.disk_bytes - ledger.live_bytes < SPARSE_SEGMENTS_MIN * self._segment_bytes:
            return None
        homes = set(ledger.homes.values())
        sparse = None
        pinned_bytes = 0  # of those behind: each speaks of the one before it, so one that is needed may hold them all
        for segment in reversed(ledger.segments.values()):
            if segment.is_over and segment.name.id not in homes:
                pinned_bytes += segment.bytes if segment.pinned else 0
                continue
            is_sparse = segment.live_bytes < SPARSE_PART * (segment.bytes + pinned_bytes)
            if is_sparse and segment.closed and not segment.stuck:
                sparse = segment
            pinned_bytes = 0
        return sparse

    async def _copy(self, segment: Segment, frames: Sequence[tuple[Frame, bytes]], moved: dict[int, int]) -> None:
        """Append the frames again; ``moved`` is told where each is now. Raises OSError when any could not be."""
        waiting: list[asyncio.Future[None]] = []
        for frame, payload in frames:
            copied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiting.append(copied)
            self._append(
                Entry(
                    Kind.DATA,
                    payload,
                    partial(self._moved, segment, frame, moved, copied),
                    partial(self._not_copied, segment, frame, copied),
                    number=frame.number,
                    table=frame.table,
                    project_id=frame.project_id,
                    rows=frame.rows,
                    at_ms=frame.at_ms,
                    origin=segment.name.id,
                    suspect=frame.suspect,
                )
            )
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    def _moved(
        self, segment: Segment, frame: Frame, moved: dict[int, int], copied: asyncio.Future[None], place: Place
    ) -> None:
        """A copy is kept; it stands for the frame from now on, unless that was settled meanwhile."""
        ledger = self._ledger
        ledger.add(frame.project_id, place)
        ledger.segments[place.segment].names.add(segment.name.id)
        moved[frame.number] = place.segment
        if segment.is_settled(frame.number):
            ledger.settle(place, frame.number, frame.project_id)
            self._say_again(frame, place.segment)
        else:
            ledger.settle(frame.place, frame.number, frame.project_id)
            block = ledger.held.get(frame.number)
            if block is not None and block.place == frame.place:
                block.place = place
            else:
                ledger.leave_unread(frame.table, place)
        if not copied.cancelled():
            copied.set_result(None)

    def _not_copied(
        self, segment: Segment, frame: Frame, copied: asyncio.Future[None], error: OSError, failed: int | None
    ) -> None:
        """A copy could not be written, and may be there all the same: what is said of the frame is said of it too."""
        if failed is not None and segment.is_settled(frame.number):
            self._say_again(frame, failed)
        else:
            self._ledger.haunt(frame.number, failed)
        if not copied.cancelled():
            copied.set_exception(error)

    def _say_again(self, frame: Frame, segment: int) -> None:
        """What was said of a frame is true of the copy there. It has to be known as surely as that is there."""
        kind, rows = self._settled[frame.number]
        self._say(kind, frame.table, [(segment, frame.number)], rows=rows, synced=True)

    def _read_live(self, segment: Segment) -> list[tuple[Frame, bytes]]:
        """What is not settled in a segment. Raises OSError where some of it cannot be read."""
        live = []
        with SegmentReader(segment.path, segment.name, segment.end) as reader:
            for found in reader.frames():
                if not isinstance(found, Frame) or found.kind != Kind.DATA:
                    continue
                if not segment.is_settled(found.number):
                    payload = reader.payload(found)
                    if payload is None:
                        raise OSError(errno.EIO, "damaged")
                    live.append((found, payload))
        return live
