"""The settings as types: every key, its default, its unit in its name, its meaning beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

WORKERS_MAX = 31
"""Half of the slots a data directory has, less one: each may have a successor beside it for a while."""

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB


class Ingest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where senders connect."""

    listen: Annotated[list[str], Meta(description="Addresses, host:port; port 0 takes a free one. 4318 is OTLP's.")] = (
        msgspec.field(default_factory=lambda: ["127.0.0.1:8080", "127.0.0.1:4318"])
    )


class Admin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where operators connect: probes, metrics, administration."""

    listen: Annotated[list[str], Meta(description="Addresses, host:port; keep them off the public network.")] = (
        msgspec.field(default_factory=lambda: ["127.0.0.1:8081"])
    )
    token: Annotated[str, Meta(description="Bearer token for /admin; empty: one is made and kept in data_dir.")] = ""
    token_file: Annotated[str, Meta(description="A file that holds the token.")] = ""


class ClickHouse(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where rows go."""

    url: Annotated[str, Meta(description="HTTP address, http://host:8123; empty: Weir runs its own.")] = ""
    user: Annotated[str, Meta(description="User name.")] = "default"
    password: Annotated[str, Meta(description="Password.")] = ""
    password_file: Annotated[str, Meta(description="A file that holds the password.")] = ""
    database: Annotated[str, Meta(description="Database of the tables.", pattern="^[A-Za-z_][A-Za-z0-9_]*$")] = (
        "default"
    )
    retention_days: Annotated[
        # A table's TTL is counted in 32-bit seconds, which end in 2106: more days would wrap and delete new rows.
        int, Meta(ge=1, le=20_000, description="Days a row is kept; older timestamps are moved to the edge.")
    ] = 3650
    embedded_port: Annotated[
        int, Meta(ge=0, le=65535, description="Port of Weir's own ClickHouse; another is taken when it is in use.")
    ] = 8123


class Postgres(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where projects and keys are kept."""

    dsn: Annotated[str, Meta(description="postgresql://user:password@host/database; empty: Weir runs its own.")] = ""
    dsn_file: Annotated[str, Meta(description="A file that holds the DSN.")] = ""


class Keys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys held in memory."""

    poll_ms: Annotated[
        int, Meta(ge=50, le=900, description="How often changes are looked for, beside being notified of them.")
    ] = 500
    requests_per_minute: Annotated[
        int,
        Meta(ge=1, le=10**9, description="Requests a minute with one key where it and its plan have none; then 429."),
    ] = 10_000
    requests_per_minute_no_retry: Annotated[
        int,
        Meta(
            ge=1,
            le=10**9,
            description="The same for keys of Streamlogia and Proliferate, whose clients lose what is refused.",
        ),
    ] = 600_000


class Quotas(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What projects may send in a month."""

    settle_ms: Annotated[int, Meta(ge=50, le=60_000, description="How often what was used is told to Postgres.")] = (
        1_000
    )


class Delivery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From accepted to stored."""

    shards: Annotated[int, Meta(ge=1, le=64, description="Rings, each with its flusher.")] = 2
    ring_bytes_max: Annotated[
        int, Meta(ge=1 * MiB, description="Bytes of rows held in memory, all shards together; then 503.")
    ] = 256 * MiB
    block_bytes: Annotated[int, Meta(ge=4 * KiB, description="Bytes of open columns at which a block is cut.")] = (
        256 * KiB
    )
    block_age_ms: Annotated[int, Meta(ge=1, description="Age of open columns at which a block is cut.")] = 2
    batch_rows: Annotated[int, Meta(ge=1, description="Rows at which an insert is sent.")] = 100_000
    batch_bytes: Annotated[int, Meta(ge=4 * KiB, description="Bytes of blocks at which an insert is sent.")] = 8 * MiB
    batch_age_ms: Annotated[int, Meta(ge=1, description="Age of the oldest row at which an insert is sent.")] = 500
    inserts_in_flight: Annotated[int, Meta(ge=1, le=64, description="Inserts under way at once, per shard.")] = 4
    insert_timeout_ms: Annotated[
        int,
        Meta(
            ge=100,
            description="Time one insert may take; a retry after a time-out gets twice as much, up to eight times.",
        ),
    ] = 60_000
    retry_first_ms: Annotated[int, Meta(ge=1, description="Wait before the first retry; it doubles, with jitter.")] = (
        100
    )
    retry_max_ms: Annotated[int, Meta(ge=1, description="The longest wait between retries.")] = 5_000
    durability: Annotated[
        Literal["memory", "os", "disk", "stored"],
        Meta(description="What a 2xx means: memory, os (survives the process), disk (synced), stored (in ClickHouse)."),
    ] = "disk"
    stored_ms_max: Annotated[int, Meta(ge=0, description="Wait of durability stored; then X-Durability says disk.")] = (
        10_000
    )
    segment_bytes: Annotated[int, Meta(ge=64 * KiB, description="Size of the spool's files.")] = 64 * MiB
    reserve_bytes: Annotated[int, Meta(ge=64 * KiB, description="Disk kept free for the spool's own book-keeping.")] = (
        4 * MiB
    )
    spool_bytes_max: Annotated[int, Meta(ge=1 * MiB, description="Disk of all workers for rows not stored.")] = 10 * GiB
    spool_free_bytes_min: Annotated[int, Meta(ge=0, description="Disk the spool leaves free for others; then 503.")] = (
        256 * MiB
    )
    audit_ms: Annotated[
        int,
        Meta(
            ge=0, description="Time ClickHouse has to run on before stored rows leave the spool: a crash may lose them."
        ),
    ] = 120_000
    idempotency_keys_max: Annotated[
        int, Meta(ge=10_000, description="Idempotency-Keys and record uids remembered; 48 bytes each.")
    ] = 1_000_000
    idempotency_ms: Annotated[int, Meta(ge=60_000, description="Time they are remembered.")] = 86_400_000
    dead_letter_bytes_max: Annotated[int, Meta(ge=1 * MiB, description="Disk for rows ClickHouse refuses.")] = 256 * MiB
    refused_rows_max: Annotated[int, Meta(ge=1, description="Rows it refuses in a row before we suspect it.")] = 1_000


class DialectLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much one request may carry."""

    body_bytes_max: Annotated[int, Meta(ge=1 * KiB, description="Bytes of a body as sent; more: 413.")] = 10 * MiB
    inflated_bytes_max: Annotated[
        int, Meta(ge=1 * KiB, description="Bytes of a body once decompressed; more: 413.")
    ] = 64 * MiB


class CountedLimits(DialectLimits, frozen=True, forbid_unknown_fields=True):
    """How much one request may carry."""

    entries_max: Annotated[
        int, Meta(ge=1, description="Entries of one request; the dialect says what comes of more.")
    ] = 10_000


class Ndjson(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which members of a line on /v1/ndjson mean what; empty: none. The others are kept as attributes."""

    time: Annotated[str, Meta(description="When it happened: RFC 3339 or epoch seconds.")] = "timestamp"
    level: Annotated[str, Meta(description="Its level.")] = "level"
    message: Annotated[str, Meta(description="Its text.")] = "message"
    service: Annotated[str, Meta(description="The service it is from.")] = "service"
    trace_id: Annotated[str, Meta(description="The trace it belongs to.")] = "trace_id"
    span_id: Annotated[str, Meta(description="The span it belongs to.")] = "span_id"


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What keeps one sender from taking everything."""

    requests_in_flight_max: Annotated[int, Meta(ge=1, description="Requests being answered at once; then 503.")] = 1024
    project_requests_in_flight_max: Annotated[
        int,
        Meta(ge=0, description="The same of one project; 0: as many as it leaves free, half of all where it is alone."),
    ] = 0
    api_requests_in_flight_max: Annotated[
        int, Meta(ge=1, description="Requests of the query and control API answered at once; more get 503.")
    ] = 64
    bytes_in_flight_max: Annotated[int, Meta(ge=1 * MiB, description="Bytes of bodies being read; then 503.")] = (
        128 * MiB
    )
    connections_per_address_max: Annotated[int, Meta(ge=1, description="Open connections of one address.")] = 4096
    column_bytes_max: Annotated[
        int, Meta(ge=64 * KiB, description="Bytes the rows of one request may take; more: 413.")
    ] = 96 * MiB
    inline_bytes_max: Annotated[
        int, Meta(ge=0, description="Bytes of a body, decompressed, above which a thread decodes it.")
    ] = 256 * KiB
    header_timeout_ms: Annotated[int, Meta(ge=100, description="Time for a request's headers to arrive.")] = 10_000
    body_timeout_ms: Annotated[int, Meta(ge=100, description="Time for a request's body to arrive; then 408.")] = 30_000
    body_bytes_per_s_min: Annotated[
        int, Meta(ge=0, description="Slowest a body may arrive; 0: as slow as it likes.")
    ] = 1024
    idle_timeout_ms: Annotated[
        int, Meta(ge=1_000, description="Time a connection may stay idle between requests, or leave an answer unread.")
    ] = 75_000
    timestamp_ahead_ms_max: Annotated[
        int, Meta(ge=0, le=86_400_000, description="How far ahead of now a timestamp may be.")
    ] = 3_600_000
    otlp: DialectLimits = msgspec.field(default_factory=DialectLimits)
    loguro: DialectLimits = msgspec.field(
        default_factory=lambda: DialectLimits(body_bytes_max=1 * MiB, inflated_bytes_max=1 * MiB)
    )
    datasets: DialectLimits = msgspec.field(
        default_factory=lambda: DialectLimits(body_bytes_max=1 * MiB, inflated_bytes_max=1 * MiB)
    )
    proliferate: CountedLimits = msgspec.field(
        default_factory=lambda: CountedLimits(body_bytes_max=1 * MiB, inflated_bytes_max=1 * MiB, entries_max=100)
    )
    streamlogia: DialectLimits = msgspec.field(
        default_factory=lambda: DialectLimits(body_bytes_max=10 * MiB, inflated_bytes_max=10 * MiB)
    )
    streamlogia_bulk: CountedLimits = msgspec.field(
        default_factory=lambda: CountedLimits(body_bytes_max=8 * MiB, inflated_bytes_max=8 * MiB, entries_max=10_000)
    )
    ndjson: DialectLimits = msgspec.field(default_factory=DialectLimits)
    brokle: DialectLimits = msgspec.field(default_factory=DialectLimits)


class Alerts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Looking at what arrived for what projects want to be told of."""

    interval_ms: Annotated[int, Meta(ge=100, le=60_000, description="How often alerts are looked at.")] = 5_000
    webhook_hosts: Annotated[
        list[str],
        Meta(description="Host names that may be called, wherever they are; *: any on the public internet."),
    ] = msgspec.field(default_factory=lambda: ["*"])


class Shutdown(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a stop goes: not ready, wait, stop accepting, finish requests, store what is left, stop the engines."""

    delay_ms: Annotated[int, Meta(ge=0, description="Time to keep accepting after /readyz turns 503.")] = 0
    requests_ms_max: Annotated[int, Meta(ge=0, description="Time for requests in flight to be answered.")] = 2_000
    flush_ms_max: Annotated[int, Meta(ge=0, description="Time for accepted rows to be stored.")] = 5_000

    @property
    def workers_ms_max(self) -> int:
        """What a worker's stop may take in all."""
        return self.delay_ms + self.requests_ms_max + self.flush_ms_max


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The gateway's own log, on standard error."""

    level: Annotated[
        str, Meta(description="debug, info, warning or error.", pattern="^(debug|info|warning|error)$")
    ] = "info"
    format: Annotated[
        str, Meta(description="json, text, or auto: text on a terminal.", pattern="^(auto|json|text)$")
    ] = "auto"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every setting."""

    data_dir: Annotated[str, Meta(description="Where everything Weir keeps on disk is.", min_length=1)] = "var"
    workers: Annotated[
        int, Meta(ge=1, le=WORKERS_MAX, description="Processes that share the addresses and the work.")
    ] = 1
    ingest: Ingest = msgspec.field(default_factory=Ingest)
    admin: Admin = msgspec.field(default_factory=Admin)
    clickhouse: ClickHouse = msgspec.field(default_factory=ClickHouse)
    postgres: Postgres = msgspec.field(default_factory=Postgres)
    keys: Keys = msgspec.field(default_factory=Keys)
    quotas: Quotas = msgspec.field(default_factory=Quotas)
    delivery: Delivery = msgspec.field(default_factory=Delivery)
    limits: Limits = msgspec.field(default_factory=Limits)
    ndjson: Ndjson = msgspec.field(default_factory=Ndjson)
    alerts: Alerts = msgspec.field(default_factory=Alerts)
    shutdown: Shutdown = msgspec.field(default_factory=Shutdown)
    log: Log = msgspec.field(default_factory=Log)

    @property
    def data_path(self) -> Path:
        """``data_dir``, absolute."""
        return Path(self.data_dir).expanduser().resolve()


SECRETS = (("admin", "token"), ("clickhouse", "password"), ("postgres", "dsn"))
"""Settings that may come from ``<key>_file`` or a systemd credential ``section.key``, and are masked in print."""

STOP_MS_MAX = 10_000
"""What service managers and people wait for before they kill; the engines need the last second and a half of it."""
ENGINES_MS = 1_500
SHARD_BLOCKS_MIN = 4
"""How many open blocks' worth of bytes a shard must hold; ``delivery.Settings`` insists on it."""
