"""What a durable acknowledgement costs: group commit on the spool, beside a bare write and fdatasync.

    python bench/spool.py [--rounds N] [--seconds S] [--directory DIR] [--json]

Each sender posts, waits until its rows are synced to disk, and posts again. Three things are measured in
turn in each round, and the figures are medians of the rounds:

    fdatasync    the floor: one thread writes what a group of the spool below came to, and syncs it, again and
                 again; one such write acknowledges as many posts as a group of the spool had
    spool        ``Spool.append`` of a block of 400 bytes until it is kept; done in batches of 1,000
    delivery     a record of about 400 bytes decoded into the open columns of its project, cut into a block with
                 those of the others, spooled, and the receipt awaited. ClickHouse is a sink that counts the rows
                 of every insert at once. ``one``: all senders are of one project; ``own``: each has its own.

CPU is of this process, senders and sink included.
The directory has to be on the disk that is to be measured; on a tmpfs a sync costs nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import struct
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import lz4.block
import uvloop

from gateway import _native, schema
from gateway.delivery import Delivery, Settings
from gateway.delivery.block import Block, Durability
from gateway.delivery.clickhouse import ClickHouse
from gateway.delivery.disk import Disk
from gateway.delivery.frames import FrameNumbers
from gateway.delivery.spool import Spool
from gateway.dialects import loguro
from gateway.metrics import Metrics
from gateway.schema import OTEL_LOGS
from gateway.workers.worker import collect_less

PAYLOAD_BYTES = 400
SENDERS = (64, 256)
DONE_BLOCKS = 1_000
NOW_NS = 1_790_000_000_000_000_000
RECORD = json.dumps(
    {
        "level": "info",
        "message": "order payment accepted card retry user token 9f0e0c6a4ab4f0d1 in 182.4 ms by node-17",
        "timestamp": "2026-09-21T12:26:40.123456Z",
        "context": {
            "http.request.method": "POST",
            "url.path": "/api/v2/orders/pay",
            "http.response.status_code": 200,
            "duration_ms": 182.431,
            "user.id": "user_71235",
            "order.id": "ord_0c6a4ab4f0d1",
            "cached": False,
            "code.function.name": "charge",
        },
    }
).encode()

Post = Callable[[int], Awaitable[None]]
"""One sender, by its number, posts once; returns when that is acknowledged."""


class CountingDisk(Disk):
    """The real disk, counting what is written and how often it is synced."""

    def __init__(self) -> None:
        self.syncs = self.written_bytes = 0

    def write(self, descriptor: int, buffers: Sequence[bytes], offset: int) -> None:
        super().write(descriptor, buffers, offset)
        self.written_bytes += sum(map(len, buffers))

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        self.syncs += 1


class Sink(ClickHouse):
    """A ClickHouse that counts the rows of each block and has them at once, and was never started again."""

    async def insert(
        self, table: schema.Table, blocks: Sequence[bytes], *, token: str, patience: float = 1.0
    ) -> int | None:
        return sum(map(rows_of, blocks))

    async def uptime_s(self) -> float:
        return time.monotonic()


def rows_of(block: bytes) -> int:
    """The rows of a compressed block: the second number of its first piece."""
    compressed, uncompressed = struct.unpack_from("<II", block, 17)
    numbers: Iterator[int] = iter(lz4.block.decompress(block[25 : 16 + compressed], uncompressed_size=uncompressed))

    def varint() -> int:
        byte = next(numbers)
        return byte if byte < 128 else byte - 128 + (varint() << 7)

    varint()
    return varint()


@dataclass
class Run:
    """What some seconds of posts came to: their latencies, and the groups they were written in."""

    seconds: float
    cpu_seconds: float
    latencies_ms: list[float]
    groups: int
    written_bytes: int

    def figures(self) -> dict[str, float]:
        cuts = statistics.quantiles(self.latencies_ms, n=100)
        return {
            "acks_per_second": len(self.latencies_ms) / self.seconds,
            "p50_ms": cuts[49],
            "p99_ms": cuts[98],
            "acks_per_sync": len(self.latencies_ms) / self.groups,
            "bytes_per_sync": self.written_bytes / self.groups,
            "cpu_us_per_ack": self.cpu_seconds / len(self.latencies_ms) * 1e6,
        }


async def posted(post: Post, senders: int, seconds: float, disk: CountingDisk) -> Run:
    """Let the senders post for some seconds."""
    latencies: list[float] = []
    start, cpu_start = time.perf_counter(), time.process_time()
    end = start + seconds
    syncs, written = disk.syncs, disk.written_bytes

    async def sender(number: int) -> None:
        now = time.perf_counter()
        while now < end:
            await post(number)
            then, now = now, time.perf_counter()
            latencies.append((now - then) * 1000)

    await asyncio.gather(*map(sender, range(senders)))
    took, cpu_took = time.perf_counter() - start, time.process_time() - cpu_start
    return Run(took, cpu_took, latencies, disk.syncs - syncs, disk.written_bytes - written)


def bare(directory: Path, group_bytes: int, acks: float, seconds: float) -> dict[str, float]:
    """The floor: the same bytes written and synced by a loop that does nothing else."""
    disk = Disk()
    path = directory / "bare"
    size = 64 << 20
    descriptor = disk.create(path, size)
    latencies, offset, group = [], 0, os.urandom(group_bytes)
    try:
        start, cpu_start = time.perf_counter(), time.process_time()
        now = start
        while now < start + seconds:
            disk.write(descriptor, [group], offset)
            disk.sync(descriptor)
            then, now = now, time.perf_counter()
            latencies.append((now - then) * 1000)
            offset = (offset + group_bytes) % (size - group_bytes)
    finally:
        disk.close(descriptor)
        disk.remove(path)
    cpu_seconds = time.process_time() - cpu_start
    run = Run(now - start, cpu_seconds, latencies, len(latencies), group_bytes * len(latencies)).figures()
    return {
        **run,
        "acks_per_second": acks * run["acks_per_second"],
        "acks_per_sync": acks,
        "cpu_us_per_ack": run["cpu_us_per_ack"] / acks,
    }


async def on_spool(directory: Path, senders: int, seconds: float) -> Run:
    """Posts on the spool itself."""
    settings, disk = Settings(), CountingDisk()
    numbers = FrameNumbers(directory)
    spool = Spool(
        numbers,
        segment_bytes=settings.segment_bytes,
        reserve_bytes=settings.reserve_bytes,
        audit_s=0.0,
        disk=disk,
    )
    payload = os.urandom(PAYLOAD_BYTES)
    kept: list[Block] = []

    def keep(block: Block) -> None:
        block.promise.reach(Durability.DISK)
        kept.append(block)
        if len(kept) == DONE_BLOCKS:
            spool.done("otel_logs", kept)
            kept.clear()
            spool.sweep(math.inf)

    def fail(block: Block, error: OSError) -> None:
        raise error

    async def post(number: int) -> None:
        block = Block("otel_logs", f"project-{number}", numbers.next(), 1, payload, 0.0, durability=Durability.DISK)
        spool.append(block, keep, fail)
        await block.promise.until(Durability.DISK)

    spool.start()
    await spool.recover()
    try:
        return await posted(post, senders, seconds, disk)
    finally:
        await spool.stop()
        numbers.close()


async def on_delivery(directory: Path, senders: int, seconds: float, *, own: bool) -> Run:
    """Posts of one record each, from its bytes to its receipt."""
    numbers, disk = FrameNumbers(directory), CountingDisk()
    delivery = Delivery(
        [OTEL_LOGS], Sink("http://sink.invalid"), Settings(audit_ms=0.0), frames=numbers, metrics=Metrics(), disk=disk
    )
    constants = {"project_id": "", "dialect": "loguro"}

    async def post(number: int) -> None:
        with delivery.rows(f"project-{number}" if own else "project", 2 * len(RECORD)) as rows:
            _native.entries(RECORD, loguro.PLAN, [rows.columns(OTEL_LOGS.name)], constants=constants, arrival_ns=NOW_NS)
            receipt = rows.commit()
        await receipt.wait()

    await delivery.start()
    try:
        return await posted(post, senders, seconds, disk)
    finally:
        await delivery.stop(5.0)
        numbers.close()


def measure(directory: Path, rounds: int, seconds: float) -> list[dict[str, object]]:
    """Medians of each case as rows of figures."""
    found: dict[tuple[str, int], list[dict[str, float]]] = {}

    def run(case: str, senders: int, posts: Callable[[Path], Awaitable[Run]]) -> dict[str, float]:
        async def ran() -> Run:
            with tempfile.TemporaryDirectory(dir=directory) as place:
                return await posts(Path(place))

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            figures = runner.run(ran()).figures()
        found.setdefault((case, senders), []).append(figures)
        return figures

    for _ in range(rounds):
        for senders in SENDERS:
            figures = run("spool", senders, lambda place, n=senders: on_spool(place, n, seconds))  # type: ignore[misc]
            floor = bare(directory, round(figures["bytes_per_sync"]), figures["acks_per_sync"], seconds)
            found.setdefault(("fdatasync", senders), []).append(floor)
            for case, own in (("delivery, one", False), ("delivery, own", True)):
                run(case, senders, lambda place, n=senders, own=own: on_delivery(place, n, seconds, own=own))  # type: ignore[misc]
    return [
        {"case": case, "senders": senders}
        | {name: round(statistics.median(each[name] for each in figures), 2) for name in figures[0]}
        for (case, senders), figures in sorted(found.items(), key=lambda item: item[0][1])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each case in each round")
    parser.add_argument("--directory", type=Path, default=Path(), help="on the disk to measure; here unless said")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    arguments = parser.parse_args()
    collect_less()
    rows = measure(arguments.directory, arguments.rounds, arguments.seconds)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}: what else runs takes its part of all this")
    print(
        f"{'':16}{'senders':>8}{'acks/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'acks/sync':>11}{'B/sync':>9}{'CPU us/ack':>12}"
    )
    for row in rows:
        print(
            f"{row['case']:16}{row['senders']:>8}{row['acks_per_second']:>12,.0f}{row['p50_ms']:>9.2f}"
            f"{row['p99_ms']:>9.2f}{row['acks_per_sync']:>11.1f}{row['bytes_per_sync']:>9,.0f}{row['cpu_us_per_ack']:>12.1f}"
        )


if __name__ == "__main__":
    main()
