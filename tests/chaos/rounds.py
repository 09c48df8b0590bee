"""What the rounds of all programmes have in common: a world, a seed, a tally, and nothing left behind."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Self

from tests.chaos.gateway import Gateway, World
from tests.chaos.load import FRESH_MAX_S, Load, fresh_write_s
from tests.chaos.oracle import Report
from tests.chaos.tally import Tally


class Rounds:
    """A context manager: at its end, or when its beginning fails, what it started is gone and ClickHouse is up.

    ``seed`` decides everything but the clock's part. ``pause_ms`` is how long each sender waits between requests.
    """

    def __init__(self, world: World, seed: str, gateway: Gateway, *, pause_ms: float) -> None:
        self.tally = Tally()
        self._world = world
        self._seed = seed
        self._gateway = gateway
        self._pause_ms = pause_ms
        self._left = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._world.clickhouse.become, "up")
            self._begin(stack)
            self._left = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.close()

    def _begin(self, stack: ExitStack) -> None:
        """What there is before the first round; ``stack`` undoes it."""
        stack.enter_context(self._gateway)

    def _load(self, number: int) -> Load:
        """The senders of a round."""
        name = self._gateway.data_dir.name.replace(" ", "-")
        return Load(self._world, self._gateway, f"{name}-{number}", pause_ms=self._pause_ms)

    def _count(self, report: Report, what: str, *, fresh_within_s: float = FRESH_MAX_S) -> None:
        """The round is over: count what the oracle said, and whether a new record still comes through."""
        self.tally.add(report, what)
        self.tally.fresh_s.append(fresh_write_s(self._world, self._gateway, fresh_within_s))
