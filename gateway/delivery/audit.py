"""What ClickHouse acknowledged and then lost: found and inserted again.

ClickHouse does not sync its parts by default. When it dies with its machine it may lose what it has just said OK to.
So what was stored is remembered, and kept in the spool, until the same server has been seen running ``audit_ms``
later; while it is away all of that stays. When it turns out to have started anew, all of it is counted by frames once
more. Blocks that are gone go back to the spool and from there the usual way; a block with dead letters is searched for
them once more, and its letters are taken back. Of blocks that are there in part the rest is inserted at once, without
those rows that became dead letters. Who does so after us, in another life, has the same tokens: of what we have sent
then and is still under way the server takes nothing twice.

We may die with it, being on the same machine. So each DONE in the spool says when it was, and a time before which all
that was done is safe. What a start finds behind that is remembered like the rest, and counted where the server has
started since.

A server that cannot be asked is asked again; nothing here is in anybody's way.
"""

from __future__ import annotations

import asyncio
import logging
import math
from array import array
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain, pairwise
from operator import attrgetter

from gateway.delivery.answers import Ambiguous, Busy, DeliveryError, Poison
from gateway.delivery.block import Block
from gateway.delivery.clickhouse import ClickHouse
from gateway.delivery.segments import Member
from gateway.delivery.unanswered import UNANSWERED, Unanswered
from gateway.schema import Table

log = logging.getLogger(__name__)

LOOK_S = 5.0
LOOKS_A_KEEPING = 4
"""What is kept for a short time is looked after more often."""
CLOCKS_DRIFT = 0.001
"""By how much the server's clock may go faster or slower than ours."""
WALL_CLOCKS_DIFFER_S = 60.0
"""What an earlier life did may be so much older than it seems."""
LOOK_S_MIN = 0.05
UNKNOWN_LOOKS_MAX = 720
"""An hour of them: what was stored in a table that nobody has named by then is kept only where there is room."""
HURRIED_S = 40.0
"""A system writes what it was given within 35 s."""
FRAMES_MAX = 2_000_000
"""So many are remembered, at 24 bytes; beyond, the oldest are let go."""
FRAMES_PER_COUNT = 250
FRAMES_PER_READ = 16
ROUNDS_MAX = 8
"""Of inserting again what is missing; then it is not for having been lost."""


@dataclass(slots=True, eq=False)
class Stored:
    """A batch that ClickHouse acknowledged ``at`` some clock.

    ``frames``: the segment, number and rows there of each, one behind the other. ``dead``: the numbers of its only
    frame's rows that are dead letters; None where each has some, and nobody remembers which. ``rests``: how often
    the rest of a frame was inserted, by its number and the first row. ``earlier``: it was in an earlier life, whose
    clock is known by the time of the day alone. ``looks``: how often it was to be counted, and its table was not known.
    ``kept``: it is remembered. ``unanswered``: inserts of rests that may still come through.
    """

    at: float
    table: str
    frames: array[int]
    dead: Sequence[int] | None = ()
    earlier: bool = False
    looks: int = 0
    kept: bool = False
    rests: dict[tuple[int, int], int] = field(default_factory=dict)
    unanswered: Unanswered = field(default_factory=Unanswered)

    @property
    def rows(self) -> dict[Member, int]:
        """How many rows of each frame are there."""
        return dict(zip(zip(self.frames[::3], self.frames[1::3], strict=True), self.frames[2::3], strict=True))

    def drop(self, members: Set[Member]) -> None:
        """Look after these frames no more."""
        left = ((*member, rows) for member, rows in self.rows.items() if member not in members)
        self.frames = array("Q", chain.from_iterable(left))


class Audit:
    """``read`` gives blocks as the spool has them; ``again`` is given those that ClickHouse lost whole.

    ``has_room``: whether there is memory for some more of them.
    """

    def __init__(
        self,
        clickhouse: ClickHouse,
        *,
        read: Callable[[Iterable[Member]], Awaitable[list[Block]]],
        again: Callable[[Block], None],
        has_room: Callable[[], bool],
        keep_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._clickhouse = clickhouse
        self._read = read
        self._again = again
        self._has_room = has_room
        self._keep_s = keep_s
        self._clock = clock
        self._stored: deque[Stored] = deque()
        self._frames = 0
        self._suspects: dict[Stored, set[int]] = {}
        self._mended: dict[Stored, tuple[float, set[int]]] = {}
        self._looked = 0.0
        self._met = -math.inf
        self._started: tuple[float, float] | None = None
        self._seen = -math.inf
        self._mute_since = math.inf
        self._said = ""
        self._knows_all = False
        self._tables: dict[str, Table] = {}

    def add_table(self, table: Table) -> None:
        """From now on what is stored in this table can be counted."""
        self._tables[table.name] = table

    def stored(self, table: str, blocks: Sequence[Block], dead: Sequence[int] = (), at: float | None = None) -> None:
        """ClickHouse has acknowledged these blocks, now or ``at``; of a single one all rows but ``dead``, in order."""
        found = ((*block.member, block.rows - len(dead)) for block in blocks if block.place is not None)
        stored_at = self._clock() if at is None else at
        for frames in _cut(array("Q", chain.from_iterable(found))):
            batch = Stored(stored_at, table, frames, dead)
            self._remember(batch)
            if batch.kept and self._started is not None and stored_at < self._started[1]:
                self._suspects[batch] = set(frames[::3])  # It has started anew meanwhile.

    def found(self, table: str, at: float, frames: array[int], *, letters: bool) -> None:
        """What earlier lives stored then. ``letters``: of each frame some rows are dead letters."""
        if at > self._clock():  # The time of the day was put back: nobody knows when it was.
            at = -math.inf
        for some in _cut(frames):
            batch = Stored(at, table, some, None if letters else (), earlier=True)
            batch.unanswered.add(self._clock(), self._clickhouse)  # Who found it before may have been inserting some.
            self._remember(batch)

    def found_all(self) -> None:
        """All that earlier lives stored was said."""
        self._stored = deque(sorted(self._stored, key=attrgetter("at")))
        self._started = None  # Whoever is there now may have started since.
        self._knows_all = True

    def safe(self, *, hurry: bool = False) -> float:
        """The clock before which nothing that was stored is needed but what is ``needed``; minus infinity: unknown yet.

        ``hurry``: there is little room, so nothing is kept for longer than a system takes to write it.
        """
        if not self._keep_s:
            return self._clock()
        return self._seen - (min(self._keep_s, HURRIED_S) if hurry else self._keep_s)

    @property
    def counted(self) -> float:
        """The clock before which all that was stored is safe; minus infinity while that is not known."""
        batches = (*self._suspects, *self._mended)
        return min([self.safe(), *(batch.at for batch in batches)]) - WALL_CLOCKS_DIFFER_S

    def give_up(self) -> None:
        """Forget what was stored in a table that is gone for long: with it stays all that came later.

        Only for want of room. Anything else that cannot be counted can be mended, and waits for that.
        """
        for batch in [batch for batch in self._suspects if batch.looks > UNKNOWN_LOOKS_MAX]:
            log.error("%s: there is no such table any more; what ClickHouse has of it is not counted", batch.table)
            del self._suspects[batch]

    @property
    def needed(self) -> set[int]:
        """The segments that hold what is still to be counted, or was inserted again and may be lost once more."""
        return set[int]().union(*self._suspects.values(), *(segments for _, segments in self._mended.values()))

    async def run(self) -> None:
        """Look after the server until cancelled."""
        while True:
            try:
                await self.look()
            except (Busy, Ambiguous) as error:
                log.debug("it is not counted yet what ClickHouse has: %s", error)
            except DeliveryError as error:
                self._say(f"ClickHouse cannot be asked what it has: {error}")
            except OSError as error:
                self._say(f"what ClickHouse has lost cannot be read from the spool now: {error.strerror}")
            except Exception:  # A fault of ours must not end the watch.
                log.exception("the audit stumbled and goes on")
            else:
                self._said = ""
            await asyncio.sleep(
                min(LOOK_S, max(LOOK_S_MIN, self._keep_s / LOOKS_A_KEEPING)) if self._keep_s else LOOK_S
            )

    def _say(self, trouble: str) -> None:
        """The same trouble is said once."""
        if trouble != self._said:
            log.error("%s", trouble)
        self._said = trouble

    async def look(self) -> None:
        """Ask whether the server started anew, and if so, count.

        Raises DeliveryError when it cannot be asked, OSError when the spool cannot be read; what was to be
        counted is counted at the next look.
        """
        before = self._clock()
        uptime_s = await self._uptime_s(before)
        # It is in whole seconds, and takes a moment to be asked for: the server started between these two.
        earliest, latest = before - uptime_s - 1, self._clock() - uptime_s
        drift = CLOCKS_DRIFT * (before - self._looked)
        self._looked = before
        is_older = self._started is not None and latest < self._started[0] - drift
        if is_older and before - self._met <= self._keep_s:
            return  # It is another one, of several, and says nothing of the one that has the rows.
        if self._started is not None and not is_older and earliest <= self._started[1] + drift:
            self._started = self._started[0] - drift, min(latest, self._started[1] + drift)
            self._see(before)
        else:
            # At the first look only this tells what another one took before; what was stored since is here.
            self._suspect(latest if self._started is None else math.inf)
            self._started = earliest, latest
            self._see(before)
        await self._count()

    async def _count(self) -> None:
        """Count all suspects. What fails ends the look for its table, and is in nobody else's way."""
        failed: dict[str, DeliveryError | OSError] = {}
        for batch in list(self._suspects):
            if batch not in self._suspects:
                continue  # It was given up meanwhile.
            if batch.table not in self._tables:
                batch.looks += 1  # It may be added behind the start, when Postgres tells of it.
                continue
            batch.looks = 0
            if batch.table in failed:
                continue
            self._suspects[batch] = self._suspects.pop(batch)  # Should it fail, the next look begins with others.
            try:
                await self._check(batch)
            except DeliveryError as error:
                failed[batch.table] = error
            except OSError as error:
                failed[""] = error  # It is a file's trouble, and no table's.
            else:
                del self._suspects[batch]
                if batch.earlier and batch.frames:  # Who found it before us may have inserted some again just now.
                    self._keep(batch)
        for first in failed.values():
            raise first

    async def _uptime_s(self, before: float) -> float:
        try:
            uptime_s = await self._clickhouse.uptime_s()
        except (Busy, Ambiguous):
            raise
        except DeliveryError:
            self._mute_since = min(self._mute_since, before)
            if self._stored and self._stored[-1].at > self._mute_since + self._keep_s:
                self._see(before)  # It takes rows all the time, and never says it: it must not fill our disk.
            raise
        self._mute_since = math.inf
        return uptime_s

    def _remember(self, batch: Stored) -> None:
        if not self._keep_s:
            return
        batch.kept = True
        self._stored.append(batch)
        self._frames += len(batch.frames) // 3
        while self._frames > FRAMES_MAX:
            self._let_go()

    def _see(self, at: float) -> None:
        """The server runs: what was stored for long enough is on its disk."""
        self._met = at
        if not self._knows_all:
            return
        self._seen = at
        while self._stored and self._stored[0].at < self._seen - self._keep_s:
            self._let_go()
        for batch, (mended_at, _) in list(self._mended.items()):
            if mended_at < self._seen - self._keep_s:
                del self._mended[batch]

    def _let_go(self) -> None:
        batch = self._stored.popleft()
        batch.kept = False
        self._frames -= len(batch.frames) // 3

    def _suspect(self, until: float) -> None:
        """What was stored until then the server may have lost."""
        stored = [batch for batch in self._stored if batch.at <= until + WALL_CLOCKS_DIFFER_S * batch.earlier]
        suspects = {batch: set(batch.frames[::3]) for batch in (*self._mended, *stored)}
        if suspects:
            log.warning("ClickHouse has started anew: counting %d batches it had acknowledged", len(suspects))
        self._suspects |= suspects

    async def _check(self, batch: Stored) -> None:
        """Count a batch, and insert again what is missing, until nothing is."""
        for _ in range(ROUNDS_MAX):
            lost = await self._lost(batch)
            if not lost:
                return
            if batch.dead is None and any(lost.values()) and await self._may_come_through(batch):
                raise Busy(f"a part of it is there; {UNANSWERED}")
            log.error("%s: ClickHouse lost rows of %d blocks that it had acknowledged", batch.table, len(lost))
            members = list(lost)
            for start in range(0, len(members), FRAMES_PER_READ):
                if not self._has_room():
                    raise Busy("what ClickHouse has lost waits for room in memory")
                await self._mend(batch, {member: lost[member] for member in members[start : start + FRAMES_PER_READ]})
        log.error("%s: it does not keep rows that are inserted again; does its TTL delete them?", batch.table)

    async def _mend(self, batch: Stored, lost: Mapping[Member, int]) -> None:
        """Have frames of which so many rows are there inserted again."""
        found = {block.member: block for block in await self._read(lost)}
        if len(found) < len(lost):
            log.error("%s: %d of these blocks are not in the spool any more", batch.table, len(lost) - len(found))
        rest = {} if batch.dead is None else {member: block for member, block in found.items() if lost[member]}
        self._drop(batch, lost.keys() - rest.keys())
        for block in (block for member, block in found.items() if member not in rest):
            block.suspect = batch.dead is None or bool(batch.dead)  # A replay may store those meanwhile.
            self._again(block)
        for member, block in rest.items():
            self._keep(batch)
            try:
                await self._insert_rest(batch, block)
            except Ambiguous as error:
                batch.unanswered.note(error, self._clock(), self._clickhouse)
                raise
            except Poison as error:  # The table takes some of it no more: that is searched for, as it is elsewhere.
                if await self._may_come_through(batch):
                    raise Busy(f"{error}; {UNANSWERED}") from error
                block.suspect = True
                self._again(block)
                self._drop(batch, {member})
            self._keep(batch)

    async def _may_come_through(self, batch: Stored) -> bool:
        return await batch.unanswered.may_come_through(self._clock(), self._clickhouse)

    def _keep(self, batch: Stored) -> None:
        """Some of it was inserted again just now, and may be lost once more."""
        self._mended[batch] = self._clock(), set(batch.frames[::3])

    def _drop(self, batch: Stored, members: Set[Member]) -> None:
        """They are looked after elsewhere; the batch itself may be let go already."""
        batch.drop(members)
        self._frames -= len(members) * batch.kept

    async def _insert_rest(self, batch: Stored, block: Block) -> None:
        """Insert what is missing of a block."""
        table, frame = self._tables[batch.table], block.frame
        for run in _between(batch.dead or (), block.rows):
            times = batch.rests.get((frame, run[0]), 0)
            token = f"{frame:016x}-rest-{run[0]}-{run[1]}-{times}"
            await self._clickhouse.insert_absent(table, block.data, frame=frame, token=token, rows=run)
            batch.rests[frame, run[0]] = times + 1

    async def _lost(self, batch: Stored) -> dict[Member, int]:
        """The frames of which rows are missing, and how many are there."""
        stored, table = batch.rows, self._tables[batch.table]
        if batch.dead and stored:
            # Those that a replay has stored meanwhile stand for no others.
            ((member, rows),) = stored.items()
            found = len(await self._clickhouse.stored_rows(table, member[1]) - set(batch.dead))
            return {member: found} if found < rows else {}
        there: dict[int, int] = {}
        frames = [frame for _, frame in stored]
        for start in range(0, len(frames), FRAMES_PER_COUNT):
            there |= await self._clickhouse.rows_by_frame(table, frames[start : start + FRAMES_PER_COUNT])
        return {member: there.get(member[1], 0) for member, rows in stored.items() if there.get(member[1], 0) < rows}


def _cut(frames: array[int]) -> Iterator[array[int]]:
    """As many at a time as are counted at once."""
    for start in range(0, len(frames), 3 * FRAMES_PER_COUNT):
        yield frames[start : start + 3 * FRAMES_PER_COUNT]


def _between(dead: Sequence[int], rows: int) -> Iterator[tuple[int, int]]:
    """The first and the last of the rows of each run without a dead one."""
    for before, after in pairwise((-1, *dead, rows)):
        if before + 1 < after:
            yield before + 1, after - 1
