"""Programme "clickhouse": exchanges with ClickHouse go wrong in every way there is, and its process is killed.

The gateway speaks to a proxy that breaks a part of all exchanges: requests cut anywhere, answers lost,
cut, or replaced after the commit, silence, requests that arrive late when they were long sent again,
exception codes in errors and in a 200, and the server that remembers a token whose rows it lost. Between
them ClickHouse is killed, mostly in the middle of an insert.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from tests.chaos.gateway import World
from tests.chaos.load import STALLED_S, settle
from tests.chaos.oracle import Report
from tests.chaos.rounds import Rounds
from tests.support.proxy import Fault, Proxy

FAULTY = 0.4
INSERT_TIMEOUT_MS = 4_000
TOKENS_KEPT = 1_000
MOMENT_S = 0.03
PARKED_S = 60.0
"""A table that waits for a person is tried again every half minute."""
TOO_MANY_PARTITIONS = "Code: 252. DB::Exception: Too many partitions for single INSERT block (more than 100)"
TOO_MANY_PARTS = "Code: 252. DB::Exception: Too many parts (3001 with average size of 1.00 KiB)"
_TOKEN = re.compile(rb"insert_deduplication_token=([^&\s]+)")

Chooser = Callable[[random.Random], Fault]


def _code(code: int, status: int = 500, *, text: str = "", kind: str = "answer") -> Chooser:
    fault = Fault(kind, status=status, headers=(("X-ClickHouse-Exception-Code", str(code)),), body=text.encode())
    return lambda choose: fault


def _said(code: int, kind: str = "answer") -> Chooser:
    """A 200 whose body is an exception."""
    fault = Fault(kind, status=200, body=f"Code: {code}. DB::Exception: said too late".encode())
    return lambda choose: fault


KINDS: dict[str, tuple[float, Chooser]] = {
    # name: how often beside the others, what happens
    "swallow": (4, lambda choose: Fault("swallow")),
    "reset request": (4, lambda choose: Fault("reset", at_byte=int(10 ** (choose.random() * 4.5)))),
    "reset answer": (3, lambda choose: Fault("truncate", at_byte=choose.randrange(300))),
    "unsent": (3, lambda choose: Fault("reset_unsent")),
    "late": (3, lambda choose: Fault("late", delay_s=choose.random() * 2)),
    "slow": (2, lambda choose: Fault("slow", delay_s=choose.random() * 2)),
    "half open": (0.2, lambda choose: Fault("half_open")),
    "503 of a stranger": (1, lambda choose: Fault("answer", status=503, body=b"upstream connect error")),
    "503 after commit": (1, lambda choose: Fault("rewrite", status=503, body=b"upstream reset")),
    "159": (1, _code(159, 408)),
    "159 after commit": (1, _code(159, 408, kind="rewrite")),
    "159 in a 200": (1, _code(159, 200)),
    "159 in a 200's body, after commit": (1, _said(159, "rewrite")),
    "319 after commit": (1, _code(319, kind="rewrite")),
    "241": (1, _code(241)),
    "241 after commit": (1, _code(241, kind="rewrite")),
    "241 in a 200's body": (1, _said(241)),
    "252 parts": (1, _code(252, text=TOO_MANY_PARTS)),
    "999": (1, _code(999)),
    # A person's or poison: what meets them waits for seconds.
    "60": (0.05, _code(60, 404)),
    "242": (0.05, _code(242)),
    "117": (0.05, _code(117, 400)),
    "252 partitions": (0.05, _code(252, text=TOO_MANY_PARTITIONS)),
}
QUICK_KINDS = tuple(name for name, (weight, _) in KINDS.items() if weight >= 0.5)
"""Those after which nobody waits for seconds."""
AMNESIA = "token known, rows lost"


class Misfortune:
    """Chooses what happens to each exchange. ``counts``: how often what did; ``forwarded``: set by each insert."""

    def __init__(self, seed: str, kinds: Sequence[str]) -> None:
        self._kinds = kinds
        self._weights = [KINDS[name][0] for name in kinds]
        self.counts: Counter[str] = Counter()
        self.exchanges = 0
        self.calm = True
        self.forwarded = threading.Event()
        self._random = random.Random(seed)
        self._unsent: set[bytes] = set()

    def choose(self, head: bytes) -> Fault | None:
        """The fault for the exchange that begins with ``head``; None while ``calm``."""
        self.exchanges += 1
        token = _TOKEN.search(head)
        if token is not None:
            self.forwarded.set()
        if self.calm:
            return None
        if token is not None and token[1] in self._unsent and self._random.random() < 0.3:
            # What a server killed between remembering a token and keeping the part answers afterwards.
            self.counts[AMNESIA] += 1
            self._unsent.discard(token[1])
            return Fault("answer", status=200)
        if self._random.random() >= FAULTY:
            return None
        name = self._random.choices(self._kinds, self._weights)[0]
        if name == "unsent" and token is not None and len(self._unsent) < TOKENS_KEPT:
            self._unsent.add(token[1])
        self.counts[name] += 1
        return KINDS[name][1](self._random)


class ProxyThread:
    """A proxy with an event loop of its own, a context manager."""

    def __init__(self, port: int, choose: Callable[[bytes], Fault | None]) -> None:
        self._proxy = Proxy(port, choose=choose)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    @property
    def url(self) -> str:
        return self._proxy.url

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._proxy.start(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._proxy.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class FaultRounds(Rounds):
    """Rounds against one ClickHouse through one proxy, by one gateway that is never killed."""

    def __init__(
        self,
        world: World,
        seed: str,
        *,
        weakened_by: str = "",
        pause_ms: float = 2.0,
        kinds: Sequence[str] = tuple(KINDS),
    ) -> None:
        self.misfortune = Misfortune(seed, kinds)
        self._proxy = ProxyThread(world.clickhouse.port, self.misfortune.choose)
        gateway = world.gateway(
            name=f"clickhouse-{seed}{weakened_by}",
            weakened_by=weakened_by,
            settings={"delivery__insert_timeout_ms": str(INSERT_TIMEOUT_MS)},
        )
        super().__init__(world, seed, gateway, pause_ms=pause_ms)

    def _begin(self, stack: ExitStack) -> None:
        stack.enter_context(self._proxy)
        super()._begin(stack)
        self._gateway.environ["WEIR__CLICKHOUSE__URL"] = self._proxy.url
        self._gateway.start()

    def round(self, number: int, *, faults: int = 300, kills: int = 10, stalled_s: float = STALLED_S) -> Report:
        """Load until so many faults and kills have happened, then calm, and what the oracle says."""
        choose = random.Random(f"{self._seed}/{number}")
        world, misfortune, what = self._world, self.misfortune, f"seed {self._seed} round {number}"
        goal = misfortune.counts.total() + faults
        before = misfortune.counts.copy()
        with self._load(number) as load:
            misfortune.calm = False
            for kill in range(kills):
                self._wait_for(goal - faults + faults * kill // kills)
                misfortune.forwarded.clear()
                misfortune.forwarded.wait(5.0)
                time.sleep(choose.random() * MOMENT_S)  # the moment within the insert is the point
                world.clickhouse.become("down")
                world.clickhouse.become("up")
                self.tally.kills["clickhouse"] += 1
            self._wait_for(goal)
            misfortune.calm = True
            report = settle(world, self._gateway, load, stalled_s=stalled_s)
        self.tally.faults.update(misfortune.counts - before)
        self.tally.cycles = self.tally.faults.total()
        self._count(report, what, fresh_within_s=PARKED_S)
        return report

    def _wait_for(self, faults: int) -> None:
        """Until so many have happened, or nothing happens any more: all tables may wait for a person."""
        deadline = time.monotonic() + 60.0
        while self.misfortune.counts.total() < faults and time.monotonic() < deadline:
            time.sleep(0.01)
