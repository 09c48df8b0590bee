"""What happens in one simulation, all of it decided by its seed before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from tests.chaos.simulation.disk import Faults
from tests.chaos.simulation.server import Network

TABLES = ("things", "others")
TROUBLE_S_MAX = 40.0
LONG_AWAY_S = 60.0
"""Longer than what was stored is kept."""


@dataclass(frozen=True)
class Request:
    """One request: rows for tables, by the numbers of their things."""

    at: float
    slot: int
    project: str
    rows: tuple[tuple[str, tuple[int, ...]], ...]
    days: int
    durability: str
    apart: bool
    expected_bytes: int
    body: str


@dataclass
class Plan:
    """``kills``: by slot, when and how a process ends ('kill', 'stop'). Times are seconds of virtual time.

    ``server``: (when, with its machine, for how long). ``parked``: (when, until, table). ``full``: (when, until):
    others take all of the disk. ``together``: how many processes there are at a time.
    """

    settings: dict[str, Any]
    requests: list[Request]
    poison: set[int]
    kills: dict[int, list[tuple[float, str]]]
    power_cuts: list[float]
    server: list[tuple[float, bool, float]]
    parked: list[tuple[float, float, str]]
    full: list[tuple[float, float]]
    together: int
    trouble_s: float
    disk: Faults
    disk_latency_s: float
    capacity: int
    network: Network
    loses: float
    adoption_cut: float
    flushes: list[tuple[float, int]]
    late: list[Request]
    """Sent when everything is mended; then the server loses what it has just acknowledged."""
    insists: bool
    """Senders have a key for each request and send it again, to whoever there is, until it is taken."""
    late_away_s: float
    late_together: bool
    """The server and the gateway are on one machine when what came late is lost."""
    late_kills: list[float]
    """How long each process lives that finds what was lost, but the last."""
    late_slow: bool
    """The server takes long meanwhile."""


def plan(seed: int) -> Plan:
    """The plan of a seed. Each uses some of the faults only: where everything fails little is reached."""
    random = Random(f"plan {seed}")
    trouble_s = random.choice((3.0, 10.0, 20.0, TROUBLE_S_MAX))
    together = random.choice((1, 1, 1, 2))

    def some(most: float) -> float:
        return random.choice((0.0, 0.0, 0.0, most / 20, most / 5, most))

    def moments(most: int) -> list[float]:
        return sorted(random.random() * trouble_s for _ in range(random.choice((0, 0, 1, 2, most))))

    requests, poison = _requests(random, trouble_s, together)
    late = _late(Random(f"late {seed}"), _after(requests))
    if one_in(Random(f"poison among the late {seed}"), 2):
        poison.update(request.rows[0][1][2] for request in late[::2])
    made = Plan(
        settings=_settings(random),
        requests=requests,
        poison=poison,
        kills={
            slot: [(at, random.choice(("kill", "kill", "kill", "stop"))) for at in moments(5)]
            for slot in range(together)
        },
        power_cuts=moments(3),
        server=[(at, random.random() < 0.5, random.choice((0.001, 0.1, 1.0, 4.0, 10.0))) for at in moments(5)],
        parked=[
            (at, at + random.random() * trouble_s, random.choice(TABLES))
            for at in (moments(2) if one_in(random, 3) else ())
        ],
        full=[(at, at + random.random() * 5.0) for at in (moments(2) if one_in(random, 4) else ())],
        together=together,
        trouble_s=trouble_s,
        disk=Faults(
            create=some(0.2),
            write=some(0.1),
            sync=some(0.2),
            sync_directory=some(0.2),
            leave=some(0.3),
            remove=some(0.3),
            read=some(0.1),
        ),
        disk_latency_s=random.choice((0.0005, 0.002, 0.02, 0.2)),
        capacity=random.choice((1 << 40, 1 << 40, 256 << 10, 64 << 10)),
        network=Network(
            refused=some(0.3),
            request_lost=some(0.3),
            answer_lost=some(0.5),
            slow=some(0.3),
            busy=some(0.3),
            cut_short=some(0.1),
            memory=some(0.3),
            cancelled=some(0.2),
            silent_count=some(0.5),
            query_fails=some(0.3),
            timeout_s=random.choice((0.05, 1.0, 5.0)),
            slow_s=random.choice((0.2, 2.0, 20.0)),
        ),
        loses=random.choice((0.0, 0.1, 0.5)),
        adoption_cut=some(0.5),
        flushes=[(at, random.randrange(together)) for at in moments(3)],
        late=late,
        insists=Random(f"sent again {seed}").random() < 0.25,
        late_away_s=Random(f"late away {seed}").choice((1.0, 1.0, LONG_AWAY_S)),
        late_together=one_in(Random(f"late together {seed}"), 2),
        late_kills=_late_kills(Random(f"late kills {seed}")),
        late_slow=one_in(Random(f"late slow {seed}"), 2),
    )
    machine = Random(f"machine {seed}")
    made.server = [(at, dies, LONG_AWAY_S if dies and one_in(machine, 4) else for_s) for at, dies, for_s in made.server]
    if one_in(machine, 2):
        made.server += [(at, True, machine.choice((0.1, 4.0, LONG_AWAY_S))) for at in made.power_cuts]
    return made


def one_in(random: Random, many: int) -> bool:
    return random.randrange(many) == 0


def _settings(random: Random) -> dict[str, Any]:
    block_bytes = random.choice((512, 2048, 8192))
    return {
        "shards": random.choice((1, 2)),
        "ring_bytes_max": random.choice((64 << 10, 256 << 10, 4 << 20)),
        "open_columns_max": random.choice((2, 64)),
        "block_bytes": block_bytes,
        "block_age_ms": random.choice((1.0, 2.0, 20.0)),
        "batch_rows": random.choice((10, 50, 1000)),
        "batch_bytes": random.choice((1024, 8192, 65536)),
        "batch_age_ms": random.choice((1.0, 10.0, 300.0)),
        "inserts_in_flight": random.choice((1, 2, 4)),
        "retry_first_ms": random.choice((1.0, 20.0)),
        "retry_max_ms": random.choice((100.0, 1000.0)),
        "parked_first_ms": 100.0,
        "parked_max_ms": random.choice((500.0, 2000.0)),
        "stored_ms_max": random.choice((20.0, 1000.0)),
        "segment_bytes": random.choice((2048, 4096, 16384)),
        "reserve_bytes": 4096,
        "spool_bytes_max": random.choice((64 << 10, 1 << 20, 64 << 20)),
        "spool_free_bytes_min": 0,
        "audit_ms": random.choice((0.0, 20_000.0, 20_000.0)),
        "refused_rows_max": random.choice((3, 1000)),
    }


def _requests(random: Random, trouble_s: float, together: int) -> tuple[list[Request], set[int]]:
    count = random.choice((5, 20, 40, 80))
    burst = random.choice((1, 1, 5))
    levels = random.choice((("disk",), ("disk",), ("disk", "stored"), ("os",), ("memory", "os", "disk", "stored")))
    poison_part = random.choice((0.0, 0.0, 0.0, 0.02, 0.2))
    body = "x" * random.choice((1, 20, 200))
    requests: list[Request] = []
    poison: set[int] = set()
    number, at = 0, 0.0
    for index in range(count):
        if index % burst == 0:
            at = random.random() * trouble_s
        rows = []
        for table in random.choice((TABLES[:1], TABLES[:1], TABLES[1:], TABLES)):
            many = random.choice((1, 2, 5, 12))
            rows.append((table, tuple(range(number, number + many))))
            if random.random() < poison_part * 5:
                poison.update(each for each in range(number, number + many) if random.random() < 0.3)
            number += many
        project = f"p{random.randrange(4)}"
        requests.append(
            Request(
                at,
                random.randrange(together),
                project,
                tuple(rows),
                random.choice((1, 1, 2, 3)),
                random.choice(levels) if len(levels) < 4 else levels[hash_of(project) % 4],
                random.random() < 0.1,
                200 * sum(len(numbers) for _, numbers in rows),
                body,
            )
        )
    return requests, poison


def _after(requests: list[Request]) -> int:
    """The first number that none of them has."""
    return max((max(numbers) for request in requests for _, numbers in request.rows), default=0) + 1


def _late(random: Random, first: int) -> list[Request]:
    many = random.choice((0, 0, 3, 10))
    return [
        Request(
            0.0,
            0,
            f"p{index % 4}",
            (("things", tuple(range(start, start + 6))),),
            1 + index % 2,
            "disk",
            False,
            1200,
            "x",
        )
        for index, start in enumerate(range(first, first + 6 * many, 6))
    ]


def _late_kills(random: Random) -> list[float]:
    return [random.choice((0.05, 1.0, 6.0)) * random.random() for _ in range(random.choice((0, 0, 1, 3)))]


def hash_of(project: str) -> int:
    """Every project has its own durability."""
    return int(project[1:])
