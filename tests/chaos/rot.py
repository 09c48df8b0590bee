"""Programme "rot": the spool of a stopped gateway is damaged: bits, pages, lengths, places.

A round: ClickHouse down, load, SIGKILL; then something happens to the segments; the gateway starts again,
ClickHouse comes back, and the oracle asks. Lost may be what was in the frames that were hit, and nothing
else; nothing may be there twice or changed; and what was lost is counted and in ``quarantine/``.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

from gateway.delivery.segments import ROOM_BYTES
from tests.chaos.frames import FrameAt, frames_of
from tests.chaos.gateway import World
from tests.chaos.load import settle
from tests.chaos.oracle import Report
from tests.chaos.rounds import Rounds

PAGE_BYTES = 4096
SETTINGS = {"delivery__segment_bytes": str(256 << 10)}

Hit = tuple[int, int]
"""From which byte to which a file was changed."""


def flip(path: Path, choose: random.Random, end: int) -> list[Hit]:
    """One bit."""
    at = choose.randrange(end)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << choose.randrange(8)]))
    return [(at, at + 1)]


def zero_page(path: Path, choose: random.Random, end: int) -> list[Hit]:
    """A block that was never written."""
    at = choose.randrange(end) // PAGE_BYTES * PAGE_BYTES
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(min(PAGE_BYTES, path.stat().st_size - at)))
    return [(at, at + PAGE_BYTES)]


def zero_tail(path: Path, choose: random.Random, end: int) -> list[Hit]:
    """All from a frame on. Of a file that a crash has left nobody could tell, so there it is a bit."""
    frames = frames_of(path)
    size = path.stat().st_size
    if not frames or frames[-1].end + ROOM_BYTES < size:
        return flip(path, choose, end)
    at = choose.choice(frames).start
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(size - at))
    return [(at, size)]


def truncate(path: Path, choose: random.Random, end: int) -> list[Hit]:
    """The end is gone."""
    at = choose.randrange(end)
    os.truncate(path, at)
    return [(at, 1 << 62)]


def swap(path: Path, choose: random.Random, end: int) -> list[Hit]:
    """Two frames, each in the other's place as far as it fits."""
    frames = [frame for frame in frames_of(path) if frame.end <= end]
    if len(frames) < 2:
        return flip(path, choose, end)
    one, other = choose.sample(frames, 2)
    length = min(one.end - one.start, other.end - other.start)
    with path.open("r+b") as file:
        pieces = []
        for frame in (one, other):
            file.seek(frame.start)
            pieces.append(file.read(length))
        for frame, piece in zip((other, one), pieces, strict=True):
            file.seek(frame.start)
            file.write(piece)
    return [(one.start, one.start + length), (other.start, other.start + length)]


DAMAGES: tuple[Callable[[Path, random.Random, int], list[Hit]], ...] = (flip, zero_page, zero_tail, truncate, swap)


class RotRounds(Rounds):
    """Rounds on one data directory."""

    def __init__(self, world: World, seed: str, *, pause_ms: float = 2.0, weakened_by: str = "") -> None:
        name = f"rot-{seed}-{bool(weakened_by)}"
        gateway = world.gateway(name=name, weakened_by=weakened_by, settings=SETTINGS)
        super().__init__(world, seed, gateway, pause_ms=pause_ms)

    def round(self, number: int, *, damages: int = 3) -> Report:
        """Some damages to one backlog. What they may cost is subtracted from the report's missing."""
        choose = random.Random(f"{self._seed}/{number}")
        what = f"seed {self._seed} round {number}"
        world, gateway, tally = self._world, self._gateway, self.tally
        world.clickhouse.become("down")
        gateway.start()
        with self._load(number) as load:
            load.wait_for(choose.randrange(200, 2000))
            load.stop()
            gateway.kill_all()
            rows_hit, told = self._damage(choose, damages)
            what += f" ({told})"
            gateway.start()
            report = settle(world, gateway, load, stalled_s=3.0)
        counted = gateway.metric("weir_spool_damaged_bytes_total")
        kept = sum(file.stat().st_size for file in gateway.data_dir.glob("spool/slot-*/quarantine/*"))
        if report.missing and not (counted > 0 and kept):  # NaN when it is not told at all
            tally.finding(f"{what}: {report.missing} rows lost, {counted} bytes counted, {kept} in quarantine")
        if report.missing > rows_hit:
            tally.finding(f"{what}: {report.missing} rows lost, but only {rows_hit} were in frames that were hit")
        tally.excused += min(report.missing, rows_hit)
        report.missing = max(0, report.missing - rows_hit)
        self._count(report, what)
        gateway.kill_all()
        return report

    def _damage(self, choose: random.Random, damages: int) -> tuple[int, str]:
        """Damages segments that hold rows; how many rows were in the frames that were hit, and what was done."""
        paths = sorted(self._gateway.data_dir.glob("spool/slot-*/*.seg"))
        frames = {path: frames_of(path) for path in paths}
        full = [path for path in paths if any(frame.rows for frame in frames[path])]
        hits: dict[Path, list[Hit]] = {}
        told = []
        for _ in range(damages):
            path, damage = choose.choice(full), choose.choice(DAMAGES)
            end = max(frame.end for frame in frames[path])
            new = damage(path, choose, min(end, path.stat().st_size) or 1)
            hits.setdefault(path, []).extend(new)
            kinds = {frame.kind for frame in frames[path] if any(a < frame.end and frame.start < b for a, b in new)}
            told.append(f"{damage.__name__} {path.name} at {new}, frames of kinds {sorted(kinds)}")
            self.tally.faults[damage.__name__] += 1
            self.tally.cycles += 1
        return sum(_rows_hit(frames[path], of_path) for path, of_path in hits.items()), "; ".join(told)


def _rows_hit(frames: list[FrameAt], hits: list[Hit]) -> int:
    """A segment whose header was hit may be lost whole: there is only one."""
    first = min(frame.start for frame in frames)
    if any(start < first for start, _ in hits):
        return sum(frame.rows for frame in frames)
    return sum(frame.rows for frame in frames if any(start < frame.end and frame.start < end for start, end in hits))
