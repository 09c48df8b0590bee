"""Connections as they come in: taken from the listening sockets, many in a turn of the event loop.

uvloop's own server takes one a turn, so that behind a thousand newcomers one waits for a thousand turns.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

log = logging.getLogger(__name__)

_BACKLOG = 4096
"""Who does not fit in the kernel's queue is not heard, and asks again after a second."""
_AT_ONCE = 64
"""A connection takes about 50 µs: others wait for no more than a few milliseconds."""
_FILES_KEPT = 256
"""Descriptors that connections leave free: the spool and ClickHouse have to go on when all the others are taken."""
_MORE_FILES = "; raise the limit of open files"
_PAUSE_S = 0.1
_TELL_S = 60.0


class Arrivals:
    """``start`` to take connections, each for a protocol from ``make``; ``stop`` to take what waits, and no more.

    ``held`` says how many there are: while descriptors are short newcomers wait in the kernel's queue.
    """

    def __init__(self, make: Callable[[], asyncio.Protocol], held: Callable[[], int]) -> None:
        self._make = make
        self._held = held
        self._sockets: Sequence[socket.socket] = ()
        self._making: set[asyncio.Task[None]] = set()
        self._pauses: dict[socket.socket, asyncio.TimerHandle] = {}
        self._told_s = float("-inf")
        # What the supervisor has raised it to.
        self._held_max = max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _FILES_KEPT, _FILES_KEPT)

    def start(self, sockets: Sequence[socket.socket]) -> None:
        """Listens on these, which stay the caller's to close. Raises OSError when somebody else does."""
        for one in sockets:
            one.setblocking(False)
            one.listen(_BACKLOG)
        self._sockets = sockets
        for one in sockets:
            self._listen(one)

    def stop(self) -> None:
        """Takes what the kernel has made for us, which a close would reset, and no more from now on.

        All at once: while the loop turns, those who were answered come back as new ones.
        """
        loop = asyncio.get_running_loop()
        for one in self._sockets:
            if one in self._pauses:
                self._pauses.pop(one).cancel()
            loop.remove_reader(one)
            with suppress(OSError):  # none is left, or none is to be had
                for _ in range(self._held_max - self._held() - len(self._making)):
                    self._take(one)
        self._sockets = ()

    async def made(self) -> None:
        """Returns when each connection that was taken has its protocol."""
        await asyncio.gather(*self._making)

    def _listen(self, one: socket.socket) -> None:
        self._pauses.pop(one, None)
        asyncio.get_running_loop().add_reader(one, self._take_some, one)

    def _take_some(self, one: socket.socket) -> None:
        try:
            for _ in range(_AT_ONCE):
                if self._held() + len(self._making) >= self._held_max:
                    self._pause(one, "all descriptors that connections may have are taken", _MORE_FILES)
                    return
                self._take(one)
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return
        except OSError as error:
            advice = _MORE_FILES if error.errno in (errno.EMFILE, errno.ENFILE) else ""
            self._pause(one, error.strerror or type(error).__name__, advice)

    def _take(self, one: socket.socket) -> None:
        taken, _ = one.accept()
        task = asyncio.get_running_loop().create_task(self._connect(taken))
        self._making.add(task)
        task.add_done_callback(self._making.discard)

    async def _connect(self, taken: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._make, taken)
        except OSError:  # it has gone again
            taken.close()

    def _pause(self, one: socket.socket, why: str, advice: str = "") -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(one)
        self._pauses[one] = loop.call_later(_PAUSE_S, self._listen, one)
        if loop.time() - self._told_s >= _TELL_S:
            self._told_s = loop.time()
            log.warning("new connections wait: %s%s", why, advice)
