"""A connection whose answers nobody reads is cut, and one that reads them slowly is not."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from gateway.dialects.dialect import Reply
from gateway.http.body import Incoming
from gateway.http.listener import Connection, Listener, Patience

IDLE_S = 10.0


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


def is_cut(unread_bytes: list[int]) -> bool:
    """Whether it is after such looks, one each five seconds."""
    loop = asyncio.get_running_loop()
    patience = Patience(idle_s=IDLE_S)
    listener = Listener([], answer, patience)
    connection = Connection(listener, web.Server(answer), loop, patience)  # type: ignore[arg-type]  # is never called
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
async def test_who_reads_nothing_for_too_long_is_cut(unread_bytes: list[int], expected: bool) -> None:
    assert is_cut(unread_bytes) == expected
