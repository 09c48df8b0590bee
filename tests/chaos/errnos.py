"""Programme "errnos": the n-th call of one kind that touches the spool fails with one errno, or comes back short.

``errnos.c`` is preloaded into the gateway's processes, in front of ``power.c``, and takes its orders from a file
that both sides have in memory. A round is one fault under load, in a gateway that runs or in one that starts:
no process may end but one that starts (and says why), none may answer oddly or tell of what nobody foresaw, and it
has to accept again. Then all is killed, every other time with the power (what was not synced is forgotten or torn, and
what a failed sync left clean in memory too), requests with an Idempotency-Key are sent again, and the oracle asks the
next gateway.

``SWEEP`` names all faults, every kind's first call before any kind's second. Round N is its N-th; the next pass over
it ends each in the other way.
"""

from __future__ import annotations

import errno
import mmap
import random
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Self

from tests.chaos.gateway import World, poll
from tests.chaos.keyed import Keyed
from tests.chaos.load import STALLED_S, Load, settle
from tests.chaos.oracle import Ledger, Report
from tests.chaos.power import MODES, Watch
from tests.chaos.rounds import Rounds

SOURCE = Path(__file__).with_name("errnos.c")
SETTINGS = {
    "delivery__segment_bytes": str(64 << 10),
    "delivery__reserve_bytes": str(64 << 10),
    "delivery__audit_ms": "200",
}
"""As small as they may be and soon gone, so that files are made, left, read and removed all the time."""
REACHED_S = 15.0
"""Until a call has to have come; there are places where it never does."""
ACCEPTS_S = 30.0
"""The bar is five seconds, which the tally shows; after so many it counts as never."""
AFTER = 5
"""Requests accepted between a fault and the end: what follows a fault must hold as well."""
SHORT = "short"
KILL = "kill"


class Call(IntEnum):
    """Kinds of system calls, as in errnos.c. PWRITEV is all calls that write at a place."""

    PWRITEV = 1
    WRITE = 2
    FDATASYNC = 3
    FSYNC = 4
    OPENAT = 5
    FALLOCATE = 6
    FTRUNCATE = 7
    RENAME = 8
    UNLINK = 9
    PREAD = 10
    READ = 11


RUNNING = {
    Call.PWRITEV: ((SHORT, "EIO", "ENOSPC", "EINTR"), 100),
    Call.FDATASYNC: (("EIO", "ENOSPC", "EINTR"), 100),
    Call.FSYNC: (("EIO", "ENOSPC", "EINTR"), 40),
    Call.OPENAT: (("EIO", "ENOSPC", "EMFILE"), 60),
    Call.FALLOCATE: (("ENOSPC", "EIO"), 30),
    Call.FTRUNCATE: (("EIO",), 30),
    Call.UNLINK: (("EIO",), 30),
    Call.PREAD: (("EIO", SHORT), 60),
}
"""Call -> how it fails, and up to which one."""
STARTING = {
    Call.PWRITEV: ((SHORT, "EIO", "ENOSPC", "EINTR"), 2),
    Call.WRITE: ((SHORT, "EIO", "ENOSPC", "EINTR"), 1),
    Call.FDATASYNC: (("EIO", "ENOSPC", "EINTR"), 2),
    Call.FSYNC: (("EIO", "ENOSPC", "EINTR"), 20),
    Call.OPENAT: (("EIO", "ENOSPC", "EMFILE"), 150),
    Call.FALLOCATE: (("ENOSPC", "EIO"), 3),
    Call.RENAME: (("EIO", "ENOSPC"), 1),
    Call.UNLINK: (("EIO",), 3),
    Call.PREAD: (("EIO", SHORT), 40),
    Call.READ: (("EIO",), 4),
}
"""The same, counted from the first process on."""


@dataclass(frozen=True, slots=True)
class Fault:
    """The ``number``-th call of a kind fails with ``error``, counted from now or from the start of a gateway."""

    call: Call
    error: str
    number: int
    starting: bool = False

    @property
    def kind(self) -> str:
        """Which fault it is, wherever it strikes."""
        return f"{'starting ' if self.starting else ''}{self.call.name.lower()} {self.error}"

    def __str__(self) -> str:
        return f"{self.kind} {self.number}"


def _sweep() -> Iterator[Fault]:
    places = [(call, *how, starting) for starting, table in ((False, RUNNING), (True, STARTING))
              for call, how in table.items()]  # fmt: skip
    for number in range(1, max(last for _, _, last, _ in places) + 1):
        for call, errors, last, starting in places:
            if number <= last:
                for error in errors:
                    yield Fault(call, error, number, starting)


SWEEP = tuple(_sweep())


class Control:
    """The file in which errnos.c finds its orders. A context manager."""

    _ORDERS = struct.Struct("<iiii")

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(self._ORDERS.size))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.close()

    def arm(self, fault: Fault) -> None:
        """Let it strike."""
        self.disarm()
        error = 0 if fault.error == SHORT else getattr(errno, fault.error)
        self._ORDERS.pack_into(self._memory, 0, 0, fault.number, error, 0)
        self._memory[:4] = struct.pack("<i", fault.call)  # last: until then nobody counts

    def disarm(self) -> None:
        """Nothing is to strike any more."""
        self._memory[:4] = bytes(4)

    @property
    def struck(self) -> bool:
        """Whether what was armed last did."""
        return bool(self._ORDERS.unpack_from(self._memory)[3])


class Since:
    """What senders begin to post from now on; what is on its way already proves nothing."""

    def __init__(self, load: Load) -> None:
        self._ledger = Ledger(load.ledger_dir, load.run)
        self._posted: set[tuple[Path, str]] = set()
        self._accepted = 0
        for _ in self._ledger.lines():
            pass

    def accepted(self) -> int:
        """Requests of those that are acknowledged."""
        for path, (what, place, *_) in self._ledger.lines():
            if what == "posted":
                self._posted.add((path, place))
            elif what == "acked":
                self._accepted += (path, place) in self._posted
        return self._accepted


class ErrnoRounds(Rounds):
    """Rounds on one data directory. The gateway that answered the oracle is the next round's."""

    def __init__(self, world: World, seed: str, *, pause_ms: float = 5.0, weakened_by: str = "") -> None:
        name = f"errnos-{seed}{weakened_by}".replace(" ", "-")
        gateway = world.gateway(name=name, weakened_by=weakened_by, settings=SETTINGS)
        super().__init__(world, seed, gateway, pause_ms=pause_ms)
        self._watch = Watch(gateway, world.directory / f"{name}-power.so", world.directory / f"{name}.logs")
        self._library = world.directory / f"{name}.so"
        self._control = Control(world.directory / f"{name}.control")
        self._keyed = Keyed(world, gateway, name)

    def _begin(self, stack: ExitStack) -> None:
        stack.enter_context(self._control)
        super()._begin(stack)
        self._watch.compile()
        command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(self._library), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True)
        self._gateway.data_dir.mkdir()
        self._world.clickhouse.become("up")
        self._start()

    def round(
        self,
        number: int,
        *,
        fault: Fault | None = None,
        end: str | None = None,
        state: str | None = None,
        stalled_s: float = STALLED_S,
    ) -> Report:
        """One fault, while ClickHouse is in one state, and one end: ``kill``, or how the disk is torn without power."""
        passes, place = divmod(number, len(SWEEP))
        choose = random.Random(f"{self._seed}/{number}")
        fault = fault or SWEEP[place]
        end = end or (KILL if (fault.number + passes) % 2 else choose.choice(("nothing", *MODES)))
        # What is read and removed waits for ClickHouse; what is written is lost only as long as nobody else has it.
        state = state or ("up" if fault.call in (Call.UNLINK, Call.PREAD) else choose.choice(("up", "stopped")))
        what = f"seed {self._seed} round {number} ({fault}, ClickHouse {state}, then {end})"
        world, gateway, tally = self._world, self._gateway, self.tally
        said = gateway.log_path.stat().st_size
        with self._load(number) as load:
            with self._keyed.sending():
                load.wait_for(20)
                world.clickhouse.become(state)
                self._strike(fault, load, what)
                gateway.kill_all()
            tally.cycles += 1
            tally.states[state] += 1
            tally.kills[end] += 1
            load.stop()
            if end != KILL:
                self._watch.fail(end, choose)
            world.clickhouse.become("up")
            began = time.monotonic()
            self._start()
            tally.ready_s.setdefault(state, []).append(time.monotonic() - began)
            self._keyed.send_again()
            report = settle(world, gateway, load, stalled_s=stalled_s)
        self._count(report, what)
        if wrong := self._keyed.wrong():
            tally.finding(f"{what}: {wrong}")
        self._look_for_surprises(said, what)
        return report

    def _start(self) -> None:
        self._watched()
        self._gateway.start()

    def _watched(self) -> None:
        """Whoever starts from now on is preloaded with both."""
        self._watch.begin()
        environ = self._gateway.environ
        environ["LD_PRELOAD"] = f"{self._library}:{environ['LD_PRELOAD']}"
        environ["ERRNOS_DIR"] = str(self._gateway.data_dir / "spool")
        environ["ERRNOS_CONTROL"] = str(self._control.path)

    def _strike(self, fault: Fault, load: Load, what: str) -> None:
        """One fault, and until there is a record that was accepted after it."""
        gateway, tally = self._gateway, self.tally
        lived = self._living()
        if fault.starting:
            gateway.kill_all()
            self._watched()
            self._control.arm(fault)
            gateway.launch()
        else:
            self._control.arm(fault)
        try:
            poll(lambda: self._control.struck or gateway.ended is not None, REACHED_S, f"{fault} comes")
        except TimeoutError:
            tally.faults["never came"] += 1
        began, struck = time.monotonic(), self._control.struck
        tally.struck += struck
        tally.faults[fault.kind] += struck
        self._control.disarm()
        since = Since(load)
        try:
            self._wait_for(since, 1)
            if gateway.ended is None:
                tally.recovery_s.append(time.monotonic() - began)
            if fault.starting:
                lived = self._living()
            self._wait_for(since, AFTER)
        except TimeoutError as error:
            tally.finding(f"{what}: {error}: {gateway.said(500)}")
        if self._living() != lived:
            tally.finding(f"{what}: a process ended: {gateway.said(1000)}")
        elif gateway.ended is not None:
            tally.faults[f"did not start: {fault.call.name.lower()} {fault.error}"] += 1
            if gateway.ended <= 0:
                tally.finding(f"{what}: a start ended with {gateway.ended}")

    def _wait_for(self, since: Since, requests: int) -> None:
        """Return when so many are accepted, or nobody is there any more."""
        over = f"{requests} requests are accepted after the fault"
        poll(lambda: since.accepted() >= requests or self._gateway.ended is not None, ACCEPTS_S, over)

    def _living(self) -> list[int]:
        """The gateway's processes."""
        return [] if self._gateway.ended is not None else [self._gateway.pid, *self._gateway.workers()]

    def _look_for_surprises(self, said: int, what: str) -> None:
        """An error of the disk is foreseen, so nobody tells of it with a stack."""
        with self._gateway.log_path.open("rb") as log, suppress(ValueError):
            log.seek(said)
            text = log.read()
            start = text.index(b"Traceback (most recent call last)")
            self.tally.finding(f"{what}: {text[max(0, start - 300) : start + 1500].decode('utf-8', 'replace')}")
