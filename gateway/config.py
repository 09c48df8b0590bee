"""Settings: typed, all with defaults, from a TOML file and then the environment.

The environment wins: ``WEIR__SECTION__KEY`` overrides ``key`` in ``[section]``; lists are separated by
commas. A key nobody knows is an error, with a suggestion. Each limit has its unit in its name and its
meaning beside it, and the limits are checked against each other before anything starts, so that a
gateway that started cannot be refused its own largest request later.

``config/weir.toml`` is the rendering of the defaults; a test holds it to this file.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit, urlunsplit

import msgspec
from msgspec import Meta

DEFAULT_PATH = Path("config/weir.toml")
"""Read when no file is named and it exists below the working directory."""

WORKERS_MAX = 31
"""Half of the slots a data directory has, less one: each may have a successor beside it for a while."""

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB


class ConfigError(Exception):
    """The settings cannot be used. ``problems`` are sentences that say where and what to change."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


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
    insert_timeout_ms: Annotated[int, Meta(ge=100, description="Time one insert may take before it is retried.")] = (
        60_000
    )
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
        int, Meta(ge=0, description="Time stored rows stay in the spool, in case ClickHouse dies and loses them.")
    ] = 120_000
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
        int, Meta(ge=0, description="The same of one project; 0: half of limits.requests_in_flight_max.")
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
    idle_timeout_ms: Annotated[int, Meta(ge=1_000, description="Time a connection may stay idle between requests.")] = (
        75_000
    )
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

Leaves = dict[tuple[str, ...], Any]


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """The settings from ``path`` (or ``config/weir.toml`` where it exists) and the environment.

    Raises ConfigError with every problem found.
    """
    if path is None and DEFAULT_PATH.is_file():
        path = DEFAULT_PATH
    problems: list[str] = []
    leaves = _from_file(path, problems) if path else {}
    leaves |= _from_environment(environ, problems)
    _read_secrets(leaves, environ, problems)
    if problems:
        raise ConfigError(problems)
    tree: dict[str, Any] = {}
    for where, value in leaves.items():
        branch = tree
        for part in where[:-1]:
            branch = branch.setdefault(part, {})
        branch[where[-1]] = value
    config = _with_defaults(tree)
    if problems := list(contradictions(config)):
        raise ConfigError(problems)
    return config


def contradictions(config: Config) -> Iterator[str]:
    """Settings that are fine alone and wrong together, each as a sentence that says what to change."""
    yield from _bad_addresses(config)
    delivery, limits, stop = config.delivery, config.limits, config.shutdown
    shard_bytes = delivery.ring_bytes_max // delivery.shards
    for name, dialect in ((name, getattr(limits, name)) for name in Limits.__struct_fields__):
        if not isinstance(dialect, DialectLimits):
            continue
        if dialect.body_bytes_max > dialect.inflated_bytes_max:
            yield (
                f"limits.{name}.body_bytes_max ({dialect.body_bytes_max}) is more than "
                f"limits.{name}.inflated_bytes_max ({dialect.inflated_bytes_max}): a body that is not compressed "
                "could never use it. Raise the second or lower the first."
            )
        needed = dialect.body_bytes_max + dialect.inflated_bytes_max
        if needed > limits.bytes_in_flight_max:
            yield (
                f"limits.bytes_in_flight_max ({limits.bytes_in_flight_max}) is less than the largest {name} request "
                f"takes, body and inflated ({needed}): it would be refused for ever. Raise it to at least {needed}."
            )
        if dialect.inflated_bytes_max > shard_bytes:
            yield (
                f"limits.{name}.inflated_bytes_max ({dialect.inflated_bytes_max}) is more than one shard holds "
                f"({shard_bytes} = delivery.ring_bytes_max / delivery.shards): the largest request would be refused "
                "for ever. Lower it, raise delivery.ring_bytes_max, or use fewer shards."
            )
    if limits.project_requests_in_flight_max > limits.requests_in_flight_max:
        yield (
            f"limits.project_requests_in_flight_max ({limits.project_requests_in_flight_max}) is more than "
            f"limits.requests_in_flight_max ({limits.requests_in_flight_max}): it would never count. "
            "Lower the first or raise the second."
        )
    if limits.column_bytes_max > shard_bytes:
        yield (
            f"limits.column_bytes_max ({limits.column_bytes_max}) is more than one shard holds ({shard_bytes} = "
            "delivery.ring_bytes_max / delivery.shards): such a request would be refused for ever. "
            "Lower it, raise delivery.ring_bytes_max, or use fewer shards."
        )
    if delivery.block_bytes > delivery.batch_bytes:
        yield (
            f"delivery.block_bytes ({delivery.block_bytes}) is more than delivery.batch_bytes "
            f"({delivery.batch_bytes}): an insert carries whole blocks. Lower the first or raise the second."
        )
    under_way = delivery.batch_bytes * delivery.inserts_in_flight
    if under_way > shard_bytes:
        yield (
            f"delivery.batch_bytes x delivery.inserts_in_flight ({under_way}) is more than one shard holds "
            f"({shard_bytes}): the inserts could never all be under way. "
            "Lower one of them or raise delivery.ring_bytes_max."
        )
    if SHARD_BLOCKS_MIN * delivery.block_bytes > shard_bytes:
        yield (
            f"delivery.block_bytes ({delivery.block_bytes}) is more than a quarter of what one shard holds "
            f"({shard_bytes} = delivery.ring_bytes_max / delivery.shards): blocks are filled while others are under "
            "way. Lower it, raise delivery.ring_bytes_max, or use fewer shards."
        )
    if delivery.block_age_ms > delivery.batch_age_ms:
        yield (
            f"delivery.block_age_ms ({delivery.block_age_ms}) is more than delivery.batch_age_ms "
            f"({delivery.batch_age_ms}): rows would be due before their block is cut. Lower the first."
        )
    if delivery.retry_first_ms > delivery.retry_max_ms:
        yield (
            f"delivery.retry_first_ms ({delivery.retry_first_ms}) is more than delivery.retry_max_ms "
            f"({delivery.retry_max_ms}): waits only grow. Lower the first or raise the second."
        )
    for host in config.alerts.webhook_hosts:
        if not re.fullmatch(r"\*|[\w.:-]+", host):
            yield f"alerts.webhook_hosts: {host!r} is not the name of a host: write hooks.example.com, or * for any."
    needed = stop.delay_ms + stop.requests_ms_max + stop.flush_ms_max + ENGINES_MS
    if needed > STOP_MS_MAX:
        yield (
            f"shutdown.delay_ms + requests_ms_max + flush_ms_max, and {ENGINES_MS} for the engines, come to "
            f"{needed} ms: a stop must end within {STOP_MS_MAX} ms. Lower one of them."
        )


def _bad_addresses(config: Config) -> Iterator[str]:
    seen: dict[str, str] = {}
    for key, addresses in (("ingest.listen", config.ingest.listen), ("admin.listen", config.admin.listen)):
        if not addresses:
            yield f"{key} is empty: name at least one address, such as 127.0.0.1:0."
        for address in addresses:
            host, _, port = address.rpartition(":")
            if not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
                yield f"{key}: {address!r} is not host:port with a port from 0 to 65535."
            elif int(port) and address in seen:
                yield f"{key}: {address} is already in {seen[address]}. Use another port in one of them."
            else:
                seen[address] = key
    if config.clickhouse.url and not _is_address(config.clickhouse.url, ("http", "https"), host_needed=True):
        yield "clickhouse.url must be http://host:port or https://host:port (ClickHouse's HTTP port, usually 8123)."
    if config.postgres.dsn and not _is_address(config.postgres.dsn, ("postgres", "postgresql"), host_needed=False):
        yield "postgres.dsn must begin with postgresql://, as in postgresql://user:password@host:5432/database."


def _is_address(text: str, schemes: tuple[str, ...], *, host_needed: bool) -> bool:
    try:
        parts = urlsplit(text)
        # Of several hosts, which Postgres takes, the ports are its client's to judge.
        return parts.scheme in schemes and (not host_needed or (bool(parts.hostname) and parts.port != 0))
    except ValueError:  # brackets that do not match, a port that is no number
        return False


def fields(
    section: type[msgspec.Struct] = Config, at: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any, str]]:
    """(path, type, meaning) of every key, in order; sections are walked into."""
    for name, hint in get_type_hints(section, include_extras=True).items():
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            yield from fields(hint, (*at, name))
        else:
            yield (*at, name), hint, _meaning(hint)


def _meaning(hint: Any) -> str:
    return next((meta.description for meta in get_args(hint)[1:] if isinstance(meta, Meta) and meta.description), "")


def variable(path: tuple[str, ...]) -> str:
    """The environment variable of a key."""
    return "__".join(("WEIR", *path)).upper()


def _from_file(path: Path, problems: list[str]) -> Leaves:
    try:
        text = path.read_text("utf-8")
        tree = tomllib.loads(text)
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}.")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"{path}: is not TOML: {error}.")
        return {}
    if not text.strip():
        # An emptied file is far more often an accident than a wish for the defaults.
        problems.append(f"{path}: is empty. Put at least a comment into it, or name no file to run on the defaults.")
    types = {key: hint for key, hint, _ in fields()}
    sections = {key[:depth] for key in types for depth in range(1, len(key))}
    leaves: Leaves = {}

    def walk(tree: dict[str, Any], at: tuple[str, ...]) -> None:
        for name, value in tree.items():
            where = (*at, name)
            dotted = ".".join(where)
            if where in sections and isinstance(value, dict):
                walk(value, where)
            elif where in sections:
                problems.append(f"{path}: {dotted} is a section: write [{dotted}] and its keys below.")
            elif where not in types:
                siblings = [".".join(key) for key in (*types, *sections)]
                problems.append(f"{path}: unknown key {dotted}.{_suggestion(dotted, siblings)}")
            else:
                try:
                    leaves[where] = msgspec.convert(value, types[where])
                except msgspec.ValidationError as error:
                    problems.append(f"{path}: {dotted}: {error}.")

    walk(tree, ())
    return leaves


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> Leaves:
    known = {variable(key): (key, hint) for key, hint, _ in fields()}
    leaves: Leaves = {}
    for name in sorted(environ):
        if not name.startswith("WEIR__"):
            continue
        if name not in known:
            problems.append(f"environment: unknown variable {name}.{_suggestion(name, list(known))}")
            continue
        key, hint = known[name]
        text = environ[name]
        is_list = get_origin(get_args(hint)[0]) is list
        value = [part.strip() for part in text.split(",") if part.strip()] if is_list else text
        try:
            leaves[key] = msgspec.convert(value, hint, strict=False)
        except msgspec.ValidationError as error:
            problems.append(f"environment: {name}: {error}.")
    return leaves


def _suggestion(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:  # the right key in the wrong section
        close = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    return f" Did you mean {close[0]}?" if close else " See config/weir.toml for the keys there are."


def _read_secrets(leaves: Leaves, environ: Mapping[str, str], problems: list[str]) -> None:
    """Fills secrets from their files: ``<key>_file``, else ``$CREDENTIALS_DIRECTORY/section.key``."""
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    for section, key in SECRETS:
        where, file_key = (section, key), (section, f"{key}_file")
        name = leaves.get(file_key)
        if name and leaves.get(where):
            problems.append(f"{section}.{key} and {section}.{key}_file are both set. Remove one of them.")
            continue
        path = Path(name) if name else Path(credentials) / f"{section}.{key}" if credentials else None
        if path is None or (leaves.get(where) and not name) or (not name and not path.is_file()):
            continue
        try:
            leaves[where] = path.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{section}.{key}_file: {path} cannot be read: {getattr(error, 'strerror', 'not UTF-8')}.")


def _with_defaults(tree: dict[str, Any]) -> Config:
    # A partly given [limits.loguro] must fall back to Loguro's own defaults, not to DialectLimits'.
    defaults = msgspec.to_builtins(Config())

    def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
        return base | {
            key: merge(base[key], value) if isinstance(value, dict) else value for key, value in over.items()
        }

    return msgspec.convert(merge(defaults, tree), Config)


def masked(config: Config) -> dict[str, Any]:
    """The settings as plain values, without secrets: of an address only its password is hidden."""
    tree: dict[str, Any] = msgspec.to_builtins(config)
    for section, key in SECRETS:
        if tree[section][key]:
            tree[section][key] = "********" if key != "dsn" else _without_password(tree[section][key])
    tree["clickhouse"]["url"] = _without_password(tree["clickhouse"]["url"])
    return tree


def _without_password(address: str) -> str:
    parts = urlsplit(address)
    user, has_password, _ = parts.netloc.rpartition("@")[0].partition(":")
    netloc = f"{user}:********@{parts.netloc.rpartition('@')[2]}" if has_password else parts.netloc
    return urlunsplit(parts._replace(netloc=netloc, query=re.sub(r"(password=)[^&]*", r"\1********", parts.query)))


def to_toml(tree: Mapping[str, Any]) -> str:
    """Settings as a commented TOML file. ``tree`` is what ``masked`` gives."""
    lines: list[str] = []
    section: tuple[str, ...] = ()
    documents = _section_documents(Config)
    for key, _, meaning in fields():
        if key[:-1] != section:
            section = key[:-1]
            lines += ["", f"[{'.'.join(section)}]", f"# {documents[section]}"]
        value = tree
        for part in key:
            value = value[part]
        lines += [f"# {meaning}", f"{key[-1]} = {toml_value(value)}"]
    return "\n".join(lines) + "\n"


def _section_documents(section: type[msgspec.Struct], at: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    documents = {at: (section.__doc__ or "").strip()}
    for name, hint in get_type_hints(section).items():
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            documents |= _section_documents(hint, (*at, name))
    return documents


def toml_value(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000:
        return f"{value:_}"
    return json.dumps(value)


def schema() -> dict[str, Any]:
    """The settings as a JSON Schema."""
    return msgspec.json.schema(Config)
