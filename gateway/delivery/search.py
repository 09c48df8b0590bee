"""Which of several things a server refuses, found with few tries."""

from __future__ import annotations


class Search:
    """Says which run of ``count`` things to try next, and is told what became of it.

    What is taken is done with; what is refused is halved, from the front, until it is one thing. Only what
    was refused alone is guilty: several may be too many together. Behind a guilty one all the rest is tried
    at once. That is at most log2 n + 3 tries for each guilty one.

    ``refused``: all of them together were refused already.
    """

    def __init__(self, count: int, *, refused: bool) -> None:
        self.guilty: list[int] = []
        self._count = count
        self._start = 0
        self._end = count
        self._suspected = refused  # something in [start, end) is guilty, as far as we know
        if refused and count == 1:
            self._convict()

    def next(self) -> range | None:
        """What to try; None when everything is taken or guilty."""
        start = self._start
        if start == self._count:
            return None
        if not self._suspected:
            # Guilty things come in rows: after two of them the next is tried alone.
            in_a_row = self.guilty[-2:] == [start - 2, start - 1]
            return range(start, start + 1 if in_a_row else self._count)
        return range(start, max(start + 1, (start + self._end) // 2))

    def taken(self) -> None:
        """What ``next`` said is stored."""
        run = self._run()
        self._start = run.stop
        self._suspected = self._suspected and run.stop < self._end

    def refused(self) -> None:
        """What ``next`` said is refused."""
        run = self._run()
        if len(run) == 1:
            self._convict()
        else:
            self._end = run.stop
            self._suspected = True

    def _run(self) -> range:
        run = self.next()
        if run is None:
            raise LookupError("the search is over")
        return run

    def _convict(self) -> None:
        self.guilty.append(self._start)
        self._start += 1
        self._suspected = False
