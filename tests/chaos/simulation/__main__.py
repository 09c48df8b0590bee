"""Run many seeds, and go on where the last run ended.

python -m tests.chaos.simulation --seeds 1000000 --seconds 3600     as many as fit into an hour
python -m tests.chaos.simulation --show 4711                        one seed, with its trace

The result is ``tests/chaos/results/simulation.json``. It is begun anew when the gateway or the simulation was
changed, or with --from. A seed that violates a promise leaves its trace beside it. Exit code 1 when any did.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.chaos.simulation.world import simulate

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
RESULT = RESULTS / "simulation.json"
SOURCES = (HERE, HERE.parents[2] / "gateway" / "delivery")
SAVE_S = 5.0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2_000, help="how many, those of earlier runs included")
    parser.add_argument("--from", type=int, dest="first", help="the first one; forgets earlier runs")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after so many seconds")
    parser.add_argument("--show", type=int, metavar="SEED", help="run this one alone and print its trace")
    options = parser.parse_args()
    if options.show is not None:
        trace, error = simulate(options.show)
        print("\n".join(trace))
        return int(error is not None)
    result = _begun(options.first)
    _run(result, options.seeds, time.monotonic() + options.seconds)
    print(json.dumps(result, indent=1))
    return int(bool(result["violations"]))


def _begun(first: int | None) -> dict[str, Any]:
    """The result of earlier runs, to be gone on with."""
    version = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted(folder.glob("*.py")):
            version.update(path.read_bytes())
    fresh = {"sources": version.hexdigest()[:16], "first": first or 0, "seeds": 0, "seconds": 0.0, "violations": []}
    if first is None and RESULT.exists():
        before: dict[str, Any] = json.loads(RESULT.read_text())
        if before["sources"] == fresh["sources"]:
            return before
    return fresh


def _run(result: dict[str, Any], seeds: int, deadline: float) -> None:
    RESULTS.mkdir(exist_ok=True)
    start = saved = time.monotonic()
    before = result["seconds"]
    while result["seeds"] < seeds and (now := time.monotonic()) < deadline:
        seed = result["first"] + result["seeds"]
        trace, error = simulate(seed)
        result["seeds"] += 1
        result["seconds"] = round(before + time.monotonic() - start, 1)
        if error is not None:
            result["violations"].append({"seed": seed, "what": str(error)})
            (RESULTS / f"simulation-{seed}.txt").write_text("\n".join(trace) + "\n")
            print(f"seed {seed}: {error}", file=sys.stderr, flush=True)
        if error is not None or now - saved > SAVE_S:
            saved = now
            RESULT.write_text(json.dumps(result, indent=1) + "\n")
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
