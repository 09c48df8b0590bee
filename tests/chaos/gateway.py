"""A gateway that is killed, beside engines that are not: each a process of its own, on ports that stay the same.

ClickHouse can be up, stopped (SIGSTOP: it takes connections and answers none) or down (SIGKILL) whatever
becomes of the gateway, and the other way round.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from gateway import schema
from gateway.delivery.clickhouse import ClickHouse
from gateway.tenants.postgres import ControlStore
from tests.chaos.records import DIALECTS
from tests.support.leash import leashed

ROOT = Path(__file__).resolve().parents[2]
WEAKENED_BY = Path(__file__).parent / "weakened_by"
ENGINE_START_S = 60.0
READY_S = 60.0
POLL_S = 0.005
_PLEASANT_PORTS = range(20_000, 32_000)
"""Below those the kernel hands out, so that nobody is given one while its owner is being killed."""


def poll(condition: Callable[[], object], within_s: float, what: str) -> float:
    """Wait until something is so; the seconds it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > within_s:
            raise TimeoutError(f"not within {within_s} s: {what}")
        time.sleep(POLL_S)
    return time.monotonic() - began


def free_port() -> int:
    """A port nobody listens on."""
    for port in random.sample(_PLEASANT_PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port below 32000")


class Engine:
    """An embedded engine without its gateway: ``module`` is run, and says its port when it serves."""

    def __init__(self, module: str, directory: Path, *arguments: str) -> None:
        self.port = free_port()
        self._directory = directory
        self._command = [sys.executable, "-m", module, "--directory", str(directory), "--port", str(self.port)]
        self._command += [*arguments, "--parent", str(os.getpid())]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start, and wait until it serves."""
        self.launch()
        self.wait_until_it_serves()

    def launch(self) -> None:
        """Start."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
            )  # fmt: skip

    def wait_until_it_serves(self) -> None:
        """Return when it has said its port, which is one short line."""
        assert self._process is not None
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], ENGINE_START_S)
        line = self._process.stdout.readline() if readable else b""
        if not line or json.loads(line)["port"] != self.port:
            raise AssertionError(f"it did not start; its log is {self._directory / 'log'}")

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process = None

    def stop(self) -> None:
        """SIGTERM, as its gateway would."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        self.kill()


class Database(Engine):
    """ClickHouse, and in which state it is: ``up``, ``stopped`` or ``down``."""

    def __init__(self, directory: Path) -> None:
        super().__init__("gateway.embedded.clickhouse_server", directory, "--exactly")
        self.state = "down"
        self.kills = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def become(self, state: str) -> None:
        """Into another state; up includes that it answers."""
        if state == self.state:
            return
        if self.state == "stopped":
            self.signal(signal.SIGCONT)
            self.state = "up"
        if state == "up" and self.state == "down":
            self.start()
        elif state == "down":
            self.kill()
            self.kills += 1
        elif state == "stopped":
            if self.state == "down":
                self.start()
            self.signal(signal.SIGSTOP)
        self.state = state


class Gateway:
    """``weir serve``. ``environ`` names settings, ``weakened_by`` a protection that is off (``weakened_by/``).

    ``wrapper`` goes before the command. A context manager, at whose end nothing of it runs any more.
    """

    def __init__(
        self, data_dir: Path, environ: dict[str, str], *, weakened_by: str = "", wrapper: Sequence[str] = ()
    ) -> None:
        self.data_dir = data_dir
        self.ingest = f"127.0.0.1:{free_port()}"
        self.admin = f"127.0.0.1:{free_port()}"
        self.log_path = data_dir.with_name(data_dir.name + ".log")
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("WEIR__", "OTEL_"))},
            "PYTHONPATH": str(ROOT),
            "WEIR__DATA_DIR": str(data_dir),
            "WEIR__INGEST__LISTEN": self.ingest,
            "WEIR__ADMIN__LISTEN": self.admin,
            "WEIR__KEYS__REQUESTS_PER_MINUTE": "10000000",
            "WEIR__KEYS__REQUESTS_PER_MINUTE_NO_RETRY": "10000000",
            "WEIR__DELIVERY__BATCH_AGE_MS": "20",
            "WEIR__DELIVERY__RETRY_FIRST_MS": "10",
            "WEIR__DELIVERY__RETRY_MAX_MS": "200",
            **environ,
        }
        if weakened_by:
            self.environ["PYTHONPATH"] += f"{os.pathsep}{WEAKENED_BY}"
            self.environ["WEAKENED_BY"] = weakened_by
        self.wrapper = wrapper
        self._process: subprocess.Popen[bytes] | None = None
        self._orphans: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill_all()
        for orphan in self.orphans():
            with suppress(ProcessLookupError):
                os.kill(orphan, signal.SIGKILL)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def ended(self) -> int | None:
        """Its exit code; None while it runs."""
        return None if self._process is None else self._process.poll()

    def launch(self) -> None:
        command = [sys.executable, "-m", "gateway", "serve"]
        if self.wrapper:  # killed itself, it lets go of what it runs
            command = [*self.wrapper, *leashed(*command, parent=0)]
        log: IO[bytes]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                leashed(*command),
                env=self.environ, stdout=log, stderr=log, cwd=ROOT, start_new_session=True,
            )  # fmt: skip

    def start(self) -> float:
        """Start; the seconds until it was ready."""
        self.launch()
        return self.wait_until_ready()

    def wait_until_ready(self, within_s: float = READY_S) -> float:
        """The seconds until /readyz says yes."""
        return poll(self._ready_or_ended, within_s, f"the gateway in {self.data_dir} is ready")

    def _ready_or_ended(self) -> bool:
        if self.ended is not None:
            raise AssertionError(f"the gateway ended with {self.ended} before it was ready: {self.said()}")
        return self.get("/readyz")[0] == 200

    def get(self, path: str) -> tuple[int, str]:
        """Status and body from the admin port; 0 when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels; NaN when nobody answers or it has no such metric."""
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.startswith((name + "{", name + " "))]
        return sum(float(line.rpartition(" ")[2]) for line in lines) if lines else float("nan")

    def workers(self) -> list[int]:
        """Its child processes that serve; not those that wait to."""
        found = []
        for pid in children(self.pid):
            with suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().startswith("weir-worker"):
                    found.append(pid)
        return found

    def kill_all(self) -> None:
        """SIGKILL to the gateway and all it has started, at once."""
        if self._process is None:
            return
        process, self._process = self._process, None
        below = descendants(process.pid)
        process.kill()
        for pid in below:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        poll(lambda: all(map(is_zombie, below)), 10.0, "what was killed is dead")

    def kill_parent(self) -> None:
        """SIGKILL to the first process alone; its ``orphans`` have to notice."""
        self._orphans = self.orphans() + descendants(self.pid)
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def orphans(self) -> list[int]:
        """Those whose parent was killed alone and that have not ended yet."""
        return [pid for pid in self._orphans if not is_zombie(pid)]

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(30)

    def said(self, last_bytes: int = 3000) -> str:
        """The end of its log."""
        return self.log_path.read_bytes()[-last_bytes:].decode("utf-8", "replace") if self.log_path.exists() else ""


class World:
    """Engines with tables, projects and keys, and a place for everything else; ``keys``: dialect -> key."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clickhouse = Database(directory / "clickhouse")
        self.postgres = Engine("gateway.embedded.postgres_guard", directory / "postgres")
        self.keys_path = directory / "keys.json"
        self.rows_before: dict[str, int] = {}
        """Table -> rows, as of the last check."""
        self.dsn = ""
        self._left = ExitStack()

    def __enter__(self) -> Self:
        directory = self.directory
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)  # Postgres may run as another user and has to get to its own
        with ExitStack() as stack:
            for engine in (self.postgres, self.clickhouse):
                stack.callback(engine.stop)
                engine.launch()
            self.postgres.wait_until_it_serves()
            self.clickhouse.wait_until_it_serves()
            self.clickhouse.state = "up"
            password = (directory / "postgres" / "password").read_text().strip()
            self.dsn = f"postgresql://weir:{password}@127.0.0.1:{self.postgres.port}/postgres"
            self.keys_path.write_text(json.dumps(asyncio.run(self._prepare())))
            self._left = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.close()

    async def _prepare(self) -> dict[str, str]:
        clickhouse = ClickHouse(self.clickhouse.url)
        await clickhouse.start()
        await clickhouse.create_tables(schema.TABLES, retention_days=3650)
        await clickhouse.close()
        store = await ControlStore.connect(self.dsn)
        await store.migrate()
        keys = {}
        for dialect in DIALECTS:
            await store.create_project(dialect)
            _, keys[dialect] = await store.create_key(dialect, kind="server", dialect=dialect, name="chaos", origins=())
        await store.close()
        return keys

    def gateway(
        self,
        *,
        name: str = "gateway",
        weakened_by: str = "",
        wrapper: Sequence[str] = (),
        data_dir: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> Gateway:
        """One that uses these engines. ``settings`` are in small letters: ``{"delivery__durability": "memory"}``."""
        environ = {"WEIR__CLICKHOUSE__URL": self.clickhouse.url, "WEIR__POSTGRES__DSN": self.dsn}
        environ |= {f"WEIR__{name.upper()}": value for name, value in (settings or {}).items()}
        return Gateway(data_dir or self.directory / name, environ, weakened_by=weakened_by, wrapper=wrapper)


def children(pid: int) -> list[int]:
    """The processes that ``pid`` has started and that have not ended."""
    found: list[int] = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(child) for child in listed.read_text().split() if not is_zombie(int(child))]
    return found


def descendants(pid: int) -> list[int]:
    """Those, and theirs."""
    found = children(pid)
    return found + [below for child in found for below in descendants(child)]


def is_zombie(pid: int) -> bool:
    """Whether it has ended and nobody has asked."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
