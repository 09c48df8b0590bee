"""An event loop without a clock, threads or sockets: time goes on when nothing is left to do.

Callbacks run in the order asyncio gives them. What comes from outside (disks, servers, threads) comes after a
random delay, so everything that has no order of its own comes in any order, and the same again for the same seed.

Who runs a callback is known by its context: every task and timer that something of a ``Being`` starts is of that
being too. Once a being is dead, nothing of it runs any more, not even what cleans up.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from random import Random
from typing import Any, TypeVar, TypeVarTuple

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class Being:
    """Something that may die at any moment: a process, a server."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False

    def context(self) -> contextvars.Context:
        """A context in which everything is of this being."""
        context = contextvars.copy_context()
        context.run(_BEING.set, self)
        return context


_BEING: contextvars.ContextVar[Being | None] = contextvars.ContextVar("being", default=None)
_NOBODY = contextvars.copy_context()


class Stuck(AssertionError):
    """Everybody waits, and nothing is to come; or time has run out."""


class Loop(asyncio.AbstractEventLoop):
    """``random`` says how long threads take. ``patience_s``: of virtual time; more is a failure."""

    def __init__(self, random: Random, *, patience_s: float) -> None:
        self._random = random
        self._patience_s = patience_s
        self._now = 0.0
        self._count = 0
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self.steps = 0
        self.broken: AssertionError | None = None
        """What was found wrong; the loop goes no further."""

    # What asyncio asks of a loop ---------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        # A dead task that is forgotten would be closed, and would clean up, whenever Python likes.
        self._tasks.append(task)
        task.add_done_callback(self._look, context=_NOBODY)
        return task

    def run_in_executor(self, executor: Executor | None, func: Callable[[*_Ts], _T], *args: *_Ts) -> asyncio.Future[_T]:
        """As in a thread: begun some time later, and its end known some time later still; at once in between."""
        future: asyncio.Future[_T] = self.create_future()

        def run() -> None:
            try:
                result = func(*args)
            except Exception as error:
                tell(future.set_exception, error)
            else:
                tell(future.set_result, result)

        def tell(how: Callable[[Any], None], what: object) -> None:
            self.call_later(self._random.choice(_THREAD_S), lambda: None if future.cancelled() else how(what))

        self.call_later(self._random.choice(_THREAD_S), run)
        return future

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Tasks of the dead are never asked how they ended."""

    # Running -----------------------------------------------------------------------------------------

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run until a coroutine is done. Raises Stuck when that can never be, and whatever it raises."""
        asyncio._set_running_loop(self)
        try:
            task = self.create_task(coroutine)
            while not task.done() and self.broken is None:
                self._step()
            if self.broken is not None:
                raise self.broken
            task.result()
        finally:
            self._bury()
            asyncio._set_running_loop(None)

    def _step(self) -> None:
        ready, timers = self._ready, self._timers
        if not ready:
            while timers and timers[0][2].cancelled():
                heapq.heappop(timers)
            if not timers:
                raise Stuck("everybody waits and nothing is to come")
            self._now = max(self._now, timers[0][0])
            if self._now > self._patience_s:
                raise Stuck(f"not done after {self._patience_s} s")
        while timers and timers[0][0] <= self._now:
            ready.append(heapq.heappop(timers)[2])
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle.cancelled():
                continue
            being = handle._context.get(_BEING)  # type: ignore[attr-defined]
            if being is None or not being.dead:
                self.steps += 1
                handle._run()

    def _look(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, AssertionError) and self.broken is None:
            self.broken = error

    def _bury(self) -> None:
        """Close what was left in the middle of something, and do nothing that it asks for."""
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                try:
                    task.get_coro().close()
                except (Exception, asyncio.CancelledError):
                    continue
        self._tasks.clear()
        self._ready.clear()
        self._timers.clear()


_THREAD_S = (0.0, 0.0001, 0.001, 0.001, 0.01, 0.1)
