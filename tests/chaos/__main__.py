"""The fault programme in full: ``make chaos``, or for one programme of it

    python -m tests.chaos [kill] [workers] [rolls] [clickhouse] [disk] [crash] [rot] [power] [errnos] [overload]
                          [fairness] [postgres] [senders] [--seconds N] [--seed S] [--fresh]

Each gets an equal part of the seconds (WEIR_CHAOS_SECONDS). Its rounds are counted in
``tests/chaos/results/PROGRAMME.json``, written after each, with the commits they were run on; the next call goes on
after the last one with the same seed. A round that fails is told with what replays it, its directory is kept, and
the next one begins in a fresh world. Exit code 1 when a promise was broken, or a programme that was asked for by
name could not be run; of all programmes those this machine does not allow are skipped, and named at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.chaos.clickhouse import FaultRounds
from tests.chaos.crash import CrashRounds, may_trace
from tests.chaos.disk import FullDiskRounds, may_mount
from tests.chaos.errnos import ErrnoRounds
from tests.chaos.fairness import FairnessRounds
from tests.chaos.gateway import World
from tests.chaos.kill import KillRounds
from tests.chaos.overload import OverloadRounds
from tests.chaos.postgres import PostgresRounds
from tests.chaos.power import PowerRounds, may_preload
from tests.chaos.rolls import RollRounds
from tests.chaos.rot import RotRounds
from tests.chaos.senders import SenderRounds, may_count_connections
from tests.chaos.tally import Tally

RESULTS = Path(__file__).parent / "results"
PROGRAMMES: dict[str, tuple[Callable[[World, str], Any], Callable[[], bool]]] = {
    "kill": (KillRounds, lambda: True),
    "workers": (partial(KillRounds, settings={"workers": "2"}), lambda: True),
    "rolls": (RollRounds, lambda: True),
    "clickhouse": (FaultRounds, lambda: True),
    "disk": (FullDiskRounds, may_mount),
    "crash": (CrashRounds, may_trace),
    "rot": (RotRounds, lambda: True),
    "power": (PowerRounds, may_preload),
    "overload": (OverloadRounds, lambda: True),
    "fairness": (FairnessRounds, lambda: True),
    "postgres": (PostgresRounds, lambda: True),
    "senders": (SenderRounds, may_count_connections),
    "errnos": (ErrnoRounds, may_preload),
}
"""Name -> its rounds, and whether this machine lets it run."""


class Record:
    """What is kept of a programme between calls."""

    def __init__(self, name: str, seed: str | None, *, fresh: bool) -> None:
        self._path = RESULTS / f"{name}.json"
        kept = {} if fresh or not self._path.exists() else json.loads(self._path.read_text())
        if seed is not None and kept.get("seed") != seed:
            kept = {}
        self.seed: str = kept.get("seed") or seed or str(random.randrange(10**9))
        self.tally = Tally.of(kept.get("tally", {}))
        self.next_round: int = kept.get("next_round", 0)
        self._seconds: float = kept.get("seconds", 0.0)
        self._commits: Counter[str] = Counter(kept.get("commits", {}))
        self._commit = _commit()
        self._name = name

    def keep(self, seconds: float) -> None:
        """Write it down."""
        self._seconds += seconds
        self._commits[self._commit] = self.next_round - sum(self._commits.values()) + self._commits[self._commit]
        told = {"programme": self._name, "seed": self.seed, "next_round": self.next_round}
        told |= {"seconds": round(self._seconds, 1), "commits": self._commits, "tally": self.tally.summary()}
        self._path.parent.mkdir(exist_ok=True)
        draft = self._path.with_suffix(".new")
        draft.write_text(json.dumps(told, indent=2) + "\n")
        draft.replace(self._path)


def _commit() -> str:
    """Of what is run, marked where files were changed since."""
    git = ("git", "describe", "--always", "--dirty", "--exclude=*")
    told = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


def run(name: str, record: Record, deadline: float) -> None:
    """Rounds until the deadline, at least one, in one world after the other."""
    make, _ = PROGRAMMES[name]
    first = record.next_round
    while time.monotonic() < deadline or record.next_round == first:
        directory = Path(tempfile.mkdtemp(prefix="weir-chaos-"))
        is_clean = True
        try:
            with World(directory) as world, make(world, record.seed) as rounds:
                rounds.tally = record.tally
                while is_clean and (time.monotonic() < deadline or record.next_round == first):
                    began = time.monotonic()
                    number, record.next_round = record.next_round, record.next_round + 1
                    report = rounds.round(number)
                    is_clean = report.clean
                    record.keep(time.monotonic() - began)
                    print(f"{name} {number}: {'clean' if is_clean else 'NOT CLEAN'} {report}", flush=True)
        except (OSError, AssertionError) as error:  # a TimeoutError is an OSError
            is_clean = False
            traceback.print_exc()
            record.tally.finding(f"seed {record.seed} round {record.next_round - 1} broke off: {error!r}")
            record.keep(0.0)
        if is_clean:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            print(f"{name}: what is left of it is in {directory}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programmes", nargs="*", metavar="programme", help=", ".join(PROGRAMMES))
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("WEIR_CHAOS_SECONDS", "3600")))
    parser.add_argument("--seed")
    parser.add_argument("--fresh", action="store_true", help="forget the rounds so far")
    given = parser.parse_args()
    names = given.programmes or list(PROGRAMMES)
    if unknown := set(names) - PROGRAMMES.keys():
        parser.error(f"no programme {', '.join(sorted(unknown))}; there are {', '.join(PROGRAMMES)}")
    clean, skipped = True, [name for name in names if not PROGRAMMES[name][1]()]
    for name in names:
        if name in skipped:
            continue
        record = Record(name, given.seed, fresh=given.fresh)
        print(f"{name}: seed {record.seed}, from round {record.next_round}", flush=True)
        run(name, record, time.monotonic() + given.seconds / len(names))
        print(f"{name}: {json.dumps(record.tally.summary())}", flush=True)
        clean = clean and record.tally.clean
    if skipped:
        print(f"SKIPPED, this machine does not allow them: {', '.join(skipped)}")
    return 0 if clean and not set(skipped) & set(given.programmes) and skipped != names else 1


if __name__ == "__main__":
    sys.exit(main())
