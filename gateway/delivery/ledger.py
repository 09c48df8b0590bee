"""What a spool knows of its segments and frames: which are held, settled, sealed, or only on disk.

Plain counting, without files. Every change of a frame's state goes through here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

from gateway.delivery.block import Block
from gateway.delivery.seals import Sealed
from gateway.delivery.segments import Member, Place, SegmentName
from gateway.delivery.walk import Walk


@dataclass(slots=True, eq=False)
class Segment:
    """What is known of one segment file. ``bytes``: its size on disk, ``end``: how far it may be read.

    ``live``: frames that are not settled; ``settled``: the numbers of those that are, while others are
    not or may come. ``unread``: per table, from where on frames may be neither held nor settled. ``names``: the
    segments that its SEAL, DONE and SKIP frames and its copies speak of. ``pinned``: it would be gone, were it
    not for what it says of others. ``stuck``: it cannot be compacted.
    """

    name: SegmentName
    path: Path
    bytes: int
    end: int
    closed: bool = False
    live: int = 0
    live_bytes: int = 0
    settled: set[int] = field(default_factory=set)
    unread: dict[str, int] = field(default_factory=dict)
    names: set[int] = field(default_factory=set)
    finished: float | None = None
    pinned: bool = False
    stuck: bool = False

    def is_settled(self, frame: int) -> bool:
        """Whether nothing is left to do for a frame of this segment."""
        return frame in self.settled or self.is_over

    @property
    def is_over(self) -> bool:
        """Whether all its frames are settled, and no more come."""
        return self.closed and not self.live

    def shorten(self) -> None:
        """Forget which frames are settled when all are: there may be a hundred thousand of them, for minutes."""
        if self.is_over:
            self.settled = set()


class Ledger:
    """The books of one spool.

    ``segments`` by id, oldest first. ``held``: blocks in memory by frame number. ``sealed``: batches by
    token whose SEAL counts, for no newer one names some frame that is not settled (``seals.py``), and ``homes``
    the segment that SEAL is in; ``sealed_frames``: frames of sealed batches that nobody has loaded yet.
    ``live_bytes``: of frames that are not settled, and ``project_bytes`` the same per project;
    ``settled_bytes``: of all that were, so far. ``ghosts``: by frame number, segments that may hold the frame
    as well, having failed while it was written there.
    """

    def __init__(self) -> None:
        self.segments: dict[int, Segment] = {}
        self.held: dict[int, Block] = {}
        self.sealed: dict[str, Sealed] = {}
        self.homes: dict[str, int] = {}
        self.sealed_frames: set[int] = set()
        self.live_bytes = 0
        self.settled_bytes = 0
        self.project_bytes: dict[str, int] = {}
        self.ghosts: dict[int, list[int]] = {}
        self._sealed_by: dict[int, str] = {}
        self._seals_for: dict[str, int] = {}

    @property
    def disk_bytes(self) -> int:
        """What all segments take on disk."""
        return sum(segment.bytes for segment in self.segments.values())

    @property
    def open_bytes(self) -> int:
        """What the segments take on disk that are not over."""
        return sum(segment.bytes for segment in self.segments.values() if not segment.is_over)

    @property
    def pinned_bytes(self) -> int:
        """What the segments with frames that are not settled take on disk."""
        return sum(
            segment.bytes if segment.closed else segment.end for segment in self.segments.values() if segment.live
        )

    def add(self, project_id: str, place: Place) -> None:
        """A DATA frame is on disk."""
        segment = self.segments[place.segment]
        segment.end = max(segment.end, place.offset + place.bytes)
        segment.live += 1
        segment.live_bytes += place.bytes
        self.live_bytes += place.bytes
        self.project_bytes[project_id] = self.project_bytes.get(project_id, 0) + place.bytes

    def settle(self, place: Place, frame: int, project_id: str) -> None:
        """Nothing is left to do for a frame."""
        segment = self.segments[place.segment]
        segment.live -= 1
        segment.live_bytes -= place.bytes
        segment.settled.add(frame)
        segment.shorten()
        self.live_bytes -= place.bytes
        self.settled_bytes += place.bytes
        left = self.project_bytes[project_id] - place.bytes
        if left > 0:
            self.project_bytes[project_id] = left
        else:
            del self.project_bytes[project_id]

    def haunt(self, frame: int, segment: int | None) -> None:
        """Writing a frame has failed, and the segment, if there is one, may hold it all the same."""
        if segment is not None:
            self.ghosts.setdefault(frame, []).append(segment)

    def places(self, segment: int, frame: int) -> list[Member]:
        """Where a frame is, for what is said of it: its segment, and those that may hold it as well."""
        ghosts = [other for other in self.ghosts.get(frame, ()) if other in self.segments]
        return [(each, frame) for each in (segment, *ghosts)]

    def leave_unread(self, table: str, place: Place) -> None:
        """A frame is on disk alone, to be found again."""
        unread = self.segments[place.segment].unread
        unread[table] = min(place.offset, unread.get(table, place.offset))

    def is_known(self, segment: Segment, frame: int) -> bool:
        """Whether a frame is settled, or somebody has it or will take it up."""
        return segment.is_settled(frame) or frame in self.held or frame in self.sealed_frames

    def seal(self, sealed: Sealed, home: int, frames: Sequence[int]) -> None:
        """A batch is sealed in segment ``home``: from now on its SEAL is the one that counts for these frames of it."""
        self.unseal(frames)
        if frames:
            self.sealed[sealed.token] = sealed
            self.homes[sealed.token] = home
            self._seals_for[sealed.token] = len(frames)
            self._sealed_by.update(dict.fromkeys(frames, sealed.token))

    def unseal(self, frames: Iterable[int]) -> None:
        """No SEAL counts for these frames any more; one that counts for none is forgotten."""
        for frame in frames:
            token = self._sealed_by.pop(frame, None)
            if token is None:
                continue
            self._seals_for[token] -= 1
            if not self._seals_for[token]:
                del self._seals_for[token], self.sealed[token], self.homes[token]

    def follow(self, moved: Mapping[int, int], old: int) -> list[Sealed]:
        """Frames have moved to other segments; returns the batches whose SEAL names one, or is in ``old``."""
        found = []
        for token, home in self.homes.items():
            sealed = self.sealed[token]
            members = tuple((moved.get(frame, segment), frame) for segment, frame in sealed.members)
            if members != sealed.members or home == old:
                self.sealed[token] = replace(sealed, members=members)
                found.append(self.sealed[token])
        return found

    def is_open(self, sealed: Sealed) -> bool:
        """Whether some frame of a sealed batch is not settled."""
        return any(map(self.is_live, sealed.members))

    def is_live(self, member: Member) -> bool:
        """Whether a frame is there, and not settled."""
        segment = self.segments.get(member[0])
        return segment is not None and not segment.is_settled(member[1])

    def removable(self, now: float, safe: float, needed: Set[int] = frozenset()) -> list[Segment]:
        """Takes out of the books, and returns, the segments that nobody needs: see the spool's invariant 4.

        ``safe``: the clock before which they have to be over. ``needed``: those that hold, perhaps, what is being
        written again.
        """
        homes = {*needed, *self.homes.values()}
        gone = []
        for segment_id, segment in list(self.segments.items()):
            if not segment.is_over:
                continue
            if segment.finished is None:
                segment.finished = now
            if segment.finished > safe or segment_id in homes:
                continue
            segment.pinned = any(other != segment_id and other in self.segments for other in segment.names)
            if not segment.pinned:
                gone.append(self.segments.pop(segment_id))
        return gone

    def take_over(self, walk: Walk, old: Sequence[int], seals: Sequence[Sealed]) -> list[Sealed]:
        """Enter what earlier lives left in the segments ``old``; returns those of ``seals`` that are open."""
        for segment_id in old:
            segment = self.segments[segment_id]
            segment.names = walk.names.get(segment_id, set())
            segment.settled = walk.settled.get(segment_id, set())
            segment.unread = walk.unread.get(segment_id, {})
            segment.live = walk.frames.get(segment_id, 0)
            segment.live_bytes = walk.live_bytes.get(segment_id, 0)
            if segment_id in walk.unreadable:
                segment.live += 1  # Nobody knows what it holds: it stays, where it is.
                segment.stuck = True
            segment.shorten()
        for project_id, project_bytes in walk.project_bytes.items():
            self.project_bytes[project_id] = self.project_bytes.get(project_id, 0) + project_bytes
            self.live_bytes += project_bytes
        open_seals = [sealed for sealed in seals if self.is_open(sealed)]
        for sealed in open_seals:
            frames = [member[1] for member in sealed.members if self.is_live(member)]
            self.seal(sealed, walk.homes[sealed.token], frames)
            self.sealed_frames.update(frames)
        return open_seals
