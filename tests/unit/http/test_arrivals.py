"""Those who come at once are taken at once; when descriptors are short they wait, and are served later."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack

import pytest
import pytest_asyncio

from gateway.http import arrivals
from gateway.http.arrivals import Arrivals

MANY = 200
TURNS_MAX = 20
WAIT_S = 10


class Here(asyncio.Protocol):
    """Says hello, and closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(b"hello")
        transport.close()


class Rig:
    """A listening socket, who came, and how many there are said to be."""

    def __init__(self) -> None:
        self.came: list[Here] = []
        self.held = 0
        self.listening = socket.socket()
        self.listening.bind(("127.0.0.1", 0))
        self.arrivals = Arrivals(self._make, lambda: self.held)
        self._open = ExitStack()

    def _make(self) -> Here:
        self.came.append(Here())
        return self.came[-1]

    def connect(self, count: int) -> list[socket.socket]:
        """So many, while the loop does not turn."""
        address = self.listening.getsockname()
        return [self._open.enter_context(socket.create_connection(address, WAIT_S)) for _ in range(count)]

    async def until(self, condition: Callable[[], bool]) -> int:
        """How many turns of the loop it took."""
        turns = 0
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await asyncio.sleep(0)
                turns += 1
        return turns

    async def stop_listening(self) -> None:
        self.arrivals.stop()
        self.listening.close()
        await self.arrivals.made()

    async def stop(self) -> None:
        await self.stop_listening()
        self._open.close()


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    made.arrivals.start([made.listening])
    yield made
    await made.stop()


async def assert_greeted(senders: list[socket.socket]) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(WAIT_S):
        for sender in senders:
            sender.setblocking(False)
            assert await loop.sock_recv(sender, 16) == b"hello"


async def test_hundreds_who_come_at_once_are_taken_in_a_few_turns_of_the_loop(rig: Rig) -> None:
    senders = rig.connect(MANY)
    assert await rig.until(lambda: len(rig.came) == MANY) <= TURNS_MAX
    await assert_greeted(senders)


async def test_who_waits_at_a_stop_is_taken_and_nobody_after_it(rig: Rig) -> None:
    senders = rig.connect(MANY)
    address = rig.listening.getsockname()
    await rig.stop_listening()
    assert len(rig.came) == MANY
    await assert_greeted(senders)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, WAIT_S)


async def test_a_stop_takes_no_more_than_there_are_descriptors_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.held = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - arrivals._FILES_KEPT - 5
    rig.connect(MANY)
    await rig.stop_listening()
    assert len(rig.came) == 5, "the others' descriptors are the spool's and ClickHouse's"


async def test_newcomers_wait_while_connections_have_all_the_descriptors_they_may(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(arrivals, "_PAUSE_S", 0.0)
    rig.held = 1 << 30
    senders = rig.connect(3)
    await rig.until(lambda: len(caplog.records) > 0)
    assert (len(rig.came), caplog.records[0].levelno) == (0, logging.WARNING)
    rig.held = 0
    await rig.until(lambda: len(rig.came) == len(senders))
    await assert_greeted(senders)
    assert len(caplog.records) == 1, "it is said once a minute"


async def test_newcomers_wait_while_the_process_can_open_no_file(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(arrivals, "_PAUSE_S", 0.0)
    senders = rig.connect(3)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        await rig.until(lambda: len(caplog.records) > 0)
        assert len(rig.came) == 0
        assert "Too many open files" in caplog.text
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await rig.until(lambda: len(rig.came) == len(senders))
    await assert_greeted(senders)
