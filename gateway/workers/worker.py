"""The worker's side: a process that is told what to be, serves until it is told to stop, and stops in order.

Started by ``shells.py`` as ``python -m gateway.workers.worker``, told by ``lives.py``. It stops in order as well
when its supervisor is gone, and ends without order should that hang.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import msgspec
import uvloop

from gateway import logs
from gateway.app import App
from gateway.config import STOP_MS_MAX
from gateway.embedded import lifeline
from gateway.workers.channel import Answer, Ask, Channel, Ended, Failed, Orders, Ready, Stop
from gateway.workers.shells import be_called, given

logger = logging.getLogger(__name__)

COLLECTED_OBJECTS = 10_000
"""How many more there have to be than there were before the youngest are looked through."""


class Worker:
    """One gateway in this process. ``asked_to_stop`` may be set by whoever wants it to end."""

    def __init__(self, orders: Orders, descriptors: Sequence[int], channel: Channel) -> None:
        buckets, claims, *listen = descriptors
        sockets = [socket.socket(fileno=descriptor) for descriptor in listen]
        self._app = App(orders.config, slots=orders.slots, listen=sockets, buckets=buckets, claims=claims)
        self._channel = channel
        self._delay_s, self._patient, self._others_go_on = 0.0, False, True
        self.asked_to_stop = asyncio.Event()
        self.answers: dict[str, Callable[[], Awaitable[object]]] = {
            "trouble": self._trouble,
            "metrics": self._metrics,
        }
        """What the supervisor may ask for."""

    async def run(self) -> int:
        """Serves until the end; returns the exit code: 0 when nothing that was accepted is lost."""
        listening = asyncio.create_task(self._listen(), name="orders")
        starting = asyncio.create_task(self._app.start(), name="start")
        stopping = asyncio.create_task(self.asked_to_stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await self._channel.send(Ready())
                await stopping
        except Exception as error:
            await self._channel.send(Failed(_reason(error)))
            return 1
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await self._app.stop(delay_s=self._delay_s, patient=self._patient, others_go_on=self._others_go_on)
            listening.cancel()
            counted = [family for family in self._app.metrics.families() if family.type != "gauge"]
            with suppress(ConnectionError):  # nobody may be left to be told
                await self._channel.send(Ended(self._app.lost, self._app.waiting, counted, self._app.is_owed))
            self._channel.close()
        return 1 if self._app.lost else 0

    async def _listen(self) -> None:
        """Does what the supervisor says, until it is gone."""
        try:
            while (message := await self._channel.receive()) is not None:
                if isinstance(message, Stop):
                    if self.asked_to_stop.is_set() and not message.patient:
                        self._app.hurry()
                    self._delay_s, self._patient = message.delay_s, message.patient
                    self._others_go_on = message.patient  # else the supervisor has closed the sockets, and we are last
                    self.asked_to_stop.set()
                elif isinstance(message, Ask):
                    value = await self.answers[message.what]()
                    await self._channel.send(Answer(message.number, msgspec.Raw(msgspec.msgpack.encode(value))))
        finally:
            self.asked_to_stop.set()

    async def _trouble(self) -> str:
        return self._app.trouble

    async def _metrics(self) -> object:
        return self._app.metrics.families()


def _reason(error: Exception) -> str:
    """For a person; the text of an error that is not an operator's may quote a secret."""
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{where}"
    return f"{type(error).__name__}: {error}"


async def work(end: socket.socket, descriptors: Sequence[int]) -> int:
    """A worker's whole life, on its end of the channel."""
    channel = await Channel.over(end)
    orders = await channel.receive()
    if not isinstance(orders, Orders):
        return 1
    config = orders.config
    be_called(f"weir-worker-{orders.worker}")
    logs.configure(config.log.level, config.log.format, worker=orders.worker if config.workers > 1 else None)
    loop = asyncio.get_running_loop()
    worker = Worker(orders, descriptors, channel)

    def left_alone() -> None:
        loop.call_soon_threadsafe(worker.asked_to_stop.set)
        time.sleep(STOP_MS_MAX / 1000)
        # What hangs is not to outlive the gateway: the next one needs its slot.
        os._exit(1)

    lifeline.watch(os.getppid(), left_alone)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.asked_to_stop.set)
    return await worker.run()


def collect_less() -> None:
    """Have the collector leave alone what is imported, and come for much at a time: it holds up every sender.

    Requests make hardly any cycles; what they made is gone with the last reference.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECTED_OBJECTS)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--channel", type=int, required=True)
    end = socket.socket(fileno=arguments.parse_args().channel)
    be_called("weir-shell")
    collect_less()
    descriptors = given(end)
    if not descriptors:
        sys.exit(0)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(work(end, descriptors)))


if __name__ == "__main__":
    main()
