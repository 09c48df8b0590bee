"""The spool: what was accepted is on disk here until ClickHouse has it.

    append(block) --group commit--> DATA kept --seal--> SEAL kept --insert--> done --> DONE kept
                                      |                                         |
                                      '--too much for memory: left on disk      '--all of a segment's frames
                                          '--load(table)--> block again             are done: file removed

One spool is one slot's directory: segments as ``segments.py`` lays them out, a ``lock`` and an ``epoch``
(``frames.py``), a ``reserve`` (``writer.py``), and ``quarantine/`` with what damage left. Each opening
starts a new segment in a new epoch; old segments are only read.

Invariants:
  1. A block's receipt wakes only after its DATA frame is as safe as the receipt's durability says.
  2. A frame is *held* (a block in memory stands for it), *settled* (nothing is left to do), or else
     found again by ``load``; never two of these, so a frame is in at most one batch.
  3. An insert is sent only after the SEAL with its token is synced. After a restart a sealed batch has
     the same token and the same frames, and its outcome counts as unknown.
  4. A segment is removed when all its frames are settled, for ``audit_s`` at least, when none of
     its SEAL, DONE and SKIP frames is needed: they name no frame in a segment that is still there, and
     when no block of it is being written again.
  5. What is refused to a sender is not delivered: a failed group's frames are SKIPped, and so are others that
     hold rows of the same request; where such are kept already, it is written again instead.

Opening reads names alone. Old segments are walked by their heads in the background (``recovered``);
payloads are checked as they are loaded, so a long backlog delays nobody. The room that a crash has left in a
segment is given back. Damage is copied to ``quarantine/``, counted, said, and stepped over; only what it hit is lost.
It may have hit a SEAL or a DONE: so where any was found, frames of earlier lives are counted in ClickHouse before
they are inserted.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence, Set
from functools import partial
from itertools import chain

from gateway.delivery.block import Block, Durability
from gateway.delivery.compaction import Compaction
from gateway.delivery.disk import Disk
from gateway.delivery.frames import FrameNumbers
from gateway.delivery.idempotency import Idempotency
from gateway.delivery.keyfiles import KeyFiles
from gateway.delivery.ledger import Ledger, Segment
from gateway.delivery.quarantine import Quarantine
from gateway.delivery.seals import Sealed, disjoint
from gateway.delivery.segments import (
    HEADER_BYTES,
    VOID,
    Damage,
    Frame,
    Kind,
    Member,
    Place,
    SegmentReader,
    found_segments,
    listed,
)
from gateway.delivery.walk import Backlog, Walk, trim, walk_segments
from gateway.delivery.writer import Entry, Left, Opened, Writer

log = logging.getLogger(__name__)

AGAIN_S = 1.0
"""Until what is only for our own use, and could not be written, is tried again."""


class Spool:
    """The spool of one slot. Belongs to one event loop; ``recover`` and ``load`` read in threads of their own.

    ``numbers`` says which slot, and must stay open as long as this is. ``on_damaged`` is told of blocks that the
    disk has lost. ``keys``: where to look for the idempotency keys of what it holds, and to make them known after a
    start. ``clock`` gives seconds that never go back, ``wall`` seconds since 1970.
    """

    def __init__(
        self,
        numbers: FrameNumbers,
        *,
        segment_bytes: int,
        reserve_bytes: int,
        audit_s: float,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        disk: Disk | None = None,
        keys: Idempotency | None = None,
        on_damaged: Callable[[Block], None] = lambda block: None,
    ) -> None:
        directory, self._number = numbers.place, numbers.upcoming
        self.directory = directory
        self._on_damaged = on_damaged
        self.recovered = asyncio.Event()
        self.ledger = Ledger()
        self._oldest: float | None = None
        self._unwritten: dict[int, Block] = {}
        self._origins: dict[int, int] = {}
        """By frame number, the segment that has, perhaps, a block that is being written again."""
        self._later: dict[int, tuple[asyncio.TimerHandle, Callable[[], None]]] = {}
        self._disk = disk or Disk()
        self._keys = keys
        self._key_files = KeyFiles(directory, self._disk, keys, numbers.next) if keys is not None else None
        self._is_audited = audit_s > 0
        self._counted = self._claimed = -math.inf
        self._done_at = clock()
        self._clock = clock
        self._wall = wall
        self._zero = wall() - clock()  # Whatever becomes of the time of the day: these times are to go on.
        self._quarantine = Quarantine(directory)
        self._found = found_segments(directory)
        self._old = frozenset(name.id for name, _ in self._found)
        self._is_suspect = False
        self._looked_to = 0, HEADER_BYTES
        for name, path in self._found:
            size = path.stat().st_size
            self.ledger.segments[name.id] = Segment(name, path, size, size, closed=True)
        self._writer = Writer(
            directory,
            slot=numbers.slot,
            ordinal=self._found[-1][0].ordinal + 1 if self._found else 1,
            segment_id=numbers.next,
            segment_bytes=segment_bytes,
            reserve_bytes=reserve_bytes,
            tell=self._told,
            wall=wall,
            disk=self._disk,
        )
        self._compaction = Compaction(
            self.ledger,
            segment_bytes=segment_bytes,
            append=self._writer.append,
            say=self._say,
            seal=partial(self._seal, again=True),
        )

    def described(self) -> dict[str, object]:
        """What is where, for a person."""
        return {
            "segments": len(self.ledger.segments),
            "disk_bytes": self.ledger.disk_bytes,
            "frames": sum(segment.live for segment in self.ledger.segments.values()),
            "frames_held": len(self.ledger.held),
            "recovering": not self.recovered.is_set(),
            "damaged_bytes": self.damaged_bytes,
            "failures": self.failures,
        }

    def free_bytes(self) -> int | None:
        """What the disk has left; None when it does not say."""
        try:
            return self._disk.free_bytes(self.directory)
        except OSError:
            return None

    def oldest(self) -> float | None:
        """The clock when the oldest row came that was here at the start and is not stored."""
        segments = self.ledger.segments
        waiting = any(segments[name.id].live for name, _ in self._found if name.id in segments)
        return self._oldest if waiting else None

    @property
    def damaged_bytes(self) -> int:
        """Found so far."""
        return self._quarantine.damaged_bytes

    @property
    def failures(self) -> int:
        """Groups in a row that could not be written."""
        return self._writer.failures

    def start(self) -> None:
        """Begin to write."""
        self._writer.start()

    async def stop(self) -> None:
        """Write what is lined up, and stop. What is on disk stays for the next opening."""
        for timer, write in list(self._later.values()):
            timer.cancel()
            write()
        await self._writer.stop()

    def unwritten(self) -> dict[str, int]:
        """Rows per table that are promised to be on disk, could not be written, and are to be written again."""
        rows: dict[str, int] = {}
        for block in self._unwritten.values():
            rows[block.table] = rows.get(block.table, 0) + block.rows
        return rows

    # Writing -------------------------------------------------------------------------------------

    def append(self, block: Block, kept: Callable[[Block], None], failed: Callable[[Block, OSError], None]) -> None:
        """Write a block; ``kept`` is called once it is as safe as it is to be, or ``failed`` when it never will be."""

        def entered(block: Block) -> None:
            if block.promise.fate is False and not block.is_promised:
                self._settle(Kind.SKIP, block.table, [block], partial(self._free_keys, block))
                failed(block, OSError(errno.ECANCELED, "other rows of the same requests could not be"))
            else:
                block.promise.decide(kept=True)
                self._take(kept, block)

        def refused(error: OSError, segment: int | None) -> None:
            stays = block.promise.fate or block.is_promised
            block.promise.decide(kept=stays)
            if stays and (segment is not None or block.durability > Durability.MEMORY):
                # Some of its senders are told already; the others wait a little longer.
                self._write_later(block, segment, partial(self._take, kept))
                return
            if segment is not None:
                # The file may hold it all the same, and its sender is told otherwise.
                self._say(Kind.SKIP, block.table, [(segment, block.frame)], partial(self._free_keys, block))
            elif stays:
                self._hold_keys(block)
            else:
                self._free_keys(block)
            failed(block, error)

        self._write(block, 0, entered, refused)

    def revive(self, block: Block, kept: Callable[[Block], None]) -> None:
        """Write a block again that was done and has to be inserted once more after all.

        Where it is ``suspect``, some of it may be there: it is counted first, also when it is read anew.
        """
        origin, block.place = block.on_disk.segment, None
        self._origins[block.frame] = origin
        self._write_again(block, origin, kept)

    def _write(
        self,
        block: Block,
        origin: int,
        kept: Callable[[Block], None],
        failed: Callable[[OSError, int | None], None],
    ) -> None:
        def entered(place: Place) -> None:
            self._enter(block, place)
            self._unwritten.pop(block.frame, None)
            self._origins.pop(block.frame, None)
            if origin:
                self.ledger.segments[place.segment].names.update((origin, *self.ledger.ghosts.get(block.frame, ())))
            kept(block)

        self._writer.append(
            Entry(
                Kind.DATA,
                block.data,
                entered,
                failed,
                number=block.frame,
                table=block.table,
                project_id=block.project_id,
                rows=block.rows,
                at_ms=int(self._wall() * 1000),
                origin=origin,
                suspect=block.suspect,
                keys=block.keys,
                synced=block.durability >= Durability.DISK or origin != 0,
                written=partial(block.promise.reach, Durability.OS),
            )
        )

    def _write_again(self, block: Block, origin: int, kept: Callable[[Block], None]) -> None:
        """Write a block that must not be lost, for as long as it takes; it takes the place of that in ``origin``."""

        def failed(error: OSError, segment: int | None) -> None:
            self._write_later(block, segment, kept, origin)

        self._write(block, origin, kept, failed)

    def _write_later(self, block: Block, failed: int | None, kept: Callable[[Block], None], origin: int = 0) -> None:
        self.ledger.haunt(block.frame, failed)

        def again() -> None:
            self._later.pop(block.frame)
            self._write_again(block, origin or failed or 0, kept)

        self._unwritten[block.frame] = block
        if failed is not None:
            self._origins.setdefault(block.frame, failed)
        self._later[block.frame] = asyncio.get_running_loop().call_later(AGAIN_S, again), again

    async def seal(self, table: str, token: str, blocks: Sequence[Block]) -> None:
        """Return when the batch is sealed on disk. Raises OSError when it could not be."""
        await self._seal(Sealed(table, token, tuple(block.member for block in blocks)))

    def done(self, table: str, blocks: Sequence[Block]) -> None:
        """ClickHouse has these blocks; they are not held any more."""
        self._settle(Kind.DONE, table, blocks)

    def skip(self, table: str, blocks: Sequence[Block], *, rows: int = 0) -> None:
        """These blocks need not be inserted: they are kept elsewhere now, or refused.

        ``rows``: so many of the only one's ClickHouse has all the same.
        """
        self._settle(Kind.SKIP, table, blocks, rows=rows)

    def drop(self, block: Block) -> None:
        """Let go of a block that is on disk and in no batch; ``load`` will find it."""
        del self.ledger.held[block.frame]
        self.ledger.leave_unread(block.table, block.on_disk)

    # Reading -------------------------------------------------------------------------------------

    async def recover(self) -> tuple[Backlog, list[Sealed]]:
        """Walk the segments of earlier lives. Returns what they hold, and the batches that were sealed."""
        walk = await asyncio.to_thread(walk_segments, self._found, self._quarantine, self._disk.sync_path, self._number)
        for segment_id, size in (await asyncio.to_thread(trim, self._found, walk.written, self._disk)).items():
            segment = self.ledger.segments[segment_id]
            segment.bytes = segment.end = size
        old, damaged = [name.id for name, _ in self._found], self._quarantine.segments
        for place, name in enumerate(old):
            if name in damaged:  # What it said of older ones is not known: while they are there, it stays to be seen.
                walk.names.setdefault(name, set()).update(old[:place])
        open_seals = self.ledger.take_over(walk, old, disjoint(walk.seals.values()))
        self._is_suspect = bool(damaged or walk.unreadable)
        if walk.oldest_ms is not None:
            self._oldest = self._clock() - max(0.0, self._wall() - walk.oldest_ms / 1000)
        if self._keys is not None:
            await asyncio.to_thread(self._find_keys, self._keys, walk)
        self.recovered.set()
        done = {(table, at - self._zero, letters): frames for (table, at, letters), frames in walk.done.items()}
        return Backlog(walk.rows, sum(walk.frames.values()), done if self._is_audited else {}), open_seals

    def has_unread(self, table: str) -> bool:
        """Whether ``load`` would look for frames of this table."""
        return self.recovered.is_set() and any(table in segment.unread for segment in self.ledger.segments.values())

    async def load(self, table: str, bytes_max: int) -> list[Block]:
        """The oldest blocks of a table that are neither held nor settled, from now on held.

        At least one where there is any, and no more than ``bytes_max`` of payloads beyond the first.
        One call at a time per table.
        """
        blocks: list[Block] = []
        for number in list(self.ledger.segments):
            segment = self.ledger.segments.get(number)
            if segment is None or table not in segment.unread or bytes_max <= 0:
                continue
            start, end = segment.unread.pop(table), segment.end
            try:
                loaded, goes_on = await asyncio.to_thread(self._load, segment, table, start, end, bytes_max)
            except OSError as error:
                log.error("spool: %s cannot be read: %s", segment.name.file, error.strerror)  # noqa: TRY400
                segment.unread[table] = min(start, segment.unread.get(table, start))
                continue
            if goes_on is not None:
                segment.unread[table] = min(goes_on, segment.unread.get(table, goes_on))
            for block, damage in loaded:
                self.ledger.held[block.frame] = block
                if damage:
                    self._give_up(block)
                else:
                    blocks.append(block)
                    bytes_max -= len(block.data)
        return blocks

    async def load_sealed(self, token: str) -> list[Block]:
        """The blocks of a sealed batch, from now on held; those that are damaged or gone are left out.

        Raises OSError, and holds none, where some cannot be read now.
        """
        members = self.ledger.sealed[token].members
        loaded = await self._load_members(filter(self.ledger.is_live, members))
        blocks = []
        self.ledger.sealed_frames.difference_update(frame for _, frame in members)
        self.ledger.unseal({frame for _, frame in members} - {block.frame for block, _ in loaded})
        for block, damage in loaded:
            self.ledger.held[block.frame] = block
            if damage:
                self._give_up(block)
            else:
                blocks.append(block)
        return blocks

    async def read(self, members: Iterable[Member]) -> list[Block]:
        """Blocks as they are on disk, whatever became of them; those that are damaged or gone are left out.

        Raises OSError where some cannot be read now.
        """
        return [block for block, damage in await self._load_members(members) if not damage]

    def sweep(self, safe: float, *, needed: Set[int] = frozenset(), counted: float = -math.inf) -> None:
        """Remove the segments that nobody needs any more. To be called every second or so.

        ``safe``: the clock before which they have to be over. ``needed``: ids of segments that are to stay.
        ``counted``: the clock before which what was done needs no audit, which the next DONE says.
        """
        self._counted = counted
        if self.recovered.is_set():
            if self._claimed < self._done_at < counted and not self._origins:  # What is written again is not safe yet.
                self._say(Kind.DONE, "", [])  # There may be none for long, and the next start has less to count.
            needed = needed | set(self._origins.values())
            for segment in self.ledger.removable(self._clock(), safe, needed):
                self._writer.remove(segment.path, partial(self._keep_keys, segment))

    async def compact(self) -> bool:
        """Give back the disk of one segment in which little is left; false when there was none worth it."""
        return self.recovered.is_set() and await self._compaction.run()

    async def _seal(self, sealed: Sealed, *, again: bool = False) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def kept(place: Place) -> None:
            self.ledger.segments[place.segment].names.update(segment for segment, _ in sealed.members)
            if not again:
                self.ledger.seal(sealed, place.segment, [frame for _, frame in sealed.members])
            elif sealed.token in self.ledger.sealed:  # it may be done meanwhile
                self.ledger.sealed[sealed.token] = sealed
                self.ledger.homes[sealed.token] = place.segment
            if not done.cancelled():
                done.set_result(None)

        def failed(error: OSError, _: int | None) -> None:
            if not done.cancelled():
                done.set_exception(error)

        self._writer.append(Entry(Kind.SEAL, listed(sealed.members, sealed.token), kept, failed, table=sealed.table))
        await done

    def _told(self, what: Opened | Left) -> None:
        if isinstance(what, Opened):
            path = self.directory / what.name.file
            self.ledger.segments[what.name.id] = Segment(what.name, path, what.bytes, HEADER_BYTES)
        else:
            segment = self.ledger.segments[what.segment]
            segment.closed, segment.bytes = True, what.bytes
            segment.shorten()

    def _enter(self, block: Block, place: Place) -> None:
        block.place = place
        self.ledger.held[block.frame] = block
        self.ledger.add(block.project_id, place)

    def _settle(
        self,
        kind: Kind,
        table: str,
        blocks: Sequence[Block],
        void: Callable[[], None] | None = None,
        *,
        rows: int = 0,
    ) -> None:
        on_disk = [block for block in blocks if block.place is not None]
        members: list[Member] = []
        for block in on_disk:
            self.ledger.held.pop(block.frame, None)
            self.ledger.settle(block.on_disk, block.frame, block.project_id)
            members += self.ledger.places(*block.member)
            self._compaction.settled(*block.member, kind, rows)
            self.ledger.ghosts.pop(block.frame, None)
        self.ledger.unseal(block.frame for block in on_disk)
        if members:
            self._say(kind, table, members, void, rows=rows)

    def _say(
        self,
        kind: Kind,
        table: str,
        members: list[Member],
        void: Callable[[], None] | None = None,
        *,
        rows: int = 0,
        synced: bool = False,
    ) -> None:
        """Write down what became of frames, at some time: until then a restart would only ask again.

        ``void``: they were never promised, and this is to be called when that is on disk.
        """

        def kept(place: Place) -> None:
            self.ledger.segments[place.segment].names.update(segment for segment, _ in members)
            if void is not None:
                void()

        def failed(error: OSError, _: int | None) -> None:
            asyncio.get_running_loop().call_later(AGAIN_S, again)

        again = partial(self._say, kind, table, members, void, rows=rows, synced=synced)
        payload = listed(members, VOID if void is not None else "")
        now, safe = self._clock(), -math.inf if self._origins else self._counted
        self._done_at, self._claimed = (now if members else self._done_at), max(self._claimed, safe)
        # Where the time of the day was put on meanwhile, it was done rather late than early.
        number, at_ms = self._milliseconds(safe), max(self._milliseconds(now), int(self._wall() * 1000))
        synced = synced or kind == Kind.SKIP
        self._writer.append(Entry(kind, payload, kept, failed, number, table, rows=rows, at_ms=at_ms, synced=synced))

    def _milliseconds(self, moment: float) -> int:
        """Since 1970, of a moment by the clock."""
        return int(max(0.0, self._zero + moment) * 1000)

    def _take(self, kept: Callable[[Block], None], block: Block) -> None:
        self._hold_keys(block)
        kept(block)

    def _hold_keys(self, block: Block) -> None:
        """What a block holds need not be stored again."""
        if self._keys is not None and block.keys:
            self._keys.kept(block.keys)

    def _free_keys(self, block: Block) -> None:
        """A block will never be delivered, not after a restart either: what it held may be stored again."""
        if self._keys is not None and block.keys:
            self._keys.refused(block.keys)

    def _give_up(self, block: Block) -> None:
        """The disk has lost this block."""
        self.skip(block.table, [block])
        self._on_damaged(block)

    async def _load_members(self, members: Iterable[Member]) -> list[tuple[Block, bool]]:
        """(block, whether it is damaged) of those that are there. Raises OSError."""
        by_segment: dict[int, set[int]] = {}
        for segment_id, frame in members:
            by_segment.setdefault(segment_id, set()).add(frame)
        loaded: list[tuple[Block, bool]] = []
        for segment_id, wanted in by_segment.items():
            segment = self.ledger.segments.get(segment_id)
            if segment is not None:
                loaded += await asyncio.to_thread(self._load_these, segment, wanted)
        return loaded

    # In threads ------------------------------------------------------------------------------------

    def _load(
        self, segment: Segment, table: str, start: int, end: int, bytes_max: int
    ) -> tuple[list[tuple[Block, bool]], int | None]:
        """((block, whether it is damaged) of a table, where to go on), read from ``start``."""
        loaded: list[tuple[Block, bool]] = []
        loaded_bytes = 0
        with SegmentReader(segment.path, segment.name, end) as reader:
            for found in reader.frames(start):
                if isinstance(found, Damage):
                    self._quarantine.take(reader, found.place)
                    continue
                if found.kind != Kind.DATA or found.table != table:
                    continue
                if self.ledger.is_known(segment, found.number):
                    continue
                if loaded and loaded_bytes + found.payload_bytes > bytes_max:
                    return loaded, found.place.offset
                loaded.append(self._block(reader, found))
                loaded_bytes += found.payload_bytes
        return loaded, None

    def _find_keys(self, keys: Idempotency, walk: Walk) -> None:
        """Make known whose requests' rows are here, or were."""
        if self._key_files is not None:
            self._key_files.load()
        keys.found(b"".join(walk.keys))
        keys.all_found()

    def _keep_keys(self, segment: Segment) -> None:
        if self._key_files is not None:
            self._key_files.keep_of(segment)

    def _load_these(self, segment: Segment, wanted: set[int]) -> list[tuple[Block, bool]]:
        """Looks on from where it found the last: who wants some wants those behind them next."""
        loaded: list[tuple[Block, bool]] = []
        segment_id, start = self._looked_to
        start = start if segment_id == segment.name.id else HEADER_BYTES
        with SegmentReader(segment.path, segment.name, segment.end) as reader:
            for found in chain(reader.frames(start), reader.frames()):
                if isinstance(found, Frame) and found.kind == Kind.DATA and found.number in wanted:
                    loaded.append(self._block(reader, found))
                    self._looked_to = segment.name.id, found.place.offset + found.place.bytes
                    wanted.remove(found.number)
                if not wanted:
                    break
        return loaded

    def _block(self, reader: SegmentReader, frame: Frame) -> tuple[Block, bool]:
        payload = reader.payload(frame)
        if payload is None:
            self._quarantine.take(reader, frame.place)
        age_s = max(0.0, self._wall() - frame.at_ms / 1000)
        block = Block(
            frame.table,
            frame.project_id,
            frame.number,
            frame.rows,
            payload or b"",
            self._clock() - age_s,
            place=frame.place,
            suspect=frame.suspect or (self._is_suspect and frame.place.segment in self._old),
        )
        return block, payload is None
