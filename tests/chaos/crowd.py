"""Senders that do not wait: groups of them with a rate each, and how each group fared.

    python -m tests.chaos.crowd --ledger DIR --run NAME --ingest HOST:PORT --base-s N --seconds S < GROUPS.json

posts for so long, or until SIGTERM, and writes the ledger of ``oracle.py``, a file for each group. A group with a
rate offers that many posts a second whether they are answered or not, over as many connections as that takes, up
to its own; a post that finds none free is not made, and counted (``unmade``). A group without a rate has each
connection post as soon as it is answered: what the gateway takes. What is refused is offered again, as it was: were
any of it kept, it would be there twice. The last line of the output says how each ``label`` fared, as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.chaos.gateway import ROOT, poll
from tests.chaos.load import Load
from tests.chaos.oracle import ANSWER_S, POLITE, sum_of
from tests.chaos.records import DIALECTS, record
from tests.support.leash import leashed

TURN_S = 0.002
REFUSED_PAUSE_S = 0.02
START_S = 30.0
BACKLOG_S = 600.0


@dataclass(frozen=True, slots=True)
class Group:
    """Senders of one project, with its keys in turn. ``posts_per_s`` 0: each connection posts when it is answered."""

    name: str
    keys: Sequence[str]
    kind: str
    """A dialect, or ``DIALECT+N``: each record is so many bytes larger."""
    label: str = ""
    """Groups of one label are counted together."""
    records: int = 2
    posts_per_s: float = 0.0
    connections: int = 8


@dataclass(slots=True)
class Fared:
    """What became of the posts of a label. Times are of single posts, from first byte to answer, in seconds."""

    seconds: float = 0.0
    made: int = 0
    unmade: int = 0
    accepted: int = 0
    refused: int = 0
    odd: int = 0
    unanswered: int = 0
    accepted_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)

    @property
    def accepted_per_s(self) -> float:
        return self.accepted / self.seconds

    @property
    def accepted_part(self) -> float:
        """Of the posts that were made; 0 when none was."""
        return self.accepted / max(1, self.made)

    def told(self) -> str:
        """In one line."""
        return (
            f"{self.made} posts in {self.seconds:.1f} s ({self.unmade} more unmade): {self.accepted} accepted"
            f" (p99 {quantile(self.accepted_s, 0.99) * 1000:.1f} ms), {self.refused} refused"
            f" (p99 {quantile(self.refused_s, 0.99) * 1000:.1f} ms), {self.odd} odd, {self.unanswered} unanswered"
        )


def quantile(times: Sequence[float], part: float) -> float:
    """0 when there are none."""
    ordered = sorted(times) or [0.0]
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


class Crowd(Load):
    """One run of such senders, phase after phase, each a process of its own; a context manager."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:  # only when something failed
            self._process.kill()
            self._process.communicate()
            self._process = None

    def begin(self, phase: str, groups: Sequence[Group], seconds: float) -> None:
        """Let them post for so long. ``phase`` is in the ids."""
        command = [sys.executable, "-m", "tests.chaos.crowd", "--ledger", str(self.ledger_dir)]
        command += ["--run", f"{self.run}.{phase}", "--ingest", self._gateway.ingest]
        command += ["--base-s", str(self.base_s), "--seconds", str(seconds)]
        process = subprocess.Popen(leashed(*command), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._process, self._seconds = process, seconds
        assert process.stdin is not None
        process.stdin.write(json.dumps([asdict(group) for group in groups]).encode())
        process.stdin.close()
        process.stdin = None  # communicate() would flush it
        poll(lambda: [*self.ledger_dir.glob(f"{self.run}.{phase}.*.log")], START_S, "the crowd has begun")

    def end(self, *, at_once: bool = False) -> Mapping[str, Fared]:
        """How they fared, by label, when they are done. ``at_once``: they are now."""
        process = self._process
        assert process is not None
        if at_once:
            process.terminate()
        try:
            said, _ = process.communicate(timeout=START_S + self._seconds + ANSWER_S)
        finally:
            process.kill()
            process.wait()
            self._process = None
        if process.returncode:
            raise AssertionError(f"the crowd ended with {process.returncode}")
        return {label: Fared(**told) for label, told in json.loads(said.splitlines()[-1]).items()}

    def until(
        self, condition: Callable[[], bool], phase: str, groups: Sequence[Group], least_s: float, within_s: float
    ) -> Mapping[str, Fared]:
        """All of it, until something is so, but not for less. Raises TimeoutError."""
        self.begin(phase, groups, 2 * within_s)
        began = time.monotonic()
        poll(lambda: time.monotonic() - began > least_s and condition(), within_s, f"what {phase} is to bring about")
        return self.end(at_once=True)

    def drain(self) -> None:
        """Return when the gateway holds nothing; asking for rows until then would take what ClickHouse needs."""
        poll(lambda: self._gateway.metric("weir_rows_buffered") == 0, BACKLOG_S, "the backlog is stored")

    def phase(self, phase: str, groups: Sequence[Group], seconds: float) -> Mapping[str, Fared]:
        """All of it."""
        self.begin(phase, groups, seconds)
        return self.end()


@dataclass(slots=True)
class Post:
    """One body, offered until it is accepted."""

    first: int
    sum: str
    sent: bytes


class Senders:
    """A group as it posts. ``fared`` is shared with those of its label."""

    def __init__(self, group: Group, given: argparse.Namespace, fared: Fared) -> None:
        self.group, self.fared = group, fared
        self._connections: set[Connection] = set()
        self._keys = cycle(group.keys)
        self._prefix = f"{given.run}.{group.name}"
        self._host, _, port = given.ingest.rpartition(":")
        self._port = int(port)
        self._base_s: int = given.base_s
        self._idle: list[Connection] = []
        self._opening = 0
        self._again: deque[Post] = deque()
        self._next = 0
        self._offered = 0
        self._ahead = random.Random(self._prefix).random()
        self._stopped = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._ledger = (given.ledger / f"{self._prefix}.log").open("w", encoding="ascii")

    def turn(self, passed_s: float) -> None:
        """Post what is due so many seconds after the beginning."""
        rate = self.group.posts_per_s
        due = int(passed_s * rate + self._ahead) - self._offered if rate else self.group.connections
        self._offered += due if rate else 0
        for _ in range(due):
            if self._idle:
                self._idle.pop().post(self._post())
            elif len(self._connections) + self._opening < self.group.connections:
                self._opening += 1
                task = asyncio.create_task(self._open())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            elif rate:
                self.fared.unmade += 1
            else:
                return

    def stop(self) -> None:
        """Make no more posts."""
        self._stopped = True

    @property
    def is_done(self) -> bool:
        """Whether all that was posted is answered, or never will be."""
        return not any(connection.under_way for connection in self._connections)

    def close(self) -> None:
        """What is under way still will not be answered any more."""
        for connection in self._connections:
            self.fared.unanswered += connection.under_way is not None
            connection.under_way = None
            connection.close()
        self._ledger.close()

    def answered(self, connection: Connection, post: Post, status: int, *, when: bool, took_s: float) -> None:
        """``status`` 0: partial success; ``when``: it says when to come back."""
        fared = self.fared
        if status in (200, 202):
            fared.accepted += 1
            fared.accepted_s.append(took_s)
            self._note(f"acked {post.first} {post.sum}")
        elif status in POLITE and when:
            fared.refused += 1
            fared.refused_s.append(took_s)
            self._note(f"answer {post.first} {status}")
            self._again.append(post)
        else:
            fared.odd += 1
            self._note(f"answer {post.first} {status}{'-without-Retry-After' if status in POLITE else ''}")
        if self._stopped:
            connection.close()
        elif self.group.posts_per_s or not connection.is_open:
            self.idle(connection)
        elif status in POLITE:
            asyncio.get_running_loop().call_later(REFUSED_PAUSE_S, self.idle, connection)
        else:
            connection.post(self._post())

    def idle(self, connection: Connection) -> None:
        """It may be used again, if it is open."""
        if connection.is_open and connection not in self._idle:
            self._idle.append(connection)

    def lost(self, connection: Connection, post: Post | None) -> None:
        """Closed by the other side; what of a post nobody knows."""
        if connection in self._idle:
            self._idle.remove(connection)
        self._connections.discard(connection)
        if post is not None:
            self.fared.unanswered += 1

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: Connection(self), self._host, self._port)
        except OSError:
            self.fared.unmade += 1
            return
        finally:
            self._opening -= 1
        self._connections.add(connection)
        if not self._stopped:
            connection.post(self._post())

    def _post(self) -> Post:
        """One that was refused, or a new one, noted before its first byte leaves."""
        if self._again:
            return self._again.popleft()
        first, count, kind = self._next, self.group.records, self.group.kind
        self._next += count
        records = [record(f"{self._prefix}.{first + at}", kind, self._base_s) for at in range(count)]
        path, media_type, write = DIALECTS[kind.partition("+")[0]]
        body = write(records)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nAuthorization: Bearer {next(self._keys)}\r\n"
            f"Content-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._note(f"posted {first} {count} {kind}")
        return Post(first, sum_of(records), head.encode() + body)

    def _note(self, line: str) -> None:
        self._ledger.write(line + "\n")
        self._ledger.flush()


class Connection(asyncio.Protocol):
    """One, with at most one post under way."""

    def __init__(self, senders: Senders) -> None:
        self._senders = senders
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self.under_way: Post | None = None
        self.is_open = False
        self._began = 0.0
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.is_open = True

    def post(self, post: Post) -> None:
        """Send it; the senders are told of the answer."""
        self._senders.fared.made += 1
        self.under_way, self._began, self._read = post, self._loop.time(), b""
        self._transport.write(post.sent)

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        post = self.under_way
        if not end or post is None:
            return
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if len(body) < int(headers.get("content-length", "0")):
            return
        self.under_way = None
        if headers.get("connection", "").lower() == "close":
            self.close()
        self._senders.answered(
            self,
            post,
            0 if b"rejected" in body else int(status.split()[1]),
            when="retry-after" in headers,
            took_s=self._loop.time() - self._began,
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        post, self.under_way = self.under_way, None
        self._senders.lost(self, post)

    def close(self) -> None:
        self.is_open = False
        self._transport.close()


async def send(given: argparse.Namespace, groups: Sequence[Group]) -> dict[str, Fared]:
    """Post for so long, or until SIGTERM, and wait for the last answers."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    fared: dict[str, Fared] = {}
    senders = [Senders(group, given, fared.setdefault(group.label, Fared())) for group in groups]
    began = loop.time()
    while (passed_s := loop.time() - began) < given.seconds and not stop.is_set():
        for each in senders:
            each.turn(passed_s)
        await asyncio.sleep(TURN_S)
    for each in senders:
        each.stop()
    for one in fared.values():
        one.seconds = passed_s
    deadline = loop.time() + ANSWER_S
    while loop.time() < deadline and not all(each.is_done for each in senders):  # noqa: ASYNC110 - nobody is told
        await asyncio.sleep(TURN_S)
    for each in senders:
        each.close()
    return fared


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--ingest", required=True)
    parser.add_argument("--base-s", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    given.ledger.mkdir(parents=True, exist_ok=True)
    groups = [Group(**told) for told in json.load(sys.stdin)]
    print(json.dumps({label: asdict(one) for label, one in asyncio.run(send(given, groups)).items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
