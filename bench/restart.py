"""How soon a gateway is ready again after a SIGKILL of all its processes, by how much waits in its spool.

    python -m bench.restart [--gib 0 1 4] [--kills N] [--workers N] [--json]

ClickHouse is down. Requests of 1,000 OTLP logs fill the spool to each size in turn; then everything of the gateway is
killed and started again, ``--kills`` times, and ``/readyz`` is asked until it says yes. ``looked through``: until the
gateway knows what it holds, which nobody has to wait for. Postgres is a process of its own, and lives on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from pathlib import Path

import aiohttp

from bench.decode import RECORDS
from bench.outage import SPOOL_BYTES_MAX, Load
from tests.chaos.gateway import Gateway, World, poll

RATE = 150_000
FILL_S = 5.0
LOOKED_THROUGH_S = 120.0
GIB = 1 << 30


def spool_bytes(gateway: Gateway) -> int:
    """What its segments take."""
    return sum(path.stat().st_blocks * 512 for path in (gateway.data_dir / "spool").rglob("*.seg"))


async def fill(gateway: Gateway, key: str, until_bytes: int) -> None:
    """Send until the spool holds so much."""
    async with aiohttp.ClientSession() as session:
        while spool_bytes(gateway) < until_bytes:
            await Load(session, f"http://{gateway.ingest}/v1/logs", key, RATE / RECORDS).run(FILL_S)


def measure(world: World, gateway: Gateway, gib: float, kills: int) -> dict[str, float]:
    """Fill and kill; the seconds of the starts."""
    key = json.loads(world.keys_path.read_text())["otlp"]
    asyncio.run(fill(gateway, key, int(gib * GIB)))
    ready_s, looked_s = [], []
    for _ in range(kills):
        gateway.kill_all()
        ready_s.append(gateway.start())
        looked_s.append(
            ready_s[-1]
            + poll(lambda: gateway.metric("weir_spool_recovering") == 0, LOOKED_THROUGH_S, "it is looked through")
        )
    return {
        "backlog_gib": spool_bytes(gateway) / GIB,
        "ready_median_s": statistics.median(ready_s),
        "ready_max_s": max(ready_s),
        "looked_through_median_s": statistics.median(looked_s),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, nargs="+", default=[0.0, 1.0, 4.0])
    parser.add_argument("--kills", type=int, default=7)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    settings = {"WEIR__WORKERS": str(arguments.workers), "WEIR__DELIVERY__SPOOL_BYTES_MAX": str(SPOOL_BYTES_MAX)}
    with tempfile.TemporaryDirectory(prefix="weir-restart-") as directory, World(Path(directory)) as world:
        world.clickhouse.become("down")
        with world.gateway(name="restart") as gateway:
            gateway.environ |= settings
            gateway.start()
            found = [measure(world, gateway, gib, arguments.kills) for gib in sorted(arguments.gib)]
    if arguments.json:
        print(json.dumps(found))
        return
    print(" ".join(f"{name:>24}" for name in found[0]))
    for row in found:
        print(" ".join(f"{value:24.2f}" for value in row.values()))


if __name__ == "__main__":
    main()
