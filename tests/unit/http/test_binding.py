"""Addresses are bound once, and a socket that is to close begins no connection that nobody would take."""

from __future__ import annotations

import errno
import select
import socket
import sys
from collections.abc import Iterator

import pytest

from gateway.http.binding import bind, deafen

HOSTS = ["127.0.0.1:0", "[::1]:0"]
HEARS_NOTHING_S = 0.2


@pytest.fixture(params=HOSTS)
def listening(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    [one] = bind(request.param).shares[0]
    one.listen(8)
    yield one
    one.close()


def test_connections_that_were_begun_come_in_and_carry_data(listening: socket.socket) -> None:
    with socket.create_connection(listening.getsockname()[:2]) as before:
        deafen(listening)
        taken, _ = listening.accept()
        with taken:
            before.sendall(b"heard")
            taken.settimeout(10)
            assert taken.recv(5) == b"heard"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the filters are Linux's")
def test_new_ones_hear_nothing_until_they_are_refused(listening: socket.socket) -> None:
    with socket.create_connection(listening.getsockname()[:2], timeout=10):
        pass  # The positive control: until now they are taken.
    deafen(listening)
    with pytest.raises(TimeoutError):
        socket.create_connection(listening.getsockname()[:2], timeout=HEARS_NOTHING_S)
    with socket.socket(listening.family) as late:
        late.setblocking(False)
        assert late.connect_ex(listening.getsockname()) == errno.EINPROGRESS
        listening.close()
        assert select.select([], [late], [], 10)[1], "it is answered at last"
        assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
