"""One worker process as its supervisor sees it: started, asked, ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Sequence
from typing import Any

from gateway.embedded.child import signal_process
from gateway.workers.channel import Answer, Ask, Channel, Ended, Failed, Orders, Ready, Stop, value_of
from gateway.workers.shells import Shell

logger = logging.getLogger(__name__)

START_S_MAX = 60.0


class WorkerFailed(Exception):
    """A worker did not start; the text says why."""


class Life:
    """``start`` a shell with ``orders`` and the descriptors that go with them, then ``ask`` until ``ended``."""

    def __init__(self, orders: Orders, descriptors: Sequence[int]) -> None:
        self.slot = orders.slots[0]
        self.last: Ended | None = None
        """Its last word; None as long as it lives, and when it ended without one."""
        self._orders = orders
        self._descriptors = descriptors
        self._process: asyncio.subprocess.Process | None = None
        self._channel: Channel | None = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked: dict[int, asyncio.Future[Answer]] = {}
        self._numbers = 0
        self._listening: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process; None when there is none any more."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self, shell: Shell) -> None:
        """Makes a worker of a shell and waits until it accepts. Raises WorkerFailed; then it has ended."""
        self._process = shell.process
        try:
            shell.give(self._descriptors)
            self._channel = await Channel.over(shell.end)
            self._listening = asyncio.create_task(self._listen(self._channel), name="worker")
            await self._channel.send(self._orders)
            async with asyncio.timeout(START_S_MAX):
                await self._ready
        except BaseException as error:
            self._ready.cancel()
            await self.kill()
            if isinstance(error, TimeoutError):
                raise WorkerFailed(f"it was not ready within {START_S_MAX:.0f} s") from None
            if isinstance(error, OSError):
                raise WorkerFailed(error.strerror or type(error).__name__) from None
            raise
        finally:
            if self._channel is None:
                shell.end.close()

    async def ask(self, what: str, kind: Any, within_s: float) -> Any:
        """What the worker says to ``what``, as a ``kind``. Raises TimeoutError, ConnectionError."""
        if self._channel is None:
            raise ConnectionError("the worker is not there")
        number = self._numbers = self._numbers + 1
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(within_s):
                await self._channel.send(Ask(number, what))
                return value_of(await answer, kind)
        finally:
            del self._asked[number]

    async def stop(self, *, within_s: float, delay_s: float = 0.0, patient: bool = False) -> None:
        """Has it end in order, as ``Stop`` says; kills it when it has not ended ``within_s``."""
        if self._channel is not None and self.pid is not None:
            with contextlib.suppress(ConnectionError):
                await self._channel.send(Stop(delay_s, patient))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self.ended()
                    return
            logger.error("worker %d did not stop within %.1f s; killing it", self._orders.worker, within_s)
        await self.kill()

    async def kill(self) -> None:
        """Ends it at once."""
        if self._process is not None:
            signal_process(self._process, signal.SIGKILL)
            await self.ended()

    async def ended(self) -> int:
        """Returns when it has ended and everything it said is heard: its exit status, negative for a signal."""
        if self._process is None:
            return 0
        status = await self._process.wait()
        if self._listening is not None:
            await asyncio.wait({self._listening})
        if self._channel is not None:
            self._channel.close()
        if self._process.stdin is not None:
            self._process.stdin.close()
        return status

    async def _listen(self, channel: Channel) -> None:
        try:
            while (message := await channel.receive()) is not None:
                if isinstance(message, Ready) and not self._ready.done():
                    self._ready.set_result(None)
                elif isinstance(message, Failed) and not self._ready.done():
                    self._ready.set_exception(WorkerFailed(message.why))
                elif isinstance(message, Answer) and message.number in self._asked:
                    if not self._asked[message.number].done():
                        self._asked[message.number].set_result(message)
                elif isinstance(message, Ended):
                    self.last = message
        finally:
            gone = ConnectionError("the worker has ended")
            for waiting in self._asked.values():
                if not waiting.done():
                    waiting.set_exception(gone)
            if not self._ready.done():
                self._ready.set_exception(WorkerFailed("it ended before it was ready; its log is above"))
