"""A block of rows on its way, and the promise about it that requests wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from enum import IntEnum

from gateway.delivery.segments import Place
from gateway.errors import WeirError

BLOCK_OVERHEAD_BYTES = 512
"""What a block costs in memory beside its data."""


class Durability(IntEnum):
    """How safe a row is: each includes those before it."""

    MEMORY = 0
    """in this process"""
    OS = 1
    """written: it survives the process"""
    DISK = 2
    """synced: it survives the machine"""
    STORED = 3
    """ClickHouse has it"""

    @property
    def word(self) -> str:
        """As settings and replies spell it."""
        return self.name.lower()


class Promise:
    """How safe the rows of one block are by now; ``until`` waits for more.

    ``kept``: somebody was told that they are as safe as he wanted, so they cannot be taken back. ``fate``: whether
    they are to be kept or taken back, because other rows of the same requests were; None as long as neither were.
    """

    __slots__ = ("_error", "_tied", "_waiting", "fate", "kept", "reached")

    def __init__(self) -> None:
        self.reached = Durability.MEMORY
        self.kept = False
        self.fate: bool | None = None
        self._tied: Collection[Promise] = ()
        self._error: WeirError | None = None
        self._waiting: list[tuple[Durability, asyncio.Future[None]]] = []

    def reach(self, durability: Durability) -> None:
        """The rows are this safe now."""
        if durability <= self.reached or self._error is not None:
            return
        self.reached = durability
        waiting, self._waiting = self._waiting, []
        for wanted, waiter in waiting:
            if wanted > durability:
                self._waiting.append((wanted, waiter))
            elif not waiter.done():
                self.kept = True
                waiter.set_result(None)

    def decide(self, *, kept: bool) -> None:
        """The rows are kept, or taken back; so are those that share a request with them."""
        kept = kept if self.fate is None else self.fate
        if not self._tied:
            self.fate = kept
            return
        undecided = [self]  # not by recursion: block after block may be tied while the disk takes its time
        while undecided:
            promise = undecided.pop()
            if promise.fate is None:
                promise.fate = kept
            undecided += promise._tied
            promise._tied = ()

    def fail(self, error: WeirError) -> None:
        """The rows are taken back: they will never be safer than this."""
        self._error = error
        waiting, self._waiting = self._waiting, []
        for _, waiter in waiting:
            if not waiter.done():
                waiter.set_exception(error)

    async def until(self, durability: Durability) -> None:
        """Return when the rows are this safe; raises what keeps them from it."""
        if self._error is not None:
            raise self._error
        if self.reached < durability:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((durability, waiter))
            await waiter
        self.kept = True


def tie(promises: Sequence[Promise]) -> None:
    """A request has rows in all of these blocks: all of them are kept, or none."""
    for promise in promises:
        promise._tied = {*promise._tied, *promises}
    for promise in promises:
        if promise.fate is not None:
            promise.decide(kept=promise.fate)


class Block:
    """Cut columns of one project and table.

    ``data``: compressed Native, what an insert sends. ``since``: the clock when its first row came.
    ``place``: where the spool has it, None before that and for what is kept in memory alone. ``suspect``:
    it may be stored already: what said so may be damaged, or it is a copy of what was stored once. ``keys``: entries
    of the requests in it that have an idempotency key; a block that was read from disk has none in memory.
    """

    __slots__ = (
        "data",
        "durability",
        "frame",
        "keys",
        "place",
        "project_id",
        "promise",
        "rows",
        "since",
        "suspect",
        "table",
    )

    def __init__(
        self,
        table: str,
        project_id: str,
        frame: int,
        rows: int,
        data: bytes,
        since: float,
        *,
        durability: Durability = Durability.MEMORY,
        promise: Promise | None = None,
        place: Place | None = None,
        suspect: bool = False,
        keys: bytes = b"",
    ) -> None:
        self.table = table
        self.project_id = project_id
        self.frame = frame
        self.rows = rows
        self.data = data
        self.since = since
        self.durability = durability
        self.promise = promise or Promise()
        self.place = place
        self.suspect = suspect
        self.keys = keys

    @property
    def on_disk(self) -> Place:
        """Where the spool has it. Raises LookupError for a block that is in memory only."""
        if self.place is None:
            raise LookupError(f"frame {self.frame} is in memory only")
        return self.place

    @property
    def member(self) -> tuple[int, int]:
        """Its segment and its number, as a SEAL, DONE or SKIP names it."""
        return self.on_disk.segment, self.frame

    @property
    def is_promised(self) -> bool:
        """Whether its rows are as safe as their senders wanted, so that they cannot be taken back."""
        return self.promise.kept or self.promise.reached >= self.durability

    @property
    def held_bytes(self) -> int:
        """What it costs in memory."""
        return len(self.data) + len(self.keys) + BLOCK_OVERHEAD_BYTES


class Receipt:
    """What a commit gives: ``wait`` returns once the rows are as safe as was promised.

    ``durability`` is how safe that is, once ``wait`` has returned.
    """

    __slots__ = ("_promises", "_reached", "_stored_s_max", "_wanted")

    def __init__(self, promises: Sequence[Promise], wanted: Durability, *, stored_s_max: float) -> None:
        self._promises = promises
        self._wanted = wanted
        self._stored_s_max = stored_s_max
        self._reached = wanted

    @property
    def durability(self) -> str:
        """memory, os, disk or stored."""
        return self._reached.word

    async def wait(self) -> None:
        """Return when the rows are safe; raises what kept them from it.

        Where storing takes longer than senders wait, the rows are on disk, and ``durability`` says so.
        """
        for promise in self._promises:
            await promise.until(min(self._wanted, Durability.DISK))
        if self._wanted < Durability.STORED:
            return
        try:
            async with asyncio.timeout(self._stored_s_max):
                for promise in self._promises:
                    await promise.until(Durability.STORED)
        except TimeoutError:
            self._reached = Durability.DISK
