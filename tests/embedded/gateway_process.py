"""A stand-in for the gateway: runs one engine until it is killed. Prints its address and child as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from gateway.embedded.clickhouse import EmbeddedClickHouse
from gateway.embedded.postgres import EmbeddedPostgres


async def main(kind: str, directory: Path) -> None:
    engine = EmbeddedClickHouse(directory, port=0) if kind == "clickhouse" else EmbeddedPostgres(directory)
    address = await engine.start()
    print(json.dumps({"address": address, "pid": engine.pid}), flush=True)
    if sys.stdin.readline():  # a line asks for an orderly stop; anything else is a kill
        await engine.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
