"""Whether the disk has room for a project's rows: the budget of the spool, shared fairly.

Up to 70 % everyone is welcome. Above, a project is refused that holds more than its share, which is
an equal part of those 70 % for each project that waits for storing; at 98 % everyone is. What was
accepted is never thrown out to make room.

The budget is what the settings say, or less when the disk itself has less.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.delivery.drain import Drain
from gateway.delivery.settings import Settings
from gateway.delivery.spool import Spool
from gateway.errors import Overloaded

SHARED_PART = 0.70
FULL_PART = 0.98


class Room:
    """The room of one spool. ``look`` asks the disk; the rest is counted."""

    def __init__(self, spool: Spool, settings: Settings, *, clock: Callable[[], float]) -> None:
        self._spool = spool
        self._settings = settings
        self._drain = Drain(clock)
        self._seen_bytes = 0
        self._pinned_bytes = 0
        self.bytes_max = settings.spool_bytes_max

    @property
    def used_bytes(self) -> int:
        """Of disk, for rows that are not stored: the rows' own, or the files that cannot go because of them."""
        return max(self._spool.ledger.live_bytes, self._pinned_bytes)

    @property
    def trouble(self) -> str:
        """What is wrong, in words; empty when there is room."""
        return "the spool is full" if self.used_bytes >= FULL_PART * self.bytes_max else ""

    @property
    def is_crowded(self) -> bool:
        """Whether the spool's files, needed or not, take most of the budget."""
        return self._spool.ledger.disk_bytes > SHARED_PART * self.bytes_max

    def look(self) -> None:
        """Ask the disk how much there is. To be called every second or so."""
        self._pinned_bytes = self._spool.ledger.pinned_bytes
        free = self._spool.free_bytes()
        if free is not None:
            # What is kept for the audit alone is nobody's room, until it is removed.
            ours = self._spool.ledger.open_bytes + free - self._settings.spool_free_bytes_min
            self.bytes_max = max(0, min(self._settings.spool_bytes_max, ours))
        settled = self._spool.ledger.settled_bytes
        self._drain.add(settled - self._seen_bytes)
        self._seen_bytes = settled

    def check(self, project_id: str, wanted_bytes: int) -> None:
        """Raise Overloaded when there is no room for so much more of this project."""
        used = self.used_bytes
        if used + wanted_bytes <= SHARED_PART * self.bytes_max:
            return
        held = self._spool.ledger.project_bytes
        mine = held.get(project_id, 0)
        share = SHARED_PART * self.bytes_max / max(1, len(held) + (project_id not in held))
        full = used + wanted_bytes > FULL_PART * self.bytes_max
        if not full and mine + wanted_bytes <= share:
            return
        limit = FULL_PART if full else SHARED_PART
        raise Overloaded(
            "rows wait for storage and there is no room for more; send the same again later",
            log=f"spool: {used} of {self.bytes_max} bytes used, {mine} by this project",
            retry_after_s=self._drain.seconds(int(used + wanted_bytes - limit * self.bytes_max)),
        )
