"""One simulation: processes on a disk, a server, senders, and everything that happens to them."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import gateway.delivery.compaction
import gateway.delivery.keyfiles
import gateway.delivery.spool
import gateway.delivery.walk
import gateway.delivery.writer
from gateway.delivery import Delivery, Settings
from gateway.delivery.adoption import adopt
from gateway.delivery.audit import LOOK_S
from gateway.delivery.block import Durability, Receipt
from gateway.delivery.deadletter import DeadLetters
from gateway.delivery.frames import FrameNumbers, slot_place
from gateway.delivery.idempotency import Claim, Idempotency, shared_keys
from gateway.delivery.segments import SegmentName, SegmentReader
from gateway.errors import WeirError
from gateway.metrics import Metrics
from tests.chaos.simulation.disk import Cut, FakeDisk, Faults, Medium
from tests.chaos.simulation.loop import Loop, Stuck
from tests.chaos.simulation.oracle import Obligation, Oracle, Process, Violation, Word
from tests.chaos.simulation.plan import TABLES, Plan, Request, plan
from tests.chaos.simulation.server import UNDER_WAY_S, Client, Network, Server, Stored
from tests.chaos.simulation.writer import TIME, SimulatedWriter
from tests.delivery.things import numbered, things, write

WALL = 1_790_000_000.0
HEALING_S = 900.0
SUSPICIOUS_ROWS = 1000
SEGMENT_BYTES_MIN = 2048
RAM_DISK = Path("/dev/shm")
"""Where it is there; elsewhere the simulation is slower."""


class World:
    """The simulation of one seed. ``trace`` is what happened, the same for the same seed.

    ``ignores``: what the disk lets be, 'sync' or 'sync_directory'; for the controls.
    """

    def __init__(self, seed: int, directory: Path, *, ignores: frozenset[str] = frozenset()) -> None:
        self.seed = seed
        self.ignores = ignores
        self.plan: Plan = plan(seed)
        self.trace: list[str] = []
        self.loop = Loop(  # type: ignore[abstract]
            Random(f"threads {seed}"), patience_s=self.plan.trouble_s + 2 * HEALING_S
        )
        self.directory = directory / "spool"
        self.directory.mkdir()
        self.medium = Medium(directory, Random(f"disk {seed}"), self.note)
        self.skipped: set[int] = set()
        self.oracle = Oracle(self.loop.time, self.skipped)
        self.oracle.poison = set(self.plan.poison)
        self.server = Server(
            self.loop,
            Random(f"server {seed}"),
            TABLES,
            self.note,
            stored=self.oracle.stored,
            lost=self._lost,
        )
        self.server.poison = self.plan.poison
        self._random = Random(f"world {seed}")
        self._mint = Random(f"mint {seed}")
        self._lives: dict[int, Life] = {}
        self._count = 0
        self._healed = False
        self._is_unaudited = False
        self._keys: int | None = None
        self._insisting: list[asyncio.Task[None]] = []

    def note(self, what: str) -> None:
        """Write down what happens now."""
        self.trace.append(f"{self.loop.time():10.5f} {what}")

    def run(self) -> None:
        """Run it. Raises Violation or Stuck."""
        with _simulated(self):
            self.loop.run(self._main())

    # What happens ------------------------------------------------------------------------------------

    async def _main(self) -> None:
        self._trouble(on=True)
        for at, with_machine, for_s in self.plan.server:
            self.loop.call_at(at, partial(self.server.crash, machine=with_machine, for_s=for_s))
        for at, until, table in self.plan.parked:
            self.loop.call_at(at, partial(self.server.park, table, parked=True))
            self.loop.call_at(min(until, self.plan.trouble_s), partial(self.server.park, table, parked=False))
        for at, until in self.plan.full:
            self.loop.call_at(at, self._fill)
            self.loop.call_at(until, self._empty)
        for at in self.plan.power_cuts:
            self.loop.call_at(at, self._cut_power)
        for request in self.plan.requests:
            self.loop.call_at(request.at, self._send, request)
        for at, slot in self.plan.flushes:
            self.loop.call_at(at, self._flush, slot)
        slots = [self.loop.create_task(self._keep(slot)) for slot in range(self.plan.together)]
        await asyncio.gather(*slots)
        await asyncio.sleep(max(0.0, self.plan.trouble_s - self.loop.time()))
        await self._heal()

    def _trouble(self, *, on: bool) -> None:
        plan, medium, server = self.plan, self.medium, self.server
        medium.faults = plan.disk if on else Faults()
        medium.capacity = plan.capacity if on else 1 << 40
        server.network = plan.network if on else Network()
        server.loses = plan.loses if on else 0.0

    def _fill(self) -> None:
        self.note("disk: full")
        self.medium.taken_by_others = max(0, self.medium.capacity - self.medium.used)

    def _empty(self) -> None:
        self.note("disk: room again")
        self.medium.taken_by_others = 0

    async def _keep(self, slot: int) -> None:
        """A supervisor: one process after the other in one slot, while there is trouble."""
        kills = list(self.plan.kills[slot])
        while (now := self.loop.time()) < self.plan.trouble_s:
            ends = [
                *((at, how) for at, how in kills if at > now),
                *((at, "power") for at in self.plan.power_cuts if at > now),
                (self.plan.trouble_s, self._random.choice(("kill", "stop"))),
            ]
            at, how = min(ends)
            await self._live(slot, at, how)
            await asyncio.sleep(self._random.choice((0.001, 0.1, 1.0)))

    async def _live(self, slot: int, ends_at: float, how: str) -> None:
        """One process, until its end."""
        # Another one may hold this slot's files until then.
        foreign = [] if self.plan.together > 1 else [1]
        life = self._new_life(slot, ends_at if how != "stop" else self.plan.trouble_s + HEALING_S)
        self._lives[slot] = life
        try:
            life.begin(foreign)
        except Cut:
            self._kill(life)
            return
        await asyncio.sleep(ends_at - self.loop.time())
        if life.process.dead:
            return
        if how == "stop":
            await self._stop(life)
        else:
            self._kill(life)

    def _new_life(self, slot: int, ends_at: float) -> Life:
        self._count += 1
        if self.plan.insists and not self._lives and (self._keys is None or self._random.random() < 0.5):
            # The supervisor was killed too, and with it went what its workers shared.
            self._keys = shared_keys(1_000, range(self.plan.together))
        process = Process(slot, f"{self._count}@{slot}")
        return Life(self, process, ends_at)

    def _kill(self, life: Life) -> None:
        process = life.process
        if not process.dead:
            self.note(f"{process.name}: killed")
            process.dead = process.killed = True
            process.ended = self.loop.time()
            life.abandon()
            self._lives.pop(process.slot, None)

    async def _stop(self, life: Life) -> None:
        """Stop as asked; the stop itself may be cut off by the power."""
        life.ends_at = min(
            (at for at in self.plan.power_cuts if at > self.loop.time()), default=self.plan.trouble_s + HEALING_S
        )
        await life.stop(self._random.choice((0.0, 0.1, 2.0)))
        if not life.process.dead:
            self._lives.pop(life.process.slot, None)

    def _cut_power(self) -> None:
        self.note("power is cut")
        for life in list(self._lives.values()):
            self._kill(life)
        self.oracle.power_cuts.append(self.loop.time())
        self.medium.cut_power()

    def _lost(self, table: str, row: Stored) -> None:
        self.oracle.lost(table, row)
        self._is_unaudited = True

    # Senders -----------------------------------------------------------------------------------------

    def _send(self, request: Request) -> None:
        life = self._lives.get(request.slot)
        if self.plan.insists and Durability[request.durability.upper()] >= Durability.DISK:
            self._insisting.append(self.loop.create_task(self._insist(request)))
        elif life is not None and not life.process.dead and life.delivery is not None:
            self.loop.create_task(life.request(request), context=life.process.context())

    async def _insist(self, request: Request) -> None:
        """Send a request with a key to one process after the other, until one takes it."""
        while True:
            life = self._lives[self._random.choice(sorted(self._lives))] if self._lives else None
            if life is not None and not life.process.dead and life.delivery is not None:
                context = life.process.context()
                answering = self.loop.create_task(
                    life.request(request, key=f"{request.rows[0][1][0]}"), context=context
                )
                gives_up = self.loop.time() + self._random.choice((0.05, 1.0, 30.0))
                while not answering.done() and not life.process.dead and self.loop.time() < gives_up:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                if answering.done() and answering.result():
                    return
            await asyncio.sleep(self._random.choice((0.001, 0.1, 1.0)))

    def _flush(self, slot: int) -> None:
        life = self._lives.get(slot)
        if life is not None and not life.process.dead and life.delivery is not None:
            self.loop.create_task(life.delivery.flush(), context=life.process.context())

    # The end -----------------------------------------------------------------------------------------

    async def _heal(self) -> None:
        """Mend everything, start one process over all that is left, and see what became of it."""
        self.note("everything is mended")
        self._healed = True
        for life in list(self._lives.values()):
            self._kill(life)
        self._trouble(on=False)
        self._empty()
        for table in TABLES:
            self.server.park(table, parked=False)
        if self.plan.settings["refused_rows_max"] < SUSPICIOUS_ROWS:
            self.server.poison.clear()  # The gateway waits for somebody to mend the table; that happens now too.
            self.oracle.mended = True
        life = self._last_life()
        delivery = life.delivery
        assert delivery is not None
        await asyncio.wait_for(asyncio.gather(*self._insisting), HEALING_S)
        await asyncio.wait_for(delivery.flush(), HEALING_S)
        self.note("everything is flushed")
        if self.plan.late and self.plan.settings["audit_ms"]:
            life = await self._lose_late(life)
            delivery = life.delivery
            assert delivery is not None
        while not self.server.is_up:  # noqa: ASYNC110 - while it is away everything is kept
            await asyncio.sleep(1.0)
        audit_s = self.plan.settings["audit_ms"] / 1000
        await asyncio.sleep(4 * LOOK_S + audit_s)
        if self._is_unaudited:
            await asyncio.wait_for(delivery.flush(), HEALING_S)
            await asyncio.sleep(30 + audit_s)
        life.check_counters()
        await self._until_given_back(life)
        life.check_nothing_is_held()
        self.oracle.forgetful = self.medium.forgetful
        self.oracle.check(self._letters(), self._excused)
        await life.stop(1.0)
        if life.process.lost:
            raise Violation("rows are lost with a stop after a flush")

    async def _until_given_back(self, life: Life) -> None:
        """What is said late - that the last was safe - may have closed one more segment."""
        assert life.delivery is not None
        segments = life.delivery._spool.ledger.segments
        given_up = self.loop.time() + HEALING_S
        while any(segment.closed for segment in segments.values()) and self.loop.time() < given_up:  # noqa: ASYNC110
            await asyncio.sleep(1.0)

    async def _lose_late(self, life: Life) -> Life:
        """The server acknowledges rows, and then loses some of them with its machine. Returns who lives then."""
        assert life.delivery is not None
        await asyncio.sleep(2 * LOOK_S)
        context = life.process.context()
        await asyncio.gather(*(self.loop.create_task(life.request(each), context=context) for each in self.plan.late))
        await asyncio.wait_for(life.delivery.flush(), HEALING_S)
        self.server.loses = 0.5
        self.server.crash(machine=True, for_s=self.plan.late_away_s)
        if self.plan.late_together:
            self._cut_power()
            life = self._last_life()
        await asyncio.sleep(self.plan.late_away_s)
        if self.plan.late_slow:
            self.server.network.slow, self.server.network.slow_s = 0.7, 20.0
        for lives_s in self.plan.late_kills:
            await asyncio.sleep(lives_s)
            self._kill(life)
            life = self._last_life()
        await asyncio.sleep(UNDER_WAY_S + 4 * LOOK_S)
        self.server.network.slow = 0.0
        return life

    def _last_life(self) -> Life:
        """A process over all that is left, in place of one that ended."""
        life = self._lives[0] = self._new_life(0, float("inf"))
        life.begin(list(range(1, self.plan.together)))
        return life

    def _letters(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for slot in range(self.plan.together):
            for file in DeadLetters(slot_place(self.directory, slot), bytes_max=0).files():
                for letter in file.letters():
                    number = letter["record"]["Number"]
                    found[number] = found.get(number, 0) + 1
        return found

    def _excused(self, row: Obligation) -> bool:
        """Whether the server lost a row, and nobody was to remember it."""
        return row.lost_by_server and not self.plan.settings["audit_ms"]


class Life:
    """One process, from its start to its end."""

    def __init__(self, world: World, process: Process, ends_at: float) -> None:
        self._world = world
        self.process = process
        self.ends_at = ends_at
        self.delivery: Delivery | None = None
        self.metrics = Metrics()
        self._disk = FakeDisk(world.medium, lambda: self.ends_at - world.loop.time(), world.skipped)
        self._disk.latency_s = world.plan.disk_latency_s
        self._disk.ignores = world.ignores
        self._frames: FrameNumbers | None = None

    def begin(self, foreign: list[int]) -> None:
        """Start, taking over the slots ``foreign``. Raises Cut when that is where it ends."""
        world = self._world
        world.note(f"{self.process.name}: starts")
        self.process.context().run(self._begin, foreign)

    def _begin(self, foreign: list[int]) -> None:
        world = self._world
        mint = partial(world._mint.getrandbits, 64)
        self._frames = FrameNumbers(world.directory, slot=self.process.slot, mint=mint)
        world.medium.sync_directory(self._frames.place)
        if world._random.random() < world.plan.adoption_cut and not world._healed:
            world.medium.cut_at_rename = world._random.randint(0, 5)
        try:
            for slot in foreign:
                self._disk.elapsed = 0.0
                adopt(self._frames, slot, self._disk)
        except OSError as error:
            world.note(f"{self.process.name}: cannot take over: {error}")
            raise Cut from error
        finally:
            world.medium.cut_at_rename = None
        self.delivery = Delivery(
            [things(name) for name in TABLES],
            Client(world.server, self.process, world.note),
            Settings(**world.plan.settings),
            frames=self._frames,
            metrics=self.metrics,
            clock=world.loop.time,
            wall=lambda: WALL + world.loop.time(),
            random=Random(f"{world.seed} {self.process.name}").random,
            disk=self._disk,
            keys=self._known_keys(foreign),
        )
        world.loop.create_task(self.delivery.start())

    def _known_keys(self, foreign: list[int]) -> Idempotency | None:
        """Where senders insist."""
        world = self._world
        if world._keys is None:
            return None
        slots = (self.process.slot, *foreign)
        return Idempotency(world._keys, slots=slots, keys_max=0, keep_s=3_600.0, wall=lambda: WALL + world.loop.time())

    async def stop(self, deadline_s: float) -> None:
        """Stop as asked."""
        self._world.note(f"{self.process.name}: is to stop")
        self.process.stopping = self._world.loop.time()
        assert self.delivery is not None
        stopping = self._world.loop.create_task(self.delivery.stop(deadline_s), context=self.process.context())
        while not stopping.done() and not self.process.dead:  # noqa: ASYNC110 - the dead tell nobody
            await asyncio.sleep(0.05)
        if self.process.dead:
            return
        lost = stopping.result()
        self._world.note(f"{self.process.name}: has stopped, lost {lost}")
        self.process.lost.update(lost)
        self.process.dead = True
        self.process.ended = self._world.loop.time()
        self.abandon()

    def abandon(self) -> None:
        """What the system does once the process is gone."""
        self._disk.abandon()
        if self._frames is not None:
            self._frames.close()

    async def request(self, request: Request, *, key: str = "") -> bool:
        """One request's life; whether it was taken."""
        world, oracle = self._world, self._world.oracle
        numbers = [number for _, some in request.rows for number in some]
        for table, some in request.rows:
            oracle.sent(table, some, self.process, alone=len(request.rows) == 1)
        try:
            receipt = await self._commit(request, key)
        except WeirError as error:
            world.note(f"{self.process.name}: {numbers[0]}-{numbers[-1]} refused at once: {error.log}")
            oracle.told(numbers, Word.NOTHING if key else Word.NEVER)
            return False
        try:
            await receipt.wait()
        except WeirError as error:
            world.note(f"{self.process.name}: {numbers[0]}-{numbers[-1]} refused: {error.log}")
            oracle.told(numbers, Word.NOTHING if key else Word.REFUSED)
            return False
        world.note(f"{self.process.name}: {numbers[0]}-{numbers[-1]} taken, {receipt.durability}")
        oracle.told(numbers, Word.TAKEN, Durability[receipt.durability.upper()])
        self.check_counters()
        return True

    async def _commit(self, request: Request, key: str) -> Receipt:
        assert self.delivery is not None
        how = request.project, request.expected_bytes, request.durability
        if not key:
            return await self._append(request, how)
        with self.delivery.claim(request.project, "", key, b"") as claim:
            return await self._append(request, how, claim)

    async def _append(self, request: Request, how: tuple[str, int, str], *claims: Claim) -> Receipt:
        assert self.delivery is not None
        if request.apart:
            with self.delivery.rows_apart(*how) as apart:
                for table, some in request.rows:
                    write(apart.columns(table), numbered(some, days=request.days), body=request.body)
                await apart.cut()
                return apart.commit(*claims)
        with self.delivery.rows(*how) as rows:
            for table, some in request.rows:
                write(rows.columns(table), numbered(some, days=request.days), body=request.body)
            return rows.commit(*claims)

    def check_counters(self) -> None:
        """Accepted and recovered rows are stored, refused, dead letters, damaged or buffered."""
        metrics = self.metrics
        assert metrics.rows_buffered.read is not None
        for labels, buffered in metrics.rows_buffered.read().items():
            came = sum(counter.values.get(labels, 0) for counter in (metrics.rows_accepted, metrics.rows_recovered))
            went = sum(
                counter.values.get(labels, 0)
                for counter in (
                    metrics.rows_stored,
                    metrics.rows_dead_lettered,
                    metrics.rows_refused,
                    metrics.rows_damaged,
                )
            )
            if came != went + buffered:
                raise Violation(f"{self.process.name}: {labels[0]}: {came} rows came, {went} went, {buffered} are here")

    def check_nothing_is_held(self) -> None:
        """After everything is stored nothing is held in memory, and the disk is given back."""
        assert self.delivery is not None
        ledger = self.delivery._spool.ledger
        held = sum(ring.held_bytes for ring in self.delivery._rings)
        reserved = sum(ring.reserved_bytes for ring in self.delivery._rings)
        closed = [segment.name.file for segment in ledger.segments.values() if segment.closed]
        left = {
            "bytes held": held,
            "bytes reserved": reserved,
            "rows buffered": sum(self.delivery.buffered().values()),
            "live bytes": ledger.live_bytes,
            "projects": len(ledger.project_bytes),
            "frames held": len(ledger.held),
            "seals": len(ledger.sealed) + len(ledger.homes),
            "closed segments": len(closed),
        }
        if any(left.values()):
            raise Violation(f"not given back: {left} {closed}")


# The world in place of what it simulates -------------------------------------------------------------


class _Listener(logging.Handler):
    """What the gateway logs is part of the trace; a fault of its own is a violation."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.INFO)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        self._world.note(f"log: {record.getMessage()}")
        self._world.oracle.silent |= record.getMessage().startswith("the disk answers nothing")
        if record.exc_info and self._world.loop.broken is None:
            error = record.exc_info[1]
            self._world.loop.broken = Violation(f"{record.getMessage()}: {error!r}")
            self._world.loop.broken.__cause__ = error


@contextmanager
def _simulated(world: World) -> Iterator[None]:
    """Put the simulated parts where the gateway takes the real ones."""
    rename: Callable[[Path, Any], Any] = Path.rename
    unlink: Callable[..., None] = Path.unlink
    medium = world.medium

    class FailingReader(SegmentReader):
        def __init__(self, path: Path, name: SegmentName, end: int | None = None) -> None:
            if medium.fails(medium.faults.read):
                raise OSError(5, os.strerror(5))
            super().__init__(path, name, end)

    def renamed(path: Path, target: Path) -> Path:
        if path in medium.files:
            medium.rename(path, target)
            return target
        result: Path = rename(path, target)
        return result

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        if path in medium.files:
            medium.remove(path)
        else:
            unlink(path, missing_ok=missing_ok)

    places: list[tuple[object, str, object]] = [
        (gateway.delivery.spool, "Writer", SimulatedWriter),
        (gateway.delivery.spool, "SegmentReader", FailingReader),
        (gateway.delivery.keyfiles, "SegmentReader", FailingReader),
        (gateway.delivery.walk, "SegmentReader", FailingReader),
        (gateway.delivery.compaction, "SegmentReader", FailingReader),
        (gateway.delivery.walk, "PAUSE_S", 0.0),
        (gateway.delivery.writer, "time", TIME),
        (gateway.delivery.writer, "SEGMENT_BYTES_MIN", SEGMENT_BYTES_MIN),
        (Path, "rename", renamed),
        (Path, "unlink", unlinked),
    ]
    before = [(where, name, getattr(where, name)) for where, name, _ in places]
    log, listener = logging.getLogger("gateway.delivery"), _Listener(world)
    log_before = log.level, log.propagate
    for where, name, simulated in places:
        setattr(where, name, simulated)
    log.addHandler(listener)
    log.propagate = False
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        for where, name, real in before:
            setattr(where, name, real)
        log.removeHandler(listener)
        log.level, log.propagate = log_before


def simulate(seed: int, *, ignores: frozenset[str] = frozenset()) -> tuple[list[str], AssertionError | None]:
    """Run one seed: its trace, and what was violated."""
    root = RAM_DISK if RAM_DISK.is_dir() else None
    directory = Path(tempfile.mkdtemp(prefix="weir-simulation-", dir=root))
    try:
        world = World(seed, directory, ignores=ignores)
        try:
            world.run()
        except (Violation, Stuck, TimeoutError) as violation:
            error = violation if isinstance(violation, AssertionError) else Stuck("not flushed in time")
            world.note(f"VIOLATION: {error}")
            return world.trace, error
        return world.trace, None
    finally:
        shutil.rmtree(directory)
