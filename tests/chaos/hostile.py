"""Senders that mean harm, or are broken: as many connections as asked for, each of a kind, until they are closed.

    python -m tests.chaos.hostile < STORM.json

opens them, and for each that was closed another one of another kind until the time is over. They come from addresses
of their own, none of which has more connections than one may have but the first. The last line of the output is a
``Told`` as JSON: what was not closed at its deadline or was before it, and what was not answered as it should be.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import resource
import socket
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import zstandard

ADDRESS_CONNECTIONS = 100
"""Of the hostile ones, at most."""
ADDRESS_CONNECTIONS_MAX = 150
"""What the gateway is to allow."""
CROWDING = 20
"""So many more one address opens than it may."""
BYTES_PER_S_MIN, GRACE_S, DRAIN_S = 1024, 5.0, 2.0
"""The rate of a body that is asked for, the time a body has before that, and how long a refused one is read on."""
EARLY_S = 0.05
"""By how much two clocks may differ on what is too early."""
OPENED_PER_S = 1000
"""Of all together: as many as wait at the gateway's door without being lost for a second."""
DRIPS_PER_S = 20_000
"""Of all connections together, at most: what drips more seldom is as slow."""
HELD_S = 0.25
FLOOD_BYTES, FLOOD_PAUSE_S = 1 << 20, 0.001
MIB = 1 << 20
BOMB_BYTES = 64 * MIB
ENCODINGS = ("gzip", "zstd")
NEVER_READ_BYTES = 4096
UNREAD, UNREAD_CONNECTIONS, UNREAD_REQUESTS = "answers unread", 2, 12_000
"""Few of them: the system takes some 9,000 answers of a connection before the gateway has to keep the next one."""
UNREAD_MADE_S, TURN_S_EACH = 15.0, 5e-7
"""A turn takes half a millisecond more for each thousand of others."""
LAP_STRIDE = 7919
"""A prime: all kinds have their turn."""
LISTENS, USUAL = "0A", "0100007F"
"""As /proc/net/tcp writes a state and 127.0.0.1."""
ERROR, STATUS = b'"error"', b'"message"'
"""What the dialects' refusals have in them."""


@dataclass(frozen=True, slots=True)
class Storm:
    """How many, for how long, and what the gateway promises: its deadlines, and the slack this machine has."""

    ingest: str
    key: str
    seed: str
    connections: int
    seconds: float
    header_s: float
    body_s: float
    idle_s: float
    slack_s: float
    kinds: Sequence[str] = ()
    """Empty: all."""


@dataclass
class Told:
    """What became of them, by kind; of ``faults`` how often each was seen."""

    opened: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    """As was due. The others of a kind were refused politely, or nothing is due."""
    faults: Counter[str] = field(default_factory=Counter)
    late_s: dict[str, float] = field(default_factory=dict)
    """The longest that one was open beyond its deadline."""
    open_max: int = 0


class Hostile(asyncio.Protocol):
    """One connection. The gateway's patience began between ``began`` and ``since``, by the loop's clock."""

    def __init__(self, storm: Storm, kind: Kind, held: Held, number: int, lap: int) -> None:
        self.storm, self.kind = storm, kind
        self._held = held
        self.random = random.Random(f"{storm.seed}/{number}/{lap}")
        self.began = self.since = 0.0
        self.said = b""
        self._loop = asyncio.get_running_loop()
        self._lost = asyncio.Event()
        self._address = f"127.0.1.{2 + number // ADDRESS_CONNECTIONS}"

    async def open(self) -> None:
        """Raises OSError."""
        plug = socket.socket()
        plug.setblocking(False)
        if not self.kind.reads:
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NEVER_READ_BYTES)
        self.begin()
        try:
            plug.bind((self._address, 0))
            host, _, port = self.storm.ingest.rpartition(":")
            await self._loop.sock_connect(plug, (host, int(port)))
        except BaseException:
            plug.close()
            raise
        address, port = plug.getsockname()
        self._name = f"{int.from_bytes(socket.inet_aton(address), 'little'):08X}:{port:04X}"
        await self._loop.create_connection(lambda: self, sock=plug)
        self.since = self._loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if not self.kind.reads:
            transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        self.said = (self.said + data)[:MIB]

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.set()

    def begin(self) -> None:
        """The gateway's patience begins now, or a moment later."""
        self.began = self.since = self._loop.time()

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    async def drip(self, data: bytes) -> None:
        """A byte at a time."""
        pause_s = max(0.1, self.storm.connections / DRIPS_PER_S)
        for at in range(len(data)):
            self.send(data[at : at + 1])
            await asyncio.sleep(pause_s)

    def head(self, *lines: str, path: str = "/batch", length: int | None = None) -> bytes:
        """The headers of a post by somebody whose key is good."""
        told = [f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {self.storm.key}"]
        told += ["Content-Type: application/json", *lines]
        told += [] if length is None else [f"Content-Length: {length}"]
        return "\r\n".join([*told, "", ""]).encode()

    async def live(self) -> float | None:
        """Do what the kind does until the gateway closes; when that was, None when it has to be closed from here."""
        acting = asyncio.create_task(self.kind.act(self))
        try:
            is_closed = await (self._until_closed() if self.kind.reads else self._until_let_go())
            return self._loop.time() if is_closed else None
        finally:
            acting.cancel()
            with suppress(asyncio.CancelledError):
                await acting
            self.transport.abort()

    def _left_s(self) -> float:
        return self.since + self.kind.due_s(self.storm) + self.storm.slack_s - self._loop.time()

    async def _until_closed(self) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._left_s()):
                await self._lost.wait()
        return self._lost.is_set()

    async def _until_let_go(self) -> bool:
        """Who does not read is not told of the end."""
        was_held = False
        while self._left_s() > 0:
            is_held = self._name in self._held.names()
            if was_held and not is_held:
                return True
            was_held = was_held or is_held
            await asyncio.sleep(HELD_S)
        return False


@dataclass(frozen=True, slots=True)
class Kind:
    """``act``: what it does. ``due_s``: by when it has to be closed. ``statuses``: those due, none when empty."""

    act: Callable[[Hostile], Coroutine[Any, Any, None]]
    due_s: Callable[[Storm], float]
    statuses: tuple[int, ...] = ()
    weight: int = 8
    """How many there are, beside those of other kinds."""
    says: bytes = b""
    """What the answer has in it."""
    is_exact: bool = True
    """It may not be closed sooner."""
    writes_on: bool = False
    """Whoever does may miss the answer."""
    reads: bool = True


class Held:
    """Who has a connection that a process listening at ``ingest`` has open, as /proc/net/tcp writes them."""

    def __init__(self, ingest: str) -> None:
        self._port = f":{int(ingest.rpartition(':')[2]):04X}"
        self._asked_s = 0.0
        self._names: frozenset[str] = frozenset()

    def names(self) -> frozenset[str]:
        """A moment old."""
        if time.monotonic() > self._asked_s + HELD_S:
            rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
            # No inode: nobody has accepted it yet, or it was closed and the kernel still has something to send.
            ours = (row for row in rows if row[1].endswith(self._port) and row[3] != LISTENS and row[9] != "0")
            self._names = frozenset(row[2] for row in ours)
            self._asked_s = time.monotonic()
        return self._names

    def hostile(self) -> int:
        """How many of them are not of those who come from the usual address."""
        return sum(not name.startswith(USUAL) for name in self.names())


async def _silent(one: Hostile) -> None:
    """Connect, and that is all."""


async def _drip_header(one: Hostile) -> None:
    await one.drip(one.head(f"X-Filler: {'x' * 1000}"))


async def _half_header(one: Hostile) -> None:
    head = one.head(length=2)
    one.send(head[: one.random.randrange(1, len(head) - 1)])


async def _drip_body(one: Hostile) -> None:
    one.send(one.head(length=100_000))
    await one.drip(b"[" + b" " * 99_999)


async def _half_body(one: Hostile) -> None:
    one.send(one.head(length=1000) + b" " * one.random.randrange(1, 1000))


async def _no_body(one: Hostile) -> None:
    one.send(one.head(length=one.random.randrange(1, 100_000)))


async def _uninvited(one: Hostile) -> None:
    one.send(one.head("Expect: 100-continue", length=1000))


async def _endless_chunks(one: Hostile) -> None:
    """At more than the least rate."""
    one.send(one.head("Transfer-Encoding: chunked"))
    pause_s = max(0.1, one.storm.connections / DRIPS_PER_S)
    chunk = b" " * int(4 * BYTES_PER_S_MIN * pause_s)
    while True:
        one.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        await asyncio.sleep(pause_s)


async def _broken_chunk(one: Hostile) -> None:
    one.send(one.head("Transfer-Encoding: chunked") + b"2\r\n[]\r\nnonsense\r\n")


async def _idle(one: Hostile) -> None:
    """After a request that was answered well and stores nothing."""
    one.begin()
    one.send(one.head(length=2) + b"[]")


async def _unread(one: Hostile) -> None:
    """Many requests, whose answers fill all there is on their way."""
    one.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * UNREAD_REQUESTS)


async def _garbage(one: Hostile) -> None:
    one.send(b"\0" + one.random.randbytes(one.random.randrange(1, 4096)))


async def _flood(one: Hostile) -> None:
    """As much as goes through."""
    garbage = b"\0" + one.random.randbytes(FLOOD_BYTES // 8)
    while True:
        while one.transport.get_write_buffer_size() < FLOOD_BYTES and not one.transport.is_closing():
            one.send(garbage)
        await asyncio.sleep(FLOOD_PAUSE_S)


async def _tls(one: Hostile) -> None:
    """A client hello."""
    hello = b"\x03\x03" + one.random.randbytes(32) + b"\0\0\x02\x13\x01\x01\0"
    shake = b"\x01" + len(hello).to_bytes(3) + hello
    one.send(b"\x16\x03\x01" + len(shake).to_bytes(2) + shake)


@cache
def _bomb(encoding: str) -> bytes:
    """Nothing, and very much of it."""
    if encoding == "zstd":
        return zstandard.compress(bytes(BOMB_BYTES))
    press = zlib.compressobj(wbits=31)
    return b"".join(press.compress(bytes(MIB)) for _ in range(BOMB_BYTES // MIB)) + press.flush()


async def _gzip_bomb(one: Hostile) -> None:
    bomb = _bomb("gzip")
    one.send(one.head("Content-Encoding: gzip", "Connection: close", path="/v1/logs", length=len(bomb)) + bomb)


async def _zstd_bomb(one: Hostile) -> None:
    bomb = _bomb("zstd")
    one.send(one.head("Content-Encoding: zstd", "Connection: close", length=len(bomb)) + bomb)


async def _large_header(one: Hostile) -> None:
    one.send(one.head(f"X-Filler: {'x' * (64 << 10)}", length=2) + b"[]")


async def _huge_length(one: Hostile) -> None:
    one.send(one.head(length=1 << 40))


def _header_s(storm: Storm) -> float:
    return storm.header_s


def _body_s(storm: Storm) -> float:
    return storm.body_s


def _slow_body_s(storm: Storm) -> float:
    return min(storm.body_s, GRACE_S)


def _idle_s(storm: Storm) -> float:
    return storm.idle_s


def _unread_s(storm: Storm) -> float:
    """The answers have to be made before they can be left unread, one in a turn of the gateway's loop."""
    return storm.idle_s + UNREAD_MADE_S + UNREAD_REQUESTS * TURN_S_EACH * storm.connections


def _at_once(storm: Storm) -> float:
    return 0.0


def _read_on_s(storm: Storm) -> float:
    return DRAIN_S


KINDS = {
    "silent": Kind(_silent, _idle_s, weight=16),
    "header byte by byte": Kind(_drip_header, _header_s),
    "header unfinished": Kind(_half_header, _header_s),
    "body byte by byte": Kind(_drip_body, _slow_body_s, (408,), says=ERROR, writes_on=True),
    "body half": Kind(_half_body, _slow_body_s, (408,), says=ERROR),
    "body never": Kind(_no_body, _slow_body_s, (408,), says=ERROR),
    "body invited, never sent": Kind(_uninvited, _slow_body_s, (408,), says=ERROR),
    "chunks without end": Kind(_endless_chunks, _body_s, (408,), says=ERROR, writes_on=True),
    "chunk broken": Kind(_broken_chunk, _at_once, (400,), says=ERROR),
    "idle after an answer": Kind(_idle, _idle_s, (200, 202), weight=16),
    UNREAD: Kind(_unread, _unread_s, weight=0, is_exact=False, reads=False),
    "garbage": Kind(_garbage, _at_once, (400,), says=ERROR),
    "flood": Kind(_flood, _at_once, (400,), writes_on=True, weight=2),
    "TLS": Kind(_tls, _at_once, (400,), says=ERROR),
    "gzip bomb": Kind(_gzip_bomb, _at_once, (413,), says=STATUS, weight=2),
    "zstd bomb": Kind(_zstd_bomb, _at_once, (413,), says=ERROR, weight=2),
    "header too large": Kind(_large_header, _at_once, (400, 431), says=ERROR),
    "length huge": Kind(_huge_length, _read_on_s, (413,), says=ERROR, is_exact=False),
}


class Raging:
    """All of a storm."""

    def __init__(self, storm: Storm) -> None:
        self.told = Told()
        self._storm = storm
        self._held = Held(storm.ingest)
        self._deck = [name for name in storm.kinds or KINDS for _ in range(KINDS[name].weight)]
        random.Random(storm.seed).shuffle(self._deck)
        self._open = 0
        self._ends_s = asyncio.get_running_loop().time() + storm.seconds

    async def all(self) -> None:
        """Until every one has had a turn and the time is over."""
        for encoding in ENCODINGS:  # before the gateway waits for them
            _bomb(encoding)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._crowd())
            if UNREAD in (self._storm.kinds or KINDS):
                for number in range(UNREAD_CONNECTIONS):
                    group.create_task(self._live(UNREAD, -2 * ADDRESS_CONNECTIONS, number))
            for number in range(self._storm.connections):
                group.create_task(self._one_after_the_other(number))
        for name in self.told.opened.keys() & KINDS.keys():
            if KINDS[name].statuses and not self.told.answered[name]:
                self.told.faults[f"{name}: of {self.told.opened[name]} none was answered as is due"] += 1

    async def _one_after_the_other(self, number: int) -> None:
        loop, lap = asyncio.get_running_loop(), 0
        while not lap or loop.time() < self._ends_s:
            await asyncio.sleep((self._storm.connections if lap else number) / OPENED_PER_S)
            await self._live(self._deck[(number + lap * LAP_STRIDE) % len(self._deck)], number, lap)
            lap += 1

    async def _live(self, name: str, number: int, lap: int) -> None:
        """One connection, from its beginning to its end."""
        one = Hostile(self._storm, KINDS[name], self._held, number, lap)
        try:
            await one.open()
        except OSError as error:
            self.told.faults[f"{name}: no connection: {error!r}"] += 1
            return
        self._open += 1
        self.told.open_max = max(self.told.open_max, self._open)
        self.told.opened[name] += 1
        self._judge(name, one, await one.live())
        self._open -= 1

    def _judge(self, name: str, one: Hostile, closed_s: float | None) -> None:
        kind, told, due_s = one.kind, self.told, one.kind.due_s(self._storm)
        statuses = [int(status) for status in re.findall(rb"HTTP/1\.[01] ([2-5]\d\d) ", one.said)]
        polite = statuses == [503] and b"retry-after" in one.said.lower()
        if closed_s is None:
            told.faults[f"{name}: not closed {due_s:g} s and {self._storm.slack_s:g} s later"] += 1
        else:
            told.late_s[name] = max(told.late_s.get(name, 0.0), closed_s - one.since - due_s)
            if kind.is_exact and not polite and closed_s - one.began < due_s - EARLY_S:
                told.faults[f"{name}: closed sooner than {due_s:g} s"] += 1
        if len(statuses) == 1 and statuses[0] in kind.statuses and kind.says in one.said:
            told.answered[name] += 1
        elif statuses and not polite:
            told.faults[f"{name}: answered {statuses}, and not {kind.statuses} with {kind.says!r}"] += 1
        elif not statuses and kind.statuses and closed_s is not None and not kind.writes_on:
            told.faults[f"{name}: closed without an answer"] += 1

    async def _crowd(self) -> None:
        """One address opens more connections than it may."""
        storm, kind = self._storm, KINDS["silent"]
        number = -1  # which is an address that nobody else has
        crowd = [Hostile(storm, kind, self._held, number, at) for at in range(ADDRESS_CONNECTIONS_MAX + CROWDING)]

        async def lasts_s(one: Hostile) -> float:
            await one.open()
            closed_s = await one.live()
            return math.inf if closed_s is None else closed_s - one.began

        lasted = await asyncio.gather(*map(lasts_s, crowd))
        early = sum(each < storm.idle_s - EARLY_S for each in lasted)
        self.told.opened["crowd of one address"] += len(crowd)
        if early != CROWDING:
            self.told.faults[f"of {len(crowd)} of one address {early} were closed at once, not {CROWDING}"] += 1


async def rage(storm: Storm) -> Told:
    raging = Raging(storm)
    await raging.all()
    return raging.told


def main() -> int:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(json.dumps(vars(asyncio.run(rage(Storm(**json.load(sys.stdin)))))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
