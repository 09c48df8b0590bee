"""The seams of the story, faked: a gate with one key, rows that are a list, and a dialect of one line."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from gateway._native import Columns
from gateway.config import DialectLimits, Limits
from gateway.delivery.idempotency import Claim, Claims, Idempotency
from gateway.dialects.dialect import Context, Dialect, Outcome, Reply, Request, Rows, refusal_headers
from gateway.errors import GatewayError, Malformed, Unauthorized, WeirError
from gateway.http.admission import Admission
from gateway.http.body import Incoming
from gateway.http.ingest import Ingest
from gateway.metrics import Metrics

KEY = "good"


@dataclass(frozen=True)
class OneTenant:
    project_id: str = "project"
    key_id: str = "key"
    notices: tuple[tuple[str, str], ...] = ()
    genai_content_bytes: int | None = None
    durability: str = ""


class OneKey:
    """``origins``: those some browser key may be used from. ``counted``: records by project."""

    def __init__(self) -> None:
        self.origins: set[str] = set()
        self.tenant = OneTenant()
        self.refusal: WeirError | None = None
        self.warning: tuple[tuple[str, str], ...] = ()
        self.counted: dict[str, int] = {}

    def allows_origin(self, origin: str) -> bool:
        return origin in self.origins

    def authorize(self, key: str | None, origin: str | None) -> OneTenant:
        if key != KEY:
            raise Unauthorized("the API key is unknown")
        if self.refusal:
            raise self.refusal
        return self.tenant

    def count(self, project_id: str, records: int) -> tuple[tuple[str, str], ...]:
        self.counted[project_id] = self.counted.get(project_id, 0) + records
        return self.warning


class Promise:
    """A receipt: ``waited_for`` tells that somebody waits, ``kept`` is awaited, ``broken`` raised."""

    def __init__(self) -> None:
        self.waited_for = asyncio.Event()
        self.kept = asyncio.Event()
        self.kept.set()
        self.broken: GatewayError | None = None
        self.durability = "disk"

    async def wait(self) -> None:
        self.waited_for.set()
        await self.kept.wait()
        if self.broken:
            raise self.broken


class Shelf:
    """A delivery that keeps texts: what is committed is on the shelf, what is not is gone."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.open: list[str] = []
        self.promise = Promise()
        self.full: GatewayError | None = None
        self.crowded: GatewayError | None = None
        self.keys = Idempotency(None, slots=(0,), keys_max=16)
        self.keys.all_found()
        self.asked = 0
        """How often somebody wanted to claim a key."""

    def check(self, project_id: str, declared_bytes: int, *, retries: bool) -> None:
        if self.crowded:
            raise self.crowded

    @contextlib.contextmanager
    def rows(self, project_id: str, expected_bytes: int, durability: str) -> Iterator[Shelf]:
        if self.full:
            raise self.full
        self.open = []
        try:
            yield self
        finally:
            self.open = []

    rows_apart = rows

    async def cut(self) -> None:
        """Texts need no cutting."""

    def columns(self, table: str) -> Columns:
        raise NotImplementedError("the one-line dialect writes texts")

    def claim(self, project_id: str, path: str, key: str, body: bytes) -> Claim:
        self.asked += 1
        return self.keys.claim(project_id, path, key, body)

    def claim_records(self, uids: bytes, tables: int) -> Claims:
        raise NotImplementedError("texts have no uids")

    @property
    def tables(self) -> int:
        return 0

    def rollback(self) -> None:
        raise NotImplementedError("texts are written once")

    def commit(self, *claims: Claims) -> Promise:
        if not any(claim.has(0) for claim in claims):
            self.texts += self.open
        for claim in claims:
            self.keys.kept(claim.entries(0, 1))
        return self.promise


def lines(**changed: object) -> Dialect:
    """A dialect of text lines on ``POST /lines``; a line ``bad`` is malformed, ``drop`` is rejected, ``boom`` a bug."""

    def decode(request: Request, body: bytes, context: Context, rows: Rows) -> Outcome:
        assert isinstance(rows, Shelf)
        dropped = 0
        for line in body.decode().splitlines():
            if line == "bad":
                raise Malformed("a bad line", offset=0)
            if line == "boom":
                raise RuntimeError(f"unforeseen {line}")
            if line == "drop":
                dropped += 1
            else:
                rows.open.append(line)
        return Outcome(len(rows.open), {"dropped": dropped} if dropped else {}, state=context.project_id)

    def accepted(request: Request, outcome: Outcome) -> Reply:
        return Reply(200, f"{outcome.rows} for {outcome.state}".encode(), "text/plain")

    def refused(request: Request, error: WeirError) -> Reply:
        return Reply(error.status, str(error).encode(), "text/plain", refusal_headers(error))

    declared: dict[str, object] = {
        "name": "lines",
        "routes": (("POST", "/lines"),),
        "limits": DialectLimits(body_bytes_max=1024, inflated_bytes_max=4096),
        "decode": decode,
        "accepted": accepted,
        "refused": refused,
    }
    return Dialect(**{**declared, **changed})  # type: ignore[arg-type]


@dataclass
class House:
    """The story's house, furnished with fakes."""

    shelf: Shelf = field(default_factory=Shelf)
    metrics: Metrics = field(default_factory=Metrics)
    limits: Limits = field(default_factory=Limits)
    gate: OneKey = field(default_factory=OneKey)

    def __post_init__(self) -> None:
        self.admission = Admission(
            requests_max=self.limits.requests_in_flight_max,
            bytes_max=self.limits.bytes_in_flight_max,
            project_requests_max=self.limits.project_requests_in_flight_max,
        )
        self.ingest = Ingest(
            gate=self.gate,
            delivery=self.shelf,
            admission=self.admission,
            limits=self.limits,
            metrics=self.metrics,
            retention_s=3600,
            now_ns=lambda: 1_700_000_000_000_000_000,
            monotonic_s=lambda: 0.0,
            mint_request_id=lambda: "minted",
        )

    def check_sums(self) -> None:
        """Every request ended one way and nothing is held any more."""
        metrics = self.metrics
        ended = metrics.requests_accepted.total() + metrics.requests_refused.total()
        assert metrics.requests_received.total() == ended
        rejected = metrics.records_rejected.total()
        repeated = metrics.records_repeated.total()
        assert metrics.records_received.total() == metrics.records_accepted.total() + rejected + repeated
        assert (self.admission.requests, self.admission.bytes) == (0, 0)
        assert (self.admission.strangers, self.admission.stranger_bytes) == (0, 0)
        assert not self.admission.by_project


def incoming(chunks: Sequence[bytes], *, declared: bool = True, then: Callable[[], None] | None = None) -> Incoming:
    """A body that is already here; ``then`` is called when it is read past its end."""
    left = list(chunks)

    async def chunk() -> bytes:
        if left:
            return left.pop(0)
        if then:
            then()
        return b""

    return Incoming(sum(map(len, chunks)) if declared else None, chunk)
