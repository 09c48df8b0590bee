"""The slots that replaced workers have left, until what they stored is on ClickHouse's disk.

ClickHouse may lose what it has just acknowledged (gateway/delivery/audit.py). A worker counts that again when the
server has started anew; when the worker is gone by then, somebody has to take over its slot, and counts instead.

Each answer of a server is judged by itself: one that has started since a worker left may have lost what that stored,
and one that was there before it left and runs ``keep_s`` later has not. Nothing is inferred from a change between two
answers, as several servers behind one address give in turns: a start makes a slot owed once, since who takes it over
leaves another one later than that start. So that this is certain, one that has just started is asked again later. Of
several servers the first that can tell decides.
"""

from __future__ import annotations

from collections.abc import Iterable

UNSEEN_S = 6.0
"""A worker looks every 5 s, so it may not have seen what started just before it left; nor do we know to the second."""
YOUNG_S = UNSEEN_S + 2.0
"""A server that has run for less says nothing yet: who took over now would leave a slot that is owed as well."""


class LeftSlots:
    """``at``: seconds of one clock that never goes back. False while there are none."""

    def __init__(self) -> None:
        self._left: dict[int, tuple[float, float]] = {}

    def __bool__(self) -> bool:
        return bool(self._left)

    def leave(self, slot: int, at: float, keep_s: float) -> None:
        """The worker on it has ended; the server needs ``keep_s`` until all is on its disk, 0: nobody cares."""
        if keep_s:
            self._left[slot] = at, keep_s

    def forget(self, slots: Iterable[int]) -> None:
        """Somebody has them."""
        for slot in slots:
            self._left.pop(slot, None)

    def judge(self, at: float, uptime_s: float) -> set[int]:
        """A server that was asked then had been running for so long: the slots it may have lost rows of.

        These are forgotten, and those whose rows are safe.
        """
        if uptime_s < YOUNG_S:
            return set()
        lost = {slot for slot, (left, _) in self._left.items() if left - UNSEEN_S < at - uptime_s}
        safe = {slot for slot, (left, keep_s) in self._left.items() if left + keep_s < at}
        self.forget(lost | safe)
        return lost
