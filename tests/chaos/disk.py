"""Programme "disk": the data directory is on a small disk of its own, and it fills up.

A round: ClickHouse away, load; the rest of the disk is taken by somebody else, at once or bit by bit,
until senders are refused; sometimes the gateway is killed there and has to start without a free byte.
Then there is room again, the gateway has to accept within seconds, and the oracle asks.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

from tests.chaos.gateway import World, poll
from tests.chaos.load import STALLED_S, Load, settle
from tests.chaos.oracle import Report
from tests.chaos.rounds import Rounds

DISK_BYTES = 48 << 20
SPOOL = {
    "delivery__segment_bytes": str(2 << 20),
    "delivery__reserve_bytes": str(512 << 10),
    "delivery__audit_ms": "500",
    "delivery__spool_free_bytes_min": "0",
}
RECOVERY_S = 5.0
"""From there being room to the first record accepted."""
REFUSED, REFUSED_S = 20, 20.0


@cache
def may_mount() -> bool:
    """Whether this process may mount; a container's root often may not."""
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as place:
        return _mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs", place) and _unmounted(Path(place))


def _mounted(*arguments: str) -> bool:
    with suppress(OSError):
        return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
    return False


def _unmounted(path: Path) -> bool:
    return subprocess.run(["umount", str(path)], capture_output=True, check=False).returncode == 0


class FullDiskRounds(Rounds):
    """Rounds on one small disk."""

    def __init__(self, world: World, seed: str, *, pause_ms: float = 2.0, weakened_by: str = "") -> None:
        self._disk = world.directory / f"disk-{seed}-{bool(weakened_by)}"
        self._ballast = self._disk / "ballast"
        gateway = world.gateway(weakened_by=weakened_by, data_dir=self._disk / self._disk.name, settings=SPOOL)
        gateway.log_path = world.directory / f"{self._disk.name}.log"
        super().__init__(world, seed, gateway, pause_ms=pause_ms)

    def _begin(self, stack: ExitStack) -> None:
        self._disk.mkdir()
        if not _mounted("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(self._disk)):
            raise AssertionError("a tmpfs could not be mounted; ask may_mount() first")
        stack.callback(poll, lambda: _unmounted(self._disk), 10.0, "the small disk is unmounted")
        super()._begin(stack)
        self._gateway.start()

    def round(self, number: int, *, kill: bool | None = None, stalled_s: float = STALLED_S) -> Report:
        """One filling of the disk. ``kill``: whether the gateway is killed when it is full; None: now and then."""
        choose = random.Random(f"{self._seed}/{number}")
        what = f"seed {self._seed} round {number}"
        world, gateway, tally = self._world, self._gateway, self.tally
        with self._load(number) as load:
            world.clickhouse.become(choose.choice(("down", "down", "up")))
            load.wait_for(choose.randrange(1, 300))
            self._fill(choose)
            try:
                poll(lambda: self._refused(load) >= REFUSED, REFUSED_S, "senders are refused on a full disk")
            except TimeoutError as error:
                tally.finding(f"{what}: {error}")
            tally.faults["full"] += 1
            tally.cycles += 1
            self._look_at_a_refusal(what)
            if choose.random() < 0.5 if kill is None else kill:
                gateway.kill_all()
                tally.kills["full disk"] += 1
                tally.ready_s.setdefault("full disk", []).append(self._start(what))
            self._ballast.unlink()
            if choose.random() < 0.5:
                world.clickhouse.become("up")
            before = load.acked()
            began = time.monotonic()
            try:
                poll(lambda: load.acked() > before, RECOVERY_S, f"{what}: accepted again once there is room")
            except TimeoutError as error:
                tally.finding(str(error))
            tally.recovery_s.append(time.monotonic() - began)
            report = settle(world, gateway, load, stalled_s=stalled_s)
        self._count(report, what)
        return report

    def _start(self, what: str) -> float:
        """Without a free byte it need not be ready, but has to live and say so."""
        self._gateway.launch()
        try:
            return poll(lambda: self._gateway.get("/livez")[0] == 200 or self._gateway.ended is not None, 10.0, "alive")
        finally:
            if self._gateway.ended is not None:
                self.tally.finding(f"{what}: no start on a full disk: {self._gateway.said(500)}")
                self._ballast.unlink()
                self._ballast.touch()
                self._gateway.start()

    def _fill(self, choose: random.Random) -> None:
        """Somebody else takes all that is left, in pieces."""
        piece = choose.choice((1 << 12, 1 << 16, 1 << 20))
        with self._ballast.open("wb", buffering=0) as ballast:
            while True:
                try:
                    ballast.write(bytes(piece))
                except OSError:
                    if piece == 1 << 12:
                        return
                    piece = 1 << 12

    def _refused(self, load: Load) -> int:
        load.acked()
        return load.ledger.answers["503"]

    def _look_at_a_refusal(self, what: str) -> None:
        """A 503 says when to come back."""
        key = json.loads(self._world.keys_path.read_text())["otlp"]
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{self._gateway.ingest}/v1/logs", b'{"resourceLogs":[]}', headers)
        try:
            with urllib.request.urlopen(request, timeout=10):
                return
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 503 or "Retry-After" not in error.headers:
                    self.tally.finding(f"{what}: on a full disk {error.code}, {dict(error.headers)}")
        except OSError as error:
            self.tally.finding(f"{what}: on a full disk {error!r}")
