"""What this process takes on at once: requests and bytes of bodies in flight.

Past either limit a request is refused at once rather than queued: a sender that is told to come back
in a second does, and one that waits in a queue times out and sends the same again on top.

A request holds the bytes that are here, not those it has declared: whoever declares much and sends
little takes nothing from the others. And where the key is in the body, nobody knows who is sending
before it is read: these strangers together hold half of either limit at most, so that however many
come, there is room for those whose key is known.

No project takes all places either: it holds at most as many as it leaves free, since it may hold them
long. That is half of them where one is greedy, a third each where two are, and some are always left for
who comes next (a dynamic threshold: Choudhury and Hahne, "Dynamic Queue Length Thresholds for
Shared-Memory Packet Switches", 1998). Its only request is never refused for that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.errors import Overloaded, ProjectBusy


class Admission:
    """The budget of one process. Belongs to one event loop.

    ``project_requests_max``: how many places one project may have, however many are free; 0: as many as are.
    """

    def __init__(self, *, requests_max: int, bytes_max: int, project_requests_max: int = 0) -> None:
        self.requests_max = requests_max
        self.bytes_max = bytes_max
        self.project_requests_max = project_requests_max
        self.by_project: Counter[str] = Counter()
        self.requests = self.strangers = 0
        self.bytes = self.stranger_bytes = 0

    @contextmanager
    def admit(self, declared_bytes: int, *, stranger: bool = False) -> Iterator[Ticket]:
        """Holds one request while open. Raises Overloaded when it, or what it declares, does not fit now."""
        if self.requests >= self.requests_max or (stranger and self.strangers >= max(1, self.requests_max // 2)):
            raise Overloaded("too many requests are being answered: send this one again", retry_after_s=1)
        ticket = Ticket(self, stranger)
        ticket.check(declared_bytes)
        self.requests += 1
        self.strangers += stranger
        try:
            yield ticket
        finally:
            ticket.release()
            ticket.is_known()
            ticket.leave()
            self.requests -= 1


class Ticket:
    """The place and the bytes one request holds."""

    __slots__ = ("_admission", "_held_bytes", "_project_id", "_stranger")

    def __init__(self, admission: Admission, stranger: bool) -> None:
        self._admission = admission
        self._held_bytes = 0
        self._stranger = stranger
        self._project_id = ""

    def check(self, needed_bytes: int) -> None:
        """Raises Overloaded when it cannot hold ``needed_bytes`` in all now."""
        admission, more = self._admission, needed_bytes - self._held_bytes
        # A stranger alone may have all: its request could not be taken at any other time either.
        others = admission.stranger_bytes - self._held_bytes if self._stranger else 0
        crowded = others and others + needed_bytes > admission.bytes_max // 2
        if more > 0 and (crowded or admission.bytes + more > admission.bytes_max):
            raise Overloaded("too many bytes are being read: send this request again", retry_after_s=1)

    def hold(self, needed_bytes: int) -> None:
        """Holds ``needed_bytes`` in all, if less were held until now. Raises Overloaded when they do not fit."""
        if needed_bytes > self._held_bytes:
            self.check(needed_bytes)
            self._keep(needed_bytes)

    def is_known(self) -> None:
        """No stranger any more: its key was good."""
        if self._stranger:
            self._admission.strangers -= 1
            self._admission.stranger_bytes -= self._held_bytes
            self._stranger = False

    def belongs_to(self, project_id: str) -> None:
        """Its key was good, and is this project's. Raises ProjectBusy when that has too many requests in flight."""
        self.is_known()
        admission = self._admission
        others = admission.by_project[project_id]
        free = admission.requests_max - admission.requests
        if others and others >= (admission.project_requests_max or free + 1):
            raise ProjectBusy(
                "too many requests of this project are being answered: send this one again", retry_after_s=1
            )
        admission.by_project[project_id] += 1
        self._project_id = project_id

    def leave(self) -> None:
        """Takes no place of its project any more."""
        by_project = self._admission.by_project
        if self._project_id:
            by_project[self._project_id] -= 1
            if not by_project[self._project_id]:
                del by_project[self._project_id]

    def release(self) -> None:
        """Holds nothing any more."""
        self._keep(0)

    def _keep(self, held_bytes: int) -> None:
        more, self._held_bytes = held_bytes - self._held_bytes, held_bytes
        self._admission.bytes += more
        if self._stranger:
            self._admission.stranger_bytes += more
