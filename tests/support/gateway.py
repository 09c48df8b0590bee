"""A whole gateway as its users run it: ``weir serve`` in a process of its own, with its own engines, on free ports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

START_S = 90.0
STOP_S = 20.0
STORED_S = 20.0
_POLL_S = 0.01


class Gateway:
    """Started by ``start``; then ``ingest``, ``admin``, ``clickhouse`` say where it is and ``demo`` what it printed."""

    def __init__(self, data_dir: Path, **settings: str) -> None:
        self._data_dir = data_dir
        self._log_path = data_dir.with_name(data_dir.name + ".log")
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("WEIR__")},
            "WEIR__DATA_DIR": str(data_dir),
            "WEIR__INGEST__LISTEN": "127.0.0.1:0",
            "WEIR__ADMIN__LISTEN": "127.0.0.1:0",
            "WEIR__CLICKHOUSE__EMBEDDED_PORT": "0",
            "WEIR__DELIVERY__BATCH_AGE_MS": "20",
            **{f"WEIR__{name.upper()}": value for name, value in settings.items()},
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.ingest: list[str] = []
        self.admin = self.clickhouse = ""
        self.demo: dict[str, Any] = {}

    def start(self) -> None:
        """Returns when it is ready. Raises RuntimeError with its log when it does not come up."""
        root = Path(__file__).resolve().parents[2]
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve"], cwd=root, env=self._environment, stdout=log, stderr=log
            )
        listen_path = self._data_dir / "listen.json"
        self._poll(lambda: listen_path.exists() and listen_path.read_text().endswith("\n"), START_S, "ready")
        listen = json.loads(listen_path.read_text())
        self.ingest, self.admin, self.clickhouse = listen["ingest"], listen["admin"][0], listen["clickhouse"]
        self.demo = json.loads((self._data_dir / "demo.json").read_text())

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        if self._process is None:
            return 0
        self._process.terminate()
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise RuntimeError(f"the gateway did not stop within {STOP_S} s\n{self.log()}") from None

    @property
    def pid(self) -> int:
        """Of its supervisor."""
        if self._process is None:
            raise RuntimeError("the gateway was not started")
        return self._process.pid

    @property
    def dsn(self) -> str:
        """Of its own Postgres."""
        return (self._data_dir / "postgres.dsn").read_text().strip()

    def log(self) -> str:
        """What it has said so far."""
        return self._log_path.read_text("utf-8", "replace")

    def query(self, sql: str, settings: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """Rows as ClickHouse gives them, 64-bit integers as text."""
        parameters = urllib.parse.urlencode(
            {"default_format": "JSONEachRow", "output_format_json_quote_64bit_integers": "1", **(settings or {})}
        )
        request = urllib.request.Request(f"{self.clickhouse}/?{parameters}", sql.encode(), method="POST")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return [json.loads(line) for line in answer.read().splitlines()]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"ClickHouse: {error.read().decode('utf-8', 'replace')[:2000]}") from None

    def metrics(self) -> dict[str, float]:
        """Every sample of ``/metrics`` by its name and labels as exposed."""
        with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def wait_until_stored(self) -> None:
        """Returns when every accepted row is in ClickHouse."""
        self._poll(lambda: not buffered(self.metrics()), STORED_S, "empty")

    def _poll(self, condition: Callable[[], bool], deadline_s: float, what: str) -> None:
        deadline = time.monotonic() + deadline_s
        while not condition():
            if self._process is not None and self._process.poll() is not None:
                raise RuntimeError(f"the gateway ended before it was {what}\n{self.log()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the gateway was not {what} within {deadline_s} s\n{self.log()}")
            time.sleep(_POLL_S)


def buffered(metrics: Mapping[str, float]) -> float:
    """Rows accepted and not yet stored, of all tables."""
    return sum(value for name, value in metrics.items() if name.startswith("weir_rows_buffered"))
