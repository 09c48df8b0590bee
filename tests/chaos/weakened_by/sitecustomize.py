"""The gateway with one of its protections off, for positive controls: what must fail where the real one passes.

Python imports a module of this name at its start. With this folder on PYTHONPATH and names of protections,
by commas, in WEAKENED_BY they are off in the gateway's processes. There is no such switch in the gateway itself.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from socket import socket

from gateway.delivery import room, segments
from gateway.delivery.clickhouse import ClickHouse
from gateway.delivery.disk import Disk
from gateway.delivery.flusher import Flusher
from gateway.delivery.settings import Settings
from gateway.http.admission import Admission
from gateway.http.body import Deadlines
from gateway.http.listener import Handler, Listener, Patience
from gateway.http.server import IngestServer
from gateway.schema import Table
from gateway.tenants.keys import Keys

SLOW_S = float(os.environ.get("WEAKENED_SLOW_S", "0.2"))
FOREVER_S = 1e6


def without_verification() -> None:
    """A clean answer to a batch of doubtful outcome is believed."""

    async def all_there(self: Flusher, batch: object) -> None:
        return None

    Flusher._missing = all_there  # type: ignore[method-assign]


def without_tokens() -> None:
    """Every attempt looks like another insert to the server."""
    insert = ClickHouse.insert
    numbers = itertools.count()

    async def forgetful(
        self: ClickHouse, table: Table, blocks: Sequence[bytes], *, token: str, patience: float = 1.0
    ) -> int | None:
        return await insert(self, table, blocks, token=f"{token}-{os.getpid()}-{next(numbers)}", patience=patience)

    ClickHouse.insert = forgetful  # type: ignore[method-assign]


def without_disk_errors() -> None:
    """What could not be written is acknowledged all the same."""
    write, sync = Disk.write, Disk.sync

    def create(self: Disk, path: Path, size: int) -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        return descriptor

    def careless_write(self: Disk, descriptor: int, buffers: Sequence[bytes], offset: int) -> None:
        with suppress(OSError):
            write(self, descriptor, buffers, offset)

    def careless_sync(self: Disk, descriptor: int) -> None:
        with suppress(OSError):
            sync(self, descriptor)

    Disk.create = create  # type: ignore[method-assign]
    Disk.write = careless_write  # type: ignore[method-assign]
    Disk.sync = Disk.sync_file = careless_sync  # type: ignore[method-assign]


def without_a_fast_disk() -> None:
    """Writing takes long: who acknowledges before it is done is found out."""
    write = Disk.write

    def slow_write(self: Disk, descriptor: int, buffers: Sequence[bytes], offset: int) -> None:
        time.sleep(SLOW_S)
        write(self, descriptor, buffers, offset)

    Disk.write = slow_write  # type: ignore[method-assign]


def without_checksums() -> None:
    """Every frame passes."""
    setattr(segments, "crc32c", lambda data, seed=0: 0)  # noqa: B010 - it is not that module's to give away


def without_a_memory_budget() -> None:
    """What waits for ClickHouse is held in memory, however much that is."""
    setattr(Settings, "shard_bytes_max", property(lambda self: 1 << 40))  # noqa: B010 - it is read-only to mypy


def without_shares_of_places() -> None:
    """One project may have all requests that are answered at once."""
    admit = Admission.__init__

    def generous(self: Admission, *, requests_max: int, bytes_max: int, project_requests_max: int = 0) -> None:
        admit(self, requests_max=requests_max, bytes_max=bytes_max, project_requests_max=requests_max)

    Admission.__init__ = generous  # type: ignore[method-assign]


def without_shares_of_room() -> None:
    """Who comes first has the disk."""
    room.SHARED_PART = room.FULL_PART


def without_doubt() -> None:
    """A key that is not in memory was issued by nobody, whether the store can be asked or not."""
    setattr(Keys, "is_current", property(lambda self: True))  # noqa: B010 - it is read-only to mypy


def without_patience_for_senders() -> None:
    """A worker that ends lets go of its connections at once."""
    stop = IngestServer.stop

    async def abrupt(
        self: IngestServer, deadline_s: float, linger_s: float = 0.0, *, others_go_on: bool = False
    ) -> None:
        for connection in list(self._listener.connections):
            connection.force_close()
        await stop(self, 0.0, 0.0, others_go_on=others_go_on)

    IngestServer.stop = abrupt  # type: ignore[method-assign]


def without_deadlines() -> None:
    """Who is slow or silent may be so for ever."""
    begin = Listener.__init__

    def patient(self: Listener, addresses: Sequence[str | socket], handle: Handler, patience: Patience) -> None:
        begin(self, addresses, handle, replace(patience, idle_s=FOREVER_S, header_s=FOREVER_S))

    def never(self: Deadlines, body_bytes: int) -> float:
        return FOREVER_S

    Listener.__init__ = patient  # type: ignore[method-assign]
    Deadlines.after = never  # type: ignore[method-assign]


PROTECTIONS: dict[str, Callable[[], None]] = {
    "verification": without_verification,
    "tokens": without_tokens,
    "disk errors": without_disk_errors,
    "fast disk": without_a_fast_disk,
    "checksums": without_checksums,
    "memory budget": without_a_memory_budget,
    "shares of places": without_shares_of_places,
    "shares of room": without_shares_of_room,
    "doubt": without_doubt,
    "deadlines": without_deadlines,
    "patience for senders": without_patience_for_senders,
}

for name in os.environ["WEAKENED_BY"].split(","):
    PROTECTIONS[name]()
