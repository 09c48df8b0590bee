"""A child process that is kept running: started, watched, restarted when it dies, ended politely.

The child gets a pipe as its standard input and nothing is ever written to it: when this process goes
away, even by SIGKILL, the pipe closes and the child ends itself (``lifeline.py``). It runs in a
session of its own, so that a terminal's Ctrl-C reaches only the gateway, which then stops it in
order. Its standard error goes to a log file whose last lines are quoted when it fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gateway

logger = logging.getLogger(__name__)

LOG_BYTES_MAX = 4 * 1024 * 1024
"""Size at which a (re)start puts the log file aside, as ``<name>.old``."""
RESTART_DELAY_FIRST_S = 0.1
RESTART_DELAY_MAX_S = 10.0
STEADY_S = 10.0
"""A child that has run this long is restarted at once; one that has not is crash-looping and backs off."""


class EngineFailed(RuntimeError):
    """An embedded engine could not be started; the text says which, why, and where its log is."""


@dataclass(frozen=True)
class Command:
    """What to start: ``ready`` returns once the started process serves, or raises."""

    name: str
    arguments: Callable[[], Sequence[str]]
    environment: Mapping[str, str]
    log_path: Path
    ready: Callable[[asyncio.subprocess.Process], Awaitable[None]]
    ready_deadline_s: float
    stop_deadline_s: float


class Child:
    """Keeps one process of ``command`` running between ``start`` and ``stop``.

    ``on_restart`` is called on the event loop each time a dead child has been replaced and serves again.
    """

    def __init__(self, command: Command, *, on_restart: Callable[[], None] | None = None) -> None:
        self._command = command
        self._on_restart = on_restart
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """The running process, or None between two lives."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Start and wait until it serves; raises EngineFailed."""
        self._stopping = False
        await self._launch()
        self._watch = asyncio.get_running_loop().create_task(self._keep_running())

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL after the deadline. Does nothing when it does not run."""
        self._stopping = True
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        await self._end(self._command.stop_deadline_s)

    async def _launch(self) -> None:
        command = self._command
        rotate_log(command.log_path)
        with command.log_path.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command.arguments(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=dict(command.environment),
                start_new_session=True,
            )
        self._process = process
        try:
            async with asyncio.timeout(command.ready_deadline_s):
                await command.ready(process)
        except Exception as error:
            await self._end(deadline_s=0)
            raise EngineFailed(self._account(process, error)) from error
        except BaseException:
            await self._end(deadline_s=0)
            raise

    async def _keep_running(self) -> None:
        delay_s = 0.0
        while True:
            started_s = time.monotonic()
            if self._process is not None:
                await self._process.wait()
                steady = time.monotonic() - started_s >= STEADY_S
                delay_s = 0.0 if steady else delay_s
                logger.error("%s", self._account(self._process, None))
            await asyncio.sleep(delay_s)
            delay_s = min(max(2 * delay_s, RESTART_DELAY_FIRST_S), RESTART_DELAY_MAX_S)
            try:
                await self._launch()
            except (EngineFailed, OSError) as error:
                logger.error("%s; trying again in %.1f s", error, delay_s)  # noqa: TRY400 - the text says it all
                continue
            logger.warning("%s runs again, pid %s", self._command.name, self.pid)
            self._announce()

    def _announce(self) -> None:
        if self._on_restart is None:
            return
        try:
            self._on_restart()
        except Exception:
            # Theirs to mend; the child must be watched all the same.
            logger.exception("what was to happen after a restart of %s failed", self._command.name)

    async def _end(self, deadline_s: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None and deadline_s > 0:
            signal_process(process, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline_s):
                    await process.wait()
        if process.returncode is None:
            if deadline_s > 0:
                logger.error("%s did not stop within %.0f s; killing it", self._command.name, deadline_s)
            signal_process(process, signal.SIGKILL)
        await process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def _account(self, process: asyncio.subprocess.Process, error: BaseException | None) -> str:
        """One line for the log: how it ended, and what it said last."""
        status = process.returncode
        if status is not None and status < 0:
            how = f"was ended by {signal.Signals(-status).name}"
        elif status is not None:
            how = f"ended with status {status}"
        else:
            how = f"does not answer ({type(error).__name__})"
        said = last_lines(self._command.log_path) or "empty"
        return f"{self._command.name} {how}; the end of its log {self._command.log_path}: {said}"


def signal_process(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def rotate_log(path: Path) -> None:
    """Put a large log file aside, keeping one old one."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES_MAX:
            path.replace(path.with_suffix(path.suffix + ".old"))


def last_lines(path: Path, *, bytes_max: int = 600) -> str:
    """The end of a log file in one line; empty when there is none."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - bytes_max))
            text = log.read(bytes_max).decode("utf-8", "replace")
    except OSError:
        return ""
    return " | ".join(line.strip() for line in text.splitlines() if line.strip())[-bytes_max:]


def child_environment() -> dict[str, str]:
    """Ours, with the package importable from any working directory."""
    root = str(Path(gateway.__file__).parent.parent)
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONSAFEPATH": "1"}
