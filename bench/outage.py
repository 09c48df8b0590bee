"""An outage of ClickHouse: one worker goes on accepting, within its memory, and then drains faster than it filled.

    python -m bench.outage [--seconds N] [--rate LOGS_PER_SECOND] [--json]

A gateway of one worker, as ``weir serve`` starts it, beside a ClickHouse (the embedded engine) that is stopped
for ``--seconds`` while OTLP protobuf requests of 1,000 logs arrive at a fixed rate, whatever the answers take
(open loop). Then ClickHouse starts again, the load stops, and the rows are counted there. Loader, gateway and
ClickHouse share the machine's cores, so the figures are for all three together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

from bench.decode import RECORDS, otlp_request
from gateway import schema
from gateway.delivery.clickhouse import ClickHouse
from gateway.embedded.clickhouse import EmbeddedClickHouse
from tests.support.gateway import Gateway

BODIES = 64
"""Different requests; they come in turn."""
SPOOL_BYTES_MAX = 64 << 30
"""Room for half an hour at the rate, which takes about 15 GB."""
DRAINED_S = 1_800.0


def workers_of(supervisor: int) -> list[int]:
    """Process ids of a gateway's workers; not of the shells that wait to become one."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text().startswith("weir-worker")]


def rss_mib(pid: int) -> float:
    """What a process has in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def cpu_s(pid: int) -> float:
    """What a process has used of the processor."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


class Load:
    """Requests at a fixed rate. ``seconds``: how long each acknowledged one took."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str, requests_per_s: float) -> None:
        self._session = session
        self._url = url
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/x-protobuf"}
        self._bodies = [otlp_request(RECORDS, seed).SerializeToString() for seed in range(BODIES)]
        self._gap_s = 1 / requests_per_s
        self.seconds: list[float] = []
        self.refused = 0

    async def run(self, seconds: float) -> None:
        """Send for so long; return when everything sent is answered."""
        start = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(int(seconds / self._gap_s)):
                await asyncio.sleep(max(0.0, start + number * self._gap_s - time.monotonic()))
                group.create_task(self._send(self._bodies[number % BODIES]))

    async def _send(self, body: bytes) -> None:
        start = time.perf_counter()
        async with self._session.post(self._url, data=body, headers=self._headers) as answer:
            await answer.read()
            if answer.status == 200:
                self.seconds.append(time.perf_counter() - start)
            else:
                self.refused += 1


async def watch(pid: int, seen: list[float]) -> None:
    """The worker's memory, twice a second."""
    while True:
        seen.append(rss_mib(pid))
        await asyncio.sleep(0.5)


async def rows_there(clickhouse: ClickHouse) -> int:
    try:
        return int((await clickhouse.query("SELECT count() AS rows FROM otel_logs"))[0]["rows"])
    except Exception:
        return -1


async def measure(directory: Path, seconds: float, rate: int) -> dict[str, float]:
    """One outage."""
    engine = EmbeddedClickHouse(directory / "engine", port=0)
    url = await engine.start()
    clickhouse = ClickHouse(url)
    await clickhouse.start()
    await clickhouse.create_tables(schema.TABLES, retention_days=3_650)
    gateway = Gateway(
        directory / "data",
        clickhouse__url=url,
        clickhouse__retention_days="3650",
        delivery__spool_bytes_max=str(SPOOL_BYTES_MAX),
    )
    await asyncio.to_thread(gateway.start)
    memory: list[float] = []
    try:
        (worker,) = workers_of(gateway.pid)
        await engine.stop()
        idle_mib = rss_mib(worker)
        async with aiohttp.ClientSession() as session:
            key = gateway.demo["keys"]["loguro"]
            load = Load(session, f"http://{gateway.ingest[0]}/v1/logs", key, rate / RECORDS)
            watching = asyncio.create_task(watch(worker, memory))
            start, used = time.monotonic(), cpu_s(worker)
            await load.run(seconds)
            filled_s, filling_cpu_s = time.monotonic() - start, cpu_s(worker) - used
        sent = len(load.seconds) * RECORDS
        again = EmbeddedClickHouse(directory / "engine", port=int(url.rsplit(":", 1)[1]))
        start = time.monotonic()
        await again.start()
        while await rows_there(clickhouse) < sent and time.monotonic() < start + DRAINED_S:  # noqa: ASYNC110 - polled
            await asyncio.sleep(0.2)
        drained_s = time.monotonic() - start
        stored = await rows_there(clickhouse)
        watching.cancel()
        await again.stop()
    finally:
        await asyncio.to_thread(gateway.stop)
        await clickhouse.close()
    ordered = sorted(load.seconds)
    return {
        "logs_acknowledged": sent,
        "logs_stored": stored,
        "requests_refused": load.refused,
        "filled_logs_per_s": sent / filled_s,
        "drained_logs_per_s": sent / drained_s,
        "ack_p50_ms": statistics.median(ordered) * 1e3,
        "ack_p99_ms": ordered[int(len(ordered) * 0.99)] * 1e3,
        "worker_cores_while_filling": filling_cpu_s / filled_s,
        "rss_idle_mib": idle_mib,
        "rss_max_mib": max(memory),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=int, default=50_000, help="logs a second")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="weir-outage-") as directory:
        found = asyncio.run(measure(Path(directory), arguments.seconds, arguments.rate))
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:28}{value:14,.1f}")
    sys.exit(found["logs_stored"] != found["logs_acknowledged"])


if __name__ == "__main__":
    main()
