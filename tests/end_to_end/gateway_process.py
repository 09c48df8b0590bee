"""A gateway as its users have it: a process, found by the files it writes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START_S = 90.0


def poll(condition: Callable[[], Any], *, within_s: float, what: str) -> Any:
    """What ``condition`` returns once that is true. Fails, saying ``what`` was waited for, after ``within_s``."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {what}")
        time.sleep(0.02)
    return found


def free_port() -> int:
    """One that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class GatewayProcess:
    """``weir serve`` on free ports, its data in ``data_dir``; engines of its own unless ``environ`` names others."""

    def __init__(self, data_dir: Path, **environ: str) -> None:
        self.data_dir = data_dir
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("WEIR__", "OTEL_"))},
            "PYTHONPATH": str(ROOT),
            "WEIR__DATA_DIR": str(data_dir),
            "WEIR__INGEST__LISTEN": "127.0.0.1:0,127.0.0.1:0",
            "WEIR__ADMIN__LISTEN": "127.0.0.1:0",
            "WEIR__CLICKHOUSE__EMBEDDED_PORT": "0",
            **environ,
        }
        self.arguments: tuple[str, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None
        self._out = data_dir.with_name(f"{data_dir.name}.out")
        self._log = data_dir.with_name(f"{data_dir.name}.log")

    def launch(self) -> GatewayProcess:
        """Starts it."""
        with self._out.open("wb") as out, self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve", *self.arguments],
                env=self.environ,
                stdout=out,
                stderr=log,
                cwd=ROOT,
            )
        return self

    def start(self) -> GatewayProcess:
        """Starts it and waits until it is ready."""
        self.launch()
        poll(self._ready_or_ended, within_s=START_S, what=f"the gateway is ready; its log: {self.log()}")
        assert self._process
        assert self._process.poll() is None, self.log()
        return self

    def _ready_or_ended(self) -> bool:
        assert self._process
        is_ready = (self.data_dir / "listen.json").exists() and bool(self.told)
        return is_ready or self._process.poll() is not None

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    @property
    def told(self) -> str:
        """What it printed."""
        return self._out.read_text()

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def listen(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.data_dir / "listen.json").read_text())
        return found

    @property
    def demo(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.data_dir / "demo.json").read_text())
        return found

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """The exit code and the seconds it took."""
        assert self._process
        began = time.monotonic()
        self._process.send_signal(number)
        code = self._process.wait(30)
        return code, time.monotonic() - began

    def kill(self) -> None:
        """Ends what is still there, after a test that failed half way."""
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``weir ...`` with the same settings."""
        return subprocess.run(
            [sys.executable, "-m", "gateway", *arguments],
            env=self.environ, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def post(self, path: str, body: bytes, key: str, media_type: str = "application/json", **headers: str) -> int:
        """The status of a POST to the ingest port."""
        status, _ = self.request(path, body, {"Authorization": f"Bearer {key}", "Content-Type": media_type, **headers})
        return status

    def request(
        self, path: str, body: bytes | None, headers: Mapping[str, str], at: str = "ingest"
    ) -> tuple[int, bytes]:
        """Status and body of a GET or POST to the ``ingest`` or ``admin`` port."""
        request = urllib.request.Request(f"http://{self.listen[at][0]}{path}", body, dict(headers))
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Rows from ClickHouse, over its HTTP interface; none while it is restarting."""
        return [json.loads(line) for line in self.execute(f"{sql} FORMAT JSONEachRow").splitlines()]

    def execute(self, sql: str) -> bytes:
        """What ClickHouse answers to a statement; nothing while it is restarting."""
        url = f"{self.listen['clickhouse']}/?output_format_json_quote_64bit_integers=0"
        request = urllib.request.Request(url, sql.encode())
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                body: bytes = answer.read()
                return body
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(error.read().decode()) from None
        except OSError:
            return b""

    def count(self, where: str = "1", *, table: str = "otel_logs") -> int:
        """Rows of a table; -1 while ClickHouse is restarting."""
        rows = self.query(f"SELECT count() AS rows FROM {table} WHERE {where}")
        return int(rows[0]["rows"]) if rows else -1

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        _, text = self.request("/metrics", None, {}, at="admin")
        lines = [line for line in text.decode().splitlines() if line.startswith((name + "{", name + " "))]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def workers(self) -> list[int]:
        """The process ids of its workers, the oldest first; not of the shells that wait to become one."""
        return sorted(pid for pid in self.descendants() if name_of(pid).startswith("weir-worker"))

    def descendants(self) -> dict[int, str]:
        """Every process below it and its command line."""
        return descendants_of(self.pid)


def descendants_of(pid: int) -> dict[int, str]:
    """Every process below ``pid`` and its command line."""
    found: dict[int, str] = {}
    with suppress(OSError):  # it ends while it is looked at
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                found[child] = command_line(child)
                found |= descendants_of(child)
    return found


def name_of(pid: int) -> str:
    """What a process calls itself; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def command_line(pid: int) -> str:
    """How a process was called; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
