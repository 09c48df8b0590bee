"""Batches: blocks of one table that are inserted together, and how far each of them got."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from gateway.delivery.answers import Ambiguous, DeliveryError, TimedOut
from gateway.delivery.block import Block
from gateway.delivery.clickhouse import PATIENCE_MAX, ClickHouse
from gateway.delivery.seals import Run
from gateway.delivery.search import Search
from gateway.delivery.unanswered import Unanswered
from gateway.schema import Table


@dataclass(slots=True, eq=False)
class Repair:
    """Rows to insert again: whole frames, or (``run``) those rows of one frame that are not there.

    ``sealed``: its own SEAL is on disk.
    """

    blocks: list[Block]
    run: Run | None
    token: str
    sealed: bool = False
    doubtful: bool = False


@dataclass(slots=True, eq=False)
class Batch:
    """What one insert carries, and how far it got.

    ``sealed``: its SEAL is on disk. ``doubtful``: some attempt's outcome is not known. ``answered``: a
    clean OK came, or no attempt can still come through; from here on frames are counted. ``run``: it is
    those of a run of rows of one frame that are not there. ``unanswered``: attempts that may still come through.
    ``repairs``: how often what was missing was inserted since fewer rows were
    missing than ever, which is ``absent_min``. ``poison``: the server refused these very rows; from then on
    ``isolation`` is how far the search for the guilty ones got. ``unsure``: an earlier life sealed it, and its
    rows may have been inserted under another token: what said so is damaged perhaps, or it was stored once before.
    While something of that life may come through it holds nothing up.
    """

    table: Table
    blocks: list[Block]
    token: str
    rows: int
    held_bytes: int
    since: float
    sealed: bool = False
    doubtful: bool = False
    answered: bool = False
    unsure: bool = False
    run: Run | None = None
    poison: bool = False
    isolation: Isolation | None = None
    attempts: int = 0
    timeouts: int = 0
    unanswered: Unanswered = field(default_factory=Unanswered)
    suspicions: int = 0
    repair: Repair | None = None
    repairs: int = 0
    absent_min: int = 1 << 62
    repair_blocks_max: int = 1 << 30
    due: float = 0.0

    @classmethod
    def of(cls, table: Table, token: str, blocks: list[Block]) -> Batch:
        """A new batch of these blocks. Where one may be stored already, they are counted first."""
        return cls(
            table,
            blocks,
            token,
            rows=sum(block.rows for block in blocks),
            held_bytes=sum(block.held_bytes for block in blocks),
            since=min(block.since for block in blocks),
            answered=any(block.suspect for block in blocks),
        )

    @property
    def patience(self) -> float:
        """How many times the usual time it is given, doubled each time: else it might be cut off for ever."""
        return min(PATIENCE_MAX, 2.0 ** min(self.timeouts, 30))

    def note(self, error: DeliveryError, now: float, clickhouse: ClickHouse) -> None:
        """An attempt has ended with this error."""
        self.unanswered.note(error, now, clickhouse)
        self.doubtful |= isinstance(error, Ambiguous)
        self.timeouts += isinstance(error, TimedOut)

    def drop(self, blocks: list[Block]) -> None:
        """These blocks are settled; the others are what is left of the batch."""
        gone = {block.frame for block in blocks}
        self.blocks = [block for block in self.blocks if block.frame not in gone]
        self.rows -= sum(block.rows for block in blocks)
        self.held_bytes -= sum(block.held_bytes for block in blocks)


@dataclass(slots=True, eq=False)
class Hunt:
    """The search for the guilty rows of one frame.

    ``rows``: the numbers of those that were absent when it began, which ``search`` counts. ``bad``: why each
    guilty one was refused. ``token``: of the try under way, whose SEAL is on disk; ``doubtful`` and ``unanswered``, as
    of a batch.
    ``broken``: why the frame cannot even be decoded.
    """

    rows: list[int]
    search: Search
    bad: dict[int, DeliveryError] = field(default_factory=dict)
    token: str = ""
    doubtful: bool = False
    unanswered: Unanswered = field(default_factory=Unanswered)
    suspicions: int = 0
    repairs: int = 0
    broken: DeliveryError | None = None


@dataclass(slots=True, eq=False)
class Isolation:
    """The search for the guilty rows of a batch, by frame and then by row.

    ``reason``: why the batch was refused. ``refused``: all of its frames together were, none of them being
    stored. ``blocks``: those that ``frames`` searches, which is None until they are counted. ``piece``: the try
    under way. ``guilty``: frames to be searched by row, and why each was refused, or None when it is there in
    part; ``hunt`` is of the first of them. ``found``: those whose hunt is over. ``suspect``: so much was refused
    and nothing taken that it looks like the table.
    """

    reason: DeliveryError | None
    refused: bool
    blocks: list[Block] = field(default_factory=list)
    frames: Search | None = None
    piece: Batch | None = None
    guilty: deque[tuple[Block, DeliveryError | None]] = field(default_factory=deque)
    hunt: Hunt | None = None
    found: deque[tuple[Block, Hunt]] = field(default_factory=deque)
    suspect: bool = False

    def doubt(self) -> None:
        """Nobody knows what became of the try under way."""
        if self.piece is not None:
            self.piece.doubtful = True
        if self.hunt is not None:
            self.hunt.doubtful = True


TURN_BYTES = 64 << 10
"""Of compressed blocks: what a project may have in its turn."""
OWED_BYTES_MAX = 64 * TURN_BYTES
"""A block larger than this costs no more turns: they are counted one by one."""


@dataclass(slots=True, eq=False)
class Queue:
    """One table's blocks by project, and its batches that wait for another try.

    ``owed``: bytes that projects had before their turn. ``aside``: batches that hold nothing up, being
    poison. ``refused_rows``, ``refused_frames``: refused alone since the table last took any.
    """

    table: Table
    blocks: dict[str, deque[Block]] = field(default_factory=dict)
    turn: deque[str] = field(default_factory=deque)
    owed: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    data_bytes: int = 0
    since: float = 0.0
    sent: set[Batch] = field(default_factory=set)
    waiting: list[Batch] = field(default_factory=list)
    aside: list[Batch] = field(default_factory=list)
    parked: str = ""
    refused_rows: int = 0
    refused_frames: int = 0

    def add(self, block: Block) -> None:
        """Line up a block behind its project's others."""
        mine = self.blocks.get(block.project_id)
        if mine is None:
            mine = self.blocks[block.project_id] = deque()
            self.turn.append(block.project_id)
        mine.append(block)
        if not self.rows:
            self.since = block.since
        self.rows += block.rows
        self.data_bytes += len(block.data)

    def take(self, rows_max: int, bytes_max: int) -> list[Block]:
        """Blocks for one batch, at least one; projects take turns by bytes.

        A turn is one block, and a block that is larger than ``TURN_BYTES`` costs the turns it is worth: that is
        deficit round robin, with the debt after the block instead of savings before it.
        """
        taken: list[Block] = []
        rows = data_bytes = 0
        while self.turn:
            project_id = self.turn[0]
            mine = self.blocks[project_id]
            owed = self.owed.get(project_id, 0) - TURN_BYTES
            if owed > 0 and len(self.turn) > 1:
                self.owed[project_id] = owed
                self.turn.rotate(-1)
                continue
            rows += mine[0].rows
            data_bytes += len(mine[0].data)
            if taken and (rows > rows_max or data_bytes > bytes_max):
                break
            block = mine.popleft()
            taken.append(block)
            self.turn.popleft()
            if mine:
                self.turn.append(project_id)
                self.owed[project_id] = min(len(block.data), OWED_BYTES_MAX)
            else:
                del self.blocks[project_id]
                self.owed.pop(project_id, None)
        self.rows -= sum(block.rows for block in taken)
        self.data_bytes -= sum(len(block.data) for block in taken)
        self.since = min((mine[0].since for mine in self.blocks.values()), default=0.0)
        return taken

    def all_blocks(self) -> Iterator[Block]:
        """All that are not stored."""
        for mine in self.blocks.values():
            yield from mine
        for batch in self.batches():
            yield from batch.blocks

    def batches(self) -> Iterator[Batch]:
        """All that are sealed and not stored."""
        yield from self.sent
        yield from self.waiting
        yield from self.aside
