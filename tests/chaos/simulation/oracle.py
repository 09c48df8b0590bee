"""What was promised about each row, and whether it was kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum

from gateway.delivery.block import Durability
from tests.chaos.simulation.loop import Being
from tests.chaos.simulation.server import Stored


class Violation(AssertionError):
    """A promise was broken."""


class Word(Enum):
    """What the sender of a row was told."""

    NOTHING = "nothing"
    TAKEN = "taken"
    REFUSED = "refused"
    NEVER = "refused at once"


@dataclass(eq=False)
class Process(Being):
    """One life of a gateway process. ``lost``: tables of which it said that it lost rows when it stopped."""

    slot: int
    name: str
    dead: bool = False
    ended: float | None = None
    killed: bool = False
    stopping: float = float("inf")
    lost: set[str] = field(default_factory=set)


@dataclass(eq=False, slots=True)
class Obligation:
    """One row that was sent: to which process, and what its sender was told, and when."""

    table: str
    process: Process
    word: Word = Word.NOTHING
    level: Durability = Durability.MEMORY
    at: float = 0.0
    frame: int | None = None
    lost_by_server: bool = False
    alone: bool = True
    """Its request had rows for one table only. Of several each may be kept or refused."""


class Oracle:
    """Knows every row that was sent, and is told of every row that is stored."""

    def __init__(self, clock: Callable[[], float], skipped: set[int]) -> None:
        self._clock = clock
        self._skipped = skipped
        self.rows: dict[int, Obligation] = {}
        self.poison: set[int] = set()
        self.mended = False
        """Whether tables were changed to take what they refused: then that may be there as well as a dead letter."""
        self.forgetful = False
        """Whether the disk has forgotten something though the power was never cut."""
        self.silent = False
        """Whether a process has stopped without waiting for its disk any longer."""
        self.power_cuts: list[float] = []
        self._there: dict[int, int] = {}
        self._identities: dict[tuple[int, int], int] = {}

    # What happens ------------------------------------------------------------------------------------

    def sent(self, table: str, numbers: Iterable[int], process: Process, *, alone: bool) -> None:
        for number in numbers:
            if number in self.rows:  # it is sent again
                self.rows[number].process, self.rows[number].word = process, Word.NOTHING
            else:
                self.rows[number] = Obligation(table, process, alone=alone)

    def told(self, numbers: Iterable[int], word: Word, level: Durability = Durability.MEMORY) -> None:
        for number in numbers:
            row = self.rows[number]
            row.word, row.level, row.at = word, level, self._clock()
            if level == Durability.STORED and number not in self._there and not row.lost_by_server:
                raise Violation(f"the sender of {number} was told that it is stored, and it is not")

    def stored(self, table: str, row: Stored) -> None:
        """The server has made a row visible."""
        promised = self.rows.get(row.number)
        if promised is None or promised.table != table:
            raise Violation(f"{table} holds {row.number}, which nobody sent there")
        if row.number in self._there:
            raise Violation(f"{row.number} is stored twice: frame {row.frame:x} row {row.row}")
        if self._identities.setdefault((row.frame, row.row), row.number) != row.number:
            raise Violation(f"two rows are frame {row.frame:x} row {row.row}")
        if promised.word == Word.NEVER:
            raise Violation(f"{row.number} is stored, and was refused at once")
        if promised.word == Word.REFUSED and promised.alone and not promised.process.dead:
            raise Violation(f"{row.number} is stored, and was refused by a process that still lives")
        if promised.word == Word.REFUSED and promised.alone and row.frame in self._skipped:
            raise Violation(f"{row.number} is stored, and its frame {row.frame:x} was skipped on disk")
        self._there[row.number] = row.frame
        promised.frame = row.frame

    def lost(self, _: str, row: Stored) -> None:
        """The server has lost a row with its machine."""
        del self._there[row.number]
        self.rows[row.number].lost_by_server = True

    # At the end --------------------------------------------------------------------------------------

    def check(self, letters: dict[int, int], excused: Callable[[Obligation], bool]) -> None:
        """Raise Violation unless every promise was kept. ``letters``: things that are dead letters, how often.

        ``excused``: whether nobody could have known that the server lost this row.
        """
        for number, row in self.rows.items():
            there = int(number in self._there)
            dead = letters.get(number, 0)
            if dead and number not in self.poison:
                raise Violation(f"{number} is a dead letter, and nothing is wrong with it")
            if there + dead > 1 and not (self.mended and there == dead == 1):
                raise Violation(f"{number} is stored {there} times and in {dead} dead letters")
            if there or dead or row.word != Word.TAKEN or self._may_be_lost(row) or excused(row):
                continue
            raise Violation(
                f"{number} is lost: {row.table}, {row.level.word}, told by {row.process.name} at {row.at:.4f}"
                f"{', stored once and lost by the server' if row.lost_by_server else ''}"
            )
        unknown = letters.keys() - self.rows.keys()
        if unknown:
            raise Violation(f"dead letters of what nobody sent: {sorted(unknown)}")

    def _may_be_lost(self, row: Obligation) -> bool:
        """Whether less was promised than what happened."""
        if row.level >= Durability.DISK:
            return False
        if self.forgetful and row.process.dead:
            return True
        if row.level == Durability.MEMORY and row.process.dead and (self.silent or row.at >= row.process.stopping):
            return True
        if row.level == Durability.MEMORY and row.lost_by_server:
            return True  # Where it could not be written there is nothing to insert again.
        if row.level == Durability.MEMORY and (row.process.killed or row.table in row.process.lost):
            return True
        return any(cut >= row.at for cut in self.power_cuts)
