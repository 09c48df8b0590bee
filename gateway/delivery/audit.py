"""What ClickHouse acknowledged and then lost: found and inserted again.

ClickHouse does not sync its parts by default. When it dies with its machine it may lose what it has
just said OK to. So what was stored is remembered for ``audit_ms``, as long as the spool keeps it, and
when the server turns out to have started anew, all of it is counted by frames once more. Blocks that
are gone go back to the spool and from there the usual way; of blocks that are there in part, the rest
is inserted at once, without those that became dead letters and are to be missing. A block that is gone is searched
for them once more, and its letters are taken back.

A server that cannot be asked is asked again; nothing here is in anybody's way.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from gateway.delivery.block import Block
from gateway.delivery.clickhouse import Ambiguous, Busy, ClickHouse, DeliveryError, Poison
from gateway.delivery.segments import Member
from gateway.schema import Table

log = logging.getLogger(__name__)

LOOK_S = 5.0
CLOCKS_DRIFT = 0.001
"""By how much the server's clock may go faster or slower than ours."""
FRAMES_PER_COUNT = 250
ROUNDS_MAX = 8
"""Of inserting again what is missing; then it is not for having been lost."""


@dataclass(slots=True, eq=False)
class Stored:
    """A batch that ClickHouse acknowledged ``at`` some clock: its frames and how many rows of each are there.

    ``dead``: the numbers of its only frame's rows that are not. ``tokens``: of inserts of the rest of a frame, by
    its number and the first row, that nobody knows the outcome of.
    """

    at: float
    table: Table
    rows: dict[Member, int]
    dead: Sequence[int]
    tokens: dict[tuple[int, int], str] = field(default_factory=dict)


class Audit:
    """``read`` gives blocks as the spool has them; ``again`` is given those that ClickHouse lost whole."""

    def __init__(
        self,
        clickhouse: ClickHouse,
        *,
        read: Callable[[Iterable[Member]], Awaitable[list[Block]]],
        again: Callable[[Block], None],
        token: Callable[[], str],
        keep_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._clickhouse = clickhouse
        self._read = read
        self._again = again
        self._token = token
        self._keep_s = keep_s
        self._clock = clock
        self._stored: deque[Stored] = deque()
        self._suspects: list[Stored] = []
        self._looked = 0.0
        self._started: tuple[float, float] | None = None

    def stored(self, table: Table, blocks: Sequence[Block], dead: Sequence[int] = ()) -> None:
        """ClickHouse has acknowledged these blocks now; of a single one all rows but ``dead``, in order."""
        rows = {_member(block): block.rows - len(dead) for block in blocks if block.place is not None}
        if rows and self._keep_s:
            self._stored.append(Stored(self._clock(), table, rows, dead))
        self._forget()

    async def run(self) -> None:
        """Look after the server until cancelled."""
        while True:
            try:
                await self.look()
            except DeliveryError as error:
                log.debug("ClickHouse cannot be asked for its uptime: %s", error)
            except OSError as error:
                log.error("what ClickHouse has lost cannot be read from the spool now: %s", error.strerror)  # noqa: TRY400
            except Exception:  # A fault of ours must not end the watch.
                log.exception("the audit stumbled and goes on")
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Ask whether the server started anew, and if so, count.

        Raises DeliveryError when it cannot be asked, OSError when the spool cannot be read; what was to be
        counted is counted at the next look.
        """
        before = self._clock()
        uptime_s = await self._clickhouse.uptime_s()
        self._forget()
        # It is in whole seconds, and takes a moment to be asked for: the server started between these two.
        earliest, latest = before - uptime_s - 1, self._clock() - uptime_s
        drift = CLOCKS_DRIFT * (before - self._looked)
        self._looked = before
        if self._started is not None and earliest <= self._started[1] + drift:
            if latest >= self._started[0] - drift:  # else it is another one, of several, and older
                self._started = self._started[0] - drift, min(latest, self._started[1] + drift)
        else:
            self._started = earliest, latest
            suspects = [batch for batch in self._stored if batch not in self._suspects]
            if suspects:
                log.warning("ClickHouse has started anew: counting %d batches it had acknowledged", len(suspects))
            self._suspects += suspects
        failed: DeliveryError | None = None
        for batch in list(self._suspects):
            try:
                await self._check(batch)
            except (Busy, Ambiguous):
                raise  # The server is away for all of them.
            except DeliveryError as error:
                failed = error  # One table is in nobody's way.
            else:
                self._suspects.remove(batch)
        if failed is not None:
            raise failed

    @property
    def needed(self) -> set[int]:
        """The segments that hold what is still to be counted."""
        return {segment for batch in self._suspects for segment, _ in batch.rows}

    def _forget(self) -> None:
        while self._stored and self._stored[0].at < self._clock() - self._keep_s:
            self._stored.popleft()

    async def _check(self, batch: Stored) -> None:
        """Count a batch, and insert again what is missing, until nothing is."""
        for _ in range(ROUNDS_MAX):
            lost = await self._lost(batch)
            if not lost:
                return
            blocks = await self._read(lost)
            log.error(
                "%s: ClickHouse lost rows of %d blocks it had acknowledged; those of %d are inserted again",
                batch.table.name,
                len(lost),
                len(blocks),
            )
            found = {_member(block): block for block in blocks}
            rest = {member: block for member, block in found.items() if lost[member]}
            for member, block in rest.items():
                try:
                    await self._insert_rest(batch, block)
                except Poison:  # The table takes some of it no more: that is searched for, as it is elsewhere.
                    block.suspect = True
                    self._again(block)
                    del batch.rows[member]
            for member in lost.keys() - rest.keys():
                del batch.rows[member]  # From here on it goes the usual way, or is not in the spool any more.
            for member, block in found.items():
                if member not in rest:
                    block.suspect = bool(batch.dead)  # A replay may store those meanwhile.
                    self._again(block)
            if not rest:
                return
        log.error("%s: it does not keep rows that are inserted again; does its TTL delete them?", batch.table.name)

    async def _insert_rest(self, batch: Stored, block: Block) -> None:
        """Insert what is missing of a block."""
        for run in _between(batch.dead, block.rows):
            # Nobody knows what became of an attempt before, so it is the same one until there is an answer.
            token = batch.tokens.setdefault((block.frame, run[0]), self._token())
            await self._clickhouse.insert_absent(batch.table, block.data, frame=block.frame, token=token, rows=run)
            del batch.tokens[block.frame, run[0]]

    async def _lost(self, batch: Stored) -> dict[Member, int]:
        """The frames of which rows are missing, and how many are there."""
        if batch.dead and batch.rows:
            # Those that a replay has stored meanwhile stand for no others.
            ((member, rows),) = batch.rows.items()
            found = len(await self._clickhouse.stored_rows(batch.table, member[1]) - set(batch.dead))
            return {member: found} if found < rows else {}
        there: dict[int, int] = {}
        frames = [frame for _, frame in batch.rows]
        for start in range(0, len(frames), FRAMES_PER_COUNT):
            there |= await self._clickhouse.rows_by_frame(batch.table, frames[start : start + FRAMES_PER_COUNT])
        return {
            member: there.get(member[1], 0) for member, rows in batch.rows.items() if there.get(member[1], 0) < rows
        }


def _between(dead: Sequence[int], rows: int) -> Iterator[tuple[int, int]]:
    """The first and the last of the rows of each run without a dead one."""
    for before, after in pairwise((-1, *dead, rows)):
        if before + 1 < after:
            yield before + 1, after - 1


def _member(block: Block) -> Member:
    return block.on_disk.segment, block.frame
