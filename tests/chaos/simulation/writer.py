"""The spool's writer without its thread: the same code, one turn at a time, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.delivery.segments import Kind, members_of
from gateway.delivery.writer import Entry, Writer
from tests.chaos.simulation.disk import Cut, FakeDisk


class Time:
    """What the writer takes for the module ``time``: that of the disk it is writing to."""

    disk: FakeDisk
    start: float

    def monotonic(self) -> float:
        return self.start + self.disk.elapsed

    def sleep(self, seconds: float) -> None:
        if seconds:
            self.disk.lapse(seconds)


TIME = Time()
_ENDS = {"_kept": "kept", "_failed": "failed"}
"""What the writer tells about entries."""
LINING_UP_S = 0.003


class SimulatedWriter(Writer):
    """Every turn of the thread is one callback. What it tells the loop is told at the moment it would be."""

    @property
    def _fake(self) -> FakeDisk:
        assert isinstance(self._disk, FakeDisk)
        return self._disk

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._busy = False
        self._told_at = 0.0
        self._turn(self._keep_reserve)

    def append(self, entry: Entry) -> None:
        if entry.kind == Kind.SKIP:
            kept = entry.kept

            def noted(place: Any) -> None:
                self._fake.skipped.update(frame for _, frame in members_of(entry.payload)[1])
                kept(place)

            entry.kept = noted
        super().append(entry)
        self._look()

    def remove(self, path: Path, before: Callable[[], None]) -> None:
        super().remove(path, before)
        self._look()

    async def stop(self) -> None:
        self._queue.put(None)
        self._look()
        await self._ended.wait()

    def _look(self) -> None:
        if hasattr(self, "_ended") and not self._busy and not self._queue.empty():
            self._busy = True
            self._loop.call_later(self._fake.uniform(LINING_UP_S), self._turn, self._one_group)

    def _one_group(self) -> bool:
        entries, removed, last = self._gathered()
        if entries:
            self._write(entries)
        for path in removed:
            self._remove(path)
        if last:
            self._leave()
        return last

    def _turn(self, work: Callable[[], bool]) -> None:
        self._busy = True
        disk = self._fake
        disk.elapsed = 0.0
        TIME.disk, TIME.start = disk, self._loop.time()
        try:
            last = work() and work == self._one_group
        except Cut:
            return
        self._loop.call_later(disk.elapsed + 1e-6, self._rest, last)

    def _rest(self, last: bool) -> None:
        self._busy = False
        if last:
            self._ended.set()
        else:
            self._look()

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        if function.__name__ in _ENDS:
            entries, where, *_ = arguments
            what = ", ".join(map(_named, entries))  # type: ignore[call-overload]
            self._fake.note(f"disk: {_ENDS[function.__name__]}: {what}: {_place(where)}")
        self._told_at = max(self._loop.time() + self._fake.elapsed, self._told_at)
        self._loop.call_at(self._told_at, function, *arguments)


def _named(entry: Entry) -> str:
    if entry.kind == Kind.DATA:
        return f"DATA {entry.number & 0x3FFFFFF}{' again' if entry.origin else ''}"
    token, members = members_of(entry.payload)
    frames = " ".join(str(frame & 0x3FFFFFF) for _, frame in members)
    return f"{entry.kind.name} {token} {frames}"


def _place(where: object) -> str:
    """Of several places the first one, or an error."""
    if isinstance(where, list):
        place = where[0]
        return f"{place.segment & 0x3FFFFFF}@{place.offset}"
    return str(where)
