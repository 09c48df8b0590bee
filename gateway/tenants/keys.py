"""All keys in memory, kept up to date from Postgres. No request ever waits for Postgres.

A request's key is hashed and looked up in a dict; what is not there is judged by how well the memory
is known to equal the store:

    in memory, live                         its record
    in memory, revoked                      None: refused for certain
    not in memory, memory is current        None: nobody issued it
    not in memory, memory is not current    KeysUnavailable (503, never a 401: senders drop on 401)
    memory older than a day                 KeysUnavailable for every key

The memory is current when the last answer of the store is no older than two polls and nothing has
gone wrong since. Postgres says that something changed by NOTIFY; because a LISTEN can die without a
word, a change number is also polled every ``poll_s``. A new key is therefore unknown, and a revoked
one still good, for a few milliseconds as a rule and for ``poll_s`` at most while Postgres answers.
Whoever creates a key for a sender who is waiting for it awaits ``catch_up``.

When Postgres is away: known keys keep working for ``keep_s`` (24 h) after the last answer, also over
a restart, because digests and records (never a key) are kept in a snapshot file. A revocation made
meanwhile takes effect when Postgres is back. An error is never remembered as "unknown". A key table
that is suddenly empty, revoked keys and all, is taken for a lost table: it is refused, logged and
counted, and the keys in memory stay.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gateway.errors import KeysUnavailable
from gateway.tenants import snapshot
from gateway.tenants.errors import StoreUnavailable
from gateway.tenants.minting import KEY_CHARS_MAX, digest_of
from gateway.tenants.postgres import KeyFeed
from gateway.tenants.records import KeyRecord, KeyTable

logger = logging.getLogger(__name__)

RETRY_FIRST_S = 0.1
RETRY_MAX_S = 2.0
RETRY_AFTER_S = 2
START_S = 1.0
# An unchanged snapshot is written again this often, so that its age says how old the keys are.
SNAPSHOT_REFRESH_S = 600.0
# While the store stays away, say so again this often.
REPEAT_LOG_S = 60.0


class Keys:
    """The keys of the control store at ``dsn``, in memory.

    ``snapshot_path``: where to keep them over a restart, or None; its folder must exist. ``clock``
    is wall-clock seconds, because the snapshot's age counts too. ``listen=False`` leaves only the
    polling. ``on_table`` is called with each new table.
    """

    def __init__(
        self,
        dsn: str,
        *,
        snapshot_path: Path | None,
        poll_s: float = 0.5,
        keep_s: float = 24 * 3600.0,
        listen: bool = True,
        connect_timeout_s: float = 3.0,
        command_timeout_s: float = 2.0,
        retry_max_s: float = RETRY_MAX_S,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
        on_table: Callable[[KeyTable], None] = lambda table: None,
    ) -> None:
        self._dsn = dsn
        self._snapshot_path = snapshot_path
        self._poll_s, self._current_s, self._keep_s = poll_s, 2 * poll_s, keep_s
        self._listen = listen
        self._connect_timeout_s, self._command_timeout_s = connect_timeout_s, command_timeout_s
        self._retry_max_s = retry_max_s
        self._clock, self._jitter, self._on_table = clock, jitter, on_table
        self._table = KeyTable(0, {}, frozenset())
        self._origins: frozenset[str] = frozenset()
        self._reachable = False
        self._wake = asyncio.Event()
        self._turn = asyncio.Event()
        self._snapshot_due = asyncio.Event()
        self._refresher: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = False
        self._refused_change: int | None = None
        self.current_as_of: float | None = None
        """When (wall-clock seconds) the memory was last known to equal the store; None: never."""
        self.empty_tables_refused = 0
        """How many times an empty key table was seen after a non-empty one."""
        self.store_failures = 0
        """How many times the store was lost or could not be reached."""

    def __len__(self) -> int:
        """How many keys are in memory that are not revoked."""
        return len(self._table.live)

    @property
    def age_s(self) -> float:
        """Seconds since the memory was last known to equal the store; infinite when it never was."""
        return float("inf") if self.current_as_of is None else self._clock() - self.current_as_of

    @property
    def is_current(self) -> bool:
        """Whether what is not in memory is not in the store either."""
        # A negative age is a clock that was put back: wait for the next answer.
        return self._reachable and 0 <= self.age_s <= self._current_s

    @property
    def origins(self) -> frozenset[str]:
        """Every origin that some live browser key may be used from."""
        return self._origins

    def find(self, secret: str) -> KeyRecord | None:
        """The record of a key, or None when nobody issued it or it is revoked. Costs a microsecond or two.

        KeysUnavailable when that cannot be known now.
        """
        if len(secret) > KEY_CHARS_MAX:
            return None
        if self.age_s > self._keep_s:
            raise KeysUnavailable(
                "The key cannot be checked at the moment. Send the same again later.",
                log="keys: no answer of the key store for longer than known keys are kept",
                retry_after_s=RETRY_AFTER_S,
            )
        digest = digest_of(secret)
        record = self._table.live.get(digest)
        if record is not None or digest in self._table.revoked or self.is_current:
            return record
        raise KeysUnavailable(
            "The key is not known here yet and cannot be checked at the moment. Send the same again later.",
            log="keys: a key is not in memory, and the key store cannot be asked",
            retry_after_s=RETRY_AFTER_S,
        )

    async def start(self) -> None:
        """Takes the snapshot, if there is a good one, and waits for the first answer of the store, or its failure.

        With a snapshot it waits for no more than a second: a store that hangs must keep no known key waiting.
        """
        kept = None
        if self._snapshot_path is not None:
            kept = await asyncio.to_thread(snapshot.read, self._snapshot_path)
            if kept is not None:
                self._take(kept.table)
                self.current_as_of = min(kept.as_of, self._clock())
            self._keeper = asyncio.create_task(self._keep_snapshot(self._snapshot_path), name="keys snapshot")
        self._refresher = asyncio.create_task(self._refresh(), name="keys refresh")
        with suppress(TimeoutError):
            async with asyncio.timeout(None if kept is None else START_S):
                await self._turn.wait()

    async def stop(self) -> None:
        """Stops refreshing and brings the snapshot up to date. Memory stays as it is."""
        if self._refresher is not None:
            self._refresher.cancel()
            await asyncio.gather(self._refresher, return_exceptions=True)
            self._refresher = None
        if self._keeper is not None:
            # Not cancelled: its last write must be over before anyone reads or writes the file again.
            self._stopping = True
            self._snapshot_due.set()
            await self._keeper
            self._keeper = None

    async def catch_up(self, timeout_s: float = 2.0) -> None:
        """Returns when everything that was in the store at the call is in memory; else KeysUnavailable."""
        asked = self._clock()
        try:
            async with asyncio.timeout(timeout_s):
                while self.current_as_of is None or not self._reachable or self.current_as_of < asked:
                    self._turn.clear()
                    self._wake.set()
                    await self._turn.wait()
        except TimeoutError:
            raise KeysUnavailable(
                "The key store did not answer in time. The change takes effect here when it does.",
                retry_after_s=RETRY_AFTER_S,
            ) from None

    async def _refresh(self) -> None:
        """Follows the store for ever; whatever happens, it tries again."""
        failures, said_at = 0, float("-inf")
        while True:
            try:
                await self._follow()
            except StoreUnavailable as error:
                reason = str(error)
            except Exception as error:  # the refresher must outlive its own mistakes; texts may quote the dsn
                reason = f"{type(error).__name__} while refreshing"
            failures = 0 if self._reachable else failures + 1
            self._reachable = False
            self.store_failures += 1
            self._turn.set()
            now = time.monotonic()
            if failures == 0 or now - said_at >= REPEAT_LOG_S:
                said_at = now
                logger.warning(
                    "key store away: %s; %d known keys keep working, unknown ones get 503", reason, len(self)
                )
            # From half to all of a delay that doubles: instances do not come back in step.
            delay_s = min(RETRY_FIRST_S * 2 ** min(failures, 10), self._retry_max_s)
            await asyncio.sleep(delay_s * (0.5 + self._jitter() / 2))

    async def _follow(self) -> None:
        """Reads all keys, then again at each change. Returns never; StoreUnavailable when the store is lost."""
        feed = await KeyFeed.connect(
            self._dsn,
            self._wake.set,
            listen=self._listen,
            connect_timeout_s=self._connect_timeout_s,
            command_timeout_s=self._command_timeout_s,
        )
        try:
            await self._load(feed)
            if self._reachable:
                logger.info("key store answers: %d keys", len(self))
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_s):
                        await self._wake.wait()
                self._wake.clear()
                asked = self._clock()
                if self._refused_change is not None or await feed.change() != self._table.change:
                    await self._load(feed)
                else:
                    self._confirm(asked)
        finally:
            feed.close()

    async def _load(self, feed: KeyFeed) -> None:
        asked = self._clock()
        table = await feed.load()
        if len(table) == 0 and len(self._table) > 0:
            self._refuse(table)
            return
        self._refused_change = None
        self._take(table)
        self._confirm(asked)
        self._snapshot_due.set()

    def _refuse(self, table: KeyTable) -> None:
        self._reachable = False
        self._turn.set()
        if self._refused_change != table.change:
            self._refused_change = table.change
            self.empty_tables_refused += 1
            logger.error(
                "the key table is empty, and was not before: refused; %d known keys keep working for %.0f h. "
                "Restore the table; to do away with keys, revoke them",
                len(self),
                self._keep_s / 3600,
            )

    def _take(self, table: KeyTable) -> None:
        self._table = table
        self._origins = frozenset(origin for record in table.live.values() for origin in record.origins)
        self._on_table(table)

    def _confirm(self, as_of: float) -> None:
        self.current_as_of = as_of
        self._reachable = True
        self._turn.set()

    async def _keep_snapshot(self, path: Path) -> None:
        """Writes the snapshot after each change, every ten minutes and at the end; a slow disk delays no refresh."""
        while not self._stopping:
            with suppress(TimeoutError):
                async with asyncio.timeout(SNAPSHOT_REFRESH_S):
                    await self._snapshot_due.wait()
            self._snapshot_due.clear()
            await self._write_snapshot(path)

    async def _write_snapshot(self, path: Path) -> None:
        if self.current_as_of is None:
            return
        try:
            await asyncio.to_thread(snapshot.write, path, snapshot.Snapshot(self.current_as_of, self._table))
        except OSError as error:
            logger.warning("the key snapshot was not written: %s", error.strerror)
