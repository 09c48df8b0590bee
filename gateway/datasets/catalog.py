"""The datasets in memory, so that no record waits for Postgres.

Everything is read again when the change number in Postgres is another than the one in memory, which
is looked at every ``poll_s``; whoever changes a dataset here awaits ``refresh``, so that it takes
effect at once. A dataset made at another gateway is therefore unknown here for ``poll_s`` at most.
Its sender's next connection may be another worker's: ``seen_by_all`` waits until that one has looked.

When Postgres is away, what is in memory holds. When it never answered since the start, nobody can say
which datasets there are: records are refused with 503, never with 404.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from gateway._native import EntryPlan
from gateway.datasets import fields
from gateway.datasets.fields import Fields
from gateway.errors import GatewayError, NotFound
from gateway.schema import Table

logger = logging.getLogger(__name__)

NO_SCHEMA = "Dataset schema not found"
NO_DATASET = "Dataset not found"
_ID_MAX = 2**31 - 1
_RETRY_AFTER_S = 2
_START_S = 1.0
_READING_S = 0.25
"""What it takes to read the datasets, generously."""


class Known(Protocol):
    """What the control store says of a dataset; ``gateway.tenants.records.DatasetRecord``."""

    @property
    def id(self) -> int: ...
    @property
    def project_id(self) -> str: ...
    @property
    def is_default(self) -> bool: ...
    @property
    def fields(self) -> Fields | None:
        """None: no schema yet."""
        ...


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a dataset's records go, and how they are decoded."""

    table: str
    plan: EntryPlan


@dataclass(frozen=True, slots=True)
class _Entry:
    project_id: str
    destination: Destination | None


class Catalog:
    """``change`` asks for the change number, ``load`` for all datasets; either may raise.

    ``on_table`` is called once with each table, before a record for it is decoded. ``workers`` serve together.
    """

    def __init__(
        self,
        change: Callable[[], Awaitable[int]],
        load: Callable[[], Awaitable[Sequence[Known]]],
        on_table: Callable[[Table], None],
        *,
        poll_s: float,
        workers: int = 1,
    ) -> None:
        self._change, self._load, self._on_table = change, load, on_table
        self._poll_s = poll_s
        self._workers = workers
        self._seen: int | None = None
        self._entries: dict[int, _Entry] = {}
        self._defaults: dict[str, int] = {}
        self._destinations: dict[int, Destination] = {}
        self._turn = asyncio.Lock()
        self._tried = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when everything is in memory, or Postgres has failed to tell, or a second is over."""
        self._poller = asyncio.create_task(self._poll(), name="datasets refresh")
        with suppress(TimeoutError):
            async with asyncio.timeout(_START_S):
                await self._tried.wait()

    async def stop(self) -> None:
        """Stops looking for changes. Memory stays as it is."""
        if self._poller is not None:
            self._poller.cancel()
            with suppress(asyncio.CancelledError):
                await self._poller

    async def refresh(self) -> None:
        """Returns when everything that was in the store at the call is in memory; raises what the store raises."""
        async with self._turn:
            change = await self._change()
            if change != self._seen:
                self._take(await self._load())
                # The number was read first: what changed since is read at the next turn.
                self._seen = change

    async def seen_by_all(self) -> None:
        """Returns when each worker has had the time to see what was in the store at the call."""
        if self._workers > 1:
            await asyncio.sleep(self._poll_s + _READING_S)

    def find(self, project_id: str, dataset_id: str | None) -> Destination:
        """The dataset with this id in a project, or (None) its default one.

        Raises NotFound: no such dataset in this project, or no schema yet; GatewayError: nobody knows yet.
        """
        if self._seen is None:
            raise GatewayError(
                "The datasets are not known here yet. Send the same again later.",
                log="datasets: the control store has not answered since the start",
                retry_after_s=_RETRY_AFTER_S,
            )
        number = self._defaults.get(project_id) if dataset_id is None else id_of(dataset_id)
        entry = None if number is None else self._entries.get(number)
        if entry is None or entry.project_id != project_id:
            raise NotFound(NO_SCHEMA if dataset_id is None else NO_DATASET)
        if entry.destination is None:
            raise NotFound(NO_SCHEMA)
        return entry.destination

    def _take(self, datasets: Sequence[Known]) -> None:
        self._entries = {
            dataset.id: _Entry(dataset.project_id, self._destination(dataset.id, dataset.fields))
            for dataset in datasets
        }
        self._defaults = {dataset.project_id: dataset.id for dataset in datasets if dataset.is_default}

    def _destination(self, dataset_id: int, declared: Fields | None) -> Destination | None:
        if declared is None:
            return None
        # Neither an id nor its schema is ever given out again.
        found = self._destinations.get(dataset_id)
        if found is None:
            table = fields.table(dataset_id, declared)
            found = self._destinations[dataset_id] = Destination(table.name, fields.plan(table, declared))
            self._on_table(table)
        return found

    async def _poll(self) -> None:
        while True:
            await self._try()
            self._tried.set()
            await asyncio.sleep(self._poll_s)

    async def _try(self) -> None:
        try:
            await self.refresh()
        except Exception as error:  # the poller must outlive its own mistakes; texts may quote the dsn
            logger.debug("datasets: not read again: %s", type(error).__name__)


def id_of(text: str) -> int | None:
    """The id a path or a header names, None when it cannot be one."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(_ID_MAX))):
        return None
    number = int(text)
    return number if number <= _ID_MAX else None
