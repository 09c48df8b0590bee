"""What becomes of a batch that the server will never take: its guilty rows are found and kept aside.

    refused --count--> frames that are there -----------------------------------------> stored
                 '---> search by frame --taken------------------------------------------> stored
                            '--guilty--> search by row --taken--.
                                              '--guilty: dead letter, synced--'--> SKIP

By frame a try is a batch of its own, with a token and a SEAL of its own, and everything that holds for
batches holds for it. By row a try inserts those rows of one run that are not there, under a token and a
SEAL as well, and then asks which rows of the frame are there. A frame is settled when each of its rows is
stored or in a dead letter, which is asked once more at the end: a search may take hours, and a server that dies
meanwhile may lose what it took. After a crash the search begins again with what is not settled, and by what
is there: nothing needs to be remembered of it but the SEALs (``seals.py``).

Tries are at most 2 log2 n + 2 for each bad row of n. One batch of a shard is searched at a time, so poison
never takes more than one of a shard's places in flight.

A table that no row fits is not the rows' fault. When ``refused_rows_max`` rows (or frames) were refused and
none taken, the search stops: the batch is a suspect, and one try at a time shows whether the table takes
rows again. As soon as it takes any, of whatever batch, the search goes on. With SUSPECTS_MAX suspects the
table is parked: a person has to look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from gateway.delivery.answers import (
    CHECKSUM_WRONG,
    CUT_SHORT,
    UNCOMPRESSIBLE,
    Ambiguous,
    Busy,
    DeliveryError,
    Operator,
    Poison,
)
from gateway.delivery.batch import Batch, Hunt, Isolation, Queue
from gateway.delivery.block import Block
from gateway.delivery.clickhouse import ClickHouse
from gateway.delivery.deadletter import DeadLetters, DeadLettersBusy, DeadLettersFull
from gateway.delivery.frames import FrameNumbers
from gateway.delivery.letter import Letter, letter_of, letter_of_block
from gateway.delivery.seals import by_row
from gateway.delivery.search import Search
from gateway.delivery.spool import Spool
from gateway.delivery.unanswered import UNANSWERED, Unanswered
from gateway.schema import Table

SUSPECTS_MAX = 3
"""So many batches of a table without one row that was taken; then it is parked."""
SUSPICIONS_MAX = 5
"""So often a block may look cut short, or a batch too large for the server, before we believe it."""
REPAIRS_MAX = 8
"""So many rounds of inserting what is missing; then the table does not keep these rows."""
NOT_KEPT = "the table does not keep the rows of this batch; does its TTL or a mutation delete them?"
_ROWS_PER_READ = 500
_FRAMES_PER_COUNT = 250
"""They go in the URL; what stands between us and the server may refuse a longer one."""


async def counted(clickhouse: ClickHouse, table: Table, blocks: list[Block]) -> dict[int, int]:
    """How many rows of each block's frame the table holds; those without any are left out."""
    stored: dict[int, int] = {}
    for start in range(0, len(blocks), _FRAMES_PER_COUNT):
        frames = [block.frame for block in blocks[start : start + _FRAMES_PER_COUNT]]
        stored |= await clickhouse.rows_by_frame(table, frames)
    return stored


class Isolator:
    """Searches refused batches. ``wall``: seconds since 1970.

    ``deliver`` sends a batch until it is known to be stored. ``attempt`` counts what it awaits as an insert.
    ``taken`` is told when a table takes rows, ``stored`` that blocks of a batch are there, ``buried`` which
    rows of one are not, but in dead letters; the others were there at the clock that it is told.
    """

    def __init__(
        self,
        clickhouse: ClickHouse,
        spool: Spool,
        frames: FrameNumbers,
        letters: DeadLetters,
        *,
        refused_rows_max: int,
        clock: Callable[[], float],
        wall: Callable[[], float],
        deliver: Callable[[Batch], Awaitable[None]],
        attempt: Callable[[Table, Awaitable[None]], Awaitable[None]],
        taken: Callable[[Queue], None],
        stored: Callable[[Batch, list[Block]], None],
        buried: Callable[[Batch, Block, Sequence[int], float], None],
    ) -> None:
        self._clickhouse = clickhouse
        self._spool = spool
        self._frames = frames
        self._letters = letters
        self._refused_rows_max = refused_rows_max
        self._clock = clock
        self._wall = wall
        self._deliver = deliver
        self._attempt = attempt
        self._taken = taken
        self._stored = stored
        self._buried = buried

    async def run(self, queue: Queue, batch: Batch, isolation: Isolation) -> None:
        """Return when every row of the batch is stored or in a dead letter. Raises what keeps it from that for now."""
        isolation.suspect = self._is_suspicious(queue)
        while True:
            search = isolation.frames or await self._count(batch, isolation)
            run = search.next()
            if run is None:
                break
            await self._try_frames(queue, batch, isolation, search, run)
        while isolation.guilty or isolation.found:
            if isolation.guilty:
                block, reason = isolation.guilty[0]
                hunt = isolation.hunt = isolation.hunt or await self._begin(queue, batch, block, reason)
                while (run := hunt.search.next()) is not None:
                    await self._try_rows(queue, batch, isolation, hunt, run)
                isolation.found.append((block, hunt))
                isolation.guilty.popleft()
                isolation.hunt = None
            else:
                block, hunt = isolation.found[0]
                if not await self._bury(batch, block, hunt):
                    isolation.guilty.append((block, None))
                    isolation.hunt = hunt
                isolation.found.popleft()

    # By frame ---------------------------------------------------------------------------------------

    async def _count(self, batch: Batch, isolation: Isolation) -> Search:
        """Settle what is there, and begin to search what is not."""
        searched = {block.frame for block, _ in (*isolation.guilty, *isolation.found)}
        blocks = [block for block in batch.blocks if block.frame not in searched]
        stored = await counted(self._clickhouse, batch.table, blocks)
        there = [block for block in blocks if stored.get(block.frame, 0) >= block.rows]
        if there:
            self._stored(batch, there)
        isolation.guilty += [(block, None) for block in blocks if 0 < stored.get(block.frame, 0) < block.rows]
        isolation.blocks = [block for block in blocks if block.frame not in stored]
        refused = isolation.refused and isolation.blocks == blocks
        isolation.frames = Search(len(isolation.blocks), refused=refused)
        isolation.guilty += [(isolation.blocks[index], isolation.reason) for index in isolation.frames.guilty]
        return isolation.frames

    async def _try_frames(self, queue: Queue, batch: Batch, isolation: Isolation, search: Search, run: range) -> None:
        piece = isolation.piece
        if piece is None:
            piece = isolation.piece = Batch.of(
                batch.table, self._frames.token(), [isolation.blocks[index] for index in run]
            )
        try:
            await self._attempt(batch.table, self._deliver(piece))
        except DeliveryError as error:
            piece.note(error, self._clock(), self._clickhouse)
            piece.suspicions += error.code in CUT_SHORT
            if not _is_refusal(error, piece.suspicions):
                raise
            if await piece.unanswered.may_come_through(self._clock(), self._clickhouse):
                raise Busy(UNANSWERED) from error
            if (piece.doubtful or piece.answered) and await counted(self._clickhouse, batch.table, piece.blocks):
                isolation.piece = isolation.frames = None
                isolation.refused = False
                return
            isolation.piece = None
            if self._convicts(queue, isolation, search, error):
                isolation.guilty.append((isolation.blocks[search.guilty[-1]], error))
                queue.refused_frames += 1
                self._look(queue, isolation, error)
        else:
            isolation.piece = None
            search.taken()
            self._took(queue, isolation)
            self._stored(batch, piece.blocks)

    # By row -----------------------------------------------------------------------------------------

    async def _begin(self, queue: Queue, batch: Batch, block: Block, reason: DeliveryError | None) -> Hunt:
        await self._change(self._letters.withdraw, block.table, block.frame)
        if broken := await self._broken(batch.table, block, reason):
            return Hunt([], Search(0, refused=False), broken=broken)
        stored = await self._clickhouse.stored_rows(batch.table, block.frame)
        absent = [row for row in range(block.rows) if row not in stored]
        refused = reason is not None and not stored and not self._is_suspicious(queue)
        hunt = Hunt(absent, Search(len(absent), refused=refused))
        if reason is not None:
            hunt.bad = {absent[index]: reason for index in hunt.search.guilty}
        queue.refused_rows += len(hunt.bad)
        return hunt

    async def _broken(self, table: Table, block: Block, reason: DeliveryError | None) -> DeliveryError | None:
        """Why a block cannot be decoded; None when it can."""
        if reason is not None and reason.code in (CHECKSUM_WRONG, UNCOMPRESSIBLE):
            return reason
        try:
            await self._clickhouse.read_rows(table, block.data, [])
        except DeliveryError as error:
            if isinstance(error, Poison) or error.code in CUT_SHORT:
                return error
            raise
        return None

    async def _try_rows(self, queue: Queue, batch: Batch, isolation: Isolation, hunt: Hunt, run: range) -> None:
        block = isolation.guilty[0][0]
        rows = hunt.rows[run.start : run.stop]
        if not hunt.token:
            token = by_row(self._frames.token(), (rows[0], rows[-1]))
            await self._seal(batch, token, block)
            hunt.token, hunt.doubtful, hunt.suspicions, hunt.unanswered = token, False, 0, Unanswered()
        insert = self._clickhouse.insert_absent(
            batch.table, block.data, frame=block.frame, token=hunt.token, rows=(rows[0], rows[-1])
        )
        refusal = None
        try:
            await self._attempt(batch.table, insert)
        except DeliveryError as error:
            hunt.unanswered.note(error, self._clock(), self._clickhouse)
            hunt.doubtful |= isinstance(error, Ambiguous)
            hunt.suspicions += error.code in CUT_SHORT
            if not _is_refusal(error, hunt.suspicions):
                raise
            if await hunt.unanswered.may_come_through(self._clock(), self._clickhouse):
                raise Busy(UNANSWERED) from error
            refusal = error
        if refusal is None or hunt.doubtful:
            stored = await self._clickhouse.stored_rows(batch.table, block.frame)
        else:
            stored = set()  # of these rows
        hunt.token = ""
        if refusal is None:
            if not stored.issuperset(rows):  # The server knows the token, and has lost the rows.
                self._repaired(hunt)
                return
            hunt.search.taken()
            self._took(queue, isolation)
        elif not stored.isdisjoint(rows):
            hunt.rows = [row for row in range(block.rows) if row not in stored]
            hunt.search, hunt.bad = Search(len(hunt.rows), refused=False), {}
        elif self._convicts(queue, isolation, hunt.search, refusal):
            hunt.bad[hunt.rows[hunt.search.guilty[-1]]] = refusal
            queue.refused_rows += 1
            self._look(queue, isolation, refusal)

    def _repaired(self, hunt: Hunt) -> None:
        """Once more rows that were taken are not there. Raises Poison when that is the table's way."""
        hunt.repairs += 1
        if hunt.repairs >= REPAIRS_MAX:
            hunt.repairs = 0
            raise Poison(NOT_KEPT)

    async def _seal(self, batch: Batch, token: str, block: Block) -> None:
        if block.place is None:
            return
        try:
            await self._spool.seal(batch.table.name, token, [block])
        except OSError as error:
            raise Busy(f"the spool cannot be written ({error.strerror})") from error

    async def _bury(self, batch: Batch, block: Block, hunt: Hunt) -> bool:
        """Write down the dead letters of a frame, and only then be done with it; false when others are gone again."""
        letters: list[Letter] = []
        counted_at = self._clock()
        if hunt.broken:
            letters = [letter_of_block(block, hunt.broken, self._wall())]
        elif await self._is_gone_again(batch, block, hunt):
            return False
        numbers = sorted(hunt.bad)
        for start in range(0, len(numbers), _ROWS_PER_READ):
            some = numbers[start : start + _ROWS_PER_READ]
            found = await self._clickhouse.read_rows(batch.table, block.data, some)
            letters += [
                letter_of(row, number, block, hunt.bad[number], self._wall())
                for number, row in zip(some, found, strict=True)
            ]
        if letters:
            await self._change(self._letters.write, block.table, block.frame, letters)
        self._buried(batch, block, range(block.rows) if hunt.broken else numbers, counted_at)
        return True

    async def _is_gone_again(self, batch: Batch, block: Block, hunt: Hunt) -> bool:
        """Whether rows that were taken are not there any more; then they are what is searched now."""
        stored = await self._clickhouse.stored_rows(batch.table, block.frame)
        hunt.bad = {row: error for row, error in hunt.bad.items() if row not in stored}  # Its cause may be mended.
        gone = [row for row in range(block.rows) if row not in stored and row not in hunt.bad]
        if gone:
            hunt.rows, hunt.search = gone, Search(len(gone), refused=False)
            self._repaired(hunt)
        return bool(gone)

    async def _change(self, change: Callable[..., None], *arguments: object) -> None:
        """Change the dead letters in a thread. Raises a DeliveryError when that cannot be done now."""
        try:
            await asyncio.to_thread(change, *arguments)
        except DeadLettersBusy as error:
            raise Busy(str(error)) from error
        except DeadLettersFull as error:
            raise Poison(
                f"no room for dead letters: {error}; replay them, or raise delivery.dead_letter_bytes_max"
            ) from error
        except OSError as error:
            raise Poison(f"dead letters cannot be written: {error.strerror}") from error

    # Is it the rows, or the table? ------------------------------------------------------------------

    def _convicts(self, queue: Queue, isolation: Isolation, search: Search, error: DeliveryError) -> bool:
        """Tell the search of a refusal; whether that made something guilty."""
        if isolation.suspect:
            raise self._suspicion(queue, error)
        before = len(search.guilty)
        search.refused()
        return len(search.guilty) > before

    def _look(self, queue: Queue, isolation: Isolation, error: DeliveryError) -> None:
        """Stop the search when it convicts everything."""
        if self._is_suspicious(queue):
            isolation.suspect = True
            raise self._suspicion(queue, error)

    def _took(self, queue: Queue, isolation: Isolation) -> None:
        self._taken(queue)
        isolation.suspect = False

    def _is_suspicious(self, queue: Queue) -> bool:
        return max(queue.refused_rows, queue.refused_frames) >= self._refused_rows_max

    def _suspicion(self, queue: Queue, error: DeliveryError) -> DeliveryError:
        refused = max(queue.refused_rows, queue.refused_frames)
        text = f"{refused} rows or blocks of rows were refused one after the other and none taken ({error})"
        others = sum(1 for batch in queue.aside if batch.isolation is not None and batch.isolation.suspect)
        if others + 1 >= SUSPECTS_MAX:
            return Operator(f"{text}: does the table still fit what is sent?")
        return Poison(f"{text}; waiting until it takes any")


def _is_refusal(error: DeliveryError, suspicions: int) -> bool:
    """Whether the server has said for good that it will not take what was sent."""
    return (isinstance(error, Poison) and error.code != 0) or suspicions >= SUSPICIONS_MAX
