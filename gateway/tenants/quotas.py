"""What each project has used of its month's records, and whether it may send more. No request waits for Postgres.

Records are counted here, in memory, and told to Postgres every ``settle_s`` (a second), where the counts
of all gateways come together. A project with a quota also has a *lease*: records this process may accept
before it asks again. A lease is what the project needs for about two seconds, and 0.5 % of its quota at
most; it is renewed when half of it is used, and given back when it is not. Leases and use together never
exceed the quota, so:

    Postgres answers     all gateways together accept the quota, and the rest of the requests that cross
                         it, and what arrives beyond a lease while it is renewed (milliseconds). One of
                         them may refuse a moment before the others have used their leases: 0.5 % early
                         at most for each other gateway, while those are busy.
    Postgres is away     nobody is refused for that. Each process counts on from the sum it last heard,
                         so it accepts what was left then: n processes at most n times that.
    restart without it   the counts are read from a file that is written at a stop, every five seconds
                         while Postgres is away, and every minute otherwise.

What is told is a sum since this process began, so an answer that got lost (a time-out whose outcome nobody
knows) is asked for again and counts nothing twice. A process that is killed has not told what it counted
since its last turn, a second's records; its leases expire a minute later.

Months are calendar months in UTC. A request is counted in the month in which it was acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path

import msgspec

from gateway.errors import SubscriptionRequired
from gateway.tenants import snapshot
from gateway.tenants.errors import StoreUnavailable
from gateway.tenants.postgres import UsageFeed
from gateway.tenants.records import Settled, Share

logger = logging.getLogger(__name__)

Clock = Callable[[], float]

LEASE_S = 60.0
"""How long the others respect the lease of a process that is not heard of any more."""
# A lease is what was used lately times this many turns, within these parts of the quota.
LEASE_TURNS = 2
LEASE_MAX, LEASE_MIN = 1 / 200, 1 / 10_000
SHARES_MAX = 500
WARNING_PERCENT = 80
RETRY_FIRST_S = 0.1
REPEAT_LOG_S = 60.0
START_S, STOP_S = 1.0, 0.5
KEEP_AWAY_S, KEEP_S = 5.0, 60.0
_NEVER = 2**63
_MAGIC = b"weir-usage 1 "


class Use:
    """What one project has used in one month. Sums of this process, but for ``total``: of all, as last heard."""

    __slots__ = (
        "instance", "is_last", "leased_to", "month", "project_id", "quota", "renew_at", "settled", "told_at_s",
        "total", "used", "was_refused",
    )  # fmt: skip

    def __init__(self, instance: uuid.UUID, month: date, project_id: str, told_at_s: float) -> None:
        self.instance, self.month, self.project_id = instance, month, project_id
        self.quota: int | None = None
        self.used = self.settled = self.total = 0
        # Up to which ``used`` the lease goes, at which it is renewed, and whether nothing is left after it.
        self.leased_to, self.renew_at, self.is_last = 0, _NEVER, False
        self.told_at_s = told_at_s
        self.was_refused = False

    @property
    def of_all(self) -> int:
        """What all have used, as far as this process can know."""
        return self.total + self.used - self.settled

    def is_spent(self, quota: int) -> bool:
        if quota != self.quota:
            # Somebody changed it: what was leased under the other one says nothing.
            self.quota, self.is_last, self.renew_at = quota, False, 0
        return (self.is_last and self.used >= self.leased_to) or self.of_all >= quota


class _Kept(msgspec.Struct, array_like=True):
    instance: uuid.UUID
    month: date
    project_id: str
    used: int
    settled: int
    total: int


class Quotas:
    """What is used, told to the control store at ``dsn``.

    ``kept_path``: where to keep the counts over a restart, or None; its folder must exist. ``clock`` is
    wall-clock seconds, for the months. Without ``start`` it counts for itself alone.
    """

    def __init__(
        self,
        dsn: str,
        *,
        kept_path: Path | None,
        settle_s: float = 1.0,
        connect_timeout_s: float = 3.0,
        command_timeout_s: float = 2.0,
        retry_max_s: float = 2.0,
        clock: Clock = time.time,
        monotonic_s: Clock = time.monotonic,
        jitter: Clock = random.random,
    ) -> None:
        self._dsn = dsn
        self._kept_path = kept_path
        self._settle_s, self._retry_max_s = settle_s, retry_max_s
        self._connect_timeout_s, self._command_timeout_s = connect_timeout_s, command_timeout_s
        self._clock, self._monotonic_s, self._jitter = clock, monotonic_s, jitter
        self._instance = uuid.uuid4()
        self._months: dict[date, dict[str, Use]] = {}
        self._uses: dict[str, Use] = {}
        self._month, self._begins_s, self._ends_s = date.min, 0.0, 0.0
        # What there is to tell, and what of it cannot wait for the next turn.
        self._changed: set[Use] = set()
        self._urgent: set[Use] = set()
        self._wake = asyncio.Event()
        self._first_turn = asyncio.Event()
        self._is_reachable = False
        self._stopping = False
        self._settler: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.store_failures = 0
        """How many times the store was lost or could not be reached."""

    @property
    def unsettled_records(self) -> int:
        """Records counted and not yet told to the store."""
        return sum(use.used - use.settled for use in self._changed)

    def check(self, project_id: str, quota: int | None) -> None:
        """Raises SubscriptionRequired when the project's quota of the month is spent. Under a microsecond."""
        use = self._use(project_id)
        if quota is None:
            use.quota = None
        elif use.is_spent(quota):
            # Asks again with the next turn: others may have given back what they did not need.
            use.was_refused = True
            self._changed.add(use)
            raise SubscriptionRequired(
                f"The quota of {quota} records a month is spent. The next month begins at "
                f"{datetime.fromtimestamp(self._ends_s, UTC):%Y-%m-%dT%H:%M:%SZ}; a larger quota takes effect at once.",
                log=f"quota: project {project_id} has used {use.of_all} of {quota} records",
            )

    def count(self, project_id: str, records: int) -> int:
        """Counts records that were accepted. Under a microsecond.

        Returns how many percent of its quota the project has used, rounded down; 0 when it has none.
        """
        use = self._use(project_id)
        use.used += records
        self._changed.add(use)
        if use.used >= use.renew_at:
            use.renew_at = _NEVER
            self._urgent.add(use)
            self._wake.set()
        return use.of_all * 100 // use.quota if use.quota else 0

    async def start(self) -> None:
        """Takes what was kept, and waits for the first answer of the store, or its failure, or a second."""
        if self._kept_path is not None:
            self._resume(await asyncio.to_thread(_read, self._kept_path))
            self._keeper = asyncio.create_task(self._keep(self._kept_path), name="usage kept")
        self._settler = asyncio.create_task(self._settle_for_ever(), name="usage settled")
        with suppress(TimeoutError):
            async with asyncio.timeout(START_S):
                await self._first_turn.wait()

    async def stop(self) -> None:
        """Tells everything, gives back the leases, and keeps what could not be told; takes half a second at most."""
        self._stopping = True
        self._wake.set()
        if self._settler is not None:
            await asyncio.wait({self._settler}, timeout=STOP_S)
            await _ended(self._settler)
            self._settler = None
        if self._keeper is not None and self._kept_path is not None:
            await _ended(self._keeper)
            self._keeper = None
            await self._write(self._kept_path)

    def _use(self, project_id: str) -> Use:
        now = self._clock()
        if not self._begins_s <= now < self._ends_s:
            self._turn_to_month_of(now)
        use = self._uses.get(project_id)
        if use is None:
            use = self._uses[project_id] = Use(self._instance, self._month, project_id, self._monotonic_s())
        return use

    def _turn_to_month_of(self, now: float) -> None:
        begins = datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        ends = begins.replace(year=begins.year + begins.month // 12, month=begins.month % 12 + 1)
        self._month, self._begins_s, self._ends_s = begins.date(), begins.timestamp(), ends.timestamp()
        self._uses = self._months.setdefault(self._month, {})
        # A clock may be put back, but not further than this. What is still to be told is in _changed.
        for month in sorted(self._months.keys() - {self._month})[:-1]:
            del self._months[month]

    async def _settle_for_ever(self) -> None:
        """Tells the store for ever; whatever happens, it tries again."""
        failures, said_at = 0, float("-inf")
        while not self._stopping:
            try:
                await self._follow()
                continue
            except StoreUnavailable as error:
                reason = str(error)
            except Exception as error:  # must outlive its own mistakes; texts may quote the dsn
                reason = f"{type(error).__name__} while settling"
            failures = 0 if self._is_reachable else failures + 1
            self._is_reachable = False
            self.store_failures += 1
            self._first_turn.set()
            now = time.monotonic()
            if failures == 0 or now - said_at >= REPEAT_LOG_S:
                said_at = now
                logger.warning("usage is counted in memory, the control store is away: %s", reason)
            delay_s = min(RETRY_FIRST_S * 2 ** min(failures, 10), self._retry_max_s)
            await self._wait(delay_s * (0.5 + self._jitter() / 2), or_until_urgent=False)

    async def _follow(self) -> None:
        """Takes turns at telling; returns after the last one. StoreUnavailable when the store is lost."""
        feed = await UsageFeed.connect(
            self._dsn, connect_timeout_s=self._connect_timeout_s, command_timeout_s=self._command_timeout_s
        )
        try:
            await self._read_totals(feed)
            while True:
                is_last_turn = self._stopping
                self._urgent.clear()
                await self._settle(feed, list(self._changed))
                self._is_reachable = True
                self._first_turn.set()
                if is_last_turn:
                    return
                next_turn_s = self._monotonic_s() + self._settle_s
                while not self._stopping and (left_s := next_turn_s - self._monotonic_s()) > 0:
                    await self._wait(left_s, or_until_urgent=True)
                    urgent, self._urgent = self._urgent, set()
                    await self._settle(feed, list(urgent))
        finally:
            feed.close()

    async def _wait(self, seconds: float, *, or_until_urgent: bool) -> None:
        deadline_s = self._monotonic_s() + seconds
        while not self._stopping and (left_s := deadline_s - self._monotonic_s()) > 0:
            if or_until_urgent and self._urgent:
                return
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._wake.wait()

    async def _read_totals(self, feed: UsageFeed) -> None:
        """So that a quota that was spent before we began refuses the first request."""
        self._turn_to_month_of(self._clock())
        for project_id, total in (await feed.totals(self._month)).items():
            use = self._use(project_id)
            use.total = max(use.total, total)

    async def _settle(self, feed: UsageFeed, uses: list[Use]) -> None:
        for first in range(0, len(uses), SHARES_MAX):
            some = uses[first : first + SHARES_MAX]
            shares = [self._share(use) for use in some]
            for use, share, settled in zip(some, shares, await feed.settle(shares, lease_s=LEASE_S), strict=True):
                self._take(use, share, settled)

    def _share(self, use: Use) -> Share:
        now_s = self._monotonic_s()
        recent, use.renew_at = use.used - use.settled, _NEVER
        wanted = 0
        if use.quota is not None and (recent or use.was_refused) and use.month == self._month and not self._stopping:
            expected = recent * LEASE_TURNS * self._settle_s / max(now_s - use.told_at_s, 1e-3)
            wanted = max(1, int(min(max(expected, use.quota * LEASE_MIN), use.quota * LEASE_MAX)))
        use.told_at_s, use.was_refused = now_s, False
        return Share(use.project_id, use.month, use.instance, use.used, use.settled, use.quota, wanted)

    def _take(self, use: Use, share: Share, settled: Settled | None) -> None:
        if settled is None:
            logger.warning("usage of project %s is dropped: there is no such project any more", use.project_id)
            use.settled = share.used
            self._changed.discard(use)
            return
        use.total, use.settled = settled.total, share.used
        use.leased_to = share.used + settled.lease
        use.is_last = settled.is_last and use.quota == share.quota
        if use.quota is not None and not settled.is_last:
            use.renew_at = share.used + (settled.lease + 1) // 2
        if use.used == share.used and not settled.lease and not use.was_refused:
            self._changed.discard(use)

    def _resume(self, kept: Iterable[_Kept]) -> None:
        self._turn_to_month_of(self._clock())
        for one in kept:
            if one.used > one.settled:
                untold = Use(one.instance, one.month, one.project_id, self._monotonic_s())
                untold.used, untold.settled = one.used, one.settled
                self._changed.add(untold)
            if one.month == self._month:
                use = self._use(one.project_id)
                use.total = max(use.total, one.total + one.used - one.settled)

    async def _keep(self, path: Path) -> None:
        """Writes the file now and then; a slow disk delays nothing."""
        written_s = self._monotonic_s()
        while True:
            await asyncio.sleep(KEEP_AWAY_S)
            now_s = self._monotonic_s()
            if self._changed and (not self._is_reachable or now_s - written_s >= KEEP_S):
                written_s = now_s
                await self._write(path)

    async def _write(self, path: Path) -> None:
        uses = [use for use in {*self._uses.values(), *self._changed} if use.total or use.used]
        kept = [_Kept(use.instance, use.month, use.project_id, use.used, use.settled, use.total) for use in uses]
        try:
            await asyncio.to_thread(lambda: snapshot.replace(path, _MAGIC, msgspec.json.encode(kept)))
        except OSError as error:
            logger.warning("the counts of usage were not kept: %s", error.strerror)


def _read(path: Path) -> list[_Kept]:
    content = snapshot.content_of(path, _MAGIC, "usage file")
    if content is None:
        return []
    try:
        return msgspec.json.decode(content, type=list[_Kept])
    except msgspec.MsgspecError:
        logger.warning("usage file %s ignored: its content is not what this version writes", path)
        return []


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
