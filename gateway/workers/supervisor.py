"""The process that stays: it has the data directory, the engines, the ports and the workers.

It serves nobody but operators. Senders' connections go to the workers: it binds a socket for each place
and address, a worker is given its own and listens on it. The supervisor keeps them all open, so while a
worker is replaced, connections wait in its sockets' queues instead of being refused or reset. Why it
is done so: docs/decisions/0005-workers.md.

    SIGTERM, SIGINT, SIGHUP   the workers stop in order, then the engines
    SIGUSR2                   the settings are read again, and each worker is replaced, one after the other
    SIGKILL                   the workers notice, stop accepting at once, and stop in order; so do the engines
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from gateway import demo
from gateway.config import ENGINES_MS, STOP_MS_MAX, Config, ConfigError
from gateway.data_dir import DataDir
from gateway.delivery import frames
from gateway.delivery.idempotency import mark_read, shared_keys
from gateway.dialects import registry
from gateway.foundation import CannotStart, Foundation
from gateway.http.binding import Bound, bind
from gateway.http.probes import Probes
from gateway.http.server import AdminServer
from gateway.metrics import Family, SupervisorMetrics, exposed
from gateway.tenants.rates import shared_buckets
from gateway.workers.channel import Ended, Orders
from gateway.workers.left import LeftSlots
from gateway.workers.lives import Life, WorkerFailed
from gateway.workers.places import Place
from gateway.workers.shells import Shells, allow_open_files

logger = logging.getLogger(__name__)

_PROBE_STOP_S = 0.2
_BIND_S_MAX = 1.0
_BIND_POLL_S = 0.05
_TAKE_OVER_S = 10.0
"""How often to look after slots of nobody, as long as there are any."""
_CAUGHT_UP_S = 5.0
_NEED_A_RESTART = ("data_dir", "workers", "ingest", "admin", "clickhouse", "postgres")
_SLOTS = range(1 << frames.SLOT_BITS)


class Supervisor(Collector):
    """A gateway. ``start`` once, then ``stop`` once, also after a ``start`` that failed.

    ``shells``: what is to become workers, begun before.
    """

    def __init__(
        self, config: Config, shells: Shells | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config
        self.directory = DataDir(config.data_path)
        self.metrics = SupervisorMetrics()
        self.listen: dict[str, Any] = {}
        self._foundation = Foundation(
            config, self.directory, on_clickhouse_restart=lambda: self.metrics.clickhouse_restarts.add(1)
        )
        self._not_ready, self._is_stopping = "starting", False
        self._delay_s = 0.0
        self._parts = AsyncExitStack()
        self._places = [Place(number, self._begin, self._count_death) for number in range(config.workers)]
        self._shells = shells or Shells()
        self._clock = clock
        self._starting_slots: set[int] = set()
        self.owed_slots: set[int] = set()
        """Where rows may lie that no worker knows of: left by one that was replaced, or killed with its supervisor."""
        self._left_slots = LeftSlots()
        self._bound: list[Bound] = []
        self._buckets = self._claims = -1
        self._counted: dict[str, list[Family]] = {}
        self._last: list[Ended | None] = []
        for place in self._places:
            self.metrics.worker_restarts.add(0, str(place.number))

    async def start(self) -> str:
        """Starts everything; returns what to tell the person who started it.

        Raises CannotStart, DataDirBusy, EngineFailed, ControlError, OSError (an address is taken).
        """
        config, directory, parts = self.config, self.directory, self._parts
        directory.lock()
        parts.callback(directory.unlock)
        parts.push_async_callback(self._shells.discard)
        self._shells.prepare(config.workers)
        directory.forget_addresses()
        parts.push_async_callback(self._foundation.stop)
        await self._foundation.start()
        admin = AdminServer(config.admin.listen, self._probes(), config.limits)
        parts.push_async_callback(admin.stop, _PROBE_STOP_S)
        admin_addresses = await admin.start()
        self._buckets = shared_buckets()
        parts.callback(os.close, self._buckets)
        spool = directory.spool
        unread = [slot for slot in _SLOTS if frames.is_open(spool, slot) or _holds(spool, slot)]
        self._claims = shared_keys(config.delivery.idempotency_keys_max, unread)
        parts.callback(os.close, self._claims)
        parts.push_async_callback(self._stop_workers)
        for address in config.ingest.listen:
            self._bound.append(await _bind_soon(address, config.workers))
        await self._start_workers()
        self.listen = {
            "ingest": [bound.text for bound in self._bound],
            "admin": admin_addresses,
            "clickhouse": _without_account(self._foundation.clickhouse_url),
        }
        if self._foundation.own_postgres_dsn:
            directory.write(directory.dsn, self._foundation.own_postgres_dsn + "\n")
        if self._foundation.first:
            demo.keep(self._foundation.first, directory)
        directory.write(directory.listen, json.dumps(self.listen) + "\n", mode=0o644)
        self._not_ready = ""
        self._shells.prepare()
        return self._told()

    async def stop(self) -> list[Ended | None]:
        """Stops everything that was started; returns the workers' last words, None of one that was killed."""
        self._delay_s = 0.0 if self._not_ready else self.config.shutdown.delay_ms / 1000
        self._not_ready, self._is_stopping = "shutting down", True
        await self._parts.aclose()
        return self._last

    async def renew(self, wanted: Config) -> None:
        """Replaces all workers by such with these settings; those of the supervisor itself stay as they are.

        Should a worker not start with them, the settings before hold again.
        """
        before = self.config
        mine = {name: getattr(before, name) for name in _NEED_A_RESTART}
        if changed := [name for name, value in mine.items() if getattr(wanted, name) != value]:
            logger.warning("these settings take effect with the next start: %s", ", ".join(changed))
        self.config = msgspec.structs.replace(wanted, **mine)
        if not await self.roll():
            self.config = before

    async def roll(self, places: Iterable[Place] | None = None) -> bool:
        """Replaces workers, all of them unless named, one after the other.

        Stops at the first that cannot be replaced, which stays; false then.
        """
        await self._shells.discard()  # they may be older than the code is now
        limits = self.config.limits
        patience_s = (limits.header_timeout_ms + limits.body_timeout_ms + STOP_MS_MAX) / 1000
        for place in self._places if places is None else places:
            try:
                left = await place.roll(patience_s)
            except (WorkerFailed, OSError) as error:
                logger.error("worker %d is not replaced: %s", place.number, error)  # noqa: TRY400 - the text says it all
                return False
            if left is not None:
                slot, is_owed = left
                if is_owed:
                    self.owed_slots.add(slot)
                else:
                    self._left_slots.leave(slot, self._clock(), self.config.delivery.audit_ms / 1000)
            logger.info("worker %d is replaced", place.number)
        return True

    @property
    def has_slots_of_nobody(self) -> bool:
        """Whether ``look_after_slots`` has something to do."""
        return bool(self.owed_slots or self._left_slots)

    async def look_after_slots(self) -> None:
        """Has slots taken over where rows lie, or of which ClickHouse may have lost rows it had acknowledged."""
        if self._left_slots:
            asked_at = self._clock()
            uptime_s = await self._foundation.clickhouse_uptime_s()
            if uptime_s is not None and (lost := self._left_slots.judge(asked_at, uptime_s)):
                logger.warning("ClickHouse has started anew since a worker was replaced: what that stored is counted")
                self.owed_slots |= lost
        if self.owed_slots:
            await self.take_over()

    async def take_over(self) -> None:
        """Replaces a worker, if one has caught up, so that the new one takes over what lies in slots of nobody."""
        spool = self.directory.spool
        for slot in list(self.owed_slots):
            if not frames.is_open(spool, slot) and not _holds(spool, slot):
                self.owed_slots.discard(slot)
                mark_read(self._claims, slot)
        if all(frames.is_open(spool, slot) for slot in self.owed_slots):
            return
        for place in self._places:
            if await place.has_caught_up(_CAUGHT_UP_S):
                await self.roll([place])
                return

    def collect(self) -> Iterator[Metric]:
        """The supervisor's own metrics, and those of the workers as they were last gathered."""
        yield from self.metrics.collect()
        yield from exposed(self._counted)

    def _probes(self) -> Probes:
        return Probes({"gateway": lambda: self._not_ready, "workers": self._trouble}, self, self._gather)

    async def _trouble(self) -> str:
        """Ready while one worker is."""
        troubles = await asyncio.gather(*(place.trouble() for place in self._places))
        return "; ".join(troubles) if all(troubles) else ""

    async def _gather(self) -> None:
        answers = await asyncio.gather(*(place.families() for place in self._places))
        for place, (families, is_whole) in zip(self._places, answers, strict=True):
            self._counted[str(place.number)] = families
            self.metrics.worker_answers.set(int(is_whole), str(place.number))

    async def _start_workers(self) -> None:
        for outcome in await asyncio.gather(*(place.start() for place in self._places), return_exceptions=True):
            if isinstance(outcome, WorkerFailed):
                raise CannotStart(f"a worker cannot start: {outcome}") from outcome
            if isinstance(outcome, BaseException):
                raise outcome

    async def _stop_workers(self) -> None:
        began_s = time.monotonic()
        # Whoever has connected to a worker that died is served by the one that follows, or it would be cut off.
        await asyncio.gather(*(place.settled(self._spare_s()) for place in self._places))
        # Theirs are open still. When the last of them closes, new connections are refused and do not wait.
        for bound in self._bound:
            for one in (one for share in bound.shares for one in share):
                one.close()
        delay_s = self._delay_s
        within_s = (STOP_MS_MAX - ENGINES_MS) / 1000 - (time.monotonic() - began_s)
        stopping = asyncio.gather(*(place.stop(delay_s=delay_s, within_s=within_s) for place in self._places))
        await asyncio.sleep(delay_s)  # until then everything goes on as before
        self.directory.forget_addresses()
        self._last = [last for lasts in await stopping for last in lasts]

    def _spare_s(self) -> float:
        """What a stop has left when everything in it takes as long as it may."""
        return (STOP_MS_MAX - ENGINES_MS - self.config.shutdown.workers_ms_max) / 1000

    async def _begin(self, number: int, slot: int | None) -> Life:
        """A worker that accepts, on ``slot`` or on a free one. Raises WorkerFailed."""
        if self._is_stopping:
            raise WorkerFailed("the gateway is shutting down")
        slots = self._slots(number, slot)
        self._starting_slots.update(slots)
        orders = Orders(
            config=self._foundation.named_in(self.config),
            worker=number,
            slots=slots,
        )
        sockets = [one.fileno() for bound in self._bound for one in bound.shares[number]]
        life = Life(orders, [self._buckets, self._claims, *sockets])
        try:
            await life.start(await self._shells.take())
        finally:
            self._starting_slots.difference_update(slots)
            if not self._is_stopping and not self._not_ready:
                self._shells.prepare()
        self.owed_slots.difference_update(slots)
        self._left_slots.forget(slots)
        return life

    def _slots(self, number: int, wanted: int | None) -> list[int]:
        """The slots of a worker that begins: first its own, then those whose segments it is to take over.

        Its own is ``wanted``, else the lowest that nobody has: no worker of this gateway, nor one of a gateway
        that was killed and whose workers are storing what they had. Segments are left where there were more
        workers once, and where one was replaced; those of a start are dealt out.
        """
        spool = self.directory.spool
        taken = self._starting_slots.union(*(place.slots for place in self._places))
        others = [slot for slot in _SLOTS if slot not in taken]
        free = [slot for slot in others if not frames.is_open(spool, slot)]
        if wanted is None and not free:
            raise WorkerFailed(f"all {len(_SLOTS)} slots are taken, by workers of a gateway that was killed perhaps")
        own = wanted if wanted is not None else free[0]
        if self._not_ready != "starting":
            return [own, *(slot for slot in free if slot != own and _holds(spool, slot))]
        self.owed_slots.update(set(others).difference(free))
        workers = self.config.workers
        # The others are about to take theirs.
        left = (slot for slot in free[workers - number :] if _holds(spool, slot))
        return [own, *(slot for slot in left if slot % workers == number)]

    def _count_death(self, number: int) -> None:
        self.metrics.worker_restarts.add(1, str(number))

    def _told(self) -> str:
        database, first = self.config.clickhouse.database, self._foundation.first
        told = demo.banner(self.listen, self.directory, database=database)
        if first:
            names = {dialect.name for dialect in registry(self.config.limits, self.config.ndjson)}
            told += "\n\n" + demo.lessons(first, self.listen, names, database=database)
        return told


async def serve(config: Config, read_again: Callable[[], Config], *, shells: Shells | None = None) -> bool:
    """Runs a gateway until SIGTERM, SIGINT or SIGHUP; true when it stopped in order and nothing was lost.

    ``read_again`` gives the settings as they are now, or raises ConfigError.
    """
    allow_open_files()
    loop = asyncio.get_running_loop()
    asked_to_stop, asked_to_roll = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A terminal that is closed hangs up; under nohup that is to be ignored.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, asked_to_stop.set)
    loop.add_signal_handler(signal.SIGUSR2, asked_to_roll.set)
    supervisor = Supervisor(config, shells)
    starting = asyncio.create_task(supervisor.start())
    waiting = asyncio.create_task(asked_to_stop.wait())
    rolling = asyncio.create_task(_roll_when_asked(supervisor, starting, asked_to_roll, read_again))
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            print(starting.result(), flush=True)
            await waiting
            logger.info("stopping")
    finally:
        for task in (rolling, starting, waiting):
            await _cancelled(task)
        # What hangs dies with us: our workers and engines notice that we are gone.
        try:
            last = await asyncio.wait_for(supervisor.stop(), STOP_MS_MAX / 1000)
        except TimeoutError:
            logger.error("stopping took longer than %d ms: ending without order", STOP_MS_MAX)  # noqa: TRY400
            return False
    in_order = all(ended is not None and not ended.lost for ended in last)
    spooled = sum(ended.waiting for ended in last if ended)
    if spooled:
        logger.warning("stopped; %d accepted rows wait in the spool for the next start", spooled)
    elif starting.done() and not starting.cancelled() and in_order:
        logger.info("stopped; everything accepted is in ClickHouse")
    return in_order


async def _roll_when_asked(
    supervisor: Supervisor, starting: asyncio.Task[str], asked: asyncio.Event, read_again: Callable[[], Config]
) -> None:
    await asyncio.wait({starting})
    while True:
        try:
            async with asyncio.timeout(_TAKE_OVER_S if supervisor.has_slots_of_nobody else None):
                await asked.wait()
        except TimeoutError:
            with suppress(OSError):  # no file may be free at the moment; it is tried again
                await supervisor.look_after_slots()
            continue
        asked.clear()
        try:
            wanted = read_again()
        except ConfigError as error:
            problems = " ".join(error.problems)
            logger.error("the settings cannot be used, so everything stays as it is: %s", problems)  # noqa: TRY400
        else:
            await supervisor.renew(wanted)


def _holds(spool: Path, slot: int) -> bool:
    """Whether there is anything in a slot: segments, or keys of such."""
    place = frames.slot_place(spool, slot)
    return any(True for kept in ("*.seg", "*.keys") for _ in place.glob(kept))


async def _bind_soon(address: str, processes: int) -> Bound:
    """As ``bind``, but waits a moment for workers of a gateway that was killed a moment ago."""
    deadline = asyncio.get_running_loop().time() + _BIND_S_MAX
    while True:
        try:
            return bind(address, processes)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(_BIND_POLL_S)


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task


def _without_account(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
