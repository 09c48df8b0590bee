"""Programme "power": the power fails under load, and the disk forgets or tears what was not synced.

``power.c`` is preloaded into the gateway's processes and writes down what they do to their files. The
power failing is a SIGKILL to all of them, and then the data directory is made into what a disk might
hold: of each file its state at its last sync, of each directory the names at its last sync, and of
everything after that what the tear mode says:

    nothing     none of it                          names     all data, no names
    prefix      the first so many writes, in order  subset    any of the writes
    sectors     any 512 bytes of any write          garbage   the same, and rubbish in place of the others

The next gateway starts on that, and the oracle asks. With syncs that do nothing (``unsynced``) records
have to be lost.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from pathlib import Path

from tests.chaos.gateway import Gateway, World
from tests.chaos.load import STALLED_S, settle
from tests.chaos.oracle import Report
from tests.chaos.rounds import Rounds

SOURCE = Path(__file__).with_name("power.c")
SECTOR_BYTES = 512
SETTINGS = {
    "delivery__segment_bytes": str(512 << 10),
    "delivery__reserve_bytes": str(64 << 10),
    "delivery__audit_ms": "1000",
}
"""Small files, so that names come and go, and images are cheap."""
MOMENT_S = 0.5


@cache
def may_preload() -> bool:
    """Whether there is a C compiler."""
    return shutil.which("cc") is not None


class What(IntEnum):
    """The kinds of records, as in power.c."""

    OPEN = 1
    WRITE = 2
    TRUNCATE = 3
    ALLOCATE = 4
    SYNC = 5
    RENAME = 6
    UNLINK = 7
    MKDIR = 8
    CLOSE = 9


@dataclass(frozen=True, slots=True)
class Event:
    """One record of the log."""

    time_ns: int
    process: int
    descriptor: int
    what: What
    flags: int
    offset: int
    path: str
    data: bytes


_RECORD = struct.Struct("<QIiIIQII")


def events_of(log: Path) -> Iterator[Event]:
    """The whole records of one process's log."""
    data = log.read_bytes()
    at = 0
    while at + _RECORD.size <= len(data):
        time_ns, process, descriptor, what, flags, offset, path_bytes, data_bytes = _RECORD.unpack_from(data, at)
        start = at + _RECORD.size
        at = start + path_bytes + data_bytes
        if at > len(data):
            return
        path = data[start : start + path_bytes].decode()
        yield Event(time_ns, process, descriptor, What(what), flags, offset, path, data[start + path_bytes : at])


Change = tuple[What, int, bytes]
"""WRITE at an offset, TRUNCATE or ALLOCATE to a size."""


@dataclass(eq=False)
class File:
    """What is surely on the medium, and what was done since."""

    image: bytearray
    pending: list[Change] = field(default_factory=list)

    def sync(self) -> None:
        for change in self.pending:
            apply(self.image, change)
        self.pending.clear()


def apply(image: bytearray, change: Change) -> None:
    """One change to a file's bytes."""
    what, at, data = change
    if what == What.TRUNCATE:
        del image[at:]
    end = at + len(data)
    if len(image) < end:
        image.extend(bytes(end - len(image)))
    if data:
        image[at:end] = data


Names = dict[str, File]
NameChange = Callable[[Names], None]


class Medium:
    """A directory on a disk with a cache: fed with events in order, asked what is left without power."""

    def __init__(self, top: Path) -> None:
        """``top`` as it is now, with all it holds, counts as synced."""
        self._top = str(top)
        self._now: Names = {str(path): File(bytearray(path.read_bytes())) for path in top.rglob("*") if path.is_file()}
        self._synced: Names = dict(self._now)
        self._directories = {str(top), *(str(path) for path in top.rglob("*") if path.is_dir())}
        self._synced_directories = set(self._directories)
        self._pending: dict[str, list[NameChange]] = {}
        self._open: dict[tuple[int, int], File | str] = {}

    def feed(self, event: Event) -> None:
        """Something a process did."""
        key = (event.process, event.descriptor)
        if event.what == What.OPEN:
            self._opened(event, key)
        elif event.what == What.CLOSE:
            self._open.pop(key, None)
        elif event.what == What.RENAME:
            self._renamed(event.path, event.data.decode())
        elif event.what == What.UNLINK and event.path in self._now:
            del self._now[event.path]
            self._change(event.path, lambda names, path=event.path: names.pop(path, None))  # type: ignore[misc]
        elif event.what == What.MKDIR:
            self._directories.add(event.path)
            self._change(event.path, lambda _, path=event.path: self._synced_directories.add(path))  # type: ignore[misc]
        elif (target := self._open.get(key)) is not None:
            self._changed(event, target)

    def _opened(self, event: Event, key: tuple[int, int]) -> None:
        if event.path in self._directories:
            self._open[key] = event.path
            return
        file = self._now.get(event.path)
        if file is None:
            file = self._now[event.path] = File(bytearray())
            self._change(event.path, lambda names, path=event.path, file=file: names.update({path: file}))  # type: ignore[misc]
        elif event.flags & 1:
            file.pending.append((What.TRUNCATE, 0, b""))
        self._open[key] = file

    def _changed(self, event: Event, target: File | str) -> None:
        if event.what == What.SYNC:
            if isinstance(target, File):
                target.sync()
            else:
                for change in self._pending.pop(target, ()):
                    change(self._synced)
        elif isinstance(target, File):
            if event.what == What.ALLOCATE:
                target.pending.append((What.ALLOCATE, event.offset, b""))
            else:
                target.pending.append((event.what, event.offset, event.data))

    def _renamed(self, old: str, new: str) -> None:
        file = self._now.pop(old, None)
        if file is None:
            return
        self._now[new] = file

        def change(names: Names) -> None:
            names.pop(old, None)
            names[new] = file

        self._change(new, change)

    def _change(self, path: str, change: NameChange) -> None:
        self._pending.setdefault(path.rpartition("/")[0], []).append(change)

    def without_power(self, mode: str, choose: random.Random) -> dict[str, bytes]:
        """Path -> bytes of what the medium holds."""
        names = dict(self._synced)
        if mode not in ("nothing", "names"):
            for changes in self._pending.values():
                kept = choose.randrange(len(changes) + 1) if mode == "prefix" else len(changes)
                for change in changes[:kept]:
                    if mode == "prefix" or choose.random() < 0.5:
                        change(names)
        left = {}
        for path, file in names.items():
            if all(above in self._synced_directories for above in self._above(path)):
                left[path] = bytes(torn(file, mode, choose))
        return left

    def _above(self, path: str) -> Iterator[str]:
        while (path := path.rpartition("/")[0]) and path != self._top:
            yield path


def torn(file: File, mode: str, choose: random.Random) -> bytearray:
    """What is left of a file."""
    image = bytearray(file.image)
    kept = choose.randrange(len(file.pending) + 1)
    for number, change in enumerate(file.pending):
        what, at, data = change
        if mode == "names" or (mode == "prefix" and number < kept) or (mode == "subset" and choose.random() < 0.5):
            apply(image, change)
        elif mode in ("sectors", "garbage"):
            if what != What.WRITE:
                apply(image, change)
                continue
            for start in range(0, len(data), SECTOR_BYTES):
                piece = data[start : start + SECTOR_BYTES]
                if choose.random() < 0.5:
                    apply(image, (What.WRITE, at + start, piece))
                elif mode == "garbage":
                    apply(image, (What.WRITE, at + start, choose.randbytes(len(piece))))
    return image


MODES = ("nothing", "names", "prefix", "subset", "sectors", "garbage")


class Watch:
    """power.c in a gateway's processes, and what the medium below its data directory holds since ``begin``.

    ``library`` is where to compile it to.
    """

    def __init__(self, gateway: Gateway, library: Path, logs: Path, *, unsynced: bool = False) -> None:
        self._gateway = gateway
        self._library = library
        self._logs = logs
        self._unsynced = unsynced
        self._medium = Medium(gateway.data_dir)

    def compile(self) -> None:
        """Before the first ``begin``."""
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(self._library), str(SOURCE)], check=True)

    def begin(self) -> None:
        """Nobody runs, and what is there counts as synced; whoever starts from now on is watched."""
        self._medium = Medium(self._gateway.data_dir)
        self.end()
        self._gateway.environ |= {
            "LD_PRELOAD": str(self._library),
            "POWER_DIR": str(self._gateway.data_dir),
            "POWER_LOG": str(self._logs / "log"),
        }
        if self._unsynced:
            self._gateway.environ["POWER_UNSYNCED"] = "1"

    def end(self) -> None:
        """Whoever starts from now on is not watched."""
        shutil.rmtree(self._logs, ignore_errors=True)
        self._logs.mkdir()
        for name in ("LD_PRELOAD", "POWER_DIR", "POWER_LOG", "POWER_UNSYNCED"):
            self._gateway.environ.pop(name, None)

    def fail(self, mode: str, choose: random.Random) -> None:
        """All are dead: make the directory into what is left of it without power."""
        events = sorted(
            (event for log in self._logs.iterdir() for event in events_of(log)), key=lambda event: event.time_ns
        )
        for event in events:
            self._medium.feed(event)
        left = self._medium.without_power(mode, choose)
        for path in self._gateway.data_dir.rglob("*"):
            if path.is_file():
                path.unlink()
        for name, data in left.items():
            path = Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


class PowerRounds(Rounds):
    """Rounds on one data directory, now and then on a new one."""

    def __init__(self, world: World, seed: str, *, pause_ms: float = 2.0, unsynced: bool = False) -> None:
        name = f"power-{seed}-{unsynced}"
        super().__init__(world, seed, world.gateway(name=name, settings=SETTINGS), pause_ms=pause_ms)
        self._watch = Watch(
            self._gateway, world.directory / "power.so", world.directory / f"{name}.logs", unsynced=unsynced
        )

    def _begin(self, stack: ExitStack) -> None:
        super()._begin(stack)
        self._watch.compile()
        self._gateway.data_dir.mkdir()

    def round(self, number: int, *, mode: str | None = None, stalled_s: float = STALLED_S) -> Report:
        """The power fails once."""
        choose = random.Random(f"{self._seed}/{number}")
        mode = mode or MODES[number % len(MODES)]
        state = choose.choice(("up", "down", "stopped"))
        what = f"seed {self._seed} round {number} ({mode}, ClickHouse {state})"
        world, gateway, tally = self._world, self._gateway, self.tally
        if choose.random() < 0.2:
            self._a_new_directory()
        self._watch.begin()
        world.clickhouse.become("up")
        gateway.start()
        with self._load(number) as load:
            load.wait_for(1)
            world.clickhouse.become(state)
            load.wait_for(choose.randrange(20, 800))
            time.sleep(choose.random() * MOMENT_S)
            gateway.kill_all()
            load.stop()
            self._watch.fail(mode, choose)
            self._watch.end()
            tally.faults[mode] += 1
            tally.cycles += 1
            world.clickhouse.become("up")
            gateway.start()
            report = settle(world, gateway, load, stalled_s=stalled_s)
        self._count(report, what)
        gateway.kill_all()
        return report

    def _a_new_directory(self) -> None:
        """A first start again; the old rows are all stored."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self._gateway.data_dir)
        self._gateway.data_dir.mkdir()
