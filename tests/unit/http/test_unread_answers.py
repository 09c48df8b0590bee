"""A connection whose answers nobody reads is cut, and one that reads them slowly is not."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp import web

from gateway.dialects.dialect import Reply
from gateway.http import listener
from gateway.http.body import Incoming
from gateway.http.listener import Connection, Listener, Patience

IDLE_S = 10.0
ANSWER_BYTES, READ_BYTES, LOOKS = 64 << 20, 64 << 10, 16
WAIT_S = 10.0


class Pipe(asyncio.Transport):
    """The system has ``unread_bytes`` of ours still to take."""

    def __init__(self) -> None:
        super().__init__()
        self.unread_bytes = 0
        self.is_cut = False

    def get_write_buffer_size(self) -> int:
        return self.unread_bytes

    def abort(self) -> None:
        self.is_cut = True


async def answer(request: web.BaseRequest, incoming: Incoming) -> Reply:
    raise AssertionError("nobody asks")


def connected() -> Connection:
    loop = asyncio.get_running_loop()
    patience = Patience(idle_s=IDLE_S)
    return Connection(Listener([], answer, patience), web.Server(answer), loop, patience)  # type: ignore[arg-type]  # is never called


def is_cut(unread_bytes: list[int], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether it is after such looks, one each five seconds."""
    monkeypatch.setattr(listener, "in_flight_bytes", lambda _: 0)
    connection = connected()
    connection.connection_made(pipe := Pipe())
    for turn, pipe.unread_bytes in enumerate(unread_bytes):
        connection.look(5.0 * turn)
    return pipe.is_cut


@pytest.mark.parametrize(
    ("unread_bytes", "expected"),
    [
        ([100, 100, 100], False),
        ([100, 100, 100, 100], True),
        ([100, 100, 99, 99, 98, 98, 97], False),
        ([0, 0, 0, 0, 0, 0], False),
        ([0, 0, 0, 100, 100, 100], False),
    ],
)
async def test_who_reads_nothing_for_too_long_is_cut(
    unread_bytes: list[int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_cut(unread_bytes, monkeypatch) == expected


def unread(pipe: asyncio.WriteTransport) -> int:
    return pipe.get_write_buffer_size() + listener.in_flight_bytes(pipe)


async def test_who_reads_a_little_at_a_time_is_not_cut_before_it_stops() -> None:
    """Though the system takes more of an answer only when a megabyte or so was read."""
    loop, connection = asyncio.get_running_loop(), connected()
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as reader,
    ):
        reader.setblocking(False)
        pipe, _ = await loop.connect_accepted_socket(lambda: connection, listening.accept()[0])
        pipe.write(bytes(ANSWER_BYTES))
        for turn in range(LOOKS):
            connection.look(5.0 * turn)
            assert not pipe.is_closing()
            before = unread(pipe)
            async with asyncio.timeout(WAIT_S):
                while unread(pipe) == before:  # the reader's system says only now and then that it has room
                    await loop.sock_recv(reader, READ_BYTES)
        for turn in range(LOOKS, LOOKS + 4):
            connection.look(5.0 * turn)
        assert pipe.is_closing()
