"""The oracle's senders as a process, and what is asked once a storm is over."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from tests.chaos import oracle
from tests.chaos.gateway import ROOT, Gateway, World, poll
from tests.chaos.oracle import Ledger, Report
from tests.chaos.records import DAY_S, DAYS
from tests.support.leash import leashed

DRAIN_S = 120.0
STALLED_S = 40.0
FRESH_MAX_S = 20.0
LAST_REQUESTS_S = 60.0
TAIL_POLL_S = 0.1


def noon_s() -> int:
    """Noon, so many days ago that all days of the records are over."""
    now = int(datetime.now(UTC).timestamp())
    return now - now % DAY_S + DAY_S // 2 - (DAYS + 1) * DAY_S


class Load:
    """One run of senders at a gateway, a context manager; ``run`` names it in every id."""

    def __init__(
        self, world: World, gateway: Gateway, run: str, *, connections: int = 6, pause_ms: float = 2.0
    ) -> None:
        self.run = run
        self.base_s = noon_s()
        self.ledger_dir = world.directory / "ledger"
        self.ledger = Ledger(self.ledger_dir, run)
        self._world = world
        self._gateway = gateway
        self._arguments = ["--connections", str(connections), "--pause-ms", str(pause_ms)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [
                *leashed(sys.executable, "-m", "tests.chaos.oracle", "send", "--ledger", str(self.ledger_dir)),
                *("--run", self.run, "--ingest", self._gateway.ingest, "--keys", str(self._world.keys_path)),
                *("--base-s", str(self.base_s), *self._arguments),
            ],
            cwd=ROOT,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def acked(self) -> int:
        """Records so far."""
        assert self._process is not None
        if self._process.poll() not in (None, 0):
            raise AssertionError("the oracle's senders died")
        return self.ledger.update()

    def broken(self) -> dict[str, int]:
        """Connections that were refused or broke since the last call, as of the last ``acked``."""
        broken, self.ledger.broken = dict(self.ledger.broken), Counter()
        return broken

    def wait_for(self, records: int, within_s: float = 30.0) -> None:
        """Return when so many more are acked."""
        goal = self.acked() + records
        poll(lambda: self.acked() >= goal, within_s, f"{records} more records are acked; {self._gateway.said()}")

    def stop(self) -> None:
        """Let requests in flight end, and no more come. Raises AssertionError when a sender failed by itself."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(LAST_REQUESTS_S)
        finally:
            process.kill()
            process.wait()
        if code:
            raise AssertionError(f"the oracle's senders ended with {code}")

    def check(self) -> Report:
        """Hold ClickHouse to the ledger."""
        return oracle.check(
            self.ledger_dir,
            self.run,
            self._world.clickhouse.url,
            base_s=self.base_s,
            rows_before=self._world.rows_before,
        )

    def missing(self) -> int:
        """Of what is acked, what is not in ClickHouse yet."""
        return oracle.missing_now(self.ledger_dir, self.run, self._world.clickhouse.url, base_s=self.base_s)


def settle(world: World, gateway: Gateway, load: Load, *, stalled_s: float = STALLED_S) -> Report:
    """The storm is over: ClickHouse is up, nobody sends. Wait until all is drained, then ask.

    What is acked counts as missing only when none of it has come for ``stalled_s``. What was not acked
    may come late, so the gateway has to say as well that it holds nothing; what it says is in the report.
    """
    world.clickhouse.become("up")
    load.stop()
    deadline = time.monotonic() + DRAIN_S
    while gateway.metric("weir_spool_recovering") != 0 and time.monotonic() < deadline:
        time.sleep(TAIL_POLL_S)  # what it holds is not known before
    least, since = load.missing(), time.monotonic()
    while least and time.monotonic() < min(deadline, since + stalled_s):
        time.sleep(TAIL_POLL_S)
        missing = load.missing()
        if missing < least:
            least, since = missing, time.monotonic()
    while (held := gateway.metric("weir_rows_buffered")) != 0 and time.monotonic() < min(deadline, since + stalled_s):
        time.sleep(TAIL_POLL_S)
    report = load.check()
    report.held = held
    return report


def fresh_write_s(world: World, gateway: Gateway, within_s: float = FRESH_MAX_S) -> float:
    """The seconds from posting one more record to finding it in ClickHouse. Raises TimeoutError."""
    mark = f"fresh-{time.monotonic_ns()}"
    key = json.loads(world.keys_path.read_text())["loguro"]
    began = time.monotonic()
    body = json.dumps({"message": mark}).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def posted() -> bool:
        with suppress(OSError):
            request = urllib.request.Request(f"http://{gateway.ingest}/", body, headers)
            with urllib.request.urlopen(request, timeout=5) as answer:
                return bool(answer.status == 202)
        return False

    poll(posted, within_s, "a fresh record is accepted")
    sql = f"SELECT count() FROM otel_logs WHERE Body = '{mark}'"
    poll(lambda: oracle.ask(world.clickhouse.url, sql).strip() == "1", within_s, "a fresh record is stored")
    world.rows_before["otel_logs"] += 1
    return time.monotonic() - began
