"""One worker's place: kept filled, whatever becomes of the processes in it.

A worker that dies is replaced at once, on the same slot, so that the next one finds what it left. One
that dies again and again is replaced ever more slowly, and for ever. Connections wait meanwhile: the
place's sockets are open in the supervisor and listen on.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from gateway.metrics import Family, together
from gateway.workers.channel import Ended
from gateway.workers.lives import Life, WorkerFailed

logger = logging.getLogger(__name__)

DELAY_FIRST_S = 0.1
DELAY_MAX_S = 1.0
STEADY_S = 1.0
"""Who lived so long is replaced at once; a shorter life doubles the delay."""
ANSWER_S_MAX = 1.0
WATCH_S = 5.0
HANGS_S = 30.0
"""A worker that says nothing for so long will say nothing any more; its connections wait for nothing."""


class Place:
    """``begin`` makes a life on a slot (None: a free one) and starts it, or raises WorkerFailed.

    ``on_death`` is called when a worker has died, also while it was starting to replace another.
    """

    def __init__(
        self,
        number: int,
        begin: Callable[[int, int | None], Awaitable[Life]],
        on_death: Callable[[int], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        watch_s: float = WATCH_S,
    ) -> None:
        self.number = number
        self._begin, self._on_death = begin, on_death
        self._clock, self._sleep, self._watch_s = clock, sleep, watch_s
        self._life: Life | None = None
        self._leaving: Life | None = None
        self._past: list[Family] = []
        self._noted: WeakSet[Life] = WeakSet()
        self._slot: int | None = None
        self._delay_s = 0.0
        self._turn = asyncio.Lock()
        self._keepers: set[asyncio.Task[None]] = set()

    @property
    def slots(self) -> set[int]:
        """Those that nobody else may have: its processes', and while there is none the one it died on."""
        leaving = {self._leaving.slot} if self._leaving else set()
        return leaving if self._slot is None else leaving | {self._slot}

    @property
    def pid(self) -> int | None:
        """The process that serves; None between two."""
        return self._life.pid if self._life else None

    async def start(self) -> None:
        """Fills it for the first time. Raises WorkerFailed."""
        await self._fill(None)

    async def settled(self, within_s: float) -> None:
        """Returns when nobody is starting here, or after so long.

        Who starts in the place of one that is gone will serve the connections that wait for it.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s), self._turn:
                pass

    async def stop(self, *, delay_s: float, within_s: float) -> list[Ended | None]:
        """Ends in order what is there; the last words, None of a process that said none."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        lives = [life for life in (self._life, self._leaving) if life]
        await asyncio.gather(*(life.stop(delay_s=delay_s, within_s=within_s) for life in lives))
        for life in lives:
            self._note_end(life)
        return [life.last for life in lives]

    async def roll(self, patience_s: float) -> tuple[int, bool] | None:
        """Replaces the worker: the new one accepts before the old one stops.

        Returns the old one's slot, and whether somebody has to take that over; None when nobody was there.
        Raises WorkerFailed when the new one cannot start; then the old one stays.
        """
        async with self._turn:
            old = self._life
            # Nobody is there, and what was left on the slot waits for the next one.
            await self._fill(self._slot if old is None else None)
            self._leaving = old
        if old is None:
            return None
        await old.stop(patient=True, within_s=patience_s)
        self._note_end(old)
        self._leaving = None
        return old.slot, old.last is None or old.last.is_owed

    async def ask(self, what: str, kind: Any) -> Any:
        """What its worker says. Raises TimeoutError, ConnectionError."""
        if self._life is None:
            raise ConnectionError("the worker is not there")
        return await self._life.ask(what, kind, ANSWER_S_MAX)

    async def trouble(self) -> str:
        """Why it should get no requests; empty when it may."""
        if self._life is None:
            return f"worker {self.number} is starting"
        try:
            said: str = await self.ask("trouble", str)
        except (TimeoutError, ConnectionError):
            return f"worker {self.number} does not answer"
        return said and f"worker {self.number}: {said}"

    async def families(self) -> tuple[list[Family], bool]:
        """All that was counted in this place by processes that ended in order or answer, and whether all answered."""
        past, lives = self._past, [life for life in (self._life, self._leaving) if life]
        asked = (life.ask("metrics", list[Family], ANSWER_S_MAX) for life in lives)
        answers: list[Any] = await asyncio.gather(*asked, return_exceptions=True)
        told = []
        for life, answer in zip(lives, answers, strict=True):
            if not isinstance(answer, BaseException):
                told.append(answer)
            elif life.last is not None:  # it has ended meanwhile
                told.append(life.last.counted)
        return together((past, *told)), bool(lives) and len(told) == len(lives)

    async def has_caught_up(self, within_s: float) -> bool:
        """Whether its worker answers and has no row older than ``within_s`` that is not stored."""
        try:
            families: list[Family] = await self.ask("metrics", list[Family])
        except (TimeoutError, ConnectionError):
            return False
        ages = [family.samples for family in families if family.name == "weir_oldest_unstored_seconds"]
        return all(age_s < within_s for samples in ages for _, _, age_s in samples)

    async def _fill(self, slot: int | None) -> None:
        life = await self._begin(self.number, slot)
        self._life, self._slot = life, life.slot
        keeper = asyncio.create_task(self._keep(life, self._clock()), name=f"worker {self.number}")
        self._keepers.add(keeper)
        keeper.add_done_callback(self._keepers.discard)

    async def _keep(self, life: Life, began_s: float) -> None:
        watching = asyncio.create_task(self._watch(life))
        try:
            status = await life.ended()
        finally:
            watching.cancel()
        if self._life is not life:
            return  # it was replaced
        self._life = None
        self._note_end(life)
        if self._clock() - began_s >= STEADY_S:
            self._delay_s = 0.0
        self._on_death(self.number)
        logger.error("worker %d %s; another one follows in %.1f s", self.number, _end(status), self._delay_s)
        while self._life is None:
            await self._sleep(self._delay_s)
            self._delay_s = min(max(2 * self._delay_s, DELAY_FIRST_S), DELAY_MAX_S)
            async with self._turn:
                if self._life is None:
                    await self._try_to_fill()

    async def _watch(self, life: Life) -> None:
        """Kills a worker that hangs."""
        while True:
            await asyncio.sleep(self._watch_s)
            try:
                await life.ask("trouble", str, HANGS_S)
            except TimeoutError:
                logger.error("worker %d has not answered for %.0f s: killing it", self.number, HANGS_S)  # noqa: TRY400
                await life.kill()
                return
            except ConnectionError:
                return

    def _note_end(self, life: Life) -> None:
        # One that ended by itself while it was to be replaced comes here twice.
        if life.last is not None and life not in self._noted:
            self._noted.add(life)
            self._past = together((self._past, life.last.counted))
            if life.last.lost:
                logger.error("worker %d had accepted %d rows that are lost", self.number, life.last.lost)

    async def _try_to_fill(self) -> None:
        try:
            await self._fill(self._slot)
        except (WorkerFailed, OSError) as error:
            self._on_death(self.number)
            logger.error(  # noqa: TRY400 - the text says it all
                "worker %d cannot start: %s; trying again in %.1f s", self.number, error, self._delay_s
            )


def _end(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
