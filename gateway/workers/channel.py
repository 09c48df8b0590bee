"""What a supervisor and a worker say to each other, over a pair of sockets that nobody else has.

A message is four bytes of length, big-endian, and MessagePack of one of the types below. The first
one a worker gets are its orders, after the descriptors that go with them (``shells.py``). Settings and
their secrets go this way, so that neither the process list nor the environment shows them. The end of the
stream says that the other side is gone.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import msgspec

from gateway.config import Config
from gateway.metrics import Family

MESSAGE_BYTES_MAX = 64 * 1024 * 1024


class Orders(msgspec.Struct, frozen=True, tag=True):
    """What a worker is to be. ``config`` names engines in any case: those of the supervisor where none are configured.

    ``slots``: the first is the worker's own, whose frame numbers it gives out; any others were left by
    workers that are no more, and it is to finish what is in them. Its descriptors are the memories of the keys' rates
    and of idempotency keys, and the sockets where senders connect.
    """

    config: Config
    worker: int
    slots: list[int]


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The worker accepts."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The worker cannot start; ``why`` is for a person."""

    why: str


class Ask(msgspec.Struct, frozen=True, tag=True):
    """To a worker: ``what`` is a name in ``Worker.answers``."""

    number: int
    what: str


class Answer(msgspec.Struct, frozen=True, tag=True):
    """``value`` is the MessagePack of what was asked for."""

    number: int
    value: msgspec.Raw


class Stop(msgspec.Struct, frozen=True, tag=True):
    """To a worker: end in order. It goes on accepting for ``delay_s``.

    ``patient``: somebody has taken over, so no sender is to be hurried.
    """

    delay_s: float
    patient: bool


class Ended(msgspec.Struct, frozen=True, tag=True):
    """A worker's last word: accepted rows that are lost, those that wait in its spool, and all it has counted.

    ``is_owed``: somebody has to take over its slot, because of those rows or of what ClickHouse has lost.
    """

    lost: int
    waiting: int
    counted: list[Family]
    is_owed: bool


Message = Orders | Ready | Failed | Ask | Answer | Stop | Ended
_DECODER = msgspec.msgpack.Decoder(Message)


class Channel:
    """One end. Messages arrive in the order in which they were sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def over(cls, end: socket.socket) -> Channel:
        """The channel over one of a pair of stream sockets."""
        end.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=end))

    async def send(self, message: Message) -> None:
        """Raises ConnectionError when the other side is gone."""
        body = msgspec.msgpack.encode(message)
        self._writer.write(len(body).to_bytes(4) + body)
        await self._writer.drain()

    async def receive(self) -> Message | None:
        """The next message; None when the other side is gone."""
        try:
            length = int.from_bytes(await self._reader.readexactly(4))
            if length > MESSAGE_BYTES_MAX:
                raise ValueError(f"a message of {length} bytes: that is none of ours")
            body = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        message: Message = _DECODER.decode(body)
        return message

    def close(self) -> None:
        self._writer.close()


def value_of(answer: Answer, kind: Any) -> Any:
    """What was asked for, as a ``kind``."""
    return msgspec.msgpack.decode(answer.value, type=kind)
