"""The gateway's own ClickHouse, when none is configured: a child process that is kept running.

``clickhouse_server.py`` is that process. The gateway speaks HTTP to it exactly as it would to a
server; nothing else in the gateway knows that it is embedded. While it is away its clients see
refused connections, as from a restarting server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import aiohttp

from gateway.embedded.child import Child, Command, child_environment

START_DEADLINE_S = 60.0
"""A first start waits for a predecessor's lock, and a cold disk reads half a gigabyte of library."""
STOP_DEADLINE_S = 10.0


class EmbeddedClickHouse:
    """ClickHouse on 127.0.0.1, its data below ``data_dir / "clickhouse"``.

    ``port`` is used when it is free (0: any); another one otherwise. After a death it is back on the
    same port with the same data in about a second, and ``on_restart`` is called.
    """

    def __init__(self, data_dir: Path, *, port: int = 8123, on_restart: Callable[[], None] | None = None) -> None:
        self._directory = (data_dir / "clickhouse").absolute()
        self._wanted_port = port
        self._port: int | None = None
        command = Command(
            name="embedded ClickHouse",
            arguments=self._arguments,
            environment=child_environment(),
            log_path=self._directory / "clickhouse.log",
            ready=self._ready,
            ready_deadline_s=START_DEADLINE_S,
            stop_deadline_s=STOP_DEADLINE_S,
        )
        self._child = Child(command, on_restart=on_restart)

    @property
    def url(self) -> str:
        """Such as ``http://127.0.0.1:8123``; known once started, and then it stays."""
        if self._port is None:
            raise RuntimeError("the embedded ClickHouse has not been started")
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """The process that serves now, None between two lives."""
        return self._child.pid

    async def start(self) -> str:
        """Start, wait until it answers, return its URL; raises EngineFailed."""
        self._directory.mkdir(parents=True, exist_ok=True)
        # The engine leaves its files, and so all that was logged, open to everyone. Somebody else's directory stays.
        with contextlib.suppress(PermissionError):
            self._directory.chmod(0o700)
        await self._child.start()
        return self.url

    async def stop(self) -> None:
        """Finish the statements in flight, flush and end."""
        await self._child.stop()

    def _arguments(self) -> Sequence[str]:
        port = self._wanted_port if self._port is None else self._port
        exactly = () if self._port is None else ("--exactly",)
        return (
            *(sys.executable, "-m", "gateway.embedded.clickhouse_server", "--directory", str(self._directory)),
            *("--port", str(port), *exactly, "--parent", str(os.getpid())),
        )

    async def _ready(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 - it was asked for
        line = await process.stdout.readline()
        if not line:
            raise EOFError("it ended before it served")
        self._port = int(json.loads(line)["port"])
        async with aiohttp.ClientSession() as session, session.get(self.url + "/ping") as reply:
            if (await reply.text()).strip() != "Ok.":
                raise OSError(f"{self.url}/ping does not answer Ok.")
