"""Addresses become bound sockets, once, by whoever outlives those that serve on them.

Several processes serve one address on a socket each; the kernel deals connections out to those that
listen. A socket that is bound and does not listen gets none and keeps the port.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass

_SO_ATTACH_FILTER = 26
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the flags of the TCP header
    (0x54, 0, 0, 0x12),  # of them SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone?
    (0x06, 0, 0, 0),  # then nothing of it
    (0x06, 0, 0, 0xFFFFFFFF),  # else all
)


@dataclass(frozen=True, slots=True)
class Bound:
    """``text``: ``host:port`` with the port that was really taken. ``shares``: for each process its sockets.

    A share has several sockets where the host is a name of several addresses.
    """

    text: str
    shares: list[list[socket.socket]]


def bind(address: str, processes: int = 1) -> Bound:
    """Takes ``host:port`` (port 0: a free one) for so many processes. Raises OSError when it is taken."""
    host, _, wanted = address.rpartition(":")
    port = int(wanted)
    shares: list[list[socket.socket]] = [[] for _ in range(processes)]
    opened: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, where in dict.fromkeys(found):
            at = (where[0], port, *where[2:])
            if processes > 1 and port:
                # Sockets that share let in a stranger who shares as well: see that nobody listens here.
                _open(family, at, shared=False).close()
            for share in shares:
                opened.append(_open(family, (where[0], port, *where[2:]), shared=processes > 1))
                share.append(opened[-1])
                port = opened[-1].getsockname()[1]
    except OSError as error:
        for one in opened:
            one.close()
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror or error}") from None
    return Bound(f"{host}:{port}", shares)


def deafen(listening: socket.socket) -> None:
    """Let the kernel begin no new connection here, for all who share the socket; those it has begun come in still.

    A connection that the kernel makes between our last accept and our close is reset, though its sender has it
    already. Who asks from now on hears nothing, asks again a second later, and is refused then. Without effect
    where the system has no such filters (they are Linux's, socket(7)).
    """
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in _DROP_SYN))
    with suppress(OSError):
        listening.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_DROP_SYN), ctypes.addressof(program))
        )


def _open(family: int, where: tuple[object, ...], *, shared: bool) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setblocking(False)
        # Connections of a predecessor that are still being forgotten do not keep the port.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(where)
    except OSError:
        bound.close()
        raise
    return bound
