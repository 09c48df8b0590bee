"""Processes that are to become workers: started ahead, so that what takes longest is done when one is needed.

A fresh process, not a fork: it has nothing of the supervisor but what it is given (the engines' lifelines above
all stay where they are), and one that is started after an update runs the new code. A shell imports all that a
worker needs, and waits for its orders and the descriptors that go with them; it ends when its supervisor does. It
runs in a session of its own, so that a terminal's Ctrl-C reaches the supervisor alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from gateway.embedded.child import child_environment, signal_process

ALLOCATOR = {"MALLOC_ARENA_MAX": "2"}
"""glibc gives each thread an arena, and threads that read and send megabytes for a while keep 64 MiB each for good:
380 MiB in an hour of draining. Who sets it in the gateway's environment has it as he says."""
DESCRIPTORS_MAX = 250
"""The system takes 253 at once."""


class Shell:
    """One such process, and our end of the channel to it."""

    def __init__(self, process: asyncio.subprocess.Process, end: socket.socket) -> None:
        self.process = process
        self.end = end

    @classmethod
    async def start(cls) -> Shell:
        """Raises OSError."""
        ours, its = socket.socketpair()
        try:
            with its:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "gateway.workers.worker", "--channel", str(its.fileno())),
                    stdin=asyncio.subprocess.PIPE,
                    env=ALLOCATOR | child_environment(),
                    pass_fds=(its.fileno(),),
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            raise
        return cls(process, ours)

    def give(self, descriptors: Sequence[int]) -> None:
        """Let it have these; the orders follow over the channel. Raises OSError when it has ended."""
        if len(descriptors) > DESCRIPTORS_MAX:
            raise OSError(f"a worker cannot be given {len(descriptors)} descriptors")
        socket.send_fds(self.end, [b"\0"], descriptors)

    async def kill(self) -> None:
        """End it, whether or not it has become a worker."""
        self.end.close()
        signal_process(self.process, signal.SIGKILL)
        await self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


def given(end: socket.socket) -> list[int]:
    """The shell's side: wait for descriptors. Empty when the supervisor is gone."""
    _, descriptors, _, _ = socket.recv_fds(end, 1, DESCRIPTORS_MAX)
    return descriptors


def allow_open_files() -> None:
    """As many as the system lets us, for the processes inherit it: a connection is a file, and 1,024 are soon gone."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def be_called(name: str) -> None:
    """Be found under a name, for those who look at the process list; where that can be done."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)


class Shells:
    """Those that wait. ``start`` or ``prepare`` some, ``take`` one, ``discard`` all that are older than an update."""

    def __init__(self) -> None:
        self._waiting: deque[Shell] = deque()
        self._starting: set[asyncio.Task[None]] = set()

    async def start(self, count: int) -> None:
        """Return when the system has begun so many."""
        self.prepare(count)
        await asyncio.gather(*self._starting)

    def prepare(self, count: int = 1) -> None:
        """See that so many wait, soon."""
        for _ in range(count - len(self._waiting) - len(self._starting)):
            task = asyncio.create_task(self._prepare_one(), name="shell")
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def take(self) -> Shell:
        """One that waits, else a new one. Raises OSError."""
        if self._starting and not self._waiting:
            await asyncio.wait(set(self._starting), return_when=asyncio.FIRST_COMPLETED)
        while self._waiting:
            shell = self._waiting.popleft()
            if shell.process.returncode is None:
                return shell
            await shell.kill()
        return await Shell.start()

    async def discard(self) -> None:
        """End those that wait."""
        for task in list(self._starting):
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        while self._waiting:
            await self._waiting.popleft().kill()

    async def _prepare_one(self) -> None:
        with contextlib.suppress(OSError):  # it is tried again when one is needed
            self._waiting.append(await Shell.start())
