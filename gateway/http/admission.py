"""What this process takes on at once: requests and bytes of bodies in flight.

Past either limit a request is refused at once rather than queued: a sender that is told to come back
in a second does, and one that waits in a queue times out and sends the same again on top.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.errors import Overloaded


class Admission:
    """The budget of one process. Belongs to one event loop."""

    def __init__(self, *, requests_max: int, bytes_max: int) -> None:
        self.requests_max = requests_max
        self.bytes_max = bytes_max
        self.requests = 0
        self.bytes = 0

    @contextmanager
    def admit(self, declared_bytes: int) -> Iterator[Ticket]:
        """Holds one request and ``declared_bytes`` while open. Raises Overloaded when they do not fit."""
        if self.requests >= self.requests_max:
            raise Overloaded("too many requests are being answered: send this one again", retry_after_s=1)
        ticket = Ticket(self)
        ticket.hold(declared_bytes)
        self.requests += 1
        try:
            yield ticket
        finally:
            self.requests -= 1
            ticket.release()


class Ticket:
    """The bytes one request holds."""

    __slots__ = ("_admission", "_held_bytes")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._held_bytes = 0

    def hold(self, needed_bytes: int) -> None:
        """Holds ``needed_bytes`` in all, if less were held until now. Raises Overloaded when they do not fit."""
        more = needed_bytes - self._held_bytes
        if more <= 0:
            return
        admission = self._admission
        if admission.bytes + more > admission.bytes_max:
            raise Overloaded("too many bytes are being read: send this request again", retry_after_s=1)
        admission.bytes += more
        self._held_bytes = needed_bytes

    def release(self) -> None:
        """Holds nothing any more."""
        self._admission.bytes -= self._held_bytes
        self._held_bytes = 0
