"""Programme "crash": the process dies, or gets an error, at the N-th of a system call that concerns its files.

``strace`` does it (``when`` counts in each thread). A round: a gateway under strace, load, a while of
dying or failing there and being replaced; then the same directory without strace, and the oracle asks.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from contextlib import ExitStack, suppress
from functools import cache

from tests.chaos.gateway import World, poll
from tests.chaos.load import STALLED_S, settle
from tests.chaos.oracle import Report
from tests.chaos.rounds import Rounds

WRITE = "pwritev,pwritev2"
"""Which of them it is is the C library's choice."""
CALLS = {"fdatasync": 200, "fsync": 12, WRITE: 200, "fallocate": 6, "ftruncate": 6, "rename": 6, "unlink": 8}
"""System call -> up to which of them a thread is let live."""
OPENS = {"openat": 4000, "write": 400}
ERRORS = {
    "fdatasync": ("EIO", "ENOSPC", "EINTR"),
    "fsync": ("EIO", "ENOSPC"),
    WRITE: ("EIO", "ENOSPC", "EINTR"),
    "fallocate": ("EIO", "ENOSPC", "EOPNOTSUPP"),
    "ftruncate": ("EIO", "EINTR"),
    "rename": ("EIO", "ENOSPC"),
    "unlink": ("EIO", "EROFS"),
}
STORM_S = 6.0
SEGMENTS = {
    "delivery__segment_bytes": str(256 << 10),
    "delivery__reserve_bytes": str(64 << 10),
    "delivery__audit_ms": "200",
}
"""Small and soon gone, so that files are opened and removed all the time."""


@cache
def may_trace() -> bool:
    """Whether there is an strace that may trace and inject."""
    if shutil.which("strace") is None:
        return False
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=fsync:error=EIO", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class CrashRounds(Rounds):
    """Rounds on one data directory."""

    def __init__(self, world: World, seed: str, *, pause_ms: float = 2.0, weakened_by: str = "") -> None:
        name = f"crash-{seed}{weakened_by}".replace(" ", "-")
        gateway = world.gateway(name=name, weakened_by=weakened_by, settings=SEGMENTS)
        super().__init__(world, seed, gateway, pause_ms=pause_ms)
        self._trace = world.directory / f"{name}.trace"

    def _begin(self, stack: ExitStack) -> None:
        super()._begin(stack)
        self._world.clickhouse.become("up")
        self._gateway.start()  # once in order, so that what makes a directory is not all that is ever tested
        self._gateway.kill_all()

    def round(
        self,
        number: int,
        *,
        injection: str | None = None,
        state: str | None = None,
        storm_s: float = STORM_S,
        stalled_s: float = STALLED_S,
    ) -> Report:
        """One place to die or fail at, for so long, ClickHouse in one state."""
        choose = random.Random(f"{self._seed}/{number}")
        injection = injection or _injection(choose)
        what = f"seed {self._seed} round {number} ({injection})"
        world, gateway, tally = self._world, self._gateway, self.tally
        world.clickhouse.become(state or choose.choice(("up", "up", "down")))
        call = injection.partition(":")[0]
        gateway.wrapper = ("strace", "-f", "--seccomp-bpf", "-qq", "-o", str(self._trace), "-e", f"trace={call}",
                           "-e", f"inject={injection}")  # fmt: skip
        tally.faults[injection.partition(":when")[0]] += 1
        tally.cycles += 1
        with self._load(number) as load:
            gateway.launch()
            with suppress(TimeoutError):
                poll(lambda: gateway.ended is not None, storm_s, "the gateway ended")
            tally.struck += gateway.ended is not None or b"(INJECTED)" in self._trace.read_bytes()
            gateway.kill_all()
            gateway.wrapper = ()
            began = time.monotonic()
            gateway.start()
            tally.ready_s.setdefault(world.clickhouse.state, []).append(time.monotonic() - began)
            load.wait_for(10)
            report = settle(world, gateway, load, stalled_s=stalled_s)
        self._count(report, what)
        gateway.kill_all()
        return report


def _injection(choose: random.Random) -> str:
    if choose.random() < 0.6:
        calls = CALLS | OPENS
        call = choose.choice(list(calls))
        return f"{call}:signal=SIGKILL:when={int(calls[call] ** choose.random())}"
    call = choose.choice(list(ERRORS))
    first, every = int(CALLS[call] ** choose.random()), choose.randrange(2, 40)
    return f"{call}:error={choose.choice(ERRORS[call])}:when={first}+{every}"
