"""Addresses become bound sockets, once, by whoever outlives those that serve on them.

Several processes serve one address on a socket each; the kernel deals connections out to those that
listen. A socket that is bound and does not listen gets none and keeps the port.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass


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
